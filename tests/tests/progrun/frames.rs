//! Frames.

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};

use crate::harness::{A, HOST_MAC};

/// A TCP segment.
#[derive(Clone, Copy)]
pub(crate) struct Tcp {
    pub(crate) flags: &'static str,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
}

pub(crate) const SYN: Tcp = Tcp { flags: "S", sequence: 100, acknowledgement: 0 };
pub(crate) const SYN_ACK: Tcp = Tcp { flags: "SA", sequence: 500, acknowledgement: 101 };
pub(crate) const ACK: Tcp = Tcp { flags: "A", sequence: 101, acknowledgement: 501 };

pub(crate) fn tcp4(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16, tcp: Tcp) -> Vec<u8> {
    let step = PacketBuilder::ethernet2(mac_of(from), HOST_MAC).ipv4(from, to, 64);
    let mut step = step.tcp(from_port, to_port, tcp.sequence, 1000);
    for flag in tcp.flags.chars() {
        step = match flag {
            'S' => step.syn(),
            'A' => step.ack(tcp.acknowledgement),
            'F' => step.fin(),
            'R' => step.rst(),
            other => panic!("flag {other}"),
        };
    }
    let mut frame = Vec::new();
    step.write(&mut frame, &[]).expect("a packet");
    frame
}

pub(crate) fn udp4(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16) -> Vec<u8> {
    udp4_ttl(from, from_port, to, to_port, 64)
}

pub(crate) fn udp4_ttl(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16, ttl: u8) -> Vec<u8> {
    udp4_size(from, from_port, to, to_port, ttl, 10)
}

pub(crate) fn udp4_size(from: [u8; 4], from_port: u16, to: [u8; 4], to_port: u16, ttl: u8, size: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(mac_of(from), HOST_MAC).ipv4(from, to, ttl).udp(from_port, to_port);
    step.write(&mut frame, &vec![7; size]).expect("a packet");
    frame
}

pub(crate) fn udp6(from: [u8; 16], from_port: u16, to: [u8; 16], to_port: u16) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(mac_of6(from), HOST_MAC).ipv6(from, to, 64).udp(from_port, to_port);
    step.write(&mut frame, &[7; 10]).expect("a packet");
    frame
}

pub(crate) fn icmpv6(from: [u8; 16], to: [u8; 16], hop_limit: u8, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(mac_of6(from), HOST_MAC).ipv6(from, to, hop_limit);
    let (head, rest) = body.split_at(4);
    step.icmpv6_raw(kind, 0, head.try_into().expect("four bytes")).write(&mut frame, rest).expect("a packet");
    frame
}

/// A neighbour solicitation for `target`.
pub(crate) fn solicitation(from: [u8; 16], target: [u8; 16]) -> Vec<u8> {
    let mut to = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    to[13..].copy_from_slice(&target[13..]);
    let body = [&[0; 4][..], &target, &[1, 1], &A.mac].concat();
    icmpv6(from, to, 255, 135, &body)
}

/// Any ICMP message, without a body.
pub(crate) fn icmp4(from: [u8; 4], to: [u8; 4], kind: u8, code: u8) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(mac_of(from), HOST_MAC).ipv4(from, to, 64);
    step.icmpv4_raw(kind, code, [0; 4]).write(&mut frame, &[]).expect("a packet");
    frame
}

/// An ICMP "destination unreachable" that quotes a frame.
pub(crate) fn unreachable4(from: [u8; 4], to: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(mac_of(from), HOST_MAC).ipv4(from, to, 64);
    step.icmpv4_raw(3, 3, [0; 4]).write(&mut frame, &quoted[14..42]).expect("a packet");
    frame
}

pub(crate) fn arp(operation: ArpOperation, mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let packet = ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, operation, &mac, &sender, &[0; 6], &target);
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, [0xff; 6]).arp(packet.expect("a packet")).write(&mut frame).expect("a packet");
    frame
}

/// Makes a fragment of an IPv4 frame; `offset` in units of eight bytes.
pub(crate) fn fragment(mut frame: Vec<u8>, id: u16, offset: u16, more: bool) -> Vec<u8> {
    frame[18..20].copy_from_slice(&id.to_be_bytes());
    frame[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
    frame
}

fn mac_of(address: [u8; 4]) -> [u8; 6] {
    use crate::harness::{B, NEXT_MAC};
    [A, B].iter().find(|name| name.v4 == address).map_or(NEXT_MAC, |name| name.mac)
}

fn mac_of6(address: [u8; 16]) -> [u8; 6] {
    use crate::harness::{B, NEXT_MAC};
    if address[0] == 0xfe || address == [0; 16] {
        return A.mac;
    }
    [A, B].iter().find(|name| name.v6 == address).map_or(NEXT_MAC, |name| name.mac)
}
