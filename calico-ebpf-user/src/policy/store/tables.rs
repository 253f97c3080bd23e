//! The tables, and the counters of their rules.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use calico_ebpf_common::{
    abi::{Action, MAX_CHUNKS, MAX_RULES},
    judge::{self, Arena as _},
};

use super::{interface_name, planner::Planner, side};
use crate::policy::{
    compiled::{Compiled, Direction, RuleName, Seat, Table},
    layout::{Built, Classes, Counter},
    write::{LimitError, Write},
};

/// A table, and what it became.
pub(super) type BuiltTable = (Arc<Table>, Arc<Built>);

/// What tells tables of one numbering apart, as long as somebody has the table.
pub(super) type TableId = usize;

pub(super) fn id(table: &Arc<Table>) -> TableId {
    Arc::as_ptr(table).addr()
}

/// Tables that the judge cannot follow to the end are refused.
pub(super) fn check_tables(compiled: &Compiled) -> Result<(), LimitError> {
    let of_seats = compiled.seats().flat_map(|Seat { name, tables, .. }| {
        [(Direction::Egress, tables.egress), (Direction::Ingress, tables.ingress)].map(|table| (name.clone(), table))
    });
    let of_interfaces = compiled.untracked.iter().flat_map(|(name, of)| {
        let tables = [(Direction::Egress, of.egress), (Direction::Ingress, of.ingress)];
        tables
            .into_iter()
            .filter_map(move |(direction, table)| Some((Cow::Borrowed(name.as_str()), (direction, table?))))
    });
    let mut checked = HashSet::new();
    for (name, (direction, table)) in of_seats.chain(of_interfaces) {
        if !checked.insert(table) {
            continue;
        }
        let rules = &compiled.tables[table].rules;
        let (workload, direction) = (name.into_owned(), direction.as_str());
        if rules.len() > MAX_RULES as usize {
            return Err(LimitError::Rules { workload, direction, needed: rules.len(), limit: MAX_RULES as usize });
        }
        let logs = rules.iter().filter(|rule| rule.action == Action::Log).count();
        let passes: BTreeSet<u16> =
            rules.iter().filter(|rule| rule.action == Action::Pass).map(|rule| rule.next).collect();
        let (needed, limit) = (logs + passes.len(), (judge::VISITS - MAX_CHUNKS) as usize);
        if needed > limit {
            return Err(LimitError::Detours { workload, direction, needed, limit });
        }
    }
    Ok(())
}

