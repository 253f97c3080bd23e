//! The root of the tables, settings, and interfaces.

use bytemuck::{Pod, Zeroable};

use super::untracked::{INTERFACE_NAME, MAX_UNTRACKED, Untracked};

/// Uplinks that the fast path knows.
pub const MAX_UPLINKS: usize = 8;

/// Values of [`Settings::host_action`], Calico's `defaultEndpointToHostAction`.
pub mod host_action {
    /// Drop what a workload sends to its own host.
    pub const DROP: u32 = 0;
    /// Allow it (after the workload's egress policy).
    pub const ACCEPT: u32 = 1;
    /// Leave it to the host's own rules: for us the same as `ACCEPT`.
    pub const RETURN: u32 = 2;
}

/// Bits of [`Settings::flags`].
pub mod settings_flags {
    /// Calico's `disableConntrackInvalidCheck`: what belongs to no connection and cannot open one is judged like all else.
    pub const JUDGE_INVALID: u32 = 1;
    /// Some interfaces are host endpoints: their entries in the interface map say which.
    pub const HOST_ENDPOINTS: u32 = 1 << 1;
    /// Calico's `bpfEnforceRPF: Strict`: the way back to who opens a connection from outside is the one it came by.
    pub const BACK_STRICT: u32 = 1 << 4;
    /// `Loose`: there is a way back.
    pub const BACK_LOOSE: u32 = 1 << 5;
}

/// Bits of [`Root::uplink_flags`]: what the programs of uplinks do besides. Without any, they do not look for it.
pub mod uplink_flags {
    /// Some interface has untracked policy, in the generation in force, the one before or the one to come.
    pub const UNTRACKED: u32 = 1;
    /// Questions for addresses of local workloads are answered: there are entries in `cali_neigh`.
    pub const ANSWERS: u32 = 1 << 1;
}

/// Values of [`Interface::role`].
pub mod role {
    /// An interface of a local workload.
    pub const WORKLOAD: u32 = 1;
    /// A way to other hosts.
    pub const UPLINK: u32 = 2;
    /// Another interface of the host that is a host endpoint.
    pub const HOST: u32 = 3;
    /// None of these: what leaves there is judged only where it came in by a host endpoint or from a workload, and translated.
    pub const WAY_OUT: u32 = 4;
}

/// How long after this data path took over from another one, or a workload from another host, which knew the connections,
/// packets are taken to belong to connections that were there before.
pub const TAKEOVER_SECONDS: u32 = 30;

/// What one generation is judged under besides the rule tables.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// See [`host_action`].
    pub host_action: u32,
    /// The classes of IPv4 addresses: a [`NetRef`](super::NetRef), or zero.
    pub nets4: u32,
    /// See [`settings_flags`].
    pub flags: u32,
    /// One more than the slot of what judges what workloads send to the host besides `host_action`; 0: nothing does.
    pub from_workloads: u32,
    /// The interfaces with untracked policy, the first ones of the array.
    pub untracked: [Untracked; MAX_UNTRACKED],
}

/// Idle times after which a connection is forgotten, in ticks of `bpf_jiffies64`; by protocol and state, with Calico's
/// defaults in `BPFConntrackTimeouts`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Timeouts {
    /// TCP before the handshake is complete: 20 s.
    pub tcp_syn: u32,
    /// TCP established: 1 h.
    pub tcp_established: u32,
    /// TCP after both FINs: 30 s.
    pub tcp_fin: u32,
    /// TCP after a RST: 40 s.
    pub tcp_reset: u32,
    /// UDP: 60 s.
    pub udp: u32,
    /// ICMP and ICMPv6: 5 s.
    pub icmp: u32,
    /// Any other protocol: 600 s.
    pub generic: u32,
    /// Zero.
    pub reserved: u32,
}

/// The only entry of the root map. Each packet reads [`Root::generation`] once.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Root {
    /// The generation in force. Writing it is what puts a new policy in force.
    pub generation: u32,
    /// Connections that all accounts together may hold, each family: the size of the connection maps.
    pub conn_limit: u32,
    /// Connections that one account may always hold, however full the table is.
    pub conn_fair_share: u32,
    /// Connections not yet assured that one account may hold before it evicts its own.
    pub conn_unassured: u32,
    /// See [`Timeouts`].
    pub timeouts: Timeouts,
    /// Interface indices of the uplinks, zero where there is none.
    pub uplinks: [u32; MAX_UPLINKS],
    /// Jiffies at which the running program took over workloads that had traffic before; 0: never.
    pub takeover: u32,
    /// Jiffies in a second.
    pub hz: u32,
    /// Jiffies until which flows are recorded, for somebody who looks; 0: nobody does.
    pub watched_until: u32,
    /// 1 if the host's stack puts fragments together before it forwards them; 0: it may not.
    pub reassembles: u32,
    /// See [`uplink_flags`].
    pub uplink_flags: u32,
    /// 1 if whole networks are this host's, besides its addresses (routes of type `local`, "AnyIP").
    pub local_networks: u32,
    /// Zero.
    pub reserved: [u32; 2],
    /// By the lowest bit of the generation. Last: hardly a packet reads more of it than its first words.
    pub settings: [Settings; 2],
}

impl Root {
    /// The settings in this generation.
    #[inline(always)]
    #[must_use]
    pub const fn settings(&self, generation: u32) -> &Settings {
        &self.settings[generation as usize & 1]
    }
}

/// Value of the interface map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Interface {
    /// See [`role`].
    pub role: u32,
    /// Slot of the workload, for that role.
    pub slot: u32,
    /// MTU of the device.
    pub mtu: u32,
    /// The device's own MAC address.
    pub mac: [u8; 6],
    /// 1: the stack may translate the destination of what comes in, and what is not translated it drops where policy denies
    /// it by [`PRIORITY_DENIED`](super::PRIORITY_DENIED).
    pub translates: u8,
    /// Zero.
    pub reserved: u8,
    /// Its name, padded with zeros: what policy of interfaces knows it by.
    pub name: [u8; INTERFACE_NAME],
    /// One more than the slot of the host endpoint that the interface is, which judges what the host itself sends and
    /// receives; 0: it is none.
    pub host: u32,
    /// One more than the slot of what judges what the host forwards there: as whoever is outside, so that its egress table is
    /// asked about what comes in and its ingress table about what leaves; 0: nobody judges.
    pub forward: u32,
    /// For workloads, the first one of its IPv4 addresses; zero where it has none.
    pub address4: [u8; 4],
    /// Likewise of IPv6.
    pub address6: [u8; 16],
}

const _: () = {
    assert!(size_of::<Root>() == 528);
    assert!(size_of::<Interface>() == 64);
};
