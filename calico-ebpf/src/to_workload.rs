//! What the host's stack delivers to a workload.

use calico_ebpf_common::{
    abi::{DropReason, MARK_REPLY, NO_SLOT, OpenerKind, Workload, conn_flags},
    packet::{Kind, Packet, V4, V6, nd, protocol},
    track,
};

use crate::{
    established::{Hook, NoHit, find, is_forged, related},
    forward::TO_STACK,
    fragments,
    opening::{self, Opening, Stage},
    skb::Skb,
    tables::{Tables, active, has_host_endpoints, locate, of_interface, sender},
    work::{AGAIN, Code, Env, FOREIGN, MISS, code, take, work},
};

/// A packet whose connection may have an entry.
#[inline(always)]
pub(crate) fn established<F: Receiver>(skb: &Skb) -> Code {
    code(try_established::<F>(skb))
}

#[inline(always)]
fn try_established<F: Receiver>(skb: &Skb) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    let work = match take::<F>(skb, &env) {
        Ok(work) => work,
        Err(_) if is_own(skb) => return Ok(TO_STACK),
        Err(reason) => return Err(reason),
    };
    let packet = &work.packet;
    if F::is_of_link(packet) {
        return Ok(TO_STACK);
    }
    if !matches!(packet.kind, Kind::Flow) {
        return Ok(MISS);
    }
    match find::<F>(&env, Hook::ToWorkload, packet, &work.key, work.source_is_a, skb.ingress_ifindex()) {
        Ok(hit) if hit.is_of_another(&env, skb, packet) => Ok(FOREIGN),
        Ok(hit) if !hit.lets_answer(skb) => Err(DropReason::PolicyEgress),
        Ok(hit) if hit.asks_arrival(&env, skb) => Ok(AGAIN),
        Ok(hit) => {
            // Host endpoints have yet to be asked about what it answers.
            if hit.flags & conn_flags::PROBING != 0 && !hit.from_opener && !has_host_endpoints() {
                // The answer comes through the stack, too: it translates, or knows the way alone. Whatever leaves
                // later as it came does so because somebody took the translation away for a moment.
                // SAFETY: the entry stays writable as long as the program runs.
                unsafe { (*hit.conn).flags = hit.flags & !conn_flags::PROBING };
            }
            fragments::first_passed(&env, packet);
            Ok(TO_STACK)
        }
        Err(NoHit::Next(next)) => Ok(next),
        Err(NoHit::Drop(reason)) => Err(reason),
    }
}

/// The host itself sends it. What it forwards came in by some interface.
#[inline(always)]
pub(crate) fn is_own(skb: &Skb) -> bool {
    skb.ingress_ifindex() == 0
}

/// That what the stack forwards for the local workload in this slot (none: `NO_SLOT`) came in by its interface.
#[inline(always)]
pub(crate) fn check_arrival(skb: &Skb, slot: u32) -> Result<(), DropReason> {
    if slot == NO_SLOT {
        return Ok(());
    }
    let source = active(slot).ok_or(DropReason::NoWorkload)?;
    if !is_own(skb) && is_forged(source, skb.ingress_ifindex()) { Err(DropReason::SpoofedLocal) } else { Ok(()) }
}

/// A packet that no connection lets pass.
#[inline(always)]
pub(crate) fn first<F: Receiver>(skb: &Skb, missed: Code) -> Code {
    code(try_first::<F>(skb, missed))
}

#[inline(always)]
fn try_first<F: Receiver>(skb: &Skb, missed: Code) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let (slot, _) = match of_interface(env.ifindex) {
        Ok(found) => found,
        Err(_) if is_own(skb) => return Ok(TO_STACK),
        Err(reason) => return Err(reason),
    };
    if missed == FOREIGN {
        opening::forget(&env, work);
    }
    let packet = &work.packet;
    let has_entry = matches!(packet.kind, Kind::Flow) && !F::is_multicast(&packet.destination);
    if is_own(skb) {
        // Allowed, and its answers with it. But a segment in the middle of a connection makes no entry: policy may just
        // have cut it.
        let in_the_middle = packet.protocol == protocol::TCP
            && !track::opens(&packet.transport)
            && !opening::may_be_older(&env, packet, [NO_SLOT, slot]);
        if has_entry && !in_the_middle {
            let slots = [NO_SLOT, slot];
            // The host is never refused: without an entry the answers are judged.
            let _ = opening::enter(&env, work, &Opening::BY_HOST, slots, OpenerKind::Host, conn_flags::VIA_STACK);
        }
        return Ok(TO_STACK);
    }
    if matches!(packet.kind, Kind::LaterFragment) {
        fragments::follow(&env, packet)?;
        return Ok(TO_STACK);
    }
    if matches!(packet.kind, Kind::IcmpError) && related::<F>(skb) != 0 && work.related.to == slot {
        let is_told = !work.related.translated || skb.is_marked(MARK_REPLY);
        return if is_told { Ok(TO_STACK) } else { Err(DropReason::IcmpUnrelated) };
    }
    let source = locate::<F>(&packet.source, env.generation);
    let destination = locate::<F>(&packet.destination, env.generation);
    check_arrival(skb, source.slot)?;
    let (sender, class) = sender::<F>(skb, &env, &source);
    let slots = [sender, slot];
    let judged = opening::judge(&env, packet, slots, [class, destination.class], Stage::of_leaving(skb));
    let opening = match judged {
        Ok(opening) => opening,
        Err(denied) if active(sender).is_some_and(Workload::is_outside) => return Err(denied.reason.on_arrival()),
        Err(denied) => return Err(denied.reason),
    };
    if has_entry {
        let flags = conn_flags::VIA_STACK | conn_flags::BEHIND_DNAT | opening::settled(skb);
        opening::enter(&env, work, &opening, slots, OpenerKind::Outside, flags)?;
    }
    fragments::first_passed(&env, &work.packet);
    Ok(TO_STACK)
}

/// What the IP versions do apart.
pub(crate) trait Receiver: Tables {
    /// Neighbour discovery: the host's, or our own answer.
    fn is_of_link(packet: &Packet<Self>) -> bool
    where
        Self: Sized;

    /// What an interface of the host needs to work at all, as IPv4 needs ARP: no host endpoint judges it.
    fn keeps_link(packet: &Packet<Self>) -> bool
    where
        Self: Sized;
}

impl Receiver for V4 {
    #[inline(always)]
    fn is_of_link(_: &Packet<Self>) -> bool {
        false
    }

    #[inline(always)]
    fn keeps_link(_: &Packet<Self>) -> bool {
        false
    }
}

impl Receiver for V6 {
    #[inline(always)]
    fn is_of_link(packet: &Packet<Self>) -> bool {
        nd::is_of_link(packet)
    }

    #[inline(always)]
    fn keeps_link(packet: &Packet<Self>) -> bool {
        nd::is_of_link(packet) || nd::is_of_listeners(packet)
    }
}
