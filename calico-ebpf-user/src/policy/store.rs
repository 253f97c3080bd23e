//! What the maps hold, and how they get to hold something else.
//!
//! A plan makes all that is desired anew, in terms of contents: what the arena has already is found there, what the maps
//! hold already is not written again. So a store that has adopted the maps of another process is like any other.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use calico_ebpf_common::abi::{
    Action, AddressEntry, HOST, INTERFACE_NAME, MAX_CHUNKS, MAX_RULES, NO_SLOT, PolicyRef, Settings, Stamped,
    Untracked, Workload, settings_flags,
};
use calico_ebpf_common::judge::{self, Arena as _};
use ipnet::{IpNet, Ipv6Net};

use super::{
    arena::Arena,
    compiled::{Compiled, Direction, RuleName, Seat, Table, from_workloads_seat},
    layout::{Built, ClassIndex, ClassKey, Classes, Counter},
    nets::{Nets, Run},
    prefixes::Prefixes,
    write::{Changes, KernelState, LimitError, Limits, Plan, Write},
};
use crate::resources::model::HostInterface;

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
    /// Generations after this one that were in force and are not any more: connections know them.
    spent: u32,
    settings: [Settings; 2],
    arena: Arena,
    /// Objects of the tables in force, by header.
    tables: HashMap<u32, Arc<[u32]>>,
    /// [`Compiled::numbering`] of what was planned last: what `built`, `classes` and `known` are in terms of.
    numbering: u64,
    /// How the tables in force were built, as far as this process has built them.
    built: HashMap<TableId, BuiltTable>,
    next_table: u32,
    classes: ClassNumbers,
    /// Of IPv6 all addresses and networks, of IPv4 the addresses of local workloads and of the host.
    addresses: Arc<BTreeMap<IpNet, AddressEntry>>,
    /// What `addresses` was made of, in the order of the map.
    known: Option<Arc<Vec<Known>>>,
    /// [`Addresses::v4`](super::compiled::Addresses::v4) that `nets` was made of.
    known_runs: Arc<Vec<Run>>,
    /// The classes of all IPv4 addresses.
    nets: Nets,
    spoof: BTreeSet<(u32, IpNet)>,
    workloads: BTreeMap<String, Owner>,
    /// Last incarnation of each slot that ever had an owner.
    incarnations: BTreeMap<u32, u32>,
    /// Slots that somebody left behind half written.
    stray_slots: BTreeSet<u32>,
    counters: Arc<HashMap<Arc<RuleName>, Counter>>,
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
            spent: 0,
            settings: [Settings::default(); 2],
            arena: Arena::new(limits.blocks),
            tables: HashMap::new(),
            numbering: 0,
            built: HashMap::new(),
            next_table: 1,
            classes: ClassNumbers::default(),
            addresses: Arc::default(),
            known: None,
            known_runs: Arc::default(),
            nets: Nets::empty(),
            spoof: BTreeSet::new(),
            workloads: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            stray_slots: BTreeSet::new(),
            counters: Arc::default(),
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
        store.addresses = Arc::new(state.addresses.clone());
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
        store.spent = spent(state);
        let counters = Arc::make_mut(&mut store.counters);
        for (&counter, name) in state.rule_names {
            let name = Arc::new(name.clone());
            match counters.entry(name) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Counter { number: counter, uses: 0 });
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
        let untracked = &state.root.settings[side(generation)].untracked;
        let untracked = untracked.iter().flat_map(|of| [of.ingress_table, of.egress_table]).filter(|table| *table != 0);
        let headers = store.workloads.values().flat_map(in_force).chain(untracked).collect();
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

    /// The same where the generation after the one in force was in force once and was taken back: its number is not given
    /// again, and that of the next one goes to the same side.
    #[must_use]
    pub fn behind_a_spent_generation(self) -> Self {
        Self { spent: self.spent.max(2), ..self }
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
        self.counters.get(rule).map(|counter| counter.number)
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
            generation: self.generation.wrapping_add(1 + self.spent),
            prepare: Vec::new(),
            retire: Vec::new(),
            changes: Changes::default(),
            begin: Vec::new(),
            end: Vec::new(),
        };
        // What is taken back is older than what these numbers are of.
        if compiled.numbering != self.numbering || self.classes.sets() > compiled.holdings.len() {
            planner.next.numbering = compiled.numbering;
            planner.next.built = HashMap::new();
            planner.next.classes = ClassNumbers::default();
            planner.next.known = None;
            planner.next.known_runs = Arc::default();
        }
        planner.slots(compiled)?;
        planner.counters(compiled)?;
        let desired = Desired::new(compiled, host_addresses, &planner.next);
        let (added, removed) = planner.classes(compiled, &desired)?;
        let key = |of: &ClassOf| of.key(compiled);
        // Tables that are known look at what changed alone.
        let is_new = |table: &Arc<Table>| !planner.next.built.contains_key(&id(table));
        let all: Vec<(ClassKey, u32)> = if removed || compiled.tables.iter().any(is_new) {
            planner.next.classes.iter().map(|(of, class)| (key(&of), class)).collect()
        } else {
            Vec::new()
        };
        let added: Vec<(ClassKey, u32)> = added.iter().map(|(of, class)| (key(of), *class)).collect();
        let classes = Classes { all: &all, added: &added, removed, index: &ClassIndex::default() };
        let built = planner.tables(compiled, &classes)?;
        let mut moves = planner.addresses(compiled, &desired)?;
        moves.bereft.extend(planner.spoof(compiled)?);
        planner.policies(compiled, &built, &moves);
        planner.settings(compiled, &built)?;
        Ok(planner.finish(built))
    }
}

