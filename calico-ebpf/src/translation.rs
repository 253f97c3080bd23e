//! What policy denies by the address it was sent to, where the host's stack translates destinations: policy is about what a packet is
//! behind that, as in Calico. So the stack is asked first, drops what it does not translate, and what it does the program where the
//! packet leaves judges.

use core::ptr;

use aya_ebpf::{btf_maps::PerCpuArray, helpers::generated::bpf_get_prandom_u32, macros::btf_map};
use calico_ebpf_common::{
    abi::{
        DropReason, Event, MARK_REPLY, MARK_SETTLED, NO_SLOT, OpenerKind, PRIORITY_DENIED, PRIORITY_REJECTED,
        ServiceKey, Workload, conn_flags,
    },
    packet::{Kind, Packet},
};

use crate::{
    count,
    forward::TO_STACK,
    maps::{EVENTS, LEAVES, SERVICES},
    opening::{self, Opening},
    skb::Skb,
    tables::{Tables, active, locate, of_interface, translates},
    to_workload::is_own,
    work::{Code, Env, MISS, UNDECIDED, Work, code, reason, work},
};

/// What a workload may leave to the stack in a second, and at once, that is not known to be translated: the stack's connection tracking
/// has room for so many, and a flood of what is denied is to cost no more.
const RATE: u32 = 100;
const BURST: u32 = 100;

/// How long an address is known to be translated behind the last connection that was opened there.
const KNOWN_SECONDS: u32 = 300;

/// The last packet that was left on this processor, until it leaves.
#[repr(C)]
struct Left {
    /// Of its connection, by the address that it was sent to.
    key: [u64; 5],
    service: ServiceKey,
    /// Where it came in; 0: there is none.
    ifindex: u32,
    /// What it is known by: its hash is this, which nobody could foresee.
    hash: u32,
    source_is_a: bool,
    reserved: [u8; 7],
}

#[btf_map(name = "cali_left")]
static LEFT: PerCpuArray<Left, 1> = PerCpuArray::new();

/// What becomes of a packet that is to be dropped where it comes in by a host endpoint, given by its code.
#[inline(always)]
pub(crate) fn at_host_endpoint<F: Tables>(skb: &Skb, code: Code) -> Code {
    let (Some(priority), Some(work)) = (priority(code), work::<F>()) else { return code };
    let Ok(env) = Env::resume(skb, work) else { return code };
    let is_for_workload = locate::<F>(&work.packet.destination, env.generation).slot != NO_SLOT;
    if skb.is_marked(MARK_SETTLED) && !is_for_workload {
        // Untracked policy allows what an old entry would have denied.
        return TO_STACK;
    }
    if is_for_workload || !may_be_translated(skb, &env, work) {
        return code;
    }
    leave(skb, priority);
    TO_STACK
}

/// The same of what a workload sends: [`UNDECIDED`] where nothing is known to be translated that it sends there. Then it counts as
/// dropped, as which it most likely ends.
#[inline(always)]
pub(crate) fn at_workload<F: Tables>(skb: &Skb, code: Code) -> Code {
    let (Some(priority), Some(work)) = (priority(code), work::<F>()) else { return code };
    let Ok(env) = Env::resume(skb, work) else { return code };
    let is_for_workload = locate::<F>(&work.packet.destination, env.generation).slot != NO_SLOT;
    if is_for_workload || !may_be_translated(skb, &env, work) {
        return code;
    }
    let Ok((slot, _)) = of_interface(env.ifindex) else { return code };
    let key = service(&work.packet, slot);
    // SAFETY: the value is read at once.
    let since = unsafe { SERVICES.get(&key) }.copied();
    let is_known = since.is_some_and(|since| env.now.wrapping_sub(since) < KNOWN_SECONDS * env.root.hz);
    if !is_known && !is_granted(&env, slot) {
        return code;
    }
    leave(skb, priority);
    if let Some(left) = LEFT.get_ptr_mut(0) {
        // SAFETY: a value of a per-processor map, which only this processor writes, and programs do not interrupt each other; it has
        // room for the keys of both IP versions.
        unsafe {
            const { assert!(size_of::<F::Key>() <= 40 && align_of::<F::Key>() <= 8) };
            copy((&raw const work.key).cast(), (&raw mut (*left).key).cast(), size_of::<F::Key>() / 8);
            copy((&raw const key).cast(), (&raw mut (*left).service).cast(), size_of::<ServiceKey>() / 8);
            (*left).source_is_a = work.source_is_a;
            (*left).hash = bpf_get_prandom_u32();
            (*left).ifindex = env.ifindex;
            skb.set_hash((*left).hash);
        }
    }
    if is_known { TO_STACK } else { UNDECIDED }
}

/// Copies so many words, one by one: old verifiers do not follow the copies of the compiler's.
///
/// # Safety
/// Both must be aligned and as long.
#[inline(always)]
unsafe fn copy(from: *const u64, to: *mut u64, words: usize) {
    for at in 0..words {
        // SAFETY: as the caller promises.
        unsafe { ptr::write_volatile(to.add(at), ptr::read_volatile(from.add(at))) };
    }
}

/// What belongs to a connection that is known to be translated, of a workload that policy denies the address that it opened it to.
#[inline(always)]
pub(crate) fn leave_again(skb: &Skb) -> Result<(), DropReason> {
    if !skb.is_for_host_mac() {
        return Err(DropReason::PolicyEgress);
    }
    if let Some(left) = LEFT.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { (*left).ifindex = 0 };
    }
    skb.leave_to_translation(PRIORITY_DENIED);
    Ok(())
}

