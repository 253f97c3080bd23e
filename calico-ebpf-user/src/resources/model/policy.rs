//! Policies, profiles and their rules.

use ipnet::IpNet;

use super::{HostEndpoint, Labels, Origin, ResourceSet};
use crate::resources::{selector::Selector, shared::Shared};

/// A `Tier`.
#[derive(Clone, Debug, PartialEq)]
pub struct Tier {
    /// Order among the tiers; absent is last.
    pub order: Option<f64>,
    /// What becomes of traffic that no rule of the tier decides, of workloads that a policy of the tier selects.
    pub default_action: TierAction,
}

/// `defaultAction` of a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TierAction {
    /// Drop.
    #[default]
    Deny,
    /// Go on with the next tier.
    Pass,
}

/// The tiers that exist in every cluster: name, order, default action (`names.go` and `tier.go` of Calico's API).
pub const BUILT_IN_TIERS: [(&str, f64, TierAction); 3] = [
    ("kube-admin", 1_000.0, TierAction::Pass),
    ("default", 1_000_000.0, TierAction::Deny),
    ("kube-baseline", 10_000_000.0, TierAction::Pass),
];

/// What kind of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `GlobalNetworkPolicy`.
    Global,
    /// `NetworkPolicy` of Calico.
    Namespaced,
    /// `NetworkPolicy` of Kubernetes, as the policy that Calico makes of it.
    Kubernetes,
    /// `StagedGlobalNetworkPolicy`.
    StagedGlobal,
    /// `StagedNetworkPolicy`.
    StagedNamespaced,
    /// `StagedKubernetesNetworkPolicy`, as the policy that Calico makes of it.
    StagedKubernetes,
}

impl PolicyKind {
    /// The `kind` of the resource.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Global => "GlobalNetworkPolicy",
            Self::Namespaced | Self::Kubernetes => "NetworkPolicy",
            Self::StagedGlobal => "StagedGlobalNetworkPolicy",
            Self::StagedNamespaced => "StagedNetworkPolicy",
            Self::StagedKubernetes => "StagedKubernetesNetworkPolicy",
        }
    }

    /// The kind of policy that a staged one would become, and any other is.
    #[must_use]
    pub const fn enforced(self) -> Self {
        match self {
            Self::Global | Self::StagedGlobal => Self::Global,
            Self::Namespaced | Self::StagedNamespaced => Self::Namespaced,
            Self::Kubernetes | Self::StagedKubernetes => Self::Kubernetes,
        }
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Kind.
    pub kind: PolicyKind,
    /// Namespace of a namespaced one.
    pub namespace: Option<String>,
    /// Name as in the file.
    pub name: String,
    /// Tier: `default` where none is given.
    pub tier: String,
    /// Order within the tier; absent is last.
    pub order: Option<f64>,
    /// Which workloads it applies to (of its namespace, for a namespaced one): `selector`, `namespaceSelector` and
    /// `serviceAccountSelector` in one.
    pub selector: Selector,
    /// Whether it polices what workloads receive: `types`, with Calico's default where absent.
    pub applies_ingress: bool,
    /// Whether it polices what workloads send.
    pub applies_egress: bool,
    /// Ingress rules, as in the file.
    pub ingress: Vec<Rule>,
    /// Egress rules, as in the file.
    pub egress: Vec<Rule>,
    /// What it judges.
    pub hook: PolicyHook,
    /// Where it was written.
    pub origin: Origin,
}

/// What a policy judges: `doNotTrack`, `preDNAT` and `applyOnForward`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PolicyHook {
    /// Traffic of workloads, and what host endpoints send and receive themselves.
    #[default]
    Normal,
    /// `applyOnForward`: also what host endpoints forward. For workloads it is like `Normal`.
    Forward,
    /// `preDNAT`: what host endpoints receive, before destinations are translated.
    PreDnat,
    /// `doNotTrack`: what host endpoints send and receive, before connections are tracked.
    Untracked,
}

