//! Kernel side.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "entry points")]

mod maps;

use aya_ebpf::{helpers::generated::bpf_jiffies64, macros::classifier, programs::TcContext};

const TC_ACT_SHOT: i32 = 2;

#[classifier]
pub fn cali_from_wl(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[classifier]
pub fn cali_to_wl(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[classifier]
pub fn cali_from_up(_ctx: TcContext) -> i32 {
    -1
}

#[classifier]
pub fn cali_to_up(_ctx: TcContext) -> i32 {
    -1
}

#[classifier]
pub fn cali_drop(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[classifier]
pub fn cali_sweep(_ctx: TcContext) -> i32 {
    0
}

#[classifier]
pub fn cali_clock(_ctx: TcContext) -> i32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() as i32 }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
