//! Addresses that the host's stack translates.

use bytemuck::{Pod, Zeroable};

/// Key of the map of services: an address and port that the stack has translated for a workload, whom policy allows the translated one.
///
/// Aligned, because the kernel's verifier allows only aligned access to the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ServiceKey {
    /// IPv4 addresses mapped into IPv6.
    pub address: [u8; 16],
    /// Slot of the workload.
    pub slot: u32,
    /// Big-endian; 0 where the protocol has none.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<ServiceKey>() == 24);