impl Planner<'_> {
    /// Gives counters to new rules, and takes those of rules that go.
    pub(super) fn counters(&mut self, compiled: &Compiled) -> Result<(), LimitError> {
        let built = &self.next.built;
        let now: HashSet<TableId> = compiled.tables.iter().map(id).collect();
        let come: Vec<&Arc<Table>> = compiled.tables.iter().filter(|table| !built.contains_key(&id(table))).collect();
        let gone: Vec<&Arc<Table>> =
            built.iter().filter(|(id, _)| !now.contains(*id)).map(|(_, (table, _))| table).collect();
        let all_anew = built.is_empty();
        if come.is_empty() && gone.is_empty() && !all_anew {
            return Ok(());
        }
        let counters = Arc::make_mut(&mut self.next.counters);
        if all_anew {
            counters.values_mut().for_each(|counter| counter.uses = 0);
        }
        let mut without: Vec<&Arc<RuleName>> = Vec::new();
        for name in come.iter().flat_map(|table| names(table)) {
            match counters.get_mut(name) {
                Some(counter) => counter.uses += 1,
                None => {
                    counters.insert(name.clone(), Counter { number: u32::MAX, uses: 1 });
                    without.push(name);
                }
            }
        }
        for name in gone.iter().flat_map(|table| names(table)) {
            if let Some(counter) = counters.get_mut(name) {
                counter.uses = counter.uses.saturating_sub(1);
            }
        }
        let mut taken = std::mem::take(&mut self.next.stray_counters);
        taken.extend(counters.values().filter(|counter| counter.uses == 0).map(|counter| counter.number));
        self.retire.extend(taken.iter().map(|&counter| Write::RemoveRuleName { counter }));
        counters.retain(|_, counter| counter.uses != 0);
        let mut is_taken = vec![false; self.old.limits.counters as usize];
        let others = counters.values().map(|counter| counter.number).filter(|number| *number != u32::MAX);
        for number in taken.into_iter().chain(others) {
            if let Some(is_taken) = is_taken.get_mut(number as usize) {
                *is_taken = true;
            }
        }
        let mut free = (0..).zip(is_taken).filter_map(|(number, is_taken)| (!is_taken).then_some(number));
        let needed = counters.len();
        for name in without {
            let Some(number) = free.next() else {
                let limit = self.old.limits.counters as usize;
                return Err(LimitError::Count { what: "rules with a counter", needed: needed.max(limit + 1), limit });
            };
            if let Some(counter) = counters.get_mut(name) {
                counter.number = number;
            }
            self.prepare.push(Write::RuleName { counter: number, name: RuleName::clone(name) });
        }
        Ok(())
    }

    /// Lays out the tables, and says how each of the compiled ones was built.
    pub(super) fn tables(&mut self, compiled: &Compiled, classes: &Classes<'_>) -> Result<Vec<BuiltTable>, LimitError> {
        let mut numbers = self.table_numbers(compiled);
        let mut built = Vec::with_capacity(compiled.tables.len());
        for (index, table) in compiled.tables.iter().enumerate() {
            let new = match self.next.built.get(&id(table)) {
                Some((_, known)) => match known.for_classes(&mut self.next.arena, table, classes)? {
                    None => known.clone(),
                    Some(new) => Arc::new(new),
                },
                None => {
                    let number = numbers.remove(&index).unwrap_or_else(|| {
                        self.next.next_table = self.next.next_table.wrapping_add(1);
                        self.next.next_table - 1
                    });
                    let (arena, counters) = (&mut self.next.arena, &self.next.counters);
                    Arc::new(Built::new(arena, table, number, counters, classes)?)
                }
            };
            built.push((table.clone(), new));
        }
        Ok(built)
    }

    /// Numbers for tables that this process has not built yet: that of the table whose place it takes for some workload.
    fn table_numbers(&self, compiled: &Compiled) -> HashMap<usize, u32> {
        let now = side(self.old.generation);
        let image = self.old.arena.image();
        let built: Vec<Option<u32>> = compiled
            .tables
            .iter()
            .map(|table| self.next.built.get(&id(table)).map(|(_, built)| built.number))
            .collect();
        let mut taken: HashSet<u32> = built.iter().copied().flatten().collect();
        let mut numbers = HashMap::new();
        let mut take = |table: usize, header: u32| {
            if numbers.contains_key(&table) || built[table].is_some() || !self.old.tables.contains_key(&header) {
                return;
            }
            let number = image.block(header).map_or(0, |header| header.u32_at(3));
            if taken.insert(number) {
                numbers.insert(table, number);
            }
        };
        for Seat { name, tables, .. } in compiled.seats() {
            let Some(owner) = self.old.workloads.get(&*name) else { continue };
            let was = owner.policy[now];
            take(tables.egress, was.egress_table);
            take(tables.ingress, was.ingress_table);
        }
        for (name, of) in &compiled.untracked {
            let interface = interface_name(name);
            let was = self.old.settings[now].untracked.iter().find(|was| was.interface == interface);
            let Some(was) = was else { continue };
            for (table, header) in [(of.ingress, was.ingress_table), (of.egress, was.egress_table)] {
                if let Some(table) = table {
                    take(table, header);
                }
            }
        }
        numbers
    }
}

/// Rules of a table that follow on each other and have one name are one rule of the files.
fn names(table: &Table) -> impl Iterator<Item = &Arc<RuleName>> {
    table.rules.chunk_by(|a, b| Arc::ptr_eq(&a.name, &b.name)).filter_map(|rules| Some(&rules.first()?.name))
}
