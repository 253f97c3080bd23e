//! What the maps hold, and how they get to hold something else.
//!
//! A plan makes all that is desired anew, in terms of contents: what the arena has already is found there, what the maps
//! hold already is not written again. So a store that has adopted the maps of another process is like any other.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, btree_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use calico_ebpf_common::abi::{
    Action, AddressEntry, HOST, MAX_CHUNKS, MAX_RULES, NO_SLOT, PolicyRef, Settings, Stamped, Workload,
};
use calico_ebpf_common::judge::{self, Arena as _};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    arena::Arena,
    compiled::{AddressMatch, Compiled, Direction, RuleMatch, RuleName, Table, TableRule},
    layout::{Built, ClassKey, Classes},
    nets::{Nets, Run},
    prefixes::Prefixes,
    write::{Changes, KernelState, LimitError, Limits, Plan, Write},
};

/// Where the IPv6 prefixes begin in an ordered map.
const FIRST_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));
/// Classes that stand for "no condition holds", IPv4 and IPv6.
const PLAIN_CLASSES: u32 = 2;
/// Classes without an address that are kept in case their addresses come back; tests meet the end of that soon.
const SPARE_CLASSES: usize = if cfg!(test) { 4 } else { 256 };

/// What the maps hold. Pure: nothing here touches a map.
#[derive(Clone, Debug)]
pub struct Store {
    limits: Limits,
    generation: u32,
    settings: [Settings; 2],
    arena: Arena,
    /// Objects of the tables in force, by header.
    tables: HashMap<u32, Arc<[u32]>>,
    /// How the tables in force were built, as far as this process has built them.
    built: HashMap<Arc<Table>, Arc<Built>>,
    next_table: u32,
    /// Numbers of conditions, the same from plan to plan.
    conditions: HashMap<String, u32>,
    next_condition: u32,
    classes: BTreeMap<ClassKey, u32>,
    /// Of IPv6 all addresses and networks, of IPv4 the addresses of local workloads and of the host.
    addresses: BTreeMap<IpNet, AddressEntry>,
    /// The classes of all IPv4 addresses.
    nets: Nets,
    spoof: BTreeSet<(u32, IpNet)>,
    workloads: BTreeMap<String, Owner>,
    /// Last incarnation of each slot that ever had an owner.
    incarnations: BTreeMap<u32, u32>,
    /// Slots that somebody left behind half written.
    stray_slots: BTreeSet<u32>,
    counters: BTreeMap<Arc<RuleName>, u32>,
    /// Counters that have a name that another has, too.
    stray_counters: BTreeSet<u32>,
}

/// Slot of a local workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index into the workload map.
    pub slot: u32,
    /// `Workload::incarnation`.
    pub incarnation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Owner {
    slot: Slot,
    policy: [PolicyRef; 2],
}

impl Store {
    /// The store of maps that have just been created: all zero. The first plan writes the fixed blocks too.
    #[must_use]
    pub fn empty(limits: Limits) -> Self {
        Self {
            limits,
            generation: 0,
            settings: [Settings::default(); 2],
            arena: Arena::new(limits.blocks),
            tables: HashMap::new(),
            built: HashMap::new(),
            next_table: 1,
            conditions: HashMap::new(),
            next_condition: 0,
            classes: BTreeMap::new(),
            addresses: BTreeMap::new(),
            nets: Nets::empty(),
            spoof: BTreeSet::new(),
            workloads: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            stray_slots: BTreeSet::new(),
            counters: BTreeMap::new(),
            stray_counters: BTreeSet::new(),
        }
    }

