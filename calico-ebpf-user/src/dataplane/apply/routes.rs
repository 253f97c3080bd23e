//! Routes of the local workloads, and those of others to them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use calico_ebpf_common::abi::workload_flags;

use super::Dataplane;
use crate::{
    dataplane::{
        desired::{Applied, Desired, DesiredWorkload},
        error::{DataplaneError, Result},
        links::{Found, Runtime},
        netlink::{HostRoute, Route},
    },
    routes::{
        RouteParameters, RouteStatus,
        claim::{Claim, TOLD_BY_DAEMONS},
        migration::{Migration, Stage, priority},
        plan::{RouteAction, plan as plan_routes, route},
    },
};

impl Dataplane {
    /// Withdraws the routes of addresses that no workload has any more: others may have them, and nothing waits for that.
    pub(super) fn withdraw(&mut self, desired: &Desired, applied: &mut Applied) {
        let kept: BTreeSet<IpAddr> =
            desired.workloads.iter().flat_map(|workload| workload.addresses.iter().copied()).collect();
        let gone: BTreeSet<_> = self.owned.iter().filter(|(address, _)| !kept.contains(address)).copied().collect();
        if gone.is_empty() {
            return;
        }
        let deleted = self.netlink.routes(&self.info.route_protocols).and_then(|there| {
            plan_routes(&[], &there, &gone).iter().try_for_each(|action| {
                tracing::debug!("{action}");
                if let RouteAction::Delete(route) = action {
                    self.netlink.delete_route(route)?;
                    applied.changes += 1;
                }
                Ok(())
            })
        });
        // All routes are looked at again at the end.
        if let Err(error) = deleted {
            tracing::debug!("cannot withdraw routes at once: {error}");
        }
    }

    pub(super) fn routes(&mut self, desired: &Desired, found: &Found, failed: &BTreeSet<u32>, applied: &mut Applied) {
        let (actions, wanted) = match self.plan_routes(desired, found, failed) {
            Ok(plan) => plan,
            Err(error) => return applied.faults.push(error.to_string()),
        };
        let mut missing = BTreeSet::new();
        for action in &actions {
            tracing::debug!("{action}");
            match self.change_route(action) {
                Ok(()) => applied.changes += 1,
                Err(error) => {
                    if let RouteAction::Add(route) | RouteAction::Replace(route) = action {
                        missing.insert((route.address, route.ifindex));
                        if !self.netlink.exists(route.ifindex) {
                            continue;
                        }
                    }
                    if let RouteAction::Add(route) | RouteAction::Replace(route) = action {
                        // A sysctl may be in the way.
                        self.settled.retain(|(index, _)| *index != route.ifindex);
                    }
                    applied.faults.push(format!("{action}: {}", explain_route_error(&error)));
                }
            }
        }
        self.owned.extend(wanted.iter().map(|(_, route)| (route.address, route.ifindex)));
        self.owned.retain(|(_, ifindex)| found.links.by_index(*ifindex).is_some());
        for workload in &desired.workloads {
            let priority = priority(workload.migration.as_ref());
            for address in &workload.addresses {
                // One that is withheld is not missing.
                let Some(Route { metric, .. }) = route(*address, 0, priority, &desired.routes) else { continue };
                let route = wanted.iter().find(|(name, route)| name == &workload.name && route.address == *address);
                let installed = route.is_some_and(|(_, route)| !missing.contains(&(route.address, route.ifindex)));
                applied.routes.push(RouteStatus {
                    address: *address,
                    interface: workload.interface.clone(),
                    endpoint: workload.name.clone(),
                    protocol: desired.routes.protocol,
                    metric,
                    installed,
                });
            }
        }
    }

    /// Carries out one change.
    pub(super) fn change_route(&mut self, action: &RouteAction) -> std::io::Result<()> {
        match action {
            RouteAction::Add(route) => self.netlink.add_route(route),
            RouteAction::Replace(route) => self.netlink.replace_route(route),
            RouteAction::Delete(route) => self.netlink.delete_route(route),
        }
    }

