//! What is above IP: ports, TCP flags, ICMP messages.

use bytemuck::Pod;

use super::{Cursor, Kind};
use crate::abi::DropReason;

/// IP protocol numbers.
pub mod protocol {
    use network_types::ip::IpProto;

    /// ICMP.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// IP in IP.
    pub const IPIP: u8 = IpProto::Ipv4 as u8;
    /// TCP.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// ICMPv6.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    /// SCTP.
    pub const SCTP: u8 = IpProto::Sctp as u8;
    /// UDP-Lite, whose ports are where those of UDP are.
    pub const UDP_LITE: u8 = IpProto::UdpLite as u8;

    /// Whether the first four bytes above IP are a source and a destination port.
    #[inline(always)]
    #[must_use]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP | UDP_LITE)
    }
}

/// Bits of [`Transport::tcp_flags`].
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 1 << 1;
    /// Reset.
    pub const RST: u8 = 1 << 2;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 1 << 4;
}

/// What the transport header says; zero where the protocol has no such thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// Source port; of ICMP echo the identifier.
    pub source_port: u16,
    /// Destination port; of ICMP echo the identifier.
    pub destination_port: u16,
    /// ICMP: `type << 8 | code`.
    pub icmp: u16,
    /// See [`tcp_flags`].
    pub tcp_flags: u8,
    /// Length of the header in bytes, as far as it is known.
    pub header: u8,
    /// TCP: sequence number.
    pub sequence: u32,
    /// TCP: acknowledgement number.
    pub acknowledgement: u32,
}

impl Transport {
    /// The ports as they stand in the connection key.
    #[inline(always)]
    #[must_use]
    pub const fn key_ports(&self) -> [u16; 2] {
        [self.source_port, self.destination_port]
    }

    /// What rules are asked about: source port, and destination port or ICMP type and code.
    #[inline(always)]
    #[must_use]
    pub const fn rule_ports(&self, protocol: u8) -> [u16; 2] {
        if protocol == protocol::ICMP || protocol == protocol::ICMPV6 {
            [0, self.icmp]
        } else {
            [self.source_port, self.destination_port]
        }
    }
}

// Headers are read as words: what the compiler puts aside of them on the stack is aligned, as the kernel's verifier wants
// it.

/// The upper and the lower half of a word.
#[inline(always)]
const fn halves(word: u32) -> [u16; 2] {
    [(word >> 16) as u16, word as u16]
}

/// Where the transport header is: right behind a header without options, or anywhere.
#[derive(Clone, Copy)]
pub(super) enum At {
    Near(usize),
    Far(u32),
}

#[inline(always)]
fn read<C: Cursor, T: Pod>(cursor: &C, at: At) -> Result<T, DropReason> {
    match at {
        At::Near(offset) => cursor.near(offset),
        At::Far(offset) => cursor.far(offset),
    }
    .ok_or(DropReason::Malformed)
}

/// Reads the transport header.
#[inline(always)]
pub(super) fn parse<C: Cursor>(cursor: &C, at: At, protocol: u8, icmp: u8) -> Result<(Kind, Transport), DropReason> {
    let mut transport = Transport::default();
    let mut kind = Kind::Flow;
    if protocol == protocol::TCP {
        // The first 16 of at least 20 bytes.
        let head = read::<C, [u32; 4]>(cursor, at)?.map(u32::from_be);
        [transport.source_port, transport.destination_port] = halves(head[0]);
        transport.sequence = head[1];
        transport.acknowledgement = head[2];
        transport.tcp_flags = (head[3] >> 16) as u8;
        transport.header = (head[3] >> 28) as u8 * 4;
        if transport.header < 20 {
            return Err(DropReason::Malformed);
        }
    } else if protocol::has_ports(protocol) {
        let ports = u32::from_be(read(cursor, at)?);
        [transport.source_port, transport.destination_port] = halves(ports);
        transport.header = 8;
    } else if protocol == protocol::ICMP || protocol == protocol::ICMPV6 {
        let head = read::<C, [u32; 2]>(cursor, at)?.map(u32::from_be);
        [transport.icmp, _] = halves(head[0]);
        transport.header = 8;
        // That of the other IP version has a type for rules, but it is no message to anybody.
        if protocol == icmp {
            kind = icmp_kind(icmp, (transport.icmp >> 8) as u8);
            if matches!(kind, Kind::Flow) {
                let [id, _] = halves(head[1]);
                (transport.source_port, transport.destination_port) = (id, id);
            }
        }
    }
    Ok((kind, transport))
}

#[inline(always)]
const fn icmp_kind(icmp: u8, kind: u8) -> Kind {
    let (echo, error) = if icmp == protocol::ICMP {
        (kind == 8 || kind == 0, matches!(kind, 3 | 4 | 11 | 12))
    } else {
        (kind == 128 || kind == 129, kind >= 1 && kind <= 4)
    };
    if echo {
        Kind::Flow
    } else if error {
        Kind::IcmpError
    } else {
        Kind::Stateless
    }
}

/// The ports of the packet that an ICMP error quotes. Eight bytes of its transport header are always there.
#[inline(always)]
pub(super) fn quoted_ports<C: Cursor>(cursor: &C, at: u32, protocol: u8, icmp: u8) -> Option<[u16; 2]> {
    if protocol::has_ports(protocol) {
        Some(halves(u32::from_be(cursor.far(at)?)))
    } else if protocol == icmp {
        let head = cursor.far::<[u32; 2]>(at)?.map(u32::from_be);
        let [id, _] = halves(head[1]);
        matches!(icmp_kind(icmp, (head[0] >> 24) as u8), Kind::Flow).then_some([id, id])
    } else {
        Some([0, 0])
    }
}
