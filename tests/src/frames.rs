//! Frames as they are, on an interface of a namespace.

use std::{
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    ifaddrs::getifaddrs,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, send, setsockopt,
            socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};
use xtask::lab::Namespace;

/// A packet socket on one interface.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// Opens it.
    ///
    /// # Panics
    /// There is no such interface.
    #[must_use]
    pub fn open(namespace: &Namespace, interface: &str) -> Self {
        let socket = namespace.enter(|| {
            let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
                .expect("as root");
            let addresses = getifaddrs().expect("lists interfaces");
            let of_interface = addresses.filter(|one| one.interface_name == interface).filter_map(|one| one.address);
            let link = of_interface.filter_map(|address| address.as_link_addr().copied()).next().expect("an interface");
            // Without a protocol in it (as here) the socket keeps its own.
            assert!(link.len() > 0);
            bind(socket.as_raw_fd(), &link).expect("binds to the interface");
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20)).expect("sets a timeout");
            socket
        });
        Self { socket: socket.expect("enters the namespace") }
    }

    /// Sends a frame; says whether the kernel took it.
    pub fn send(&self, frame: &[u8]) -> bool {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty()).is_ok()
    }

    /// The first frame within `patience` that `wanted` says yes to.
    #[must_use]
    pub fn receive(&self, patience: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        /// Frames that are still looked at when the time is over: whoever had no processor finds them waiting.
        const WAITING: u32 = 1000;
        let (end, mut waiting) = (Instant::now() + patience, WAITING);
        let mut buffer = [0; 65536];
        loop {
            let is_over = Instant::now() >= end;
            match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) if wanted(&buffer[..length]) => return Some(buffer[..length].to_vec()),
                Ok(_) if is_over && waiting > 0 => waiting -= 1,
                _ if is_over => return None,
                _ => {}
            }
        }
    }
}

/// The MAC address of an interface.
///
/// # Panics
/// There is no such interface.
#[must_use]
pub fn mac(namespace: &Namespace, interface: &str) -> [u8; 6] {
    let text = namespace.ip(&format!("-br link show dev {interface}")).expect("an interface");
    let text = text.split_whitespace().nth(2).expect("a MAC address");
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect();
    bytes.try_into().expect("six bytes")
}

/// A MAC address as `ip` and the resources have it.
#[must_use]
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What a hypervisor sends in the name of a guest that has arrived.
#[must_use]
pub fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}
