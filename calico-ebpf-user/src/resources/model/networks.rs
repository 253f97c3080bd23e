//! Sets of addresses, and where they are.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Labels, Origin};
use crate::resources::selector::Selector;

/// A `GlobalNetworkSet` or `NetworkSet`.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSet {
    /// Namespace of a `NetworkSet`.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Its networks, of both IP versions, bits beyond the prefix lengths cleared.
    pub nets: Vec<IpNet>,
    /// Its own labels and the implied one of its namespace; without what the namespace's profile adds.
    pub labels: Labels,
    /// The profile of its namespace, whose labels it inherits.
    pub profiles: Vec<String>,
    /// Where it was written.
    pub origin: Origin,
}

/// An `IPPool`: what routing and translation need of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpPool {
    /// The addresses of the pool.
    pub cidr: IpNet,
    /// Prefix length of the blocks that nodes take from it.
    pub block_size: u8,
    /// Whether what workloads send to outside of all pools gets the host's address.
    pub nat_outgoing: bool,
    /// Whether no addresses are given out any more.
    pub disabled: bool,
    /// Whether Calico would wrap what leaves for other hosts: `ipipMode` or `vxlanMode`.
    pub encapsulated: bool,
    /// Whether its routes are kept from BGP.
    pub disable_bgp_export: bool,
    /// Nodes that may take blocks.
    pub node_selector: Selector,
    /// Where it was written.
    pub origin: Origin,
}

/// A `Node`: what routing needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Labels.
    pub labels: Labels,
    /// `spec.bgp.ipv4Address`, with the network that the node is in.
    pub ipv4: Option<IpNet>,
    /// `spec.bgp.ipv6Address`.
    pub ipv6: Option<IpNet>,
    /// `spec.bgp.asNumber`.
    pub as_number: Option<u32>,
    /// `spec.bgp.routeReflectorClusterID`.
    pub route_reflector_cluster_id: Option<std::net::Ipv4Addr>,
    /// `spec.addresses`.
    pub addresses: Vec<IpAddr>,
    /// Where it was written.
    pub origin: Origin,
}

/// A `Namespace`.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Where it was written.
    pub origin: Origin,
}
