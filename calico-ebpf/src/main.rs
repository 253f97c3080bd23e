//! The kernel side: the entry points. What they do is one module for each place where a program sits.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(missing_docs, reason = "entry points")]
#![expect(unreachable_pub, reason = "entry points must be public to be kept")]

mod conns;
mod established;
mod forward;
mod fragments;
mod from_uplink;
mod from_workload;
mod maps;
mod opening;
mod policy;
mod skb;
mod tables;
mod to_uplink;
mod to_workload;
mod work;

use aya_ebpf::{macros::classifier, programs::TcContext};
use aya_log_ebpf::debug;
use calico_ebpf_common::{
    abi::DropReason,
    packet::{V4, V6, ether_type},
};

use crate::{
    established::again,
    forward::{DROP, TO_STACK},
    maps::{DROPS, ROOT},
    skb::Skb,
    tables::Tables,
    work::{AGAIN, Code, FOREIGN, MISS, dropped, jiffies, reason},
};

/// Keys of each IP version that one run of `cali_sweep` looks at.
const SWEEP_STEPS: u32 = 64;

#[classifier]
pub fn cali_from_wl(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if let Err(reason) = from_workload::check_frame(&skb) {
        return finish(&ctx, dropped(reason));
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => from_workload_ip::<V4>(&skb),
        ether_type::IPV6 => from_workload_ip::<V6>(&skb),
        ether_type::ARP => from_workload::arp(&skb),
        _ => dropped(DropReason::EtherType),
    };
    finish(&ctx, code)
}

#[inline(always)]
fn from_workload_ip<F: from_workload::Sender>(skb: &Skb) -> Code {
    let code = look(skb, from_workload::established::<F>, again::<F>);
    if code != MISS && code != FOREIGN {
        return code;
    }
    if F::HAS_LINK {
        let code = from_workload::of_link::<F>(skb);
        if code != MISS {
            return code;
        }
    }
    from_workload::first::<F>(skb, code)
}

#[classifier]
pub fn cali_to_wl(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let code = match skb.ether_type() {
        ether_type::IPV4 => to_workload_ip::<V4>(&skb),
        ether_type::IPV6 => to_workload_ip::<V6>(&skb),
        // The host asks, or our own answer goes out.
        ether_type::ARP => TO_STACK,
        _ if to_workload::is_own(&skb) => TO_STACK,
        _ => dropped(DropReason::EtherType),
    };
    finish(&ctx, code)
}

#[inline(always)]
fn to_workload_ip<F: to_workload::Receiver>(skb: &Skb) -> Code {
    let code = look(skb, to_workload::established::<F>, again::<F>);
    if code == MISS || code == FOREIGN {
        to_workload::first::<F>(skb, code)
    } else if reason(code).is_some() && to_workload::is_own(skb) {
        // Policy has cut the connection; it has no say over the host's own packets.
        TO_STACK
    } else {
        code
    }
}

#[classifier]
pub fn cali_from_up(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    // Frames for others, broadcasts, multicasts: the stack knows what they are.
    if !skb.is_for_host_mac() || skb.is_tagged() {
        return TO_STACK as i32;
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => from_uplink_ip::<V4>(&skb),
        ether_type::IPV6 => from_uplink_ip::<V6>(&skb),
        _ => TO_STACK,
    };
    finish(&ctx, code)
}

#[inline(always)]
fn from_uplink_ip<F: Tables>(skb: &Skb) -> Code {
    let code = look(skb, from_uplink::established::<F>, again::<F>);
    if code == MISS || code == FOREIGN { from_uplink::first::<F>(skb) } else { code }
}

#[classifier]
pub fn cali_to_up(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    // The host's own is not ours to judge.
    if to_workload::is_own(&skb) || skb.is_tagged() {
        return TO_STACK as i32;
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => to_uplink_ip::<V4>(&skb),
        ether_type::IPV6 => to_uplink_ip::<V6>(&skb),
        _ => TO_STACK,
    };
    finish(&ctx, code)
}

#[inline(always)]
fn to_uplink_ip<F: Tables>(skb: &Skb) -> Code {
    let code = look(skb, to_uplink::established::<F>, again::<F>);
    if code == MISS || code == FOREIGN { to_uplink::first::<F>(skb) } else { code }
}

/// Looks for a connection; a second time, if the entry had to be judged again.
#[inline(always)]
fn look(skb: &Skb, established: fn(&Skb) -> Code, again: fn(&Skb) -> Code) -> Code {
    let code = established(skb);
    if code != AGAIN {
        return code;
    }
    let code = again(skb);
    if code != AGAIN {
        return code;
    }
    let code = established(skb);
    // The rules have changed once more in between: the next packet will see.
    if code == AGAIN { dropped(DropReason::NoTable) } else { code }
}

#[classifier]
pub fn cali_drop(_ctx: TcContext) -> i32 {
    count(DROPS.get_ptr_mut(DropReason::NoWorkload as u32));
    DROP as i32
}

/// Returns how many connections it closed.
#[classifier]
pub fn cali_sweep(_ctx: TcContext) -> i32 {
    let Some(root) = ROOT.get(0) else { return 0 };
    let now = jiffies();
    (conns::turn::<V4>(root, now, SWEEP_STEPS) + conns::turn::<V6>(root, now, SWEEP_STEPS)) as i32
}

#[classifier]
pub fn cali_clock(_ctx: TcContext) -> i32 {
    jiffies() as i32
}

/// The action, with what is dropped counted.
#[inline(always)]
fn finish(ctx: &TcContext, code: Code) -> i32 {
    let Some(reason) = reason(code) else { return code as i32 };
    count(DROPS.get_ptr_mut(reason));
    let skb = Skb::new(ctx);
    debug!(ctx, "interface {}, from {}: dropped, reason {}", skb.ifindex(), skb.ingress_ifindex(), reason);
    DROP as i32
}

/// Adds one to a counter of this processor.
#[inline(always)]
fn count(counter: Option<*mut u64>) {
    if let Some(counter) = counter {
        // SAFETY: a value of a per-processor map, which only this processor writes.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
