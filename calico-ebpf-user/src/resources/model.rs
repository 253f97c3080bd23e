//! The resources after validation: what the policy compiler and the agent work on.
//!
//! Everything here is checked (names resolve, ranges are right, selectors are parsed); nothing depends on YAML any more.

mod bgp;
mod endpoints;
mod felix;
mod networks;
mod policy;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

pub use self::{
    bgp::{
        BgpConfiguration, BgpFilter, BgpFilterRule, BgpNextHop, BgpOperation, BgpPeer, BgpPeerAt, Community,
        PrefixAdvertisement, PrefixMatch,
    },
    endpoints::{HostEndpoint, HostInterface, NamedPort, WorkloadEndpoint},
    felix::{
        EndpointToHostAction, FailsafePort, FelixConfiguration, L2Reachability, NatOutgoingExclusions, ReversePath,
    },
    networks::{IpPool, Namespace, NetworkSet, Node},
    policy::{
        BUILT_IN_TIERS, DenyAction, EntityRule, Policy, PolicyHook, PolicyKind, PortMatch, Profile, Rule, RuleAction,
        StagedAction, StagedPolicy, Tier, TierAction,
    },
};
use super::shared::Shared;

/// The label that an endpoint has of its namespace.
pub const NAMESPACE_LABEL: &str = "projectcalico.org/namespace";
/// The label that an endpoint has of its orchestrator.
pub const ORCHESTRATOR_LABEL: &str = "projectcalico.org/orchestrator";
/// The label that an endpoint has of its service account.
pub const SERVICE_ACCOUNT_LABEL: &str = "projectcalico.org/serviceaccount";
/// What the labels of a namespace begin with where its profile hands them on.
pub const NAMESPACE_PREFIX: &str = "pcns.";
/// What the labels of a service account begin with where its profile hands them on.
pub const SERVICE_ACCOUNT_PREFIX: &str = "pcsa.";

/// Labels of a resource.
pub type Labels = BTreeMap<String, String>;

/// Where something was written. Lines and columns count from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The path as the user gave it.
    pub path: Arc<Path>,
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// Everything that the files say, for all nodes.
#[derive(Clone, Debug, Default)]
pub struct ResourceSet {
    /// Workloads of all nodes: the remote ones are peers that selectors find.
    pub workloads: Shared<Vec<Shared<WorkloadEndpoint>>>,
    /// Host endpoints of all nodes, by name.
    pub host_endpoints: BTreeMap<String, Shared<HostEndpoint>>,
    /// Tiers that are written down, by name. [`ResourceSet::tier`] knows those, too, that exist always.
    pub tiers: BTreeMap<String, Tier>,
    /// Policies that are enforced.
    pub policies: Vec<Shared<Policy>>,
    /// Policies that are not: what they would do is shown only.
    pub staged: Vec<StagedPolicy>,
    /// Profiles, those that namespaces imply included.
    pub profiles: Vec<Profile>,
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// `GlobalNetworkSet`s and `NetworkSet`s.
    pub network_sets: Vec<Shared<NetworkSet>>,
    /// `IPPool`s by name.
    pub ip_pools: BTreeMap<String, IpPool>,
    /// `Node`s by name.
    pub node_resources: BTreeMap<String, Node>,
    /// `BGPConfiguration`s by name: `default` and `node.NAME`.
    pub bgp: BTreeMap<String, BgpConfiguration>,
    /// `BGPPeer`s by name.
    pub bgp_peers: BTreeMap<String, BgpPeer>,
    /// `BGPFilter`s by name.
    pub bgp_filters: BTreeMap<String, BgpFilter>,
    /// `FelixConfiguration`s by name: `default` and `node.NAME`.
    pub felix: BTreeMap<String, FelixConfiguration>,
}

impl ResourceSet {
    /// The labels of an endpoint with these labels and profiles: its own win, then the earlier profile.
    #[must_use]
    pub fn labels(&self, own: &Labels, profiles: &[String]) -> Labels {
        let mut labels = own.clone();
        let named = |name: &String| self.profiles.iter().find(|profile| profile.name == *name);
        for profile in profiles.iter().filter_map(named) {
            for (key, value) in &profile.labels_to_apply {
                labels.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        labels
    }

    /// The host endpoints of a node, by name.
    pub fn host_endpoints_of<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = &'a Shared<HostEndpoint>> + Clone + 'a {
        self.host_endpoints.values().filter(move |endpoint| endpoint.node == node)
    }

    /// The host endpoint of all interfaces of a node: of several, the first by name.
    #[must_use]
    pub fn all_interfaces_of<'a>(&'a self, node: &'a str) -> Option<&'a Shared<HostEndpoint>> {
        self.host_endpoints_of(node).find(|endpoint| endpoint.interface == HostInterface::All)
    }

    /// The nodes that workloads and host endpoints name.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<&str> {
        let host_endpoints = self.host_endpoints.values().map(|endpoint| endpoint.node.as_str());
        self.workloads.iter().map(|workload| workload.node.as_str()).chain(host_endpoints).collect()
    }

    /// The tier of this name, if there is one.
    #[must_use]
    pub fn tier(&self, name: &str) -> Option<Tier> {
        let built_in = || {
            let (_, order, default_action) = BUILT_IN_TIERS.into_iter().find(|(known, ..)| *known == name)?;
            Some(Tier { order: Some(order), default_action })
        };
        self.tiers.get(name).cloned().or_else(built_in)
    }

    /// The set as it would be with all staged policies applied.
    #[must_use]
    pub fn with_staged_applied(&self) -> Self {
        let mut set = self.clone();
        for StagedPolicy { action, policy } in std::mem::take(&mut set.staged) {
            let replaced = |other: &Shared<Policy>| {
                other.kind == policy.kind.enforced()
                    && other.namespace == policy.namespace
                    && other.tier == policy.tier
                    && other.base_name() == policy.base_name()
            };
            match action {
                StagedAction::Ignore => {}
                StagedAction::Delete => set.policies.retain(|other| !replaced(other)),
                StagedAction::Set | StagedAction::Learn => {
                    set.policies.retain(|other| !replaced(other));
                    set.policies.push(policy);
                }
            }
        }
        set
    }

    /// What to say of a node that no workload names: a misspelt `--node` looks like a host without workloads.
    #[must_use]
    pub fn unknown_node(&self, node: &str) -> Option<String> {
        let nodes = self.nodes();
        if nodes.is_empty() || nodes.contains(node) {
            return None;
        }
        let shown: Vec<&str> = nodes.iter().copied().take(10).collect();
        let more =
            if nodes.len() > shown.len() { format!(" and {} more", nodes.len() - shown.len()) } else { String::new() };
        Some(format!("no workload is on this node, {node} (--node); the files name {}{more}", shown.join(", ")))
    }

    /// The configuration in force on a node: `default`, overridden field by field by `node.NAME`.
    #[must_use]
    pub fn felix_for(&self, node: &str) -> FelixConfiguration {
        let default = self.felix.get("default").cloned().unwrap_or_default();
        match self.felix.get(&format!("node.{node}")) {
            Some(own) => own.clone().or(default),
            None => default,
        }
    }
}
