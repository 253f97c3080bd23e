//! Packets of connections that have an entry.

use core::ptr;

use calico_ebpf_common::{
    abi::{CONN_VERSION, Conn, ConnEnd, DropReason, NO_SLOT, OpenerKind, Root, Workload, conn_flags, tcp_state, workload_flags},
    packet::{Ip, Packet, Quoted, protocol},
    track::{self, State},
};

use crate::{
    conns,
    policy::judge_ends,
    tables::{Tables, active, locate},
};

/// Where a program sits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    FromWorkload,
    ToWorkload,
    FromUplink,
    ToUplink,
}

/// What holds for one run of a program.
#[derive(Clone, Copy)]
pub(crate) struct Env {
    pub root: &'static Root,
    /// Read once: the packet is judged by one generation.
    pub generation: u32,
    /// Jiffies.
    pub now: u32,
    pub ifindex: u32,
    pub hook: Hook,
}

/// The entry of a packet.
pub(crate) enum Found {
    Hit(Hit),
    Miss,
    /// There is one, but its source is not on this interface: somebody forges, or the address has moved.
    Foreign,
}

/// What the packet's entry says.
pub(crate) struct Hit {
    pub flags: u8,
    pub opener: u8,
    pub from_opener: bool,
    /// The local workload that sent the packet.
    pub source: Option<&'static Workload>,
    /// The local workload that it is for.
    pub destination: Option<&'static Workload>,
    pub conn: *mut Conn,
}