/// How many generations behind the one in force must not come again, since connections may have been judged by them: one that a
/// process took back and then ended. Even, so that the next one goes to the same side.
fn spent(state: &KernelState<'_>) -> u32 {
    let epochs = state.workloads.iter().flat_map(|workload| workload.policy);
    let ahead = epochs.flat_map(|policy| [policy.egress_epoch, policy.ingress_epoch]);
    let ahead = ahead.map(|epoch| epoch.wrapping_sub(state.root.generation).cast_signed()).max().unwrap_or(0);
    ahead.max(0).cast_unsigned().next_multiple_of(2)
}

/// What a class stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct ClassOf {
    kind: AddressKind,
    /// Number of the set of conditions.
    holding: u32,
}

/// What tells addresses apart besides conditions that resources settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct AddressKind {
    /// It is one of the host's, and rules ask for that.
    host: bool,
    v6: bool,
}

impl AddressKind {
    const ALL: [Self; 4] = [Self::V4, Self::V6, Self { host: true, v6: false }, Self { host: true, v6: true }];
    const V4: Self = Self { host: false, v6: false };
    const V6: Self = Self { host: false, v6: true };

    fn index(self) -> usize {
        usize::from(self.v6) + 2 * usize::from(self.host)
    }
}

impl ClassOf {
    fn key(&self, compiled: &Compiled) -> ClassKey {
        let AddressKind { host, v6 } = self.kind;
        let settled = &compiled.holdings[self.holding as usize];
        let conditions = match compiled.host_condition.filter(|_| host) {
            Some(host) => {
                let (before, behind) = settled.split_at(settled.partition_point(|condition| *condition < host));
                [before, &[host], behind].concat().into()
            }
            None => settled.clone(),
        };
        ClassKey { v6, conditions }
    }
}

/// Classes by what they stand for; the numbers of sets of conditions are dense.
#[derive(Clone, Debug, Default)]
struct ClassNumbers([Vec<Option<u32>>; AddressKind::ALL.len()]);

impl ClassNumbers {
    fn get(&self, of: ClassOf) -> Option<u32> {
        self.0[of.kind.index()].get(of.holding as usize).copied().flatten()
    }

