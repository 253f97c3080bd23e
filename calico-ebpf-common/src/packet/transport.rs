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

/// The most that is read of a transport header: of TCP, up to its flags.
pub const TRANSPORT_BYTES: usize = 14;

/// Where the transport header is: right behind a header without options, or anywhere.
#[derive(Clone, Copy)]
pub(super) enum At {
    Near(usize),
    Far(u32),
}

/// Reads a field of the header.
#[inline(always)]
fn read<C: Cursor, const N: usize>(cursor: &C, at: At, offset: u8) -> Result<[u8; N], DropReason>
where
    [u8; N]: Pod,
{
    match at {
        At::Near(at) => cursor.near(at + usize::from(offset)),
        At::Far(at) => cursor.far(at + u32::from(offset)),
    }
    .copied()
    .ok_or(DropReason::Malformed)
}

/// Reads the transport header, where `length` bytes are the packet's: what is behind them is not, though the frame of
/// `frame_length` bytes may have it. Below zero where not even the headers before it are whole.
#[inline(always)]
pub(super) fn parse<C: Cursor>(
    cursor: &C,
    at: At,
    length: i32,
    frame_length: u32,
    protocol: u8,
    icmp: u8,
) -> Result<(Kind, Transport), DropReason> {
    let mut transport = Transport::default();
    let mut kind = Kind::Flow;
    if protocol::has_ports(protocol) {
        let [source, destination] = ports(read(cursor, at, 0)?);
        (transport.source_port, transport.destination_port) = (source, destination);
        transport.header = 8;
        if protocol == protocol::TCP {
            let [offset, flags] = read(cursor, at, 12)?;
            transport.sequence = u32::from_be_bytes(read(cursor, at, 4)?);
            transport.acknowledgement = u32::from_be_bytes(read(cursor, at, 8)?);
            transport.tcp_flags = flags;
            transport.header = (offset >> 4) * 4;
            if transport.header < 20 {
                return Err(DropReason::Malformed);
            }
        } else if protocol == protocol::SCTP {
            transport.header = 12;
        }
    } else if protocol == protocol::ICMP || protocol == protocol::ICMPV6 {
        let [message, code, ..] = read::<C, 4>(cursor, at, 0)?;
        let [id0, id1, ..] = read::<C, 4>(cursor, at, 4)?;
        transport.icmp = u16::from_be_bytes([message, code]);
        transport.header = 8;
        // That of the other IP version has a type for rules, but it is no message to anybody.
        if protocol == icmp {
            kind = icmp_kind(icmp, message);
            if matches!(kind, Kind::Flow) {
                let id = u16::from_be_bytes([id0, id1]);
                (transport.source_port, transport.destination_port) = (id, id);
            }
        }
    }
    // The kernel's own super-packets of more than 64 KiB ("BIG TCP") do not say how long they are.
    if i32::from(transport.header) > length && frame_length <= 0xffff {
        return Err(DropReason::Malformed);
    }
    Ok((kind, transport))
}

/// Whether a later fragment, from this offset on, would overwrite what the first one says of the flow (RFC 3128): that one
/// has the whole header.
#[inline(always)]
pub(super) const fn overlaps_header(protocol: u8, offset: u32) -> bool {
    protocol == protocol::TCP && offset < 20
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
    let at = At::Far(at);
    if protocol::has_ports(protocol) {
        Some(ports(read(cursor, at, 0).ok()?))
    } else if protocol == icmp {
        let [kind] = read(cursor, at, 0).ok()?;
        let id = u16::from_be_bytes(read(cursor, at, 4).ok()?);
        matches!(icmp_kind(icmp, kind), Kind::Flow).then_some([id, id])
    } else {
        Some([0, 0])
    }
}

/// Source and destination port from the first word of the header.
#[inline(always)]
fn ports([s0, s1, d0, d1]: [u8; 4]) -> [u16; 2] {
    [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])]
}
