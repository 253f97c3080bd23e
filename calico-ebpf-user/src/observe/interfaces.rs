//! Names of interfaces in this thread's network namespace.

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// The name of the interface with this index, if there is one.
#[must_use]
pub fn name(ifindex: u32) -> Option<String> {
    if ifindex == 0 {
        return None;
    }
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::index_to_name(socket, ifindex).ok()
}

/// The index of the interface of this name, if there is one.
#[must_use]
pub fn index(name: &str) -> Option<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::name_to_index(socket, name).ok()
}
