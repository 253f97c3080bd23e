//! Answers to packets that policy rejects: what netfilter's REJECT would send (`nf_reject_ipv4.c`, `nf_reject_ipv6.c`,
//! `icmp_send`), a TCP reset or an ICMP "administratively prohibited".

use bytemuck::{Pod, Zeroable};

use super::{
    Cursor, ETHERNET_BYTES, EthernetHeader, IPV4_BYTES, IPV6_BYTES, Ip, Ipv4Header, Ipv6Header, Kind, Packet,
    Transport, V4, V6, ether_type, protocol, tcp_flags,
};

/// What the kernel gives to packets of its own.
const TTL: u8 = 64;
/// Precedence "internetwork control": the type of service of ICMP errors (RFC 1812, section 4.3.2.5).
const CONTROL: u8 = 0xc0;
const DO_NOT_FRAGMENT: [u8; 2] = [0x40, 0];

/// How a rejected packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not at all: it is of a kind that nobody may answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4).
    Silence,
    /// With a TCP reset.
    Reset,
    /// With an ICMP error: type 3 code 13, or type 1 code 1 of ICMPv6.
    Prohibited,
}

/// An IP version with its answers.
pub trait Refuses: Ip {
    /// Bytes of the refused packet, from its IP header on, that an ICMP error quotes at most: no more than fit into 576
    /// bytes (RFC 1812, section 4.3.2.3), or 1280 (RFC 4443, section 2.4).
    const QUOTED: u32;

    /// A whole frame with a TCP reset.
    type Reset: Pod;
    /// A frame with an ICMP error, up to what it quotes.
    type Prohibited: Pod;

    /// Length of the packet from its IP header on, as that says; of a super-packet as the frame says, which has `length`
    /// bytes.
    fn bytes<C: Cursor>(cursor: &C, length: u32) -> Option<u32>;
    /// An address that one host may have and be written to at.
    fn is_unicast(address: &Self::Addr) -> bool;
    /// Whether an ICMP message of this type may be answered with an error.
    fn is_answerable(kind: u8) -> bool;
    /// The reset that answers `packet`, of so many `bytes` from its IP header on.
    fn reset(ethernet: &EthernetHeader, packet: &Packet<Self>, bytes: u32) -> Self::Reset
    where
        Self: Sized;
    /// The error from `source` that answers `packet` and quotes so many bytes of it, whose 16-bit words have the ones'
    /// complement sum `sum` in the byte order of this machine.
    fn prohibited(
        ethernet: &EthernetHeader,
        packet: &Packet<Self>,
        source: &Self::Addr,
        quoted: u32,
        sum: u32,
    ) -> Self::Prohibited
    where
        Self: Sized;
}

/// How `packet` is answered if policy rejects it.
#[inline(always)]
pub fn refusal<F: Refuses>(packet: &Packet<F>) -> Refusal {
    let silent = matches!(packet.kind, Kind::LaterFragment | Kind::IcmpError)
        || !F::is_unicast(&packet.source)
        || !F::is_unicast(&packet.destination)
        || packet.protocol == F::ICMP && !F::is_answerable((packet.transport.icmp >> 8) as u8);
    if silent {
        Refusal::Silence
    } else if packet.protocol != protocol::TCP {
        Refusal::Prohibited
    } else if packet.transport.tcp_flags & tcp_flags::RST != 0 {
        Refusal::Silence
    } else {
        Refusal::Reset
    }
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
struct TcpHeader {
    source_port: [u8; 2],
    destination_port: [u8; 2],
    sequence: [u8; 4],
    acknowledgement: [u8; 4],
    /// Length of the header in words, in the upper half.
    length: u8,
    flags: u8,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
struct IcmpHeader {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    unused: [u8; 4],
}

/// A whole frame with a TCP reset.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Reset4 {
    ethernet: EthernetHeader,
    ip: Ipv4Header,
    tcp: TcpHeader,
}

/// See [`Reset4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Reset6 {
    ethernet: EthernetHeader,
    ip: Ipv6Header,
    tcp: TcpHeader,
}

/// A frame with an ICMP error, up to what it quotes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Prohibited4 {
    ethernet: EthernetHeader,
    ip: Ipv4Header,
    icmp: IcmpHeader,
}