    /// The store of maps that somebody else has written, perhaps not to the end.
    ///
    /// All that is in force stays so until the next plan is committed; names keep their slots and counters. There must have
    /// been a grace period since the last commit.
    #[must_use]
    pub fn adopt(limits: Limits, state: &KernelState<'_>) -> Self {
        let generation = state.root.generation;
        let mut store = Self::empty(limits);
        store.generation = generation;
        store.settings = state.root.settings;
        store.addresses.clone_from(state.addresses);
        store.spoof.clone_from(state.spoof);
        for (slot, workload) in (0..).zip(state.workloads) {
            if workload.incarnation != 0 {
                store.incarnations.insert(slot, workload.incarnation);
            }
            let (name, policy) = (state.workload_names.get(&slot), workload.policy);
            match name {
                Some(name) if !store.workloads.contains_key(name) => {
                    let slot = Slot { slot, incarnation: workload.incarnation };
                    store.workloads.insert(name.clone(), Owner { slot, policy });
                }
                _ if name.is_some() || policy != Workload::default().policy => {
                    store.stray_slots.insert(slot);
                }
                _ => {}
            }
        }
        for (&counter, name) in state.rule_names {
            let name = Arc::new(name.clone());
            match store.counters.entry(name) {
                Entry::Vacant(vacant) => {
                    vacant.insert(counter);
                }
                Entry::Occupied(_) => {
                    store.stray_counters.insert(counter);
                }
            }
        }
        let in_force = |owner: &Owner| {
            let policy = owner.policy[side(generation)];
            [policy.egress_table, policy.ingress_table]
        };
        let headers = store.workloads.values().flat_map(in_force).collect();
        (store.arena, store.tables) = Arena::adopt(state.blocks, limits.blocks, &headers);
        let root = state.root.settings[side(generation)].nets4;
        if let Some((nets, objects)) = Nets::adopt(state.blocks, limits.blocks, root) {
            for (first, kind, count) in objects {
                store.arena.adopt_used(state.blocks, first, kind, count);
            }
            store.nets = nets;
        }
        let numbers = store.tables.keys().filter_map(|&header| store.arena.image().block(header).map(|h| h.u32_at(3)));
        store.next_table = numbers.max().unwrap_or(0).wrapping_add(1);
        store
    }

    /// The generation in force.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The slot of the local workload `namespace/name`.
    #[must_use]
    pub fn slot(&self, workload: &str) -> Option<Slot> {
        self.workloads.get(workload).map(|owner| owner.slot)
    }

    /// Local workloads and their slots, by `namespace/name`.
    pub fn slots(&self) -> impl Iterator<Item = (&str, Slot)> {
        self.workloads.iter().map(|(name, owner)| (name.as_str(), owner.slot))
    }

    /// The counter of a rule.
    #[must_use]
    pub fn counter(&self, rule: &RuleName) -> Option<u32> {
        self.counters.get(rule).copied()
    }

    /// What makes the maps hold `compiled`.
    ///
    /// # Errors
    /// Something does not fit.
    pub fn plan(&self, compiled: &Compiled, host_addresses: &BTreeSet<IpAddr>) -> Result<Plan, LimitError> {
        check_tables(compiled)?;
        let mut planner = Planner {
            old: self,
            next: self.clone(),
            generation: self.generation.wrapping_add(1),
            prepare: Vec::new(),
            retire: Vec::new(),
            changes: Changes::default(),
            begin: Vec::new(),
            end: Vec::new(),
        };
        planner.slots(compiled)?;
        planner.counters(compiled)?;
        let conditions = planner.conditions(compiled);
        let desired = desired_addresses(compiled, &conditions, host_addresses, &planner.next);
        let (added, removed) = planner.classes(&desired)?;
        let classes = planner.next.classes.clone();
        let classes = Classes { all: &classes, added: &added, removed };
        let built = planner.tables(compiled, &conditions, &classes)?;
        let moves = planner.addresses(&desired)?;
        planner.policies(compiled, &built, &moves);
        planner.spoof(compiled)?;
        planner.settings(compiled);
        Ok(planner.finish(built))
    }
}

/// A table, in terms of the store's conditions, and what it became.
type BuiltTable = (Arc<Table>, Arc<Built>);

/// Which of a pair of values a generation has.
fn side(generation: u32) -> usize {
    generation as usize & 1
}

