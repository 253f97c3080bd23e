//! Whether there is a way back to where a packet came from.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE,
};
use calico_ebpf_common::{
    abi::{DropReason, settings_flags},
    packet::Packet,
};

use crate::{
    fib::Fib,
    skb::Skb,
    tables::Tables,
    work::{Env, work},
};

/// For what is of no known connection: the packet's source must be reachable, and with `BACK_STRICT` by the interface that
/// the packet came in by.
#[inline(always)]
pub(crate) fn check<F: Tables>(env: &Env, skb: &Skb) -> Result<(), DropReason> {
    let flags = env.root.settings(env.generation).flags;
    if flags & (settings_flags::BACK_STRICT | settings_flags::BACK_LOOSE) != 0
        && is_lost::<F>(skb, flags & settings_flags::BACK_STRICT) != 0
    {
        return Err(DropReason::ReversePath);
    }
    Ok(())
}

/// A function of its own: what it needs of the stack is needed nowhere else.
#[inline(never)]
fn is_lost<F: Tables>(skb: &Skb, strict: u32) -> u32 {
    let Some(work) = work::<F>() else { return 0 };
    let packet: &Packet<F> = &work.packet;
    let ifindex = skb.ifindex();
    let mut fib = Fib::of_answer(packet, ifindex);
    match fib.look_up(skb) {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => u32::from(strict != 0 && fib.ifindex != ifindex),
        BPF_FIB_LKUP_RET_BLACKHOLE
        | BPF_FIB_LKUP_RET_UNREACHABLE
        | BPF_FIB_LKUP_RET_PROHIBIT
        | BPF_FIB_LKUP_RET_NOT_FWDED => 1,
        // It cannot be told: forwarding is off there, or the way is one that the helper does not know.
        _ => 0,
    }
}
