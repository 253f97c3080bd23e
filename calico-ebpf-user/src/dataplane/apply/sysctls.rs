//! Sysctls, and what they were before.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::Dataplane;
use crate::dataplane::{
    desired::{Applied, Desired},
    info::SavedSysctl,
    links::Found,
    sysctl,
};

/// How long the sysctls of workloads' interfaces are believed to be right without looking: nothing tells of changes.
const SYSCTL_CHECK: Duration = Duration::from_secs(60);

impl Dataplane {
    pub(super) fn sysctls(&mut self, desired: &Desired, uplinks: &[u32], found: &Found, applied: &mut Applied) {
        let mut settings = Vec::new();
        for link in uplinks.iter().filter_map(|index| found.links.by_index(*index)) {
            match sysctl::uplink(&link.name, &self.info.sysctls) {
                Ok(setting) => settings.extend(setting),
                Err(error) => applied.faults.push(error.to_string()),
            }
        }
        settings.extend(sysctl::forwarding());
        let saved = sysctl::apply(settings, &mut applied.faults);
        if !saved.is_empty() {
            applied.changes += saved.len();
            keep_oldest(&mut self.info.sysctls, saved);
            if let Err(error) = self.info.write(&self.hooks.directory) {
                applied.faults.push(error.to_string());
            }
        }
        let full = self.sysctls_checked.is_none_or(|at| at.elapsed() >= SYSCTL_CHECK);
        if full {
            self.sysctls_checked = Some(Instant::now());
            self.settled.clear();
        }
        for workload in &desired.workloads {
            let Some(link) = found.links.by_name(&workload.interface) else { continue };
            if !self.settled.insert((link.index, workload.slot)) {
                continue;
            }
            let v6 = workload.addresses.iter().any(IpAddr::is_ipv6);
            let settings = sysctl::workload(&workload.interface, workload.spoof, v6);
            let saved = sysctl::apply(settings, &mut applied.faults);
            let mut owner = self.owner(workload);
            // Those of one that is gone, which had the name.
            let are_anothers = !found.interfaces.contains_key(&link.index) && !owner.sysctls.is_empty();
            if are_anothers {
                owner.sysctls.clear();
            }
            if !saved.is_empty() || are_anothers {
                applied.changes += saved.len();
                keep_oldest(&mut owner.sysctls, saved);
                if let Err(error) = self.tables.set_owner(workload.slot, owner) {
                    applied.faults.push(error.to_string());
                }
            }
        }
    }

    /// Interfaces that lose their workload get back what they had: afterwards nobody would know.
    pub(super) fn restore_sysctls(&mut self, desired: &Desired, applied: &mut Applied) {
        let slots: BTreeSet<u32> = desired.workloads.iter().map(|workload| workload.slot).collect();
        self.settled.retain(|(_, slot)| slots.contains(slot));
        for (_, owner) in self.tables.owners().iter().filter(|(slot, _)| !slots.contains(slot)) {
            if desired.workloads.iter().any(|workload| workload.interface == owner.interface) {
                continue;
            }
            for saved in &owner.sysctls {
                match sysctl::restore(saved) {
                    Ok(true) => applied.changes += 1,
                    Ok(false) => tracing::info!(
                        "{} was set to {} and is another one now: it is left so (it was {})",
                        saved.path,
                        saved.new,
                        saved.old
                    ),
                    Err(error) => applied.faults.push(error.to_string()),
                }
            }
        }
    }
}

/// Adds what was set to what is known, keeping the first value that each sysctl had.
fn keep_oldest(known: &mut Vec<SavedSysctl>, new: Vec<SavedSysctl>) {
    let mut by_path: BTreeMap<String, usize> =
        known.iter().enumerate().map(|(i, saved)| (saved.path.clone(), i)).collect();
    for saved in new {
        match by_path.get(&saved.path) {
            Some(index) => known[*index].new = saved.new,
            None => {
                by_path.insert(saved.path.clone(), known.len());
                known.push(saved);
            }
        }
    }
}
