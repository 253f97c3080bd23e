//! The endpoints of all nodes as selectors see them.

use std::collections::HashMap;

use crate::resources::{
    model::{Labels, Profile, ResourceSet, WorkloadEndpoint},
    selector::{Expression, Selector},
};

/// The namespace of an endpoint, as a label.
pub(super) const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";
/// What a namespace's labels begin with where its profile hands them on.
const NAMESPACE_PREFIX: &str = "pcns.";

/// Labels of an endpoint with those that its profiles apply: its own win, then the earlier profile.
pub(super) fn effective_labels(workload: &WorkloadEndpoint, profiles: &HashMap<&str, &Profile>) -> Labels {
    let mut labels = workload.labels.clone();
    for profile in workload.profiles.iter().filter_map(|name| profiles.get(name.as_str())) {
        for (key, value) in &profile.labels_to_apply {
            labels.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    labels
}

/// All endpoints, grouped by equal labels.
pub(super) struct Endpoints {
    /// Distinct sets of labels.
    groups: Vec<Labels>,
    /// Index into `groups` for each workload of the resources.
    group_of: Vec<u32>,
    /// Groups with a label, and with a label of a value.
    by_key: HashMap<String, Vec<u32>>,
    by_value: HashMap<(String, String), Vec<u32>>,
}

impl Endpoints {
    pub(super) fn new(set: &ResourceSet, profiles: &HashMap<&str, &Profile>) -> Self {
        let mut known: HashMap<(&Labels, &[String]), u32> = HashMap::new();
        let mut known_labels: HashMap<Labels, u32> = HashMap::new();
        let mut groups: Vec<Labels> = Vec::new();
        let mut group_of = Vec::with_capacity(set.workloads.len());
        for workload in &set.workloads {
            let group = *known.entry((&workload.labels, &workload.profiles)).or_insert_with(|| {
                let labels = effective_labels(workload, profiles);
                *known_labels.entry(labels).or_insert_with_key(|labels| {
                    groups.push(labels.clone());
                    groups.len() as u32 - 1
                })
            });
            group_of.push(group);
        }
        let (mut by_key, mut by_value) = (HashMap::<_, Vec<u32>>::new(), HashMap::<_, Vec<u32>>::new());
        for (group, labels) in (0..).zip(&groups) {
            for (key, value) in labels {
                by_key.entry(key.clone()).or_default().push(group);
                by_value.entry((key.clone(), value.clone())).or_default().push(group);
            }
        }
        Self { groups, group_of, by_key, by_value }
    }

    /// Number of groups.
    pub(super) fn groups(&self) -> usize {
        self.groups.len()
    }

    /// Group of the workload with this index in the resources.
    pub(super) fn group_of(&self, workload: usize) -> u32 {
        self.group_of[workload]
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
    fn convert(expression: &Expression) -> Expression {
        let key = |key: &String| format!("{NAMESPACE_PREFIX}{key}");
        let has_namespace = || Expression::Has(NAMESPACE_LABEL.to_owned());
        match expression {
            Expression::All => has_namespace(),
            Expression::Global => Expression::Not(Box::new(has_namespace())),
            Expression::Has(k) => Expression::Has(key(k)),
            Expression::Equal(k, v) => Expression::Equal(key(k), v.clone()),
            Expression::NotEqual(k, v) => Expression::NotEqual(key(k), v.clone()),
            Expression::In(k, v) => Expression::In(key(k), v.clone()),
            Expression::NotIn(k, v) => Expression::NotIn(key(k), v.clone()),
            Expression::Contains(k, v) => Expression::Contains(key(k), v.clone()),
            Expression::StartsWith(k, v) => Expression::StartsWith(key(k), v.clone()),
            Expression::EndsWith(k, v) => Expression::EndsWith(key(k), v.clone()),
            Expression::Not(inner) => Expression::Not(Box::new(convert(inner))),
            Expression::And(all) => Expression::And(all.iter().map(convert).collect()),
            Expression::Or(any) => Expression::Or(any.iter().map(convert).collect()),
        }
    }
    convert(selector.expression())
}
