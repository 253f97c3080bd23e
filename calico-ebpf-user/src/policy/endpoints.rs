//! The endpoints and network sets of all nodes as selectors see them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    ops::Range,
};

use crate::resources::{
    Shared, changed_part,
    model::{
        HostEndpoint, Labels, NAMESPACE_LABEL, NAMESPACE_PREFIX, NamedPort, Profile, ResourceSet, WorkloadEndpoint,
    },
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
    /// Of each workload of the resources.
    of_workloads: Vec<Facts>,
    /// Index into `groups` for each network set of the resources.
    of_network_sets: Vec<u32>,
    /// Host endpoints of the resources in the order of their names, each with its index into `groups`.
    host_endpoints: Vec<(Shared<HostEndpoint>, u32)>,
    /// Groups with a label, and with a label of a value.
    by_key: HashMap<String, Vec<u32>>,
    by_value: HashMap<(String, String), Vec<u32>>,
    /// What `of_workloads` is of.
    workloads: Shared<Vec<Shared<WorkloadEndpoint>>>,
    /// Addresses of workloads in ascending order, and whose they are.
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u32)>,
    /// Whether the last update brought other named ports.
    other_ports: bool,
    /// How many workloads the last update looked at.
    #[cfg(test)]
    pub(super) looked_at: usize,
    /// Numbers of nodes.
    nodes: HashMap<String, u32>,
    /// Labels by the profiles that apply them.
    inherited: BTreeMap<String, Labels>,
}

