//! Policy of an interface before connection tracking, and what the XDP program tells the one behind it.

use bytemuck::{Pod, Zeroable};

/// Bytes of an interface's name, its zeros included (`IFNAMSIZ`).
pub const INTERFACE_NAME: usize = 16;
/// Interfaces that can have untracked policy.
pub const MAX_UNTRACKED: usize = 8;

/// The rule tables of one interface in one generation. They judge each packet for itself; what none of their rules decides
/// is left to what comes behind ([`Action::Leave`](super::Action::Leave)).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Untracked {
    /// Its name, as [`Interface::name`](super::Interface::name) has it; all zero: none, and none behind.
    pub interface: [u8; INTERFACE_NAME],
    /// Header block of the table that judges what comes in by it; 0: none.
    pub ingress_table: u32,
    /// Header block of the table that judges what the host itself sends by it; 0: none.
    pub egress_table: u32,
}

/// The word that the XDP program leaves in front of a frame that it has judged, for the TC program behind it. Where a
/// driver has no room for it, that one judges once more. [`on`](judged::on) makes it one of the interface: a frame with a VLAN
/// tag that the driver has put aside meets both the program of the device and, with the same word, that of the VLAN.
pub mod judged {
    /// A rule of untracked policy allows the packet.
    pub const ALLOWED: u32 = 0xca11_c0a1;
    /// No rule of untracked policy has decided.
    pub const LEFT: u32 = 0xca11_c01e;

    /// The word of a verdict on an interface.
    #[must_use]
    pub const fn on(ifindex: u32, verdict: u32) -> u32 {
        // Verdicts differ in the lowest byte.
        verdict ^ ifindex << 8
    }
}

const _: () = assert!(size_of::<Untracked>() == 24);
