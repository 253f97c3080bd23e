//! What comes in and goes out by an uplink.

use calico_ebpf_common::{
    abi::{DropReason, NO_SLOT, OpenerKind, account_opened_by, account_opened_to, conn_flags},
    packet::{Cursor as _, EthernetHeader, Kind, Packet, V4, V6, ether_type},
};

use crate::{
    established::{Env, Found, Opening, find, open, related},
    forward::{TO_STACK, to_workload},
    policy::judge_ends,
    skb::Skb,
    tables::{Tables, active, locate},
    takeover,
};

/// What comes in.
#[inline(always)]
pub(crate) fn from(skb: &Skb, env: &Env) -> Result<i32, DropReason> {
    // Frames for others, broadcasts, multicasts: the stack knows what they are.
    if !skb.is_for_host_mac() || skb.is_tagged() {
        return Ok(TO_STACK);
    }
    skb.pull_headers();
    let Some(ethernet) = skb.near::<EthernetHeader>(0) else { return Ok(TO_STACK) };
    match ethernet.ether_type {
        ether_type::IPV4 => from_ip::<V4>(skb, env),
        ether_type::IPV6 => from_ip::<V6>(skb, env),
        _ => Ok(TO_STACK),
    }
}

#[inline(always)]
fn from_ip<F: Tables>(skb: &Skb, env: &Env) -> Result<i32, DropReason> {
    // What cannot be parsed and is for a workload, its own interface's program drops.
    let Ok(packet) = F::parse(skb, skb.length()) else { return Ok(TO_STACK) };
    if matches!(packet.kind, Kind::Flow) {
        let (key, source_is_a) = packet.key();
        if let Found::Hit(hit) = find::<F>(env, &packet, &key, source_is_a)? {
            return match hit.destination {
                Some(destination) if hit.flags & conn_flags::VIA_STACK == 0 => to_workload(skb, &packet, destination),
                _ => Ok(TO_STACK),
            };
        }
    }
    let source = locate::<F>(&packet.source, env.generation);
    if source.slot != NO_SLOT || source.host {
        return Err(DropReason::SpoofedLocal);
    }
    let destination = locate::<F>(&packet.destination, env.generation);
    if destination.slot == NO_SLOT || matches!(packet.kind, Kind::LaterFragment) {
        return Ok(TO_STACK);
    }
    let workload = active(destination.slot).ok_or(DropReason::NoInterface)?;
    if matches!(packet.kind, Kind::IcmpError)
        && let Some(conn) = related::<F>(env, &packet, F::quoted(skb, packet.transport_at))
        && conn.to == destination.slot
    {
        return if conn.via_stack { Ok(TO_STACK) } else { to_workload(skb, &packet, workload) };
    }
    let ports = packet.transport.rule_ports(packet.protocol);
    let mut opening = Opening {
        kind: OpenerKind::Outside,
        account: account_opened_to(destination.slot),
        flags: 0,
        slots: [NO_SLOT, destination.slot],
        workloads: [None, Some(workload)],
        rules: [0; 2],
        from_opener: true,
    };
    let classes = [source.class, destination.class];
    match judge_ends(env.generation, [None, Some(workload)], classes, packet.protocol, ports) {
        Ok(rules) => opening.rules = rules,
        Err(reason) => {
            if !takeover::applies(env, &packet) {
                return Err(reason);
            }
            opening.rules = judge_ends(
                env.generation,
                [Some(workload), None],
                [destination.class, source.class],
                packet.protocol,
                [ports[1], ports[0]],
            )
            .map_err(|_| reason)?;
            opening.kind = OpenerKind::Workload;
            opening.account = account_opened_by(destination.slot);
            opening.slots = [destination.slot, NO_SLOT];
            opening.workloads = [Some(workload), None];
            opening.from_opener = false;
        }
    }
    if matches!(packet.kind, Kind::Flow) {
        open::<F>(env, &packet, &opening)?;
    }
    to_workload(skb, &packet, workload)
}

/// What goes out.
#[inline(always)]
pub(crate) fn to(skb: &Skb, env: &Env) -> Result<i32, DropReason> {
    // The host's own is not ours to judge.
    if skb.ingress_ifindex() == 0 || skb.is_tagged() {
        return Ok(TO_STACK);
    }
    skb.pull_headers();
    let Some(ethernet) = skb.near::<EthernetHeader>(0) else { return Ok(TO_STACK) };
    match ethernet.ether_type {
        ether_type::IPV4 => to_ip::<V4>(skb, env),
        ether_type::IPV6 => to_ip::<V6>(skb, env),
        _ => Ok(TO_STACK),
    }
}

#[inline(always)]
fn to_ip<F: Tables>(skb: &Skb, env: &Env) -> Result<i32, DropReason> {
    let Ok(packet) = F::parse(skb, skb.length()) else { return Ok(TO_STACK) };
    if !matches!(packet.kind, Kind::Flow) {
        // Judged where it came from, and it has no entry.
        return Ok(TO_STACK);
    }
    let (key, source_is_a) = packet.key();
    match find::<F>(env, &packet, &key, source_is_a)? {
        Found::Hit(hit) => {
            if hit.flags & conn_flags::PROBING != 0 && hit.source.is_some() {
                // It leaves as it came: nobody translates it, and the next one may go past the stack.
                let flags = hit.flags & !(conn_flags::PROBING | conn_flags::VIA_STACK);
                // SAFETY: the entry stays writable as long as the program runs.
                unsafe { (*hit.conn).flags = flags };
            }
            return Ok(TO_STACK);
        }
        Found::Miss | Found::Foreign => {}
    }
    leaves::<F>(env, &packet)
}

/// A local workload's packet that has another look than when the workload sent it: the stack has changed its
/// destination.
#[inline(always)]
fn leaves<F: Tables>(env: &Env, packet: &Packet<F>) -> Result<i32, DropReason> {
    let source = locate::<F>(&packet.source, env.generation);
    if source.slot == NO_SLOT {
        return Ok(TO_STACK);
    }
    let workload = active(source.slot).ok_or(DropReason::NoWorkload)?;
    let destination = locate::<F>(&packet.destination, env.generation);
    let ports = packet.transport.rule_ports(packet.protocol);
    let classes = [source.class, destination.class];
    let rules = judge_ends(env.generation, [Some(workload), None], classes, packet.protocol, ports)?;
    let opening = Opening {
        kind: OpenerKind::Workload,
        account: account_opened_by(source.slot),
        flags: conn_flags::VIA_STACK,
        slots: [source.slot, NO_SLOT],
        workloads: [Some(workload), None],
        rules,
        from_opener: true,
    };
    open::<F>(env, packet, &opening)?;
    Ok(TO_STACK)
}
