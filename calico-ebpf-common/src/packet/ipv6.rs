//! IPv6.

use bytemuck::{Pod, Zeroable};

use super::{
    Cursor, ETHERNET_BYTES, Ip, Kind, Packet, Quoted, Transport,
    transport::{self, At, protocol},
};
use crate::abi::{ConnKey6, DropReason, Family};

/// Length of the header.
pub const IPV6_BYTES: usize = size_of::<Ipv6Header>();
/// Extension headers that are looked behind; a packet with more is dropped.
const MAX_EXTENSIONS: u32 = 6;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// IPv6, as a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V6 {
    type Addr = [u8; 16];
    type Key = ConnKey6;
}

/// The header.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv6Header {
    /// Version, traffic class, flow label.
    pub version: [u8; 4],
    /// Length of what follows.
    pub payload_length: [u8; 2],
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub source: [u8; 16],
    /// Destination.
    pub destination: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ExtensionHead {
    next_header: u8,
    length: u8,
    /// Of a fragment header only.
    offset: [u8; 2],
    /// Likewise.
    id: [u8; 4],
}

/// Where the extension headers end.
struct Walked {
    next_header: u8,
    at: u32,
    fragment: bool,
    /// Of a later fragment, in bytes.
    offset: u32,
    id: [u8; 4],
}

#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS)
}

/// Looks behind the extension headers from `at` on, of which the first is a `next_header`.
#[inline(always)]
fn walk<C: Cursor>(cursor: &C, next_header: u8, at: u32) -> Result<Walked, DropReason> {
    let mut walked = Walked { next_header, at, fragment: false, offset: 0, id: [0; 4] };
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(walked.next_header) {
            return Ok(walked);
        }
        let head: &ExtensionHead = cursor.far(walked.at).ok_or(DropReason::Malformed)?;
        // With segments left the packet is going elsewhere than to where policy thinks it goes.
        if walked.next_header == ROUTING && head.offset[1] != 0 {
            return Err(DropReason::Headers);
        }
        if walked.next_header == FRAGMENT {
            if walked.fragment {
                return Err(DropReason::Headers);
            }
            let offset = u16::from_be_bytes(head.offset);
            // A whole packet in one fragment ("atomic", RFC 6946) is no fragment.
            walked.fragment = offset & 0xfff9 != 0;
            walked.offset = u32::from(offset & 0xfff8);
            walked.id = head.id;
            walked.at += 8;
            walked.next_header = head.next_header;
            if walked.offset != 0 {
                return Ok(walked);
            }
            continue;
        }
        walked.at += if walked.next_header == AUTHENTICATION {
            (u32::from(head.length) + 2) * 4
        } else {
            (u32::from(head.length) + 1) * 8
        };
        walked.next_header = head.next_header;
    }
    if is_extension(walked.next_header) { Err(DropReason::Headers) } else { Ok(walked) }
}

impl Ip for V6 {
    const NO_CLASS: u32 = 1;
    const ICMP: u8 = protocol::ICMPV6;

    #[inline(always)]
    fn parse<C: Cursor>(cursor: &C, length: u32) -> Result<Packet<Self>, DropReason> {
        let header: &Ipv6Header = cursor.near(ETHERNET_BYTES).ok_or(DropReason::Malformed)?;
        let room = length.wrapping_sub((ETHERNET_BYTES + IPV6_BYTES) as u32);
        let payload = u32::from(u16::from_be_bytes(header.payload_length));
        if header.version[0] >> 4 != 6 || payload > room {
            return Err(DropReason::Malformed);
        }
        let payload = payload as i32;
        let mut packet = Packet {
            source: header.source,
            destination: header.destination,
            protocol: header.next_header,
            ttl: header.hop_limit,
            kind: Kind::LaterFragment,
            fragment: false,
            slow: false,
            id: [0; 4],
            transport_at: (ETHERNET_BYTES + IPV6_BYTES) as u32,
            transport: Transport::default(),
        };
        if is_extension(header.next_header) {
            let at = packet.transport_at;
            let walked = walk(cursor, header.next_header, at)?;
            packet.protocol = walked.next_header;
            packet.fragment = walked.fragment;
            packet.slow = true;
            packet.id = walked.id;
            packet.transport_at = walked.at;
            let payload = payload - (walked.at - at) as i32;
            if walked.offset == 0 {
                // The first fragment has to have all headers (RFC 7112).
                let why = |reason| if walked.fragment { DropReason::Fragment } else { reason };
                let at = At::Far(walked.at);
                (packet.kind, packet.transport) =
                    transport::parse(cursor, at, payload, length, walked.next_header, protocol::ICMPV6).map_err(why)?;
            } else if payload <= 0 || transport::overlaps_header(walked.next_header, walked.offset) {
                return Err(DropReason::Fragment);
            }
        } else {
            let at = At::Near(ETHERNET_BYTES + IPV6_BYTES);
            (packet.kind, packet.transport) =
                transport::parse(cursor, at, payload, length, header.next_header, protocol::ICMPV6)?;
        }
        Ok(packet)
    }

