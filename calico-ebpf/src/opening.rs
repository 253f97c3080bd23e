//! New connections.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use calico_ebpf_common::{
    abi::{
        ACCOUNT_HOST, CONN_VERSION, Conn, ConnEnd, DropReason, Event, MARK_SETTLED, MARK_TRANSLATED, NO_RULE, NO_SLOT,
        OpenerKind, TAKEOVER_SECONDS, account_opened_by, account_opened_to, conn_flags, settings_flags, tcp_state,
        workload_flags,
    },
    packet::{Kind, Packet, protocol},
    track::{self, State},
};

use crate::{
    conns, count,
    maps::{EVENTS, ROOT},
    policy::{Allowed, Denied, judge_ends},
    skb::Skb,
    tables::{Tables, active},
    work::{Env, Work, jiffies},
};

/// Who opened a connection, and by which rules.
pub(crate) struct Opening {
    /// The packet at hand is the opener's.
    from_opener: bool,
    allowed: Allowed,
}

impl Opening {
    /// The host's own: nobody judges it.
    pub(crate) const BY_HOST: Self =
        Self { from_opener: true, allowed: Allowed { rules: [NO_RULE; 2], before_dnat: false } };

    /// Policy is asked about what it is translated to alone, elsewhere. The packet at hand is the opener's.
    pub(crate) const TRANSLATED: Self = Self::BY_HOST;

    #[inline(always)]
    pub(crate) fn is_from_opener(&self) -> bool {
        self.from_opener
    }

    /// Whether policy before DNAT allows it.
    #[inline(always)]
    pub(crate) fn is_settled(&self) -> bool {
        self.allowed.before_dnat
    }
}

/// What the stack has made of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing yet: it has just come in.
    Arriving,
    /// All that it does.
    Leaving,
    /// Likewise: another destination, by a connection that it tracks.
    Translated,
}

impl Stage {
    /// Of a packet that leaves.
    #[inline(always)]
    pub(crate) fn of_leaving(skb: &Skb) -> Self {
        if skb.is_marked(MARK_TRANSLATED) { Self::Translated } else { Self::Leaving }
    }
}

/// Judges a packet without a connection at both ends, or as many of them as there are: `slots` and `classes` are the
/// source's and the destination's.
#[inline(always)]
pub(crate) fn judge<F: Tables>(
    env: &Env,
    packet: &Packet<F>,
    slots: [u32; 2],
    classes: [u32; 2],
    stage: Stage,
) -> Result<Opening, Denied> {
    // What the stack has translated belongs to a connection that it knows.
    if packet.protocol != protocol::TCP || stage != Stage::Translated {
        check_opens(env, packet, slots)?;
    }
    let behind_dnat = stage != Stage::Arriving;
    let [from, to] = packet.transport.rule_ports(packet.protocol);
    let workloads = [active(slots[0]), active(slots[1])];
    let judged = judge_ends::<F>(env.generation, workloads, classes, packet.protocol, [from, to], behind_dnat);
    let denied = match judged {
        Ok(allowed) => return Ok(Opening { from_opener: true, allowed }),
        Err(denied) => denied,
    };
    if !may_be_older(env, packet, slots) {
        return Err(denied);
    }
    // It may be an answer in a connection that another one knew.
    let workloads = [active(slots[1]), active(slots[0])];
    match judge_ends::<F>(env.generation, workloads, [classes[1], classes[0]], packet.protocol, [to, from], false) {
        Ok(allowed) => Ok(Opening { from_opener: false, allowed }),
        Err(_) => Err(denied),
    }
}

/// What belongs to a connection or to nothing, and is here because its connection is not known, is dropped as netfilter
/// drops what it calls invalid. Segments in the middle may open a connection: they are counted.
#[inline(always)]
fn check_opens<F: Tables>(env: &Env, packet: &Packet<F>, slots: [u32; 2]) -> Result<(), DropReason> {
    let is_tcp = packet.protocol == protocol::TCP;
    let reason = if is_tcp && !track::may_open(&packet.transport) {
        DropReason::TcpInvalid
    } else if matches!(packet.kind, Kind::IcmpError) {
        DropReason::IcmpUnrelated
    } else {
        if is_tcp && !track::opens(&packet.transport) {
            count(EVENTS.get_ptr_mut(Event::Midstream as u32));
        }
        return Ok(());
    };
    let judged = env.root.settings(env.generation).flags & settings_flags::JUDGE_INVALID != 0;
    if judged || took_over(env, slots) { Ok(()) } else { Err(reason) }
}

/// Whether the packet may be of a connection that was there before this data path, or before one of these workloads came.
#[inline(always)]
pub(crate) fn may_be_older<F: Tables>(env: &Env, packet: &Packet<F>, slots: [u32; 2]) -> bool {
    packet.protocol == protocol::TCP && !track::opens(&packet.transport) && took_over(env, slots)
}

/// Whether this data path has just taken over from another one, or one of these workloads.
#[inline(always)]
fn took_over(env: &Env, slots: [u32; 2]) -> bool {
    is_recent(env.root.takeover, env.now, env.root.hz) || cali_came(slots[0], slots[1]) != 0
}

#[inline(always)]
fn is_recent(takeover: u32, now: u32, hz: u32) -> bool {
    takeover != 0 && now.wrapping_sub(takeover) < TAKEOVER_SECONDS * hz
}

/// 1 if one of the workloads with these slots has just come from another host, or is about to.
///
/// A global function over plain numbers: its callers have no room on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_came(from: u32, to: u32) -> u32 {
    u32::from(came(from) || came(to))
}

