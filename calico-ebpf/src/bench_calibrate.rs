//! What any table can be made of, each by itself: so that figures of one machine can be held against those of another.
#![no_std]
#![no_main]

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    helpers::bpf_get_prandom_u32,
    macros::{btf_map, classifier},
    programs::TcContext,
};
use calico_ebpf_common::abi::Block;

/// Entries of what lies in the processor's first cache, and of what lies in none.
const FEW: usize = 1 << 10;
const MANY: usize = 1 << 20;
/// 64-bit words of a vector of 10,240 rules.
const WORDS: usize = 160;

/// Keys: a number, and zero.
#[btf_map]
static BENCH_FEW: HashMap<[u64; 2], u64, FEW> = HashMap::new();
#[btf_map]
static BENCH_MANY: HashMap<[u64; 2], u64, MANY> = HashMap::new();
#[btf_map]
static BENCH_BLOCKS: Array<Block, MANY> = Array::new();
/// One vector for each of four fields; they have no rule in common.
#[btf_map]
static BENCH_VECTORS: Array<[u64; WORDS], 4> = Array::new();

#[inline(always)]
fn random() -> u32 {
    // SAFETY: a helper without pointers.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
fn look(value: Option<&u64>) -> i32 {
    value.map_or(-1, |value| *value as i32 & 1)
}

/// What a test run itself costs.
#[classifier]
fn bench_nothing(_ctx: TcContext) -> i32 {
    0
}

/// A random number, and nothing else.
#[classifier]
fn bench_random(_ctx: TcContext) -> i32 {
    random() as i32 & 1
}

/// Looks a random one of a thousand keys up.
#[classifier]
fn bench_few(_ctx: TcContext) -> i32 {
    let key = [u64::from(random()) & (FEW as u64 - 1), 0];
    // SAFETY: nobody writes the map while the program runs.
    look(unsafe { BENCH_FEW.get(&key) })
}

/// Looks a random one of a million keys up.
#[classifier]
fn bench_many(_ctx: TcContext) -> i32 {
    let key = [u64::from(random()) & (MANY as u64 - 1), 0];
    // SAFETY: nobody writes the map while the program runs.
    look(unsafe { BENCH_MANY.get(&key) })
}

/// Reads a random one of a million blocks of 64 bytes.
#[classifier]
fn bench_block(_ctx: TcContext) -> i32 {
    look(BENCH_BLOCKS.get(random() & (MANY as u32 - 1)).map(|block| &block.words[0]))
}

/// Intersects four vectors to the end.
#[classifier]
fn bench_vectors(_ctx: TcContext) -> i32 {
    let (Some(a), Some(b)) = (BENCH_VECTORS.get(0), BENCH_VECTORS.get(1)) else { return -1 };
    let (Some(c), Some(d)) = (BENCH_VECTORS.get(2), BENCH_VECTORS.get(3)) else { return -1 };
    for word in 0..WORDS {
        if a[word] & b[word] & c[word] & d[word] != 0 {
            return -1;
        }
    }
    0
}

/// Calls a function of two numbers.
#[classifier]
fn bench_call(_ctx: TcContext) -> i32 {
    bench_called(random(), 1) as i32 & 1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn bench_called(a: u32, b: u32) -> u32 {
    a ^ b
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
