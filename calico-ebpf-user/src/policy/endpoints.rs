//! The endpoints and network sets of all nodes as selectors see them.

use std::collections::HashMap;

use crate::resources::{
    model::{Labels, NAMESPACE_LABEL, NAMESPACE_PREFIX, Profile, ResourceSet},
    selector::{Expression, Selector},
};

/// Labels with those that profiles apply: the own ones win, then the earlier profile.
fn effective_labels(own: &Labels, profiles: &[String], known: &HashMap<&str, &Profile>) -> Labels {
    let mut labels = own.clone();
    for profile in profiles.iter().filter_map(|name| known.get(name.as_str())) {
        for (key, value) in &profile.labels_to_apply {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    labels
}

/// All endpoints and network sets, grouped by equal labels.
pub(super) struct Endpoints {
    /// Distinct sets of labels.
    groups: Vec<Labels>,
    /// Index into `groups` for each workload of the resources.
    of_workloads: Vec<u32>,
    /// Index into `groups` for each network set of the resources.
    of_network_sets: Vec<u32>,
    /// Groups with a label, and with a label of a value.
    by_key: HashMap<String, Vec<u32>>,
    by_value: HashMap<(String, String), Vec<u32>>,
}

impl Endpoints {
    pub(super) fn new(set: &ResourceSet, profiles: &HashMap<&str, &Profile>) -> Self {
        let mut known: HashMap<(&Labels, &[String]), u32> = HashMap::new();
        let mut known_labels: HashMap<Labels, u32> = HashMap::new();
        let mut groups: Vec<Labels> = Vec::new();
        let workloads = set.workloads.iter().map(|workload| (&workload.labels, workload.profiles.as_slice()));
        let network_sets = set.network_sets.iter().map(|set| (&set.labels, set.profiles.as_slice()));
        let mut of_workloads: Vec<u32> = workloads
            .chain(network_sets)
            .map(|(own, names)| {
                *known.entry((own, names)).or_insert_with(|| {
                    let labels = effective_labels(own, names, profiles);
                    *known_labels.entry(labels).or_insert_with_key(|labels| {
                        groups.push(labels.clone());
                        groups.len() as u32 - 1
                    })
                })
            })
            .collect();
        let of_network_sets = of_workloads.split_off(set.workloads.len());
        let (mut by_key, mut by_value) = (HashMap::<_, Vec<u32>>::new(), HashMap::<_, Vec<u32>>::new());
        for (group, labels) in (0..).zip(&groups) {
            for (key, value) in labels {
                by_key.entry(key.clone()).or_default().push(group);
                by_value.entry((key.clone(), value.clone())).or_default().push(group);
            }
        }
        Self { groups, of_workloads, of_network_sets, by_key, by_value }
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
