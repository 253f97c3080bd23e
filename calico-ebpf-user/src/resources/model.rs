//! The resources after validation: what the policy compiler and the agent work on.
//!
//! Everything here is checked (names resolve, ranges are right, selectors are parsed); nothing depends on YAML any more.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use calico_ebpf_common::packet::protocol::{TCP, UDP};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{selector::Selector, shared::Shared};

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

/// A `WorkloadEndpoint`.
#[derive(Clone, Debug, PartialEq)]
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

/// A `HostEndpoint`.
#[derive(Clone, Debug, PartialEq)]
pub struct HostEndpoint {
    /// Name.
    pub name: String,
    /// `spec.node`.
    pub node: String,
    /// Which interfaces of the node it is.
    pub interface: HostInterface,
    /// `spec.expectedIPs`: what selectors of rules find it by, and the interface where no name is given.
    pub expected_ips: Vec<IpAddr>,
    /// Profiles, in order.
    pub profiles: Vec<String>,
    /// Named ports.
    pub ports: Vec<NamedPort>,
    /// Its own labels; without what profiles add.
    pub labels: Labels,
    /// Where it was written.
    pub origin: Origin,
}

/// Which interfaces a host endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostInterface {
    /// The one of this name.
    Named(String),
    /// Whichever carries one of these addresses.
    Carrying(Vec<IpAddr>),
    /// `*`: all but those of workloads and loopback that no other host endpoint is.
    All,
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

/// A `GlobalNetworkSet` or `NetworkSet`.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkSet {
    /// Namespace of a `NetworkSet`.
    pub namespace: Option<String>,
    /// Name.
    pub name: String,
    /// Its networks, of both IP versions, bits beyond the prefix lengths cleared.
    pub nets: Vec<IpNet>,
    /// Its own labels and the implied one of its namespace; without what the namespace's profile adds.
    pub labels: Labels,
    /// The profile of its namespace, whose labels it inherits.
    pub profiles: Vec<String>,
    /// Where it was written.
    pub origin: Origin,
}

/// An `IPPool`: what routing and translation need of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpPool {
    /// The addresses of the pool.
    pub cidr: IpNet,
    /// Prefix length of the blocks that nodes take from it.
    pub block_size: u8,
    /// Whether what workloads send to outside of all pools gets the host's address.
    pub nat_outgoing: bool,
    /// Whether no addresses are given out any more.
    pub disabled: bool,
    /// Whether Calico would wrap what leaves for other hosts: `ipipMode` or `vxlanMode`.
    pub encapsulated: bool,
    /// Whether its routes are kept from BGP.
    pub disable_bgp_export: bool,
    /// Nodes that may take blocks.
    pub node_selector: Selector,
    /// Where it was written.
    pub origin: Origin,
}

/// A `Node`: what routing needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Labels.
    pub labels: Labels,
    /// `spec.bgp.ipv4Address`, with the network that the node is in.
    pub ipv4: Option<IpNet>,
    /// `spec.bgp.ipv6Address`.
    pub ipv6: Option<IpNet>,
    /// `spec.bgp.asNumber`.
    pub as_number: Option<u32>,
    /// `spec.bgp.routeReflectorClusterID`.
    pub route_reflector_cluster_id: Option<std::net::Ipv4Addr>,
    /// `spec.addresses`.
    pub addresses: Vec<IpAddr>,
    /// Where it was written.
    pub origin: Origin,
}

/// A `BGPConfiguration`; absent: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BgpConfiguration {
    /// `asNumber`, of nodes that have none of their own.
    pub as_number: Option<u32>,
    /// `nodeToNodeMeshEnabled`.
    pub mesh: Option<bool>,
    /// `listenPort`.
    pub listen_port: Option<u16>,
    /// `nodeMeshMaxRestartTime`, in seconds.
    pub mesh_restart_time: Option<u16>,
    /// `prefixAdvertisements`, with the values of named communities.
    pub advertisements: Vec<PrefixAdvertisement>,
    /// Fields that say something a routing daemon cannot be told here.
    pub unsupported: Vec<&'static str>,
}

/// An entry of `prefixAdvertisements`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixAdvertisement {
    /// Routes in here.
    pub cidr: IpNet,
    /// What they are told with.
    pub communities: Vec<Community>,
}

/// A community of BGP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Community {
    /// `aa:nn`.
    Standard(u16, u16),
    /// `aa:nn:mm`.
    Large(u32, u32, u32),
}

/// A `BGPPeer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeer {
    /// `node`: which node has this peer. Without this and the next: all.
    pub node: Option<String>,
    /// `nodeSelector`: which nodes have this peer.
    pub node_selector: Option<Selector>,
    /// Who it is.
    pub at: BgpPeerAt,
    /// `nextHopMode` and `keepOriginalNextHop`.
    pub next_hop: BgpNextHop,
    /// `sourceAddress`: sessions come from the node's address.
    pub from_node_address: bool,
    /// `reversePeering`: nodes that are the peer have the other end without a resource of their own.
    pub reverse: bool,
    /// `maxRestartTime`, in seconds.
    pub restart_time: Option<u16>,
    /// `numAllowedLocalASNumbers`.
    pub allowed_local_as: u8,
    /// `ttlSecurity`: how many hops away it may be.
    pub ttl_security: Option<u8>,
    /// Names of `BGPFilter`s.
    pub filters: Vec<String>,
    /// Fields that say something a routing daemon cannot be told here.
    pub unsupported: Vec<&'static str>,
}

