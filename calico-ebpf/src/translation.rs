//! What policy denies by the address it was sent to, where the host's stack translates destinations: policy is about what a packet is
//! behind that, as in Calico. So the stack is asked first, drops what it does not translate, and what it does the program where the
//! packet leaves judges.

use calico_ebpf_common::{
    abi::{
        DropReason, Event, MARK_REPLY, NO_SLOT, OpenerKind, PRIORITY_DENIED, PRIORITY_REJECTED, ServiceKey, conn_flags,
    },
    packet::{Kind, Packet},
};

use crate::{
    count,
    forward::TO_STACK,
    maps::{EVENTS, SERVICES},
    opening::{self, Opening},
    skb::Skb,
    tables::{Tables, locate, of_interface, translates},
    to_workload::is_own,
    work::{Code, Env, FOREIGN, MISS, UNDECIDED, code, reason, work},
};

/// What becomes of a packet that is to be dropped where it comes in by a host endpoint, given by its code.
#[inline(always)]
pub(crate) fn at_host_endpoint<F: Tables>(skb: &Skb, code: Code) -> Code {
    if leave::<F>(skb, code) { TO_STACK } else { code }
}

/// The same of what a workload sends: [`UNDECIDED`] where nothing is known to be translated that is sent there. Then it counts as
/// dropped, as which it most likely ends.
#[inline(always)]
pub(crate) fn at_workload<F: Tables>(skb: &Skb, code: Code) -> Code {
    if !leave::<F>(skb, code) {
        return code;
    }
    match work::<F>() {
        Some(work) if is_service(&work.packet) => TO_STACK,
        _ => UNDECIDED,
    }
}

/// Leaves the packet to the stack if that may translate it, and only policy by the address that it was sent to is against it.
#[inline(always)]
fn leave<F: Tables>(skb: &Skb, code: Code) -> bool {
    match priority(reason(code)) {
        Some(priority) if may_be_translated::<F>(skb) => {
            count(EVENTS.get_ptr_mut(Event::LeftToTranslation as u32));
            skb.leave_to_translation(priority);
            true
        }
        _ => false,
    }
}

/// How the stack is told of what policy denies, and of what belongs to no connection by the addresses that it came with.
#[inline(always)]
fn priority(reason: Option<u32>) -> Option<u32> {
    const DENIED: [DropReason; 5] = [
        DropReason::PolicyIngress,
        DropReason::PolicyEgress,
        DropReason::EndpointToHost,
        DropReason::TcpInvalid,
        DropReason::IcmpUnrelated,
    ];
    const REJECTED: [DropReason; 2] = [DropReason::RejectedIngress, DropReason::RejectedEgress];
    let reason = 1_u64 << (reason? & 63);
    if reason & set(&DENIED) != 0 {
        Some(PRIORITY_DENIED)
    } else if reason & set(&REJECTED) != 0 {
        Some(PRIORITY_REJECTED)
    } else {
        None
    }
}

/// A bit for each.
const fn set(reasons: &[DropReason]) -> u64 {
    let mut bits = 0;
    let mut at = 0;
    while at < reasons.len() {
        bits |= 1 << reasons[at] as u32;
        at += 1;
    }
    bits
}

#[inline(always)]
fn may_be_translated<F: Tables>(skb: &Skb) -> bool {
    let Some(work) = work::<F>() else { return false };
    let Ok(env) = Env::resume(skb, work) else { return false };
    !work.denied_for_good
        && skb.is_for_host_mac()
        && translates(&env)
        && locate::<F>(&work.packet.destination, env.generation).slot == NO_SLOT
}

#[inline(always)]
fn is_service<F: Tables>(packet: &Packet<F>) -> bool {
    let key = service(packet, &packet.destination, packet.transport.destination_port);
    // SAFETY: only whether there is one matters.
    unsafe { SERVICES.get(&key) }.is_some()
}

#[inline(always)]
fn service<F: Tables>(packet: &Packet<F>, address: &F::Addr, port: u16) -> ServiceKey {
    // Of ICMP it is the identifier of one connection.
    let port = if packet.protocol == F::ICMP { 0 } else { port };
    ServiceKey { address: F::wide(address), port: port.to_be_bytes(), protocol: packet.protocol, reserved: [0; 5] }
}

/// Whether what a workload receives may belong to a connection whose destination the stack has translated, and which no entry lets
/// pass by the address that it was opened to.
#[inline(always)]
pub(crate) fn may_answer(skb: &Skb, code: Code) -> bool {
    const DENIED: u64 = set(&[DropReason::PolicyEgress, DropReason::RejectedEgress]);
    let is_denied = reason(code).is_some_and(|reason| 1_u64 << (reason & 63) & DENIED != 0);
    (code == MISS || code == FOREIGN || is_denied) && skb.is_marked(MARK_REPLY) && !is_own(skb)
}

/// What a workload receives in a connection whose destination the stack has translated, and which has no entry by the address that
/// it was opened to: with one, what it sends need not be judged by that each time. [`MISS`] if it is to be judged as any other.
#[inline(always)]
pub(crate) fn answered<F: Tables>(skb: &Skb) -> Code {
    code(try_answered::<F>(skb))
}

#[inline(always)]
fn try_answered<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let (slot, _) = of_interface(env.ifindex)?;
    if !translates(&env) {
        return Ok(MISS);
    }
    let packet = &work.packet;
    if matches!(packet.kind, Kind::Flow) {
        let key = service(packet, &packet.source, packet.transport.source_port);
        // Nothing but counters depends on it.
        let _ = SERVICES.insert(&key, &env.now, 0);
        opening::forget(&env, work);
        // Without an entry its packets are judged one by one.
        let slots = [NO_SLOT, slot];
        let _ = opening::enter(&env, work, &Opening::ANSWERED, slots, OpenerKind::Translated, conn_flags::VIA_STACK);
    }
    Ok(TO_STACK)
}
