//! What comes back with a generation that is taken back.

use std::collections::{BTreeMap, BTreeSet};

use calico_ebpf_common::abi::{Interface, names, role, uplink_flags, workload_flags};

use super::Dataplane;
use crate::{
    dataplane::{
        error::{DataplaneError, Result},
        links::{LinkAction, Runtime, has_peer},
        maps::value_text,
        netlink::{Hook, Link, LinkTable, Route},
        sysctl,
        tables::Owner,
        tc::Hanging,
    },
    policy::store::interface_name,
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

impl Arrangement {
    /// With what `later` has besides.
    #[must_use]
    pub fn with(mut self, later: Self) -> Self {
        let addresses: BTreeSet<_> = self.routes.iter().map(|route| route.address).collect();
        self.routes.extend(later.routes.into_iter().filter(|route| !addresses.contains(&route.address)));
        for (index, entry) in later.interfaces {
            self.interfaces.entry(index).or_insert(entry);
        }
        for (slot, runtime) in later.runtimes {
            let known = self.runtimes.entry(slot).or_insert(runtime);
            if known.ifindex == 0 && !known.is_seat() {
                *known = runtime;
            }
        }
        self
    }

    /// Where each interface is now: by the index that it had, or made anew under its name.
    fn places<'a>(&self, links: &'a LinkTable) -> BTreeMap<u32, &'a Link> {
        let place = |(index, entry): (&u32, &Interface)| {
            let link = links.by_index(*index).or_else(|| links.by_name(&value_text(&entry.name)))?;
            Some((*index, link))
        };
        self.interfaces.iter().filter_map(place).collect()
    }
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

    /// From now on it may be asked back: until [`Dataplane::retire`] or [`Dataplane::rearrange`] sysctls of what is given up stay.
    pub fn hold(&mut self) {
        self.unconfirmed = true;
    }

    /// Makes it so again, as far as the interfaces are still there or made anew, behind [`Dataplane::take_back`] of the generation that it
    /// was under. What has come since stays: interfaces of workloads that had none, and what only the other generation knows, which
    /// is nobody's now. Idempotent. Returns what failed.
    pub fn rearrange(&mut self, before: &Arrangement) -> Vec<String> {
        self.unconfirmed = false;
        let mut faults = Vec::new();
        let links = match self.netlink.links() {
            Ok(links) => LinkTable::new(links),
            Err(error) => return vec![format!("list the interfaces: {error}")],
        };
        let places = before.places(&links);
        let done = [
            self.rearrange_slots(before, &places),
            self.rearrange_interfaces(before, &places, &links, &mut faults),
            self.rearrange_routes(before, &places, &mut faults),
        ];
        faults.extend(done.into_iter().filter_map(Result::err).map(|error| error.to_string()));
        faults
    }

    fn rearrange_slots(&self, before: &Arrangement, places: &BTreeMap<u32, &Link>) -> Result<()> {
        let given_back: BTreeSet<u32> =
            before.runtimes.values().filter_map(|runtime| Some(places.get(&runtime.ifindex)?.index)).collect();
        for (slot, runtime) in &before.runtimes {
            let now = self.tables.runtime(*slot)?;
            let wanted = if runtime.is_seat() {
                Runtime { takeover: now.takeover, ..*runtime }
            } else if let Some(link) = places.get(&runtime.ifindex) {
                runtime_on(link, runtime, &now)
            } else if given_back.contains(&now.ifindex) {
                // It goes back to another one.
                Runtime::default()
            } else {
                continue;
            };
            if now != wanted {
                self.tables.set_runtime(*slot, &wanted)?;
            }
        }
        Ok(())
    }

    fn rearrange_interfaces(
        &mut self,
        before: &Arrangement,
        places: &BTreeMap<u32, &Link>,
        links: &LinkTable,
        faults: &mut Vec<String>,
    ) -> Result<()> {
        let now = self.tables.interfaces()?;
        self.expected.retain(|(index, _), _| links.by_index(*index).is_some());
        self.expected_xdp.retain(|index, _| links.by_index(*index).is_some());
        let mut uplinks = Vec::new();
        for (index, entry) in &before.interfaces {
            let Some(link) = places.get(index) else { continue };
            if link.index != *index {
                self.tables.remove_interface(*index)?;
                self.settle_anew(link, entry, faults);
            }
            if entry.role == role::UPLINK {
                uplinks.push(link.index);
            }
            // Who drops what is not translated has not changed back.
            let translates = now.get(&link.index).map_or(0, |now| now.translates);
            let entry =
                Interface { translates, mtu: link.mtu, mac: link.mac, name: interface_name(&link.name), ..*entry };
            if now.get(&link.index) != Some(&entry) {
                self.tables.set_interface(link.index, &entry)?;
            }
            for (hook, program) in hanging_by(entry.role) {
                let Some(id) = self.programs.id(program) else { continue };
                self.expected.insert((link.index, hook), id);
                let right = Hanging { attachment: self.hooks.attachment, program: id };
                if self.hooks.hanging(&mut self.netlink, link.index, hook)? == Some(right) {
                    continue;
                }
                let action = LinkAction::Attach { ifindex: link.index, interface: link.name.clone(), hook, program };
                if let Err(error) = self.execute_link(&action) {
                    faults.push(format!("{action}: {error}"));
                }
            }
        }
        if uplinks.is_empty() { Ok(()) } else { self.tables.set_uplinks(&uplinks) }
    }

    /// The sysctls of a workload's interface that was made anew.
    fn settle_anew(&mut self, link: &Link, entry: &Interface, faults: &mut Vec<String>) {
        if entry.role != role::WORKLOAD {
            return;
        }
        let spoof = self.tables.runtime(entry.slot).is_ok_and(|one| one.flags & workload_flags::SPOOF != 0);
        let saved = sysctl::apply(sysctl::workload(&link.name, spoof, entry.address6 != [0; 16]), faults);
        if let Some(owner) = self.tables.owners().get(&entry.slot).cloned()
            && let Err(error) = self.tables.set_owner(entry.slot, Owner { sysctls: saved, ..owner })
        {
            faults.push(error.to_string());
        }
    }

    fn rearrange_routes(
        &mut self,
        before: &Arrangement,
        places: &BTreeMap<u32, &Link>,
        faults: &mut Vec<String>,
    ) -> Result<()> {
        // The kernel refuses routes over an interface that is down.
        let place = |route: &Route| {
            let link = places.get(&route.ifindex).filter(|link| link.up)?;
            Some(Route { ifindex: link.index, ..route.clone() })
        };
        let wanted: Vec<Route> = before.routes.iter().filter_map(place).collect();
        self.owned.extend(wanted.iter().map(|route| (route.address, route.ifindex)));
        let there = self.own_routes()?;
        let known = self.tables.addresses_in_force()?;
        for action in plan(&wanted, &there, &self.owned) {
            // Of a workload that had no interface, or another one that is gone.
            let stays = |route: &Route| {
                known.contains(&route.address) && !wanted.iter().any(|wanted| wanted.address == route.address)
            };
            if matches!(&action, RouteAction::Delete(route) if stays(route)) {
                continue;
            }
            if let Err(error) = self.change_route(&action) {
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

/// What a slot has to say of its interface, which was `before`, is this one and says `now`.
fn runtime_on(link: &Link, before: &Runtime, now: &Runtime) -> Runtime {
    let peer = if has_peer(link) { workload_flags::PEER } else { 0 };
    let mac =
        if before.flags & workload_flags::MAC_CHECK != 0 || before.ifindex == link.index && now.ifindex != link.index {
            before.mac
        } else if now.ifindex == link.index {
            now.mac
        } else {
            // The program learns it.
            [0; 6]
        };
    Runtime {
        ifindex: link.index,
        flags: before.flags & !(workload_flags::PEER | workload_flags::ARRIVING) | peer,
        mtu: link.mtu,
        mac,
        host_mac: link.mac,
        takeover: now.takeover,
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
