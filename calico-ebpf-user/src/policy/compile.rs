//! Which rules each local workload is judged by, in which order.

mod expansions;
mod host_endpoints;
mod layout;
mod selection;
mod tables;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{self, AtomicU64},
    },
};

use calico_ebpf_common::abi::{host_action, settings_flags};

use self::{
    expansions::{Known, OfPolicy, RulesOf, Side},
    host_endpoints::AllInterfaces,
    tables::{Outline, Tables},
};
use super::{
    compiled::{Compiled, Direction, LocalWorkload, Table},
    conditions::{AddressConditions, Conditions},
    endpoints::{Endpoints, Memberships},
    expand::PortNames,
};
use crate::resources::{
    Shared,
    model::{EndpointToHostAction, FelixConfiguration, Policy, ResourceSet, ReversePath, WorkloadEndpoint},
};

/// Compiles what `set` says for the workloads of `node`.
#[must_use]
pub fn compile(set: &ResourceSet, node: &str) -> Compiled {
    Compiler::default().compile(set, node)
}

/// Compiles one set of resources after the other. What they have in common is not compiled again, and the outcome means
/// the same as that of a new compiler.
#[derive(Debug)]
pub struct Compiler {
    numbering: u64,
    endpoints: Endpoints,
    memberships: Memberships,
    conditions: Conditions,
    addresses: AddressConditions,
    names: PortNames,
    /// By what they are of.
    expansions: HashMap<RulesOf, Known>,
    /// The policies of the resources, in their order, each with its expansions by direction, as far as they are of use.
    policies: Vec<(Shared<Policy>, OfPolicy)>,
    /// Indices of the policies in the order of evaluation.
    order: Vec<usize>,
    next_expansion: u32,
    /// Numbers of what happens at the end of a tier.
    tier_ends: HashMap<(String, bool), u32>,
    /// Tables by what they are made of, see [`Compiler::table`].
    tables: HashMap<Vec<u32>, Arc<Table>>,
    turn: u64,
    #[cfg(test)]
    pub(super) work: Work,
}

/// What was done for one compilation.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Workloads that were looked at.
    pub(super) workloads: usize,
    /// Lists of rules that were expanded, those of profiles included.
    pub(super) expansions: usize,
    /// Tables that were laid out.
    pub(super) tables: usize,
}

impl Default for Compiler {
    fn default() -> Self {
        static NUMBERINGS: AtomicU64 = AtomicU64::new(1);
        Self {
            numbering: NUMBERINGS.fetch_add(1, atomic::Ordering::Relaxed),
            endpoints: Endpoints::default(),
            memberships: Memberships::default(),
            conditions: Conditions::default(),
            addresses: AddressConditions::default(),
            names: PortNames::default(),
            expansions: HashMap::new(),
            policies: Vec::new(),
            order: Vec::new(),
            next_expansion: 0,
            tier_ends: HashMap::new(),
            tables: HashMap::new(),
            turn: 0,
            #[cfg(test)]
            work: Work::default(),
        }
    }
}