/// Tables that the judge cannot follow to the end are refused.
fn check_tables(compiled: &Compiled) -> Result<(), LimitError> {
    let mut checked = HashSet::new();
    for (name, workload) in &compiled.workloads {
        for (direction, table) in [(Direction::Egress, workload.egress), (Direction::Ingress, workload.ingress)] {
            if !checked.insert(table) {
                continue;
            }
            let rules = &compiled.tables[table].rules;
            let (workload, direction) = (name.clone(), direction.as_str());
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
    }
    Ok(())
}

/// What an address or a network shall be.
struct Desired {
    /// Index into [`DesiredAddresses::keys`].
    key: usize,
    slot: u32,
    host: bool,
}

/// What all addresses and networks shall be.
#[derive(Default)]
struct DesiredAddresses {
    entries: BTreeMap<IpNet, Desired>,
    /// What classes stand for, in the order of the addresses, so that one input always gives one result.
    keys: Vec<ClassKey>,
    /// All IPv4 addresses, by index into `keys` plus one; zero where nothing is known of them.
    runs: Vec<Run>,
    /// Indices into `keys` by family and by the place of the compiler's list.
    known: HashMap<(bool, *const u32), usize>,
}

impl DesiredAddresses {
    /// Index of the key for an address of which `holding` holds; `conditions` translates.
    fn key(&mut self, v6: bool, holding: &Arc<[u32]>, conditions: &[u32]) -> usize {
        *self.known.entry((v6, holding.as_ptr())).or_insert_with(|| {
            let mut numbers: Vec<u32> = holding.iter().map(|&c| conditions[c as usize]).collect();
            numbers.sort_unstable();
            self.keys.push(ClassKey { v6, conditions: numbers.into() });
            self.keys.len() - 1
        })
    }
}

/// What all addresses and networks shall be.
fn desired_addresses(
    compiled: &Compiled,
    conditions: &[u32],
    host_addresses: &BTreeSet<IpAddr>,
    next: &Store,
) -> DesiredAddresses {
    let mut desired = DesiredAddresses::default();
    for (prefix, holding) in &compiled.addresses {
        let key = desired.key(matches!(prefix, IpNet::V6(_)), holding, conditions);
        desired.entries.insert(*prefix, Desired { key, slot: NO_SLOT, host: false });
    }
    for (name, workload) in &compiled.workloads {
        let slot = next.slot(name).map_or(NO_SLOT, |slot| slot.slot);
        for &address in &workload.addresses {
            // The compiler has all addresses of local workloads.
            if let Some(entry) = desired.entries.get_mut(&address.into()) {
                entry.slot = slot;
            }
        }
    }
    let nets = Prefixes::new(compiled.addresses.keys());
    let nothing: Arc<[u32]> = Arc::default();
    for &address in host_addresses {
        let prefix = IpNet::from(address);
        let wider = nets.wider(&compiled.addresses, &prefix).unwrap_or(&nothing);
        let key = desired.key(address.is_ipv6(), wider, conditions);
        desired.entries.entry(prefix).or_insert(Desired { key, slot: NO_SLOT, host: false }).host = true;
    }
    desired.runs = runs(desired.entries.iter().filter_map(|(prefix, desired)| match prefix {
        IpNet::V4(net) => Some((*net, desired.key as u32 + 1)),
        IpNet::V6(_) => None,
    }));
    desired
}

/// Classes before and after: of which there are addresses, and which of those differ.
struct Moves {
    all: Vec<(u32, u32)>,
    /// Those that differ.
    moved: Vec<(u32, u32)>,
    /// The same for single addresses that changed.
    of_address: HashMap<IpAddr, (u32, u32)>,
}

struct Planner<'a> {
    old: &'a Store,
    next: Store,
    /// The new generation.
    generation: u32,
    prepare: Vec<Write>,
    retire: Vec<Write>,
    changes: Changes,
    /// Objects besides those of tables that are used from now on, and no longer.
    begin: Vec<u32>,
    end: Vec<u32>,
}

