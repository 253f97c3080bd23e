//! What comes back with a generation that is taken back.

use std::collections::{BTreeMap, BTreeSet};

use calico_ebpf_common::abi::{Interface, names, role, uplink_flags, workload_flags};

use super::Dataplane;
use crate::{
    dataplane::{
        error::{DataplaneError, Result},
        links::{LinkAction, Runtime},
        netlink::{Hook, LinkTable, Route},
    },
    routes::plan::{RouteAction, plan},
};

/// What interfaces are, what slots say of them, and the routes of local workloads: what the policy before needs of what a start changes.
/// (XDP programs and nftables tables are not in it. What the first do, other programs do, too.)
#[derive(Clone, Debug, Default)]
pub struct Arrangement {
    interfaces: BTreeMap<u32, Interface>,
    runtimes: BTreeMap<u32, Runtime>,
    routes: Vec<Route>,
}

impl Dataplane {
    /// How it is now. Until [`Dataplane::retire`] or [`Dataplane::rearrange`] sysctls of what is given up stay as well.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn arrangement(&mut self) -> Result<Arrangement> {
        let routes = self.own_routes()?;
        let slots = self.tables.owners().keys();
        let runtimes = slots.map(|slot| Ok((*slot, self.tables.runtime(*slot)?))).collect::<Result<_>>()?;
        self.unconfirmed = true;
        Ok(Arrangement { interfaces: self.tables.interfaces()?, runtimes, routes })
    }

    /// Makes it so again, as far as the interfaces are still there, behind [`Dataplane::take_back`] of the generation that it was under.
    /// What has come since stays: interfaces of workloads that had none, and what only the other generation knows, which is nobody's
    /// now. Returns what failed.
    pub fn rearrange(&mut self, before: &Arrangement) -> Vec<String> {
        self.unconfirmed = false;
        let mut faults = Vec::new();
        let links = match self.netlink.links() {
            Ok(links) => LinkTable::new(links),
            Err(error) => return vec![format!("list the interfaces: {error}")],
        };
        let done = [
            self.rearrange_slots(before, &links),
            self.rearrange_interfaces(before, &links, &mut faults),
            self.rearrange_routes(before, &links, &mut faults),
        ];
        faults.extend(done.into_iter().filter_map(Result::err).map(|error| error.to_string()));
        faults
    }

    fn rearrange_slots(&self, before: &Arrangement, links: &LinkTable) -> Result<()> {
        let is_there = |runtime: &&Runtime| links.by_index(runtime.ifindex).is_some();
        let given_back: BTreeSet<u32> = before.runtimes.values().filter(is_there).map(|one| one.ifindex).collect();
        for (slot, runtime) in &before.runtimes {
            let now = self.tables.runtime(*slot)?;
            let is_seat = runtime.flags & workload_flags::HOST_ENDPOINT != 0;
            let had_interface = given_back.contains(&runtime.ifindex);
            if is_seat && now.flags != runtime.flags || had_interface && now.ifindex != runtime.ifindex {
                self.tables.set_runtime(*slot, runtime)?;
            } else if !had_interface && given_back.contains(&now.ifindex) {
                // It goes back to another one.
                self.tables.set_runtime(*slot, &Runtime::default())?;
            }
        }
        Ok(())
    }

    fn rearrange_interfaces(
        &mut self,
        before: &Arrangement,
        links: &LinkTable,
        faults: &mut Vec<String>,
    ) -> Result<()> {
        let now = self.tables.interfaces()?;
        for (index, entry) in &before.interfaces {
            let Some(link) = links.by_index(*index) else { continue };
            // Who drops what is not translated has not changed back.
            let translates = now.get(index).map_or(0, |now| now.translates);
            let entry = Interface { translates, ..*entry };
            if now.get(index) == Some(&entry) {
                continue;
            }
            self.tables.set_interface(*index, &entry)?;
            for (hook, program) in hanging_by(entry.role) {
                let action = LinkAction::Attach { ifindex: *index, interface: link.name.clone(), hook, program };
                if let Err(error) = self.execute_link(&action) {
                    faults.push(format!("{action}: {error}"));
                }
                self.expected.extend(self.programs.id(program).map(|id| ((*index, hook), id)));
            }
        }
        Ok(())
    }

    fn rearrange_routes(&mut self, before: &Arrangement, links: &LinkTable, faults: &mut Vec<String>) -> Result<()> {
        // The kernel refuses routes over an interface that is down.
        let is_up = |route: &&Route| links.by_index(route.ifindex).is_some_and(|link| link.up);
        let wanted: Vec<Route> = before.routes.iter().filter(is_up).cloned().collect();
        self.owned.extend(wanted.iter().map(|route| (route.address, route.ifindex)));
        let there = self.own_routes()?;
        let known = self.tables.addresses_in_force()?;
        for action in plan(&wanted, &there, &self.owned) {
            let done = match &action {
                RouteAction::Add(route) => self.netlink.add_route(route),
                RouteAction::Replace(route) => self.netlink.replace_route(route),
                // Of a workload that had no interface, or another one that is gone.
                RouteAction::Delete(route)
                    if known.contains(&route.address)
                        && !wanted.iter().any(|wanted| wanted.address == route.address) =>
                {
                    Ok(())
                }
                RouteAction::Delete(route) => self.netlink.delete_route(route),
            };
            if let Err(error) = done {
                faults.push(format!("{action}: {error}"));
            }
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

    /// Puts the generation before in force again: what [`Dataplane::apply_unretired`] left of it. [`Dataplane::rearrange`] sees to the
    /// rest.
    ///
    /// # Errors
    /// If it cannot be written; then nothing has changed.
    pub fn take_back(&mut self, generation: u32) -> Result<()> {
        // The other generation may have had none.
        let before = self.tables.root()?;
        if before.settings(generation).untracked.iter().any(|entry| entry.interface != [0; _]) {
            self.tables.set_uplink_flag(uplink_flags::UNTRACKED, true)?;
        }
        self.tables.commit(generation)
    }
}

/// What hangs on an interface of the host, or on that of a workload.
fn hanging_by(role: u32) -> Vec<(Hook, &'static str)> {
    match role {
        role::WORKLOAD => vec![(Hook::Ingress, names::PROG_FROM_WORKLOAD), (Hook::Egress, names::PROG_TO_WORKLOAD)],
        role::WAY_OUT => vec![(Hook::Egress, names::PROG_TO_UPLINK)],
        _ => vec![(Hook::Ingress, names::PROG_FROM_UPLINK), (Hook::Egress, names::PROG_TO_UPLINK)],
    }
}
