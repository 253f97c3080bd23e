//! What comes in by an uplink.

use calico_ebpf_common::{
    abi::{DropReason, NO_SLOT, OpenerKind, conn_flags},
    packet::Kind,
};

use crate::{
    established::{Hook, NoHit, find, related},
    forward::{TO_STACK, to_workload},
    opening,
    skb::Skb,
    tables::{Tables, active, locate},
    work::{Code, Env, MISS, code, take, work},
};

/// A packet whose connection may have an entry.
#[inline(always)]
pub(crate) fn established<F: Tables>(skb: &Skb) -> Code {
    code(try_established::<F>(skb))
}

#[inline(always)]
fn try_established<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    // What cannot be parsed and is for a workload, the program before its interface drops.
    let Ok(work) = take::<F>(skb, &env) else { return Ok(TO_STACK) };
    let packet = &work.packet;
    if !matches!(packet.kind, Kind::Flow) {
        return Ok(MISS);
    }
    match find::<F>(&env, Hook::FromUplink, packet, &work.key, work.source_is_a) {
        Ok(hit) => match hit.destination {
            Some(destination) if hit.flags & conn_flags::VIA_STACK == 0 => to_workload(skb, packet, destination),
            _ => Ok(TO_STACK),
        },
        Err(NoHit::Next(next)) => Ok(next),
        Err(NoHit::Drop(reason)) => Err(reason),
    }
}

/// A packet that no connection lets pass.
#[inline(always)]
pub(crate) fn first<F: Tables>(skb: &Skb) -> Code {
    code(try_first::<F>(skb))
}

#[inline(always)]
fn try_first<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let packet = &work.packet;
    let source = locate::<F>(&packet.source, env.generation);
    if source.slot != NO_SLOT || source.host {
        return Err(DropReason::SpoofedLocal);
    }
    let destination = locate::<F>(&packet.destination, env.generation);
    if destination.slot == NO_SLOT || matches!(packet.kind, Kind::LaterFragment) || packet.fragment {
        return Ok(TO_STACK);
    }
    let workload = active(destination.slot).ok_or(DropReason::NoInterface)?;
    if matches!(packet.kind, Kind::IcmpError) && related::<F>(skb) != 0 && work.related.to == destination.slot {
        return if work.related.via_stack { Ok(TO_STACK) } else { to_workload(skb, packet, workload) };
    }
    let slots = [NO_SLOT, destination.slot];
    let opening = opening::judge(&env, packet, slots, [source.class, destination.class])?;
    if matches!(packet.kind, Kind::Flow) {
        opening::enter(&env, work, &opening, slots, OpenerKind::Outside, 0)?;
    }
    let workload = active(destination.slot).ok_or(DropReason::NoInterface)?;
    to_workload(skb, &work.packet, workload)
}