    /// The routes to change, and those that should be, each with its workload.
    #[expect(clippy::type_complexity, reason = "used twice, next to here")]
    pub(super) fn plan_routes(
        &mut self,
        desired: &Desired,
        found: &Found,
        failed: &BTreeSet<u32>,
    ) -> Result<(Vec<RouteAction>, Vec<(String, Route)>)> {
        let mut wanted = Vec::new();
        for workload in &desired.workloads {
            let Some(link) = found.links.by_name(&workload.interface) else { continue };
            // The kernel refuses routes over an interface that is down.
            if failed.contains(&link.index) || !link.up {
                continue;
            }
            let priority = priority(workload.migration.as_ref());
            let addresses = workload.addresses.iter();
            let routes = addresses.filter_map(|address| route(*address, link.index, priority, &desired.routes));
            wanted.extend(routes.map(|route| (workload.name.clone(), route)));
        }
        let mut owned = self.owned.clone();
        owned.extend(wanted.iter().map(|(_, route)| (route.address, route.ifindex)));
        let there = self.netlink.routes(&self.info.route_protocols).map_err(DataplaneError::io("list the routes"))?;
        let routes: Vec<Route> = wanted.iter().map(|(_, route)| route.clone()).collect();
        Ok((plan_routes(&routes, &there, &owned), wanted))
    }

    /// Gives a workload that has come from another node its routes at once; the next [`Dataplane::apply`] sees to the rest.
    ///
    /// # Errors
    /// If the maps cannot be written.
    pub fn welcome(&mut self, workload: &DesiredWorkload, parameters: &RouteParameters) -> Result<()> {
        let Some(Migration { stage: Stage::Elevated { since }, .. }) = workload.migration else { return Ok(()) };
        let before = self.tables.runtime(workload.slot)?;
        if before.ifindex == 0 {
            return Ok(());
        }
        let flags = before.flags & !workload_flags::ARRIVING;
        self.tables.set_runtime(workload.slot, &Runtime { flags, takeover: since, ..before })?;
        let priority = priority(workload.migration.as_ref());
        for address in &workload.addresses {
            let Some(route) = route(*address, before.ifindex, priority, parameters) else { continue };
            self.owned.insert((route.address, route.ifindex));
            // It may be there already, or somebody else's is: the next look finds out.
            if let Err(error) = self.netlink.add_route(&route) {
                tracing::debug!("route {address}: {error}");
            }
        }
        Ok(())
    }

    /// What routing daemons say of addresses of these workloads, where that is better than our own routes, which have
    /// `own_protocol` or one of before; and what others do, for people.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn claims<'a>(
        &mut self,
        workloads: impl Iterator<Item = (&'a String, &'a [IpAddr])>,
        own_protocol: u8,
    ) -> Result<(BTreeMap<String, Claim>, Vec<String>)> {
        let (mut claims, mut others) = (BTreeMap::new(), Vec::new());
        for (name, addresses) in workloads {
            for address in addresses {
                let found = self.netlink.host_route(*address).map_err(DataplaneError::io("look for a route"))?;
                let Some(HostRoute { route, via }) = found else { continue };
                if route.protocol == own_protocol || self.info.route_protocols.contains(&route.protocol) {
                    continue;
                }
                if TOLD_BY_DAEMONS.contains(&route.protocol) {
                    claims.insert(name.clone(), Claim { address: *address, via });
                } else {
                    others.push(format!(
                        "{address} of {name}: another program's route (protocol {}, metric {}) is better than ours; it is \
                         left alone, and traffic follows it",
                        route.protocol, route.metric
                    ));
                }
            }
        }
        Ok((claims, others))
    }
}

fn explain_route_error(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EEXIST) => "another program's route has this destination and metric; it is left alone".to_owned(),
        _ => error.to_string(),
    }
}
