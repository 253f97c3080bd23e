//! IPv4.

use bytemuck::{Pod, Zeroable};

use super::{
    Cursor, ETHERNET_BYTES, Ip, Kind, Packet, Quoted, Transport,
    transport::{self, At, protocol},
};
use crate::abi::{ConnKey4, ConnKey6, DropReason, Family};

/// Length of the header without options.
pub const IPV4_BYTES: usize = size_of::<Ipv4Header>();

/// IPv4, as a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

impl Family for V4 {
    type Addr = [u8; 4];
    type Key = ConnKey4;
}

/// The header, without options.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Ipv4Header {
    /// Version, and length in words.
    pub version_length: u8,
    /// Type of service.
    pub tos: u8,
    /// Length of the packet.
    pub total_length: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol above.
    pub protocol: u8,
    /// Checksum of the header.
    pub checksum: [u8; 2],
    /// Source.
    pub source: [u8; 4],
    /// Destination.
    pub destination: [u8; 4],
}

const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// The TTL that is one less, and the checksum that fits (RFC 1624, equation 3, for this one case).
#[inline(always)]
#[must_use]
pub const fn ttl_decremented(ttl: u8, checksum: [u8; 2]) -> (u8, [u8; 2]) {
    // The TTL is the upper byte of its 16-bit word: one less there is 0x0100 more in the complement.
    let sum = u16::from_be_bytes(checksum) as u32 + 0x0100;
    let sum = (sum + (sum >= 0xffff) as u32) as u16;
    (ttl.wrapping_sub(1), sum.to_be_bytes())
}

/// What is above the header of a fragment, or of a packet with options. A first fragment has to have the whole transport
/// header, and no other may overwrite it.
#[inline(always)]
fn off_the_fast_path<C: Cursor>(
    cursor: &C,
    at: u32,
    payload: i32,
    frame_length: u32,
    protocol: u8,
    fragment: u16,
) -> Result<(Kind, Transport), DropReason> {
    let offset = u32::from(fragment & FRAGMENT_OFFSET) * 8;
    if offset == 0 {
        let why = |reason| if fragment == 0 { reason } else { DropReason::Fragment };
        transport::parse(cursor, At::Far(at), payload, frame_length, protocol, protocol::ICMP).map_err(why)
    } else if payload <= 0 || transport::overlaps_header(protocol, offset) {
        Err(DropReason::Fragment)
    } else {
        Ok((Kind::LaterFragment, Transport::default()))
    }
}

impl Ip for V4 {
    const NO_CLASS: u32 = 0;
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn parse<C: Cursor>(cursor: &C, length: u32) -> Result<Packet<Self>, DropReason> {
        let header: &Ipv4Header = cursor.near(ETHERNET_BYTES).ok_or(DropReason::Malformed)?;
        let header_length = u32::from(header.version_length & 0xf) * 4;
        let total = u32::from(u16::from_be_bytes(header.total_length));
        let room = length.wrapping_sub(ETHERNET_BYTES as u32);
        if header.version_length >> 4 != 4 || header_length < IPV4_BYTES as u32 || total > room {
            return Err(DropReason::Malformed);
        }
        let payload = total.wrapping_sub(header_length) as i32;
        let fragment = u16::from_be_bytes(header.fragment) & (MORE_FRAGMENTS | FRAGMENT_OFFSET);
        let options = header_length != IPV4_BYTES as u32;
        let transport_at = ETHERNET_BYTES as u32 + header_length;
        let slow = fragment != 0 || options;
        let (kind, transport) = if slow {
            off_the_fast_path(cursor, transport_at, payload, length, header.protocol, fragment)?
        } else {
            let at = At::Near(ETHERNET_BYTES + IPV4_BYTES);
            transport::parse(cursor, at, payload, length, header.protocol, protocol::ICMP)?
        };
        let [id0, id1] = header.id;
        Ok(Packet {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            ttl: header.ttl,
            kind,
            fragment: fragment != 0,
            slow,
            id: [0, header.protocol, id0, id1],
            transport_at,
            transport,
        })
    }

