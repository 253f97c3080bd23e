//! Rule tables, in one array of 64-byte blocks.
//!
//! A *rule table* is an ordered list of rules: what one direction of one or more workloads is judged by, tiers and
//! profiles included, flattened. A packet has four values that rules look at (the *fields*): the class of the
//! workload's own address, the class of its peer's, protocol with destination port, protocol with source port. Each
//! field maps its value through a radix tree to a *vector*: the set of rules that are content with this value. The
//! first rule in the intersection of the four vectors decides, or the last one of the table: that one matches everything and is
//! in no vector.
//!
//! ```text
//! table header -> 4 x root of a radix tree (24-bit key, 8 bits a level) -> vector header -> chunks of 512 rules
//!              |                                                        -> the number of a rule
//!              -> 4 x vector header, of the rules that do not look at the field
//!              -> rule entries
//! ```
//!
//! Vectors are sparse: the header has one bit for each chunk that is not empty, and only those chunks are stored. Most values of
//! a long table's fields are looked at by one rule alone. Such a vector is not stored: the tree has the rule's number, and all
//! that belongs to the vector besides is what does not look at the field. So the price of judging hardly depends on the number
//! of rules, and neither does the program.
//!
//! An ICMP type and code stand in for the destination port: `type << 8 | code`.

use bytemuck::{Pod, Zeroable};

/// Rules in one chunk of a vector: the bits of one block.
pub const CHUNK_RULES: u32 = 512;
/// Chunks in one vector.
pub const MAX_CHUNKS: u32 = 128;
/// Rules in one table.
pub const MAX_RULES: u32 = CHUNK_RULES * MAX_CHUNKS;
/// Entries of one radix node.
pub const NODE_ENTRIES: u32 = 256;
/// Blocks that one radix node occupies.
pub const NODE_BLOCKS: u32 = NODE_ENTRIES / 16;
/// The vector header that no rule is in: block 0 is never written.
pub const VEC_NONE: u32 = 0;
/// The vector header that every rule is in: the field does not matter.
pub const VEC_ANY: u32 = 1;
/// The chunk of all ones that [`VEC_ANY`] leads to.
pub const BLOCK_ONES: u32 = 2;

/// The unit of allocation: a cache line.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Block {
    /// Eight words; a block of 32-bit values holds two in each, the lower half first.
    pub words: [u64; 8],
}

impl Block {
    /// The `i`-th (modulo 16) 32-bit value.
    #[inline(always)]
    #[must_use]
    pub const fn u32_at(&self, i: u32) -> u32 {
        (self.words[(i as usize >> 1) & 7] >> ((i & 1) * 32)) as u32
    }

    /// Sets the `i`-th (modulo 16) 32-bit value.
    pub const fn set_u32(&mut self, i: u32, value: u32) {
        let shift = (i & 1) * 32;
        let word = &mut self.words[(i as usize >> 1) & 7];
        *word = *word & !(0xffff_ffff << shift) | (value as u64) << shift;
    }
}

/// An entry of a radix node: the vector for all keys below, or the next node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeRef(pub u32);

impl NodeRef {
    const LEAF: u32 = 1 << 31;
    const RULE: u32 = 1 << 30;

    /// All keys below lead to the vector whose header is at this block.
    #[must_use]
    pub const fn vector(block: u32) -> Self {
        Self(block | Self::LEAF)
    }

    /// All keys below lead to the vector of this rule and of those that do not look at the field.
    #[must_use]
    pub const fn rule(rule: u32) -> Self {
        Self(rule | Self::LEAF | Self::RULE)
    }

    /// The next node's first block.
    #[must_use]
    pub const fn node(block: u32) -> Self {
        Self(block)
    }

    /// Whether this is a vector.
    #[inline(always)]
    #[must_use]
    pub const fn is_vector(self) -> bool {
        self.0 & Self::LEAF != 0
    }

    /// Whether this is a vector that is given by one rule.
    #[inline(always)]
    #[must_use]
    pub const fn is_rule(self) -> bool {
        self.0 & Self::RULE != 0
    }

    /// The block of the vector's header, or of the node; or the rule.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> u32 {
        self.0 & !(Self::LEAF | Self::RULE)
    }
}

/// The first block of a table. Zero chunks means "no table": everything is denied.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct TableHeader {
    /// Number of rules.
    pub rules: u32,
    /// Number of chunks in each vector, `rules / 512` rounded up.
    pub chunks: u32,
    /// First block of the rule entries, eight in a block.
    pub entries: u32,
    /// Identifies the table to people (`rules` command); shared tables have one number.
    pub number: u32,
    /// [`NodeRef`] of the own address's class.
    pub own: u32,
    /// [`NodeRef`] of the peer address's class.
    pub peer: u32,
    /// [`NodeRef`] of `protocol << 16 | destination port`.
    pub destination_port: u32,
    /// [`NodeRef`] of `protocol << 16 | source port`.
    pub source_port: u32,
    /// By field, in this order: the header of the vector of the rules that do not look at it.
    pub indifferent: [u32; 4],
    /// Where a packet starts whose destination the host has translated: the rules before it are about that which it was sent to.
    pub behind_dnat: u32,
    /// The first of those rules that is one of policy before DNAT: failsafe ports come before.
    pub before_dnat: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

/// The first block of a vector.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct VectorHeader {
    /// Bit `n`: chunk `n` is not empty.
    pub present: [u64; 2],
    /// Block of the first chunk that is present.
    pub base: u32,
    /// Blocks from one present chunk to the next: 1, or 0 where all are the same one ([`VEC_ANY`]).
    pub stride: u32,
    /// Zero.
    pub reserved: [u32; 10],
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Action {
    /// Drop.
    Deny = 0,
    /// Let pass.
    Allow = 1,
    /// Go on at [`RuleEntry::next`]: the next tier.
    Pass = 2,
    /// Record and go on with the next rule.
    Log = 3,
    /// Drop, and tell the sender.
    Reject = 4,
    /// Leave it to what judges behind this table: at its end, and what it must not touch.
    Leave = 5,
}

/// One rule: 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RuleEntry {
    /// What it does.
    pub action: Action,
    /// For `Pass`: the first rule of the next tier.
    pub next: u16,
    /// Index into the hit counters; it names the rule wherever a number has to (connections, events).
    pub counter: u32,
}

impl RuleEntry {
    /// As stored: action in bits 0..8, `next` in 16..32, counter in 32..64.
    #[must_use]
    pub const fn encode(self) -> u64 {
        self.action as u64 | (self.next as u64) << 16 | (self.counter as u64) << 32
    }

    /// The reverse; an unknown action denies.
    #[inline(always)]
    #[must_use]
    pub const fn decode(word: u64) -> Self {
        let action = match word as u8 {
            1 => Action::Allow,
            2 => Action::Pass,
            3 => Action::Log,
            4 => Action::Reject,
            5 => Action::Leave,
            _ => Action::Deny,
        };
        Self { action, next: (word >> 16) as u16, counter: (word >> 32) as u32 }
    }
}

const _: () = {
    assert!(size_of::<Block>() == 64);
    assert!(size_of::<TableHeader>() == 64);
    assert!(size_of::<VectorHeader>() == 64);
    // `RuleEntry::next` and the rule numbers must reach the last rule.
    assert!(MAX_RULES - 1 == u16::MAX as u32);
};
