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

impl Ip for V4 {
    const NO_CLASS: u32 = 0;
    const ICMP: u8 = protocol::ICMP;

    #[inline(always)]
    fn parse<C: Cursor>(cursor: &C, length: u32) -> Result<Packet<Self>, DropReason> {
        // As words: what the compiler puts aside of them on the stack is aligned, as the verifier wants it.
        let words: [u32; 5] = cursor.near(ETHERNET_BYTES).ok_or(DropReason::Malformed)?;
        let [first, second, third] = [words[0], words[1], words[2]].map(u32::from_be);
        let header_length = (first >> 24 & 0xf) * 4;
        let total = first & 0xffff;
        let room = length.wrapping_sub(ETHERNET_BYTES as u32);
        // A length of 0 with more than 64 KiB behind it is how the kernel marks super-packets ("BIG TCP").
        let sane = total >= header_length && total <= room || total == 0 && room > 0xffff;
        if first >> 28 != 4 || header_length < IPV4_BYTES as u32 || !sane {
            return Err(DropReason::Malformed);
        }
        let (ttl, protocol) = ((third >> 24) as u8, (third >> 16) as u8);
        let fragment = second as u16 & (MORE_FRAGMENTS | FRAGMENT_OFFSET);
        let options = header_length != IPV4_BYTES as u32;
        let transport_at = ETHERNET_BYTES as u32 + header_length;
        let (kind, transport) = if fragment & FRAGMENT_OFFSET != 0 {
            (Kind::LaterFragment, Transport::default())
        } else if options {
            transport::parse(cursor, At::Far(transport_at), protocol, Self::ICMP)?
        } else {
            transport::parse(cursor, At::Near(ETHERNET_BYTES + IPV4_BYTES), protocol, Self::ICMP)?
        };
        let [id0, id1, ..] = second.to_be_bytes();
        Ok(Packet {
            source: words[3].to_ne_bytes(),
            destination: words[4].to_ne_bytes(),
            protocol,
            ttl,
            kind,
            fragment: fragment != 0,
            slow: fragment != 0 || options,
            id: [0, protocol, id0, id1],
            transport_at,
            transport,
        })
    }

    #[inline(always)]
    fn quoted<C: Cursor>(cursor: &C, transport_at: u32) -> Option<Quoted<Self>> {
        let at = transport_at + 8;
        let header: Ipv4Header = cursor.far(at)?;
        if header.version_length >> 4 != 4 || u16::from_be_bytes(header.fragment) & FRAGMENT_OFFSET != 0 {
            return None;
        }
        let ports_at = at + u32::from(header.version_length & 0xf) * 4;
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
        let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
        let key = if source_is_a {
            ConnKey4 { addr_a: *source, addr_b: *destination, port_a: from, port_b: to, protocol, reserved: [0; 3] }
        } else {
            ConnKey4 { addr_a: *destination, addr_b: *source, port_a: to, port_b: from, protocol, reserved: [0; 3] }
        };
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
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
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
