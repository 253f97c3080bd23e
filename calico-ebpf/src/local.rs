//! What is the host's own by its routes, besides its addresses.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NOT_FWDED},
    helpers::generated::bpf_fib_lookup,
};
use calico_ebpf_common::packet::{Packet, V4};

use crate::{
    forward::Fib,
    skb::Skb,
    tables::Tables,
    work::{opaque, work},
};

/// 1 if the stack does not forward the packet. Where whole networks are the host's (a route of type `local`, "AnyIP"), it receives
/// it then; that there may be no route at all makes no difference to who is asked: it goes nowhere.
///
/// A function of its own: what it needs of the stack is needed nowhere else.
#[inline(never)]
pub(crate) fn receives<F: Tables>(skb: &Skb) -> u32 {
    let Some(work) = work::<F>() else { return 0 };
    let packet: &Packet<F> = &work.packet;
    let mut fib = Fib {
        family: F::AF,
        protocol: packet.protocol,
        source_port: packet.transport.source_port.to_be(),
        destination_port: packet.transport.destination_port.to_be(),
        length: 0,
        ifindex: skb.ifindex(),
        flow_info: 0,
        source: F::to_words(&packet.source),
        destination: F::to_words(&packet.destination),
        rest: [opaque(0); 2],
    };
    // SAFETY: the helper is told the size of what it may read and write.
    let found = unsafe { bpf_fib_lookup(skb.as_ptr(), (&raw mut fib).cast(), size_of::<Fib>() as i32, 0) } as u32;
    // IPv6 forwards or not as a whole, which the helper does not ask.
    let is_disabled = found == BPF_FIB_LKUP_RET_FWD_DISABLED && F::AF == V4::AF;
    u32::from(found == BPF_FIB_LKUP_RET_NOT_FWDED || is_disabled)
}