#[inline(always)]
fn came(slot: u32) -> bool {
    let (Some(workload), Some(root)) = (active(slot), ROOT.get(0)) else { return false };
    workload.flags & workload_flags::ARRIVING != 0 || is_recent(workload.takeover, jiffies(), root.hz)
}

/// What an entry that is made where a packet leaves keeps of what was settled where it came in.
#[inline(always)]
pub(crate) fn settled(skb: &Skb) -> u8 {
    if skb.is_marked(MARK_SETTLED) { conn_flags::SETTLED } else { 0 }
}

/// Enters a new connection whose first packet is the one at hand. `slots` are the source's and the destination's; `kind`
/// is what the opener is if it is no workload.
#[inline(always)]
pub(crate) fn enter<F: Tables>(
    env: &Env,
    work: &mut Work<F>,
    opening: &Opening,
    slots: [u32; 2],
    kind: OpenerKind,
    flags: u8,
) -> Result<(), DropReason> {
    let packet = &work.packet;
    let [opener, responder] = if opening.from_opener { slots } else { [slots[1], slots[0]] };
    let opener_is_a = if work.source_is_a == opening.from_opener { conn_flags::OPENER_IS_A } else { 0 };
    let settled = if opening.is_settled() { conn_flags::SETTLED } else { 0 };
    let state = State::new(flags | opener_is_a | settled, packet.protocol, &packet.transport);
    let icmp = if packet.protocol == F::ICMP { packet.transport.icmp } else { 0 };
    let account = account(work.payer, opening.from_opener, [opener, responder], &kind);
    let kind = match kind {
        OpenerKind::Translated | OpenerKind::Host => kind,
        _ if opener != NO_SLOT => OpenerKind::Workload,
        _ => OpenerKind::Outside,
    };
    let rules = opening.allowed.rules;
    work.conn = Conn {
        version: CONN_VERSION,
        flags: state.flags,
        tcp: if opening.from_opener { state.tcp } else { tcp_state::MIDSTREAM },
        opener: kind as u8,
        icmp_type: (icmp >> 8) as u8,
        icmp_code: icmp as u8,
        reserved: [0; 2],
        account,
        created: env.now,
        seen: [env.now; 2],
        ends: [end(env, opener, rules[0], false), end(env, responder, rules[1], true)],
        syn_ack: 0,
        // SAFETY: the helper has no preconditions.
        stamp: unsafe { bpf_get_prandom_u32() },
    };
    match conns::open::<F>(&work.key, &work.conn, env.now) {
        conns::OPENED => Ok(()),
        conns::QUOTA => Err(DropReason::Quota),
        _ => Err(DropReason::TableFull),
    }
}

/// Who pays: the workload that opens it; the host where that does; else the workload, or who judges in its place, that it is opened to.
#[inline(always)]
fn account(payer: u32, from_opener: bool, [opener, responder]: [u32; 2], kind: &OpenerKind) -> u32 {
    let flags = active(opener).map_or(0, |opener| opener.flags);
    let is_outside = opener == NO_SLOT || flags & workload_flags::OUTSIDE != 0;
    let is_workload = flags & workload_flags::HOST_ENDPOINT == 0;
    if payer != NO_SLOT {
        account_opened_by(payer)
    } else if !is_outside && (is_workload || !from_opener) {
        // If it is the host's, the host has said nothing yet.
        account_opened_by(opener)
    } else if !is_outside || matches!(kind, OpenerKind::Host) {
        ACCOUNT_HOST
    } else if responder != NO_SLOT {
        account_opened_to(responder)
    } else if opener != NO_SLOT {
        account_opened_by(opener)
    } else {
        ACCOUNT_HOST
    }
}

#[inline(always)]
fn end(env: &Env, slot: u32, rule: u32, ingress: bool) -> ConnEnd {
    match active(slot) {
        Some(workload) => {
            let policy = workload.policy(env.generation);
            let epoch = if ingress { policy.ingress_epoch } else { policy.egress_epoch };
            ConnEnd { slot, incarnation: workload.incarnation, epoch, rule }
        }
        None => ConnEnd { slot: NO_SLOT, incarnation: 0, epoch: 0, rule },
    }
}

/// The responder of the packet's connection, where nobody was one yet: whoever a host endpoint judges in its place.
#[inline(always)]
pub(crate) fn join<F: Tables>(env: &Env, work: &Work<F>, slot: u32, rule: u32) {
    if let (Some(conn), Some(seat)) = (F::conn(&work.key), active(slot)) {
        // SAFETY: the entry stays writable as long as the program runs. The slot comes last: what is read before it is
        // complete is judged again at most.
        unsafe {
            if (*conn).ends[1].slot == NO_SLOT {
                (*conn).ends[1].incarnation = seat.incarnation;
                (*conn).ends[1].epoch = seat.policy(env.generation).ingress_epoch;
                (*conn).ends[1].rule = rule;
                ptr::write_volatile(&raw mut (*conn).ends[1].slot, slot);
            }
        }
    }
}

/// Removes the entry of the packet's connection, which belongs to somebody who has the address no more.
#[inline(always)]
pub(crate) fn forget<F: Tables>(env: &Env, work: &Work<F>) {
    if let Some(conn) = F::conn(&work.key) {
        // SAFETY: the entry stays readable as long as the program runs.
        let (account, flags) = unsafe { ((*conn).account, (*conn).flags) };
        conns::close_early::<F>(&work.key, account, flags, env.now);
    }
}
