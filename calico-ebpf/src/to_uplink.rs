//! What leaves by an uplink, out of the host's stack.

use calico_ebpf_common::{
    abi::{DropReason, NO_SLOT, OpenerKind, conn_flags},
    packet::Kind,
};

use crate::{
    established::{Hook, NoHit, find},
    forward::TO_STACK,
    fragments, opening,
    skb::Skb,
    tables::{Tables, active, locate},
    work::{Code, Env, code, take, work},
};

/// A packet whose connection may have an entry.
#[inline(always)]
pub(crate) fn established<F: Tables>(skb: &Skb) -> Code {
    code(try_established::<F>(skb))
}

#[inline(always)]
fn try_established<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    let Ok(work) = take::<F>(skb, &env) else { return Ok(TO_STACK) };
    let packet = &work.packet;
    if matches!(packet.kind, Kind::LaterFragment) {
        if locate::<F>(&packet.source, env.generation).slot != NO_SLOT {
            fragments::follow(&leaving(env), packet)?;
        }
        return Ok(TO_STACK);
    }
    if !matches!(packet.kind, Kind::Flow) {
        // Judged where it came from, and it has no entry.
        fragments::first_passed(&leaving(env), packet);
        return Ok(TO_STACK);
    }
    let hit = match find::<F>(&env, Hook::ToUplink, packet, &work.key, work.source_is_a) {
        Ok(hit) => hit,
        Err(NoHit::Next(next)) => return Ok(next),
        Err(NoHit::Drop(reason)) => return Err(reason),
    };
    if hit.flags & conn_flags::PROBING != 0 && hit.source.is_some() {
        // It leaves as it came: nobody translates it, and the next one may go past the stack.
        let flags = hit.flags & !(conn_flags::PROBING | conn_flags::VIA_STACK);
        // SAFETY: the entry stays writable as long as the program runs.
        unsafe { (*hit.conn).flags = flags };
    }
    fragments::first_passed(&leaving(env), packet);
    Ok(TO_STACK)
}

/// Fragments that leave find each other whichever uplink they take.
#[inline(always)]
fn leaving(env: Env) -> Env {
    Env { ifindex: 0, ..env }
}

/// A packet without a connection. If it is a local workload's, it looks other than when the workload sent it: the stack
/// has changed its destination.
#[inline(always)]
pub(crate) fn first<F: Tables>() -> Code {
    code(try_first::<F>())
}

#[inline(always)]
fn try_first<F: Tables>() -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume_at(work, 0)?;
    let packet = &work.packet;
    let source = locate::<F>(&packet.source, env.generation);
    if source.slot == NO_SLOT {
        return Ok(TO_STACK);
    }
    if active(source.slot).is_none() {
        return Err(DropReason::NoWorkload);
    }
    let destination = locate::<F>(&packet.destination, env.generation);
    let slots = [source.slot, NO_SLOT];
    let opening = opening::judge(&env, packet, slots, [source.class, destination.class])?;
    opening::enter(&env, work, &opening, slots, OpenerKind::Outside, conn_flags::VIA_STACK)?;
    fragments::first_passed(&env, &work.packet);
    Ok(TO_STACK)
}