impl Planner<'_> {
    /// Gives slots to new workloads, and takes those of workloads that go.
    fn slots(&mut self, compiled: &Compiled) -> Result<(), LimitError> {
        let gone: Vec<String> =
            self.old.workloads.keys().filter(|name| !compiled.workloads.contains_key(*name)).cloned().collect();
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
        for name in compiled.workloads.keys().filter(|name| !self.old.workloads.contains_key(*name)) {
            let slot = candidates.next().unwrap_or(u32::MAX);
            if slot >= self.old.limits.slots {
                let limit = self.old.limits.slots as usize;
                let needed = compiled.workloads.len().max(limit + 1);
                return Err(LimitError::Count { what: "workloads on this node", needed, limit });
            }
            let incarnation = self.old.incarnations.get(&slot).copied().unwrap_or(0).wrapping_add(1);
            self.next.incarnations.insert(slot, incarnation);
            let slot = Slot { slot, incarnation };
            self.next.workloads.insert(name.clone(), Owner { slot, policy: Workload::default().policy });
            self.prepare.push(Write::WorkloadName { slot: slot.slot, name: name.clone() });
            self.changes.added.push(name.clone());
        }
        Ok(())
    }

    /// Gives counters to new rules, and takes those of rules that go.
    fn counters(&mut self, compiled: &Compiled) -> Result<(), LimitError> {
        let wanted = compiled.rule_names();
        let mut gone = std::mem::take(&mut self.next.stray_counters);
        self.next.counters.retain(|name, counter| {
            let stays = wanted.contains(name);
            if !stays {
                gone.insert(*counter);
            }
            stays
        });
        self.retire.extend(gone.iter().map(|&counter| Write::RemoveRuleName { counter }));
        let mut taken = gone;
        taken.extend(self.next.counters.values());
        let mut candidates = (0..).filter(|counter| !taken.contains(counter));
        for name in wanted.iter().filter(|name| !self.old.counters.contains_key(**name)) {
            let counter = candidates.next().unwrap_or(u32::MAX);
            if counter >= self.old.limits.counters {
                let limit = self.old.limits.counters as usize;
                let needed = wanted.len().max(limit + 1);
                return Err(LimitError::Count { what: "rules with a counter", needed, limit });
            }
            self.next.counters.insert((*name).clone(), counter);
            self.prepare.push(Write::RuleName { counter, name: RuleName::clone(name) });
        }
        Ok(())
    }

    /// The store's numbers of the conditions.
    fn conditions(&mut self, compiled: &Compiled) -> Vec<u32> {
        let Store { conditions, next_condition, .. } = &mut self.next;
        let number = |text: &String| match conditions.get(text) {
            Some(&number) => number,
            None => {
                let number = *next_condition;
                *next_condition += 1;
                conditions.insert(text.clone(), number);
                number
            }
        };
        compiled.conditions.iter().map(number).collect()
    }

    /// Gives numbers to classes: those that are new, and whether some have gone.
    ///
    /// Any number will do for any class, used or not: an entry of an address says what holds from which generation on, and a
    /// table is read by one generation only unless it is right for both. So keeping numbers only saves writes.
    fn classes(&mut self, desired: &DesiredAddresses) -> Result<(Vec<(ClassKey, u32)>, bool), LimitError> {
        let plain = [false, true].map(|v6| ClassKey { v6, conditions: Arc::default() });
        let wanted: HashSet<&ClassKey> = desired.keys.iter().chain(&plain).collect();
        let classes = &mut self.next.classes;
        let spare = classes.keys().filter(|key| !wanted.contains(key)).count();
        let removed = spare > SPARE_CLASSES.max(wanted.len() / 2);
        if removed {
            classes.retain(|key, _| wanted.contains(key));
        }
        let mut taken: HashSet<u32> = classes.values().copied().chain(0..PLAIN_CLASSES).collect();
        let mut added: Vec<(ClassKey, u32)> = Vec::new();
        let mut add = |key: &ClassKey, class: u32| {
            if !classes.contains_key(key) {
                classes.insert(key.clone(), class);
                added.push((key.clone(), class));
            }
        };
        add(&plain[0], 0);
        add(&plain[1], 1);
        // The number that some address has already. That is how the numbers of an earlier process live on.
        let mut missing: Vec<bool> = desired.keys.iter().map(|key| !self.old.classes.contains_key(key)).collect();
        let of_runs = desired.runs.iter().filter_map(|&(start, key)| Some((start, key.checked_sub(1)? as usize)));
        for (start, key) in of_runs {
            if missing[key] {
                let class = self.old.nets.class(start);
                if taken.insert(class) {
                    add(&desired.keys[key], class);
                    missing[key] = false;
                }
            }
        }
        for (prefix, Desired { key, .. }) in desired.entries.range(FIRST_V6..) {
            if missing[*key]
                && let Some(entry) = self.old.addresses.get(prefix)
                && taken.insert(entry.class(self.old.generation))
            {
                add(&desired.keys[*key], entry.class(self.old.generation));
                missing[*key] = false;
            }
        }
        let mut candidates = PLAIN_CLASSES..;
        for key in &desired.keys {
            if classes.contains_key(key) {
                continue;
            }
            let class = candidates.by_ref().find(|class| !taken.contains(class)).unwrap_or(u32::MAX);
            if class >= self.old.limits.classes.min(1 << 24) {
                let limit = self.old.limits.classes.min(1 << 24) as usize;
                let needed = wanted.len().max(limit + 1);
                return Err(LimitError::Count { what: "classes of addresses", needed, limit });
            }
            classes.insert(key.clone(), class);
            added.push((key.clone(), class));
        }
        Ok((added, removed))
    }

    /// Lays out the tables, and says how each of the compiled ones was built.
    fn tables(
        &mut self,
        compiled: &Compiled,
        conditions: &[u32],
        classes: &Classes<'_>,
    ) -> Result<Vec<BuiltTable>, LimitError> {
        let mut known = HashMap::new();
        let translated: Vec<Table> = compiled.tables.iter().map(|t| translate(t, conditions, &mut known)).collect();
        let mut numbers = self.table_numbers(compiled, &translated);
        let mut done: HashMap<Arc<Table>, Arc<Built>> = HashMap::new();
        let mut built = Vec::with_capacity(translated.len());
        for (index, table) in translated.into_iter().enumerate() {
            if let Some((table, known)) = done.get_key_value(&table) {
                built.push((table.clone(), known.clone()));
                continue;
            }
            let (table, new) = match self.old.built.get_key_value(&table) {
                Some((table, known)) => match known.for_classes(&mut self.next.arena, table, classes)? {
                    None => (table.clone(), known.clone()),
                    Some(new) => (table.clone(), Arc::new(new)),
                },
                None => {
                    let number = numbers.remove(&index).unwrap_or_else(|| {
                        self.next.next_table = self.next.next_table.wrapping_add(1);
                        self.next.next_table - 1
                    });
                    let (arena, counters) = (&mut self.next.arena, &self.next.counters);
                    let new = Built::new(arena, &table, number, counters, classes)?;
                    (Arc::new(table), Arc::new(new))
                }
            };
            done.insert(table.clone(), new.clone());
            built.push((table, new));
        }
        Ok(built)
    }

    /// Numbers for tables that this process has not built yet: that of the table whose place it takes for some workload.
    fn table_numbers(&self, compiled: &Compiled, tables: &[Table]) -> HashMap<usize, u32> {
        let now = side(self.old.generation);
        let image = self.old.arena.image();
        let built: Vec<Option<u32>> =
            tables.iter().map(|table| self.old.built.get(table).map(|built| built.number)).collect();
        let mut taken: HashSet<u32> = built.iter().copied().flatten().collect();
        // Tables may be equal only now; the first of them is the one that is built.
        let mut first = HashMap::new();
        let first: Vec<usize> = (0..).zip(tables).map(|(index, table)| *first.entry(table).or_insert(index)).collect();
        let mut numbers = HashMap::new();
        for (name, workload) in &compiled.workloads {
            let Some(owner) = self.old.workloads.get(name) else { continue };
            let was = owner.policy[now];
            for (table, header) in [(workload.egress, was.egress_table), (workload.ingress, was.ingress_table)] {
                let table = first[table];
                if numbers.contains_key(&table) || built[table].is_some() || !self.old.tables.contains_key(&header) {
                    continue;
                }
                let number = image.block(header).map_or(0, |header| header.u32_at(3));
                if taken.insert(number) {
                    numbers.insert(table, number);
                }
            }
        }
        numbers
    }

    /// Makes all addresses what they shall be.
    fn addresses(&mut self, desired: &DesiredAddresses) -> Result<Moves, LimitError> {
        let (now, generation) = (self.old.generation, self.generation);
        let old = &self.old.addresses;
        let (old_nets, new_nets) = (Prefixes::new(old.keys()), Prefixes::new(desired.entries.keys()));
        let plain = |prefix: &IpNet| u32::from(matches!(prefix, IpNet::V6(_)));
        let classes: Vec<u32> =
            desired.keys.iter().map(|key| self.next.classes.get(key).copied().unwrap_or_default()).collect();
        let class_of = |desired: &Desired| classes[desired.key];
        let class_of_run = |key: u32| key.checked_sub(1).map_or(0, |key| classes[key as usize]);
        let mut runs: Vec<Run> = desired.runs.iter().map(|&(start, key)| (start, class_of_run(key))).collect();
        runs.dedup_by_key(|run| run.1);
        let desired = &desired.entries;
        let mut all: HashSet<(u32, u32)> = HashSet::from([(0, 0), (1, 1)]);
        self.changes.addresses += changed_runs(&self.old.nets.runs, &runs, &mut all);
        let (nets, uses) = self.old.nets.update(&mut self.next.arena, Arc::new(runs))?;
        self.begin.extend(uses.begin);
        self.end.extend(uses.end);
        self.next.nets = nets;
        let mut of_address = HashMap::new();
        let mut entries = BTreeMap::new();
        let mut count: HashMap<&'static str, (usize, u32)> = HashMap::new();
        let in_maps = |prefix: &IpNet, desired: &Desired| {
            matches!(prefix, IpNet::V6(_)) || desired.slot != NO_SLOT || desired.host
        };
        for (prefix, desired) in desired.iter().filter(|(prefix, desired)| in_maps(prefix, desired)) {
            let before = old.get(prefix);
            let was = match (before, prefix) {
                (Some(entry), _) => entry.class(now),
                (None, IpNet::V4(net)) => self.old.nets.class(net.addr().into()),
                (None, IpNet::V6(_)) => old_nets.wider(old, prefix).map_or(plain(prefix), |entry| entry.class(now)),
            };
            let (class, owner) = (class_of(desired), before.map_or(NO_SLOT, |entry| entry.slot(now)));
            let flags = if desired.host { HOST } else { 0 };
            all.insert((was, class));
            if was != class && prefix.prefix_len() == prefix.max_prefix_len() {
                of_address.insert(prefix.addr(), (was, class));
            }
            let (what, limit) = room(prefix, &self.old.limits);
            let counted = count.entry(what).or_insert((0, limit));
            counted.0 += 1;
            let kept = before
                .filter(|entry| was == class && owner == desired.slot && entry.flags == flags && entry.side(now) == 1);
            let entry = kept.copied().unwrap_or(AddressEntry {
                class: Stamped { value: [was, class] },
                slot: Stamped { value: [owner, desired.slot] },
                since: generation,
                flags,
            });
            if kept.is_none() {
                self.prepare.push(Write::Address { prefix: *prefix, entry });
                self.changes.addresses += 1;
            }
            entries.insert(*prefix, entry);
        }
        for (prefix, entry) in old.iter().filter(|(prefix, _)| !entries.contains_key(*prefix)) {
            let (was, owner) = (entry.class(now), entry.slot(now));
            let class = match prefix {
                IpNet::V4(net) => self.next.nets.class(net.addr().into()),
                IpNet::V6(_) => new_nets.wider(desired, prefix).map_or(plain(prefix), class_of),
            };
            all.insert((was, class));
            let entry = AddressEntry {
                class: Stamped { value: [was, class] },
                slot: Stamped { value: [owner, NO_SLOT] },
                since: generation,
                flags: 0,
            };
            self.prepare.push(Write::Address { prefix: *prefix, entry });
            self.retire.push(Write::RemoveAddress { prefix: *prefix });
            self.changes.addresses += 1;
            // Until it is retired it takes room.
            count.entry(room(prefix, &self.old.limits).0).or_insert((0, room(prefix, &self.old.limits).1)).0 += 1;
        }
        for (what, (needed, limit)) in count {
            if needed > limit as usize {
                return Err(LimitError::Count { what, needed, limit: limit as usize });
            }
        }
        self.next.addresses = entries;
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_unstable();
        let moved = all.iter().copied().filter(|(was, class)| was != class).collect();
        Ok(Moves { all, moved, of_address })
    }

    /// Gives every workload its tables.
    fn policies(&mut self, compiled: &Compiled, built: &[BuiltTable], moves: &Moves) {
        let now = side(self.old.generation);
        let host_changed = self.old.settings[now].host_action != compiled.host_action;
        let mut compared = HashMap::new();
        for (name, workload) in &compiled.workloads {
            let Some(&owner) = self.next.workloads.get(name) else { continue };
            let was = owner.policy[now];
            let (egress_table, ingress_table) = (built[workload.egress].1.header, built[workload.ingress].1.header);
            let mut differs = |from, to| self.verdicts_differ(from, to, &workload.addresses, moves, &mut compared);
            let egress = differs(was.egress_table, egress_table) || host_changed;
            let ingress = differs(was.ingress_table, ingress_table);
            let policy = PolicyRef {
                egress_table,
                ingress_table,
                egress_epoch: if egress { self.generation } else { was.egress_epoch },
                ingress_epoch: if ingress { self.generation } else { was.ingress_epoch },
            };
            if self.old.workloads.contains_key(name) {
                if egress {
                    self.changes.egress.push(name.clone());
                }
                if ingress {
                    self.changes.ingress.push(name.clone());
                }
            }
            let owner = self.set_policy(owner, policy);
            self.next.workloads.insert(name.clone(), owner);
        }
    }

    /// Writes the new generation's side, if it does not hold that already.
    fn set_policy(&mut self, mut owner: Owner, policy: PolicyRef) -> Owner {
        let side = side(self.generation);
        if owner.policy[side] != policy {
            owner.policy[side] = policy;
            let Slot { slot, incarnation } = owner.slot;
            self.prepare.push(Write::WorkloadPolicy { slot, side, policy, incarnation });
        }
        owner
    }

    /// Whether the verdicts of a workload with these addresses may differ between two tables, each in its generation.
    ///
    /// Equal contents are kept once, so what is at another place is something else.
    fn verdicts_differ(
        &self,
        from: u32,
        to: u32,
        addresses: &[IpAddr],
        moves: &Moves,
        compared: &mut HashMap<(u32, u32), bool>,
    ) -> bool {
        let image = self.next.arena.image();
        let (Some(old), Some(new)) = (image.block(from), image.block(to)) else { return true };
        if !self.old.tables.contains_key(&from) {
            return true;
        }
        let vector = |root: u32, class: u32| judge::walk(image, root, class);
        let meets_other = |field: u32, pairs: &[(u32, u32)]| {
            pairs.iter().any(|&(was, is)| vector(old.u32_at(field), was) != vector(new.u32_at(field), is))
        };
        let (own, peer) = (4, 5);
        let whoever = *compared.entry((from, to)).or_insert_with(|| {
            // Number of rules, entries, and the roots of both port fields.
            let other_rules = [0, 1, 2, 6, 7].into_iter().any(|field| old.u32_at(field) != new.u32_at(field));
            other_rules || meets_other(peer, if from == to { &moves.moved } else { &moves.all })
        });
        whoever
            || addresses.iter().any(|address| {
                let class = || self.next.addresses.get(&IpNet::from(*address)).map(|entry| entry.class.value[1]);
                let moved = moves.of_address.get(address).copied();
                let pair = moved.or_else(|| class().map(|class| (class, class)));
                pair.is_none_or(|pair| meets_other(own, &[pair]))
            })
    }

    /// Makes the allowed spoofed sources what they shall be. They are of no generation: what goes, goes before the commit, and
    /// what comes, comes after it.
    fn spoof(&mut self, compiled: &Compiled) -> Result<(), LimitError> {
        let mut wanted = BTreeSet::new();
        for (name, workload) in &compiled.workloads {
            let slot = self.next.slot(name).map_or(NO_SLOT, |slot| slot.slot);
            wanted.extend(workload.spoof.iter().map(|prefix| (slot, prefix.trunc())));
        }
        for v6 in [false, true] {
            let needed = wanted.iter().filter(|(_, prefix)| matches!(prefix, IpNet::V6(_)) == v6).count();
            let limit = self.old.limits.spoof as usize;
            if needed > limit {
                return Err(LimitError::Count { what: "allowed spoofed source prefixes", needed, limit });
            }
        }
        for &(slot, prefix) in self.old.spoof.difference(&wanted) {
            self.prepare.push(Write::RemoveSpoof { slot, prefix });
        }
        for &(slot, prefix) in wanted.difference(&self.old.spoof) {
            self.retire.push(Write::Spoof { slot, prefix });
        }
        self.next.spoof = wanted;
        Ok(())
    }

    fn settings(&mut self, compiled: &Compiled) {
        let nets4 = self.next.nets.root();
        let settings = Settings { host_action: compiled.host_action, nets4, ..Settings::default() };
        let side = side(self.generation);
        if self.old.settings[side] != settings {
            self.next.settings[side] = settings;
            self.prepare.push(Write::Settings { side, settings });
        }
    }

    /// Puts the writes in order, and drops what is in force no more.
    fn finish(mut self, built: Vec<BuiltTable>) -> Plan {
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
        self.next.built = built.into_iter().collect();
        self.forget_conditions();

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

    /// Drops the numbers of conditions that nothing is about any more, once they are many.
    fn forget_conditions(&mut self) {
        let Store { conditions, classes, built, .. } = &mut self.next;
        let mut used: HashSet<u32> = classes.keys().flat_map(|key| key.conditions.iter().copied()).collect();
        used.extend(built.values().flat_map(|built| built.conditions().collect::<Vec<_>>()));
        if conditions.len() > 2 * used.len() + SPARE_CLASSES {
            conditions.retain(|_, number| used.contains(number));
        }
    }
}

