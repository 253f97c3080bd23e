//! Packets of connections that have an entry.

use core::ptr;

use calico_ebpf_common::{
    abi::{
        CONN_VERSION, Conn, ConnEnd, DropReason, MARK_ASKED, MARK_REPLY, MARK_SETTLED, NO_SLOT, OpenerKind, Workload,
        conn_flags, settings_flags, workload_flags,
    },
    packet::{Ip, Packet, protocol},
    track::{self, State},
};

use crate::{
    conns,
    policy::{Allowed, judge_ends},
    skb::Skb,
    tables::{Located, Tables, active, class_of_slot, judges_forwarded, locate, seat_of_arrival, translated_of},
    work::{AGAIN, Code, Env, FOREIGN, MISS, Related, code, work},
};

/// Where a program sits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    FromWorkload,
    ToWorkload,
    FromUplink,
    ToUplink,
}

/// What the packet's entry says.
pub(crate) struct Hit {
    pub flags: u8,
    pub opener: u8,
    pub from_opener: bool,
    /// The local workload that sent the packet, or who judges it in its place.
    pub source: Option<&'static Workload>,
    /// The local workload that it is for, likewise.
    pub destination: Option<&'static Workload>,
    pub conn: *mut Conn,
}

impl Hit {
    /// Leaves word for the programs where a packet leaves that the stack may translate: by its new addresses it may have no
    /// entry, and host endpoints have been asked about it.
    #[inline(always)]
    pub(crate) fn tell_the_ways_out(&self, env: &Env, skb: &Skb) {
        let has_host_endpoints = env.root.settings(env.generation).flags & settings_flags::HOST_ENDPOINTS != 0;
        if !has_host_endpoints || !self.from_opener {
            return;
        }
        if self.flags & conn_flags::SETTLED != 0 {
            skb.mark(MARK_SETTLED);
        } else {
            // Not `self.source`: the verifier does not know that that is the same.
            // SAFETY: the entry stays readable as long as the program runs.
            let opener = active(unsafe { (*self.conn).ends[0].slot });
            if opener.is_some_and(Workload::is_outside) {
                skb.mark(MARK_ASKED);
            }
        }
    }

    /// Whether a packet that leaves only looks as if it were of this connection: the stack gives an address and port of the host's to one
    /// connection and then to another.
    #[inline(always)]
    pub(crate) fn is_of_another<F: Tables>(&self, env: &Env, skb: &Skb, packet: &Packet<F>) -> bool {
        if !self.from_opener {
            return false;
        }
        if let Some(slot) = translated_of(skb) {
            // SAFETY: the entry stays readable as long as the program runs.
            return unsafe { (*self.conn).ends[0].slot } != slot;
        }
        skb.ingress_ifindex() == 0
            && self.opener == OpenerKind::Workload as u8
            && self.flags & conn_flags::BEHIND_DNAT != 0
            && locate::<F>(&packet.source, env.generation).host
    }

    /// Whether it lets an answer pass. By an address that is translated there are none but those that the stack gave it.
    #[inline(always)]
    pub(crate) fn lets_answer(&self, skb: &Skb) -> bool {
        self.from_opener || self.opener != OpenerKind::Translated as u8 || skb.is_marked(MARK_REPLY)
    }

    /// An answer to what was masqueraded, which must not reach the host itself.
    #[inline(always)]
    pub(crate) fn is_back(&self) -> bool {
        !self.from_opener && self.flags & conn_flags::BEHIND_DNAT != 0 && self.opener == OpenerKind::Workload as u8
    }

