//! Questions of the link for addresses of local workloads, on uplinks: answered with the uplink's MAC address.

use calico_ebpf_common::{
    abi::{Neighbour, NeighbourKey},
    packet::{
        Cursor, EthernetHeader, Ip as _, V4, V6,
        arp::{self, ARP_AT, ArpPacket},
        nd,
    },
};

use crate::{
    maps::NEIGHBOURS,
    skb::Skb,
    tables::Aligned,
    work::{ANSWERED, Code, MISS, parsed},
    xdp::Frame,
};

/// A frame that may be a question.
pub(crate) trait Question: Cursor {
    fn ifindex(&self) -> u32;
    fn length(&self) -> u32;
    /// Whether an answer that is sent back from here arrives.
    fn may_answer(&self, neighbour: &Neighbour) -> bool;
    /// Makes it this frame.
    fn become_answer<T: bytemuck::Pod>(&self, answer: T) -> Option<()>;
}

impl Question for Skb {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex()
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        self.length()
    }
    #[inline(always)]
    fn may_answer(&self, _: &Neighbour) -> bool {
        true
    }
    #[inline(always)]
    fn become_answer<T: bytemuck::Pod>(&self, answer: T) -> Option<()> {
        self.replace(answer).then_some(())
    }
}

impl Question for Frame {
    #[inline(always)]
    fn ifindex(&self) -> u32 {
        self.ifindex()
    }
    #[inline(always)]
    fn length(&self) -> u32 {
        // None that is a question is longer.
        0xffff
    }
    #[inline(always)]
    fn may_answer(&self, neighbour: &Neighbour) -> bool {
        neighbour.by_xdp != 0
    }
    #[inline(always)]
    fn become_answer<T: bytemuck::Pod>(&self, answer: T) -> Option<()> {
        // What is behind the answer belongs to no packet: frames may be longer than what they carry.
        self.put(0, answer)
    }
}

/// Makes an ARP request its own answer: [`ANSWERED`], or [`MISS`] where it is for somebody else.
#[inline(always)]
pub(crate) fn arp<Q: Question>(frame: &Q) -> Code {
    if try_arp(frame).is_some() { ANSWERED } else { MISS }
}

#[inline(always)]
fn try_arp<Q: Question>(frame: &Q) -> Option<()> {
    let from = frame.near::<EthernetHeader>(0)?.source;
    let arp: &ArpPacket = frame.far(ARP_AT as u32)?;
    if !matches!(arp.form(from), arp::Form::Request) {
        return None;
    }
    let neighbour = neighbour(frame, from, V4::wide(&arp.target))?;
    frame.become_answer(arp.answer(neighbour.mac))
}

/// Likewise a neighbour solicitation, of who has an address already.
#[inline(always)]
pub(crate) fn solicitation<Q: Question>(frame: &Q) -> Code {
    if try_solicitation(frame).is_some() { ANSWERED } else { MISS }
}

#[inline(always)]
fn try_solicitation<Q: Question>(frame: &Q) -> Option<()> {
    let packet = &parsed::<V6, _>(frame, frame.length()).ok()?.packet;
    if !matches!(nd::form(packet), nd::Form::Solicitation) || nd::is_unspecified(&packet.source) {
        return None;
    }
    let target: &[u8; 16] = frame.far(nd::target_at(packet))?;
    let from = frame.near::<EthernetHeader>(0)?.source;
    let neighbour = neighbour(frame, from, *target)?;
    if *target == packet.source {
        return None;
    }
    frame.become_answer(nd::AdvertisementFrame::new(from, packet.source, *target, neighbour.mac))
}

/// Who is asked for by `from`, if it is ours to answer: the frame is for all of the link, or for the uplink itself.
#[inline(always)]
fn neighbour<Q: Question>(frame: &Q, from: [u8; 6], address: [u8; 16]) -> Option<&'static Neighbour> {
    let key = &Aligned(NeighbourKey { address, ifindex: frame.ifindex() });
    // SAFETY: read within this run of the program, which the kernel's grace period covers.
    let neighbour = unsafe { NEIGHBOURS.get(&key.0) }?;
    let to = frame.near::<EthernetHeader>(0)?.destination;
    let to_us = to[0] & 1 != 0 || to == neighbour.mac;
    (to_us && from[0] & 1 == 0 && frame.may_answer(neighbour)).then_some(neighbour)
}