    #[inline(always)]
    fn quoted<C: Cursor>(cursor: &C, transport_at: u32) -> Option<Quoted<Self>> {
        let at = transport_at + 8;
        let header: &Ipv6Header = cursor.far(at)?;
        if header.version[0] >> 4 != 6 {
            return None;
        }
        let walked = walk(cursor, header.next_header, at + IPV6_BYTES as u32).ok()?;
        if walked.offset != 0 {
            return None;
        }
        let protocol = walked.next_header;
        let ports = transport::quoted_ports(cursor, walked.at, protocol, protocol::ICMPV6)?;
        // Read again: what was read meanwhile is in its place.
        let header: &Ipv6Header = cursor.far(at)?;
        Some(Quoted { source: header.source, destination: header.destination, protocol, ports })
    }

    #[inline(always)]
    fn key(source: &[u8; 16], destination: &[u8; 16], protocol: u8, ports: [u16; 2]) -> (ConnKey6, bool) {
        let [from, to] = ports;
        let (source_high, source_low) = halves(source);
        let (destination_high, destination_low) = halves(destination);
        let source_is_a = if source_high != destination_high {
            source_high < destination_high
        } else if source_low != destination_low {
            source_low < destination_low
        } else {
            from <= to
        };
        let source = [source_high.to_be(), source_low.to_be()];
        let destination = [destination_high.to_be(), destination_low.to_be()];
        let (a, b, port_a, port_b) =
            if source_is_a { (source, destination, from, to) } else { (destination, source, to, from) };
        // In whole words, as for IPv4.
        let rest = u64::from(port_a.to_be()) | u64::from(port_b.to_be()) << 16 | u64::from(protocol) << 32;
        let key = bytemuck::must_cast([a[0], a[1], b[0], b[1], rest.to_le()]);
        (key, source_is_a)
    }

    #[inline(always)]
    fn to_victim(key: &ConnKey6) -> ConnKey6 {
        *key
    }

    #[inline(always)]
    fn from_victim(key: &ConnKey6) -> Option<ConnKey6> {
        let (high, low) = halves(&key.addr_a);
        (high != 0 || low >> 32 != 0xffff).then_some(*key)
    }

    #[inline(always)]
    fn key_protocol(key: &ConnKey6) -> u8 {
        key.protocol
    }

    #[inline(always)]
    fn is_multicast(address: &[u8; 16]) -> bool {
        address[0] == 0xff
    }

    #[inline(always)]
    fn is_host_scope(address: &[u8; 16]) -> bool {
        let (high, low) = halves(address);
        high == 0 && low == 1 || is_link_local(address)
    }

    #[inline(always)]
    fn wide(address: &[u8; 16]) -> [u8; 16] {
        *address
    }
}

/// `fe80::/10`.
#[inline(always)]
pub(super) const fn is_link_local(address: &[u8; 16]) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// The address as two numbers.
#[inline(always)]
pub(super) fn halves(address: &[u8; 16]) -> (u64, u64) {
    let [high, low]: [[u8; 8]; 2] = bytemuck::must_cast(*address);
    (u64::from_be_bytes(high), u64::from_be_bytes(low))
}
