//! What comes back with a generation that is taken back.

use std::collections::BTreeMap;

use calico_ebpf_common::abi::{Interface, names, role};

use super::Dataplane;
use crate::{
    dataplane::{
        error::{DataplaneError, Result},
        links::Runtime,
        netlink::{Hook, LinkTable, Route},
    },
    routes::plan::{RouteAction, plan},
};

/// What interfaces are, what slots say of them, and the routes of local workloads: all that a start changes besides policy and that is
/// needed for the policy before to mean what it meant.
#[derive(Clone, Debug, Default)]
pub struct Arrangement {
    interfaces: BTreeMap<u32, Interface>,
    runtimes: BTreeMap<u32, Runtime>,
    routes: Vec<Route>,
}

impl Dataplane {
    /// How it is now.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn arrangement(&mut self) -> Result<Arrangement> {
        let routes = self.own_routes()?;
        let slots = self.tables.owners().keys();
        let runtimes = slots.map(|slot| Ok((*slot, self.tables.runtime(*slot)?))).collect::<Result<_>>()?;
        Ok(Arrangement { interfaces: self.tables.interfaces()?, runtimes, routes })
    }

    /// Makes it so again, as far as the interfaces are still there; what has come since stays besides, and is nobody's for the policy
    /// before.
    pub(super) fn rearrange(&mut self, before: &Arrangement) -> Result<()> {
        let links = LinkTable::new(self.netlink.links().map_err(DataplaneError::io("list the interfaces"))?);
        for (slot, runtime) in &before.runtimes {
            let is_there = runtime.ifindex == 0 || links.by_index(runtime.ifindex).is_some();
            let now = self.tables.runtime(*slot)?;
            if is_there && (now.ifindex, now.flags) != (runtime.ifindex, runtime.flags) {
                self.tables.set_runtime(*slot, runtime)?;
            }
        }
        let now = self.tables.interfaces()?;
        for (index, entry) in before.interfaces.iter().filter(|(index, _)| links.by_index(**index).is_some()) {
            // Who drops what is not translated has not changed back.
            let translates = now.get(index).map_or(0, |now| now.translates);
            let entry = Interface { translates, ..*entry };
            if now.get(index) != Some(&entry) {
                self.tables.set_interface(*index, &entry)?;
                self.hang(*index, entry.role)?;
            }
        }
        let there = self.own_routes()?;
        self.owned.extend(before.routes.iter().map(|route| (route.address, route.ifindex)));
        let wanted: Vec<Route> =
            before.routes.iter().filter(|route| links.by_index(route.ifindex).is_some()).cloned().collect();
        for action in plan(&wanted, &there, &self.owned) {
            let done = match &action {
                RouteAction::Add(route) => self.netlink.add_route(route),
                RouteAction::Replace(route) => self.netlink.replace_route(route),
                RouteAction::Delete(route) => self.netlink.delete_route(route),
            };
            done.map_err(DataplaneError::io(action.to_string()))?;
        }
        Ok(())
    }

    /// The routes of local workloads.
    fn own_routes(&mut self) -> Result<Vec<Route>> {
        let mut routes =
            self.netlink.routes(&self.info.route_protocols).map_err(DataplaneError::io("list the routes"))?;
        routes.retain(|route| route.plain && self.owned.contains(&(route.address, route.ifindex)));
        Ok(routes)
    }

    /// Hangs on an interface what belongs there by its role.
    fn hang(&mut self, ifindex: u32, role: u32) -> Result<()> {
        let programs = match role {
            role::WORKLOAD => [Some(names::PROG_FROM_WORKLOAD), Some(names::PROG_TO_WORKLOAD)],
            role::WAY_OUT => [None, Some(names::PROG_TO_UPLINK)],
            _ => [Some(names::PROG_FROM_UPLINK), Some(names::PROG_TO_UPLINK)],
        };
        for (hook, program) in [Hook::Ingress, Hook::Egress].into_iter().zip(programs) {
            let Some(program) = program else { continue };
            self.hooks.attach(&mut self.netlink, &mut self.programs, program, ifindex, hook)?;
            self.expected.extend(self.programs.id(program).map(|id| ((ifindex, hook), id)));
        }
        Ok(())
    }
}
