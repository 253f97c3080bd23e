//! Classes of IPv4 addresses, in the same array of blocks as the rule tables.
//!
//! The address space is a list of intervals with one class each. The first two bytes of an address lead through two radix
//! nodes (as those of the rule tables, of 256 [`NetRef`]s each); an entry is the class of everything below, the next node, or
//! a *chunk*: a search tree over the lower 16 bits of the addresses. A chunk is one run of blocks: a leaf block of up to 13
//! intervals; or a filter block and up to 15 leaf blocks; or two levels of index blocks of up to 31 children and leaf blocks.
//!
//! The filter block is for addresses of which nothing is known, among many of which something is: it answers for all /24s
//! that have the class that most of them have, and nothing else.
//!
//! ```text
//! filter block: 256 bits  by third byte: whether there is any other class than the common one
//!                1 x u32  the common class
//!               14 x u16  last address of each leaf block but the last; 0xffff where there is none. They follow this block
//! index block:  30 x u16  last address of each child but the last; 0xffff where there is none
//!                1 x u32  place of the first child, counted from the chunk's first block; the others follow it
//! leaf block:   12 x u16  last address of each interval but the last; 0xffff where there is none
//!               13 x u16  classes, lower 16 bits
//!               13 x u8   classes, upper 8 bits
//! ```
//!
//! Where that is not enough, there is a third radix node instead, over chunks with the same third byte.

/// Most leaf blocks behind a filter block.
pub const FILTER_CHILDREN: usize = 15;
/// Most children of an index block.
pub const INDEX_CHILDREN: usize = 31;
/// Most intervals of a leaf block.
pub const LEAF_INTERVALS: usize = 13;
/// Where the classes of a leaf block begin, counted in 16 bits; and their upper bytes, counted in bytes.
pub const LEAF_CLASSES: u32 = 12;
/// See above.
pub const LEAF_CLASSES_HIGH: u32 = 50;

/// What a range of addresses leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetRef(pub u32);

impl NetRef {
    const CLASS: u32 = 1 << 31;
    const HEIGHT_SHIFT: u32 = 29;
    const PLACE: u32 = (1 << Self::HEIGHT_SHIFT) - 1;

    /// All of them have this class (24 bits).
    #[must_use]
    pub const fn class(class: u32) -> Self {
        Self(class | Self::CLASS)
    }

    /// The next node's first block.
    #[must_use]
    pub const fn node(block: u32) -> Self {
        Self(block)
    }

    /// A chunk and its first block: of a leaf block (1), with a filter block (2), with index blocks (3).
    #[must_use]
    pub const fn chunk(block: u32, height: u32) -> Self {
        Self(block | height << Self::HEIGHT_SHIFT)
    }

    /// Whether this is a class.
    #[inline(always)]
    #[must_use]
    pub const fn is_class(self) -> bool {
        self.0 & Self::CLASS != 0
    }

    /// Levels of the chunk that this is; 0 for a node, or for a class.
    #[inline(always)]
    #[must_use]
    pub const fn height(self) -> u32 {
        if self.is_class() { 0 } else { self.0 >> Self::HEIGHT_SHIFT }
    }

    /// The class, or the first block of the node or chunk.
    #[inline(always)]
    #[must_use]
    pub const fn place(self) -> u32 {
        self.0 & Self::PLACE
    }
}