/// What all addresses have of which the prefixes (in ascending order) have these; others have zero.
fn runs(prefixes: impl Iterator<Item = (Ipv4Net, u32)>) -> Vec<Run> {
    let mut runs: Vec<Run> = vec![(0, 0)];
    let mut begin = |start: u32, class: u32| {
        if let Some(last) = runs.last_mut()
            && last.0 == start
        {
            last.1 = class;
        } else {
            runs.push((start, class));
        }
        // What is the same as before it is no run of its own.
        if let [.., before, last] = runs[..]
            && before.1 == last.1
        {
            runs.pop();
        }
    };
    // The prefixes that the last one is in, with the last address of each.
    let mut wider: Vec<(u32, u32)> = Vec::new();
    let class_after = |wider: &[(u32, u32)]| wider.last().map_or(0, |wider| wider.1);
    for (net, class) in prefixes {
        let (start, last) = (u32::from(net.network()), u32::from(net.broadcast()));
        while let Some((end, _)) = wider.pop_if(|wider| wider.0 < start) {
            begin(end + 1, class_after(&wider));
        }
        begin(start, class);
        wider.push((last, class));
    }
    while let Some((end, _)) = wider.pop() {
        if let Some(next) = end.checked_add(1) {
            begin(next, class_after(&wider));
        }
    }
    runs
}

