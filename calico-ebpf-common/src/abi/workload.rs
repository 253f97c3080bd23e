//! Local workloads, by slot, and what host endpoints judge.

use bytemuck::{Pod, Zeroable};

/// Flags of [`Workload::flags`].
pub mod workload_flags {
    /// The slot is in use and its policy is in the maps; without it everything is dropped.
    pub const ACTIVE: u32 = 1;
    /// The interface is a veth whose other end is up and in another network namespace: `bpf_redirect_peer` works.
    pub const PEER: u32 = 1 << 1;
    /// [`super::Workload::mac`] is configured: source MAC addresses are checked against it.
    pub const MAC_CHECK: u32 = 1 << 2;
    /// `allowSpoofedSourcePrefixes` is not empty.
    pub const SPOOF: u32 = 1 << 3;
    /// No workload, but what a host endpoint judges: the host itself, or whoever is outside.
    pub const HOST_ENDPOINT: u32 = 1 << 4;
    /// With [`HOST_ENDPOINT`]: whoever is outside.
    pub const OUTSIDE: u32 = 1 << 5;
    /// It comes from another node and has given no sign of life here yet.
    pub const ARRIVING: u32 = 1 << 6;
}

/// The rule tables of one workload in one generation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct PolicyRef {
    /// Header block of the table that judges what the workload sends.
    pub egress_table: u32,
    /// Header block of the table that judges what the workload receives.
    pub ingress_table: u32,
    /// Changes whenever the verdicts of `egress_table` may have changed; connections judged under another are judged again.
    pub egress_epoch: u32,
    /// Likewise for `ingress_table`.
    pub ingress_epoch: u32,
}

/// Value of the workload map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Workload {
    /// Host side of the veth or tap; 0 while there is none.
    pub ifindex: u32,
    /// See [`workload_flags`].
    pub flags: u32,
    /// Raised when the slot changes its owner: entries of the former one are void.
    pub incarnation: u32,
    /// MTU of the interface.
    pub mtu: u32,
    /// The workload's MAC address; zero while unknown.
    pub mac: [u8; 6],
    /// The host side's MAC address: what ARP and neighbour solicitations are answered with.
    pub host_mac: [u8; 6],
    /// Jiffies at which it gave a sign of life here, having come from another node; 0: it did not come from elsewhere, or
    /// that is long ago.
    pub takeover: u32,
    /// By the lowest bit of the generation.
    pub policy: [PolicyRef; 2],
}

impl Workload {
    /// The tables in this generation.
    #[inline(always)]
    #[must_use]
    pub const fn policy(&self, generation: u32) -> &PolicyRef {
        &self.policy[generation as usize & 1]
    }

    /// Whether it is none of this host's: see [`workload_flags::OUTSIDE`].
    #[inline(always)]
    #[must_use]
    pub const fn is_outside(&self) -> bool {
        self.flags & workload_flags::OUTSIDE != 0
    }

    /// Whether it is none at all, but what judges in place of one: see [`workload_flags::HOST_ENDPOINT`].
    #[inline(always)]
    #[must_use]
    pub const fn is_seat(&self) -> bool {
        self.flags & workload_flags::HOST_ENDPOINT != 0
    }

    /// The addresses of a frame to the workload: the beginning of its Ethernet header.
    #[inline(always)]
    #[must_use]
    pub fn macs(&self) -> [u8; 12] {
        const AT: usize = core::mem::offset_of!(Workload, mac);
        const { assert!(core::mem::offset_of!(Workload, host_mac) == AT + 6) };
        let bytes: &[u8; size_of::<Self>()] = bytemuck::must_cast_ref(self);
        core::array::from_fn(|i| bytes[AT + i])
    }
}

const _: () = assert!(size_of::<Workload>() == 64);
