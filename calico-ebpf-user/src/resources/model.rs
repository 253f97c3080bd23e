//! The resources after validation: what the policy compiler and the agent work on.
//!
//! Everything here is checked (names resolve, ranges are right, selectors are parsed); nothing depends on YAML any more.
//! The rule model covers the whole of Calico's language; the reader refuses what the compiler does not implement yet.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use ipnet::IpNet;

use super::{selector::Selector, shared::Shared};

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
    pub workloads: Vec<Shared<WorkloadEndpoint>>,
    /// Policies of all kinds.
    pub policies: Vec<Shared<Policy>>,
    /// Profiles, those that namespaces imply included.
    pub profiles: Vec<Profile>,
    /// Namespaces.
    pub namespaces: Vec<Namespace>,
    /// `FelixConfiguration`s by name: `default` and `node.NAME`.
    pub felix: BTreeMap<String, FelixConfiguration>,
}

/// A `WorkloadEndpoint`.
#[derive(Clone, Debug)]
pub struct WorkloadEndpoint {
    /// Namespace.
    pub namespace: String,
    /// Name, as in the file or computed.
    pub name: String,
    /// `spec.node`.
    pub node: String,
    /// `spec.orchestrator`.
    pub orchestrator: String,
    /// `spec.pod`.
    pub pod: Option<String>,
    /// Host side of the veth or tap.
    pub interface: String,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// MAC address of the workload.
    pub mac: Option<[u8; 6]>,
    /// Profiles, in order.
    pub profiles: Vec<String>,
    /// Named ports.
    pub ports: Vec<NamedPort>,
    /// Prefixes that it may send from besides its own addresses.
    pub allow_spoofed_source_prefixes: Vec<IpNet>,
    /// Its own labels and the implied ones, over the file's; without what profiles add.
    pub labels: Labels,
    /// Where it was written.
    pub origin: Origin,
}

/// An entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPort {
    /// Name.
    pub name: String,
    /// IP protocol number.
    pub protocol: u8,
    /// Port.
    pub port: u16,
}

/// What kind of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `GlobalNetworkPolicy`.
    Global,
    /// `NetworkPolicy`.
    Namespaced,
}

impl PolicyKind {
    /// The `kind` of the resource.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Global => "GlobalNetworkPolicy",
            Self::Namespaced => "NetworkPolicy",
        }
    }
}

/// A policy.
#[derive(Clone, Debug)]
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
    /// Which workloads it applies to (of its namespace, for a namespaced one).
    pub selector: Selector,
    /// Whether it polices what workloads receive: `types`, with Calico's default where absent.
    pub applies_ingress: bool,
    /// Whether it polices what workloads send.
    pub applies_egress: bool,
    /// Ingress rules, as in the file.
    pub ingress: Vec<Rule>,
    /// Egress rules, as in the file.
    pub egress: Vec<Rule>,
    /// Where it was written.
    pub origin: Origin,
}

impl Policy {
    /// The name without the prefix `TIER.`, which it may carry or not: what counts for order and for being the same one.
    #[must_use]
    pub fn base_name(&self) -> &str {
        self.name.strip_prefix(&self.tier).and_then(|rest| rest.strip_prefix('.')).unwrap_or(&self.name)
    }
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

/// A `Namespace`.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
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

/// One rule. All conditions must hold.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it does.
    pub action: RuleAction,
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

/// What one end of a connection must be like.
#[derive(Clone, Debug, Default)]
pub struct EntityRule {
    /// Any of these networks; empty: no condition.
    pub nets: Vec<IpNet>,
    /// None of these.
    pub not_nets: Vec<IpNet>,
    /// A known endpoint with such labels.
    pub selector: Option<Selector>,
    /// Not a known endpoint with such labels.
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

/// The parameters of `FelixConfiguration` that mean something here; absent: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FelixConfiguration {
    /// `interfacePrefix`: interfaces of ours begin with one of these.
    pub interface_prefixes: Option<Vec<String>>,
    /// `defaultEndpointToHostAction`.
    pub default_endpoint_to_host_action: Option<EndpointToHostAction>,
    /// `deviceRouteProtocol`.
    pub device_route_protocol: Option<u8>,
    /// `deviceRouteSourceAddress` and `deviceRouteSourceAddressIPv6`.
    pub device_route_source_address: Option<std::net::Ipv4Addr>,
    /// See above.
    pub device_route_source_address_v6: Option<std::net::Ipv6Addr>,
    /// `ipv4NormalRoutePriority`.
    pub ipv4_normal_route_priority: Option<u32>,
    /// `ipv6NormalRoutePriority`.
    pub ipv6_normal_route_priority: Option<u32>,
    /// `ipv4ElevatedRoutePriority`.
    pub ipv4_elevated_route_priority: Option<u32>,
    /// `ipv6ElevatedRoutePriority`.
    pub ipv6_elevated_route_priority: Option<u32>,
}

/// `defaultEndpointToHostAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointToHostAction {
    /// Drop: the default of Calico's binary.
    #[default]
    Drop,
    /// Allow.
    Accept,
    /// Leave it to the host's own rules.
    Return,
}

impl ResourceSet {
    /// The nodes that workloads name.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<&str> {
        self.workloads.iter().map(|workload| workload.node.as_str()).collect()
    }

    /// The configuration in force on a node: `default`, overridden field by field by `node.NAME`.
    #[must_use]
    pub fn felix_for(&self, node: &str) -> FelixConfiguration {
        let default = self.felix.get("default").cloned().unwrap_or_default();
        let Some(own) = self.felix.get(&format!("node.{node}")).cloned() else {
            return default;
        };
        FelixConfiguration {
            interface_prefixes: own.interface_prefixes.or(default.interface_prefixes),
            default_endpoint_to_host_action: own
                .default_endpoint_to_host_action
                .or(default.default_endpoint_to_host_action),
            device_route_protocol: own.device_route_protocol.or(default.device_route_protocol),
            device_route_source_address: own.device_route_source_address.or(default.device_route_source_address),
            device_route_source_address_v6: own
                .device_route_source_address_v6
                .or(default.device_route_source_address_v6),
            ipv4_normal_route_priority: own.ipv4_normal_route_priority.or(default.ipv4_normal_route_priority),
            ipv6_normal_route_priority: own.ipv6_normal_route_priority.or(default.ipv6_normal_route_priority),
            ipv4_elevated_route_priority: own.ipv4_elevated_route_priority.or(default.ipv4_elevated_route_priority),
            ipv6_elevated_route_priority: own.ipv6_elevated_route_priority.or(default.ipv6_elevated_route_priority),
        }
    }
}
