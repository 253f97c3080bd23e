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
mod fib;
mod flows;
mod forward;
mod fragments;
mod from_uplink;
mod from_workload;
mod local;
mod log;
mod maps;
mod neighbour;
mod nets;
mod opening;
mod policy;
mod refuse;
mod reverse_path;
mod skb;
mod tables;
mod to_uplink;
mod to_workload;
mod translation;
mod untracked;
mod visit;
mod work;
mod xdp;

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_action, xdp_md},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use calico_ebpf_common::{
    abi::{DropReason, MARK_LEFT, MARK_SETTLED, MARKS_ON_THE_WAY, judged, uplink_flags},
    packet::{V4, V6, ether_type},
};

use crate::{
    established::{Hook, again, settle, settle_arrival},
    forward::{DROP, TO_STACK, answer},
    maps::{DROPS, ROOT},
    skb::Skb,
    tables::has_host_endpoints,
    work::{AGAIN, ALLOWED, ANSWERED, Code, DELIVER, FOREIGN, LEAVES, LEFT, MISS, UNDECIDED, dropped, jiffies, reason},
    xdp::Frame,
};

/// Keys of each IP version that one run of `cali_sweep` looks at.
const SWEEP_STEPS: u32 = 64;

type BareStep = extern "C" fn() -> Code;
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
    cali_fu_first4(code) = from_uplink::first::<V4>;
    cali_fu_known6() = from_uplink::established::<V6>;
    cali_fu_first6(code) = from_uplink::first::<V6>;
    cali_tu_known4() = to_uplink::established::<V4>;
    cali_tu_known6() = to_uplink::established::<V6>;
    cali_tu_first4(code) = to_uplink::first::<V4>;
    cali_tu_first6(code) = to_uplink::first::<V6>;
    cali_tu_role() = to_uplink::role;
    cali_tu_denied4(code) = to_uplink::denied::<V4>;
    cali_tu_denied6(code) = to_uplink::denied::<V6>;
    cali_tu_leaves4() = to_uplink::leaves::<V4>;
    cali_tu_leaves6() = to_uplink::leaves::<V6>;
    cali_fw_link6() = from_workload::of_link::<V6>;
    cali_fw_arp() = from_workload::arp;
    cali_deliver4() = forward::deliver::<V4>;
    cali_deliver6() = forward::deliver::<V6>;
    cali_explain4() = explain::explain::<V4>;
    cali_explain6() = explain::explain::<V6>;
    cali_flow4(code) = flows::record::<V4>;
    cali_flow6(code) = flows::record::<V6>;
    cali_refuse4() = refuse::refuse::<V4>;
    cali_refuse6() = refuse::refuse::<V6>;
    cali_tell(code) = tell;
    cali_fu_denied4(code) = translation::at_host_endpoint::<V4>;
    cali_fu_denied6(code) = translation::at_host_endpoint::<V6>;
    cali_fw_denied4(code) = translation::at_workload::<V4>;
    cali_fw_denied6(code) = translation::at_workload::<V6>;
    cali_tw_answer4() = translation::answered::<V4>;
    cali_tw_answer6() = translation::answered::<V6>;
    cali_learn4() = translation::learn::<V4>;
    cali_learn6() = translation::learn::<V6>;
    cali_fu_untag() = from_uplink::untag;
    cali_fu_arp() = neighbour::arp;
    cali_fu_nd6() = neighbour::solicitation;
    cali_fu_raw4() = untracked::received::<V4>;
    cali_fu_raw6() = untracked::received::<V6>;
    cali_tu_raw4() = untracked::sent::<V4>;
    cali_tu_raw6() = untracked::sent::<V6>;
}

/// The same for steps of the XDP program.
macro_rules! xdp_steps {
    ($($name:ident = $function:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(frame: *mut xdp_md) -> Code {
            $function(&Frame::of(frame))
        }
    )*};
}

xdp_steps! {
    cali_xu_arp = neighbour::arp;
    cali_xu_nd6 = neighbour::solicitation;
    cali_xu_raw4 = untracked::arriving::<V4>;
    cali_xu_raw6 = untracked::arriving::<V6>;
}

/// The same for steps that do not look at the packet.
macro_rules! bare_steps {
    ($($name:ident = $function:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name() -> Code {
            $function()
        }
    )*};
}

bare_steps! {
    cali_again4 = again::<V4>;
    cali_again6 = again::<V6>;
    cali_settle4 = settle::<V4>;
    cali_settle6 = settle::<V6>;
    cali_fu_settle4 = settle_arrival::<V4>;
    cali_fu_settle6 = settle_arrival::<V6>;
    cali_fw_host4 = from_workload::to_host::<V4>;
    cali_fw_host6 = from_workload::to_host::<V6>;
}