/// See [`Prohibited4`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Prohibited6 {
    ethernet: EthernetHeader,
    ip: Ipv6Header,
    icmp: IcmpHeader,
}

const TCP_BYTES: u32 = size_of::<TcpHeader>() as u32;
const ICMP_BYTES: u32 = size_of::<IcmpHeader>() as u32;

impl Refuses for V4 {
    const QUOTED: u32 = 576 - IPV4_BYTES as u32 - ICMP_BYTES;

    type Reset = Reset4;
    type Prohibited = Prohibited4;

    #[inline(always)]
    fn bytes<C: Cursor>(cursor: &C, length: u32) -> Option<u32> {
        let header: &Ipv4Header = cursor.near(ETHERNET_BYTES)?;
        Some(match u16::from_be_bytes(header.total_length) {
            0 => length - ETHERNET_BYTES as u32,
            bytes => u32::from(bytes),
        })
    }

    #[inline(always)]
    fn is_unicast(address: &[u8; 4]) -> bool {
        address[0] != 0 && address[0] != 127 && address[0] < 224
    }

    #[inline(always)]
    fn is_answerable(kind: u8) -> bool {
        // As `icmp_send`: no errors, and nothing that it does not know, which might be one.
        kind <= 18 && !matches!(kind, 3 | 4 | 5 | 11 | 12)
    }

    #[inline(always)]
    fn reset(ethernet: &EthernetHeader, packet: &Packet<Self>, bytes: u32) -> Reset4 {
        let mut tcp = tcp_reset(&packet.transport, payload(packet, bytes));
        tcp.checksum = Sum::pseudo(protocol::TCP, TCP_BYTES)
            .and(&packet.source)
            .and(&packet.destination)
            .and(bytemuck::bytes_of(&tcp))
            .folded();
        let ip = ipv4(packet.destination, packet.source, 0, protocol::TCP, TCP_BYTES);
        Reset4 { ethernet: back(ethernet, ether_type::IPV4), ip, tcp }
    }

    #[inline(always)]
    fn prohibited(
        ethernet: &EthernetHeader,
        packet: &Packet<Self>,
        source: &[u8; 4],
        quoted: u32,
        sum: u32,
    ) -> Prohibited4 {
        let mut icmp = IcmpHeader { kind: 3, code: 13, ..IcmpHeader::default() };
        icmp.checksum = Sum(u64::from(sum)).and(bytemuck::bytes_of(&icmp)).folded();
        let ip = ipv4(*source, packet.source, CONTROL, protocol::ICMP, ICMP_BYTES + quoted);
        Prohibited4 { ethernet: back(ethernet, ether_type::IPV4), ip, icmp }
    }
}

impl Refuses for V6 {
    const QUOTED: u32 = 1280 - IPV6_BYTES as u32 - ICMP_BYTES;

    type Reset = Reset6;
    type Prohibited = Prohibited6;

    #[inline(always)]
    fn bytes<C: Cursor>(cursor: &C, length: u32) -> Option<u32> {
        let header: &Ipv6Header = cursor.near(ETHERNET_BYTES)?;
        Some(match u16::from_be_bytes(header.payload_length) {
            0 => length - ETHERNET_BYTES as u32,
            bytes => u32::from(bytes) + IPV6_BYTES as u32,
        })
    }

    #[inline(always)]
    fn is_unicast(address: &[u8; 16]) -> bool {
        let [high, low]: [u64; 2] = bytemuck::must_cast(*address);
        address[0] != 0xff && (high != 0 || low != 0 && low != 1_u64.to_be())
    }

    #[inline(always)]
    fn is_answerable(kind: u8) -> bool {
        // Messages of the link are neither errors nor anybody else's business.
        kind >= 128 && !matches!(kind, 130..=137 | 143)
    }

    #[inline(always)]
    fn reset(ethernet: &EthernetHeader, packet: &Packet<Self>, bytes: u32) -> Reset6 {
        let mut tcp = tcp_reset(&packet.transport, payload(packet, bytes));
        tcp.checksum = Sum::pseudo(protocol::TCP, TCP_BYTES)
            .and(&packet.source)
            .and(&packet.destination)
            .and(bytemuck::bytes_of(&tcp))
            .folded();
        let ip = ipv6(packet.destination, packet.source, protocol::TCP, TCP_BYTES);
        Reset6 { ethernet: back(ethernet, ether_type::IPV6), ip, tcp }
    }

