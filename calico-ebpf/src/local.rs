//! What is the host's own by its routes, besides its addresses.

use aya_ebpf::bindings::{BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED};
use calico_ebpf_common::packet::{Packet, V4};

use crate::{fib::Fib, skb::Skb, tables::Tables, work::work};

/// 1 if the stack does not forward the packet. Where whole networks are the host's (a route of type `local`, "AnyIP"), it receives
/// it then; that there may be no route at all makes no difference to who is asked: it goes nowhere.
///
/// A function of its own: what it needs of the stack is needed nowhere else.
#[inline(never)]
pub(crate) fn receives<F: Tables>(skb: &Skb) -> u32 {
    let Some(work) = work::<F>() else { return 0 };
    let packet: &Packet<F> = &work.packet;
    let found = Fib::of(packet, skb.ifindex()).look_up(skb);
    // IPv6 forwards or not as a whole, which the helper does not ask.
    let is_disabled = found == BPF_FIB_LKUP_RET_FWD_DISABLED && F::AF == V4::AF;
    u32::from(found == BPF_FIB_LKUP_RET_NOT_FWDED || is_disabled)
}
