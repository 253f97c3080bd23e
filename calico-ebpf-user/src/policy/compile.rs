//! Which rules each local workload is judged by, in which order.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    sync::{
        Arc,
        atomic::{self, AtomicU64},
    },
};

use calico_ebpf_common::abi::{Action, host_action, settings_flags};

use super::{
    compiled::{
        AddressMatch, Compiled, Direction, LocalHostEndpoint, LocalWorkload, Reason, RuleMatch, RuleName, Table,
        TablePair, TableRule, UntrackedInterface,
    },
    conditions::{AddressConditions, Conditions},
    endpoints::{Endpoints, Memberships},
    expand::{PortNames, expand},
    failsafe,
};
use crate::resources::{
    Shared,
    model::{
        DenyAction, EndpointToHostAction, FailsafePort, FelixConfiguration, HostEndpoint, HostInterface, Policy,
        PolicyHook, PolicyKind, Profile, ResourceSet, ReversePath, Rule, RuleAction, TierAction, WorkloadEndpoint,
    },
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

/// Rules of a table before it is known where the next tier begins.
type Rules = Vec<(Does, Arc<RuleName>, Arc<RuleMatch>)>;

/// What a rule does: its action, and what becomes of what it denies where it says so.
type Does = (RuleAction, Option<DenyAction>);

/// By direction and seat, see [`Side`].
type OfPolicy = [Option<Arc<Expansion>>; 4];

/// Kind, namespace, tier and name of a policy, or name of a profile, and for which tables.
type RulesOf = (Option<PolicyKind>, Option<String>, String, Side);

/// Rules of which direction a table has, and whose it is: the sender's (`Egress`) or the receiver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Side {
    direction: Direction,
    seat: Direction,
}

impl Side {
    /// Of whoever sends has egress rules, of whoever receives ingress rules.
    const fn of(direction: Direction) -> Self {
        Self { direction, seat: direction }
    }

    /// Of what a host endpoint forwards: what comes in by it is sent by somebody outside, what leaves is received there.
    const fn outside(direction: Direction) -> Self {
        let seat = match direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        };
        Self { direction, seat }
    }

    fn index(self) -> usize {
        self.direction as usize + if self.seat == self.direction { 0 } else { 2 }
    }
}

/// What a table is made of.
struct Outline<'a> {
    side: Side,
    /// Whether the ports come first that host endpoints never shut.
    failsafes: bool,
    /// Policies that come before all others, and at the end of whose tiers nothing happens.
    before: &'a [usize],
    /// Policies in the order of evaluation.
    policies: &'a [usize],
    /// Profiles behind them; without, what nobody decides passes.
    profiles: Option<&'a [String]>,
    /// The host endpoint that it all passes first.
    through: Option<&'a AllInterfaces>,
}

/// What the host endpoint of all interfaces says of what the host forwards. The interfaces of workloads are among them.
#[derive(Default)]
struct AllInterfaces {
    /// Policies before DNAT, in the order of evaluation.
    before: Vec<usize>,
    /// Policies with `applyOnForward`, likewise.
    forward: Vec<usize>,
}

/// Rules as they were expanded.
#[derive(Debug)]
struct Known {
    /// What they were expanded from, of a policy.
    policy: Option<Shared<Policy>>,
    expansion: Arc<Expansion>,
}

#[derive(Debug)]
struct Expansion {
    /// Others have another number.
    number: u32,
    rules: Rules,
    /// Conditions that they ask about, ascending; also those of rules that come to nothing.
    conditions: Vec<u32>,
}

/// What a table is made of besides numbers of expansions.
const PROFILES: u32 = u32::MAX;
const TIER_END: u32 = 1 << 31;
const POLICIES: u32 = u32::MAX - 1;
const NO_PROFILES: u32 = u32::MAX - 2;
/// In place of what becomes of denied packets.
const UNTRACKED: u32 = u32::MAX - 3;
/// Behind it, what is of the host endpoint of all interfaces.
const THROUGH: u32 = u32::MAX - 4;

