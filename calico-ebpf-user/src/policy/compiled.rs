//! What the compiler makes of the resources for one node, before it is laid out in maps.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::Range,
    sync::Arc,
};

use calico_ebpf_common::abi::Action;
use ipnet::{IpNet, Ipv6Net};

use crate::resources::model::HostInterface;

/// The whole desired state of policy on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Distinct rule tables.
    pub tables: Vec<Arc<Table>>,
    /// Workloads of this node, by `namespace/name`.
    pub workloads: BTreeMap<String, LocalWorkload>,
    /// Interfaces of this node that have untracked policy, by name.
    pub untracked: BTreeMap<String, UntrackedInterface>,
    /// Host endpoints of this node, by name.
    pub host_endpoints: BTreeMap<String, LocalHostEndpoint>,
    /// What holds for which addresses.
    pub addresses: Addresses,
    /// Sets of address conditions, each sorted, by the numbers that [`Compiled::addresses`] has for them. Number 0 is the
    /// empty one.
    pub holdings: Arc<Vec<Arc<[u32]>>>,
    /// The condition that holds for the addresses of this host besides, where rules ask for it.
    pub host_condition: Option<u32>,
    /// What has the same numbering has the same numbers for the same conditions and sets of them, and the same table where
    /// nothing changed. No other does.
    pub numbering: u64,
    /// `defaultEndpointToHostAction`, a value of `abi::host_action`.
    pub host_action: u32,
    /// A value of `abi::settings_flags`.
    pub flags: u32,
}

/// Numbers of sets of conditions, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Stretches of IPv4 addresses: the first one, and the set that holds from there on. The first begins at address 0.
    pub v4: Arc<Vec<(u32, u32)>>,
    /// IPv6 networks and addresses that conditions tell apart, in order. The longest prefix wins.
    pub v6: Arc<Vec<(Ipv6Net, u32)>>,
}

impl Addresses {
    /// The set that holds for an address.
    #[must_use]
    pub fn holding(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => {
                let after = self.v4.partition_point(|&(start, _)| start <= u32::from(address));
                after.checked_sub(1).map_or(0, |index| self.v4[index].1)
            }
            IpAddr::V6(address) => {
                // What comes before it is no longer prefix of it; of those that contain it, the last is the longest.
                let before = self.v6.partition_point(|(net, _)| net.network() <= address);
                self.v6[..before].iter().rev().find(|(net, _)| net.contains(&address)).map_or(0, |found| found.1)
            }
        }
    }
}

/// A local workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalWorkload {
    /// Name of its pod, where it has one.
    pub pod: Option<String>,
    /// Host side of its veth or tap.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address, where configured.
    pub mac: Option<[u8; 6]>,
    /// `allowSpoofedSourcePrefixes`.
    pub spoof: Vec<IpNet>,
    /// Index of the table for what it sends.
    pub egress: usize,
    /// Index of the table for what it receives.
    pub ingress: usize,
}

/// An interface that policy before connection tracking judges. What its tables leave, they do not decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UntrackedInterface {
    /// Index of the table for what comes in by it, where there is one.
    pub ingress: Option<usize>,
    /// Index of the table for what the host itself sends by it, where there is one.
    pub egress: Option<usize>,
}

/// A host endpoint of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalHostEndpoint {
    /// Which interfaces it is.
    pub interface: HostInterface,
    /// Indices of the tables for what the host itself sends and receives.
    pub host: TablePair,
    /// Those for what the host forwards, where policy has a say about it. They are whoever's is outside: what comes in by the
    /// interface is sent by somebody out there, what leaves is received.
    pub forward: Option<TablePair>,
    /// Index of the table for what workloads send to the host, where policy has a say about it: that of `preDNAT` policies
    /// of the host endpoint of all interfaces.
    pub from_workloads: Option<usize>,
}

/// Indices of the two tables that judge one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TablePair {
    /// For what it sends.
    pub egress: usize,
    /// For what it receives.
    pub ingress: usize,
}

/// Who may be an end of a connection that is judged: a local workload, or what a host endpoint judges.
#[derive(Clone, Debug)]
pub struct Seat<'a> {
    /// Its name in the maps: a workload's is `namespace/name`.
    pub name: Cow<'a, str>,
    /// Its tables.
    pub tables: TablePair,
    /// Its addresses; any where there are none.
    pub addresses: Option<&'a [IpAddr]>,
}

/// What a host endpoint judges besides what the host itself sends and receives, as names of seats show it.
const FORWARDED: &str = " (forwarded)";
const FROM_WORKLOADS: &str = " (from workloads)";

/// The seat of what a host endpoint forwards.
#[must_use]
pub fn forward_seat(host_endpoint: &str) -> String {
    format!("{host_endpoint}{FORWARDED}")
}

/// The seat of what workloads send to the host.
#[must_use]
pub fn from_workloads_seat(host_endpoint: &str) -> String {
    format!("{host_endpoint}{FROM_WORKLOADS}")
}

/// The name of the host endpoint that a seat is of; `None` if it is a workload's.
#[must_use]
pub fn host_endpoint_of_seat(name: &str) -> Option<&str> {
    let name = name.strip_suffix(FORWARDED).or_else(|| name.strip_suffix(FROM_WORKLOADS)).unwrap_or(name);
    (!name.contains('/')).then_some(name)
}

impl Compiled {
    /// Without what host endpoints have to say.
    #[must_use]
    pub fn with_open_host_endpoints(mut self) -> Self {
        self.host_endpoints.clear();
        self.untracked.clear();
        for table in self.tables.iter_mut().filter(|table| table.of_host_endpoint != 0) {
            *table = Arc::new(table.without_host_endpoint());
        }
        self
    }

