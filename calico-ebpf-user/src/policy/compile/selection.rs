//! Which policies apply to whom, in which order.

use std::{cmp::Ordering, collections::HashMap};

use super::Compiler;
use crate::resources::{
    Shared,
    model::{ResourceSet, WorkloadEndpoint},
};

impl Compiler {
    /// Policies by the labels and the namespace of the local workloads that they select, in the order of evaluation.
    pub(super) fn selected<'a>(
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