/// Besides its own addresses, what is for the host if it is not for everybody: loopback, the link, multicast and broadcast.
const TO_HOST: [&str; 6] = ["127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8"];

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

    /// Policies by the labels and the namespace of the local workloads that they select, in the order of evaluation.
    fn selected<'a>(
        &mut self,
        set: &'a ResourceSet,
        locals: &[(usize, &'a Shared<WorkloadEndpoint>)],
    ) -> HashMap<(u32, &'a str), Vec<usize>> {
        let mut selected: HashMap<(u32, &str), Vec<usize>> = HashMap::new();
        let mut of_group: HashMap<u32, Vec<&str>> = HashMap::new();
        for (index, workload) in locals {
            let group = self.endpoints.of_workload(*index);
            if selected.insert((group, &workload.namespace), Vec::new()).is_none() {
                of_group.entry(group).or_default().push(&workload.namespace);
            }
        }
        let order = std::mem::take(&mut self.order);
        self.order = evaluation_order(set, order);
        for &index in &self.order {
            let policy = &set.policies[index];
            if !policy.judges_workloads() {
                continue;
            }
            let members = self.memberships.of(&self.endpoints, &policy.selector);
            let mut select = |group: u32, namespaces: &[&'a str]| {
                for namespace in namespaces {
                    if policy.namespace.as_deref().is_none_or(|of_policy| of_policy == *namespace)
                        && let Some(policies) = selected.get_mut(&(group, *namespace))
                    {
                        policies.push(index);
                    }
                }
            };
            // Whichever are fewer.
            if members.groups.len() < of_group.len() {
                let local = members.groups.iter().filter_map(|group| Some((*group, of_group.get(group)?)));
                local.for_each(|(group, namespaces)| select(group, namespaces));
            } else {
                let members = of_group.iter().filter(|(group, _)| members.contains(**group));
                members.for_each(|(group, namespaces)| select(*group, namespaces));
            }
        }
        selected
    }

    /// The host endpoints of the node with their tables.
    fn host_endpoints<'a>(
        &mut self,
        set: &ResourceSet,
        profiles: &HashMap<&'a str, &Profile>,
        node: &str,
        failsafes: &[Vec<FailsafePort>; 2],
        tables: &mut Tables<'a>,
    ) -> BTreeMap<String, LocalHostEndpoint> {
        let local: Vec<_> =
            self.endpoints.host_endpoints().iter().filter(|(host, _)| host.node == node).cloned().collect();
        let mut compiled = BTreeMap::new();
        if !local.is_empty() {
            for direction in [Direction::Ingress, Direction::Egress] {
                self.failsafes(failsafes, direction, tables);
            }
        }
        for (host, group) in local {
            let selecting = self.selecting(set, group);
            let with = |hooks: &[PolicyHook]| with_hooks(set, &selecting, hooks);
            let before = with(&[PolicyHook::PreDnat]);
            let (policies, forward) = (with(&[PolicyHook::Normal, PolicyHook::Forward]), with(&[PolicyHook::Forward]));
            let mut table = |side: Side, failsafes, policies: &[usize], profiles_of: Option<&[String]>| {
                // Policies before DNAT are about what comes in.
                let before = if side.direction == Direction::Ingress { &before[..] } else { &[] };
                let outline = Outline { side, failsafes, before, policies, profiles: profiles_of, through: None };
                self.table(set, profiles, &outline, tables)
            };
            let endpoint = LocalHostEndpoint {
                interface: host.interface.clone(),
                host: TablePair {
                    egress: table(Side::of(Direction::Egress), true, &policies, Some(&host.profiles)),
                    ingress: table(Side::of(Direction::Ingress), true, &policies, Some(&host.profiles)),
                },
                forward: (!forward.is_empty() || !before.is_empty()).then(|| TablePair {
                    egress: table(Side::outside(Direction::Ingress), false, &forward, None),
                    ingress: table(Side::outside(Direction::Egress), false, &forward, None),
                }),
                from_workloads: (host.interface == HostInterface::All && !before.is_empty())
                    .then(|| table(Side::of(Direction::Ingress), true, &[], None)),
            };
            compiled.insert(host.name.clone(), endpoint);
        }
        compiled
    }

    /// Global policies that select a host endpoint of this group, in the order of evaluation.
    fn selecting(&mut self, set: &ResourceSet, group: u32) -> Vec<usize> {
        let mut selecting = Vec::new();
        for &index in &self.order {
            let policy = &set.policies[index];
            if policy.namespace.is_none() && self.memberships.of(&self.endpoints, &policy.selector).contains(group) {
                selecting.push(index);
            }
        }
        selecting
    }

    /// The node's host endpoint of all interfaces, if it has one that judges what the host forwards.
    fn all_interfaces(&mut self, set: &ResourceSet, node: &str) -> Option<AllInterfaces> {
        let is_it = |host: &HostEndpoint| host.node == node && host.interface == HostInterface::All;
        let group = self.endpoints.host_endpoints().iter().find(|(host, _)| is_it(host))?.1;
        let selecting = self.selecting(set, group);
        let with = |hook| with_hooks(set, &selecting, &[hook]);
        let all = AllInterfaces { before: with(PolicyHook::PreDnat), forward: with(PolicyHook::Forward) };
        (!all.before.is_empty() || !all.forward.is_empty()).then_some(all)
    }

    /// What lets pass what is for the host itself.
    fn passing_to_host(&mut self, tables: &mut Tables<'_>) -> Arc<Expansion> {
        let make = || {
            let conditions = &mut self.conditions;
            let nets = TO_HOST.iter().filter_map(|net| net.parse().ok());
            let mut any: Vec<u32> = nets.map(|net| conditions.net(net)).collect();
            any.push(conditions.host());
            let peer = AddressMatch { all_of: vec![any], ..AddressMatch::default() };
            let matches = RuleMatch { peer, ..RuleMatch::default() };
            let name = nameless(Direction::Egress, Reason::ToHost, None);
            let rules = vec![((RuleAction::Pass, None), Arc::new(name), Arc::new(matches))];
            self.keep((None, Some("to-host".to_owned()), String::new(), Side::of(Direction::Egress)), None, rules)
        };
        tables.to_host.get_or_insert_with(make).clone()
    }

    /// The ports that host endpoints never shut, as rules for one direction: of the inbound and of the outbound list, the one of
    /// that direction about what asks, the other about what answers.
    fn failsafes(
        &mut self,
        ports: &[Vec<FailsafePort>; 2],
        direction: Direction,
        tables: &mut Tables<'_>,
    ) -> [Arc<Expansion>; 2] {
        let known = &mut tables.of_failsafes[direction as usize];
        let make = || {
            [0, 1].map(|list| {
                let (name, rules) = (failsafe::LISTS[list], &ports[list]);
                let of = (None, Some(name.to_owned()), String::new(), Side::of(direction));
                self.expand(of, None, &failsafe::rules(name, rules, direction), &failsafe::name(name, direction))
            })
        };
        known.get_or_insert_with(make).clone()
    }

    /// Index of a table.
    fn table<'a>(
        &mut self,
        set: &ResourceSet,
        profiles: &HashMap<&'a str, &Profile>,
        outline: &Outline<'_>,
        tables: &mut Tables<'a>,
    ) -> usize {
        let Outline { side, failsafes, before, policies, profiles: of_profiles, through } = *outline;
        let direction = side.direction;
        let deny_action = tables.deny_action;
        let mut parts = vec![side.index() as u32, deny_action as u32];
        let of_failsafes = tables.of_failsafes[direction as usize].as_ref().filter(|_| failsafes);
        let first = of_failsafes.map(|lists| Arc::clone(&lists[direction as usize]));
        parts.extend(first.iter().map(|expansion| expansion.number));
        let before = self.tiers(set, before, side, &mut parts, tables);
        parts.push(POLICIES);
        let tiers = self.tiers(set, policies, side, &mut parts, tables);
        parts.push(if of_profiles.is_some() { PROFILES } else { NO_PROFILES });
        let of_profiles: Option<Vec<Arc<Expansion>>> = of_profiles.map(|names| {
            // One that does not exist denies, as Felix's stand-in for it (`DummyDropRules`) does.
            let known = names.iter().map_while(|name| profiles.get_key_value(name.as_str()));
            known
                .map(|(name, profile)| {
                    let of_profile = &mut tables.of_profiles.entry(name).or_default()[side.index()];
                    of_profile.get_or_insert_with(|| self.profile(profile, direction)).clone()
                })
                .collect()
        });
        parts.extend(of_profiles.iter().flatten().map(|expansion| expansion.number));
        let through = through.and_then(|all| self.through(set, all, side.seat, &mut parts, tables));
        tables.known_or(parts, &mut self.tables, || {
            #[cfg(test)]
            {
                self.work.tables += 1;
            }
            let (mut rules, through_before_dnat) =
                through.map(|through| lay_out_through(&through, deny_action)).unwrap_or_default();
            let of_host_endpoint = index_of(&rules);
            let own_before_dnat =
                lay_out(&mut rules, first.as_ref(), &before, &tiers, of_profiles.as_deref(), direction, deny_action);
            let before_dnat = if before.is_empty() { through_before_dnat } else { own_before_dnat };
            Table { rules, of_host_endpoint, before_dnat }
        })
    }

    /// What the host endpoint of all interfaces has to say of what a workload sends (`Egress`) or receives.
    fn through<'s>(
        &mut self,
        set: &'s ResourceSet,
        all: &AllInterfaces,
        seat: Direction,
        parts: &mut Vec<u32>,
        tables: &mut Tables<'_>,
    ) -> Option<Through<'s>> {
        let side = match seat {
            Direction::Egress => Side::outside(Direction::Ingress),
            Direction::Ingress => Side::outside(Direction::Egress),
        };
        parts.push(THROUGH);
        // Policies before DNAT are about what comes in.
        let before = if side.direction == Direction::Ingress { &all.before[..] } else { &[] };
        let before = self.tiers(set, before, side, parts, tables);
        parts.push(POLICIES);
        let forward = self.tiers(set, &all.forward, side, parts, tables);
        if before.is_empty() && forward.is_empty() {
            return None;
        }
        let to_host = (seat == Direction::Egress).then(|| self.passing_to_host(tables));
        Some(Through { direction: side.direction, to_host, before, forward })
    }

    /// The interfaces that policy before connection tracking judges: those of host endpoints that name one.
    fn untracked<'a>(
        &mut self,
        set: &'a ResourceSet,
        node: &str,
        failsafes: &[Vec<FailsafePort>; 2],
        tables: &mut Tables<'a>,
    ) -> BTreeMap<String, UntrackedInterface> {
        let mut interfaces = BTreeMap::new();
        let mut claimed = BTreeSet::new();
        for endpoint in set.host_endpoints_of(node) {
            let HostInterface::Named(interface) = &endpoint.interface else { continue };
            // The first by name is the interface.
            if !claimed.insert(interface) {
                continue;
            }
            let is_about =
                |policy: &Policy| policy.hook == PolicyHook::Untracked && policy.selects_host_endpoint(set, endpoint);
            let order = self.order.iter().copied();
            let selecting: Vec<usize> = order.filter(|&index| is_about(&set.policies[index])).collect();
            let mut table = |direction| self.untracked_table(set, &selecting, failsafes, direction, tables);
            let untracked = UntrackedInterface { ingress: table(Direction::Ingress), egress: table(Direction::Egress) };
            if untracked != UntrackedInterface::default() {
                interfaces.insert(interface.clone(), untracked);
            }
        }
        interfaces
    }

    /// Index of the table of untracked policies for one direction, if any of those that select the interface is about it.
    fn untracked_table<'a>(
        &mut self,
        set: &ResourceSet,
        selecting: &[usize],
        failsafes: &[Vec<FailsafePort>; 2],
        direction: Direction,
        tables: &mut Tables<'a>,
    ) -> Option<usize> {
        let mut parts = vec![direction as u32, UNTRACKED];
        let tiers = self.tiers(set, selecting, Side::of(direction), &mut parts, tables);
        if tiers.is_empty() {
            return None;
        }
        let of_failsafes = self.failsafes(failsafes, direction, tables);
        parts.extend(of_failsafes.iter().map(|expansion| expansion.number));
        tables.known_or(parts, &mut self.tables, || lay_out_untracked(&of_failsafes, &tiers, direction)).into()
    }

    /// The tiers of policies that apply, and what of them tells one table from another.
    fn tiers<'s>(
        &mut self,
        set: &'s ResourceSet,
        policies: &[usize],
        side: Side,
        parts: &mut Vec<u32>,
        tables: &mut Tables<'_>,
    ) -> Vec<TierRules<'s>> {
        let mut tiers: Vec<TierRules<'s>> = Vec::new();
        for (index, policy) in policies.iter().map(|&index| (index, &set.policies[index])) {
            if !applies(policy, side.direction) {
                continue;
            }
            if tiers.last().is_none_or(|tier| tier.name != policy.tier) {
                let passes = set.tier(&policy.tier).is_some_and(|tier| tier.default_action == TierAction::Pass);
                parts.push(TIER_END | self.tier_end(&policy.tier, passes));
                tiers.push(TierRules { name: &policy.tier, passes, policies: Vec::new() });
            }
            let of_policy = &mut tables.of_policies[index][side.index()];
            let expansion = of_policy.get_or_insert_with(|| self.policy(index, policy, side)).clone();
            parts.push(expansion.number);
            if let Some(tier) = tiers.last_mut() {
                tier.policies.push(expansion);
            }
        }
        tiers
    }

    fn tier_end(&mut self, tier: &str, passes: bool) -> u32 {
        let next = self.tier_ends.len() as u32;
        *self.tier_ends.entry((tier.to_owned(), passes)).or_insert(next)
    }

    fn policy(&mut self, index: usize, policy: &Shared<Policy>, side: Side) -> Arc<Expansion> {
        // Most have the same place as before, which spares making a name of them.
        if let Some((known, expansions)) = self.policies.get(index)
            && let Some(expansion) = &expansions[side.index()]
            && known.is(policy)
        {
            return Arc::clone(expansion);
        }
        let name_in_all = format!("{}/{}", policy.tier, policy.name);
        let of = (Some(policy.kind), policy.namespace.clone(), name_in_all, side);
        if let Some(known) = self.expansions.get(&of)
            && known.policy.as_ref().is_some_and(|known| known.is(policy))
        {
            return Arc::clone(&known.expansion);
        }
        let direction = side.direction;
        let name = RuleName {
            direction,
            reason: Reason::Rule,
            tier: Some(policy.tier.clone()),
            kind: Some(policy.kind.as_str().to_owned()),
            namespace: policy.namespace.clone(),
            policy: Some(policy.name.clone()),
            rule: None,
        };
        let rules = of_direction(&policy.ingress, &policy.egress, direction);
        self.expand(of, Some(policy), rules, &name)
    }

    fn profile(&mut self, profile: &Profile, direction: Direction) -> Arc<Expansion> {
        let of = (None, None, profile.name.clone(), Side::of(direction));
        let name = RuleName::of_profile(&profile.name, direction);
        self.expand(of, None, of_direction(&profile.ingress, &profile.egress, direction), &name)
    }

    /// Expands rules; those that come to the same as before stay the same ones.
    fn expand(
        &mut self,
        of: RulesOf,
        policy: Option<&Shared<Policy>>,
        rules: &[Rule],
        name: &RuleName,
    ) -> Arc<Expansion> {
        #[cfg(test)]
        {
            self.work.expansions += 1;
        }
        let Self { names, conditions, .. } = self;
        let namespace = of.1.as_deref();
        let rules = expand_all(rules, name, of.3.seat, namespace, names, conditions);
        self.keep(of, policy, rules)
    }

    /// The expansion to these rules: where they are what they were, the same one.
    fn keep(&mut self, of: RulesOf, policy: Option<&Shared<Policy>>, rules: Rules) -> Arc<Expansion> {
        let Self { conditions, expansions, next_expansion, .. } = self;
        let conditions = conditions.take_met();
        let expansion = match expansions.get(&of).map(|known| &known.expansion) {
            Some(known) if known.rules == rules && known.conditions == conditions => Arc::clone(known),
            _ => {
                *next_expansion += 1;
                Arc::new(Expansion { number: *next_expansion, rules, conditions })
            }
        };
        let known = Known { policy: policy.cloned(), expansion: Arc::clone(&expansion) };
        expansions.insert(of, known);
        expansion
    }
}

