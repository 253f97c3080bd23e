//! What is known of an address: its class, and the workload that owns it.

use bytemuck::{Pod, Zeroable};

/// A value that changes with a generation: readers of older generations still see the old one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Stamped {
    /// Before and from generation [`AddressEntry::since`] on.
    pub value: [u32; 2],
}

/// Value of the address and prefix maps.
///
/// A *class* stands for a set of address conditions (networks, selectors) that hold for an address. Class 0 is an IPv4
/// address for which none holds, class 1 an IPv6 one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct AddressEntry {
    /// The class, 24 bits.
    pub class: Stamped,
    /// Slot of the local workload that owns the address; [`super::NO_SLOT`] if none does. Prefixes own nothing.
    pub slot: Stamped,
    /// The generation from which on the second of each pair of values holds.
    pub since: u32,
    /// [`HOST`].
    pub flags: u32,
}

/// Flag of [`AddressEntry`]: an address of this host.
pub const HOST: u32 = 1;

impl AddressEntry {
    /// 0 for a reader of a generation before [`AddressEntry::since`], else 1. Generations wrap.
    #[inline(always)]
    #[must_use]
    pub const fn side(&self, generation: u32) -> usize {
        (generation.wrapping_sub(self.since) as i32 >= 0) as usize
    }

    /// The class in this generation.
    #[inline(always)]
    #[must_use]
    pub const fn class(&self, generation: u32) -> u32 {
        self.class.value[self.side(generation) & 1]
    }

    /// The owner's slot in this generation.
    #[inline(always)]
    #[must_use]
    pub const fn slot(&self, generation: u32) -> u32 {
        self.slot.value[self.side(generation) & 1]
    }
}

/// Data of the trie of allowed spoofed IPv4 sources; the prefix length counts the 32 bits of the slot too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SpoofKey4 {
    /// Slot of the workload, big-endian.
    pub slot: [u8; 4],
    /// Source address.
    pub address: [u8; 4],
}

/// Likewise for IPv6.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SpoofKey6 {
    /// Slot of the workload, big-endian.
    pub slot: [u8; 4],
    /// Source address.
    pub address: [u8; 16],
}

const _: () = assert!(size_of::<AddressEntry>() == 24);
