//! The class of an IPv4 address. See [`crate::abi::NetRef`] for the tables.

use crate::{
    abi::{Block, LEAF_CLASSES, LEAF_CLASSES_HIGH, NetRef},
    judge::Arena,
};

/// The highest bit of each of four 16-bit lanes.
const HIGH: u64 = 0x8000_8000_8000_8000;
/// One in each lane.
const ONES: u64 = 0x0001_0001_0001_0001;

/// The class of `address` (a number) by the tables at `root`, a [`NetRef`]; `None` where they are broken. A `root` of zero
/// is that of no tables: no condition holds for any address.
#[inline(always)]
pub fn class_of<A: Arena + ?Sized>(arena: &A, root: u32, address: u32) -> Option<u32> {
    if root == 0 {
        return Some(0);
    }
    let mut at = NetRef(root);
    for shift in [24, 16, 8] {
        if at.is_class() || at.height() != 0 {
            break;
        }
        let slot = address >> shift & 0xff;
        at = NetRef(arena.block(at.place().wrapping_add(slot / 16))?.u32_at(slot));
    }
    if at.is_class() {
        return Some(at.place() & 0xff_ffff);
    }
    let (first, height) = (at.place(), at.height());
    let key = (u64::from(address) & 0xffff) * ONES;
    let mut block = first;
    if height == 2 {
        let filter = arena.block(first)?;
        let third = address >> 8 & 0xff;
        if filter.words[(third / 64) as usize & 3] >> (third & 63) & 1 == 0 {
            return Some(filter.u32_at(8) & 0xff_ffff);
        }
        let mut before = lanes_below(filter.words[4] | 0xffff_ffff, key);
        for word in &filter.words[5..] {
            before += lanes_below(*word, key);
        }
        block = first.wrapping_add(1).wrapping_add(total(before));
    } else if height == 3 {
        for _ in 0..2 {
            let index = arena.block(block)?;
            let mut before = lanes_below(index.words[7] | 0xffff_ffff_0000_0000, key);
            for word in &index.words[..7] {
                before += lanes_below(*word, key);
            }
            block = first.wrapping_add(index.u32_at(15)).wrapping_add(total(before));
        }
    }
    if height == 0 {
        return None;
    }
    let leaf = arena.block(block)?;
    let before = lanes_below(leaf.words[0], key) + lanes_below(leaf.words[1], key) + lanes_below(leaf.words[2], key);
    let interval = total(before);
    let low = part(leaf, LEAF_CLASSES + interval, 4) & 0xffff;
    let high = part(leaf, LEAF_CLASSES_HIGH + interval, 8) & 0xff;
    Some((low | high << 16) as u32)
}

/// In each lane: one if its value is less than that of `key`.
///
/// Four at once and without a branch, because what a packet's address is compared with cannot be foretold.
#[inline(always)]
const fn lanes_below(values: u64, key: u64) -> u64 {
    // The highest bits stay apart, so that no lane borrows from the next.
    let at_least = (values | HIGH) - (key & !HIGH);
    ((!values & key) | (!(values ^ key) & !at_least)) >> 15 & ONES
}

/// The sum of the lanes.
#[inline(always)]
const fn total(lanes: u64) -> u32 {
    (lanes.wrapping_mul(ONES) >> 48) as u32
}

/// The part of a block with this number, of which a word holds `in_word`; in its lowest bits.
#[inline(always)]
const fn part(block: &Block, number: u32, in_word: u32) -> u64 {
    block.words[(number / in_word) as usize & 7] >> (number % in_word * (64 / in_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_compare_as_numbers_do() {
        let interesting = [0, 1, 2, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff_u64];
        for value in interesting {
            for key in interesting {
                for lane in 0..4 {
                    let below = lanes_below(value << (16 * lane), key * ONES);
                    let others = if key > 0 { 3 } else { 0 };
                    assert_eq!(total(below), others + u32::from(value < key), "{value:x} {key:x}");
                    assert_eq!(below >> (16 * lane) & 0xffff, u64::from(value < key));
                }
            }
        }
    }
}
