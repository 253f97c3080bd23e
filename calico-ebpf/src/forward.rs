//! The ways out.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1},
    helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use calico_ebpf_common::{
    abi::{DropReason, MARK_UNTRANSLATED, Workload, workload_flags},
    packet::{ETHERNET_BYTES, Packet},
};

use crate::{
    fib::Fib,
    skb::Skb,
    tables::{Tables, active},
    work::{Code, Env, code, work},
};

/// The next program in the chain, and behind it the stack: unlike `TC_ACT_OK`, which ends the chain.
pub(crate) const TO_STACK: Code = -1;
/// Drop.
pub(crate) const DROP: Code = 2;

/// The length of the packet, or of the longest segment of a super-packet, without the Ethernet header.
#[inline(always)]
fn segment_length<F: Tables>(skb: &Skb, packet: &Packet<F>) -> u32 {
    let gso_size = skb.gso_size();
    if gso_size == 0 {
        skb.length() - ETHERNET_BYTES as u32
    } else {
        packet.transport_at - ETHERNET_BYTES as u32 + u32::from(packet.transport.header) + gso_size
    }
}

/// Whether the kernel has to look at the packet because forwarding ends here or changes it.
#[inline(always)]
fn needs_stack<F: Tables>(skb: &Skb, packet: &Packet<F>) -> bool {
    packet.slow || packet.ttl <= 1 || !skb.is_for_host_mac()
}

/// To the workload of this host that the function before has found.
#[inline(always)]
pub(crate) fn deliver<F: Tables>(skb: &Skb) -> Code {
    code(try_deliver::<F>(skb))
}

#[inline(always)]
fn try_deliver<F: Tables>(skb: &Skb) -> Result<Code, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    let workload = active(work.slots[1]).ok_or(DropReason::NoInterface)?;
    to_workload(skb, &work.packet, workload)
}

/// To a workload of this host.
#[inline(always)]
pub(crate) fn to_workload<F: Tables>(skb: &Skb, packet: &Packet<F>, workload: &Workload) -> Result<Code, DropReason> {
    if workload.ifindex == 0 {
        return Err(DropReason::NoInterface);
    }
    // Where the MAC address is not known, the stack finds it out.
    if needs_stack(skb, packet) || workload.mac == [0; 6] || segment_length(skb, packet) > workload.mtu {
        return Ok(TO_STACK);
    }
    skb.put(0, workload.macs()).ok_or(DropReason::Malformed)?;
    F::decrement_ttl(skb).ok_or(DropReason::Malformed)?;
    if workload.flags & workload_flags::PEER != 0 {
        // SAFETY: the helper takes plain numbers.
        return Ok(unsafe { bpf_redirect_peer(workload.ifindex, 0) });
    }
    skb.pass();
    // SAFETY: the helper takes plain numbers.
    Ok(unsafe { bpf_redirect(workload.ifindex, 0) })
}

/// To elsewhere, in a connection that nobody translates. What the stack has to forward after all, it must not take for
/// the first packet of a connection to be translated: it has not seen those before.
#[inline(always)]
pub(crate) fn elsewhere<F: Tables>(env: &Env, skb: &Skb, packet: &Packet<F>) -> Result<Code, DropReason> {
    let code = past_stack(env, skb, packet)?;
    if code == TO_STACK {
        skb.mark(MARK_UNTRANSLATED);
    }
    Ok(code)
}

/// By the host's routes, and if the way is an uplink, past the stack.
#[inline(always)]
fn past_stack<F: Tables>(env: &Env, skb: &Skb, packet: &Packet<F>) -> Result<Code, DropReason> {
    if needs_stack(skb, packet) {
        return Ok(TO_STACK);
    }
    let mut fib = Fib::of(packet, env.ifindex);
    fib.length = segment_length(skb, packet).min(0xffff) as u16;
    // All packets of a flow go the way that the stack chose for the first one.
    fib.flow_info = F::flow_info(skb).ok_or(DropReason::Malformed)?;
    let found = fib.look_up(skb);
    // A neighbour that is not resolved yet, `bpf_redirect_neigh` resolves as the stack would.
    if found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH {
        return Ok(TO_STACK);
    }
    let out = fib.ifindex;
    if !env.is_uplink(out) {
        return Ok(TO_STACK);
    }
    F::decrement_ttl(skb).ok_or(DropReason::Malformed)?;
    skb.pass();
    let mut next_hop = bpf_redir_neigh {
        nh_family: u32::from(fib.family),
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: bytemuck::must_cast(fib.destination) },
    };
    // SAFETY: the helper is told the size of what it may read.
    let action = unsafe { bpf_redirect_neigh(out, &raw mut next_hop, size_of::<bpf_redir_neigh>() as i32, 0) };
    Ok(action)
}

/// Back out of the interface that the packet came in by. It may be in a workload's name.
#[inline(always)]
pub(crate) fn answer(skb: &Skb) -> Code {
    skb.pass();
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(skb.ifindex(), 0) }
}
