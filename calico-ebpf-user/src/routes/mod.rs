//! The routes of our workloads: `ADDR/32 dev IFACE scope link proto 80 metric 1024` in the main table, and the /128s.
//!
//! Routing daemons learn them from the kernel. Ours are those of our protocol whose destination is or was an address of a
//! local workload, on its interface; nothing else is ever touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `deviceRouteProtocol` unless configured.
pub const DEFAULT_PROTOCOL: u8 = 80;
/// `ipv4NormalRoutePriority` and `ipv6NormalRoutePriority` unless configured.
pub const DEFAULT_PRIORITY: u32 = 1024;

/// How routes are written: `FelixConfiguration`'s parameters of these names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteParameters {
    /// `deviceRouteProtocol`.
    pub protocol: u8,
    /// `deviceRouteSourceAddress`.
    pub source_v4: Option<Ipv4Addr>,
    /// `deviceRouteSourceAddressIPv6`.
    pub source_v6: Option<Ipv6Addr>,
    /// `ipv4NormalRoutePriority`.
    pub priority_v4: u32,
    /// `ipv6NormalRoutePriority`.
    pub priority_v6: u32,
}

impl Default for RouteParameters {
    fn default() -> Self {
        Self {
            protocol: DEFAULT_PROTOCOL,
            source_v4: None,
            source_v6: None,
            priority_v4: DEFAULT_PRIORITY,
            priority_v6: DEFAULT_PRIORITY,
        }
    }
}

/// One of our routes, as `routes` and `status` show it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct RouteStatus {
    /// Destination.
    pub address: IpAddr,
    /// Interface name.
    pub interface: String,
    /// `namespace/name` of the workload.
    pub endpoint: String,
    /// Route protocol.
    pub protocol: u8,
    /// Metric.
    pub metric: u32,
    /// Whether the kernel has it.
    pub installed: bool,
}
