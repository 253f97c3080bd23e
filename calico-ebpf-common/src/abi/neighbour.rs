//! Whom an uplink answers for: Calico's `localSubnetL2Reachability`.

use bytemuck::{Pod, Zeroable};

/// An address of a local workload inside a network of an uplink.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
pub struct NeighbourKey {
    /// IPv4 addresses as `::ffff:a.b.c.d`.
    pub address: [u8; 16],
    /// The uplink.
    pub ifindex: u32,
}

/// How a question for it is answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Neighbour {
    /// With this MAC address, the uplink's.
    pub mac: [u8; 6],
    /// 1: the XDP program may answer; 0: what it sends would not arrive, and the TC program does.
    pub by_xdp: u16,
}

const _: () = {
    assert!(size_of::<NeighbourKey>() == 20);
    assert!(size_of::<Neighbour>() == 8);
};