/// What is asked of all workloads at every change: most of them need not be looked at for it.
#[derive(Clone, Copy, Debug)]
struct Facts {
    /// Index into `groups`.
    group: u32,
    node: u32,
    has_ports: bool,
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
        let (old, new) = (std::mem::replace(&mut self.workloads, set.workloads.clone()), &set.workloads);
        let (gone_at, come_at) =
            if inherited == self.inherited { changed_part(&old, new) } else { (0..old.len(), 0..new.len()) };
        self.inherited = inherited;
        let (gone, come) = (&old[gone_at.clone()], &new[come_at]);
        let other_addresses = gone.iter().map(|w| &w.addresses).ne(come.iter().map(|w| &w.addresses));
        let ports_of_hosts = |endpoints: &[(Shared<HostEndpoint>, u32)]| -> Vec<NamedPort> {
            endpoints.iter().flat_map(|(endpoint, _)| endpoint.ports.clone()).collect()
        };
        let host_ports = ports_of_hosts(&self.host_endpoints);
        let of_hosts = set.host_endpoints.values();
        self.host_endpoints = of_hosts.map(|host| (host.clone(), self.group(&host.labels, &host.profiles))).collect();
        self.other_ports = with_ports(gone).ne(with_ports(come)) || host_ports != ports_of_hosts(&self.host_endpoints);
        #[cfg(test)]
        {
            self.looked_at = come.len();
        }
        let facts: Vec<Facts> = come.iter().map(|workload| self.facts(workload)).collect();
        self.of_workloads.splice(gone_at.clone(), facts);
        if other_addresses {
            self.replace_addresses(gone_at.start as u32..gone_at.end as u32, come);
        }
        self.of_network_sets = set.network_sets.iter().map(|set| self.group(&set.labels, &set.profiles)).collect();
    }

    fn facts(&mut self, workload: &WorkloadEndpoint) -> Facts {
        let next = self.nodes.len() as u32;
        let node = match self.nodes.get(&workload.node) {
            Some(node) => *node,
            None => *self.nodes.entry(workload.node.clone()).or_insert(next),
        };
        let group = self.group(&workload.labels, &workload.profiles);
        Facts { group, node, has_ports: !workload.ports.is_empty() }
    }

    /// Puts the addresses of workloads that came in the place of those that had the indices `gone`.
    fn replace_addresses(&mut self, gone: Range<u32>, come: &[Shared<WorkloadEndpoint>]) {
        make_room(&mut self.v4, &gone, come.len() as u32);
        make_room(&mut self.v6, &gone, come.len() as u32);
        for (index, workload) in (gone.start..).zip(come) {
            for address in &workload.addresses {
                match *address {
                    IpAddr::V4(address) => self.v4.push((address.into(), index)),
                    IpAddr::V6(address) => self.v6.push((address.into(), index)),
                }
            }
        }
        // Unlike `sort_unstable`, this is linear where all but the last few are in order.
        self.v4.sort();
        self.v6.sort();
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
        let of_workloads = self.of_workloads.iter().map(|facts| facts.group);
        let of_hosts = self.host_endpoints.iter().map(|(_, group)| *group);
        for group in of_workloads.chain(of_hosts).chain(self.of_network_sets.iter().copied()) {
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
        self.of_workloads[workload].group
    }

    /// Indices of a node's workloads in the resources.
    pub(super) fn of_node(&self, node: &str) -> impl Iterator<Item = usize> {
        let node = self.nodes.get(node).copied();
        self.of_workloads
            .iter()
            .enumerate()
            .filter_map(move |(index, facts)| (Some(facts.node) == node).then_some(index))
    }

    /// Workloads with named ports: their indices in the resources, and themselves.
    pub(super) fn with_ports(&self) -> impl Iterator<Item = (u32, &WorkloadEndpoint)> {
        let facts = (0..).zip(&self.of_workloads).zip(&**self.workloads);
        facts.filter_map(|((index, facts), workload)| facts.has_ports.then_some((index, &**workload)))
    }

    /// Host endpoints with their groups, in the order of their names.
    pub(super) fn host_endpoints(&self) -> &[(Shared<HostEndpoint>, u32)] {
        &self.host_endpoints
    }

    /// Whether the last update brought other named ports.
    pub(super) fn other_ports(&self) -> bool {
        self.other_ports
    }

    /// IPv4 addresses in ascending order with the indices of their workloads.
    pub(super) fn v4(&self) -> &[(u32, u32)] {
        &self.v4
    }

    /// IPv6 addresses, likewise.
    pub(super) fn v6(&self) -> &[(u128, u32)] {
        &self.v6
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
    /// Looks at the groups that came since this was last asked.
    pub(super) fn ask(&mut self, endpoints: &Endpoints, selector: &Selector) {
        let all = endpoints.groups() as u32;
        if self.asked == all {
            return;
        }
        let new = match self.asked {
            0 => endpoints.select(selector),
            asked => (asked..all).filter(|&group| endpoints.holds(selector, group)).collect(),
        };
        self.bits.resize(all.div_ceil(64) as usize, 0);
        for &group in &new {
            self.bits[group as usize / 64] |= 1 << (group % 64);
        }
        self.groups.extend(new);
        self.asked = all;
    }

    pub(super) fn contains(&self, group: u32) -> bool {
        self.bits.get(group as usize / 64).is_some_and(|word| word >> (group % 64) & 1 != 0)
    }
}

/// The groups of the selectors met so far.
#[derive(Debug, Default)]
pub(super) struct Memberships {
    known: HashMap<Selector, Members>,
    turn: u64,
}

impl Memberships {
    /// Those of a selector.
    pub(super) fn of(&mut self, endpoints: &Endpoints, selector: &Selector) -> &Members {
        let members = self.known.entry(selector.clone()).or_default();
        members.turn = self.turn;
        members.ask(endpoints, selector);
        members
    }

    /// Forgets what was of no use in this turn, and begins another one.
    pub(super) fn turn(&mut self) {
        let turn = self.turn;
        self.known.retain(|_, members| members.turn == turn);
        self.turn += 1;
    }
}

/// Removes the addresses of the workloads with the indices `gone`, and numbers those behind them as if `come` took their place.
fn make_room<T>(addresses: &mut Vec<(T, u32)>, gone: &Range<u32>, come: u32) {
    addresses.retain_mut(|(_, index)| {
        let behind = *index >= gone.end;
        if behind {
            *index = *index - gone.end + gone.start + come;
        }
        behind || *index < gone.start
    });
}

fn with_ports(workloads: &[Shared<WorkloadEndpoint>]) -> impl Iterator<Item = &[NamedPort]> {
    workloads.iter().map(|workload| &workload.ports[..]).filter(|ports| !ports.is_empty())
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
