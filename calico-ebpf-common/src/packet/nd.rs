//! Neighbour discovery and multicast listener discovery from a workload.

use core::ops::RangeInclusive;

use bytemuck::{Pod, Zeroable};

use super::{
    EthernetHeader, Kind, Packet, ether_type,
    ipv6::{Ipv6Header, V6, is_link_local},
    protocol,
};

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// The ICMPv6 types of neighbour discovery (RFC 4861, section 4).
pub const NEIGHBOUR_DISCOVERY: RangeInclusive<u8> = ROUTER_SOLICITATION..=REDIRECT;
const MLD_QUERY: u8 = 130;
const MLD_DONE: u8 = 132;
const MLD2_REPORT: u8 = 143;
/// Neighbour discovery has this hop limit: no router has passed it on (RFC 4861, section 6.1).
pub const HOP_LIMIT: u8 = 255;
const TARGET_LINK_ADDRESS: u8 = 2;
/// Router, solicited, override.
const FLAGS: u8 = 0xe0;

/// What an ICMPv6 packet is to the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Nothing: judged like everything else.
    Ordinary,
    /// A router solicitation or a multicast listener's message: for the host.
    ForHost,
    /// A question for a MAC address.
    Solicitation,
    /// The answer to one.
    Advertisement,
    /// What no workload may send: router advertisements, redirects, or a wrong form.
    Bad,
}

/// What `packet` is to the link; only messages of the link itself (not passed on, and to the link) count.
#[inline(always)]
#[must_use]
pub fn form(packet: &Packet<V6>) -> Form {
    if packet.protocol != protocol::ICMPV6 || !matches!(packet.kind, Kind::Stateless) {
        return Form::Ordinary;
    }
    let kind = (packet.transport.icmp >> 8) as u8;
    let to_link = is_link_local(&packet.destination) || packet.destination[0] == 0xff && packet.destination[1] == 0x02;
    match kind {
        ROUTER_ADVERTISEMENT | REDIRECT => Form::Bad,
        MLD_QUERY..=MLD_DONE | MLD2_REPORT if to_link => Form::ForHost,
        ROUTER_SOLICITATION if to_link => Form::ForHost,
        NEIGHBOUR_SOLICITATION | NEIGHBOUR_ADVERTISEMENT => {
            if packet.ttl != HOP_LIMIT || packet.transport.icmp & 0xff != 0 || packet.slow {
                Form::Bad
            } else if kind == NEIGHBOUR_SOLICITATION {
                Form::Solicitation
            } else {
                Form::Advertisement
            }
        }
        _ => Form::Ordinary,
    }
}

/// Whether this is neighbour discovery of the link itself, which nobody has passed on.
#[inline(always)]
#[must_use]
pub fn is_of_link(packet: &Packet<V6>) -> bool {
    let kind = (packet.transport.icmp >> 8) as u8;
    packet.protocol == protocol::ICMPV6
        && matches!(packet.kind, Kind::Stateless)
        && packet.ttl == HOP_LIMIT
        && NEIGHBOUR_DISCOVERY.contains(&kind)
}

/// Whether this tells who listens to which multicasts of the link: without, a switch may deliver no neighbour discovery.
#[inline(always)]
#[must_use]
pub fn is_of_listeners(packet: &Packet<V6>) -> bool {
    let kind = (packet.transport.icmp >> 8) as u8;
    packet.protocol == protocol::ICMPV6
        && matches!(packet.kind, Kind::Stateless)
        && packet.ttl == 1
        && ((MLD_QUERY..=MLD_DONE).contains(&kind) || kind == MLD2_REPORT)
}

/// Whether a source address may send messages of the link without being an address of the workload: link-local, and
/// the unspecified one of who has no address yet.
#[inline(always)]
#[must_use]
pub fn may_send(source: &[u8; 16]) -> bool {
    is_link_local(source) || is_unspecified(source)
}

/// `::`
#[inline(always)]
#[must_use]
pub fn is_unspecified(address: &[u8; 16]) -> bool {
    *address == [0; 16]
}

/// Whether a target is link-local.
#[inline(always)]
#[must_use]
pub const fn is_link_scope(address: &[u8; 16]) -> bool {
    is_link_local(address)
}

/// Where the target of a solicitation or an advertisement stands, an address.
#[inline(always)]
#[must_use]
pub const fn target_at(packet: &Packet<V6>) -> u32 {
    packet.transport_at + 8
}

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
struct Advertisement {
    kind: u8,
    code: u8,
    checksum: [u8; 2],
    flags: [u8; 4],
    target: [u8; 16],
    option: u8,
    option_length: u8,
    mac: [u8; 6],
}

/// A neighbour advertisement, whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct AdvertisementFrame {
    ethernet: EthernetHeader,
    ip: Ipv6Header,
    advertisement: Advertisement,
}

impl AdvertisementFrame {
    /// Tells `asker` that `mac` has the address `target`.
    #[inline(always)]
    #[must_use]
    pub fn new(asker_mac: [u8; 6], asker: [u8; 16], target: [u8; 16], mac: [u8; 6]) -> Self {
        let length = (size_of::<Advertisement>() as u16).to_be_bytes();
        let mut advertisement = Advertisement {
            kind: NEIGHBOUR_ADVERTISEMENT,
            code: 0,
            checksum: [0; 2],
            flags: [FLAGS, 0, 0, 0],
            target,
            option: TARGET_LINK_ADDRESS,
            option_length: 1,
            mac,
        };
        // The pseudo header: both addresses, the length, the protocol. The target is the source, so it counts twice.
        let mut sum = u32::from(protocol::ICMPV6) + u32::from(u16::from_be_bytes(length));
        sum += words(&asker) + 2 * words(&target);
        sum += u32::from(u16::from_be_bytes([NEIGHBOUR_ADVERTISEMENT, 0])) + u32::from(u16::from_be_bytes([FLAGS, 0]));
        sum += u32::from(u16::from_be_bytes([TARGET_LINK_ADDRESS, 1]));
        let [m0, m1, m2, m3, m4, m5] = mac;
        sum += u32::from(u16::from_be_bytes([m0, m1])) + u32::from(u16::from_be_bytes([m2, m3]));
        sum += u32::from(u16::from_be_bytes([m4, m5]));
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        advertisement.checksum = (!(sum as u16)).to_be_bytes();
        Self {
            ethernet: EthernetHeader { destination: asker_mac, source: mac, ether_type: ether_type::IPV6 },
            ip: Ipv6Header {
                version: [0x60, 0, 0, 0],
                payload_length: length,
                next_header: protocol::ICMPV6,
                hop_limit: HOP_LIMIT,
                source: target,
                destination: asker,
            },
            advertisement,
        }
    }
}

/// The sum of the address's 16-bit words.
#[inline(always)]
fn words(address: &[u8; 16]) -> u32 {
    let words: [[u8; 2]; 8] = bytemuck::must_cast(*address);
    let mut sum = 0;
    for word in words {
        sum += u32::from(u16::from_be_bytes(word));
    }
    sum
}
