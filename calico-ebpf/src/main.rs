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
mod from_workload;
mod maps;
mod policy;
mod skb;
mod tables;
mod takeover;
mod to_workload;
mod uplink;

use core::ptr;

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::classifier, programs::TcContext};
use aya_log_ebpf::debug;
use calico_ebpf_common::{
    abi::DropReason,
    packet::{V4, V6},
};

use crate::{
    established::{Env, Hook},
    forward::DROP,
    maps::{DROPS, ROOT},
    skb::Skb,
};

/// Keys of each IP version that one run of `cali_sweep` looks at.
const SWEEP_STEPS: u32 = 64;

#[classifier]
pub fn cali_from_wl(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromWorkload, from_workload::run)
}

#[classifier]
pub fn cali_to_wl(ctx: TcContext) -> i32 {
    run(&ctx, Hook::ToWorkload, to_workload::run)
}

#[classifier]
pub fn cali_from_up(ctx: TcContext) -> i32 {
    run(&ctx, Hook::FromUplink, uplink::from)
}

#[classifier]
pub fn cali_to_up(ctx: TcContext) -> i32 {
    run(&ctx, Hook::ToUplink, uplink::to)
}

#[classifier]
pub fn cali_drop(_ctx: TcContext) -> i32 {
    count(DROPS.get_ptr_mut(DropReason::NoWorkload as u32));
    DROP
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

#[inline(always)]
fn run(ctx: &TcContext, hook: Hook, program: impl FnOnce(&Skb, &Env) -> Result<i32, DropReason>) -> i32 {
    let Some(root) = ROOT.get(0) else { return DROP };
    let skb = Skb::new(ctx);
    // SAFETY: a valid reference. Volatile: the loader changes it, and one packet is judged by one generation.
    let generation = unsafe { ptr::read_volatile(&raw const root.generation) };
    let env = Env { root, generation, now: jiffies(), ifindex: skb.ifindex(), hook };
    match program(&skb, &env) {
        Ok(action) => action,
        Err(reason) => {
            count(DROPS.get_ptr_mut(reason as u32));
            debug!(ctx, "hook {}, interface {}: dropped, reason {}", hook as u32, env.ifindex, reason as u32);
            DROP
        }
    }
}

/// The lower half of the clock that connections are stamped with.
#[inline(always)]
fn jiffies() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() as u32 }
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