/// The steps of [`look`] of one program and IP version.
struct Look {
    known: Step,
    settle: BareStep,
    again: BareStep,
}

const FROM_WORKLOAD4: Look = Look { known: cali_fw_known4, settle: cali_settle4, again: cali_again4 };
const FROM_WORKLOAD6: Look = Look { known: cali_fw_known6, settle: cali_settle6, again: cali_again6 };
const TO_WORKLOAD4: Look = Look { known: cali_tw_known4, settle: cali_settle4, again: cali_again4 };
const TO_WORKLOAD6: Look = Look { known: cali_tw_known6, settle: cali_settle6, again: cali_again6 };
const FROM_UPLINK4: Look = Look { known: cali_fu_known4, settle: cali_fu_settle4, again: cali_again4 };
const FROM_UPLINK6: Look = Look { known: cali_fu_known6, settle: cali_fu_settle6, again: cali_again6 };
const TO_UPLINK4: Look = Look { known: cali_tu_known4, settle: cali_settle4, again: cali_again4 };
const TO_UPLINK6: Look = Look { known: cali_tu_known6, settle: cali_settle6, again: cali_again6 };

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
        ether_type::IPV4 => {
            let code = from_workload_ip(&skb, FROM_WORKLOAD4, None, cali_fw_first4, cali_fw_host4, cali_deliver4);
            left(&skb, code, cali_fw_denied4)
        }
        ether_type::IPV6 => {
            let link = Some(cali_fw_link6 as Step);
            let code = from_workload_ip(&skb, FROM_WORKLOAD6, link, cali_fw_first6, cali_fw_host6, cali_deliver6);
            left(&skb, code, cali_fw_denied6)
        }
        ether_type::ARP => cali_fw_arp(skb.raw_context()),
        _ => dropped(DropReason::EtherType),
    };
    if code == UNDECIDED {
        return TO_STACK as i32;
    }
    finish(&ctx, Hook::FromWorkload, code)
}

#[inline(always)]
fn from_workload_ip(
    skb: &Skb,
    steps: Look,
    link: Option<Step>,
    first: FirstStep,
    to_host: BareStep,
    deliver: Step,
) -> Code {
    let code = look(skb, steps);
    if code == LEAVES {
        return to_host();
    }
    if code != MISS && code != FOREIGN {
        return code;
    }
    if let Some(link) = link {
        let code = link(skb.raw_context());
        if code != MISS {
            return code;
        }
    }
    match first(skb.raw_context(), code) {
        DELIVER => deliver(skb.raw_context()),
        TO_STACK if has_host_endpoints() => to_host(),
        code => code,
    }
}

/// What policy denies, once more: [`UNDECIDED`] if it is left to the stack, which may translate it.
#[inline(always)]
fn left(skb: &Skb, code: Code, step: FirstStep) -> Code {
    if reason(code).is_none() {
        return code;
    }
    match step(skb.raw_context(), code) {
        // What is sent there is known to be translated.
        TO_STACK => UNDECIDED,
        UNDECIDED => {
            flows::settled(skb, Hook::FromWorkload, code);
            cali_tell(skb.raw_context(), code);
            UNDECIDED
        }
        code => code,
    }
}

#[classifier]
pub fn cali_to_wl(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if skb.has_passed() {
        return TO_STACK as i32;
    }
    if skb.is_left_to_translation() {
        return finish(&ctx, Hook::ToWorkload, dropped(DropReason::PolicyIngress));
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => {
            let code = to_workload_ip(&skb, TO_WORKLOAD4, cali_tw_answer4, cali_tw_first4);
            leaves(&skb, code, cali_learn4)
        }
        ether_type::IPV6 => {
            let code = to_workload_ip(&skb, TO_WORKLOAD6, cali_tw_answer6, cali_tw_first6);
            leaves(&skb, code, cali_learn6)
        }
        // The host asks, or our own answer goes out.
        ether_type::ARP => TO_STACK,
        _ if to_workload::is_own(&skb) => TO_STACK,
        _ => dropped(DropReason::EtherType),
    };
    finish(&ctx, Hook::ToWorkload, code)
}

