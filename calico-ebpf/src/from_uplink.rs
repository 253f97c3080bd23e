//! What comes in by an uplink.

use calico_ebpf_common::{
    abi::{DropReason, MARK_ASKED, MARK_BACK, MARK_SETTLED, NO_SLOT, OpenerKind, conn_flags},
    packet::Kind,
};

use crate::{
    established::{Hook, NoHit, find, related},
    forward::{TO_STACK, to_workload},
    local,
    opening::{self, Stage},
    reverse_path,
    skb::Skb,
    tables::{HostSeats, Tables, active, has_host_endpoints, host_seats, locate},
    to_workload::Receiver,
    work::{ALLOWED, Code, DELIVER, Env, MISS, code, dropped, forget_origin, take, work},
};

/// Whether what is for a workload may go to it past the stack from here.
#[inline(always)]
pub(crate) fn delivers(skb: &Skb) -> bool {
    Env::new(skb).is_ok_and(|env| env.is_uplink(env.ifindex))
}

/// Tags without a VLAN, one in the other, that anybody could mean.
const PRIORITY_TAGS: u32 = 2;

/// Takes tags without a VLAN away, as the stack would, so that what they hide is judged. Ends with [`MISS`] where no tag is left:
/// what has one is for that VLAN's interface.
#[inline(always)]
pub(crate) fn untag(skb: &Skb) -> Code {
    for _ in 0..PRIORITY_TAGS {
        if !skb.is_tagged() || skb.is_of_vlan() {
            break;
        }
        skb.untag();
    }
    if !skb.is_tagged() {
        MISS
    } else if skb.is_of_vlan() {
        TO_STACK
    } else {
        dropped(DropReason::EtherType)
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
    match find::<F>(&env, Hook::FromUplink, packet, &work.key, work.source_is_a, 0) {
        Ok(hit) => match hit.destination {
            Some(destination) if hit.flags & conn_flags::VIA_STACK == 0 => to_workload(skb, packet, destination),
            _ => {
                if hit.is_back() {
                    skb.mark(MARK_BACK);
                }
                hit.tell_the_ways_out(&env, skb);
                Ok(TO_STACK)
            }
        },
        Err(NoHit::Next(next)) => Ok(next),
        Err(NoHit::Drop(reason)) => Err(reason),
    }
}

/// A packet that no connection lets pass. [`ALLOWED`]: untracked policy has allowed it, so of what is the host's nothing
/// else is asked.
#[inline(always)]
pub(crate) fn first<F: Receiver>(skb: &Skb, untracked: Code) -> Code {
    code(try_first::<F>(skb, untracked).map_err(DropReason::on_arrival))
}

#[inline(always)]
fn try_first<F: Receiver>(skb: &Skb, untracked: Code) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let packet = &work.packet;
    let source = locate::<F>(&packet.source, env.generation);
    if source.slot != NO_SLOT || source.host {
        return Err(DropReason::SpoofedLocal);
    }
    let destination = locate::<F>(&packet.destination, env.generation);
    let is_for_workload = destination.slot != NO_SLOT;
    if is_for_workload && active(destination.slot).is_none() {
        return Err(DropReason::NoInterface);
    }
    let is_for_sender = |to| !is_for_workload || to == destination.slot;
    if matches!(packet.kind, Kind::IcmpError) && related::<F>(skb) != 0 && is_for_sender(work.related.to) {
        return match active(work.related.to) {
            Some(to) if !work.related.via_stack && !to.is_seat() => {
                work.slots[1] = work.related.to;
                Ok(DELIVER)
            }
            _ => Ok(TO_STACK),
        };
    }
    if is_for_workload {
        // No answer can go there, whatever the routes say.
        if F::is_multicast(&packet.source) || F::to_words(&packet.source) == [0; 2] {
            return Err(DropReason::ReversePath);
        }
        reverse_path::check::<F>(&env, skb)?;
    }
    // Later fragments are nothing without the first one, whoever puts them together.
    if matches!(packet.kind, Kind::LaterFragment) || !is_for_workload && F::keeps_link(packet) {
        return Ok(TO_STACK);
    }
    let to_many = !skb.is_for_host_mac() || F::is_multicast(&packet.destination);
    let seats = if untracked != ALLOWED && has_host_endpoints() { host_seats(&env) } else { HostSeats::NOBODY };
    let mut to_host = destination.host || to_many || F::is_host_scope(&packet.destination);
    if !to_host && !is_for_workload && seats.host != NO_SLOT && env.root.local_networks != 0 {
        to_host = local::receives::<F>(skb) != 0;
        forget_origin();
    }
    // A fragment for a workload is judged by that when it is whole.
    work.slots = if to_host {
        [NO_SLOT, seats.host]
    } else if packet.fragment {
        [seats.forward, NO_SLOT]
    } else {
        [seats.forward, destination.slot]
    };
    forget_origin();
    let slots = work.slots;
    if slots[0] == NO_SLOT && slots[1] == NO_SLOT {
        return Ok(TO_STACK);
    }
    let opening = match opening::judge(&env, packet, slots, [source.class, destination.class], Stage::Arriving) {
        Ok(opening) => opening,
        Err(denied) => {
            work.denied_for_good = denied.before_dnat;
            return Err(denied.reason);
        }
    };
    if opening.is_settled() {
        skb.mark(MARK_SETTLED);
    } else if slots[0] != NO_SLOT {
        skb.mark(MARK_ASKED);
    }
    let flags = if to_host {
        conn_flags::VIA_STACK
    } else if is_for_workload {
        if env.is_uplink(env.ifindex) { 0 } else { conn_flags::VIA_STACK }
    } else if opening.is_from_opener() {
        // Whoever is outside where it leaves has not been asked yet.
        conn_flags::VIA_STACK | conn_flags::PROBING
    } else {
        conn_flags::VIA_STACK
    };
    if matches!(packet.kind, Kind::Flow) && !to_many && !(is_for_workload && packet.fragment) {
        opening::enter(&env, work, &opening, slots, OpenerKind::Outside, flags)?;
    }
    if to_host || slots[1] == NO_SLOT { Ok(TO_STACK) } else { Ok(DELIVER) }
}