    /// Where policy before DNAT let the connection in by the address that it was opened to, and does not do so any more, the host
    /// endpoint where it comes in is asked as about any other: true if the entry is to be judged again.
    #[inline(always)]
    pub(crate) fn asks_arrival(&self, env: &Env, skb: &Skb) -> bool {
        const SETTLED: u8 = conn_flags::SETTLED | conn_flags::BEHIND_DNAT;
        if !self.from_opener || self.flags & SETTLED != SETTLED || skb.is_marked(MARK_SETTLED) {
            return false;
        }
        let slot = seat_of_arrival(skb, env);
        // SAFETY: the entry stays writable as long as the program runs. The slot comes last: it says that the others are right.
        unsafe {
            (*self.conn).flags = self.flags & !conn_flags::SETTLED;
            let Some(seat) = active(slot) else { return false };
            (*self.conn).ends[0].incarnation = seat.incarnation;
            (*self.conn).ends[0].epoch = seat.policy(env.generation).egress_epoch.wrapping_sub(1);
            ptr::write_volatile(&raw mut (*self.conn).ends[0].slot, slot);
        }
        true
    }
}

/// Whether what this workload seems to send came in elsewhere than by its interface.
#[inline(always)]
pub(crate) fn is_forged(source: &Workload, ingress: u32) -> bool {
    !source.is_seat() && source.ifindex != ingress
}

/// Why there is no [`Hit`]: the code for the next function, or the reason to drop.
pub(crate) enum NoHit {
    Next(Code),
    Drop(DropReason),
}

/// Looks for the packet's connection and, if the packet may pass by it, brings the entry up to date. `ingress`: where a packet that
/// leaves came in; 0 where that is the interface of `env`, or where the host itself sends it.
#[inline(always)]
pub(crate) fn find<F: Tables>(
    env: &Env,
    hook: Hook,
    packet: &Packet<F>,
    key: &F::Key,
    source_is_a: bool,
    ingress: u32,
) -> Result<Hit, NoHit> {
    let Some(conn_ptr) = F::conn(key) else { return Err(NoHit::Next(MISS)) };
    // SAFETY: the entry stays readable as long as the program runs; other processors write single fields of it.
    let conn = unsafe { &*conn_ptr };
    if conn.version != CONN_VERSION {
        return Err(NoHit::Next(MISS));
    }
    let (flags, opener) = (conn.flags, conn.opener);
    let from_opener = source_is_a == (flags & conn_flags::OPENER_IS_A != 0);

    let (Ok(opener_workload), Ok(responder_workload)) = (at_end(&conn.ends[0]), at_end(&conn.ends[1])) else {
        // A workload has gone, or its slot has another owner.
        return Err(NoHit::Next(AGAIN));
    };
    let (source, destination) =
        if from_opener { (opener_workload, responder_workload) } else { (responder_workload, opener_workload) };
    match hook {
        Hook::FromWorkload => {
            if source.is_none_or(|source| source.ifindex != env.ifindex) {
                return Err(NoHit::Next(FOREIGN));
            }
        }
        Hook::ToWorkload => {
            if destination.is_none_or(|destination| destination.ifindex != env.ifindex) {
                return Err(NoHit::Next(FOREIGN));
            }
        }
        Hook::FromUplink => {
            if source.is_some_and(|source| !source.is_outside()) || from_opener && opener == OpenerKind::Host as u8 {
                return Err(NoHit::Drop(DropReason::SpoofedLocal));
            }
            // Nothing answers what host endpoints have not been asked about yet.
            if !from_opener && flags & conn_flags::PROBING != 0 && judges_forwarded(env) {
                return Err(NoHit::Next(MISS));
            }
        }
        Hook::ToUplink => {}
    }
    if ingress != 0 && source.is_some_and(|source| is_forged(source, ingress)) {
        // The stack gives an address of the host's to one and then to another.
        let is_masqueraded = from_opener && flags & conn_flags::BEHIND_DNAT != 0;
        return Err(if is_masqueraded { NoHit::Next(FOREIGN) } else { NoHit::Drop(DropReason::SpoofedLocal) });
    }
    if opener == OpenerKind::Translated as u8 && from_opener && matches!(hook, Hook::ToWorkload | Hook::ToUplink) {
        // It leaves untranslated.
        return Err(NoHit::Drop(DropReason::PolicyEgress));
    }

    let seen = if from_opener { conn.seen[0] } else { conn.seen[1] };
    // Only on the first packet in a tick: the entry cannot have expired within one.
    if seen != env.now && track::is_expired(conn, packet.protocol, env.now, &env.root.timeouts) {
        return Err(NoHit::Next(AGAIN));
    }
    if packet.protocol == protocol::TCP && track::opens(&packet.transport) && track::is_over(conn.tcp) {
        return Err(NoHit::Next(AGAIN));
    }
    if !is_current(env.generation, conn, opener_workload, responder_workload) {
        return Err(NoHit::Next(AGAIN));
    }

    if seen != env.now {
        // SAFETY: the entry stays writable as long as the program runs.
        unsafe {
            let leg = if from_opener { &raw mut (*conn_ptr).seen[0] } else { &raw mut (*conn_ptr).seen[1] };
            ptr::write_volatile(leg, env.now);
        }
    }
    let before = State::of(conn);
    let genuine = opener_workload.is_some_and(|workload| !workload.is_seat());
    let after = before.after(packet.protocol, &packet.transport, from_opener, genuine);
    if after != before {
        if (before.flags ^ after.flags) & conn_flags::ASSURED != 0 {
            conns::assured(conn.account);
        }
        // SAFETY: as above.
        unsafe {
            (*conn_ptr).flags = after.flags;
            (*conn_ptr).tcp = after.tcp;
            (*conn_ptr).syn_ack = after.syn_ack;
        }
    }
    Ok(Hit { flags: after.flags, opener, from_opener, source, destination, conn: conn_ptr })
}