/// Who a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BgpPeerAt {
    /// `peerIP` and `asNumber`.
    Address {
        /// Address.
        address: IpAddr,
        /// Port, if it is not the usual one.
        port: Option<u16>,
        /// Its autonomous system.
        as_number: u32,
    },
    /// `peerSelector`: nodes.
    Nodes(Selector),
}

/// What next hop a peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BgpNextHop {
    /// This node towards another autonomous system, the original one else.
    Auto,
    /// This node.
    Own,
    /// The original one.
    Keep,
}

/// A `BGPFilter`: rules in order, IPv4's first. What no rule decides goes on as without the filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BgpFilter {
    /// About routes that are told to the peer.
    pub export: [Vec<BgpFilterRule>; 2],
    /// About routes that the peer tells.
    pub import: [Vec<BgpFilterRule>; 2],
}

/// A rule of a `BGPFilter`. All conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpFilterRule {
    /// `cidr`, `matchOperator` and `prefixLength`.
    pub prefix: Option<PrefixMatch>,
    /// `source: RemotePeers`: learnt by BGP.
    pub remote_peers: bool,
    /// `interface`, in which `*` stands for anything.
    pub interface: Option<String>,
    /// `peerType`: of another autonomous system, or of the own one.
    pub external: Option<bool>,
    /// `communities`.
    pub community: Option<Community>,
    /// `asPathPrefix`.
    pub as_path_prefix: Vec<u32>,
    /// `priority`.
    pub priority: Option<u32>,
    /// `action`.
    pub accept: bool,
    /// `operations`, in order.
    pub operations: Vec<BgpOperation>,
}

/// Which destinations a rule of a `BGPFilter` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    /// In here.
    pub net: IpNet,
    /// And at least so long.
    pub min: u8,
    /// And at most so long.
    pub max: u8,
    /// All others.
    pub negated: bool,
}

/// What a rule of a `BGPFilter` changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BgpOperation {
    /// `addCommunity`.
    AddCommunity(Community),
    /// `prependASPath`.
    PrependAsPath(Vec<u32>),
    /// `setPriority`.
    SetPriority(u32),
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

/// What becomes of denied packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DenyAction {
    /// They are dropped in silence.
    #[default]
    Drop,
    /// They are dropped, and the sender is told: by a TCP reset or an ICMP error.
    Reject,
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

/// The parameters of `FelixConfiguration` that mean something here; absent: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FelixConfiguration {
    /// `interfacePrefix`: interfaces of ours begin with one of these.
    pub interface_prefixes: Option<Vec<String>>,
    /// `defaultEndpointToHostAction`.
    pub default_endpoint_to_host_action: Option<EndpointToHostAction>,
    /// `disableConntrackInvalidCheck`.
    pub disable_conntrack_invalid_check: Option<bool>,
    /// `failsafeInboundHostPorts`: see [`FelixConfiguration::failsafes`].
    pub failsafe_inbound_host_ports: Option<Vec<FailsafePort>>,
    /// `failsafeOutboundHostPorts`, likewise.
    pub failsafe_outbound_host_ports: Option<Vec<FailsafePort>>,
    /// `xdpEnabled`: whether untracked policy may be in force before packets are the kernel's; it is, unless given.
    pub xdp_enabled: Option<bool>,
    /// `genericXDPEnabled`: whether that may be so also where the device has no support for it.
    pub generic_xdp_enabled: Option<bool>,
    /// `localSubnetL2Reachability`.
    pub local_subnet_l2_reachability: Option<L2Reachability>,
    /// `bpfEnforceRPF`.
    pub reverse_path: Option<ReversePath>,
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
    /// `liveMigrationRouteConvergenceTime`, in seconds.
    pub live_migration_route_convergence_time: Option<u16>,
    /// `natOutgoingAddress`.
    pub nat_outgoing_address: Option<IpAddr>,
    /// `natOutgoingExclusions`.
    pub nat_outgoing_exclusions: Option<NatOutgoingExclusions>,
    /// `natPortRange`, first and last.
    pub nat_port_range: Option<(u16, u16)>,
    /// `iptablesNATOutgoingInterfaceFilter`, as in the file: with `+` at its end the beginning of a name.
    pub nat_outgoing_interface_filter: Option<String>,
    /// `dropActionOverride`.
    pub drop_action_override: Option<DenyAction>,
    /// `iptablesFilterDenyAction`.
    pub iptables_filter_deny_action: Option<DenyAction>,
    /// `nftablesFilterDenyAction`.
    pub nftables_filter_deny_action: Option<DenyAction>,
}

