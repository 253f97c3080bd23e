//! Interfaces of this thread's network namespace.

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// The index of the interface of this name, if there is one.
#[must_use]
pub fn index(name: &str) -> Option<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::name_to_index(socket, name).ok()
}

/// The name of the interface with this index, if there is one.
#[must_use]
pub fn name(index: u32) -> Option<String> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(socket, index).ok()
}
