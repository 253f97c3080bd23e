//! What the agent wants of the data path, and what came of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    nat_outgoing::NatOutgoing,
    xdp::{UplinkXdp, XdpWish},
};
use crate::{
    resources::model::HostInterface,
    routes::{RouteParameters, RouteStatus, migration::Migration},
};

/// What should be, besides policy (which the store's plan brings).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// The workloads of this node.
    pub workloads: Vec<DesiredWorkload>,
    /// The host endpoints of this node.
    pub host_endpoints: Vec<DesiredHostEndpoint>,
    /// The ways to other hosts.
    pub uplinks: Uplinks,
    /// `FelixConfiguration.interfacePrefix`, where given: every interface of these prefixes without a workload drops.
    pub interface_prefixes: Option<Vec<String>>,
    /// How routes are written.
    pub routes: RouteParameters,
    /// Interfaces that have untracked policy, and whether it is about what comes in by them. They are uplinks too.
    pub untracked: BTreeMap<String, bool>,
    /// What may be made of XDP.
    pub xdp: XdpWish,
    /// Addresses of local workloads that questions of the link are answered for, where they are inside of an uplink's own
    /// network.
    pub answered: Vec<IpAddr>,
    /// Who is translated on the way out of all pools, if anybody is.
    pub nat_outgoing: Option<NatOutgoing>,
    /// Whether workloads may reach their host: `defaultEndpointToHostAction` is not `Drop`.
    pub host_welcomes: bool,
    /// `--node`, kept with the pins for commands that look at a stopped data path.
    pub node: String,
}

/// A workload of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredWorkload {
    /// `namespace/name`.
    pub name: String,
    /// Name of its pod, where it has one.
    pub pod: Option<String>,
    /// Its slot, as the store gave it.
    pub slot: u32,
    /// Host side of its veth or tap.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address, where configured: sources are checked against it.
    pub mac: Option<[u8; 6]>,
    /// Whether it has `allowSpoofedSourcePrefixes`.
    pub spoof: bool,
    /// How it comes from another node, if it does.
    pub migration: Option<Migration>,
}

/// A host endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredHostEndpoint {
    /// Its name.
    pub name: String,
    /// Which interfaces it is.
    pub interface: HostInterface,
    /// Slot of what judges what the host itself sends and receives.
    pub host: u32,
    /// Slot of what judges what the host forwards, where anything does.
    pub forward: Option<u32>,
    /// Slot of what judges what workloads send to the host, where anything does.
    pub from_workloads: Option<u32>,
}

/// Which interfaces lead to other hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Uplinks {
    /// The devices of the default routes of the main table.
    #[default]
    DefaultRoutes,
    /// These.
    Named(Vec<String>),
}

/// What the kernel had when it was last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// All addresses of this host (not those of loopback), link-local ones included.
    pub host_addresses: BTreeSet<IpAddr>,
}

/// What an apply led to.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Applied {
    /// Each workload's state, in the order of [`Desired::workloads`].
    pub workloads: Vec<WorkloadStatus>,
    /// The host endpoints, in the order of [`Desired::host_endpoints`].
    pub host_endpoints: Vec<HostEndpointStatus>,
    /// The uplinks in use.
    pub uplinks: Vec<Uplink>,
    /// How it is with XDP on each uplink that has untracked policy.
    pub xdp: Vec<UplinkXdp>,
    /// Our routes.
    pub routes: Vec<RouteStatus>,
    /// The nftables table that translates, where there has to be one.
    pub nat_table: Option<NatTable>,
    /// What could not be done now and is tried again with the next apply. Policy is in force nevertheless.
    pub faults: Vec<String>,
    /// How many things were changed in the kernel besides policy.
    pub changes: usize,
    /// Links and routes were not looked at to the end: all but the faults is unknown.
    #[serde(skip)]
    pub partial: bool,
}

/// The nftables table of `natOutgoing`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NatTable {
    /// Its name, in family `inet`.
    pub table: String,
    /// The networks that are translated. None: it is there for connections that were translated before.
    pub sources: Vec<IpNet>,
    /// Whether it is as it should be.
    pub in_place: bool,
}

/// State of one workload.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WorkloadStatus {
    /// `namespace/name`.
    pub endpoint: String,
    /// Host side of its veth or tap.
    pub interface: String,
    /// What the interface is like.
    pub state: LinkState,
    /// Its index, where it exists.
    pub ifindex: Option<u32>,
    /// How the programs are attached.
    pub attachment: Option<Attachment>,
    /// Whether packets are put straight into the other end of its veth.
    pub peer: bool,
    /// How it comes from another node, if it does.
    pub migration: Option<Migration>,
}

/// State of one host endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct HostEndpointStatus {
    /// Its name.
    pub endpoint: String,
    /// The interfaces that it is.
    pub interfaces: Vec<String>,
    /// Interfaces that it should be, but whose packets have no Ethernet header: nothing is judged there.
    pub uncovered: Vec<String>,
}

/// State of a workload's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkState {
    /// Present, up, programs attached, policy in force.
    Up,
    /// Present and attached, but administratively down or without carrier.
    Down,
    /// There is no such interface (yet).
    Absent,
    /// The programs could not be attached: [`Applied::faults`] says why. The workload is not active.
    Failed,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Absent => "absent",
            Self::Failed => "failed",
        })
    }
}

/// How a program hangs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attachment {
    /// A pinned TCX link, ordered first.
    Tcx,
    /// A `cls_bpf` filter on a `clsact` qdisc.
    Clsact,
}

/// An uplink in use.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Uplink {
    /// Interface name.
    pub interface: String,
    /// Its index; absent while there is no such interface.
    pub ifindex: Option<u32>,
    /// MTU.
    pub mtu: u32,
    /// How the programs are attached.
    pub attachment: Option<Attachment>,
}
