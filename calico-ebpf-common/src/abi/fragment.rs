//! Fragments: only the first one of a packet can be judged, the others follow it.

use bytemuck::{Pod, Zeroable};

/// Key of the fragment map. IPv4 addresses are in the last four bytes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FragmentKey {
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
    /// Identification, as in the packet.
    pub id: [u8; 4],
    /// Interface that the program runs on.
    pub ifindex: u32,
    /// Zero.
    pub reserved: [u8; 8],
}

const _: () = assert!(size_of::<FragmentKey>() == 48);