/// Looks for the packet's connection and, if the packet may pass by it, brings the entry up to date.
#[inline(always)]
pub(crate) fn find<F: Tables>(
    env: &Env,
    packet: &Packet<F>,
    key: &F::Key,
    source_is_a: bool,
) -> Result<Found, DropReason> {
    let Some(conn_ptr) = F::conn(key) else { return Ok(Found::Miss) };
    // SAFETY: the entry stays readable as long as the program runs; other processors write single fields of it.
    let conn = unsafe { &*conn_ptr };
    if conn.version != CONN_VERSION {
        return Ok(Found::Miss);
    }
    let (flags, opener) = (conn.flags, conn.opener);
    let from_opener = source_is_a == (flags & conn_flags::OPENER_IS_A != 0);

    let (Ok(opener_workload), Ok(responder_workload)) = (at_end(&conn.ends[0]), at_end(&conn.ends[1])) else {
        // A workload has gone, or its slot has another owner.
        conns::close::<F>(key, conn.account, flags);
        return Ok(Found::Miss);
    };
    let (source, destination) =
        if from_opener { (opener_workload, responder_workload) } else { (responder_workload, opener_workload) };
    match env.hook {
        Hook::FromWorkload => {
            if source.is_none_or(|source| source.ifindex != env.ifindex) {
                return Ok(Found::Foreign);
            }
        }
        Hook::ToWorkload => {
            if destination.is_none_or(|destination| destination.ifindex != env.ifindex) {
                return Ok(Found::Foreign);
            }
        }
        Hook::FromUplink => {
            if source.is_some() || from_opener && opener == OpenerKind::Host as u8 {
                return Err(DropReason::SpoofedLocal);
            }
        }
        Hook::ToUplink => {}
    }

    let seen = if from_opener { conn.seen[0] } else { conn.seen[1] };
    if seen != env.now {
        // Only on the first packet in a tick: the entry cannot have expired within one.
        if track::is_expired(conn, packet.protocol, env.now, &env.root.timeouts) {
            conns::close::<F>(key, conn.account, flags);
            return Ok(Found::Miss);
        }
    }
    if packet.protocol == protocol::TCP && track::opens(&packet.transport) && track::is_over(conn.tcp) {
        conns::close::<F>(key, conn.account, flags);
        return Ok(Found::Miss);
    }

    if opener != OpenerKind::Host as u8 {
        let egress_same = opener_workload
            .is_none_or(|workload| workload.policy(env.generation).egress_epoch == conn.ends[0].epoch);
        let ingress_same = responder_workload
            .is_none_or(|workload| workload.policy(env.generation).ingress_epoch == conn.ends[1].epoch);
        if !(egress_same && ingress_same) {
            let workloads = [opener_workload, responder_workload];
            if !again::<F>(env, packet, key, conn_ptr, workloads, from_opener)? {
                return Ok(Found::Miss);
            }
        }
    }

    if seen != env.now {
        let leg = if from_opener { 0 } else { 1 };
        // SAFETY: the entry stays writable as long as the program runs.
        unsafe { ptr::write_volatile(&raw mut (*conn_ptr).seen[leg], env.now) };
    }
    let before = State::of(conn);
    let after = before.after(packet.protocol, &packet.transport, from_opener);
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
    Ok(Found::Hit(Hit { flags, opener, from_opener, source, destination, conn: conn_ptr }))
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

/// The rules may have changed: judges the connection again, as its opener. `false`: there is none any more, an address
/// has another owner now.
#[inline(always)]
fn again<F: Tables>(
    env: &Env,
    packet: &Packet<F>,
    key: &F::Key,
    conn_ptr: *mut Conn,
    workloads: [Option<&'static Workload>; 2],
    from_opener: bool,
) -> Result<bool, DropReason> {
    // SAFETY: the entry stays readable as long as the program runs.
    let conn = unsafe { &*conn_ptr };
    let (opener, responder) =
        if from_opener { (&packet.source, &packet.destination) } else { (&packet.destination, &packet.source) };
    let (opener_at, responder_at) =
        (locate::<F>(opener, env.generation), locate::<F>(responder, env.generation));
    let (opener_slot, responder_slot) = (conn.ends[0].slot, conn.ends[1].slot);
    let spoofs = workloads[0].is_some_and(|workload| workload.flags & workload_flags::SPOOF != 0)
        && opener_at.slot != opener_slot
        && F::may_spoof(opener_slot, opener);
    if opener_at.slot != opener_slot && !spoofs || responder_at.slot != responder_slot {
        conns::close::<F>(key, conn.account, conn.flags);
        return Ok(false);
    }
    let mut ports = packet.transport.rule_ports(packet.protocol);
    if packet.protocol == F::ICMP {
        ports = [0, u16::from(conn.icmp_type) << 8 | u16::from(conn.icmp_code)];
    } else if !from_opener {
        ports = [ports[1], ports[0]];
    }
    match judge_ends(env.generation, workloads, [opener_at.class, responder_at.class], packet.protocol, ports) {
        Ok(rules) => {
            // SAFETY: the entry stays writable as long as the program runs.
            unsafe {
                if let Some(workload) = workloads[0] {
                    (*conn_ptr).ends[0].rule = rules[0];
                    (*conn_ptr).ends[0].epoch = workload.policy(env.generation).egress_epoch;
                }
                if let Some(workload) = workloads[1] {
                    (*conn_ptr).ends[1].rule = rules[1];
                    (*conn_ptr).ends[1].epoch = workload.policy(env.generation).ingress_epoch;
                }
            }
            Ok(true)
        }
        Err(reason) => {
            conns::close::<F>(key, conn.account, conn.flags);
            Err(reason)
        }
    }
}

/// The connection of the packet that an ICMP error quotes.
pub(crate) struct Related {
    pub via_stack: bool,
    /// The end that the error is for: the one that sent what it quotes.
    pub to: u32,
    /// The other end.
    pub from: u32,
}

/// What the ICMP error belongs to, if anything.
#[inline(always)]
pub(crate) fn related<F: Tables>(env: &Env, packet: &Packet<F>, quoted: Option<Quoted<F>>) -> Option<Related> {
    let quoted = quoted?;
    if quoted.source != packet.destination {
        return None;
    }
    let (key, source_is_a) = <F as Ip>::key(&quoted.source, &quoted.destination, quoted.protocol, quoted.ports);
    // SAFETY: the entry stays readable as long as the program runs.
    let conn = unsafe { &*F::conn(&key)? };
    if conn.version != CONN_VERSION
        || track::is_expired(conn, quoted.protocol, env.now, &env.root.timeouts)
        || at_end(&conn.ends[0]).is_err()
        || at_end(&conn.ends[1]).is_err()
    {
        return None;
    }
    let (opener, responder) = (conn.ends[0].slot, conn.ends[1].slot);
    let quoted_opener = source_is_a == (conn.flags & conn_flags::OPENER_IS_A != 0);
    let (to, from) = if quoted_opener { (opener, responder) } else { (responder, opener) };
    Some(Related { via_stack: conn.flags & conn_flags::VIA_STACK != 0, to, from })
}

/// Who opens a connection.
pub(crate) struct Opening {
    pub kind: OpenerKind,
    pub account: u32,
    /// Of [`conn_flags`], besides `OPENER_IS_A`.
    pub flags: u8,
    /// The opener's slot and the responder's, or `NO_SLOT`.
    pub slots: [u32; 2],
    pub workloads: [Option<&'static Workload>; 2],
    pub rules: [u32; 2],
    /// The packet at hand is the opener's.
    pub from_opener: bool,
}

/// Enters a new connection whose first packet is `packet`.
#[inline(always)]
pub(crate) fn open<F: Tables>(env: &Env, packet: &Packet<F>, opening: &Opening) -> Result<(), DropReason> {
    let (key, source_is_a) = packet.key();
    let opener_is_a = if source_is_a == opening.from_opener { conn_flags::OPENER_IS_A } else { 0 };
    let state = State::new(opening.flags | opener_is_a, packet.protocol, &packet.transport);
    let icmp = if packet.protocol == F::ICMP { packet.transport.icmp } else { 0 };
    let end = |workload: Option<&Workload>, slot: u32, rule: u32, ingress: bool| match workload {
        Some(workload) => {
            let policy = workload.policy(env.generation);
            let epoch = if ingress { policy.ingress_epoch } else { policy.egress_epoch };
            ConnEnd { slot, incarnation: workload.incarnation, epoch, rule }
        }
        None => ConnEnd { slot: NO_SLOT, incarnation: 0, epoch: 0, rule },
    };
    let conn = Conn {
        version: CONN_VERSION,
        flags: state.flags,
        tcp: if opening.from_opener { state.tcp } else { tcp_state::MIDSTREAM },
        opener: opening.kind as u8,
        icmp_type: (icmp >> 8) as u8,
        icmp_code: icmp as u8,
        reserved: [0; 2],
        account: opening.account,
        created: env.now,
        seen: [env.now; 2],
        ends: [
            end(opening.workloads[0], opening.slots[0], opening.rules[0], false),
            end(opening.workloads[1], opening.slots[1], opening.rules[1], true),
        ],
        syn_ack: 0,
        reserved2: 0,
    };
    conns::open::<F>(env.root, env.now, &key, &conn)
}
