//! What the parts of a program hand to each other.
//!
//! A program is cut into functions that the compiler must not join: the verifier gives all frames together 512 bytes of
//! stack. They pass nothing but the packet and a [`Code`]; the rest is in memory of the processor.

use core::{arch::asm, ptr};

use aya_ebpf::{btf_maps::PerCpuArray, helpers::generated::bpf_jiffies64, macros::btf_map};
use calico_ebpf_common::{
    abi::{Conn, DropReason, NO_SLOT, Root},
    packet::{Cursor, Packet},
};

use crate::{maps::ROOT, skb::Skb, tables::Tables};

/// A TC action, one of the codes below, or [`dropped`].
pub(crate) type Code = i64;

const STEP: Code = 1 << 16;
/// The packet's connection has no entry.
pub(crate) const MISS: Code = STEP;
/// It has one, but its source is not on this interface: somebody forges, or the address has moved.
pub(crate) const FOREIGN: Code = STEP + 1;
/// It has one, which has to be judged again first.
pub(crate) const AGAIN: Code = STEP + 2;
/// A rule of untracked policy allows it.
pub(crate) const ALLOWED: Code = STEP + 3;
/// Untracked policy leaves it to what is behind.
pub(crate) const LEFT: Code = STEP + 4;
/// It has been made its own answer, to be sent back.
pub(crate) const ANSWERED: Code = STEP + 5;
/// It has one, and leaves the host, or reaches it, for the first time: whoever is there has not been asked yet.
pub(crate) const LEAVES: Code = STEP + 6;
/// It may go to the workload that is its destination in [`Work::slots`].
pub(crate) const DELIVER: Code = STEP + 7;
/// Policy denies it by the address that it was sent to, and it is left to the stack, which may translate that.
pub(crate) const UNDECIDED: Code = STEP + 8;
const DROPPED: Code = 1 << 17;

/// The packet is dropped and counted.
#[inline(always)]
pub(crate) const fn dropped(reason: DropReason) -> Code {
    DROPPED | reason as Code
}

/// The reason in a [`Code`], if it is [`dropped`].
#[inline(always)]
pub(crate) const fn reason(code: Code) -> Option<u32> {
    if code >= DROPPED { Some(code as u32 & 0xffff) } else { None }
}

/// A result as a plain number, which is all that a function can give back.
#[inline(always)]
pub(crate) fn code(result: Result<Code, DropReason>) -> Code {
    match result {
        Ok(code) => code,
        Err(reason) => dropped(reason),
    }
}

/// What holds for one run of a program.
#[derive(Clone, Copy)]
pub(crate) struct Env {
    pub root: &'static Root,
    /// Each function reads it, but only the first reading counts: see [`Work::generation`].
    pub generation: u32,
    /// Jiffies.
    pub now: u32,
    pub ifindex: u32,
}

impl Env {
    /// For the first function of a run.
    #[inline(always)]
    pub(crate) fn new(skb: &Skb) -> Result<Self, DropReason> {
        Self::at(skb.ifindex())
    }

    /// Likewise, of a packet on this interface.
    #[inline(always)]
    pub(crate) fn at(ifindex: u32) -> Result<Self, DropReason> {
        let root = ROOT.get(0).ok_or(DropReason::NoTable)?;
        // SAFETY: a valid reference. Volatile: the loader changes it.
        let generation = unsafe { ptr::read_volatile(&raw const root.generation) };
        Ok(Self { root, generation, now: jiffies(), ifindex })
    }

    /// Whether this interface is an uplink: elsewhere the stack knows what others make of packets, in both directions or not at
    /// all.
    #[inline(always)]
    pub(crate) fn is_uplink(&self, ifindex: u32) -> bool {
        let mut is_uplink = false;
        for uplink in &self.root.uplinks {
            is_uplink |= *uplink == ifindex;
        }
        is_uplink
    }

    /// For the others: the packet is judged by one generation.
    #[inline(always)]
    pub(crate) fn resume<F: Tables>(skb: &Skb, work: &Work<F>) -> Result<Self, DropReason> {
        Self::resume_at(work, skb.ifindex())
    }

