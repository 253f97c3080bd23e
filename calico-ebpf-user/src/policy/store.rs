//! What the maps hold, and how they get to hold something else.
//!
//! A plan makes all that is desired anew, in terms of contents: what the arena has already is found there, what the maps
//! hold already is not written again. So a store that has adopted the maps of another process is like any other.

mod addresses;
mod classes;
mod planner;
mod seats;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use calico_ebpf_common::abi::{AddressEntry, INTERFACE_NAME, PolicyRef, Settings, Workload};
use calico_ebpf_common::judge::Arena as _;
use ipnet::IpNet;

use self::{
    addresses::{Desired, Known},
    classes::{ClassNumbers, ClassOf},
    planner::Planner,
    tables::{BuiltTable, TableId, check_tables, id},
};
use super::{
    arena::Arena,
    compiled::{Compiled, RuleName, Table},
    layout::{ClassIndex, ClassKey, Classes, Counter},
    nets::{Nets, Run},
    write::{Changes, KernelState, LimitError, Limits, Plan},
};

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

/// Which of a pair of values a generation has.
fn side(generation: u32) -> usize {
    generation as usize & 1
}

/// As the maps have it; names are checked when they are read.
pub(crate) fn interface_name(name: &str) -> [u8; INTERFACE_NAME] {
    let mut padded = [0; INTERFACE_NAME];
    for (place, byte) in padded.iter_mut().zip(name.bytes().take(INTERFACE_NAME - 1)) {
        *place = byte;
    }
    padded
}

#[cfg(test)]
impl Store {
    /// Blocks of the arena that are not free.
    pub(super) fn used_blocks(&self) -> u32 {
        self.arena.used()
    }
}
