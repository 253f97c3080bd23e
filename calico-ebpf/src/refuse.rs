//! Answers to packets that policy rejects, made of the packets themselves and sent to where they came from.
//!
//! A packet that came in by a device is answered out of it. One that the stack is about to send by a device is answered
//! as if the answer came in by that device, so that the stack takes back what it has translated. Such an answer belongs to
//! no connection and makes none: all programs know it by its mark and let it pass.

use aya_ebpf::{
    bindings::BPF_F_INGRESS,
    btf_maps::PerCpuArray,
    helpers::generated::{bpf_csum_diff, bpf_redirect},
    macros::btf_map,
};
use calico_ebpf_common::{
    abi::{Allowance, DropReason},
    packet::{
        Cursor as _, ETHERNET_BYTES, EthernetHeader, IPV4_BYTES,
        refusal::{Refusal, Refuses, refusal},
    },
};

use crate::{
    cali_refuse4, cali_refuse6,
    established::Hook,
    forward::DROP,
    maps::ROOT,
    skb::Skb,
    tables::Tables,
    work::{Code, jiffies, opaque, work},
};

/// ICMP errors that one processor sends in a second, and at once. Resets are not limited, nor are the kernel's.
const RATE: u32 = 100;
const BURST: u32 = 100;
/// Words that are summed up at once.
const CHUNK: u32 = 64;
const CHUNKS: u32 = 5;

#[btf_map(name = "cali_icmp_room")]
static ALLOWANCE: PerCpuArray<Allowance, 1> = PerCpuArray::new();

/// What an ICMP error quotes; with room for one chunk more, as the verifier sees it.
#[btf_map(name = "cali_quote")]
static QUOTE: PerCpuArray<[u32; (CHUNK * (CHUNKS + 1)) as usize], 1> = PerCpuArray::new();

/// What becomes of a packet that is dropped for this reason: an answer, if policy rejects it.
#[inline(always)]
pub(crate) fn settle(skb: &Skb, hook: Hook, reason: u32) -> Code {
    if reason != DropReason::RejectedEgress as u32 && reason != DropReason::RejectedIngress as u32 {
        return DROP;
    }
    let answered = if skb.is_ipv6() { cali_refuse6(skb.raw_context()) } else { cali_refuse4(skb.raw_context()) };
    if answered == 0 {
        return DROP;
    }
    skb.mark_as_answer();
    let flags = if matches!(hook, Hook::ToWorkload | Hook::ToUplink) { u64::from(BPF_F_INGRESS) } else { 0 };
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(skb.ifindex(), flags) }
}

/// Makes the packet at hand its own answer. 1 if there is one.
#[inline(always)]
pub(crate) fn refuse<F: Tables + Refuses>(skb: &Skb) -> Code {
    Code::from(try_refuse::<F>(skb).is_some())
}

#[inline(always)]
fn try_refuse<F: Tables + Refuses>(skb: &Skb) -> Option<()> {
    let packet = &work::<F>()?.packet;
    let kind = refusal(packet);
    if matches!(kind, Refusal::Silence) || skb.is_for_many_macs() {
        return None;
    }
    let bytes = F::bytes(skb, skb.length())?;
    let ethernet: EthernetHeader = *skb.near(0)?;
    if matches!(kind, Refusal::Reset) {
        return skb.renew(size_of::<F::Reset>() as u32)?.put(0, F::reset(&ethernet, packet, bytes));
    }
    if !is_granted() {
        return None;
    }
    let quoted = u64::from(if bytes < F::QUOTED { bytes } else { F::QUOTED });
    let sum = quote::<F>(skb, quoted)?;
    let answer = F::prohibited(&ethernet, packet, &packet.destination, quoted as u32, sum);
    let head = size_of::<F::Prohibited>() as u32;
    let quote = QUOTE.get_ptr_mut(0)?;
    skb.renew(head + quoted as u32)?.store(head, quote.cast(), within::<F>(quoted)?)?;
    skb.put(0, answer)
}

/// Whether this processor may send one more error.
#[inline(always)]
fn is_granted() -> bool {
    let (Some(root), Some(allowance)) = (ROOT.get(0), ALLOWANCE.get_ptr_mut(0)) else { return false };
    // SAFETY: a value of a per-processor map, which only this processor writes, and programs do not interrupt each other.
    unsafe { (*allowance).take(jiffies(), root.hz, RATE, BURST) }
}

/// The number of bytes of an IP packet, compared in a way that the verifier can follow: one limit after the other.
#[inline(always)]
fn within<F: Refuses>(bytes: u64) -> Option<u64> {
    let bytes = opaque(bytes);
    if bytes > u64::from(F::QUOTED) {
        return None;
    }
    let bytes = opaque(bytes);
    if bytes < IPV4_BYTES as u64 { None } else { Some(bytes) }
}

/// Copies so many bytes from the IP header on to [`QUOTE`], and sums them up.
#[inline(always)]
fn quote<F: Refuses>(skb: &Skb, bytes: u64) -> Option<u32> {
    let quote = QUOTE.get_ptr_mut(0)?;
    // SAFETY: a value of a per-processor map, which only this processor writes, and programs do not interrupt each other.
    let words = unsafe { &mut *quote };
    // What is behind the last byte counts as zero.
    *words.get_mut(within::<F>(bytes)? as usize / 4)? = 0;
    skb.load(ETHERNET_BYTES as u32, quote.cast(), within::<F>(bytes)?)?;
    let rounded = bytes.next_multiple_of(4);
    let mut sum = 0;
    for chunk in 0..CHUNKS {
        let at = u64::from(chunk * CHUNK);
        if at * 4 >= rounded {
            break;
        }
        let rest = rounded - at * 4;
        let most = u64::from(CHUNK * 4);
        // The mask changes nothing, but is what the verifier of 5.10 understands.
        let size = opaque(if rest < most { rest } else { most }) & (2 * most - 1);
        let from = words.get_mut(at as usize)?;
        // SAFETY: `size` bytes from there on are within the value.
        sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from, size as u32, sum) } as u32;
    }
    Some(sum)
}