/// Notes which classes became which, and returns how many stretches of addresses have another class.
fn changed_runs(old: &[Run], new: &[Run], pairs: &mut HashSet<(u32, u32)>) -> usize {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let (mut was, mut is, mut changed) = (0, 0, 0);
    loop {
        let next = match (old.peek(), new.peek()) {
            (Some(old), Some(new)) => old.0.min(new.0),
            (Some(run), None) | (None, Some(run)) => run.0,
            (None, None) => return changed,
        };
        if let Some(run) = old.next_if(|run| run.0 == next) {
            was = run.1;
        }
        if let Some(run) = new.next_if(|run| run.0 == next) {
            is = run.1;
        }
        changed += usize::from(was != is);
        pairs.insert((was, is));
    }
}

/// Map and room of a prefix.
fn room(prefix: &IpNet, limits: &Limits) -> (&'static str, u32) {
    let single = prefix.prefix_len() == prefix.max_prefix_len();
    match (prefix, single) {
        (IpNet::V4(_), true) => ("IPv4 addresses of this host and its workloads, old and new ones", limits.addresses),
        (IpNet::V6(_), true) => ("single IPv6 addresses, old and new ones", limits.addresses),
        (IpNet::V4(_), false) => ("IPv4 networks, old and new ones", limits.nets),
        (IpNet::V6(_), false) => ("IPv6 networks, old and new ones", limits.nets),
    }
}