#[inline(always)]
fn to_workload_ip(skb: &Skb, steps: Look, answered: Step, first: FirstStep) -> Code {
    let code = look(skb, steps);
    if translation::may_answer(skb, code) && answered(skb.raw_context()) == TO_STACK {
        return TO_STACK;
    }
    if code == MISS || code == FOREIGN {
        first(skb.raw_context(), code)
    } else if reason(code).is_some() && to_workload::is_own(skb) {
        // Policy has cut the connection; it has no say over the host's own packets.
        TO_STACK
    } else {
        code
    }
}

/// What may leave that was left to the stack shows that this translates it: see [`translation::learn`].
#[inline(always)]
fn leaves(skb: &Skb, code: Code, learn: Step) -> Code {
    if code == TO_STACK && skb.is_marked(MARK_LEFT) {
        let _ = learn(skb.raw_context());
    }
    code
}

#[classifier]
pub fn cali_from_up(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if skb.is_answer() {
        return TO_STACK as i32;
    }
    if skb.is_tagged() {
        let code = cali_fu_untag(skb.raw_context());
        if code != MISS {
            return finish(&ctx, Hook::FromUplink, code);
        }
    }
    // Only what this program says of a packet counts.
    skb.unmark(MARKS_ON_THE_WAY);
    let flags = uplink_flags();
    let mut untracked = LEFT;
    if flags != 0 {
        let code = before_all(&skb, flags);
        if code != MISS && code != ALLOWED && code != LEFT {
            return finish(&ctx, Hook::FromUplink, code);
        }
        untracked = code;
        if code == ALLOWED {
            skb.mark(MARK_SETTLED);
        }
    }
    // Frames for others, broadcasts, multicasts: the stack knows what they are. A host endpoint judges those for many.
    if !skb.is_for_host_mac() && !(skb.is_for_many_macs() && untracked != ALLOWED && has_host_endpoints()) {
        return TO_STACK as i32;
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => {
            let code = from_uplink_ip(&skb, untracked, FROM_UPLINK4, cali_fu_first4, cali_deliver4);
            denied(&skb, code, cali_fu_denied4)
        }
        ether_type::IPV6 => {
            let code = from_uplink_ip(&skb, untracked, FROM_UPLINK6, cali_fu_first6, cali_deliver6);
            denied(&skb, code, cali_fu_denied6)
        }
        _ => TO_STACK,
    };
    finish(&ctx, Hook::FromUplink, code)
}

/// What only hosts have that are told so: see [`mod@uplink_flags`].
#[inline(always)]
fn uplink_flags() -> u32 {
    match ROOT.get(0) {
        // SAFETY: a valid reference. Volatile: the loader changes it.
        Some(root) => unsafe { ptr::read_volatile(&raw const root.uplink_flags) },
        None => 0,
    }
}

/// What comes before connections and their policy, on the way in by an uplink: answering for workloads, untracked policy.
#[inline(always)]
fn before_all(skb: &Skb, flags: u32) -> Code {
    if skb.is_for_foreign_mac() {
        return MISS;
    }
    let frame = skb.raw_context();
    let ether_type = skb.ether_type();
    if flags & uplink_flags::ANSWERS != 0 {
        let code = match ether_type {
            ether_type::ARP => cali_fu_arp(frame),
            ether_type::IPV6 => cali_fu_nd6(frame),
            _ => MISS,
        };
        if code == ANSWERED {
            return answer(skb);
        }
    }
    if flags & uplink_flags::UNTRACKED == 0 {
        return MISS;
    }
    match ether_type {
        ether_type::IPV4 => cali_fu_raw4(frame),
        ether_type::IPV6 => cali_fu_raw6(frame),
        _ => MISS,
    }
}

#[inline(always)]
fn from_uplink_ip(skb: &Skb, untracked: Code, steps: Look, first: FirstStep, deliver: Step) -> Code {
    let code = look(skb, steps);
    if code != MISS && code != FOREIGN {
        return code;
    }
    match first(skb.raw_context(), untracked) {
        DELIVER if from_uplink::delivers(skb) => deliver(skb.raw_context()),
        DELIVER => TO_STACK,
        code => code,
    }
}

/// What is to be dropped, once more: see the modules.
#[inline(always)]
fn denied(skb: &Skb, code: Code, step: FirstStep) -> Code {
    if reason(code).is_some() && has_host_endpoints() { step(skb.raw_context(), code) } else { code }
}

