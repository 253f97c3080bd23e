//! What leaves by an uplink, out of the host's stack.

use calico_ebpf_common::{
    abi::{DropReason, MARK_LEFT, MARK_REPLY, MARK_UNTRANSLATED, MARKS_ON_THE_WAY, NO_SLOT, OpenerKind, conn_flags},
    packet::{Kind, protocol, tcp_flags},
};

use crate::{
    established::{Hook, NoHit, find, related},
    forward::TO_STACK,
    fragments,
    opening::{self, Stage},
    policy::judge_ends,
    skb::Skb,
    tables::{
        HostSeats, Tables, active, has_host_endpoints, host_seats, is_way_out, locate, of_interface, seat_of_arrival,
        sender, translated_of, translates,
    },
    to_workload::{Receiver, check_arrival, is_own},
    work::{AGAIN, Code, Env, FOREIGN, LEAVES, MISS, code, take, work},
};

/// A packet whose connection may have an entry.
#[inline(always)]
pub(crate) fn established<F: Tables>(skb: &Skb) -> Code {
    code(try_established::<F>(skb))
}

#[inline(always)]
fn try_established<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    let work = match take::<F>(skb, &env) {
        Ok(work) => work,
        // But what a host endpoint could not judge the host does not send.
        Err(reason) if is_own(skb) && has_host_endpoints() && host_seats(&env).host != NO_SLOT => return Err(reason),
        Err(_) => return Ok(TO_STACK),
    };
    let packet = &work.packet;
    if matches!(packet.kind, Kind::LaterFragment) {
        if locate::<F>(&packet.source, env.generation).slot != NO_SLOT || translated_of(skb).is_some() {
            fragments::follow(&leaving(env), packet)?;
        }
        return Ok(TO_STACK);
    }
    if !matches!(packet.kind, Kind::Flow) {
        if has_host_endpoints() || translated_of(skb).is_some() {
            return Ok(MISS);
        }
        // Judged where it came from, and it has no entry.
        fragments::first_passed(&leaving(env), packet);
        return Ok(TO_STACK);
    }
    let hit = match find::<F>(&env, Hook::ToUplink, packet, &work.key, work.source_is_a, skb.ingress_ifindex()) {
        Ok(hit) => hit,
        Err(NoHit::Next(next)) => return Ok(next),
        Err(NoHit::Drop(reason)) => return Err(reason),
    };
    if hit.is_of_another(&env, skb, packet) {
        return Ok(FOREIGN);
    }
    if hit.asks_arrival(&env, skb) {
        return Ok(AGAIN);
    }
    if hit.flags & conn_flags::PROBING != 0 && has_host_endpoints() {
        return Ok(LEAVES);
    }
    if hit.flags & conn_flags::PROBING != 0 && hit.source.is_some() {
        // It leaves as it came: nobody translates it, and by an uplink the next one may go past the stack.
        let past_stack = if goes_past(&env, skb) { conn_flags::VIA_STACK } else { 0 };
        let flags = hit.flags & !(conn_flags::PROBING | past_stack);
        // SAFETY: the entry stays writable as long as the program runs.
        unsafe { (*hit.conn).flags = flags };
    }
    fragments::first_passed(&leaving(env), packet);
    Ok(TO_STACK)
}

/// Whether the next packets of this one's connection may go past the stack: by an uplink, and if nobody has marked it, which rules of
/// routing may ask for.
#[inline(always)]
fn goes_past(env: &Env, skb: &Skb) -> bool {
    const OURS: u32 = MARK_UNTRANSLATED | MARKS_ON_THE_WAY;
    env.is_uplink(env.ifindex) && !skb.is_marked(!OURS)
}

/// What the interface is for the packet. Ends with [`TO_STACK`] where there is nothing to ask: it is of no host endpoint, and
/// the packet came in by none that has yet to be asked.
#[inline(always)]
pub(crate) fn role(skb: &Skb) -> Code {
    let Ok(env) = Env::new(skb) else { return MISS };
    let is_nobodys = !env.is_uplink(env.ifindex) && is_way_out(&env) && seat_of_arrival(skb, &env) == NO_SLOT;
    if is_nobodys { TO_STACK } else { MISS }
}

/// Fragments that leave find each other whichever uplink they take.
#[inline(always)]
fn leaving(env: Env) -> Env {
    Env { ifindex: 0, ..env }
}

/// A packet of a connection that leaves the host for the first time, where some interface is a host endpoint: whoever is
/// outside is asked, and what nobody translates may go past the stack from now on.
#[inline(always)]
pub(crate) fn leaves<F: Tables>(skb: &Skb) -> Code {
    code(try_leaves::<F>(skb).map_err(DropReason::on_leaving))
}