impl FelixConfiguration {
    /// The ports that host endpoints always let pass, inbound and outbound: Calico's unless given.
    #[must_use]
    pub fn failsafes(&self) -> [Vec<FailsafePort>; 2] {
        let port = |protocol: u8| move |port: u16| FailsafePort { protocol, net: None, port };
        let (tcp, udp) = (port(TCP), port(UDP));
        // BGP, etcd, Typha, the API server of Kubernetes.
        let both = [179, 2379, 2380, 5473, 6443, 6666, 6667].map(tcp);
        let given = |given: &Option<Vec<FailsafePort>>, first: [FailsafePort; 2]| {
            given.clone().unwrap_or_else(|| first.into_iter().chain(both).collect())
        };
        [
            given(&self.failsafe_inbound_host_ports, [tcp(22), udp(68)]),
            given(&self.failsafe_outbound_host_ports, [udp(53), udp(67)]),
        ]
    }

    /// What becomes of denied packets where neither rule nor policy says anything: `dropActionOverride` is about all data
    /// paths; of the others, that one is meant which is not the default.
    #[must_use]
    pub fn deny_action(&self) -> DenyAction {
        let filter = [self.iptables_filter_deny_action, self.nftables_filter_deny_action];
        let rejects = filter.contains(&Some(DenyAction::Reject));
        self.drop_action_override.unwrap_or(if rejects { DenyAction::Reject } else { DenyAction::Drop })
    }
}

/// What a host endpoint always lets pass to or from the host itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FailsafePort {
    /// IP protocol number.
    pub protocol: u8,
    /// Addresses at the other end; all without it.
    pub net: Option<IpNet>,
    /// Destination port.
    pub port: u16,
}

/// `localSubnetL2Reachability`: whether questions of the link for addresses of local workloads are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum L2Reachability {
    /// They are not.
    #[default]
    Disabled,
    /// They are, inside the networks of uplinks. (There are no load balancers here.)
    PodsAndLoadBalancers,
}

/// `natOutgoingExclusions`: what workloads of pools with `natOutgoing` reach untranslated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NatOutgoingExclusions {
    /// All pools.
    #[default]
    IpPoolsOnly,
    /// All pools, and the addresses of all nodes.
    IpPoolsAndHostIps,
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

/// `bpfEnforceRPF`: what is asked of the way back to who opens a connection from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReversePath {
    /// Nothing.
    Disabled,
    /// It is the one that the packet came by.
    Strict,
    /// There is one: Calico's default.
    #[default]
    Loose,
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
        let Some(own) = self.felix.get(&format!("node.{node}")).cloned() else {
            return default;
        };
        FelixConfiguration {
            interface_prefixes: own.interface_prefixes.or(default.interface_prefixes),
            default_endpoint_to_host_action: own
                .default_endpoint_to_host_action
                .or(default.default_endpoint_to_host_action),
            disable_conntrack_invalid_check: own
                .disable_conntrack_invalid_check
                .or(default.disable_conntrack_invalid_check),
            failsafe_inbound_host_ports: own.failsafe_inbound_host_ports.or(default.failsafe_inbound_host_ports),
            failsafe_outbound_host_ports: own.failsafe_outbound_host_ports.or(default.failsafe_outbound_host_ports),
            xdp_enabled: own.xdp_enabled.or(default.xdp_enabled),
            generic_xdp_enabled: own.generic_xdp_enabled.or(default.generic_xdp_enabled),
            local_subnet_l2_reachability: own.local_subnet_l2_reachability.or(default.local_subnet_l2_reachability),
            reverse_path: own.reverse_path.or(default.reverse_path),
            device_route_protocol: own.device_route_protocol.or(default.device_route_protocol),
            device_route_source_address: own.device_route_source_address.or(default.device_route_source_address),
            device_route_source_address_v6: own
                .device_route_source_address_v6
                .or(default.device_route_source_address_v6),
            ipv4_normal_route_priority: own.ipv4_normal_route_priority.or(default.ipv4_normal_route_priority),
            ipv6_normal_route_priority: own.ipv6_normal_route_priority.or(default.ipv6_normal_route_priority),
            ipv4_elevated_route_priority: own.ipv4_elevated_route_priority.or(default.ipv4_elevated_route_priority),
            ipv6_elevated_route_priority: own.ipv6_elevated_route_priority.or(default.ipv6_elevated_route_priority),
            live_migration_route_convergence_time: own
                .live_migration_route_convergence_time
                .or(default.live_migration_route_convergence_time),
            nat_outgoing_address: own.nat_outgoing_address.or(default.nat_outgoing_address),
            nat_outgoing_exclusions: own.nat_outgoing_exclusions.or(default.nat_outgoing_exclusions),
            nat_port_range: own.nat_port_range.or(default.nat_port_range),
            nat_outgoing_interface_filter: own.nat_outgoing_interface_filter.or(default.nat_outgoing_interface_filter),
            drop_action_override: own.drop_action_override.or(default.drop_action_override),
            iptables_filter_deny_action: own.iptables_filter_deny_action.or(default.iptables_filter_deny_action),
            nftables_filter_deny_action: own.nftables_filter_deny_action.or(default.nftables_filter_deny_action),
        }
    }
}
