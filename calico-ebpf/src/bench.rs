//! What the benchmarks need in the kernel: a packet generator, bare redirects that are the limit, and a sink that counts.
#![no_std]
#![no_main]

use core::ptr;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, xdp_action},
    btf_maps::{Array, PerCpuArray},
    helpers::generated::{bpf_redirect, bpf_redirect_peer},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Bytes of the frame that the path under test changes: Ethernet and IP headers.
const HEADERS: usize = 54;

/// The headers that every frame starts with.
#[btf_map]
static BENCH_HEADERS: Array<[u8; HEADERS], 1> = Array::new();
/// Packets that reached the sink.
#[btf_map]
static BENCH_SUNK: PerCpuArray<u64, 1> = PerCpuArray::new();
/// Interface index of the host side that `bench_redirect` sends to.
#[btf_map]
static BENCH_TARGET: Array<u32, 1> = Array::new();

/// MAC addresses, to and from, and IPv4 address of the workload that `bench_deliver` sends to.
#[btf_map]
static BENCH_WORKLOAD: Array<[u8; 16], 1> = Array::new();

/// Live frames are recycled without being restored: this makes them new again, and hands them to the stack as received.
#[xdp]
fn bench_generate(ctx: XdpContext) -> u32 {
    generate(&ctx, xdp_action::XDP_PASS)
}

/// The same, but they are sent by the interface.
#[xdp]
fn bench_send(ctx: XdpContext) -> u32 {
    generate(&ctx, xdp_action::XDP_TX)
}

#[inline(always)]
fn generate(ctx: &XdpContext, action: u32) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    let Some(headers) = BENCH_HEADERS.get(0) else { return xdp_action::XDP_DROP };
    if start + HEADERS > end {
        return xdp_action::XDP_DROP;
    }
    // SAFETY: the packet is at least that long.
    unsafe { *(start as *mut [u8; HEADERS]) = *headers };
    action
}

/// The least that delivering to a workload by XDP can cost: no policy, no connection, the TTL as it came.
#[xdp(frags)]
fn bench_deliver(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 34 > end {
        return xdp_action::XDP_PASS;
    }
    let (Some(workload), Some(&target)) = (BENCH_WORKLOAD.get(0), BENCH_TARGET.get(0)) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: the packet is at least that long, and so is the value.
    unsafe {
        let address = ptr::read_unaligned(workload.as_ptr().add(12).cast::<u32>());
        let to = ptr::read_unaligned((start + 30) as *const u32);
        if *((start + 12) as *const [u8; 2]) != [8, 0] || to != address {
            return xdp_action::XDP_PASS;
        }
        ptr::copy_nonoverlapping(workload.as_ptr(), start as *mut u8, 12);
        bpf_redirect(target, 0) as u32
    }
}

/// The least that a packet between two workloads can cost.
#[classifier]
fn bench_redirect(_ctx: TcContext) -> i32 {
    match BENCH_TARGET.get(0) {
        // SAFETY: a helper without pointers.
        Some(&ifindex) => unsafe { bpf_redirect_peer(ifindex, 0) as i32 },
        None => TC_ACT_SHOT,
    }
}

/// The empty program: what a test run itself costs.
#[classifier]
fn bench_empty(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

/// Counts and drops IPv4 UDP of workloads (10.65.0.0/16) and from outside (192.0.0.0/16); neighbour discovery and the rest go on.
#[classifier]
fn bench_sink(ctx: TcContext) -> i32 {
    const NEXT: i32 = -1;
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 34 > end {
        return NEXT;
    }
    // SAFETY: the packet is at least that long.
    let (ether_type, protocol, source) =
        unsafe { (*((start + 12) as *const [u8; 2]), *((start + 23) as *const u8), *((start + 26) as *const [u8; 2])) };
    if ether_type != [8, 0] || protocol != 17 || (source != [10, 65] && source != [192, 0]) {
        return NEXT;
    }
    if let Some(sunk) = BENCH_SUNK.get_ptr_mut(0) {
        // SAFETY: this CPU's own counter; the program is not preempted by itself.
        unsafe { *sunk += 1 };
    }
    TC_ACT_SHOT
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