    #[inline(always)]
    fn prohibited(
        ethernet: &EthernetHeader,
        packet: &Packet<Self>,
        source: &[u8; 16],
        quoted: u32,
        sum: u32,
    ) -> Prohibited6 {
        let length = ICMP_BYTES + quoted;
        let mut icmp = IcmpHeader { kind: 1, code: 1, ..IcmpHeader::default() };
        icmp.checksum = Sum::pseudo(protocol::ICMPV6, length)
            .and(source)
            .and(&packet.source)
            .and(bytemuck::bytes_of(&icmp))
            .and_sum(sum)
            .folded();
        let ip = ipv6(*source, packet.source, protocol::ICMPV6, length);
        Prohibited6 { ethernet: back(ethernet, ether_type::IPV6), ip, icmp }
    }
}

/// To where the frame came from.
#[inline(always)]
const fn back(ethernet: &EthernetHeader, ether_type: [u8; 2]) -> EthernetHeader {
    EthernetHeader { destination: ethernet.source, source: ethernet.destination, ether_type }
}

/// Bytes of TCP behind its header.
#[inline(always)]
const fn payload<F: Ip>(packet: &Packet<F>, bytes: u32) -> u32 {
    bytes + ETHERNET_BYTES as u32 - packet.transport_at - packet.transport.header as u32
}

/// RFC 9293, section 3.5.2: with the number that the sender waits for, or, to who waits for none yet, with the
/// acknowledgement of what it sent.
#[inline(always)]
fn tcp_reset(refused: &Transport, payload: u32) -> TcpHeader {
    let set = |flag: u8| u32::from(refused.tcp_flags & flag != 0);
    let acknowledges = set(tcp_flags::ACK) != 0;
    let end = refused.sequence.wrapping_add(set(tcp_flags::SYN) + set(tcp_flags::FIN)).wrapping_add(payload);
    let (sequence, acknowledgement, flags) = if acknowledges {
        (refused.acknowledgement, 0, tcp_flags::RST)
    } else {
        (0, end, tcp_flags::RST | tcp_flags::ACK)
    };
    TcpHeader {
        source_port: refused.destination_port.to_be_bytes(),
        destination_port: refused.source_port.to_be_bytes(),
        sequence: sequence.to_be_bytes(),
        acknowledgement: acknowledgement.to_be_bytes(),
        length: (TCP_BYTES as u8 / 4) << 4,
        flags,
        window: [0; 2],
        checksum: [0; 2],
        urgent: [0; 2],
    }
}

#[inline(always)]
fn ipv4(source: [u8; 4], destination: [u8; 4], tos: u8, protocol: u8, payload: u32) -> Ipv4Header {
    let mut ip = Ipv4Header {
        version_length: 0x45,
        tos,
        total_length: ((IPV4_BYTES as u32 + payload) as u16).to_be_bytes(),
        id: [0; 2],
        fragment: DO_NOT_FRAGMENT,
        ttl: TTL,
        protocol,
        checksum: [0; 2],
        source,
        destination,
    };
    ip.checksum = Sum(0).and(bytemuck::bytes_of(&ip)).folded();
    ip
}

#[inline(always)]
const fn ipv6(source: [u8; 16], destination: [u8; 16], next_header: u8, payload: u32) -> Ipv6Header {
    let payload_length = (payload as u16).to_be_bytes();
    Ipv6Header { version: [0x60, 0, 0, 0], payload_length, next_header, hop_limit: TTL, source, destination }
}

/// The sum of the Internet checksum, over 16-bit words in the byte order of this machine (RFC 1071, section 2 B).
#[derive(Clone, Copy)]
struct Sum(u64);

impl Sum {
    /// Of the pseudo header, without the addresses.
    #[inline(always)]
    fn pseudo(protocol: u8, length: u32) -> Self {
        Self(u64::from(u16::from(protocol).to_be()) + u64::from((length as u16).to_be()))
    }

