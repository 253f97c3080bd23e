//! Which rules each local workload is judged by, in which order.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use calico_ebpf_common::abi::{Action, host_action};

use super::{
    compiled::{Compiled, Direction, LocalWorkload, Reason, RuleMatch, RuleName, Table, TableRule},
    conditions::Conditions,
    endpoints::Endpoints,
    expand::{PortNames, expand},
};
use crate::resources::model::{
    EndpointToHostAction, Policy, Profile, ResourceSet, Rule, RuleAction, TierAction, WorkloadEndpoint,
};

/// Compiles what `set` says for the workloads of `node`.
#[must_use]
pub fn compile(set: &ResourceSet, node: &str) -> Compiled {
    let profiles: HashMap<_, _> = set.profiles.iter().map(|profile| (profile.name.as_str(), profile)).collect();
    let endpoints = Endpoints::new(set, &profiles);
    let mut compiler = Compiler {
        names: PortNames::new(set),
        conditions: Conditions::default(),
        policies: HashMap::new(),
        profiles: HashMap::new(),
        known: HashMap::new(),
        tables: Vec::new(),
    };
    let order = evaluation_order(set);
    let mut selected: HashMap<(u32, &str), Vec<usize>> = HashMap::new();
    let mut workloads = BTreeMap::new();
    for (index, workload) in set.workloads.iter().enumerate().filter(|(_, workload)| workload.node == node) {
        let group = endpoints.of_workload(index);
        let applying = selected.entry((group, &workload.namespace)).or_insert_with(|| {
            let selects = |policy: &Policy| {
                policy.judges_workloads()
                    && policy.namespace.as_deref().is_none_or(|namespace| namespace == workload.namespace)
                    && endpoints.holds(&policy.selector, group)
            };
            order.iter().copied().filter(|&policy| selects(&set.policies[policy])).collect()
        });
        let mut table = |direction| compiler.table(set, &profiles, workload, applying, direction);
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
    let own = workloads.values().flat_map(|workload: &LocalWorkload| workload.addresses.iter().copied());
    let addresses = compiler.conditions.addresses(set, &endpoints, own);
    Compiled {
        tables: compiler.tables,
        workloads,
        addresses,
        conditions: compiler.conditions.into_texts(),
        host_action: match set.felix_for(node).default_endpoint_to_host_action.unwrap_or_default() {
            EndpointToHostAction::Drop => host_action::DROP,
            EndpointToHostAction::Accept => host_action::ACCEPT,
            EndpointToHostAction::Return => host_action::RETURN,
        },
    }
}

/// Indices of the policies in the order of evaluation: tiers by order and name, policies by order (absent is last) and
/// name without the tier's prefix; what is still equal by namespace and kind.
fn evaluation_order(set: &ResourceSet) -> Vec<usize> {
    let by_order = |a: Option<f64>, b: Option<f64>| {
        a.unwrap_or(f64::INFINITY).partial_cmp(&b.unwrap_or(f64::INFINITY)).unwrap_or(Ordering::Equal)
    };
    let mut tiers: HashMap<&str, Option<f64>> = HashMap::new();
    for tier in set.policies.iter().map(|policy| policy.tier.as_str()) {
        tiers.entry(tier).or_insert_with(|| set.tier(tier).and_then(|tier| tier.order));
    }
    let mut order: Vec<usize> = (0..set.policies.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&set.policies[a], &set.policies[b]);
        by_order(tiers[a.tier.as_str()], tiers[b.tier.as_str()])
            .then_with(|| a.tier.cmp(&b.tier))
            .then_with(|| by_order(a.order, b.order))
            .then_with(|| a.base_name().cmp(b.base_name()))
            .then_with(|| a.namespace.cmp(&b.namespace))
            .then_with(|| a.kind.cmp(&b.kind))
    });
    order
}

/// A rule of a table before it is known where the next tier begins.
type Expanded = Vec<(RuleAction, Arc<RuleName>, Arc<RuleMatch>)>;
/// What makes a table: direction, policies in order, profiles in order.
type TableKey<'a> = (Direction, Vec<usize>, &'a [String]);

struct Compiler<'a> {
    names: PortNames<'a>,
    conditions: Conditions,
    /// Rules of policies by index.
    policies: HashMap<(usize, Direction), Expanded>,
    /// Rules of profiles by name.
    profiles: HashMap<(&'a str, Direction), Expanded>,
    known: HashMap<TableKey<'a>, usize>,
    tables: Vec<Table>,
}