    fn insert(&mut self, of: ClassOf, class: u32) {
        let classes = &mut self.0[of.kind.index()];
        let needed = classes.len().max(of.holding as usize + 1);
        classes.resize(needed, None);
        classes[of.holding as usize] = Some(class);
    }

    /// In order.
    fn iter(&self) -> impl Iterator<Item = (ClassOf, u32)> {
        AddressKind::ALL.into_iter().flat_map(|kind| {
            let classes = (0..).zip(&self.0[kind.index()]);
            classes.filter_map(move |(holding, class)| Some((ClassOf { kind, holding }, (*class)?)))
        })
    }

    fn retain(&mut self, wanted: impl Fn(ClassOf) -> bool) {
        for (kind, classes) in AddressKind::ALL.into_iter().zip(&mut self.0) {
            for (holding, class) in (0..).zip(classes.iter_mut()) {
                *class = class.take_if(|_| wanted(ClassOf { kind, holding }));
            }
            let last = classes.iter().rposition(Option::is_some);
            classes.truncate(last.map_or(0, |last| last + 1));
        }
    }

    /// How many sets of conditions there have to be.
    fn sets(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// A table, and what it became.
type BuiltTable = (Arc<Table>, Arc<Built>);

/// What tells tables of one numbering apart, as long as somebody has the table.
type TableId = usize;

fn id(table: &Arc<Table>) -> TableId {
    Arc::as_ptr(table).addr()
}

/// What an entry of the address maps shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    prefix: IpNet,
    class: u32,
    slot: u32,
    host: bool,
}

/// Which of a pair of values a generation has.
fn side(generation: u32) -> usize {
    generation as usize & 1
}

/// Tables that the judge cannot follow to the end are refused.
fn check_tables(compiled: &Compiled) -> Result<(), LimitError> {
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

/// As the maps have it; names are checked when they are read.
pub(crate) fn interface_name(name: &str) -> [u8; INTERFACE_NAME] {
    let mut padded = [0; INTERFACE_NAME];
    for (place, byte) in padded.iter_mut().zip(name.bytes().take(INTERFACE_NAME - 1)) {
        *place = byte;
    }
    padded
}

/// What the address maps shall hold, and what stands for a class in it.
#[derive(Default)]
struct Desired {
    /// In order. [`Known::class`] is the set of conditions yet.
    entries: Vec<Known>,
    /// What needs a class, in the order of the addresses, so that one input always gives one result.
    used: Vec<ClassOf>,
    /// Whether rules ask for the host's addresses.
    host_differs: bool,
}

impl Desired {
    fn new(compiled: &Compiled, host_addresses: &BTreeSet<IpAddr>, next: &Store) -> Self {
        let mut own: BTreeMap<IpNet, (u32, bool)> = BTreeMap::new();
        for (name, workload) in &compiled.workloads {
            let slot = next.slot(name).map_or(NO_SLOT, |slot| slot.slot);
            own.extend(workload.addresses.iter().map(|&address| (address.into(), (slot, false))));
        }
        for &address in host_addresses {
            own.entry(address.into()).or_insert((NO_SLOT, false)).1 = true;
        }
        let runs = &*compiled.addresses.v4;
        let host_differs = compiled.host_condition.is_some();
        let entries = Vec::with_capacity(own.len() + compiled.addresses.v6.len());
        let mut desired = Self { entries, used: Vec::new(), host_differs };
        let mut is_used = AddressKind::ALL.map(|_| Vec::new());
        let mut take = |kind: AddressKind, holding: u32, used: &mut Vec<ClassOf>| {
            let is_used = &mut is_used[kind.index()];
            is_used.resize(compiled.holdings.len(), false);
            if !std::mem::replace(&mut is_used[holding as usize], true) {
                used.push(ClassOf { kind, holding });
            }
        };
        take(AddressKind::V4, 0, &mut desired.used);
        take(AddressKind::V6, 0, &mut desired.used);
        runs.iter().for_each(|&(_, holding)| take(AddressKind::V4, holding, &mut desired.used));
        for (&prefix, &(slot, host)) in own.range(..FIRST_V6) {
            let IpNet::V4(net) = prefix else { continue };
            let class = value_at(runs, net.addr().into());
            take(AddressKind { v6: false, host: host && host_differs }, class, &mut desired.used);
            desired.entries.push(Known { prefix, class, slot, host });
        }
        let mut own = own.range(FIRST_V6..).peekable();
        // The networks that the last one is in.
        let mut wider: Vec<(Ipv6Net, u32)> = Vec::new();
        let mut of_compiled = compiled.addresses.v6.iter().copied().peekable();
        loop {
            let next = match (of_compiled.peek(), own.peek()) {
                (None, None) => break,
                (Some((net, _)), None) => IpNet::V6(*net),
                (None, Some((prefix, _))) => **prefix,
                (Some((net, _)), Some((prefix, _))) => IpNet::V6(*net).min(**prefix),
            };
            let IpNet::V6(net) = next else { break };
            while wider.pop_if(|(wider, _)| !wider.contains(&net)).is_some() {}
            let said = of_compiled.next_if(|(said, _)| *said == net).map(|(_, holding)| holding);
            let class = said.or_else(|| wider.last().map(|wider| wider.1)).unwrap_or(0);
            let (slot, host) = own.next_if(|(prefix, _)| **prefix == next).map_or((NO_SLOT, false), |(_, own)| *own);
            wider.push((net, class));
            take(AddressKind { v6: true, host: host && host_differs }, class, &mut desired.used);
            desired.entries.push(Known { prefix: next, class, slot, host });
        }
        desired
    }

    /// What the class of an entry stands for.
    fn of(&self, known: &Known) -> ClassOf {
        let kind = AddressKind { v6: is_v6(&known.prefix), host: known.host && self.host_differs };
        ClassOf { kind, holding: known.class }
    }
}

/// The value of the stretch that an address is in.
fn value_at(runs: &[Run], address: u32) -> u32 {
    let after = runs.partition_point(|&(start, _)| start <= address);
    after.checked_sub(1).map_or(0, |index| runs[index].1)
}

/// Classes before and after: of which there are addresses, and which of those differ.
struct Moves {
    all: Vec<(u32, u32)>,
    /// Those that differ.
    moved: Vec<(u32, u32)>,
    /// The same for single addresses that changed.
    of_address: HashMap<IpAddr, (u32, u32)>,
    /// Slots that lose an address, or a source that they may spoof: their connections may be another's now.
    bereft: HashSet<u32>,
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

/// What a class stands for, and the class.
type NewClass = (ClassOf, u32);

impl Planner<'_> {
    /// Gives slots to new workloads, and takes those of workloads that go.
    fn slots(&mut self, compiled: &Compiled) -> Result<(), LimitError> {
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

    /// Gives counters to new rules, and takes those of rules that go.
    fn counters(&mut self, compiled: &Compiled) -> Result<(), LimitError> {
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

    /// Gives numbers to classes: those that are new, and whether some have gone.
    ///
    /// Any number will do for any class, used or not: an entry of an address says what holds from which generation on, and a
    /// table is read by one generation only unless it is right for both. So keeping numbers only saves writes.
    fn classes(&mut self, compiled: &Compiled, desired: &Desired) -> Result<(Vec<NewClass>, bool), LimitError> {
        let classes = &mut self.next.classes;
        let mut missing: HashSet<ClassOf> =
            desired.used.iter().copied().filter(|of| classes.get(*of).is_none()).collect();
        let spare = classes.iter().count() + missing.len() - desired.used.len();
        let removed = spare > SPARE_CLASSES.max(desired.used.len() / 2);
        if removed {
            let wanted: HashSet<ClassOf> = desired.used.iter().copied().collect();
            classes.retain(|of| wanted.contains(&of));
        }
        let mut added: Vec<NewClass> = Vec::new();
        if missing.is_empty() {
            return Ok((added, removed));
        }
        let mut taken: HashSet<u32> = classes.iter().map(|(_, class)| class).chain(0..PLAIN_CLASSES).collect();
        let mut add = |of: ClassOf, class: u32, missing: &mut HashSet<ClassOf>| {
            if missing.remove(&of) {
                classes.insert(of, class);
                added.push((of, class));
            }
        };
        add(ClassOf { kind: AddressKind::V4, holding: 0 }, 0, &mut missing);
        add(ClassOf { kind: AddressKind::V6, holding: 0 }, 1, &mut missing);
        // The number that most of the addresses have already. That is how the numbers of an earlier process live on.
        let mut votes: BTreeMap<(ClassOf, u32), u64> = BTreeMap::new();
        common_stretches(&self.old.nets.runs, &compiled.addresses.v4, |class, holding, addresses| {
            let of = ClassOf { kind: AddressKind::V4, holding };
            if missing.contains(&of) {
                *votes.entry((of, class)).or_default() += addresses;
            }
        });
        // Where an address has an entry of its own, another number would be a write for each of them.
        const ENTRY: u64 = 1 << 32;
        for known in &desired.entries {
            let of = desired.of(known);
            if missing.contains(&of)
                && let Some(entry) = self.old.addresses.get(&known.prefix)
            {
                *votes.entry((of, entry.class(self.old.generation))).or_default() += ENTRY;
            }
        }
        let mut votes: Vec<_> = votes.into_iter().collect();
        votes.sort_by_key(|(_, addresses)| std::cmp::Reverse(*addresses));
        for ((of, class), _) in votes {
            if missing.contains(&of) && taken.insert(class) {
                add(of, class, &mut missing);
            }
        }
        let mut candidates = PLAIN_CLASSES..;
        for of in &desired.used {
            if !missing.contains(of) {
                continue;
            }
            let class = candidates.by_ref().find(|class| !taken.contains(class)).unwrap_or(u32::MAX);
            if class >= self.old.limits.classes.min(1 << 24) {
                let limit = self.old.limits.classes.min(1 << 24) as usize;
                let needed = desired.used.len().max(limit + 1);
                return Err(LimitError::Count { what: "classes of addresses", needed, limit });
            }
            add(*of, class, &mut missing);
        }
        Ok((added, removed))
    }

    /// Lays out the tables, and says how each of the compiled ones was built.
    fn tables(&mut self, compiled: &Compiled, classes: &Classes<'_>) -> Result<Vec<BuiltTable>, LimitError> {
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

    /// Makes all addresses what they shall be.
    fn addresses(&mut self, compiled: &Compiled, desired: &Desired) -> Result<Moves, LimitError> {
        let (now, generation) = (self.old.generation, self.generation);
        let class_of = |of: ClassOf| self.next.classes.get(of).unwrap_or_default();
        let stay = desired.used.iter().map(|&of| class_of(of)).chain(0..PLAIN_CLASSES);
        // Those that stay, and those that moved.
        let mut all: Vec<(u32, u32)> = stay.map(|class| (class, class)).collect();
        if !Arc::ptr_eq(&self.next.known_runs, &compiled.addresses.v4) {
            let mut runs = Vec::with_capacity(compiled.addresses.v4.len().max(1));
            let of = |holding| ClassOf { kind: AddressKind::V4, holding };
            runs.extend(compiled.addresses.v4.iter().map(|&(start, holding)| (start, class_of(of(holding)))));
            if runs.is_empty() {
                runs.push((0, 0));
            }
            runs.dedup_by_key(|run| run.1);
            self.changes.addresses += changed_runs(&self.old.nets.runs, &runs, &mut all);
            let (nets, uses) = self.old.nets.update(&mut self.next.arena, Arc::new(runs))?;
            self.begin.extend(uses.begin);
            self.end.extend(uses.end);
            self.next.nets = nets;
            self.next.known_runs = Arc::clone(&compiled.addresses.v4);
        }
        let entries: Vec<Known> =
            desired.entries.iter().map(|known| Known { class: class_of(desired.of(known)), ..*known }).collect();
        let mut count = [0; ROOMS];
        entries.iter().for_each(|known| count[room(&known.prefix)] += 1);

        // Of most of them nothing is to be looked at.
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        match &self.next.known {
            Some(known) => differences(known, &entries, &mut changed, &mut gone),
            None => {
                let wanted: HashSet<&IpNet> = entries.iter().map(|known| &known.prefix).collect();
                gone.extend(self.old.addresses.keys().filter(|prefix| !wanted.contains(prefix)));
                changed.extend(entries.iter().copied());
            }
        }
        let (mut of_address, mut bereft) = (HashMap::new(), HashSet::new());
        if !changed.is_empty() || !gone.is_empty() {
            let old = &*self.old.addresses;
            let lengths = Prefixes::new(old.keys().chain(entries.iter().map(|known| &known.prefix)));
            let plain = |prefix: &IpNet| u32::from(is_v6(prefix));
            let next = Arc::make_mut(&mut self.next.addresses);
            for Known { prefix, class, slot, host } in changed {
                let before = old.get(&prefix);
                let was = match (before, prefix) {
                    (Some(entry), _) => entry.class(now),
                    (None, IpNet::V4(net)) => self.old.nets.class(net.addr().into()),
                    (None, IpNet::V6(_)) => lengths.wider(old, &prefix).map_or(plain(&prefix), |e| e.class(now)),
                };
                let (owner, flags) = (before.map_or(NO_SLOT, |entry| entry.slot(now)), if host { HOST } else { 0 });
                all.push((was, class));
                if was != class && prefix.prefix_len() == prefix.max_prefix_len() {
                    of_address.insert(prefix.addr(), (was, class));
                }
                let stays = |entry: &&AddressEntry| {
                    was == class && owner == slot && entry.flags == flags && entry.side(now) == 1
                };
                if owner != slot {
                    bereft.insert(owner);
                }
                if before.filter(stays).is_none() {
                    let entry = AddressEntry {
                        class: Stamped { value: [was, class] },
                        slot: Stamped { value: [owner, slot] },
                        since: generation,
                        flags,
                    };
                    self.prepare.push(Write::Address { prefix, entry });
                    self.changes.addresses += 1;
                    next.insert(prefix, entry);
                }
            }
            for prefix in &gone {
                next.remove(prefix);
            }
            for prefix in gone {
                let Some(before) = old.get(&prefix) else { continue };
                let (was, owner) = (before.class(now), before.slot(now));
                let class = match prefix {
                    IpNet::V4(net) => self.next.nets.class(net.addr().into()),
                    IpNet::V6(_) => {
                        lengths.wider(next, &prefix).map_or(plain(&prefix), |entry| entry.class(generation))
                    }
                };
                all.push((was, class));
                bereft.insert(owner);
                let entry = AddressEntry {
                    class: Stamped { value: [was, class] },
                    slot: Stamped { value: [owner, NO_SLOT] },
                    since: generation,
                    flags: 0,
                };
                self.prepare.push(Write::Address { prefix, entry });
                self.retire.push(Write::RemoveAddress { prefix });
                self.changes.addresses += 1;
                // Until it is retired it takes room.
                count[room(&prefix)] += 1;
            }
        }
        for (needed, (what, limit)) in count.into_iter().zip(rooms(&self.old.limits)) {
            if needed > limit as usize {
                return Err(LimitError::Count { what, needed, limit: limit as usize });
            }
        }
        self.next.known = Some(Arc::new(entries));
        all.sort_unstable();
        all.dedup();
        let moved = all.iter().copied().filter(|(was, class)| was != class).collect();
        Ok(Moves { all, moved, of_address, bereft })
    }

    /// Gives every workload its tables.
    fn policies(&mut self, compiled: &Compiled, built: &[BuiltTable], moves: &Moves) {
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
    fn set_policy(&mut self, mut owner: Owner, policy: PolicyRef) -> Owner {
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

    /// Makes the allowed spoofed sources what they shall be. They are of no generation: what goes, goes before the commit, and
    /// what comes, comes after it. Returns the slots that lose some.
    fn spoof(&mut self, compiled: &Compiled) -> Result<Vec<u32>, LimitError> {
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

    fn settings(&mut self, compiled: &Compiled, built: &[BuiltTable]) -> Result<(), LimitError> {
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

fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

/// Visits the stretches of addresses in which nothing changes, with the values in both and the number of addresses.
fn common_stretches(a: &[Run], b: &[Run], mut visit: impl FnMut(u32, u32, u64)) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let (mut of_a, mut of_b, mut start) = (0, 0, 0);
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(a), Some(b)) => u64::from(a.0.min(b.0)),
            (Some(run), None) | (None, Some(run)) => run.0.into(),
            (None, None) => 1 << 32,
        };
        if next > start {
            visit(of_a, of_b, next - start);
        }
        if next == 1 << 32 {
            return;
        }
        start = next;
        if let Some(run) = a.next_if(|run| u64::from(run.0) == next) {
            of_a = run.1;
        }
        if let Some(run) = b.next_if(|run| u64::from(run.0) == next) {
            of_b = run.1;
        }
    }
}

/// Notes which classes became which, and returns how many stretches of addresses have another class.
fn changed_runs(old: &[Run], new: &[Run], pairs: &mut Vec<(u32, u32)>) -> usize {
    let mut changed = 0;
    common_stretches(old, new, |was, is, _| {
        if was != is {
            changed += 1;
            pairs.push((was, is));
        }
    });
    changed
}

/// Maps of prefixes that have their own room.
const ROOMS: usize = 4;

/// Which of them a prefix is in.
fn room(prefix: &IpNet) -> usize {
    let single = prefix.prefix_len() == prefix.max_prefix_len();
    usize::from(is_v6(prefix)) + if single { 0 } else { 2 }
}

/// What they are for, and how much there is.
fn rooms(limits: &Limits) -> [(&'static str, u32); ROOMS] {
    [
        ("IPv4 addresses of this host and its workloads, old and new ones", limits.addresses4),
        ("single IPv6 addresses, old and new ones", limits.addresses6),
        ("IPv4 networks, old and new ones", limits.nets),
        ("IPv6 networks, old and new ones", limits.nets),
    ]
}

/// What is new or other in `new`, and what is not there any more; both in the order of the map.
fn differences(old: &[Known], new: &[Known], changed: &mut Vec<Known>, gone: &mut Vec<IpNet>) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(was), Some(is)) if was.prefix == is.prefix => {
                if was != is {
                    changed.push(**is);
                }
                old.next();
                new.next();
            }
            (Some(was), is) if is.is_none_or(|is| was.prefix < is.prefix) => {
                gone.push(was.prefix);
                old.next();
            }
            (_, Some(is)) => {
                changed.push(**is);
                new.next();
            }
            (Some(_), None) => return,
        }
    }
}

/// Rules of a table that follow on each other and have one name are one rule of the files.
fn names(table: &Table) -> impl Iterator<Item = &Arc<RuleName>> {
    table.rules.chunk_by(|a, b| Arc::ptr_eq(&a.name, &b.name)).filter_map(|rules| Some(&rules.first()?.name))
}

#[cfg(test)]
impl Store {
    /// Blocks of the arena that are not free.
    pub(super) fn used_blocks(&self) -> u32 {
        self.arena.used()
    }
}