/// Whether both ends were judged by the rules in force. Nobody judges what the host opens.
#[inline(always)]
fn is_current(generation: u32, conn: &Conn, opener: Option<&Workload>, responder: Option<&Workload>) -> bool {
    conn.opener == OpenerKind::Host as u8
        || opener.is_none_or(|workload| workload.policy(generation).egress_epoch == conn.ends[0].epoch)
            && responder.is_none_or(|workload| workload.policy(generation).ingress_epoch == conn.ends[1].epoch)
}

/// The workload at an end, if one is; `Err` if the one that was is gone.
#[inline(always)]
fn at_end(end: &ConnEnd) -> Result<Option<&'static Workload>, ()> {
    if end.slot == NO_SLOT {
        return Ok(None);
    }
    match active(end.slot) {
        Some(workload) if workload.incarnation == end.incarnation => Ok(Some(workload)),
        _ => Err(()),
    }
}

/// The second look at an entry that [`find`] did not like: closes it if it is void, or judges it again as its opener.
/// Ends with [`AGAIN`] if the packet may be looked at once more, with [`MISS`] if there is no entry any more.
#[inline(always)]
pub(crate) fn again<F: Tables>() -> Code {
    code(try_again::<F>())
}

#[inline(always)]
fn try_again<F: Tables>() -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume_at(work, 0)?;
    let packet = &work.packet;
    let Some(conn_ptr) = F::conn(&work.key) else { return Ok(MISS) };
    // SAFETY: the entry stays readable as long as the program runs.
    let from_opener = work.source_is_a == (unsafe { (*conn_ptr).flags } & conn_flags::OPENER_IS_A != 0);
    let (opener, responder) =
        if from_opener { (&packet.source, &packet.destination) } else { (&packet.destination, &packet.source) };
    let opener_at = locate::<F>(opener, env.generation);
    let responder_at = locate::<F>(responder, env.generation);
    release_gone::<F>(packet, conn_ptr, [&opener_at, &responder_at]);
    // SAFETY: the entry stays readable as long as the program runs.
    let conn = unsafe { &*conn_ptr };
    let over = packet.protocol == protocol::TCP && track::opens(&packet.transport) && track::is_over(conn.tcp);
    let (Ok(opener_workload), Ok(responder_workload), false, false) = (
        at_end(&conn.ends[0]),
        at_end(&conn.ends[1]),
        over,
        track::is_expired(conn, packet.protocol, env.now, &env.root.timeouts),
    ) else {
        conns::close_early::<F>(&work.key, conn.account, conn.flags, env.now);
        return Ok(MISS);
    };
    let (opener_slot, responder_slot) = (conn.ends[0].slot, conn.ends[1].slot);
    // The addresses may have other owners now.
    let spoofs = opener_workload.is_some_and(|workload| workload.flags & workload_flags::SPOOF != 0);
    let is_host = opener_workload.is_some_and(Workload::is_seat);
    // The stack has given it the host's.
    let is_masqueraded = conn.flags & conn_flags::BEHIND_DNAT != 0 && opener_at.host;
    let opener_stays = opener_at.slot == opener_slot
        || is_masqueraded
        || is_host && opener_at.slot == NO_SLOT
        || spoofs && F::may_spoof(opener_slot, opener);
    // What the stack delivered by a route of somebody else's has no owner by address, nor has what a host endpoint judges.
    let is_outside = responder_workload.is_some_and(Workload::is_seat);
    let is_by_stack = conn.flags & conn_flags::VIA_STACK != 0;
    let responder_stays =
        responder_at.slot == responder_slot || responder_at.slot == NO_SLOT && (is_outside || is_by_stack);
    if !opener_stays || !responder_stays {
        conns::close_early::<F>(&work.key, conn.account, conn.flags, env.now);
        return Ok(MISS);
    }
    let mut ports = packet.transport.rule_ports(packet.protocol);
    if packet.protocol == F::ICMP {
        ports = [0, u16::from(conn.icmp_type) << 8 | u16::from(conn.icmp_code)];
    } else if !from_opener {
        ports = [ports[1], ports[0]];
    }
    let workloads = [opener_workload, responder_workload];
    let opener_class =
        if is_masqueraded { class_of_slot::<F>(opener_slot, opener_at.class, env.generation) } else { opener_at.class };
    let classes = [opener_class, responder_at.class];
    let behind_dnat = conn.flags & conn_flags::BEHIND_DNAT != 0;
    match judge_ends::<F>(env.generation, workloads, classes, packet.protocol, ports, behind_dnat) {
        Ok(Allowed { rules, before_dnat }) => {
            let settled = if before_dnat { conn_flags::SETTLED } else { 0 };
            // SAFETY: the entry stays writable as long as the program runs.
            unsafe {
                if conn.opener == OpenerKind::Translated as u8 {
                    // The address that it was opened to is allowed now.
                    (*conn_ptr).opener = OpenerKind::Workload as u8;
                }
                if !behind_dnat {
                    (*conn_ptr).flags = (*conn_ptr).flags & !conn_flags::SETTLED | settled;
                }
                if let Some(workload) = opener_workload {
                    (*conn_ptr).ends[0].rule = rules[0];
                    (*conn_ptr).ends[0].epoch = workload.policy(env.generation).egress_epoch;
                }
                if let Some(workload) = responder_workload {
                    (*conn_ptr).ends[1].rule = rules[1];
                    (*conn_ptr).ends[1].epoch = workload.policy(env.generation).ingress_epoch;
                }
            }
            Ok(AGAIN)
        }
        // It is judged by its other entry, but for policy before DNAT.
        Err(denied) if conn.opener == OpenerKind::Translated as u8 && !denied.before_dnat => {
            if let Some(workload) = opener_workload {
                // SAFETY: the entry stays writable as long as the program runs.
                unsafe { (*conn_ptr).ends[0].epoch = workload.policy(env.generation).egress_epoch };
            }
            Ok(AGAIN)
        }
        // The entry stays, and stays out of date: a packet from the other side must not be taken for the first of a new
        // connection, with its sender as the opener. It expires like any other, since what is dropped does not refresh it.
        Err(denied) => {
            work.denied_for_good = denied.before_dnat;
            Err(denied.reason)
        }
    }
}

