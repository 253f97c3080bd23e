//! What a workload sends.

use calico_ebpf_common::{
    abi::{DropReason, MARK_BACK, NO_SLOT, OpenerKind, Workload, conn_flags, host_action, workload_flags},
    packet::{
        Cursor as _, EthernetHeader, Ip as _, Kind, Packet, V4, V6,
        arp::{ARP_AT, ArpPacket, Form},
        nd, protocol,
    },
};

use crate::{
    established::{Hook, NoHit, find, related},
    forward::{DROP, TO_STACK, answer, elsewhere, to_workload},
    fragments,
    maps::WORKLOADS,
    opening::{self, Stage},
    policy::judge_ends,
    skb::Skb,
    tables::{Located, Tables, active, locate, of_interface},
    translation,
    work::{Code, DELIVER, Env, FOREIGN, LEAVES, MISS, code, take, work},
};

/// UDP port of VXLAN: workloads may not send it, they could speak for other hosts.
const VXLAN_PORT: u16 = 4789;

/// What holds for every frame of a workload.
#[inline(always)]
pub(crate) fn check_frame(skb: &Skb) -> Result<(), DropReason> {
    if skb.is_tagged() {
        Err(DropReason::EtherType)
    } else if skb.is_for_foreign_mac() {
        Err(DropReason::ForeignMac)
    } else {
        Ok(())
    }
}

/// A packet whose connection may have an entry.
#[inline(always)]
pub(crate) fn established<F: Tables>(skb: &Skb) -> Code {
    code(try_established::<F>(skb))
}

#[inline(always)]
fn try_established<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    let work = take::<F>(skb, &env)?;
    let packet = &work.packet;
    if !matches!(packet.kind, Kind::Flow) {
        return Ok(MISS);
    }
    let hit = match find::<F>(&env, Hook::FromWorkload, packet, &work.key, work.source_is_a, 0) {
        Ok(hit) => hit,
        Err(NoHit::Next(next)) => return Ok(next),
        Err(NoHit::Drop(reason)) => return Err(reason),
    };
    check_mac(skb, hit.source.ok_or(DropReason::NoWorkload)?)?;
    let via_stack = hit.flags & conn_flags::VIA_STACK != 0;
    let to_workload_here = hit.destination.is_some_and(|destination| !destination.is_seat());
    let opened_here = hit.from_opener && hit.opener == OpenerKind::Workload as u8;
    // Who judged what leaves the host has said nothing about the host itself.
    let is_judged_there = hit.destination.is_some_and(|destination| !destination.is_outside());
    if hit.opener == OpenerKind::Translated as u8 {
        // Whether it is translated still, the stack knows.
        translation::leave_again(skb)?;
    } else if hit.is_back() {
        skb.mark(MARK_BACK);
    }
    let code = if via_stack {
        TO_STACK
    } else if let Some(destination) = hit.destination
        && !destination.is_seat()
    {
        to_workload(skb, packet, destination)?
    } else {
        elsewhere(&env, skb, packet)?
    };
    fragments::first_passed(&env, packet);
    if code != TO_STACK || to_workload_here || !opened_here {
        return Ok(code);
    }
    // It may be for the host itself, perhaps by an address that it has had for a moment, which must still want it.
    let to_host = host_welcomes::<F>(&env, packet, &locate::<F>(&packet.destination, env.generation))?;
    let is_asked = to_host && !is_judged_there && env.root.settings(env.generation).from_workloads != 0;
    Ok(if is_asked { LEAVES } else { TO_STACK })
}

/// `defaultEndpointToHostAction`, where the packet is for the host. Broadcasts and multicasts are: every socket of the
/// host that is bound to no address gets them.
#[inline(always)]
pub(crate) fn host_welcomes<F: Tables>(
    env: &Env,
    packet: &Packet<F>,
    destination: &Located,
) -> Result<bool, DropReason> {
    let to_host = destination.host || F::is_host_scope(&packet.destination) || F::is_multicast(&packet.destination);
    if to_host && env.root.settings(env.generation).host_action == host_action::DROP {
        return Err(DropReason::EndpointToHost);
    }
    Ok(to_host)
}

/// A packet without a connection that may be a message of the link. Ends with [`MISS`] if it is none.
#[inline(always)]
pub(crate) fn of_link<F: Sender>(skb: &Skb) -> Code {
    code(try_of_link::<F>(skb))
}

#[inline(always)]
fn try_of_link<F: Sender>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let (slot, workload) = of_interface(env.ifindex)?;
    check_mac(skb, workload)?;
    Ok(F::of_link(skb, &env, &work.packet, workload, slot)?.unwrap_or(MISS))
}

/// A packet that no connection lets pass.
#[inline(always)]
pub(crate) fn first<F: Sender>(skb: &Skb, missed: Code) -> Code {
    code(try_first::<F>(skb, missed))
}

