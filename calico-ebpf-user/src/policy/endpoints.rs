//! The endpoints and network sets of all nodes as selectors see them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use crate::resources::{
    Shared,
    model::{Labels, NAMESPACE_LABEL, NAMESPACE_PREFIX, Profile, ResourceSet, WorkloadEndpoint},
    selector::{Expression, Selector},
};

/// Labels with those that profiles apply: the own ones win, then the earlier profile.
fn effective_labels(own: &Labels, profiles: &[String], inherited: &BTreeMap<String, Labels>) -> Labels {
    let mut labels = own.clone();
    for applied in profiles.iter().filter_map(|name| inherited.get(name)) {
        for (key, value) in applied {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    labels
}

/// All endpoints and network sets, grouped by equal labels.
#[derive(Debug, Default)]
pub(super) struct Endpoints {
    /// Distinct sets of labels. Those that nobody has any more stay.
    groups: Vec<Labels>,
    known: HashMap<Labels, u32>,
    /// Index into `groups` for each workload of the resources.
    of_workloads: Vec<u32>,
    /// Index into `groups` for each network set of the resources.
    of_network_sets: Vec<u32>,
    /// Groups with a label, and with a label of a value.
    by_key: HashMap<String, Vec<u32>>,
    by_value: HashMap<(String, String), Vec<u32>>,
    /// What `of_workloads` is of.
    workloads: Vec<Shared<WorkloadEndpoint>>,
    /// Labels by the profiles that apply them.
    inherited: BTreeMap<String, Labels>,
}

impl Endpoints {
    pub(super) fn new(set: &ResourceSet, profiles: &HashMap<&str, &Profile>) -> Self {
        let mut endpoints = Self::default();
        endpoints.update(set, profiles);
        endpoints
    }

    /// Looks at another set. Groups keep their numbers; workloads that both sets share are not looked at again.
    pub(super) fn update(&mut self, set: &ResourceSet, profiles: &HashMap<&str, &Profile>) {
        let applying = profiles.iter().filter(|(_, profile)| !profile.labels_to_apply.is_empty());
        let inherited = applying.map(|(name, profile)| ((*name).to_owned(), profile.labels_to_apply.clone())).collect();
        let (old, new) = (std::mem::take(&mut self.workloads), &set.workloads);
        // What changed lies between two parts that did not: most often one file.
        let (first, last) = if inherited == self.inherited {
            let most = old.len().min(new.len());
            let first = old.iter().zip(new).take_while(|(old, new)| old.is(new)).count();
            let last = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old.is(new)).count();
            (first, last.min(most - first))
        } else {
            (0, 0)
        };
        self.inherited = inherited;
        let mut groups = self.of_workloads[..first].to_vec();
        groups.extend(new[first..new.len() - last].iter().map(|w| self.group(&w.labels, &w.profiles)));
        groups.extend_from_slice(&self.of_workloads[self.of_workloads.len() - last..]);
        self.of_workloads = groups;
        self.of_network_sets = set.network_sets.iter().map(|set| self.group(&set.labels, &set.profiles)).collect();
        self.workloads.clone_from(new);
    }

    fn group(&mut self, own: &Labels, profiles: &[String]) -> u32 {
        let labels = effective_labels(own, profiles, &self.inherited);
        if let Some(&group) = self.known.get(&labels) {
            return group;
        }
        let group = self.groups.len() as u32;
        for (key, value) in &labels {
            self.by_key.entry(key.clone()).or_default().push(group);
            self.by_value.entry((key.clone(), value.clone())).or_default().push(group);
        }
        self.groups.push(labels.clone());
        self.known.insert(labels, group);
        group
    }

    /// Groups of which somebody is.
    pub(super) fn living(&self) -> usize {
        let mut living = vec![false; self.groups.len()];
        for &group in self.of_workloads.iter().chain(&self.of_network_sets) {
            living[group as usize] = true;
        }
        living.into_iter().filter(|living| *living).count()
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Group of the workload with this index in the resources.
    pub(super) fn of_workload(&self, workload: usize) -> u32 {
        self.of_workloads[workload]
    }

    /// Group of the network set with this index in the resources.
    pub(super) fn of_network_set(&self, network_set: usize) -> u32 {
        self.of_network_sets[network_set]
    }

    /// Whether the selector holds for a group.
    pub(super) fn holds(&self, selector: &Selector, group: u32) -> bool {
        selector.matches(&self.groups[group as usize])
    }

    /// The groups that a selector holds for, in ascending order.
    pub(super) fn select(&self, selector: &Selector) -> Vec<u32> {
        match self.candidates(selector.expression()) {
            Some(candidates) => candidates.into_iter().filter(|&group| self.holds(selector, group)).collect(),
            None => (0..self.groups.len() as u32).filter(|&group| self.holds(selector, group)).collect(),
        }
    }

    /// Groups outside of which the expression cannot hold, ascending; `None` where it might hold for any.
    fn candidates(&self, expression: &Expression) -> Option<Vec<u32>> {
        let with_key = |key: &String| self.by_key.get(key).cloned().unwrap_or_default();
        // A probe of a map of pairs of strings needs a pair of strings.
        let with_value = |key: &String, value: &String| self.by_value.get(&(key.clone(), value.clone()));
        match expression {
            Expression::Equal(key, value) => Some(with_value(key, value).cloned().unwrap_or_default()),
            Expression::In(key, values) => {
                Some(sorted(values.iter().filter_map(|value| with_value(key, value)).flatten().copied().collect()))
            }
            Expression::Has(key)
            | Expression::Contains(key, _)
            | Expression::StartsWith(key, _)
            | Expression::EndsWith(key, _) => Some(with_key(key)),
            Expression::And(all) => all.iter().filter_map(|part| self.candidates(part)).min_by_key(Vec::len),
            Expression::Or(any) => {
                let parts: Option<Vec<_>> = any.iter().map(|part| self.candidates(part)).collect();
                Some(sorted(parts?.concat()))
            }
            Expression::All
            | Expression::Global
            | Expression::NotEqual(..)
            | Expression::NotIn(..)
            | Expression::Not(_) => None,
        }
    }
}

/// The groups that a selector holds for.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Ascending.
    pub(super) groups: Vec<u32>,
    bits: Vec<u64>,
    /// Groups up to here have been asked.
    asked: u32,
    /// When it was last of use.
    turn: u64,
}

impl Members {
    pub(super) fn contains(&self, group: u32) -> bool {
        self.bits.get(group as usize / 64).is_some_and(|word| word >> (group % 64) & 1 != 0)
    }
}

/// The groups of the selectors met so far.
#[derive(Debug, Default)]
pub(super) struct Memberships {
    known: HashMap<Arc<str>, Members>,
    turn: u64,
}

impl Memberships {
    /// Those of a selector: only groups that came since it was last asked are looked at.
    pub(super) fn of(&mut self, endpoints: &Endpoints, selector: &Selector) -> &Members {
        let all = endpoints.groups() as u32;
        let members = self.known.entry(selector.canonical().into()).or_default();
        members.turn = self.turn;
        if members.asked < all {
            let new = match members.asked {
                0 => endpoints.select(selector),
                asked => (asked..all).filter(|&group| endpoints.holds(selector, group)).collect(),
            };
            members.bits.resize(all.div_ceil(64) as usize, 0);
            for &group in &new {
                members.bits[group as usize / 64] |= 1 << (group % 64);
            }
            members.groups.extend(new);
            members.asked = all;
        }
        members
    }

    /// Forgets what was of no use in this turn, and begins another one.
    pub(super) fn turn(&mut self) {
        let turn = self.turn;
        self.known.retain(|_, members| members.turn == turn);
        self.turn += 1;
    }
}

fn sorted(mut groups: Vec<u32>) -> Vec<u32> {
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// What a `namespaceSelector` demands of an endpoint's labels: a namespace's labels are those of its profile, and as in
/// Calico `all()` is whatever has a namespace, `global()` what has none.
pub(super) fn of_namespaces(selector: &Selector) -> Expression {
    let has_namespace = || Expression::Has(NAMESPACE_LABEL.to_owned());
    selector.expression().map_leaves(&|leaf| match leaf {
        Expression::All => has_namespace(),
        Expression::Global => Expression::Not(Box::new(has_namespace())),
        leaf => leaf.with_label(&|label| format!("{NAMESPACE_PREFIX}{label}")),
    })
}
