//! The kernel side: the entry points. What they do is one module for each place where a program sits.
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(missing_docs, reason = "entry points")]
#![expect(unreachable_pub, reason = "entry points must be public to be kept")]
#![expect(clippy::not_unsafe_ptr_arg_deref, clippy::needless_pass_by_value, reason = "the form of entry points")]

mod conns;
mod established;
mod explain;
mod flows;
mod forward;
mod fragments;
mod from_uplink;
mod from_workload;
mod log;
mod maps;
mod nets;
mod opening;
mod policy;
mod refuse;
mod skb;
mod tables;
mod to_uplink;
mod to_workload;
mod visit;
mod work;

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use aya_log_ebpf::debug;
use calico_ebpf_common::{
    abi::DropReason,
    packet::{V4, V6, ether_type},
};

use crate::{
    established::{Hook, again},
    forward::{DROP, TO_STACK},
    maps::DROPS,
    skb::Skb,
    work::{AGAIN, Code, FOREIGN, MISS, dropped, jiffies, reason},
};

/// Keys of each IP version that one run of `cali_sweep` looks at.
const SWEEP_STEPS: u32 = 64;

type Step = extern "C" fn(*mut __sk_buff) -> Code;
type FirstStep = extern "C" fn(*mut __sk_buff, Code) -> Code;

/// Makes global functions of steps: the verifier looks at each of them once and by itself, where it would follow every
/// path through all of them together. Before Linux 6.3 nothing else would be small enough for it.
macro_rules! steps {
    ($($name:ident($($code:ident)?) = $function:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(skb: *mut __sk_buff $(, $code: Code)?) -> Code {
            $function(&Skb::of(skb) $(, $code)?)
        }
    )*};
}

steps! {
    cali_fw_known4() = from_workload::established::<V4>;
    cali_fw_first4(code) = from_workload::first::<V4>;
    cali_fw_known6() = from_workload::established::<V6>;
    cali_fw_first6(code) = from_workload::first::<V6>;
    cali_tw_known4() = to_workload::established::<V4>;
    cali_tw_first4(code) = to_workload::first::<V4>;
    cali_tw_known6() = to_workload::established::<V6>;
    cali_tw_first6(code) = to_workload::first::<V6>;
    cali_fu_known4() = from_uplink::established::<V4>;
    cali_fu_first4() = from_uplink::first::<V4>;
    cali_fu_known6() = from_uplink::established::<V6>;
    cali_fu_first6() = from_uplink::first::<V6>;
    cali_tu_known4() = to_uplink::established::<V4>;
    cali_tu_known6() = to_uplink::established::<V6>;
    cali_fw_link6() = from_workload::of_link::<V6>;
    cali_fw_arp() = from_workload::arp;
    cali_explain4() = explain::explain::<V4>;
    cali_explain6() = explain::explain::<V6>;
    cali_flow4(code) = flows::record::<V4>;
    cali_flow6(code) = flows::record::<V6>;
    cali_refuse4() = refuse::refuse::<V4>;
    cali_refuse6() = refuse::refuse::<V6>;
}

/// Like the other steps, but without the packet, which it does not look at.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_again4() -> Code {
    again::<V4>()
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_tu_first4() -> Code {
    to_uplink::first::<V4>()
}

/// Likewise.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_tu_first6() -> Code {
    to_uplink::first::<V6>()
}

/// See [`cali_again4`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_again6() -> Code {
    again::<V6>()
}

#[classifier]
pub fn cali_from_wl(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if skb.is_answer() {
        return TO_STACK as i32;
    }
    if let Err(reason) = from_workload::check_frame(&skb) {
        return finish(&ctx, Hook::FromWorkload, dropped(reason));
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => from_workload_ip(&skb, cali_fw_known4, cali_again4, None, cali_fw_first4),
        ether_type::IPV6 => from_workload_ip(&skb, cali_fw_known6, cali_again6, Some(cali_fw_link6), cali_fw_first6),
        ether_type::ARP => cali_fw_arp(skb.raw_context()),
        _ => dropped(DropReason::EtherType),
    };
    finish(&ctx, Hook::FromWorkload, code)
}