/// What a tier brings into a table.
struct TierRules<'s> {
    name: &'s str,
    /// Whether its end passes.
    passes: bool,
    policies: Vec<Arc<Expansion>>,
}

/// What the host endpoint of all interfaces brings into the table of a workload.
struct Through<'s> {
    direction: Direction,
    /// What is for the host itself, and so nothing that it forwards: of what the workload sends.
    to_host: Option<Arc<Expansion>>,
    /// Policies before DNAT, at the end of whose tiers nothing happens.
    before: Vec<TierRules<'s>>,
    forward: Vec<TierRules<'s>>,
}

/// The tables of one compilation.
struct Tables<'a> {
    all: Vec<Arc<Table>>,
    known: HashMap<Vec<u32>, usize>,
    by_parts: HashMap<Vec<u32>, Arc<Table>>,
    /// Expansions of policies by index and direction.
    of_policies: Vec<OfPolicy>,
    /// Those of profiles by name.
    of_profiles: HashMap<&'a str, OfPolicy>,
    /// Those of the failsafe ports, by direction.
    of_failsafes: [Option<[Arc<Expansion>; 2]>; 2],
    /// What is for the host itself.
    to_host: Option<Arc<Expansion>>,
    /// What becomes of denied packets where no rule says anything.
    deny_action: DenyAction,
}