#[inline(always)]
fn try_first<F: Sender>(skb: &Skb, missed: Code) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let packet = &work.packet;
    let (slot, workload) = of_interface(env.ifindex)?;
    check_mac(skb, workload)?;
    let source = locate::<F>(&packet.source, env.generation);
    let spoofs = workload.flags & workload_flags::SPOOF != 0;
    if source.slot != slot && !(spoofs && F::may_spoof(slot, &packet.source)) {
        return Err(DropReason::SpoofedSource);
    }
    if source.slot == slot {
        learn_mac(skb, slot, workload);
    }
    if missed == FOREIGN {
        // The address was another's when the entry was made.
        opening::forget(&env, work);
    }
    let packet = &work.packet;
    if is_encapsulated(packet) {
        return Err(DropReason::Encapsulated);
    }
    if matches!(packet.kind, Kind::LaterFragment) {
        // The stack holds it back until it has the first one, which was judged here.
        if env.root.reassembles == 0 {
            fragments::follow(&env, packet)?;
        }
        return Ok(TO_STACK);
    }
    if matches!(packet.kind, Kind::IcmpError) && related::<F>(skb) != 0 && work.related.from == slot {
        if work.related.translated {
            translation::leave_again(skb)?;
        }
        // From one workload of this host to elsewhere, or by the stack as the connection itself.
        if work.related.via_stack || active(work.related.to).is_none_or(Workload::is_seat) {
            return Ok(TO_STACK);
        }
        work.slots[1] = work.related.to;
        return Ok(DELIVER);
    }

    let destination = locate::<F>(&packet.destination, env.generation);
    if destination.slot != NO_SLOT && active(destination.slot).is_none() {
        return Err(DropReason::NoInterface);
    }
    let slots = [slot, destination.slot];
    let opening = match opening::judge(&env, packet, slots, [source.class, destination.class], Stage::Arriving) {
        Ok(opening) => opening,
        Err(denied) => {
            work.denied_for_good = denied.before_dnat;
            return Err(denied.reason);
        }
    };
    let leaves = destination.slot == NO_SLOT;
    let to_host = leaves && opening.is_from_opener() && host_welcomes::<F>(&env, packet, &destination)?;
    if matches!(packet.kind, Kind::Flow) && !F::is_multicast(&packet.destination) {
        // Only the stack knows whether it translates what leaves: the first packet shows.
        let flags = match (leaves, to_host) {
            (false, _) => 0,
            (true, true) => conn_flags::VIA_STACK,
            (true, false) => conn_flags::VIA_STACK | conn_flags::PROBING,
        };
        opening::enter(&env, work, &opening, slots, OpenerKind::Outside, flags)?;
    }
    fragments::first_passed(&env, &work.packet);
    if leaves {
        return Ok(TO_STACK);
    }
    work.slots = slots;
    Ok(DELIVER)
}

/// A packet of a connection to the host, which policy lets pass and nobody there has judged: what host endpoints say of it.
#[inline(always)]
pub(crate) fn to_host<F: Tables>() -> Code {
    code(try_to_host::<F>())
}

#[inline(always)]
fn try_to_host<F: Tables>() -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume_at(work, 0)?;
    let packet = &work.packet;
    // 0 is nobody, and so is one less.
    let slot = env.root.settings(env.generation).from_workloads.wrapping_sub(1);
    let Some(seat) = active(slot) else { return Ok(TO_STACK) };
    let destination = locate::<F>(&packet.destination, env.generation);
    let is_for_host = destination.host || F::is_host_scope(&packet.destination) || F::is_multicast(&packet.destination);
    if !is_for_host || !matches!(packet.kind, Kind::Flow | Kind::Stateless) {
        return Ok(TO_STACK);
    }
    let source = locate::<F>(&packet.source, env.generation);
    let [from, to] = packet.transport.rule_ports(packet.protocol);
    let classes = [source.class, destination.class];
    match judge_ends::<F>(env.generation, [None, Some(seat)], classes, packet.protocol, [from, to], false) {
        Ok(allowed) => {
            opening::join(&env, work, slot, allowed.rules[1]);
            Ok(TO_STACK)
        }
        Err(denied) => {
            opening::forget(&env, work);
            // Of policy before DNAT.
            work.denied_for_good = true;
            Err(denied.reason)
        }
    }
}

/// Whether a workload may not send it whatever policy says: what is inside would speak for others.
#[inline(always)]
pub(crate) fn is_encapsulated<F: Tables>(packet: &Packet<F>) -> bool {
    packet.protocol == protocol::IPIP
        || packet.protocol == protocol::UDP && packet.transport.destination_port == VXLAN_PORT
}