/// Whether the workload may leave one more.
#[inline(always)]
fn is_granted(env: &Env, slot: u32) -> bool {
    let Some(allowance) = LEAVES.get_ptr_mut(slot) else { return false };
    // SAFETY: a valid value. Processors may take the same token: it is a rough limit.
    unsafe { (*allowance).take(env.now, env.root.hz, RATE, BURST) }
}

#[inline(always)]
fn leave(skb: &Skb, priority: u32) {
    count(EVENTS.get_ptr_mut(Event::LeftToTranslation as u32));
    skb.leave_to_translation(priority);
}

/// How the stack is told of what policy denies, and of what belongs to no connection, by the addresses that it came with; nothing of
/// what is dropped for another reason.
#[inline(always)]
fn priority(code: Code) -> Option<u32> {
    const DENIED: u64 = set(&[
        DropReason::PolicyIngress,
        DropReason::PolicyEgress,
        DropReason::EndpointToHost,
        DropReason::TcpInvalid,
        DropReason::IcmpUnrelated,
    ]);
    const REJECTED: u64 = set(&[DropReason::RejectedIngress, DropReason::RejectedEgress]);
    let reason = 1_u64 << (reason(code)? & 63);
    if reason & DENIED != 0 {
        Some(PRIORITY_DENIED)
    } else if reason & REJECTED != 0 {
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

/// Whether the stack may make a difference to it.
#[inline(always)]
fn may_be_translated<F: Tables>(skb: &Skb, env: &Env, work: &Work<F>) -> bool {
    !work.denied_for_good && skb.is_for_host_mac() && translates(env)
}

/// Where the packet is sent to.
#[inline(always)]
fn service<F: Tables>(packet: &Packet<F>, slot: u32) -> ServiceKey {
    // Of ICMP it is the identifier of one connection.
    let port = if packet.protocol == F::ICMP { 0 } else { packet.transport.destination_port };
    let address = F::wide(&packet.destination);
    ServiceKey { address, slot, port: port.to_be_bytes(), protocol: packet.protocol, reserved: 0 }
}

/// A packet that was left to the stack leaves translated, and policy lets it: from now on what is sent to where it was sent to is known
/// to be translated, and the connection has an entry by that address, which says so and lets its answers pass.
#[inline(always)]
pub(crate) fn learn<F: Tables>(skb: &Skb) -> Code {
    code(try_learn::<F>(skb))
}

#[inline(always)]
fn try_learn<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let (slot, _) = of_interface(skb.ingress_ifindex())?;
    let left = LEFT.get_ptr_mut(0).ok_or(DropReason::NoTable)?;
    // SAFETY: as above.
    unsafe {
        if (*left).ifindex != skb.ingress_ifindex() || (*left).hash != skb.hash() {
            return Ok(MISS);
        }
        (*left).ifindex = 0;
        let service = &(*left).service;
        // Only counters and the limit depend on it.
        let _ = SERVICES.insert(service, &env.now, 0);
        copy((&raw const (*left).key).cast(), (&raw mut work.key).cast(), size_of::<F::Key>() / 8);
        work.source_is_a = (*left).source_is_a;
    }
    if matches!(work.packet.kind, Kind::Flow) && !turn(&env, work, slot) {
        opening::forget(&env, work);
        // Without an entry the connection's packets are judged one by one, and its answers are dropped.
        let _ = opening::enter(
            &env,
            work,
            &Opening::TRANSLATED,
            [slot, NO_SLOT],
            OpenerKind::Translated,
            conn_flags::VIA_STACK,
        );
    }
    Ok(MISS)
}

/// Turns the entry of a connection that the workload has opened to outside into one by an address that the stack translates. `false` if
/// there is none.
#[inline(always)]
fn turn<F: Tables>(env: &Env, work: &Work<F>, slot: u32) -> bool {
    let (Some(conn), Some(workload)) = (F::conn(&work.key), active(slot)) else { return false };
    // SAFETY: the entry stays readable and writable as long as the program runs.
    unsafe {
        let other = (*conn).ends[1].slot;
        let is_seat = active(other).is_some_and(Workload::is_seat);
        if (*conn).ends[0].slot != slot || other != NO_SLOT && !is_seat {
            return false;
        }
        (*conn).ends[1].slot = NO_SLOT;
        (*conn).flags = (*conn).flags & !conn_flags::PROBING | conn_flags::VIA_STACK;
        (*conn).ends[0].epoch = workload.policy(env.generation).egress_epoch;
        (*conn).opener = OpenerKind::Translated as u8;
    }
    true
}

/// Whether what a workload receives may be an answer in a connection whose destination the stack has translated, of which policy has come
/// to deny the address that it was opened to.
#[inline(always)]
pub(crate) fn may_answer(skb: &Skb, code: Code) -> bool {
    const DENIED: u64 = set(&[DropReason::PolicyEgress, DropReason::RejectedEgress]);
    reason(code).is_some_and(|reason| 1_u64 << (reason & 63) & DENIED != 0) && skb.is_marked(MARK_REPLY) && !is_own(skb)
}

/// Such an answer: from now on the connection is judged by its other entry alone. [`MISS`] if it is none.
#[inline(always)]
pub(crate) fn answered<F: Tables>(skb: &Skb) -> Code {
    code(try_answered::<F>(skb))
}

#[inline(always)]
fn try_answered<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let env = Env::resume(skb, work)?;
    let (slot, _) = of_interface(env.ifindex)?;
    let may_be = !work.denied_for_good && translates(&env) && matches!(work.packet.kind, Kind::Flow);
    Ok(if may_be && turn(&env, work, slot) { TO_STACK } else { MISS })
}
