//! Packets: from bytes to what policy and connections look at.
//!
//! Generic over a [`Cursor`], because the kernel reads packets in another way than tests do.

mod cursor;
mod ethernet;
mod ipv4;
mod ipv6;
mod transport;

pub mod arp;
pub mod nd;
pub mod refusal;

pub use cursor::{Bytes, Cursor};
pub use ethernet::{ETHERNET_BYTES, EthernetHeader, ether_type};
pub use ipv4::{IPV4_BYTES, Ipv4Header, V4, ttl_decremented};
pub use ipv6::{IPV6_BYTES, Ipv6Header, V6};
pub use transport::{TRANSPORT_BYTES, Transport, protocol, tcp_flags};

use crate::abi::{ConnKey6, DropReason, Family, FragmentKey};

/// What a packet is to the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Part of something that has a connection entry: TCP, UDP, SCTP, ICMP echo, protocols without ports.
    Flow,
    /// Judged for itself: ICMP messages that are neither echo nor errors.
    Stateless,
    /// An ICMP error: it belongs to the connection of the packet that it quotes, if there is one.
    IcmpError,
    /// A fragment but the first: it goes the way of the first one.
    LaterFragment,
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<F: Family> {
    /// Source address.
    pub source: F::Addr,
    /// Destination address.
    pub destination: F::Addr,
    /// Protocol above IP, after extension headers.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// What it is.
    pub kind: Kind,
    /// A fragment, the first one included.
    pub fragment: bool,
    /// The fast path leaves it to the host's stack: options, extension headers, fragments.
    pub slow: bool,
    /// Identification of a fragmented packet.
    pub id: [u8; 4],
    /// Offset of the transport header in the frame.
    pub transport_at: u32,
    /// Ports and what else the transport header says.
    pub transport: Transport,
}

/// The flow that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quoted<F: Family> {
    /// Its source address.
    pub source: F::Addr,
    /// Its destination address.
    pub destination: F::Addr,
    /// Its protocol.
    pub protocol: u8,
    /// Its ports, as the connection key has them.
    pub ports: [u16; 2],
}

/// An IP version.
pub trait Ip: Family {
    /// Class of an address that no address condition holds for.
    const NO_CLASS: u32;
    /// Its ICMP.
    const ICMP: u8;

    /// Parses a frame of `length` bytes whose Ethernet header has been read.
    ///
    /// # Errors
    /// Why the packet has to be dropped.
    fn parse<C: Cursor>(cursor: &C, length: u32) -> Result<Packet<Self>, DropReason>
    where
        Self: Sized;

    /// The packet that the ICMP error quotes whose header is at `transport_at`.
    fn quoted<C: Cursor>(cursor: &C, transport_at: u32) -> Option<Quoted<Self>>
    where
        Self: Sized;

    /// The connection key of a packet from `source` to `destination`, and whether the source is its end `a`.
    fn key(source: &Self::Addr, destination: &Self::Addr, protocol: u8, ports: [u16; 2]) -> (Self::Key, bool);

    /// The key as it stands in the map of candidates for eviction: IPv4 addresses mapped into IPv6.
    fn to_victim(key: &Self::Key) -> ConnKey6;

    /// The reverse; `None` for a key of the other version.
    fn from_victim(key: &ConnKey6) -> Option<Self::Key>;

    /// The protocol in a key.
    fn key_protocol(key: &Self::Key) -> u8;

    /// Multicast, or the limited broadcast.
    fn is_multicast(address: &Self::Addr) -> bool;

    /// An address of this very host on any host: loopback; for IPv6 link-local too.
    fn is_host_scope(address: &Self::Addr) -> bool;

    /// The address in sixteen bytes.
    fn wide(address: &Self::Addr) -> [u8; 16];
}

impl<F: Ip> Packet<F> {
    /// The connection key, and whether the source is its end `a`.
    #[inline(always)]
    pub fn key(&self) -> (F::Key, bool) {
        F::key(&self.source, &self.destination, self.protocol, self.transport.key_ports())
    }

    /// The key under which the fragments of the packet find each other.
    #[inline(always)]
    pub fn fragment_key(&self, ifindex: u32) -> FragmentKey {
        FragmentKey {
            source: F::wide(&self.source),
            destination: F::wide(&self.destination),
            id: self.id,
            ifindex,
            reserved: [0; 8],
        }
    }
}