impl Tables<'_> {
    /// Index of the table that is made of these parts: one of this compilation, one of the `last`, or a new one.
    fn known_or(
        &mut self,
        parts: Vec<u32>,
        last: &mut HashMap<Vec<u32>, Arc<Table>>,
        lay_out: impl FnOnce() -> Table,
    ) -> usize {
        if let Some(&table) = self.known.get(&parts) {
            return table;
        }
        let table = last.remove(&parts).unwrap_or_else(|| Arc::new(lay_out()));
        self.all.push(Arc::clone(&table));
        self.by_parts.insert(parts.clone(), table);
        self.known.insert(parts, self.all.len() - 1);
        self.all.len() - 1
    }
}

/// Those of these policies that have one of these hooks.
fn with_hooks(set: &ResourceSet, policies: &[usize], hooks: &[PolicyHook]) -> Vec<usize> {
    policies.iter().copied().filter(|&index| hooks.contains(&set.policies[index].hook)).collect()
}

fn applies(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.applies_ingress,
        Direction::Egress => policy.applies_egress,
    }
}

/// Untracked policy: failsafe ports, then tiers. What is denied is so in silence, and what no rule decides is
/// left to the policy behind: neither a tier nor the whole has an end that denies.
fn lay_out_untracked(failsafes: &[Arc<Expansion>], tiers: &[TierRules<'_>], direction: Direction) -> Table {
    let of_failsafes = failsafes.iter().flat_map(|failsafe| &failsafe.rules);
    let mut rules: Vec<TableRule> = of_failsafes.map(|expanded| rule(Action::Leave, expanded)).collect();
    for TierRules { policies, .. } in tiers {
        let expanded: Vec<_> = policies.iter().flat_map(|policy| &policy.rules).collect();
        let next = u16::try_from(rules.len() + expanded.len()).unwrap_or(u16::MAX);
        rules.extend(expanded.into_iter().map(|expanded| match expanded.0.0 {
            RuleAction::Allow => rule(Action::Allow, expanded),
            RuleAction::Deny => rule(Action::Deny, expanded),
            RuleAction::Log => rule(Action::Log, expanded),
            RuleAction::Pass => TableRule { next, ..rule(Action::Pass, expanded) },
        }));
    }
    rules.push(default_rule(Action::Leave, direction, Reason::Undecided, None));
    Table { rules, of_host_endpoint: 0, before_dnat: 0..0 }
}

/// The first rules of a workload's table: what the host endpoint of all interfaces denies. All else passes on to the workload's
/// own, which come next. With those of policy before DNAT.
fn lay_out_through(through: &Through<'_>, deny_action: DenyAction) -> (Vec<TableRule>, Range<u16>) {
    let Through { direction, to_host, before, forward } = through;
    let mut rules = Vec::new();
    let to_host = to_host.iter().flat_map(|expansion| &expansion.rules);
    rules.extend(to_host.map(|expanded| rule(Action::Allow, expanded)));
    let before_dnat = lay_out_before_dnat(&mut rules, before, *direction, deny_action);
    lay_out_tiers(&mut rules, forward, true, *direction, deny_action);
    let own = index_of(&rules);
    for rule in rules.iter_mut().filter(|rule| rule.action == Action::Allow) {
        (rule.action, rule.next) = (Action::Pass, own);
    }
    (rules, before_dnat)
}

/// Where the next rule stands.
fn index_of(rules: &[TableRule]) -> u16 {
    u16::try_from(rules.len()).unwrap_or(u16::MAX)
}

/// One rule after the other: failsafe ports, policies before DNAT, tiers, then profiles. Which of them are policies before DNAT.
fn lay_out(
    rules: &mut Vec<TableRule>,
    failsafes: Option<&Arc<Expansion>>,
    before: &[TierRules<'_>],
    tiers: &[TierRules<'_>],
    profiles: Option<&[Arc<Expansion>]>,
    direction: Direction,
    deny_action: DenyAction,
) -> Range<u16> {
    let denial = |own| denial(own, deny_action);
    rules.extend(failsafes.iter().flat_map(|failsafes| &failsafes.rules).map(|expanded| rule(Action::Allow, expanded)));
    let before_dnat = lay_out_before_dnat(rules, before, direction, deny_action);
    lay_out_tiers(rules, tiers, true, direction, deny_action);
    let Some(profiles) = profiles else {
        rules.push(default_rule(Action::Allow, direction, Reason::NoPolicy, None));
        return before_dnat;
    };
    rules.extend(profiles.iter().flat_map(|profile| &profile.rules).map(|expanded| {
        let (action, own) = expanded.0;
        let action = match action {
            RuleAction::Allow => Action::Allow,
            RuleAction::Log => Action::Log,
            // There is no tier after the profiles.
            RuleAction::Deny | RuleAction::Pass => denial(own),
        };
        rule(action, expanded)
    }));
    rules.push(default_rule(denial(None), direction, Reason::NoProfile, None));
    before_dnat
}

/// Policies before DNAT, at the end of whose tiers nothing happens. Which rules they are.
fn lay_out_before_dnat(
    rules: &mut Vec<TableRule>,
    before: &[TierRules<'_>],
    direction: Direction,
    deny_action: DenyAction,
) -> Range<u16> {
    let start = index_of(rules);
    lay_out_tiers(rules, before, false, direction, deny_action);
    if before.is_empty() { 0..0 } else { start..index_of(rules) }
}

/// Tiers one after the other; `ends`: whether something happens at their ends.
fn lay_out_tiers(
    rules: &mut Vec<TableRule>,
    tiers: &[TierRules<'_>],
    ends: bool,
    direction: Direction,
    deny_action: DenyAction,
) {
    let denial = |own| denial(own, deny_action);
    for TierRules { name, passes, policies } in tiers {
        let start = rules.len();
        rules.extend(policies.iter().flat_map(|policy| &policy.rules).map(|expanded| {
            let (action, own) = expanded.0;
            let action = match action {
                RuleAction::Allow => Action::Allow,
                RuleAction::Deny => denial(own),
                RuleAction::Log => Action::Log,
                RuleAction::Pass => Action::Pass,
            };
            rule(action, expanded)
        }));
        let action = if *passes { Action::Pass } else { denial(None) };
        if ends {
            rules.push(default_rule(action, direction, Reason::TierDefault, Some(name)));
        }
        // A pass leads to whatever comes after this tier.
        let next = index_of(rules);
        for rule in &mut rules[start..] {
            rule.next = if rule.action == Action::Pass { next } else { 0 };
        }
    }
}

fn rule(action: Action, (_, name, matches): &(Does, Arc<RuleName>, Arc<RuleMatch>)) -> TableRule {
    TableRule { action, next: 0, name: name.clone(), matches: matches.clone() }
}

fn denial(own: Option<DenyAction>, of_node: DenyAction) -> Action {
    match own.unwrap_or(of_node) {
        DenyAction::Drop => Action::Deny,
        DenyAction::Reject => Action::Reject,
    }
}

/// Indices of the policies in the order of evaluation: tiers by order and name, policies by order (absent is last) and
/// name without the tier's prefix; what is still equal by namespace and kind. `before`: the order of what was there before,
/// which hardly anything of it leaves.
fn evaluation_order(set: &ResourceSet, before: Vec<usize>) -> Vec<usize> {
    let by_order = |a: Option<f64>, b: Option<f64>| {
        a.unwrap_or(f64::INFINITY).partial_cmp(&b.unwrap_or(f64::INFINITY)).unwrap_or(Ordering::Equal)
    };
    let order_of = |tier: &str| set.tier(tier).and_then(|tier| tier.order);
    let mut order = if before.len() == set.policies.len() { before } else { (0..set.policies.len()).collect() };
    order.sort_by(|&a, &b| {
        let (a, b) = (&set.policies[a], &set.policies[b]);
        let by_tier = if a.tier == b.tier { Ordering::Equal } else { by_order(order_of(&a.tier), order_of(&b.tier)) };
        by_tier
            .then_with(|| a.tier.cmp(&b.tier))
            .then_with(|| by_order(a.order, b.order))
            .then_with(|| a.base_name().cmp(b.base_name()))
            .then_with(|| a.namespace.cmp(&b.namespace))
            .then_with(|| a.kind.cmp(&b.kind))
    });
    order
}

fn of_direction<'r>(ingress: &'r [Rule], egress: &'r [Rule], direction: Direction) -> &'r [Rule] {
    match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    }
}

fn expand_all(
    rules: &[Rule],
    name: &RuleName,
    seat: Direction,
    namespace: Option<&str>,
    names: &PortNames,
    conditions: &mut Conditions,
) -> Rules {
    let mut expanded = Vec::new();
    let mut last: Option<Arc<RuleName>> = None;
    for (index, rule) in (0..).zip(rules) {
        let number = Some(rule.number.unwrap_or(index));
        let name = match last.take_if(|last| last.rule == number) {
            Some(name) => name,
            None => Arc::new(RuleName { rule: number, ..name.clone() }),
        };
        last = Some(name.clone());
        for matches in expand(rule, seat, namespace, names, conditions) {
            expanded.push(((rule.action, rule.deny_action), name.clone(), matches));
        }
    }
    expanded
}

/// A rule that matches everything.
fn default_rule(action: Action, direction: Direction, reason: Reason, tier: Option<&str>) -> TableRule {
    let name = Arc::new(nameless(direction, reason, tier));
    TableRule { action, next: 0, name, matches: Arc::default() }
}

/// Of what is no rule of the files.
fn nameless(direction: Direction, reason: Reason, tier: Option<&str>) -> RuleName {
    let tier = tier.map(str::to_owned);
    RuleName { direction, reason, tier, kind: None, namespace: None, policy: None, rule: None }
}

impl Compiled {
    /// The names of all rules that can decide for local workloads.
    #[must_use]
    pub fn rule_names(&self) -> BTreeSet<&Arc<RuleName>> {
        // A table has the rules of an expansion one after the other, so most repetitions are found at once.
        let mut names = BTreeSet::new();
        for table in &self.tables {
            let mut last = None;
            for rule in &table.rules {
                if last.is_none_or(|last| !Arc::ptr_eq(last, &rule.name)) {
                    names.insert(&rule.name);
                    last = Some(&rule.name);
                }
            }
        }
        names
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