    /// Where the packet is not looked at.
    #[inline(always)]
    pub(crate) fn resume_at<F: Tables>(work: &Work<F>, ifindex: u32) -> Result<Self, DropReason> {
        let root = ROOT.get(0).ok_or(DropReason::NoTable)?;
        Ok(Self { root, generation: work.generation, now: jiffies(), ifindex })
    }
}

/// The lower half of the clock that connections are stamped with.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_jiffies64() as u32 }
}

/// The connection of the packet that an ICMP error quotes.
pub(crate) struct Related {
    pub via_stack: bool,
    /// It is the entry of a connection by an address that the stack translates.
    pub translated: bool,
    /// Slot at the end that the error is for: the one that sent what it quotes.
    pub to: u32,
    /// Slot at the other end.
    pub from: u32,
}

/// The packet at hand, for the functions behind the first one.
pub(crate) struct Work<F: Tables> {
    pub key: F::Key,
    /// The entry that is being made.
    pub conn: Conn,
    pub packet: Packet<F>,
    pub related: Related,
    pub generation: u32,
    /// Slots of who is judged as its source and its destination.
    pub slots: [u32; 2],
    /// Slot of who pays for its connection, where that is neither end.
    pub payer: u32,
    pub source_is_a: bool,
    /// Policy before DNAT denies the packet: see [`Denied`](crate::policy::Denied).
    pub denied_for_good: bool,
}

/// Memory for what helpers read and write at odd places: the verifier allows only aligned access to the stack.
#[repr(C, align(8))]
pub(crate) struct Buffer {
    /// A header.
    pub header: [u8; 64],
    /// The key of a trie.
    pub key: [u8; 32],
}

#[btf_map(name = "cali_buffer")]
static BUFFER: PerCpuArray<Buffer, 1> = PerCpuArray::new();

/// The buffer of this processor.
#[inline(always)]
pub(crate) fn buffer() -> Option<*mut Buffer> {
    BUFFER.get_ptr_mut(0)
}

const WORDS: usize = 32;

#[btf_map(name = "cali_work")]
static WORK: PerCpuArray<[u64; WORDS], 1> = PerCpuArray::new();

/// The memory of this processor. Programs of this kind do not interrupt each other.
#[inline(always)]
pub(crate) fn work<F: Tables>() -> Option<&'static mut Work<F>> {
    const { assert!(size_of::<Work<F>>() <= WORDS * 8 && align_of::<Work<F>>() <= 8) };
    let words = WORK.get_ptr_mut(0)?;
    // SAFETY: large enough and aligned, as asserted. Everything that is read was written earlier in this run, by the
    // function that ended with `MISS`, `FOREIGN` or `AGAIN`.
    Some(unsafe { &mut *words.cast() })
}

/// Parses the packet into the memory of this processor, for the function at hand and those behind it.
#[inline(always)]
pub(crate) fn take<F: Tables>(skb: &Skb, env: &Env) -> Result<&'static Work<F>, DropReason> {
    let work = parsed::<F, _>(skb, skb.length())?;
    (work.key, work.source_is_a) = work.packet.key();
    work.generation = env.generation;
    work.denied_for_good = false;
    work.payer = NO_SLOT;
    forget_origin();
    Ok(work)
}

/// The same with nothing but the packet itself, of a frame of `length` bytes.
#[inline(always)]
pub(crate) fn parsed<F: Tables, C: Cursor>(frame: &C, length: u32) -> Result<&'static mut Work<F>, DropReason> {
    let work = work::<F>().ok_or(DropReason::NoTable)?;
    work.packet = F::parse(frame, length)?;
    forget_origin();
    Ok(work)
}

/// What is in memory is read anew behind this, as numbers that the verifier knows nothing of: it looks at what follows
/// once, and not once for each way that led here. (Before Linux 6.3 it takes every number for one that matters.)
#[inline(always)]
pub(crate) fn forget_origin() {
    // SAFETY: no instruction at all; the compiler has to expect that it changes memory.
    unsafe { asm!("") };
}

/// A number that the compiler knows nothing of. It takes an instruction: text that is none would have a line of its own in
/// the debug information, at the address of the next one's, and the kernel refuses such a program.
#[inline(always)]
pub(crate) fn opaque(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: the instruction leaves the number as it is.
    unsafe { asm!("{number} = {number}", number = inout(reg) number, options(nomem, nostack)) };
    number
}
