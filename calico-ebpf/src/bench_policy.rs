//! What the benchmarks of policy need in the kernel: the tables of a live data path, asked about random subjects.
//!
//! The maps of the data path are shared by their pins. What drawing a subject costs is measured by itself.
#![no_std]
#![no_main]

#[expect(dead_code, reason = "maps that are not asked here")]
mod maps;
mod nets;

use aya_ebpf::{
    btf_maps::Array,
    helpers::bpf_get_prandom_u32,
    macros::{btf_map, classifier},
    programs::TcContext,
};

use calico_ebpf_common::{
    abi::Block,
    judge::{self, Arena, Decision, Subject, Visit},
};

use crate::{
    maps::{ADDRESSES4, ROOT, RULE_HITS, RULES},
    nets::cali_class4,
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

/// The arena, judged by as the data path does it.
struct Blocks;

impl Arena for Blocks {
    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        RULES.get(index)
    }

    #[inline(always)]
    fn visit(&self, vectors: [u32; 4], entries: u32, first: u32) -> Visit {
        let [own, peer, to, from] = vectors.map(u64::from);
        let visited = bench_visit(own << 32 | peer, to << 32 | from, u64::from(entries) << 32 | u64::from(first));
        match visited >> 60 {
            1 | 3 => Visit::Decided(Decision {
                allow: visited >> 60 == 3,
                // No rule of the benchmarks rejects.
                reject: false,
                counter: visited as u32,
                rule: (visited >> 32) as u32 & 0xffff,
            }),
            4 => Visit::Next(visited as u32),
            _ => Visit::Nothing,
        }
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bench_visit(own_peer: u64, to_from: u64, entries_first: u64) -> u64 {
    let vectors = [(own_peer >> 32) as u32, own_peer as u32, (to_from >> 32) as u32, to_from as u32];
    match judge::visit(&Blocks, vectors, (entries_first >> 32) as u32, entries_first as u32) {
        Visit::Decided(Decision { allow, counter, rule, .. }) => {
            let kind = if allow { 3 } else { 1 };
            kind << 60 | u64::from(rule & 0xffff) << 32 | u64::from(counter)
        }
        Visit::Next(rule) => 4 << 60 | u64::from(rule),
        // No rule of the benchmarks is a `Log` rule.
        Visit::Logged { .. } | Visit::Nothing => 0,
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
    };
    let Some(decision) = judge::judge(&Blocks, table, &subject) else { return 2 };
    if let Some(counter) = RULE_HITS.get_ptr_mut(decision.counter) {
        // SAFETY: a value of a per-processor map, which only this processor writes.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
    u32::from(decision.allow)
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