impl Compiler {
    /// Compiles what `set` says for the workloads of `node`, always the same one.
    #[must_use]
    pub fn compile(&mut self, set: &ResourceSet, node: &str) -> Compiled {
        self.turn += 1;
        self.forget();
        #[cfg(test)]
        {
            self.work = Work::default();
        }
        let profiles: HashMap<_, _> = set.profiles.iter().map(|profile| (profile.name.as_str(), profile)).collect();
        self.endpoints.update(set, &profiles);
        #[cfg(test)]
        {
            self.work.workloads = self.endpoints.looked_at;
        }
        if self.endpoints.other_ports() {
            let names = PortNames::new(set);
            if names != self.names {
                // What is expanded again may still come to the same.
                self.expansions.values_mut().for_each(|known| known.policy = None);
                self.policies.clear();
                self.names = names;
            }
        }

        let locals: Vec<(usize, &Shared<WorkloadEndpoint>)> =
            self.endpoints.of_node(node).map(|index| (index, &set.workloads[index])).collect();
        let selected = self.selected(set, &locals);
        let felix = set.felix_for(node);
        let mut tables = Tables {
            of_policies: vec![[const { None }; 4]; set.policies.len()],
            of_failsafes: [None, None],
            to_host: None,
            deny_action: felix.deny_action(),
            all: Vec::new(),
            known: HashMap::new(),
            by_parts: HashMap::new(),
            of_profiles: HashMap::new(),
        };
        let all_interfaces = self.all_interfaces(set, node);
        let mut workloads = BTreeMap::new();
        for (index, workload) in &locals {
            let key = (self.endpoints.of_workload(*index), workload.namespace.as_str());
            let applying = selected.get(&key).map_or(&[][..], Vec::as_slice);
            let mut table = |direction| {
                let outline = Outline {
                    side: Side::of(direction),
                    failsafes: false,
                    before: &[],
                    policies: applying,
                    profiles: Some(&workload.profiles),
                    through: all_interfaces.as_ref(),
                };
                self.table(set, &profiles, &outline, &mut tables)
            };
            let local = LocalWorkload {
                pod: workload.pod.clone(),
                interface: workload.interface.clone(),
                addresses: workload.addresses.clone(),
                mac: workload.mac,
                spoof: workload.allow_spoofed_source_prefixes.clone(),
                egress: table(Direction::Egress),
                ingress: table(Direction::Ingress),
            };
            workloads.insert(format!("{}/{}", workload.namespace, workload.name), local);
        }
        let failsafes = felix.failsafes();
        let host_endpoints = self.host_endpoints(set, &profiles, node, &failsafes, &mut tables);
        let untracked = self.untracked(set, node, &failsafes, &mut tables);
        self.tables = tables.by_parts;
        self.policies = set.policies.iter().cloned().zip(tables.of_policies).collect();
        // Those that no policy and no profile has any more go.
        self.expansions.retain(|_, known| Arc::strong_count(&known.expansion) > 1);

        let mut live = vec![false; self.conditions.len()];
        let asked = self.expansions.values().flat_map(|known| &known.expansion.conditions);
        asked.for_each(|condition| live[*condition as usize] = true);
        let live: Vec<u32> = (0..).zip(live).filter_map(|(number, live)| live.then_some(number)).collect();
        let own = workloads.values().flat_map(|workload: &LocalWorkload| workload.addresses.iter().copied());
        let Self { addresses, conditions, endpoints, memberships, .. } = self;
        let found = addresses.update(set, &live, conditions, endpoints, memberships, own);
        memberships.turn();
        Compiled {
            tables: tables.all,
            workloads,
            host_endpoints,
            untracked,
            addresses: found,
            holdings: Arc::clone(addresses.holdings.sets()),
            host_condition: conditions.known_host().filter(|number| live.binary_search(number).is_ok()),
            numbering: self.numbering,
            host_action: match felix.default_endpoint_to_host_action.unwrap_or_default() {
                EndpointToHostAction::Drop => host_action::DROP,
                EndpointToHostAction::Accept => host_action::ACCEPT,
                EndpointToHostAction::Return => host_action::RETURN,
            },
            flags: flags(&felix),
        }
    }

    /// Begins anew where most of what is known is of no use any more.
    fn forget(&mut self) {
        const SPARE: usize = 10_000;
        if !self.turn.is_multiple_of(64) {
            return;
        }
        let useless = self.endpoints.groups() > SPARE + 2 * self.endpoints.living()
            || self.conditions.len() > 10 * SPARE
            || self.addresses.holdings.sets().len() > 10 * SPARE;
        if useless {
            *self = Self::default();
        }
    }
}

/// What is set for all packets of a node, as `abi::settings_flags`.
fn flags(felix: &FelixConfiguration) -> u32 {
    let invalid = match felix.disable_conntrack_invalid_check {
        Some(true) => settings_flags::JUDGE_INVALID,
        _ => 0,
    };
    let back = match felix.reverse_path.unwrap_or_default() {
        ReversePath::Strict => settings_flags::BACK_STRICT,
        ReversePath::Loose => settings_flags::BACK_LOOSE,
        ReversePath::Disabled => 0,
    };
    invalid | back
}
