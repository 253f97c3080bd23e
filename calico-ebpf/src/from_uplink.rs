//! What comes in by an uplink.

use calico_ebpf_common::{
    abi::{DropReason, NO_SLOT, OpenerKind, conn_flags, workload_flags},
    packet::Kind,
};

use crate::{
    established::{Hook, NoHit, find, related},
    forward::{TO_STACK, to_workload},
    opening, reverse_path,
    skb::Skb,
    tables::{Tables, active, has_host_endpoints, host_seats, locate},
    to_workload::Receiver,
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
    let work = match take::<F>(skb, &env) {
        Ok(work) => work,
        // But what a host endpoint could not judge is not for the host either.
        Err(reason) if has_host_endpoints() && host_seats(&env).host != NO_SLOT => return Err(reason),
        Err(_) => return Ok(TO_STACK),
    };
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
    if destination.slot == NO_SLOT {
        return Ok(TO_STACK);
    }
    if matches!(packet.kind, Kind::LaterFragment) || packet.fragment {
        reverse_path::check::<F>(&env, skb)?;
        return Ok(TO_STACK);
    }
    let workload = active(destination.slot).ok_or(DropReason::NoInterface)?;
    if matches!(packet.kind, Kind::IcmpError) && related::<F>(skb) != 0 && work.related.to == destination.slot {
        return if work.related.via_stack { Ok(TO_STACK) } else { to_workload(skb, packet, workload) };
    }
    reverse_path::check::<F>(&env, skb)?;
    let slots = [NO_SLOT, destination.slot];
    let opening = opening::judge(&env, packet, slots, [source.class, destination.class])?;
    if matches!(packet.kind, Kind::Flow) {
        opening::enter(&env, work, &opening, slots, OpenerKind::Outside, 0)?;
    }
    let workload = active(destination.slot).ok_or(DropReason::NoInterface)?;
    to_workload(skb, &work.packet, workload)
}

/// The same, where some interface is a host endpoint.
#[inline(always)]
pub(crate) fn first_of_host<F: Receiver>(skb: &Skb) -> Code {
    code(try_first_of_host::<F>(skb).map_err(DropReason::on_arrival))
}

#[inline(always)]
fn try_first_of_host<F: Receiver>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let packet = &work.packet;
    let source = locate::<F>(&packet.source, env.generation);
    if source.slot != NO_SLOT || source.host {
        return Err(DropReason::SpoofedLocal);
    }
    // Later fragments are nothing without the first one, whoever puts them together.
    if F::keeps_link(packet) || matches!(packet.kind, Kind::LaterFragment) {
        return Ok(TO_STACK);
    }
    let destination = locate::<F>(&packet.destination, env.generation);
    let to_many = !skb.is_for_host_mac() || F::is_multicast(&packet.destination);
    let seats = host_seats(&env);
    let to_host = destination.host || to_many || F::is_host_scope(&packet.destination);
    if destination.slot != NO_SLOT && active(destination.slot).is_none() {
        return Err(DropReason::NoInterface);
    }
    if matches!(packet.kind, Kind::IcmpError) && related::<F>(skb) != 0 {
        return match active(work.related.to) {
            Some(to) if !work.related.via_stack && to.flags & workload_flags::HOST_ENDPOINT == 0 => {
                to_workload(skb, &work.packet, to)
            }
            _ => Ok(TO_STACK),
        };
    }
    if destination.slot != NO_SLOT {
        reverse_path::check::<F>(&env, skb)?;
    }
    // A fragment for a workload is judged by that when it is whole.
    let slots = if to_host {
        [NO_SLOT, seats.host]
    } else if packet.fragment {
        [seats.forward, NO_SLOT]
    } else {
        [seats.forward, destination.slot]
    };
    if slots[0] == NO_SLOT && slots[1] == NO_SLOT {
        return Ok(TO_STACK);
    }
    let opening = opening::judge(&env, packet, slots, [source.class, destination.class])?;
    let flags = if to_host {
        conn_flags::VIA_STACK
    } else if destination.slot == NO_SLOT {
        // Whoever is outside where it leaves has not been asked yet.
        conn_flags::VIA_STACK | conn_flags::PROBING
    } else {
        0
    };
    let is_of_workload = destination.slot != NO_SLOT;
    if matches!(packet.kind, Kind::Flow) && !to_many && !(is_of_workload && packet.fragment) {
        opening::enter(&env, work, &opening, slots, OpenerKind::Outside, flags)?;
    }
    match active(destination.slot) {
        Some(workload) if is_of_workload && !to_host => to_workload(skb, &work.packet, workload),
        _ => Ok(TO_STACK),
    }
}
