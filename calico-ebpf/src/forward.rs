//! The ways out.

use aya_ebpf::{
    bindings::{BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, bpf_fib_lookup as FibParams, bpf_redir_neigh},
    helpers::generated::{bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer},
};
use calico_ebpf_common::{
    abi::{DropReason, Workload, workload_flags},
    packet::{ETHERNET_BYTES, Packet},
};

use crate::{
    skb::Skb,
    tables::Tables,
    work::{Code, Env},
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
    rewrite_macs(skb, workload.mac, workload.host_mac).ok_or(DropReason::Malformed)?;
    F::decrement_ttl(skb).ok_or(DropReason::Malformed)?;
    // SAFETY: the helpers take plain numbers.
    let action = unsafe {
        if workload.flags & workload_flags::PEER != 0 {
            bpf_redirect_peer(workload.ifindex, 0)
        } else {
            bpf_redirect(workload.ifindex, 0)
        }
    };
    Ok(action)
}

#[inline(always)]
fn rewrite_macs(skb: &Skb, destination: [u8; 6], source: [u8; 6]) -> Option<()> {
    let [d0, d1, d2, d3, d4, d5] = destination;
    let [s0, s1, s2, s3, s4, s5] = source;
    skb.put::<[u8; 12]>(0, [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5])
}

/// To elsewhere: by the host's routes, and if the way is an uplink, past the stack.
#[inline(always)]
pub(crate) fn elsewhere<F: Tables>(env: &Env, skb: &Skb, packet: &Packet<F>) -> Result<Code, DropReason> {
    if needs_stack(skb, packet) {
        return Ok(TO_STACK);
    }
    // SAFETY: plain numbers, for which zero is valid.
    let mut params: FibParams = unsafe { core::mem::zeroed() };
    params.family = F::AF;
    params.l4_protocol = packet.protocol;
    params.sport = packet.transport.source_port.to_be();
    params.dport = packet.transport.destination_port.to_be();
    // With the length the kernel holds the packet against the MTU of the route, too.
    params.__bindgen_anon_1.tot_len = segment_length(skb, packet).min(0xffff) as u16;
    params.ifindex = env.ifindex;
    params.__bindgen_anon_3.ipv6_src = F::fib_address(&packet.source);
    params.__bindgen_anon_4.ipv6_dst = F::fib_address(&packet.destination);
    // SAFETY: the helper is told the size of what it may read and write.
    let found = unsafe { bpf_fib_lookup(skb.context(), &raw mut params, size_of::<FibParams>() as i32, 0) } as u32;
    // A neighbour that is not resolved yet, `bpf_redirect_neigh` resolves as the stack would.
    if found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH {
        return Ok(TO_STACK);
    }
    let out = params.ifindex;
    let mut is_uplink = false;
    for uplink in &env.root.uplinks {
        is_uplink |= *uplink == out;
    }
    if !is_uplink {
        return Ok(TO_STACK);
    }
    F::decrement_ttl(skb).ok_or(DropReason::Malformed)?;
    // SAFETY: plain numbers, for which zero is valid.
    let mut next_hop: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    // An IPv4 route may have an IPv6 next hop: the lookup says so.
    next_hop.nh_family = u32::from(params.family);
    // SAFETY: all members of the union are plain numbers, and the lookup has written this one or left it as set above.
    next_hop.__bindgen_anon_1.ipv6_nh = unsafe { params.__bindgen_anon_4.ipv6_dst };
    // SAFETY: the helper is told the size of what it may read.
    let action = unsafe { bpf_redirect_neigh(out, &raw mut next_hop, size_of::<bpf_redir_neigh>() as i32, 0) };
    Ok(action)
}

/// Back out of the interface that the packet came in by.
#[inline(always)]
pub(crate) fn answer(skb: &Skb) -> Code {
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(skb.ifindex(), 0) }
}