/// The table in terms of the store's conditions. Parts that tables share stay shared.
fn translate(table: &Table, conditions: &[u32], known: &mut HashMap<*const RuleMatch, Arc<RuleMatch>>) -> Table {
    let number = |condition: &u32| conditions[*condition as usize];
    let address = |matches: &AddressMatch| {
        let sorted = |list: &[u32]| {
            let mut list: Vec<u32> = list.iter().map(number).collect();
            list.sort_unstable();
            list.dedup();
            list
        };
        AddressMatch {
            all_of: matches.all_of.iter().map(|any| sorted(any)).collect(),
            none_of: sorted(&matches.none_of),
            family: matches.family,
        }
    };
    let rules = table.rules.iter().map(|rule| {
        let matches = known.entry(Arc::as_ptr(&rule.matches)).or_insert_with(|| {
            Arc::new(RuleMatch {
                own: address(&rule.matches.own),
                peer: address(&rule.matches.peer),
                ..RuleMatch::clone(&rule.matches)
            })
        });
        TableRule { matches: matches.clone(), ..rule.clone() }
    });
    Table { rules: rules.collect() }
}

#[cfg(test)]
impl Store {
    /// Blocks of the arena that are not free.
    pub(super) fn used_blocks(&self) -> u32 {
        self.arena.used()
    }
}
