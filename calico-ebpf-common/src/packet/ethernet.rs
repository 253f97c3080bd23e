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
    use network_types::eth::EtherType;

    /// IPv4.
    pub const IPV4: [u8; 2] = (EtherType::Ipv4 as u16).to_ne_bytes();
    /// ARP.
    pub const ARP: [u8; 2] = (EtherType::Arp as u16).to_ne_bytes();
    /// IPv6.
    pub const IPV6: [u8; 2] = (EtherType::Ipv6 as u16).to_ne_bytes();
}