/// The host endpoint where the packet came in has no say about its connection any more, since policy before DNAT lets it in: the
/// reverse of [`Hit::asks_arrival`].
#[inline(always)]
pub(crate) fn settle<F: Tables>() -> Code {
    settled::<F>(false)
}

/// The same of a packet that comes in, which untracked policy has allowed: an entry that is not [`BEHIND_DNAT`](conn_flags::BEHIND_DNAT)
/// goes ([`MISS`]), and the packet makes another one, if anybody else is asked.
#[inline(always)]
pub(crate) fn settle_arrival<F: Tables>() -> Code {
    settled::<F>(true)
}

#[inline(always)]
fn settled<F: Tables>(arrives: bool) -> Code {
    let Some(work) = work::<F>() else { return MISS };
    let (Ok(env), Some(conn)) = (Env::resume_at(work, 0), F::conn(&work.key)) else { return MISS };
    // SAFETY: the entry stays readable and writable as long as the program runs.
    unsafe {
        let (flags, account) = ((*conn).flags, (*conn).account);
        let from_opener = work.source_is_a == (flags & conn_flags::OPENER_IS_A != 0);
        if !from_opener || !active((*conn).ends[0].slot).is_some_and(Workload::is_outside) {
            return AGAIN;
        }
        if flags & conn_flags::BEHIND_DNAT != 0 {
            (*conn).ends[0].slot = NO_SLOT;
            (*conn).flags = flags | conn_flags::SETTLED;
        } else if arrives {
            conns::close_early::<F>(&work.key, account, flags, env.now);
            return MISS;
        }
    }
    AGAIN
}