    #[inline(always)]
    fn quoted<C: Cursor>(cursor: &C, transport_at: u32) -> Option<Quoted<Self>> {
        let at = transport_at + 8;
        let header: Ipv4Header = *cursor.far(at)?;
        let length = u32::from(header.version_length & 0xf) * 4;
        let later = u16::from_be_bytes(header.fragment) & FRAGMENT_OFFSET != 0;
        if header.version_length >> 4 != 4 || length < IPV4_BYTES as u32 || later {
            return None;
        }
        let ports_at = at + length;
        Some(Quoted {
            source: header.source,
            destination: header.destination,
            protocol: header.protocol,
            ports: transport::quoted_ports(cursor, ports_at, header.protocol, protocol::ICMP)?,
        })
    }

    #[inline(always)]
    fn key(source: &[u8; 4], destination: &[u8; 4], protocol: u8, ports: [u16; 2]) -> (ConnKey4, bool) {
        let [from, to] = ports;
        let source_end = u64::from(u32::from_be_bytes(*source)) << 16 | u64::from(from);
        let destination_end = u64::from(u32::from_be_bytes(*destination)) << 16 | u64::from(to);
        let source_is_a = source_end <= destination_end;
        let (a, b) = if source_is_a { (source_end, destination_end) } else { (destination_end, source_end) };
        let address = |end: u64| u64::from(((end >> 16) as u32).to_be());
        let port = |end: u64| u64::from((end as u16).to_be());
        // In whole words: the kernel hashes and compares them right after, and would wait for narrower stores.
        let addresses = address(a) | address(b) << 32;
        let rest = port(a) | port(b) << 16 | u64::from(protocol) << 32;
        let key = bytemuck::must_cast([addresses.to_le(), rest.to_le()]);
        (key, source_is_a)
    }

    #[inline(always)]
    fn to_victim(key: &ConnKey4) -> ConnKey6 {
        ConnKey6 {
            addr_a: Self::wide(&key.addr_a),
            addr_b: Self::wide(&key.addr_b),
            port_a: key.port_a,
            port_b: key.port_b,
            protocol: key.protocol,
            reserved: [0; 3],
        }
    }

    #[inline(always)]
    fn from_victim(key: &ConnKey6) -> Option<ConnKey4> {
        let [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a @ ..] = key.addr_a else { return None };
        let [.., b0, b1, b2, b3] = key.addr_b;
        Some(ConnKey4 {
            addr_a: a,
            addr_b: [b0, b1, b2, b3],
            port_a: key.port_a,
            port_b: key.port_b,
            protocol: key.protocol,
            reserved: [0; 3],
        })
    }

    #[inline(always)]
    fn key_protocol(key: &ConnKey4) -> u8 {
        key.protocol
    }

    #[inline(always)]
    fn is_multicast(address: &[u8; 4]) -> bool {
        let address = u32::from_be_bytes(*address);
        address >> 28 == 0xe || address == u32::MAX
    }

    #[inline(always)]
    fn is_host_scope(address: &[u8; 4]) -> bool {
        address[0] == 127
    }

    #[inline(always)]
    fn wide(address: &[u8; 4]) -> [u8; 16] {
        let [a, b, c, d] = *address;
        // In words, which are not set byte by byte.
        bytemuck::must_cast([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
    }
}

#[cfg(test)]
mod tests {
    use super::ttl_decremented;

    /// The checksum of ten words by the book.
    fn checksum(words: &[u16]) -> u16 {
        let mut sum: u32 = words.iter().map(|word| u32::from(*word)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn ttl_and_checksum_fit() {
        for ttl in 1..=255_u8 {
            for rest in [0_u16, 1, 0xff, 0xfeff, 0xff00, 0xfffe, 0x1234] {
                let word = u16::from_be_bytes([ttl, 6]);
                let before = checksum(&[word, rest, 0x4500]);
                let (less, after) = ttl_decremented(ttl, before.to_be_bytes());
                assert_eq!(less, ttl - 1);
                let expected = checksum(&[u16::from_be_bytes([less, 6]), rest, 0x4500]);
                assert_eq!(u16::from_be_bytes(after), expected, "ttl {ttl} rest {rest:#x}");
            }
        }
    }
}
