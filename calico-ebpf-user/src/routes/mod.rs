//! The routes of our workloads: `ADDR/32 dev IFACE scope link proto 80 metric 1024` in the main table, and the /128s.
//!
//! Routing daemons learn them from the kernel. Ours are those of our protocol whose destination is or was an address of a
//! local workload, on its interface; nothing else is ever touched.

pub mod claim;
pub mod departure;
#[cfg(test)]
mod fixture;
pub mod migration;
pub(crate) mod plan;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::dataplane::{self, netlink::Netlink, view::View};

/// `deviceRouteProtocol` unless configured.
pub const DEFAULT_PROTOCOL: u8 = 80;
/// `ipv4NormalRoutePriority` and `ipv6NormalRoutePriority` unless configured.
pub const DEFAULT_PRIORITY: u32 = 1024;
/// `ipv4ElevatedRoutePriority` and `ipv6ElevatedRoutePriority` unless configured.
pub const DEFAULT_ELEVATED_PRIORITY: u32 = 512;

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
    /// `ipv4ElevatedRoutePriority`.
    pub elevated_v4: u32,
    /// `ipv6ElevatedRoutePriority`.
    pub elevated_v6: u32,
}

impl Default for RouteParameters {
    fn default() -> Self {
        Self {
            protocol: DEFAULT_PROTOCOL,
            source_v4: None,
            source_v6: None,
            priority_v4: DEFAULT_PRIORITY,
            priority_v6: DEFAULT_PRIORITY,
            elevated_v4: DEFAULT_ELEVATED_PRIORITY,
            elevated_v6: DEFAULT_ELEVATED_PRIORITY,
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

/// Our routes as a stopped (or running) data path shows them: each address of each local workload, and whether the kernel
/// has a route of ours for it.
///
/// # Errors
/// If the maps or the routes cannot be read.
pub fn read(view: &View) -> dataplane::Result<Vec<RouteStatus>> {
    let protocols = view.info()?.route_protocols;
    let failed = |what: &'static str| dataplane::DataplaneError::io(what);
    let mut netlink = Netlink::open().map_err(failed("open a netlink socket"))?;
    let found = netlink.routes(&protocols).map_err(failed("list the routes"))?;
    let workloads = view.workloads()?;
    let mut routes = Vec::new();
    for (address, slot) in view.owned_addresses()? {
        let Some((_, owner, workload)) = workloads.iter().find(|(other, ..)| *other == slot) else { continue };
        let route = found.iter().find(|route| {
            let host = if address.is_ipv4() { 32 } else { 128 };
            route.address == address && route.prefix_len == host && route.plain && route.ifindex == workload.ifindex
        });
        routes.push(RouteStatus {
            address,
            interface: owner.interface.clone(),
            endpoint: owner.endpoint.clone(),
            protocol: route.map_or_else(|| protocols.last().copied().unwrap_or(DEFAULT_PROTOCOL), |r| r.protocol),
            metric: route.map_or(DEFAULT_PRIORITY, |route| route.metric),
            installed: route.is_some(),
        });
    }
    Ok(routes)
}