#[inline(always)]
fn from_workload_ip(
    skb: &Skb,
    known: Step,
    again: extern "C" fn() -> Code,
    link: Option<Step>,
    first: FirstStep,
) -> Code {
    let code = look(skb, known, again);
    if code != MISS && code != FOREIGN {
        return code;
    }
    if let Some(link) = link {
        let code = link(skb.raw_context());
        if code != MISS {
            return code;
        }
    }
    first(skb.raw_context(), code)
}

#[classifier]
pub fn cali_to_wl(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if skb.was_answer() {
        return TO_STACK as i32;
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => to_workload_ip(&skb, cali_tw_known4, cali_again4, cali_tw_first4),
        ether_type::IPV6 => to_workload_ip(&skb, cali_tw_known6, cali_again6, cali_tw_first6),
        // The host asks, or our own answer goes out.
        ether_type::ARP => TO_STACK,
        _ if to_workload::is_own(&skb) => TO_STACK,
        _ => dropped(DropReason::EtherType),
    };
    finish(&ctx, Hook::ToWorkload, code)
}

#[inline(always)]
fn to_workload_ip(skb: &Skb, known: Step, again: extern "C" fn() -> Code, first: FirstStep) -> Code {
    let code = look(skb, known, again);
    if code == MISS || code == FOREIGN {
        first(skb.raw_context(), code)
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
    if !skb.is_for_host_mac() || skb.is_tagged() || skb.is_answer() {
        return TO_STACK as i32;
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => from_uplink_ip(&skb, cali_fu_known4, cali_again4, cali_fu_first4),
        ether_type::IPV6 => from_uplink_ip(&skb, cali_fu_known6, cali_again6, cali_fu_first6),
        _ => TO_STACK,
    };
    finish(&ctx, Hook::FromUplink, code)
}

#[inline(always)]
fn from_uplink_ip(skb: &Skb, known: Step, again: extern "C" fn() -> Code, first: Step) -> Code {
    let code = look(skb, known, again);
    if code == MISS || code == FOREIGN { first(skb.raw_context()) } else { code }
}

#[classifier]
pub fn cali_to_up(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    // The host's own is not ours to judge.
    if skb.was_answer() || to_workload::is_own(&skb) || skb.is_tagged() {
        return TO_STACK as i32;
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => to_uplink_ip(&skb, cali_tu_known4, cali_again4, cali_tu_first4),
        ether_type::IPV6 => to_uplink_ip(&skb, cali_tu_known6, cali_again6, cali_tu_first6),
        _ => TO_STACK,
    };
    finish(&ctx, Hook::ToUplink, code)
}

#[inline(always)]
fn to_uplink_ip(skb: &Skb, known: Step, again: extern "C" fn() -> Code, first: extern "C" fn() -> Code) -> Code {
    let code = look(skb, known, again);
    if code == MISS || code == FOREIGN { first() } else { code }
}

/// Looks for a connection; a second time, if the entry had to be judged again.
#[inline(always)]
fn look(skb: &Skb, known: Step, again: extern "C" fn() -> Code) -> Code {
    let code = known(skb.raw_context());
    if code != AGAIN {
        return code;
    }
    let code = again();
    if code != AGAIN {
        return code;
    }
    let code = known(skb.raw_context());
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
    let now = jiffies();
    (conns::turn::<V4>(now, SWEEP_STEPS) + conns::turn::<V6>(now, SWEEP_STEPS)) as i32
}

#[classifier]
pub fn cali_clock(_ctx: TcContext) -> i32 {
    jiffies() as i32
}

/// Writes its answer over the frame; see [`explain`].
#[classifier]
pub fn cali_explain(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    let code = match skb.ether_type() {
        ether_type::IPV4 => cali_explain4(skb.raw_context()),
        ether_type::IPV6 => cali_explain6(skb.raw_context()),
        _ => dropped(DropReason::EtherType),
    };
    match reason(code) {
        Some(reason) => reason as i32,
        None => code as i32,
    }
}

/// The action, with what is dropped counted, and answered where policy says so.
#[inline(always)]
fn finish(ctx: &TcContext, hook: Hook, code: Code) -> i32 {
    flows::settled(&Skb::new(ctx), hook, code);
    let Some(reason) = reason(code) else { return code as i32 };
    count(DROPS.get_ptr_mut(reason));
    let skb = Skb::new(ctx);
    debug!(ctx, "interface {}, from {}: dropped, reason {}", skb.ifindex(), skb.ingress_ifindex(), reason);
    refuse::settle(&skb, hook, reason) as i32
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