/// Where one workload of the connection has gone from this host, the connection may go on: somebody else may have its
/// address elsewhere. What the other end may do is judged again then.
#[inline(always)]
fn release_gone<F: Tables>(packet: &Packet<F>, conn: *mut Conn, now_at: [&Located; 2]) {
    let elsewhere = |at: &Located| at.slot == NO_SLOT && !at.host;
    // SAFETY: the entry stays readable and writable as long as the program runs.
    unsafe {
        if packet.protocol != protocol::TCP || (*conn).flags & conn_flags::ASSURED == 0 {
            return;
        }
        let gone = [at_end(&(*conn).ends[0]).is_err(), at_end(&(*conn).ends[1]).is_err()];
        if gone[0] && !gone[1] && elsewhere(now_at[0]) {
            (*conn).ends[0].slot = NO_SLOT;
        } else if gone[1] && !gone[0] && elsewhere(now_at[1]) {
            (*conn).ends[1].slot = NO_SLOT;
        }
    }
}

/// Looks for the connection of the packet that the ICMP error at hand quotes. 1 if there is one: it is in
/// [`crate::work::Work::related`] then.
#[inline(never)]
pub(crate) fn related<F: Tables>(skb: &Skb) -> u32 {
    u32::from(try_related::<F>(skb).is_some())
}

#[inline(always)]
fn try_related<F: Tables>(skb: &Skb) -> Option<()> {
    let work = work::<F>()?;
    let env = Env::resume(skb, work).ok()?;
    let quoted = F::quoted(skb, work.packet.transport_at)?;
    if quoted.source != work.packet.destination {
        return None;
    }
    let (key, source_is_a) = <F as Ip>::key(&quoted.source, &quoted.destination, quoted.protocol, quoted.ports);
    // SAFETY: the entry stays readable as long as the program runs.
    let conn = unsafe { &*F::conn(&key)? };
    let (opener, responder) = (at_end(&conn.ends[0]).ok()?, at_end(&conn.ends[1]).ok()?);
    // What policy has cut since gets no messages about it either.
    if conn.version != CONN_VERSION
        || track::is_expired(conn, quoted.protocol, env.now, &env.root.timeouts)
        || !is_current(env.generation, conn, opener, responder)
    {
        return None;
    }
    let (opener, responder) = (conn.ends[0].slot, conn.ends[1].slot);
    let quoted_opener = source_is_a == (conn.flags & conn_flags::OPENER_IS_A != 0);
    let (to, from) = if quoted_opener { (opener, responder) } else { (responder, opener) };
    let translated = conn.opener == OpenerKind::Translated as u8;
    work.related = Related { via_stack: conn.flags & conn_flags::VIA_STACK != 0, translated, to, from };
    Some(())
}