    /// With these bytes, of an even number.
    #[inline(always)]
    fn and(self, bytes: &[u8]) -> Self {
        let (words, _) = bytes.as_chunks::<2>();
        Self(words.iter().fold(self.0, |sum, word| sum + u64::from(u16::from_ne_bytes(*word))))
    }

    /// With what others have summed up.
    #[inline(always)]
    const fn and_sum(self, sum: u32) -> Self {
        Self(self.0 + sum as u64)
    }

    /// The checksum, as it stands in headers.
    #[inline(always)]
    fn folded(self) -> [u8; 2] {
        let mut sum = self.0;
        for _ in 0..3 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_ne_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(tcp_flags: u8, sequence: u32, acknowledgement: u32) -> Transport {
        let (source_port, destination_port) = (1000, 80);
        Transport { tcp_flags, sequence, acknowledgement, source_port, destination_port, header: 20, icmp: 0 }
    }

    fn packet(source: [u8; 4], destination: [u8; 4], protocol: u8, transport: Transport) -> Packet<V4> {
        Packet {
            source,
            destination,
            protocol,
            ttl: 64,
            kind: Kind::Flow,
            fragment: false,
            slow: false,
            id: [0; 4],
            transport_at: 34,
            transport,
        }
    }

    const A: [u8; 4] = [10, 0, 0, 1];
    const B: [u8; 4] = [10, 0, 0, 2];

    #[test]
    fn what_may_be_answered() {
        let udp = |source, destination| refusal(&packet(source, destination, protocol::UDP, Transport::default()));
        assert_eq!(udp(A, B), Refusal::Prohibited);
        for other in [[0; 4], [224, 0, 0, 1], [255; 4], [127, 0, 0, 1]] {
            assert_eq!((udp(A, other), udp(other, A)), (Refusal::Silence, Refusal::Silence), "{other:?}");
        }
        let of_tcp = |flags| refusal(&packet(A, B, protocol::TCP, tcp(flags, 1, 2)));
        assert_eq!(of_tcp(tcp_flags::SYN), Refusal::Reset);
        assert_eq!(of_tcp(tcp_flags::RST), Refusal::Silence);
        assert_eq!(of_tcp(tcp_flags::RST | tcp_flags::ACK), Refusal::Silence);
        let later = Packet { kind: Kind::LaterFragment, ..packet(A, B, protocol::UDP, Transport::default()) };
        assert_eq!(refusal(&later), Refusal::Silence);
        for (kind, expected) in
            [(8, Refusal::Prohibited), (13, Refusal::Prohibited), (5, Refusal::Silence), (200, Refusal::Silence)]
        {
            let icmp = Transport { icmp: kind << 8, ..Transport::default() };
            assert_eq!(refusal(&packet(A, B, protocol::ICMP, icmp)), expected, "{kind}");
        }
        assert!(V6::is_answerable(128) && !V6::is_answerable(3) && !V6::is_answerable(135) && !V6::is_answerable(137));
        let loopback = {
            let mut one = [0; 16];
            one[15] = 1;
            one
        };
        assert!(!V6::is_unicast(&[0; 16]) && !V6::is_unicast(&loopback) && !V6::is_unicast(&[0xff; 16]));
        assert!(V6::is_unicast(&[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn numbers_of_a_reset() {
        let numbers = |transport: &Transport, payload| {
            let reset = tcp_reset(transport, payload);
            (u32::from_be_bytes(reset.sequence), u32::from_be_bytes(reset.acknowledgement), reset.flags)
        };
        let (syn, fin, ack, rst) = (tcp_flags::SYN, tcp_flags::FIN, tcp_flags::ACK, tcp_flags::RST);
        assert_eq!(numbers(&tcp(syn, 100, 0), 0), (0, 101, rst | ack));
        assert_eq!(numbers(&tcp(syn, u32::MAX, 0), 5), (0, 5, rst | ack), "it wraps");
        assert_eq!(numbers(&tcp(fin, 100, 0), 7), (0, 108, rst | ack));
        assert_eq!(numbers(&tcp(syn | ack, 100, 77), 0), (77, 0, rst));
        assert_eq!(numbers(&tcp(ack, 100, 77), 9), (77, 0, rst));
    }
}