impl<'a> Compiler<'a> {
    /// Index of the table that judges `workload` in one direction; `selecting` are the policies that select it.
    fn table(
        &mut self,
        set: &'a ResourceSet,
        profiles: &HashMap<&'a str, &'a Profile>,
        workload: &'a WorkloadEndpoint,
        selecting: &[usize],
        direction: Direction,
    ) -> usize {
        let applies = |policy: &Policy| match direction {
            Direction::Ingress => policy.applies_ingress,
            Direction::Egress => policy.applies_egress,
        };
        let policies: Vec<usize> = selecting.iter().copied().filter(|&index| applies(&set.policies[index])).collect();
        let key = (direction, policies, workload.profiles.as_slice());
        if let Some(&table) = self.known.get(&key) {
            return table;
        }
        let mut rules = Vec::new();
        for tier_policies in key.1.chunk_by(|&a, &b| set.policies[a].tier == set.policies[b].tier) {
            let start = rules.len();
            for &index in tier_policies {
                self.policy(&set.policies[index], index, direction, &mut rules);
            }
            let name = &set.policies[tier_policies[0]].tier;
            let action = match set.tier(name).map(|tier| tier.default_action) {
                Some(TierAction::Pass) => Action::Pass,
                Some(TierAction::Deny) | None => Action::Deny,
            };
            rules.push(default_rule(action, direction, Reason::TierDefault, Some(name)));
            // A pass leads to whatever comes after this tier.
            let next = u16::try_from(rules.len()).unwrap_or(u16::MAX);
            for rule in &mut rules[start..] {
                rule.next = if rule.action == Action::Pass { next } else { 0 };
            }
        }
        for name in &workload.profiles {
            if let Some(profile) = profiles.get(name.as_str()) {
                self.profile(profile, direction, &mut rules);
            }
        }
        rules.push(default_rule(Action::Deny, direction, Reason::NoProfile, None));
        self.tables.push(Table { rules });
        let table = self.tables.len() - 1;
        self.known.insert(key, table);
        table
    }

    fn policy(&mut self, policy: &'a Policy, index: usize, direction: Direction, rules: &mut Vec<TableRule>) {
        let Self { names, conditions, policies, .. } = self;
        let expanded = policies.entry((index, direction)).or_insert_with(|| {
            let name = RuleName {
                direction,
                reason: Reason::Rule,
                tier: Some(policy.tier.clone()),
                kind: Some(policy.kind.as_str().to_owned()),
                namespace: policy.namespace.clone(),
                policy: Some(policy.name.clone()),
                rule: None,
            };
            let namespace = policy.namespace.as_deref();
            expand_all(of_direction(&policy.ingress, &policy.egress, direction), &name, namespace, names, conditions)
        });
        rules.extend(expanded.iter().map(|(action, name, matches)| {
            let action = match action {
                RuleAction::Allow => Action::Allow,
                RuleAction::Deny => Action::Deny,
                RuleAction::Log => Action::Log,
                RuleAction::Pass => Action::Pass,
            };
            TableRule { action, next: 0, name: name.clone(), matches: matches.clone() }
        }));
    }

    fn profile(&mut self, profile: &'a Profile, direction: Direction, rules: &mut Vec<TableRule>) {
        let Self { names, conditions, profiles, .. } = self;
        let expanded = profiles.entry((&profile.name, direction)).or_insert_with(|| {
            let name = RuleName {
                direction,
                reason: Reason::Profile,
                tier: None,
                kind: Some("Profile".to_owned()),
                namespace: None,
                policy: Some(profile.name.clone()),
                rule: None,
            };
            expand_all(of_direction(&profile.ingress, &profile.egress, direction), &name, None, names, conditions)
        });
        rules.extend(expanded.iter().map(|(action, name, matches)| {
            let action = match action {
                RuleAction::Allow => Action::Allow,
                RuleAction::Log => Action::Log,
                // There is no tier after the profiles.
                RuleAction::Deny | RuleAction::Pass => Action::Deny,
            };
            TableRule { action, next: 0, name: name.clone(), matches: matches.clone() }
        }));
    }
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
    namespace: Option<&str>,
    names: &PortNames<'_>,
    conditions: &mut Conditions,
) -> Expanded {
    let mut expanded = Vec::new();
    let mut last: Option<Arc<RuleName>> = None;
    for (index, rule) in (0..).zip(rules) {
        let number = Some(rule.number.unwrap_or(index));
        let name = match last.take_if(|last| last.rule == number) {
            Some(name) => name,
            None => Arc::new(RuleName { rule: number, ..name.clone() }),
        };
        last = Some(name.clone());
        for matches in expand(rule, name.direction, namespace, names, conditions) {
            expanded.push((rule.action, name.clone(), matches));
        }
    }
    expanded
}

/// A rule that matches everything.
fn default_rule(action: Action, direction: Direction, reason: Reason, tier: Option<&str>) -> TableRule {
    let name = RuleName {
        direction,
        reason,
        tier: tier.map(str::to_owned),
        kind: None,
        namespace: None,
        policy: None,
        rule: None,
    };
    TableRule { action, next: 0, name: Arc::new(name), matches: Arc::default() }
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