#[classifier]
pub fn cali_to_up(ctx: TcContext) -> i32 {
    let skb = Skb::new(&ctx);
    if skb.has_passed() || skb.is_of_vlan() {
        return TO_STACK as i32;
    }
    if skb.is_left_to_translation() {
        return finish(&ctx, Hook::ToUplink, dropped(DropReason::PolicyIngress));
    }
    if cali_tu_role(skb.raw_context()) == TO_STACK {
        return TO_STACK as i32;
    }
    if to_workload::is_own(&skb) {
        // The host's own is not ours to judge, but for untracked policy and host endpoints.
        if uplink_flags() & uplink_flags::UNTRACKED != 0 {
            let code = match skb.ether_type() {
                ether_type::IPV4 => cali_tu_raw4(skb.raw_context()),
                ether_type::IPV6 => cali_tu_raw6(skb.raw_context()),
                _ => LEFT,
            };
            if reason(code).is_some() {
                return finish(&ctx, Hook::ToUplink, code);
            }
            if code == ALLOWED {
                return TO_STACK as i32;
            }
        }
        if !has_host_endpoints() {
            return TO_STACK as i32;
        }
    }
    let code = match skb.ether_type() {
        ether_type::IPV4 => {
            let code = to_uplink_ip(&skb, TO_UPLINK4, cali_tu_leaves4, cali_tu_first4);
            let code = leaves(&skb, code, cali_learn4);
            denied(&skb, code, cali_tu_denied4)
        }
        ether_type::IPV6 => {
            let code = to_uplink_ip(&skb, TO_UPLINK6, cali_tu_leaves6, cali_tu_first6);
            let code = leaves(&skb, code, cali_learn6);
            denied(&skb, code, cali_tu_denied6)
        }
        _ => TO_STACK,
    };
    finish(&ctx, Hook::ToUplink, code)
}

#[inline(always)]
fn to_uplink_ip(skb: &Skb, steps: Look, leaves: Step, first: FirstStep) -> Code {
    match look(skb, steps) {
        LEAVES => leaves(skb.raw_context()),
        code if code == MISS || code == FOREIGN => first(skb.raw_context(), code),
        code => code,
    }
}

#[xdp(frags)]
pub fn cali_xdp_up(ctx: XdpContext) -> u32 {
    arriving(&Frame::of(ctx.ctx))
}

/// The same for kernels that know no frames in several buffers.
#[xdp]
pub fn cali_xdp_up1(ctx: XdpContext) -> u32 {
    arriving(&Frame::of(ctx.ctx))
}

/// What an uplink receives, before it is a packet of the kernel's: untracked policy, and answering for workloads. What
/// cannot be told here is for the TC program, which does all of it alone where this one is not attached.
#[inline(always)]
fn arriving(frame: &Frame) -> u32 {
    let context = frame.raw_context();
    let ether_type = frame.ether_type();
    if uplink_flags() & uplink_flags::ANSWERS != 0 {
        let code = match ether_type {
            ether_type::ARP => cali_xu_arp(context),
            ether_type::IPV6 => cali_xu_nd6(context),
            _ => MISS,
        };
        if code == ANSWERED {
            return xdp_action::XDP_TX;
        }
    }
    let code = match ether_type {
        ether_type::IPV4 => cali_xu_raw4(context),
        ether_type::IPV6 => cali_xu_raw6(context),
        _ => MISS,
    };
    if let Some(reason) = reason(code) {
        count(DROPS.get_ptr_mut(reason));
        return xdp_action::XDP_DROP;
    }
    match code {
        ALLOWED => untracked::leave_word(frame, judged::ALLOWED),
        LEFT => untracked::leave_word(frame, judged::LEFT),
        _ => {}
    }
    xdp_action::XDP_PASS
}

/// Looks for a connection; a second time, if the entry had to be judged again.
#[inline(always)]
fn look(skb: &Skb, Look { known, settle, again }: Look) -> Code {
    let code = known(skb.raw_context());
    if code != AGAIN {
        return code;
    }
    if skb.is_marked(MARK_SETTLED) && settle() == MISS {
        return MISS;
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
    let skb = Skb::new(ctx);
    flows::settled(&skb, hook, code);
    let Some(reason) = reason(code) else { return code as i32 };
    cali_tell(skb.raw_context(), code);
    refuse::settle(&skb, hook, reason) as i32
}

/// Counts what is dropped, and says so to whoever listens. What a message takes on the stack is not the program's then, which has
/// many calls beneath it.
#[inline(always)]
fn tell(skb: &Skb, code: Code) -> Code {
    if let Some(reason) = reason(code) {
        count(DROPS.get_ptr_mut(reason));
        debug!(skb, "interface {}, from {}: dropped, reason {}", skb.ifindex(), skb.ingress_ifindex(), reason);
    }
    code
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
