//! A plan in the making.

use std::collections::{BTreeSet, HashMap};

use calico_ebpf_common::abi::{NO_SLOT, Settings, Untracked, settings_flags};

use super::{
    Store,
    addresses::is_v6,
    interface_name, side,
    tables::{BuiltTable, id},
};
use crate::{
    policy::{
        compiled::{Compiled, from_workloads_seat},
        write::{Changes, LimitError, Plan, Write},
    },
    resources::model::HostInterface,
};

/// What has been decided so far.
pub(super) struct Planner<'a> {
    pub(super) old: &'a Store,
    pub(super) next: Store,
    /// The new generation.
    pub(super) generation: u32,
    pub(super) prepare: Vec<Write>,
    pub(super) retire: Vec<Write>,
    pub(super) changes: Changes,
    /// Objects besides those of tables that are used from now on, and no longer.
    pub(super) begin: Vec<u32>,
    pub(super) end: Vec<u32>,
}

impl Planner<'_> {
    /// Makes the allowed spoofed sources what they shall be. They are of no generation: what goes, goes before the commit, and
    /// what comes, comes after it. Returns the slots that lose some.
    pub(super) fn spoof(&mut self, compiled: &Compiled) -> Result<Vec<u32>, LimitError> {
        let mut wanted = BTreeSet::new();
        for (name, workload) in &compiled.workloads {
            let slot = self.next.slot(name).map_or(NO_SLOT, |slot| slot.slot);
            wanted.extend(workload.spoof.iter().map(|prefix| (slot, prefix.trunc())));
        }
        for v6 in [false, true] {
            let needed = wanted.iter().filter(|(_, prefix)| is_v6(prefix) == v6).count();
            let limit = self.old.limits.spoof as usize;
            if needed > limit {
                return Err(LimitError::Count { what: "allowed spoofed source prefixes", needed, limit });
            }
        }
        let mut bereft = Vec::new();
        for &(slot, prefix) in self.old.spoof.difference(&wanted) {
            self.prepare.push(Write::RemoveSpoof { slot, prefix });
            bereft.push(slot);
        }
        for &(slot, prefix) in wanted.difference(&self.old.spoof) {
            self.retire.push(Write::Spoof { slot, prefix });
        }
        self.next.spoof = wanted;
        Ok(bereft)
    }

    pub(super) fn settings(&mut self, compiled: &Compiled, built: &[BuiltTable]) -> Result<(), LimitError> {
        let nets4 = self.next.nets.root();
        let from_workloads = compiled
            .host_endpoints
            .iter()
            .find(|(_, endpoint)| endpoint.interface == HostInterface::All)
            .and_then(|(name, _)| self.next.slot(&from_workloads_seat(name)));
        let mut settings = Settings {
            host_action: compiled.host_action,
            nets4,
            flags: compiled.flags | if compiled.host_endpoints.is_empty() { 0 } else { settings_flags::HOST_ENDPOINTS },
            // 0 is nobody.
            from_workloads: from_workloads.map_or(0, |slot| slot.slot + 1),
            ..Settings::default()
        };
        let (needed, limit) = (compiled.untracked.len(), settings.untracked.len());
        if needed > limit {
            return Err(LimitError::Count { what: "interfaces with untracked policy", needed, limit });
        }
        let header = |table: Option<usize>| table.map_or(0, |table| built[table].1.header);
        for (place, (name, of)) in settings.untracked.iter_mut().zip(&compiled.untracked) {
            let interface = interface_name(name);
            *place = Untracked { interface, ingress_table: header(of.ingress), egress_table: header(of.egress) };
        }
        let side = side(self.generation);
        if self.old.settings[side] != settings {
            self.next.settings[side] = settings;
            self.prepare.push(Write::Settings { side, settings });
        }
        Ok(())
    }

    /// Puts the writes in order, and drops what is in force no more.
    pub(super) fn finish(mut self, built: Vec<BuiltTable>) -> Plan {
        let mut used = HashMap::new();
        for (_, built) in &built {
            used.insert(built.header, built.objects.clone());
        }
        for (header, objects) in &used {
            if self.old.tables.get(header) != Some(objects) {
                self.next.arena.acquire(objects);
                self.changes.tables += 1;
            }
        }
        for (header, objects) in &self.old.tables {
            if used.get(header) != Some(objects) {
                self.next.arena.release(objects);
            }
        }
        self.next.arena.acquire(&self.begin);
        self.next.arena.release(&self.end);
        self.next.tables = used;
        self.next.built = built.into_iter().map(|built| (id(&built.0), built)).collect();

        let mut prepare = self.next.arena.take_writes();
        self.changes.blocks =
            prepare.iter().map(|w| if let Write::Blocks { blocks, .. } = w { blocks.len() } else { 0 }).sum();
        prepare.append(&mut self.prepare);
        // After a change, the side that is not in force differs from it. That alone is no reason for another generation.
        let lags = prepare.iter().all(|write| matches!(write, Write::WorkloadPolicy { .. } | Write::Settings { .. }));
        if lags && self.retire.is_empty() && self.nothing_new() {
            let Store { generation, settings, ref workloads, .. } = *self.old;
            let next = Store { generation, settings, workloads: workloads.clone(), ..self.next };
            return Plan { prepare: Vec::new(), generation, retire: Vec::new(), next, changes: Changes::default() };
        }
        self.next.generation = self.generation;
        self.next.spent = 0;
        Plan { prepare, generation: self.generation, retire: self.retire, next: self.next, changes: self.changes }
    }

    /// Whether the new generation's policies and settings are those in force.
    fn nothing_new(&self) -> bool {
        let (now, then) = (side(self.old.generation), side(self.generation));
        self.old.generation != 0
            && self.old.settings[now] == self.next.settings[then]
            && self.next.workloads.iter().all(|(name, owner)| {
                self.old.workloads.get(name).is_some_and(|old| old.policy[now] == owner.policy[then])
            })
    }
}