#[inline(always)]
fn check_mac(skb: &Skb, workload: &Workload) -> Result<(), DropReason> {
    if workload.flags & workload_flags::MAC_CHECK != 0 && source_mac(skb) != workload.mac {
        return Err(DropReason::SpoofedMac);
    }
    Ok(())
}

/// Zero where there is none, which is nobody's.
#[inline(always)]
fn source_mac(skb: &Skb) -> [u8; 6] {
    match skb.near::<EthernetHeader>(0) {
        Some(ethernet) => ethernet.source,
        None => [0; 6],
    }
}

/// Remembers the MAC address of a workload that has none configured: who is to be given packets. Call it for what comes
/// with an address of its own only.
#[inline(always)]
fn learn_mac(skb: &Skb, slot: u32, workload: &Workload) {
    let mac = source_mac(skb);
    if workload.flags & workload_flags::MAC_CHECK == 0
        && workload.mac != mac
        && mac[0] & 1 == 0
        && let Some(workload) = WORKLOADS.get_ptr_mut(slot)
    {
        // SAFETY: the slot is in the map.
        unsafe { (*workload).mac = mac };
    }
}

/// An ARP packet.
#[inline(always)]
pub(crate) fn arp(skb: &Skb) -> Code {
    code(try_arp(skb))
}

#[inline(always)]
fn try_arp(skb: &Skb) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    let (slot, workload) = of_interface(env.ifindex)?;
    check_mac(skb, workload)?;
    let arp: &ArpPacket = skb.copy(ARP_AT as u32).ok_or(DropReason::Arp)?;
    let form = arp.form(source_mac(skb));
    if matches!(form, Form::Bad) {
        return Err(DropReason::Arp);
    }
    if arp.sender != [0; 4] && locate::<V4>(&arp.sender, env.generation).slot != slot {
        return Err(DropReason::Arp);
    }
    match form {
        Form::Bad => Err(DropReason::Arp),
        // Not a word: the address would look taken.
        Form::Probe => Ok(DROP),
        Form::Reply => {
            learn_mac(skb, slot, workload);
            Ok(TO_STACK)
        }
        Form::Request if locate::<V4>(&arp.target, env.generation).slot == slot => Ok(DROP),
        Form::Request => {
            learn_mac(skb, slot, workload);
            if skb.replace(arp.answer(workload.host_mac)) { Ok(answer(skb)) } else { Err(DropReason::Arp) }
        }
    }
}

/// What the IP versions do apart.
pub(crate) trait Sender: Tables {
    /// Messages of the link: `None` for everything that is judged.
    fn of_link(
        skb: &Skb,
        env: &Env,
        packet: &Packet<Self>,
        workload: &Workload,
        slot: u32,
    ) -> Result<Option<Code>, DropReason>
    where
        Self: Sized;
}

impl Sender for V4 {
    #[inline(always)]
    fn of_link(_: &Skb, _: &Env, _: &Packet<Self>, _: &Workload, _: u32) -> Result<Option<Code>, DropReason> {
        Ok(None)
    }
}

impl Sender for V6 {
    #[inline(always)]
    fn of_link(
        skb: &Skb,
        env: &Env,
        packet: &Packet<Self>,
        workload: &Workload,
        slot: u32,
    ) -> Result<Option<Code>, DropReason> {
        let form = nd::form(packet);
        if matches!(form, nd::Form::Ordinary) {
            return Ok(None);
        }
        let own = locate::<V6>(&packet.source, env.generation).slot == slot;
        if matches!(form, nd::Form::Bad) || !own && !nd::may_send(&packet.source) {
            return Err(DropReason::Nd);
        }
        if own {
            learn_mac(skb, slot, workload);
        }
        if matches!(form, nd::Form::ForHost) {
            return Ok(Some(TO_STACK));
        }
        let target: &[u8; 16] = skb.copy(nd::target_at(packet)).ok_or(DropReason::Nd)?;
        let of_sender = locate::<V6>(target, env.generation).slot == slot;
        if matches!(form, nd::Form::Advertisement) {
            // It may speak for itself only, and to the host only.
            let to_link = nd::is_link_scope(&packet.destination) || V6::is_multicast(&packet.destination);
            return if !to_link && !locate::<V6>(&packet.destination, env.generation).host {
                Ok(None)
            } else if of_sender || nd::is_link_scope(target) {
                Ok(Some(TO_STACK))
            } else {
                Err(DropReason::Nd)
            };
        }
        // Not a word to who asks whether an address is taken, nor about its own.
        if nd::is_unspecified(&packet.source) || of_sender || *target == packet.source {
            return Ok(Some(DROP));
        }
        let frame = nd::AdvertisementFrame::new(source_mac(skb), packet.source, *target, workload.host_mac);
        if skb.replace(frame) { Ok(Some(answer(skb))) } else { Err(DropReason::Nd) }
    }
}
