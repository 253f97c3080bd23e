//! Connections: what was decided about them, never how to forward.

use core::hash::Hash;

use bytemuck::{Pod, Zeroable};

/// Layout of [`Conn`], in each entry: two versions of the program may meet in one table during an upgrade.
pub const CONN_VERSION: u8 = 1;
/// No local workload.
pub const NO_SLOT: u32 = u32::MAX;
/// Nobody judged this end: no local workload, or the host's own traffic.
pub const NO_RULE: u32 = u32::MAX;
/// Keys that each account remembers as candidates for eviction.
pub const VICTIMS: u32 = 64;

/// An address family, as a type: IPv4 connections have short keys.
pub trait Family: Copy + 'static {
    /// An address, in network order.
    type Addr: Pod + Copy + PartialEq + Ord + Hash;
    /// Key of the connection map.
    type Key: Pod + Copy + PartialEq + Hash;
}

/// Key of an IPv4 connection, the same for both directions: the end with the smaller (address, port) is `a`.
///
/// ICMP echo has its identifier in both ports, a protocol without ports has 0 in both.
///
/// Aligned, because the kernel's verifier allows only aligned access to the stack, where the programs make it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ConnKey4 {
    /// The smaller end's address.
    pub addr_a: [u8; 4],
    /// The other end's.
    pub addr_b: [u8; 4],
    /// The smaller end's port, big-endian.
    pub port_a: [u8; 2],
    /// The other end's.
    pub port_b: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// The last eight bytes of a key as they stand in the ring: the reserved ones are of [`Conn::stamp`], so that the key is not taken for
/// that of another connection between the same ends, which would have it twice, for ever.
#[inline(always)]
#[must_use]
pub const fn ring_stamp(key: u64, stamp: u32) -> u64 {
    (u64::from_le(key) & KEY_BITS | (stamp as u64) << KEY_BITS.count_ones()).to_le()
}

/// The last eight bytes of the key again, without the stamp.
#[inline(always)]
#[must_use]
pub const fn ring_key(stamped: u64) -> u64 {
    ring_stamp(stamped, 0)
}

/// All but the reserved bytes.
const KEY_BITS: u64 = (1 << 40) - 1;

/// Key of an IPv6 connection; see [`ConnKey4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct ConnKey6 {
    /// The smaller end's address.
    pub addr_a: [u8; 16],
    /// The other end's.
    pub addr_b: [u8; 16],
    /// The smaller end's port, big-endian.
    pub port_a: [u8; 2],
    /// The other end's.
    pub port_b: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Values of [`Conn::opener`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OpenerKind {
    /// A workload of this host.
    Workload = 1,
    /// This host itself.
    Host = 2,
    /// Anybody else.
    Outside = 3,
    /// A workload of this host, by an address that the stack translates and policy denies: it is asked about the translated one
    /// alone, by the entry that the connection has there.
    Translated = 4,
}

/// Flags of [`Conn::flags`].
pub mod conn_flags {
    /// The opener is end `a` of the key.
    pub const OPENER_IS_A: u8 = 1;
    /// Both directions take the host's stack (it translates them, or it has to see them).
    pub const VIA_STACK: u8 = 1 << 1;
    /// The responder has answered.
    pub const ANSWERED: u8 = 1 << 2;
    /// The opener has gone on after the answer: hardly a forged source can do that. Or it is a local workload, whose address is its own,
    /// and has an answer to other than TCP. Not evictable.
    pub const ASSURED: u8 = 1 << 3;
    /// With [`VIA_STACK`]: it is not known yet whether the stack translates the connection. A packet that leaves through
    /// an uplink as it came clears both, one that leaves elsewhere or, where no host endpoint has to be asked first, an answer that comes
    /// through the stack clears this one.
    pub const PROBING: u8 = 1 << 4;
    /// Made where the stack has done its translating: policy before DNAT is not asked about these addresses.
    pub const BEHIND_DNAT: u8 = 1 << 5;
    /// Policy before DNAT allowed it, here or, with [`BEHIND_DNAT`], where it came in: see
    /// [`MARK_SETTLED`](crate::abi::MARK_SETTLED).
    pub const SETTLED: u8 = 1 << 6;
}

/// Bits of [`Conn::tcp`].
pub mod tcp_state {
    /// The opener sent a SYN.
    pub const SYN: u8 = 1;
    /// The responder sent SYN and ACK.
    pub const SYN_ACK: u8 = 1 << 1;
    /// The opener sent a FIN.
    pub const FIN_OPENER: u8 = 1 << 2;
    /// The responder sent a FIN.
    pub const FIN_RESPONDER: u8 = 1 << 3;
    /// Either sent a RST.
    pub const RST: u8 = 1 << 4;
    /// Picked up in the middle: no SYN was seen.
    pub const MIDSTREAM: u8 = 1 << 5;
}

/// One end of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ConnEnd {
    /// Slot of the local workload at this end, or [`NO_SLOT`].
    pub slot: u32,
    /// The slot's incarnation when the connection was judged.
    pub incarnation: u32,
    /// Epoch of the table that judged this end: the opener's egress, the responder's ingress.
    pub epoch: u32,
    /// Counter slot of the rule that allowed it at this end.
    pub rule: u32,
}

/// Value of the connection maps. Only allowed connections have an entry, and the other side of translated ones.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Conn {
    /// [`CONN_VERSION`].
    pub version: u8,
    /// See [`conn_flags`].
    pub flags: u8,
    /// See [`tcp_state`].
    pub tcp: u8,
    /// [`OpenerKind`].
    pub opener: u8,
    /// ICMP type of the first packet, which rules are asked about again.
    pub icmp_type: u8,
    /// ICMP code of the first packet.
    pub icmp_code: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Account that the connection is charged to.
    pub account: u32,
    /// Jiffies at creation.
    pub created: u32,
    /// Jiffies of the last packet from the opener and from the responder.
    pub seen: [u32; 2],
    /// The opener and the responder.
    pub ends: [ConnEnd; 2],
    /// TCP: the number that the opener acknowledges if it really got the responder's SYN. See
    /// [`conn_flags::ASSURED`].
    pub syn_ack: u32,
    /// At random: tells its key in the ring from those of earlier connections between the same ends.
    pub stamp: u32,
}

/// The host's account: never refused.
pub const ACCOUNT_HOST: u32 = 0;
/// All accounts together.
pub const ACCOUNT_TOTAL: u32 = 1;

/// The account of connections that the workload in `slot` opens.
#[inline(always)]
#[must_use]
pub const fn account_opened_by(slot: u32) -> u32 {
    slot.wrapping_mul(2).wrapping_add(2)
}

/// The account of connections that others than local workloads open to the workload in `slot`.
#[inline(always)]
#[must_use]
pub const fn account_opened_to(slot: u32) -> u32 {
    slot.wrapping_mul(2).wrapping_add(3)
}

/// Connections that an account holds: see [`ACCOUNT_HOST`], [`account_opened_by`], [`account_opened_to`].
///
/// Read as signed numbers: two processors that settle one connection at the same time may count it off twice.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Quota {
    /// All of them.
    pub held: u64,
    /// Those that are not assured.
    pub unassured: u64,
}

const _: () = {
    assert!(size_of::<ConnKey4>() == 16);
    assert!(size_of::<ConnKey6>() == 40);
    assert!(size_of::<Conn>() == 64);
};
