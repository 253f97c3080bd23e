//! Slots of those who are judged, and the tables that judge them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use calico_ebpf_common::{
    abi::{PolicyRef, Workload},
    judge::{self, Arena as _},
};
use ipnet::IpNet;

use super::{Owner, Slot, addresses::Moves, planner::Planner, side, tables::BuiltTable};
use crate::policy::{
    compiled::{Compiled, Seat},
    write::{LimitError, Write},
};

impl Planner<'_> {
    /// Gives slots to new workloads, and takes those of workloads that go.
    pub(super) fn slots(&mut self, compiled: &Compiled) -> Result<(), LimitError> {
        let seats: Vec<Seat<'_>> = compiled.seats().collect();
        let wanted: HashSet<&str> = seats.iter().map(|seat| &*seat.name).collect();
        let gone: Vec<String> =
            self.old.workloads.keys().filter(|name| !wanted.contains(name.as_str())).cloned().collect();
        for name in gone {
            if let Some(owner) = self.next.workloads.remove(&name) {
                self.set_policy(owner, PolicyRef::default());
                self.retire.push(Write::RemoveWorkload { slot: owner.slot.slot });
            }
            self.changes.removed.push(name);
        }
        for slot in std::mem::take(&mut self.next.stray_slots) {
            self.retire.push(Write::RemoveWorkload { slot });
        }
        // What only the old generation has may be read until it is retired.
        let mut taken: BTreeSet<u32> = self.old.workloads.values().map(|owner| owner.slot.slot).collect();
        taken.extend(&self.old.stray_slots);
        let mut candidates = (0..).filter(|slot| !taken.contains(slot));
        for name in seats.iter().map(|seat| &*seat.name).filter(|name| !self.old.workloads.contains_key(*name)) {
            let slot = candidates.next().unwrap_or(u32::MAX);
            if slot >= self.old.limits.slots {
                let limit = self.old.limits.slots as usize;
                let needed = seats.len().max(limit + 1);
                return Err(LimitError::Count { what: "workloads and host endpoints on this node", needed, limit });
            }
            let incarnation = self.old.incarnations.get(&slot).copied().unwrap_or(0).wrapping_add(1);
            self.next.incarnations.insert(slot, incarnation);
            let slot = Slot { slot, incarnation };
            self.next.workloads.insert(name.to_owned(), Owner { slot, policy: Workload::default().policy });
            self.prepare.push(Write::WorkloadName { slot: slot.slot, name: name.to_owned() });
            self.changes.added.push(name.to_owned());
        }
        Ok(())
    }

    /// Gives every workload its tables.
    pub(super) fn policies(&mut self, compiled: &Compiled, built: &[BuiltTable], moves: &Moves) {
        let now = side(self.old.generation);
        let host_changed = self.old.settings[now].host_action != compiled.host_action;
        let mut compared = HashMap::new();
        for Seat { name, tables, addresses } in compiled.seats() {
            let Some(&owner) = self.next.workloads.get(&*name) else { continue };
            let was = owner.policy[now];
            let (egress_table, ingress_table) = (built[tables.egress].1.header, built[tables.ingress].1.header);
            let mut differs = |from, to| self.verdicts_differ(from, to, addresses, moves, &mut compared);
            let egress = differs(was.egress_table, egress_table) || host_changed;
            let ingress = differs(was.ingress_table, ingress_table);
            let bereft = moves.bereft.contains(&owner.slot.slot);
            let policy = PolicyRef {
                egress_table,
                ingress_table,
                egress_epoch: if egress || bereft { self.generation } else { was.egress_epoch },
                ingress_epoch: if ingress || bereft { self.generation } else { was.ingress_epoch },
            };
            if self.old.workloads.contains_key(&*name) {
                if egress {
                    self.changes.egress.push(name.to_string());
                }
                if ingress {
                    self.changes.ingress.push(name.to_string());
                }
            }
            let owner = self.set_policy(owner, policy);
            self.next.workloads.insert(name.into_owned(), owner);
        }
    }

    /// Writes the new generation's side, if it does not hold that already.
    pub(super) fn set_policy(&mut self, mut owner: Owner, policy: PolicyRef) -> Owner {
        let side = side(self.generation);
        if owner.policy[side] != policy {
            owner.policy[side] = policy;
            let Slot { slot, incarnation } = owner.slot;
            self.prepare.push(Write::WorkloadPolicy { slot, side, policy, incarnation });
        }
        owner
    }

    /// Whether the verdicts of whoever has these addresses (any, where there are none) may differ between two tables, each in
    /// its generation.
    ///
    /// Equal contents are kept once, so what is at another place is something else.
    fn verdicts_differ(
        &self,
        from: u32,
        to: u32,
        addresses: Option<&[IpAddr]>,
        moves: &Moves,
        compared: &mut HashMap<(u32, u32), bool>,
    ) -> bool {
        let image = self.next.arena.image();
        let (Some(old), Some(new)) = (image.block(from), image.block(to)) else { return true };
        if from == to && moves.moved.is_empty() && self.old.tables.contains_key(&from) {
            return false;
        }
        if !self.old.tables.contains_key(&from) {
            return true;
        }
        let vector = |root: u32, class: u32| judge::walk(image, root, class);
        let meets_other = |field: u32, pairs: &[(u32, u32)]| {
            pairs.iter().any(|&(was, is)| vector(old.u32_at(field), was) != vector(new.u32_at(field), is))
        };
        let (own, peer) = (4, 5);
        let whoever = *compared.entry((from, to)).or_insert_with(|| {
            // Number of rules, entries, the roots of both port fields, the rules that are indifferent to a field, and where what is
            // translated starts.
            let other_rules =
                [0, 1, 2, 6, 7, 8, 9, 10, 11, 12].into_iter().any(|field| old.u32_at(field) != new.u32_at(field));
            other_rules || meets_other(peer, if from == to { &moves.moved } else { &moves.all })
        });
        let Some(addresses) = addresses else {
            return whoever || meets_other(own, if from == to { &moves.moved } else { &moves.all });
        };
        whoever
            || addresses.iter().any(|address| {
                let class = || self.next.addresses.get(&IpNet::from(*address)).map(|entry| entry.class.value[1]);
                let moved = moves.of_address.get(address).copied();
                let pair = moved.or_else(|| class().map(|class| (class, class)));
                pair.is_none_or(|pair| meets_other(own, &[pair]))
            })
    }
}
