//! The classes of IPv4 addresses.

use calico_ebpf_common::{abi::Block, judge::Arena, nets};

use crate::maps::RULES;

/// The arena.
struct Blocks;

impl Arena for Blocks {
    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        RULES.get(index)
    }
}

/// [`nets::class_of`]; where the tables are broken, the class for which no condition holds.
///
/// A global function over plain numbers: the verifier looks at it once, not at every call.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cali_class4(root: u32, address: u32) -> u32 {
    nets::class_of(&Blocks, root, address).unwrap_or(0)
}
