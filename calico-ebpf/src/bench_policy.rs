//! What the benchmarks of policy need in the kernel: the tables of a live data path, asked about random subjects.
//!
//! The maps of the data path are shared by their pins. What drawing a subject costs is measured by itself.
#![no_std]
#![no_main]

#[expect(dead_code, reason = "maps that are not asked here")]
mod maps;
mod nets;
mod visit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::xdp_action,
    btf_maps::{Array, ProgramArray},
    helpers::{bpf_get_prandom_u32, generated::bpf_xdp_adjust_meta},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};

use calico_ebpf_common::{
    abi::{Block, NodeRef},
    judge::{self, Arena, Subject, Verdict, Visit},
};

use crate::{
    maps::{ADDRESSES4, ROOT, RULE_HITS, RULES},
    nets::cali_class4,
    visit::{single_rules, visit},
};

/// Subjects to draw from; a power of two.
const SUBJECTS: u32 = 1 << 16;

/// Own class; the peer's address, in host byte order; protocol and destination port, protocol and source port as the
/// tables have them.
#[btf_map]
static BENCH_SUBJECTS: Array<[u32; 4], { SUBJECTS as usize }> = Array::new();
/// The table to ask, and how many subjects there are, less one: a power of two, less one.
#[btf_map]
static BENCH_ASK: Array<[u32; 2], 1> = Array::new();

/// What the first packet of a connection starts with, up to the ports.
#[btf_map]
static BENCH_FRAME: Array<[u8; FRAME], 1> = Array::new();
/// The program that gets it.
#[btf_map]
static BENCH_PROGRAM: ProgramArray<1> = ProgramArray::new();

/// The XDP program that gets it.
#[btf_map]
static BENCH_XDP: ProgramArray<1> = ProgramArray::new();

/// Connections that were opened in turn.
#[btf_map]
static BENCH_TURN: Array<u32, 1> = Array::new();

/// Bytes of Ethernet, IPv4 and TCP headers.
const FRAME: usize = 54;

/// The arena, judged by as the data path does it.
struct Blocks;

impl Arena for Blocks {
    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        RULES.get(index)
    }

    #[inline(always)]
    fn single_rules(&self, fields: [NodeRef; 4], table: u32) -> u64 {
        single_rules(fields, table)
    }

    #[inline(always)]
    fn visit(&self, fields: [NodeRef; 4], singles: u64, table: u32, first: u32) -> Visit {
        visit(fields, singles, table, first)
    }
}

/// Judges as `cali_judge` does: 1 if the rule allows, which is counted.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bench_decide(table: u32, own_class: u32, peer_class: u32, to: u32, from: u32) -> u32 {
    let subject = Subject {
        own_class,
        peer_class,
        protocol: (to >> 16) as u8,
        source_port: from as u16,
        destination_port: to as u16,
        behind_dnat: false,
    };
    let Some(decision) = judge::judge(&Blocks, table, &subject) else { return 2 };
    if let Some(counter) = RULE_HITS.get_ptr_mut(decision.counter) {
        // SAFETY: a value of a per-processor map, which only this processor writes.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
    u32::from(decision.verdict == Verdict::Allow)
}

/// Table, and a subject.
#[inline(always)]
fn draw() -> Option<(u32, &'static [u32; 4])> {
    let [table, mask] = *BENCH_ASK.get(0)?;
    // SAFETY: a helper without pointers.
    let random = unsafe { bpf_get_prandom_u32() };
    Some((table, BENCH_SUBJECTS.get(random & mask & (SUBJECTS - 1))?))
}

/// The class of the peer, as for a packet.
#[inline(always)]
fn class(address: u32) -> u32 {
    let Some(root) = ROOT.get(0) else { return 0 };
    // SAFETY: read within this run of the program, which the kernel's grace period covers.
    match unsafe { ADDRESSES4.get(&address.to_be_bytes()) } {
        Some(entry) => entry.class(root.generation),
        None => cali_class4(root.settings(root.generation).nets4, address),
    }
}

/// A random subject and port: a connection that is new in every run but a few in millions.
#[inline(always)]
fn any() -> Option<(&'static [u32; 4], u16)> {
    let (_, subject) = draw()?;
    // SAFETY: a helper without pointers.
    Some((subject, unsafe { bpf_get_prandom_u32() } as u16))
}

