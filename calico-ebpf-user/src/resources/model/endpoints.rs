//! Who is judged.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Labels, Origin};

/// A `WorkloadEndpoint`.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadEndpoint {
    /// Namespace.
    pub namespace: String,
    /// Name, as in the file or computed.
    pub name: String,
    /// `spec.node`.
    pub node: String,
    /// `spec.orchestrator`.
    pub orchestrator: String,
    /// `spec.pod`.
    pub pod: Option<String>,
    /// Host side of the veth or tap.
    pub interface: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// MAC address of the workload.
    pub mac: Option<[u8; 6]>,
    /// Profiles, in order.
    pub profiles: Vec<String>,
    /// Named ports.
    pub ports: Vec<NamedPort>,
    /// Prefixes that it may send from besides its own addresses.
    pub allow_spoofed_source_prefixes: Vec<IpNet>,
    /// Its own labels and the implied ones, over the file's; without what profiles add.
    pub labels: Labels,
    /// Where it was written.
    pub origin: Origin,
}

/// An entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

/// A `HostEndpoint`.
#[derive(Clone, Debug, PartialEq)]
pub struct HostEndpoint {
    /// Name.
    pub name: String,
    /// `spec.node`.
    pub node: String,
    /// Which interfaces of the node it is.
    pub interface: HostInterface,
    /// `spec.expectedIPs`: what selectors of rules find it by, and the interface where no name is given.
    pub expected_ips: Vec<IpAddr>,
    /// Profiles, in order.
    pub profiles: Vec<String>,
    /// Named ports.
    pub ports: Vec<NamedPort>,
    /// Its own labels; without what profiles add.
    pub labels: Labels,
    /// Where it was written.
    pub origin: Origin,
}

/// Which interfaces a host endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostInterface {
    /// The one of this name.
    Named(String),
    /// Whichever carries one of these addresses.
    Carrying(Vec<IpAddr>),
    /// `*`: all but those of workloads and loopback that no other host endpoint is.
    All,
}
