//! Interfaces and the programs on them.

use std::collections::BTreeSet;

use calico_ebpf_common::abi::{names, role};

use super::Dataplane;
use crate::dataplane::{
    desired::{Applied, Desired},
    error::{DataplaneError, Result},
    host_endpoints::{self, Resolved},
    links::{Found, LinkAction, PeerMac, Runtime, Wanted, reconcile},
    load,
    netlink::{Hook, Link, LinkTable},
    tc::Expected,
    translation::Translated,
};

impl Dataplane {
    /// Looks at everything that a reconcile compares.
    pub(super) fn find(&mut self, desired: &Desired) -> Result<Found> {
        let links = self.netlink.links().map_err(DataplaneError::io("list the interfaces"))?;
        let mut found = Found {
            links: LinkTable::new(links),
            pins: self.hooks.pins()?,
            interfaces: self.tables.interfaces()?,
            ..Found::default()
        };
        let mut candidates: BTreeSet<u32> = found.pins.iter().map(|(index, _)| *index).collect();
        candidates.extend(found.interfaces.keys());
        candidates.extend(&self.info.qdiscs);
        candidates.extend(desired.workloads.iter().filter_map(|w| Some(found.links.by_name(&w.interface)?.index)));
        for ifindex in candidates.into_iter().filter(|index| found.links.by_index(*index).is_some()) {
            for hook in [Hook::Ingress, Hook::Egress] {
                if let Some(hanging) = self.hooks.hanging(&mut self.netlink, ifindex, hook)? {
                    found.hanging.insert((ifindex, hook), hanging);
                }
            }
        }
        let of_hosts = desired.host_endpoints.iter().flat_map(|endpoint| {
            [Some(endpoint.host), endpoint.forward, endpoint.from_workloads].into_iter().flatten()
        });
        let slots = desired.workloads.iter().map(|workload| workload.slot).chain(of_hosts);
        for slot in slots.chain(self.tables.owners().keys().copied()) {
            if slot < self.tables.limits().slots {
                found.runtimes.insert(slot, self.tables.runtime(slot)?);
            }
        }
        for workload in desired.workloads.iter().filter(|workload| workload.mac.is_none()) {
            let Some(link) = found.links.by_name(&workload.interface) else { continue };
            let (true, Some(netns), Some(peer)) = (link.veth, link.peer_netns, link.peer_index) else { continue };
            match self.netlink.foreign_mac(netns, peer) {
                Ok(Some(mac)) if mac != [0; 6] => {
                    let is_news = self.peer_macs.get(&link.index).is_some_and(|before| *before != mac);
                    found.peer_macs.insert(link.index, PeerMac { mac, is_news });
                }
                // The program learns it from what the workload sends.
                Ok(_) => {}
                Err(error) => tracing::debug!("MAC address behind {}: {error}", link.name),
            }
        }
        Ok(found)
    }

    /// Where the other end of a veth has another MAC address than before, the host's stack must not go on with the old one. The workload's
    /// own questions, by which it would learn that, it does not see.
    pub(super) fn forget_neighbours(&mut self, desired: &Desired, found: &Found) {
        for workload in &desired.workloads {
            let Some(link) = found.links.by_name(&workload.interface) else { continue };
            let (before, now) = (self.peer_macs.get(&link.index), found.peer_macs.get(&link.index));
            if before.is_none_or(|before| now.is_none_or(|now| now.mac == *before)) {
                continue;
            }
            for address in &workload.addresses {
                if let Err(error) = self.netlink.delete_neighbour(link.index, *address) {
                    tracing::debug!("neighbour {address} of {}: {error}", link.name);
                }
            }
        }
    }

    /// Which interfaces are host endpoints.
    pub(super) fn host_interfaces(&mut self, desired: &Desired, found: &Found) -> Result<Resolved> {
        let networks = if desired.host_endpoints.is_empty() {
            Vec::new()
        } else {
            self.netlink.networks().map_err(DataplaneError::io("list the addresses of this host"))?
        };
        let addresses = networks.into_iter().map(|(index, network)| (index, network.addr())).collect();
        let is_workload = |link: &Link| {
            let prefixes = desired.interface_prefixes.iter().flatten();
            desired.workloads.iter().any(|workload| workload.interface == link.name)
                || prefixes.into_iter().any(|prefix| !prefix.is_empty() && link.name.starts_with(prefix.as_str()))
                || found.interfaces.get(&link.index).is_some_and(|entry| entry.role == role::WORKLOAD)
                // It was one's, and drops everything since.
                || found
                    .hanging
                    .get(&(link.index, Hook::Ingress))
                    .is_some_and(|hanging| Some(hanging.program) == self.programs.id(names::PROG_DROP))
        };
        Ok(host_endpoints::resolve(&desired.host_endpoints, &found.links, is_workload, &addresses))
    }