/// One subject after the other: the connections of the last time again.
#[inline(always)]
fn next() -> Option<(&'static [u32; 4], u16)> {
    let turn = BENCH_TURN.get_ptr_mut(0)?;
    // SAFETY: the value is in the map; one processor runs this.
    let number = unsafe {
        *turn = (*turn).wrapping_add(1);
        *turn
    };
    Some((BENCH_SUBJECTS.get(number & (SUBJECTS - 1))?, number as u16))
}

/// Makes the packet the first one of a connection that the subject opens from the port.
#[inline(always)]
fn open((start, end): (usize, usize), from: Option<(&[u32; 4], u16)>) -> Option<()> {
    let (subject, port) = from?;
    if start + FRAME > end {
        return None;
    }
    // SAFETY: the packet is at least that long.
    unsafe {
        *(start as *mut [u8; FRAME]) = *BENCH_FRAME.get(0)?;
        *((start + 26) as *mut [u8; 4]) = subject[1].to_be_bytes();
        *((start + 34) as *mut [u8; 2]) = port.to_be_bytes();
        *((start + 36) as *mut [u8; 2]) = (subject[2] as u16).to_be_bytes();
    }
    Some(())
}

/// Hands the packet to the data path.
#[inline(always)]
fn hand_over(ctx: &TcContext) {
    // SAFETY: the context is that of this program.
    unsafe { BENCH_PROGRAM.tail_call(ctx, 0) };
}

/// Only makes a packet of a new connection.
#[classifier]
fn bench_opened(ctx: TcContext) -> i32 {
    open((ctx.data(), ctx.data_end()), any()).map_or(-1, |()| 7)
}

/// Makes it, and hands it to the data path.
#[classifier]
fn bench_open(ctx: TcContext) -> i32 {
    if open((ctx.data(), ctx.data_end()), any()).is_some() {
        hand_over(&ctx);
    }
    -1
}

/// Only makes a packet of one of the connections that are opened each time.
#[classifier]
fn bench_reopened(ctx: TcContext) -> i32 {
    open((ctx.data(), ctx.data_end()), next()).map_or(-1, |()| 7)
}

/// Makes it, and hands it to the data path.
#[classifier]
fn bench_reopen(ctx: TcContext) -> i32 {
    if open((ctx.data(), ctx.data_end()), next()).is_some() {
        hand_over(&ctx);
    }
    -1
}

/// Makes such a packet before it is one of the kernel's.
#[inline(always)]
fn arrive(ctx: &XdpContext) -> Option<()> {
    // What the program of the last time has left in front would be left again.
    // SAFETY: the context is that of this program. Where nothing is there, nothing happens.
    unsafe { bpf_xdp_adjust_meta(ctx.as_ptr().cast(), 4) };
    open((ctx.data(), ctx.data_end()), any())
}

/// Only makes it.
#[xdp(frags)]
fn bench_arrived(ctx: XdpContext) -> u32 {
    arrive(&ctx).map_or(xdp_action::XDP_ABORTED, |()| xdp_action::XDP_PASS)
}

/// Makes it, and hands it to the data path.
#[xdp(frags)]
fn bench_arrive(ctx: XdpContext) -> u32 {
    if arrive(&ctx).is_some() {
        // SAFETY: the context is that of this program.
        unsafe { BENCH_XDP.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// Only draws.
#[classifier]
fn bench_draw(_ctx: TcContext) -> i32 {
    match draw() {
        Some((table, subject)) => (table ^ subject[0] ^ subject[1] ^ subject[2] ^ subject[3]) as i32 & 1,
        None => -1,
    }
}

/// Draws, and looks for the peer's class.
#[classifier]
fn bench_class(_ctx: TcContext) -> i32 {
    match draw() {
        Some((_, subject)) => class(subject[1]) as i32,
        None => -1,
    }
}

/// Draws, and judges; the peer's class is in place of its address.
#[classifier]
fn bench_judge(_ctx: TcContext) -> i32 {
    match draw() {
        Some((table, subject)) => bench_decide(table, subject[0], subject[1], subject[2], subject[3]) as i32,
        None => -1,
    }
}

/// Draws, looks for the peer's class, and judges.
#[classifier]
fn bench_new(_ctx: TcContext) -> i32 {
    match draw() {
        Some((table, subject)) => bench_decide(table, subject[0], class(subject[1]), subject[2], subject[3]) as i32,
        None => -1,
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
