//! What the data path is to be, from what was accepted. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use calico_ebpf_common::abi::host_action;

use super::engine::Accepted;
use crate::{
    dataplane::{Desired, DesiredHostEndpoint, DesiredWorkload, Uplinks, XdpWish},
    policy::{
        compiled::{forward_seat, from_workloads_seat},
        store::Store,
    },
    resources::model::FelixConfiguration,
    routes::{RouteParameters, migration::Migrations},
};

/// All but policy. `store` gives the slots; a workload without one is left out, which a plan of the same policy never
/// leads to.
#[must_use]
pub(super) fn desired(
    accepted: &Accepted,
    store: &Store,
    node: &str,
    uplinks: &Uplinks,
    migrations: &Migrations,
) -> Desired {
    let workloads = accepted.compiled.workloads.iter().filter_map(|(name, workload)| {
        Some(DesiredWorkload {
            name: name.clone(),
            pod: workload.pod.clone(),
            slot: store.slot(name)?.slot,
            interface: workload.interface.clone(),
            addresses: workload.addresses.clone(),
            mac: workload.mac,
            spoof: !workload.spoof.is_empty(),
            migration: migrations.get(name).cloned(),
        })
    });
    let workloads: Vec<DesiredWorkload> = workloads.collect();
    // Not for those that are left to others, or have left.
    let answered = if accepted.answered.is_empty() {
        Vec::new()
    } else {
        let ours: BTreeSet<IpAddr> = workloads.iter().flat_map(|workload| &workload.addresses).copied().collect();
        accepted.answered.iter().filter(|address| ours.contains(address)).copied().collect()
    };
    let host_endpoints = accepted.compiled.host_endpoints.iter().filter_map(|(name, endpoint)| {
        let slot = |seat: &str| store.slot(seat).map(|slot| slot.slot);
        Some(DesiredHostEndpoint {
            name: name.clone(),
            interface: endpoint.interface.clone(),
            host: slot(name)?,
            forward: slot(&forward_seat(name)),
            from_workloads: slot(&from_workloads_seat(name)),
        })
    });
    Desired {
        workloads,
        host_endpoints: host_endpoints.collect(),
        uplinks: uplinks.clone(),
        interface_prefixes: accepted.felix.interface_prefixes.clone(),
        routes: routes(&accepted.felix),
        untracked: accepted.compiled.untracked.iter().map(|(name, of)| (name.clone(), of.ingress.is_some())).collect(),
        xdp: xdp(&accepted.felix),
        answered,
        nat_outgoing: accepted.nat_outgoing.clone(),
        host_welcomes: accepted.compiled.host_action != host_action::DROP,
        node: node.to_owned(),
    }
}

/// What may be made of XDP.
fn xdp(felix: &FelixConfiguration) -> XdpWish {
    let default = XdpWish::default();
    XdpWish {
        enabled: felix.xdp_enabled.unwrap_or(default.enabled),
        generic: felix.generic_xdp_enabled.unwrap_or(default.generic),
    }
}

/// How routes are written.
pub(super) fn routes(felix: &FelixConfiguration) -> RouteParameters {
    let default = RouteParameters::default();
    RouteParameters {
        protocol: felix.device_route_protocol.unwrap_or(default.protocol),
        source_v4: felix.device_route_source_address,
        source_v6: felix.device_route_source_address_v6,
        priority_v4: felix.ipv4_normal_route_priority.unwrap_or(default.priority_v4),
        priority_v6: felix.ipv6_normal_route_priority.unwrap_or(default.priority_v6),
        elevated_v4: felix.ipv4_elevated_route_priority.unwrap_or(default.elevated_v4),
        elevated_v6: felix.ipv6_elevated_route_priority.unwrap_or(default.elevated_v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn route_parameters_are_calicos_unless_given() {
        assert_eq!(routes(&FelixConfiguration::default()), RouteParameters::default());
        let felix = FelixConfiguration {
            device_route_protocol: Some(7),
            ipv6_normal_route_priority: Some(9),
            ..FelixConfiguration::default()
        };
        let routes = routes(&felix);
        assert_eq!((routes.protocol, routes.priority_v4, routes.priority_v6), (7, 1024, 9));
    }
}
