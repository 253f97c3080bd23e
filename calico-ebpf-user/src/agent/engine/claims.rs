//! Workloads that other hosts have, too.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::{Instant, SystemTime},
};

use super::Engine;
use crate::{
    agent::desired,
    dataplane::contest,
    observe::status::mac_text,
    routes::{
        claim::{Change, Claim, Rival, Rivals, Yielded},
        migration::{Priority, priority},
    },
};

impl Engine {
    /// Looks at what other hosts say about our workloads' addresses; whether that changes which of them are ours.
    pub(super) fn heed_claims(&mut self) -> bool {
        let Self { dataplane, accepted, migrations, .. } = self;
        // Who is moving here goes before the others, or has not come.
        let settled =
            accepted.compiled.workloads.iter().filter(|(name, _)| priority(migrations.get(name)) == Priority::Normal);
        let settled = settled.map(|(name, local)| (name, &*local.addresses));
        let (mut claims, overruled) = match dataplane.claims(settled, desired::routes(&accepted.felix).protocol) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("what other hosts say is not known: {error}");
                return false;
            }
        };
        for line in overruled.iter().filter(|line| !self.overruled.contains(line)) {
            tracing::warn!("{line}");
        }
        self.overruled = overruled;
        let workloads = &self.accepted.compiled.workloads;
        self.yielded.retain(|name| workloads.contains_key(name));
        let arrived: Vec<_> =
            claims.keys().filter(|name| self.accepted.departing.contains_key(*name)).cloned().collect();
        let parted = self.part_all(&arrived, "the other node tells a route to it");
        claims.retain(|name, _| !self.accepted.departing.contains_key(name));
        self.hold_against_the_former(&mut claims);
        let changes = self.yielded.update(&claims, &self.node, Instant::now());
        for change in &changes {
            match change {
                Change::Yield(endpoint, Claim { address, via }) => tracing::warn!(
                    endpoint, %address, via = via.map(|via| via.to_string()),
                    "another host has this workload, too, and the better route: it is left to that one"
                ),
                Change::TakeBack(endpoint) => {
                    tracing::info!(endpoint, "no other host has this workload any more: it is ours again");
                }
            }
        }
        parted || !changes.is_empty()
    }

    /// A workload came and was alive here, and the node that it came from still tells a route to it: it has not read the files,
    /// or nothing runs there that could. That is no reason to step back.
    fn hold_against_the_former(&mut self, claims: &mut BTreeMap<String, Claim>) {
        let Ok(now) = self.dataplane.now() else { return };
        claims.retain(|name, claim| {
            let origin = self.migrations.origin(name).filter(|_| !self.yielded.has(name));
            let of_origin = origin.and_then(|node| self.accepted.nodes.get(node));
            if !claim.via.is_some_and(|via| of_origin.is_some_and(|addresses| addresses.contains(&via))) {
                return true;
            }
            tracing::warn!(
                endpoint = name, from = origin, address = %claim.address,
                "the node that it came from still tells a route to it: its routes keep the elevated priority"
            );
            self.migrations.hold(name, now);
            false
        });
    }

    /// Workloads that are left to other hosts.
    pub(in crate::agent) fn yielded(&self) -> &Yielded {
        &self.yielded
    }

    /// Hosts that want workloads of ours.
    pub(in crate::agent) fn rivals(&self) -> &Rivals {
        &self.rivals
    }

    /// Better routes of other programs to addresses of our workloads.
    pub(in crate::agent) fn overruled(&self) -> &[String] {
        &self.overruled
    }

    /// Addresses of workloads that are left to other hosts, but that this one wants.
    pub(in crate::agent) fn wanted(&self) -> Vec<Ipv4Addr> {
        let workloads = self.yielded.iter().filter_map(|(name, _)| self.accepted.compiled.workloads.get(name));
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        workloads.flat_map(|workload| workload.addresses.iter().filter_map(v4)).collect()
    }

    /// Somebody on the link wants an address.
    pub(in crate::agent) fn contested(&mut self, by: &contest::Rival) {
        let address = IpAddr::V4(by.address);
        // One that is moving is wanted by the host that had it, for a moment.
        let ours = self.accepted.compiled.workloads.iter().find(|(_, workload)| workload.addresses.contains(&address));
        let Some((name, _)) = ours.filter(|(name, _)| !self.yielded.has(name) && !self.left.contains(*name)) else {
            return;
        };
        let host = contest::host_of(by.mac);
        let rival = Rival { address, mac: by.mac, host, seen: SystemTime::now() };
        if self.rivals.note(name, rival, Instant::now()) {
            tracing::warn!(
                endpoint = name, %address, host = host.map(|host| host.to_string()), mac = mac_text(by.mac),
                "another host has this workload, too, and has stepped back: it is ours"
            );
        }
    }

    /// Forgets hosts that want nothing of ours any more.
    pub(in crate::agent) fn forget_rivals(&mut self) {
        for endpoint in self.rivals.forget(Instant::now()) {
            tracing::info!(endpoint, "no other host wants this workload any more");
        }
    }
}
