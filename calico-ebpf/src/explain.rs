//! What would become of a packet: judged as any other, by the same tables, but nothing is counted, entered or sent.

use calico_ebpf_common::{
    abi::{DropReason, Explained, ExplainedEnd, NO_RULE, NO_SLOT, explained},
    packet::Packet,
};

use crate::{
    forward::TO_STACK,
    from_workload::{host_welcomes, is_encapsulated},
    maps::WORKLOADS,
    policy::{ALLOWED, DENIED, Denial, EGRESS, INGRESS, REJECTED, cali_ask},
    skb::Skb,
    tables::{Located, Tables, active, locate},
    work::{Code, Env, code, take},
};

/// Answers over the head of the frame, and ends with -1; anything else is the reason why there is no answer.
#[inline(always)]
pub(crate) fn explain<F: Tables>(skb: &Skb) -> Code {
    code(try_explain::<F>(skb))
}

#[inline(always)]
fn try_explain<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    let packet = &take::<F>(skb, &env)?.packet;
    let answer = of_packet(&env, packet);
    skb.put(0, answer).ok_or(DropReason::Malformed)?;
    Ok(TO_STACK)
}

/// What becomes of a packet that is the first of its connection, comes from where its source address lives, and goes to
/// where its destination address lives.
#[inline(always)]
fn of_packet<F: Tables>(env: &Env, packet: &Packet<F>) -> Explained {
    let source = locate::<F>(&packet.source, env.generation);
    let destination = locate::<F>(&packet.destination, env.generation);
    let mut answer = Explained { generation: env.generation, reason: explained::PASSES, ends: [ExplainedEnd::NONE; 2] };
    if source.host {
        // Nobody judges what the host sends.
        return answer;
    }
    let [from, to] = packet.transport.rule_ports(packet.protocol);
    let protocol = u32::from(packet.protocol) << 16;
    let sides =
        Sides { opener: source, responder: destination, ports: [protocol | u32::from(from), protocol | u32::from(to)] };
    answer.ends = [end(env, &sides, false), end(env, &sides, true)];
    if let Err(reason) = checked(env, packet, &source, &destination, &answer.ends) {
        answer.reason = reason as u32;
    }
    answer
}

/// What rules look at.
pub(crate) struct Sides {
    pub opener: Located,
    pub responder: Located,
    /// `protocol << 16 | port`, source and destination.
    pub ports: [u32; 2],
}

/// What the rules say at one end: the opener's egress, or the responder's ingress.
#[inline(always)]
pub(crate) fn end(env: &Env, sides: &Sides, ingress: bool) -> ExplainedEnd {
    let (own, peer) = if ingress { (&sides.responder, &sides.opener) } else { (&sides.opener, &sides.responder) };
    let [from, to] = sides.ports;
    // Also a workload whose interface is not there yet has its policy.
    let Some(workload) = WORKLOADS.get(own.slot) else { return ExplainedEnd::NONE };
    let policy = workload.policy(env.generation);
    let table = if ingress { policy.ingress_table } else { policy.egress_table };
    let verdict = cali_ask(table, own.class, peer.class, to, from);
    let explained = if verdict & ALLOWED != 0 {
        explained::ALLOW
    } else if verdict & DENIED != 0 {
        explained::DENY
    } else if verdict & REJECTED != 0 {
        explained::REJECT
    } else {
        return ExplainedEnd { slot: own.slot, rule: NO_RULE, verdict: explained::NO_TABLE };
    };
    ExplainedEnd { slot: own.slot, rule: (verdict >> 32) as u32, verdict: explained }
}

/// In the order in which the programs look.
#[inline(always)]
fn checked<F: Tables>(
    env: &Env,
    packet: &Packet<F>,
    source: &Located,
    destination: &Located,
    ends: &[ExplainedEnd; 2],
) -> Result<(), DropReason> {
    if source.slot != NO_SLOT {
        active(source.slot).ok_or(DropReason::NoWorkload)?;
        if is_encapsulated(packet) {
            return Err(DropReason::Encapsulated);
        }
    }
    if destination.slot != NO_SLOT {
        active(destination.slot).ok_or(DropReason::NoInterface)?;
    }
    allowed(&ends[0], EGRESS)?;
    allowed(&ends[1], INGRESS)?;
    if source.slot != NO_SLOT && destination.slot == NO_SLOT {
        host_welcomes::<F>(env, packet, destination)?;
    }
    Ok(())
}

#[inline(always)]
fn allowed(end: &ExplainedEnd, [denied, rejected]: Denial) -> Result<(), DropReason> {
    match end.verdict {
        explained::DENY => Err(denied),
        explained::REJECT => Err(rejected),
        explained::NO_TABLE => Err(DropReason::NoTable),
        _ => Ok(()),
    }
}