    pub(super) fn plan_links(
        &self,
        desired: &Desired,
        uplinks: &[u32],
        hosts: &Resolved,
        translated: &Translated,
        found: &Found,
    ) -> Vec<LinkAction> {
        let programs = load::PROGRAMS.into_iter().filter_map(|name| Some((name, self.programs.id(name)?))).collect();
        let wanted = Wanted {
            workloads: &desired.workloads,
            uplinks,
            host_endpoints: &desired.host_endpoints,
            seats: &hosts.seats,
            translated,
            prefixes: desired.interface_prefixes.as_deref(),
            attachment: self.hooks.attachment,
            programs: &programs,
            // Without the clock they are judged as what comes later.
            now: if desired.host_endpoints.is_empty() { 0 } else { self.now().unwrap_or(0) },
        };
        reconcile(&wanted, found)
    }

    /// Carries out actions; those that fail become faults. The interfaces where a program could not be attached.
    /// `undetached`: where one could not be taken off, now or before; those interfaces are not forgotten, since what hangs on one
    /// without an entry counts as a workload's that is gone.
    pub(super) fn execute_links(
        &mut self,
        actions: &[LinkAction],
        undetached: &mut BTreeSet<u32>,
        applied: &mut Applied,
    ) -> BTreeSet<u32> {
        let mut failed = BTreeSet::new();
        for action in actions {
            if matches!(action, LinkAction::RemoveInterface { ifindex } if undetached.contains(ifindex)) {
                continue;
            }
            tracing::debug!("{action}");
            match self.execute_link(action) {
                Ok(()) => applied.changes += 1,
                Err(error) => {
                    if let LinkAction::Attach { ifindex, .. } = action {
                        failed.insert(*ifindex);
                        // It has vanished since it was listed: no fault, and a notification is on its way.
                        if !self.netlink.exists(*ifindex) {
                            continue;
                        }
                    }
                    if let LinkAction::Detach { ifindex, .. } = action {
                        undetached.insert(*ifindex);
                    }
                    applied.faults.push(format!("{action}: {error}"));
                }
            }
        }
        failed
    }

    /// Closes the slots whose interface has no filter: nothing is delivered there.
    pub(super) fn deactivate(&mut self, desired: &Desired, found: &Found, failed: &BTreeSet<u32>) -> Result<()> {
        for workload in desired.workloads.iter().filter(|_| !failed.is_empty()) {
            if let Some(link) = found.links.by_name(&workload.interface).filter(|link| failed.contains(&link.index)) {
                self.tables.set_runtime(workload.slot, &Runtime::default())?;
                self.tables.remove_interface(link.index)?;
            }
        }
        Ok(())
    }

    pub(super) fn execute_link(&mut self, action: &LinkAction) -> Result<()> {
        match action {
            LinkAction::Attach { ifindex, hook, program, .. } => {
                let made = self.hooks.attach(&mut self.netlink, &mut self.programs, program, *ifindex, *hook)?;
                if made && !self.info.qdiscs.contains(ifindex) {
                    self.info.qdiscs.push(*ifindex);
                    self.info.write(&self.hooks.directory)?;
                }
                Ok(())
            }
            LinkAction::Detach { ifindex, hook } => self.hooks.detach(&mut self.netlink, *ifindex, *hook),
            LinkAction::SetInterface { ifindex, entry } => self.tables.set_interface(*ifindex, entry),
            LinkAction::RemoveInterface { ifindex } => self.tables.remove_interface(*ifindex),
            LinkAction::SetRuntime { slot, runtime } => self.tables.set_runtime(*slot, runtime),
        }
    }

    pub(super) fn remember_expected(
        &mut self,
        desired: &Desired,
        (uplinks, hosts, translated): (&[u32], &Resolved, &Translated),
        found: &Found,
        failed: &BTreeSet<u32>,
    ) {
        let mut expected = Expected::new();
        let mut expect_at = |ifindex: u32, hook: Hook, program: &str| {
            if let Some(id) = self.programs.id(program).filter(|_| !failed.contains(&ifindex)) {
                expected.insert((ifindex, hook), id);
            }
        };
        for index in &translated.ways_out {
            expect_at(*index, Hook::Egress, names::PROG_TO_UPLINK);
        }
        let mut expect = |ifindex: u32, programs: [&str; 2]| {
            for (hook, program) in [Hook::Ingress, Hook::Egress].into_iter().zip(programs) {
                expect_at(ifindex, hook, program);
            }
        };
        for index in uplinks.iter().chain(hosts.seats.keys()) {
            expect(*index, [names::PROG_FROM_UPLINK, names::PROG_TO_UPLINK]);
        }
        for link in desired.workloads.iter().filter_map(|workload| found.links.by_name(&workload.interface)) {
            expect(link.index, [names::PROG_FROM_WORKLOAD, names::PROG_TO_WORKLOAD]);
        }
        self.expected = expected;
    }

    /// Interfaces that carry an ingress filter of ours now.
    pub(super) fn attached(&mut self, found: &Found) -> BTreeSet<u32> {
        let Self { hooks, netlink, .. } = self;
        let indices = found.links.iter().map(|link| link.index);
        indices.filter(|index| hooks.hanging(netlink, *index, Hook::Ingress).is_ok_and(|h| h.is_some())).collect()
    }
}