impl Policy {
    /// Whether it selects a host endpoint: one with a namespace does not.
    #[must_use]
    pub fn selects_host_endpoint(&self, set: &ResourceSet, endpoint: &HostEndpoint) -> bool {
        self.namespace.is_none() && self.selector.matches(&set.labels(&endpoint.labels, &endpoint.profiles))
    }

    /// Whether it has a say about workloads: policies before connection tracking and before DNAT are about host
    /// endpoints only (`tierInfoToProtoTierInfo` of Felix).
    #[must_use]
    pub const fn judges_workloads(&self) -> bool {
        matches!(self.hook, PolicyHook::Normal | PolicyHook::Forward)
    }

    /// The name without the prefix `TIER.`, which it may carry or not: what counts for order and for being the same one.
    #[must_use]
    pub fn base_name(&self) -> &str {
        self.name.strip_prefix(&self.tier).and_then(|rest| rest.strip_prefix('.')).unwrap_or(&self.name)
    }
}

/// A policy that is not enforced.
#[derive(Clone, Debug)]
pub struct StagedPolicy {
    /// What shall happen when it is applied.
    pub action: StagedAction,
    /// The policy; without rules if it would be deleted.
    pub policy: Shared<Policy>,
}

/// `stagedAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StagedAction {
    /// The policy would come into force, in place of one of the same kind, tier and name.
    #[default]
    Set,
    /// The policy in force of the same kind, tier and name would go.
    Delete,
    /// As `Set`: a policy that a tool still works on.
    Learn,
    /// Nothing would happen.
    Ignore,
}

/// A `Profile`, written or implied by a namespace (`kns.NAME`).
#[derive(Clone, Debug)]
pub struct Profile {
    /// Name.
    pub name: String,
    /// Ingress rules.
    pub ingress: Vec<Rule>,
    /// Egress rules.
    pub egress: Vec<Rule>,
    /// Labels that endpoints with this profile inherit; their own win.
    pub labels_to_apply: Labels,
    /// Where it was written; of the namespace for an implied one, absent for a built-in one.
    pub origin: Option<Origin>,
}

/// One rule. All conditions must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// What it does.
    pub action: RuleAction,
    /// What becomes of what it denies, where the rule or its policy says so; else the node does.
    pub deny_action: Option<DenyAction>,
    /// Its number in the list of the file, where that is not its place in the list here: of one rule of a Kubernetes
    /// `NetworkPolicy` Calico makes several.
    pub number: Option<u32>,
    /// 4 or 6.
    pub ip_version: Option<u8>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// Any protocol but this.
    pub not_protocol: Option<u8>,
    /// ICMP type, and code.
    pub icmp: Option<(u8, Option<u8>)>,
    /// Not this ICMP type (and code).
    pub not_icmp: Option<(u8, Option<u8>)>,
    /// The end that opens the connection.
    pub source: EntityRule,
    /// The end that it is opened to.
    pub destination: EntityRule,
    /// Where it was written.
    pub origin: Origin,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleAction {
    /// Let pass.
    Allow,
    /// Drop.
    Deny,
    /// Record, and go on with the next rule.
    Log,
    /// Go on with the next tier.
    Pass,
}

/// What becomes of denied packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DenyAction {
    /// They are dropped in silence.
    #[default]
    Drop,
    /// They are dropped, and the sender is told: by a TCP reset or an ICMP error.
    Reject,
}

/// What one end of a connection must be like.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntityRule {
    /// Any of these networks; empty: no condition.
    pub nets: Vec<IpNet>,
    /// None of these.
    pub not_nets: Vec<IpNet>,
    /// A known endpoint or network set with such labels: `selector` and `serviceAccounts` in one.
    pub selector: Option<Selector>,
    /// Not a known endpoint or network set with such labels.
    pub not_selector: Option<Selector>,
    /// Limits `selector` to namespaces with such labels.
    pub namespace_selector: Option<Selector>,
    /// Any of these ports; empty: no condition.
    pub ports: Vec<PortMatch>,
    /// None of these.
    pub not_ports: Vec<PortMatch>,
}

/// A port in a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PortMatch {
    /// From the first to the last, both included.
    Range(u16, u16),
    /// A named port of the endpoint.
    Named(String),
}
