//! Ethernet.

use bytemuck::{Pod, Zeroable};

/// Length of the header.
pub const ETHERNET_BYTES: usize = size_of::<EthernetHeader>();

/// The header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EthernetHeader {
    /// Destination.
    pub destination: [u8; 6],
    /// Source.
    pub source: [u8; 6],
    /// See [`ether_type`].
    pub ether_type: [u8; 2],
}

/// Values of [`EthernetHeader::ether_type`].
pub mod ether_type {
    /// IPv4.
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    /// ARP.
    pub const ARP: [u8; 2] = [0x08, 0x06];
    /// IPv6.
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
}