    /// All that have tables.
    pub fn seats(&self) -> impl Iterator<Item = Seat<'_>> {
        let workloads = self.workloads.iter().map(|(name, workload)| Seat {
            name: Cow::Borrowed(name),
            tables: TablePair { egress: workload.egress, ingress: workload.ingress },
            addresses: Some(&workload.addresses),
        });
        let of_host = self.host_endpoints.iter().flat_map(|(name, endpoint)| {
            let host = Some((Cow::Borrowed(name.as_str()), endpoint.host));
            let forward = endpoint.forward.map(|tables| (Cow::Owned(forward_seat(name)), tables));
            let from_workloads = endpoint
                .from_workloads
                .map(|table| (Cow::Owned(from_workloads_seat(name)), TablePair { egress: table, ingress: table }));
            [host, forward, from_workloads].into_iter().flatten()
        });
        workloads.chain(of_host.map(|(name, tables)| Seat { name, tables, addresses: None }))
    }

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

/// An ordered list of rules for one direction; the last one matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Table {
    /// The rules; the first that matches decides.
    pub rules: Vec<TableRule>,
    /// How many of them, the first ones, are those of the host endpoint of all interfaces, in the table of a workload: what
    /// that lets pass, the workload's own decide.
    pub of_host_endpoint: u16,
    /// Those of policy before DNAT, and with them all before them: about the destination before the host translates it.
    pub before_dnat: Range<u16>,
}

impl Table {
    /// The workload's own rules alone.
    fn without_host_endpoint(&self) -> Self {
        let own = self.rules.iter().skip(self.of_host_endpoint.into()).cloned();
        let rules = own.map(|rule| TableRule { next: rule.next.saturating_sub(self.of_host_endpoint), ..rule });
        Self { rules: rules.collect(), of_host_endpoint: 0, before_dnat: 0..0 }
    }
}

/// One rule of a table. What tables have in common is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TableRule {
    /// What it does.
    pub action: Action,
    /// For `Pass`: index of the first rule of the next tier.
    pub next: u16,
    /// What it is called: the key of its counter.
    pub name: Arc<RuleName>,
    /// What it looks at.
    pub matches: Arc<RuleMatch>,
}

/// What a rule looks at; all of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RuleMatch {
    /// The workload's own address.
    pub own: AddressMatch,
    /// The peer's address.
    pub peer: AddressMatch,
    /// Protocol with destination port (or ICMP type and code), as sorted, disjoint ranges of
    /// `protocol << 16 | port`, both ends included; empty: no condition.
    pub destination_ports: Vec<(u32, u32)>,
    /// Likewise for the source port.
    pub source_ports: Vec<(u32, u32)>,
}

/// Conditions about an address: the conjunction of disjunctions, minus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct AddressMatch {
    /// For each list: at least one of these conditions holds.
    pub all_of: Vec<Vec<u32>>,
    /// None of these holds.
    pub none_of: Vec<u32>,
    /// 4 or 6: the address is of that family.
    pub family: Option<u8>,
}

impl AddressMatch {
    /// Whether any address will do.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.all_of.is_empty() && self.none_of.is_empty() && self.family.is_none()
    }
}

/// Identity of a rule, in what people and `explain` see.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct RuleName {
    /// `egress` or `ingress`.
    pub direction: Direction,
    /// How it came to decide.
    pub reason: Reason,
    /// Tier, where there is one.
    pub tier: Option<String>,
    /// Kind of the resource: `GlobalNetworkPolicy`, `NetworkPolicy`, `Profile`.
    pub kind: Option<String>,
    /// Namespace of the resource.
    pub namespace: Option<String>,
    /// Name of the resource, as in the file.
    pub policy: Option<String>,
    /// Index in the list of the file.
    pub rule: Option<u32>,
}

impl RuleName {
    /// Of the rules of a profile; which of them is left open.
    #[must_use]
    pub fn of_profile(profile: &str, direction: Direction) -> Self {
        Self {
            direction,
            reason: Reason::Profile,
            tier: None,
            kind: Some("Profile".to_owned()),
            namespace: None,
            policy: Some(profile.to_owned()),
            rule: None,
        }
    }
}

/// Which way a table polices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// What the workload receives.
    Ingress,
    /// What the workload sends.
    Egress,
}

/// `reason` of a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// A rule of a policy.
    Rule,
    /// The end of a tier whose policies selected the workload.
    TierDefault,
    /// A rule of a profile.
    Profile,
    /// Nothing of the profiles matched, or there is none.
    NoProfile,
    /// A port that host endpoints never shut.
    Failsafe,
    /// No rule of untracked policy matched.
    Undecided,
    /// No policy of a host endpoint decides about what it forwards.
    NoPolicy,
    /// What is for the host itself is nothing that it forwards.
    ToHost,
}

impl Direction {
    /// As in the policy files' `types`, in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.direction.as_str())?;
        match self.reason {
            Reason::Rule | Reason::Profile => {}
            Reason::TierDefault => f.write_str(" end of tier")?,
            Reason::NoProfile => f.write_str(" no profile")?,
            Reason::Failsafe => f.write_str(" failsafe")?,
            Reason::Undecided => f.write_str(" end of untracked policy")?,
            Reason::NoPolicy => f.write_str(" no policy")?,
            Reason::ToHost => f.write_str(" to the host")?,
        }
        if let Some(tier) = &self.tier {
            write!(f, " {tier}")?;
        }
        if let (Some(kind), Some(policy)) = (&self.kind, &self.policy) {
            write!(f, " {kind} ")?;
            if let Some(namespace) = &self.namespace {
                write!(f, "{namespace}/")?;
            }
            f.write_str(policy)?;
        }
        self.rule.map_or(Ok(()), |rule| write!(f, " rule {rule}"))
    }
}
