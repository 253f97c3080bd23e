//! Which routes to add and which to remove: desired against found. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use super::{RouteParameters, migration::Priority};
use crate::dataplane::netlink::Route;

/// One change of the kernel's routes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RouteAction {
    /// Add a route; refused by the kernel where somebody else's has this destination and metric.
    Add(Route),
    /// Put it in place of ours of this destination and metric; no packet meets a gap.
    Replace(Route),
    /// Delete one.
    Delete(Route),
}

impl fmt::Display for RouteAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (verb, route) = match self {
            Self::Add(route) => ("add", route),
            Self::Replace(route) => ("replace", route),
            Self::Delete(route) => ("delete", route),
        };
        let Route { address, prefix_len, ifindex, protocol, metric, source, .. } = route;
        write!(f, "route {verb} {address}/{prefix_len} dev {ifindex} proto {protocol} metric {metric}")?;
        source.map_or(Ok(()), |source| write!(f, " src {source}"))
    }
}

/// The route of a workload's address, if it is to have one.
pub(crate) fn route(address: IpAddr, ifindex: u32, priority: Priority, parameters: &RouteParameters) -> Option<Route> {
    let (prefix_len, normal, elevated, source) = match address {
        IpAddr::V4(_) => (32, parameters.priority_v4, parameters.elevated_v4, parameters.source_v4.map(IpAddr::V4)),
        IpAddr::V6(_) => (128, parameters.priority_v6, parameters.elevated_v6, parameters.source_v6.map(IpAddr::V6)),
    };
    let metric = match priority {
        Priority::Withheld => return None,
        Priority::Elevated => elevated,
        Priority::Normal => normal,
    };
    Some(Route { address, prefix_len, ifindex, protocol: parameters.protocol, metric, source, plain: true })
}

/// What leads from `found` (routes of the main table that carry one of our protocols) to `wanted`.
///
/// `owned` says which (address, interface) pairs are or were a local workload's: only those of `found` are ours.
pub(crate) fn plan(wanted: &[Route], found: &[Route], owned: &BTreeSet<(IpAddr, u32)>) -> Vec<RouteAction> {
    let wanted: BTreeMap<(IpAddr, u32), &Route> =
        wanted.iter().map(|route| ((route.address, route.metric), route)).collect();
    let mut right = BTreeSet::new();
    let mut wrong = BTreeSet::new();
    let mut deletions = Vec::new();
    for route in found {
        let host = matches!((route.address, route.prefix_len), (IpAddr::V4(_), 32) | (IpAddr::V6(_), 128));
        if !host || !route.plain || !owned.contains(&(route.address, route.ifindex)) {
            continue;
        }
        let key = (route.address, route.metric);
        match wanted.get(&key) {
            Some(desired) if *desired == route => drop(right.insert(key)),
            Some(_) => drop(wrong.insert(key)),
            None => deletions.push(RouteAction::Delete(route.clone())),
        }
    }
    let missing = wanted.into_iter().filter(|(key, _)| !right.contains(key));
    // New ones first, so that a changed metric leaves no gap.
    let mut actions: Vec<RouteAction> =
        missing
            .map(|(key, route)| {
                if wrong.contains(&key) { RouteAction::Replace(route.clone()) } else { RouteAction::Add(route.clone()) }
            })
            .collect();
    actions.extend(deletions);
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    }

    fn ours(text: &str, ifindex: u32) -> Route {
        route(address(text), ifindex, Priority::Normal, &RouteParameters::default()).expect("a route")
    }

    fn owned(pairs: &[(&str, u32)]) -> BTreeSet<(IpAddr, u32)> {
        pairs.iter().map(|(text, ifindex)| (address(text), *ifindex)).collect()
    }

    #[test]
    fn adds_what_is_missing_and_leaves_what_is_right() {
        let wanted = [ours("10.0.0.1", 5), ours("fd00::1", 5)];
        let owned = owned(&[("10.0.0.1", 5), ("fd00::1", 5)]);
        assert_eq!(plan(&wanted, &wanted, &owned), []);
        assert_eq!(plan(&wanted, &wanted[..1], &owned), [RouteAction::Add(wanted[1].clone())]);
    }

    #[test]
    fn only_ours_are_removed() {
        let gone = ours("10.0.0.2", 5);
        let foreign_address = ours("10.0.0.3", 5);
        let foreign_interface = ours("10.0.0.2", 6);
        let network = Route { prefix_len: 24, ..ours("10.0.0.2", 5) };
        let via_gateway = Route { plain: false, ..ours("10.0.0.2", 5) };
        let found = [gone.clone(), foreign_address, foreign_interface, network, via_gateway];
        assert_eq!(plan(&[], &found, &owned(&[("10.0.0.2", 5)])), [RouteAction::Delete(gone)]);
    }

    #[test]
    fn another_metric_comes_before_the_old_one_goes() {
        let new = ours("10.0.0.1", 5);
        let old = Route { metric: 512, ..new.clone() };
        assert_eq!(
            plan(std::slice::from_ref(&new), std::slice::from_ref(&old), &owned(&[("10.0.0.1", 5)])),
            [RouteAction::Add(new), RouteAction::Delete(old)]
        );
    }

    #[test]
    fn a_wrong_attribute_is_put_right_in_place() {
        let new = Route { source: Some(address("192.0.2.1")), ..ours("10.0.0.1", 5) };
        let old = ours("10.0.0.1", 5);
        assert_eq!(
            plan(std::slice::from_ref(&new), std::slice::from_ref(&old), &owned(&[("10.0.0.1", 5)])),
            [RouteAction::Replace(new)]
        );
    }
}