#[inline(always)]
fn try_leaves<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let packet = &work.packet;
    let Some(conn) = F::conn(&work.key) else { return Err(DropReason::NoTable) };
    // SAFETY: the entry stays readable as long as the program runs.
    let (flags, opener, responder) = unsafe { ((*conn).flags, (*conn).ends[0].slot, (*conn).ends[1].slot) };
    let from_opener = work.source_is_a == (flags & conn_flags::OPENER_IS_A != 0);
    let outside = host_seats(&env).forward;
    if from_opener
        && responder == NO_SLOT
        && let Some(seat) = active(outside)
    {
        let source = locate::<F>(&packet.source, env.generation);
        let destination = locate::<F>(&packet.destination, env.generation);
        let [from, to] = packet.transport.rule_ports(packet.protocol);
        let classes = [source.class, destination.class];
        let allowed = judge_ends::<F>(env.generation, [None, Some(seat)], classes, packet.protocol, [from, to], false)?;
        opening::join(&env, work, outside, allowed.rules[1]);
    }
    // What only an answer has shown is not asked yet.
    if from_opener && let Some(opener) = active(opener) {
        // An answer through the stack: it translates, or knows the way alone.
        let is_answered = flags & conn_flags::ANSWERED != 0;
        let goes_past = !is_answered && !opener.is_seat() && goes_past(&env, skb);
        let past_stack = if goes_past { conn_flags::VIA_STACK } else { 0 };
        // SAFETY: the entry stays writable as long as the program runs.
        unsafe { (*conn).flags = flags & !(conn_flags::PROBING | past_stack) };
    }
    fragments::first_passed(&leaving(env), &work.packet);
    Ok(TO_STACK)
}

/// A packet without a connection. If it is a local workload's, it looks other than when the workload sent it: the stack
/// has changed its destination.
#[inline(always)]
pub(crate) fn first<F: Receiver>(skb: &Skb, missed: Code) -> Code {
    code(try_first::<F>(skb, missed).map_err(DropReason::on_leaving))
}

#[inline(always)]
fn try_first<F: Receiver>(skb: &Skb, missed: Code) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    if missed == FOREIGN {
        opening::forget(&env, work);
    }
    let packet = &work.packet;
    // Errors are about what was judged, but for those of workloads that were not when they came in. Later fragments are nothing without
    // the first one.
    if matches!(packet.kind, Kind::LaterFragment) {
        return Ok(TO_STACK);
    }
    if matches!(packet.kind, Kind::IcmpError) {
        let was_judged = !skb.is_marked(MARK_LEFT) || translated_of(skb).is_none();
        return if was_judged || related::<F>(skb) != 0 { Ok(TO_STACK) } else { Err(DropReason::IcmpUnrelated) };
    }
    if !is_own(skb) && skb.is_marked(MARK_REPLY) {
        fragments::first_passed(&leaving(env), packet);
        return Ok(TO_STACK);
    }
    let source = locate::<F>(&packet.source, env.generation);
    if source.slot == NO_SLOT && F::keeps_link(packet) {
        return Ok(TO_STACK);
    }
    let seats = if has_host_endpoints() { host_seats(&env) } else { HostSeats::NOBODY };
    let (slots, class) = if is_own(skb) {
        ([seats.host, NO_SLOT], source.class)
    } else {
        let (sender, class) = sender::<F>(skb, &env, &source);
        ([sender, seats.forward], class)
    };
    check_arrival(skb, source.slot)?;
    // What the stack has given the host's address has to come back: it needs an entry, even where nobody judges it.
    let is_masqueraded = !is_own(skb) && source.host && seats.host != NO_SLOT;
    if slots[0] == NO_SLOT && slots[1] == NO_SLOT && !is_masqueraded {
        return Ok(TO_STACK);
    }
    if !is_own(skb)
        && source.host
        && let Ok((slot, _)) = of_interface(skb.ingress_ifindex())
    {
        work.payer = slot;
    }
    let destination = locate::<F>(&packet.destination, env.generation);
    let opening = opening::judge(&env, packet, slots, [class, destination.class], Stage::of_leaving(skb))?;
    if matches!(packet.kind, Kind::Flow) && !F::is_multicast(&packet.destination) {
        // An address and port of the host's may be lent to what it masquerades; its own connections keep theirs.
        let behind_dnat = if is_own(skb) { 0 } else { conn_flags::BEHIND_DNAT };
        let flags = conn_flags::VIA_STACK | behind_dnat | opening::settled(skb);
        opening::enter(&env, work, &opening, slots, OpenerKind::Outside, flags)?;
    }
    fragments::first_passed(&leaving(env), &work.packet);
    Ok(TO_STACK)
}

/// What becomes of a packet that is to be dropped, given by its code. An answer in a connection that the stack has translated goes
/// on, whatever became of one to the address that it was opened to. So does a reset of the stack's own where it tells what was left
/// to it: like an ICMP error it is of no connection.
#[inline(always)]
pub(crate) fn denied<F: Tables>(skb: &Skb, code: Code) -> Code {
    let passes = if is_own(skb) { is_reset_of_translation::<F>(skb) } else { skb.is_marked(MARK_REPLY) };
    if passes { TO_STACK } else { code }
}

#[inline(always)]
fn is_reset_of_translation<F: Tables>(skb: &Skb) -> bool {
    let Some(work) = work::<F>() else { return false };
    let Ok(env) = Env::resume(skb, work) else { return false };
    let packet = &work.packet;
    packet.protocol == protocol::TCP && packet.transport.tcp_flags & tcp_flags::RST != 0 && translates(&env)
}
