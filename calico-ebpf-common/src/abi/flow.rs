//! Flows: who talks to whom, kept while somebody looks.

use bytemuck::{Pod, Zeroable};

/// Key of the map of flows, seen from who opened it.
///
/// Aligned, because the kernel's verifier allows only aligned access to the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FlowKey {
    /// Who opened it; IPv4 addresses mapped into IPv6.
    pub source: [u8; 16],
    /// To whom.
    pub destination: [u8; 16],
    /// Source port, big-endian; 0 where the protocol has none.
    pub source_port: [u8; 2],
    /// Destination port, big-endian; ICMP: type and code of the first packet; 0 where the protocol has none.
    pub destination_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// A [`super::DropReason`], or [`super::explained::PASSES`].
    pub reason: u32,
    /// 4 or 6.
    pub version: u32,
}

/// Value of the map of flows. What is a pair is of the opener and of the responder.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowRecord {
    /// Packets that each sent.
    pub packets: [u64; 2],
    /// Bytes of them, from the IP header on.
    pub bytes: [u64; 2],
    /// Jiffies of the first packet that was recorded.
    pub first: u32,
    /// Jiffies of the last one.
    pub last: u32,
    /// Slots of the local workloads, or [`super::NO_SLOT`].
    pub slots: [u32; 2],
    /// Counter slots of the rules that decided, or [`super::NO_RULE`].
    pub rules: [u32; 2],
    /// Zero.
    pub reserved: [u32; 2],
}

const _: () = {
    assert!(size_of::<FlowKey>() == 48);
    assert!(size_of::<FlowRecord>() == 64);
};
