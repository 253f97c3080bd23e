//! Random resources, changes of them, and flows, out of small pools so that everything meets everything.

use std::{collections::BTreeMap, net::IpAddr};

use super::{NODE, origin};
use crate::policy::flow::Flow;
use crate::resources::{
    Shared,
    model::{
        DenyAction, EntityRule, FailsafePort, FelixConfiguration, HostEndpoint, HostInterface, Labels, NamedPort,
        NetworkSet, Policy, PolicyHook, PolicyKind, PortMatch, Profile, ResourceSet, Rule, RuleAction, Tier,
        TierAction, WorkloadEndpoint,
    },
    selector::Selector,
};

const NAMESPACES: [&str; 2] = ["x", "y"];
const TIERS: [&str; 4] = ["default", "default", "kube-admin", "zone"];
const PROFILES: [&str; 4] = ["kns.x", "kns.y", "extra", "missing"];
const NETS: [&str; 12] = [
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.4/30",
    "10.0.0.5/32",
    "0.0.0.0/0",
    "10.0.1.0/24",
    "192.168.0.0/16",
    "fd00::/16",
    "fd00::4/126",
    "fd00::5/128",
    "::/0",
    "2001:db8::/32",
];
const PORTS: [u16; 8] = [0, 1, 53, 79, 80, 81, 8080, 65535];
const PROTOCOLS: [u8; 7] = [6, 6, 17, 1, 58, 132, 253];
const SELECTORS: [&str; 14] = [
    "all()",
    "role == 'a'",
    "role == 'b'",
    "role != 'a'",
    "has(role)",
    "!has(role)",
    "role in {'a', 'b'}",
    "zone == 'a' && role == 'a'",
    "zone == 'a' || role == 'b'",
    "inherited == 'yes'",
    "role == 'nobody'",
    "pcns.kind starts with 'p'",
    "zone not in {'a'}",
    "projectcalico.org/namespace == 'x'",
];
const NAMESPACE_SELECTORS: [&str; 6] =
    ["kind == 'prod'", "has(kind)", "global()", "kind != 'prod'", "all()", "kind not in {'test'}"];
const PORT_NAMES: [&str; 3] = ["http", "dns", "none"];

/// A small pseudo-random generator (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    fn some<T>(&mut self, one_in: usize, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.one_in(one_in).then(|| make(self))
    }

    fn list<T>(&mut self, up_to: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.below(up_to + 1)).map(|_| make(self)).collect()
    }

    fn selector(&mut self) -> Selector {
        Selector::parse(self.pick(&SELECTORS)).unwrap()
    }

    fn port(&mut self) -> PortMatch {
        if self.one_in(4) {
            return PortMatch::Named(self.pick(&PORT_NAMES).to_owned());
        }
        let (a, b) = (self.pick(&PORTS), self.pick(&PORTS));
        if self.one_in(2) { PortMatch::Range(a, a) } else { PortMatch::Range(a.min(b), a.max(b)) }
    }

    fn entity(&mut self, with_ports: bool) -> EntityRule {
        EntityRule {
            nets: if self.one_in(3) { self.list(3, |r| r.pick(&NETS).parse().unwrap()) } else { Vec::new() },
            not_nets: if self.one_in(5) { self.list(2, |r| r.pick(&NETS).parse().unwrap()) } else { Vec::new() },
            selector: self.some(3, Self::selector),
            not_selector: self.some(6, Self::selector),
            namespace_selector: self.some(8, |r| Selector::parse(r.pick(&NAMESPACE_SELECTORS)).unwrap()),
            ports: if with_ports && self.one_in(3) { self.list(3, Self::port) } else { Vec::new() },
            not_ports: if with_ports && self.one_in(5) { self.list(3, Self::port) } else { Vec::new() },
        }
    }

    fn rule(&mut self) -> Rule {
        let protocol = self.some(2, |r| r.pick(&PROTOCOLS));
        let icmp = protocol.is_some_and(|protocol| protocol == 1 || protocol == 58);
        let with_ports = protocol.is_none() || protocol.is_some_and(|protocol| [6, 17, 132].contains(&protocol));
        let kind = |r: &mut Self| (r.pick(&[0, 3, 8]), r.some(2, |r| r.pick(&[0, 3])));
        let mut rule = Rule {
            action: self.pick(&[
                RuleAction::Allow,
                RuleAction::Allow,
                RuleAction::Allow,
                RuleAction::Deny,
                RuleAction::Deny,
                RuleAction::Pass,
                RuleAction::Log,
            ]),
            deny_action: None,
            number: None,
            ip_version: self.some(6, |r| r.pick(&[4, 6])),
            protocol,
            not_protocol: self.some(6, |r| r.pick(&PROTOCOLS)),
            icmp: if icmp { self.some(2, kind) } else { None },
            not_icmp: if icmp { self.some(3, kind) } else { None },
            source: self.entity(with_ports),
            destination: self.entity(with_ports),
            origin: origin(),
        };
        if rule.action == RuleAction::Deny {
            rule.deny_action = self.some(2, |r| r.pick(&[DenyAction::Drop, DenyAction::Reject]));
        }
        if rule.action == RuleAction::Log {
            // A named port makes many rules of one, and a table may log so many times only.
            for end in [&mut rule.source, &mut rule.destination] {
                end.ports.clear();
                end.not_ports.clear();
            }
        }
        rule
    }

    fn policy(&mut self) -> Policy {
        let namespaced = self.one_in(2);
        let hook = if self.one_in(if namespaced { 10 } else { 2 }) {
            self.pick(&[PolicyHook::Untracked, PolicyHook::PreDnat, PolicyHook::Forward])
        } else {
            PolicyHook::Normal
        };
        // Few selectors select a host endpoint.
        let selector = if hook != PolicyHook::Normal && self.one_in(2) { Selector::all() } else { self.selector() };
        Policy {
            kind: if namespaced { PolicyKind::Namespaced } else { PolicyKind::Global },
            namespace: namespaced.then(|| self.pick(&NAMESPACES).to_owned()),
            name: format!("{}p{}", if self.one_in(3) { "default." } else { "" }, self.below(1000)),
            tier: self.pick(&TIERS).to_owned(),
            order: self.some(2, |r| r.pick(&[-1.5, 0.0, 10.0, 10.5, 1000.0])),
            selector,
            applies_ingress: !self.one_in(3),
            applies_egress: !self.one_in(3),
            ingress: self.list(5, Self::rule),
            egress: self.list(5, Self::rule),
            hook,
            origin: origin(),
        }
    }

    fn profile(&mut self, name: &str) -> Profile {
        let mut labels_to_apply = Labels::new();
        if self.one_in(2) {
            labels_to_apply.insert("pcns.kind".to_owned(), self.pick(&["prod", "test"]).to_owned());
        }
        if self.one_in(2) {
            labels_to_apply.insert("inherited".to_owned(), self.pick(&["yes", "no"]).to_owned());
            labels_to_apply.insert("role".to_owned(), "b".to_owned());
        }
        Profile {
            name: name.to_owned(),
            ingress: self.list(2, Self::rule),
            egress: self.list(2, Self::rule),
            labels_to_apply,
            origin: Some(origin()),
        }
    }

    fn labels(&mut self, namespace: &str) -> Labels {
        let mut labels = Labels::from([("projectcalico.org/namespace".to_owned(), namespace.to_owned())]);
        for key in ["role", "zone"] {
            if !self.one_in(3) {
                labels.insert(key.to_owned(), self.pick(&["a", "b", "c"]).to_owned());
            }
        }
        labels
    }

    /// The workload that may exist with this number: its addresses are its own.
    fn workload(&mut self, number: usize) -> WorkloadEndpoint {
        let namespace = self.pick(&NAMESPACES).to_owned();
        let mut addresses: Vec<IpAddr> = Vec::new();
        if !self.one_in(6) {
            addresses.push(format!("10.0.0.{number}").parse().unwrap());
        }
        if !self.one_in(3) {
            addresses.push(format!("fd00::{number}").parse().unwrap());
        }
        let ports = self.list(2, |r| NamedPort {
            name: r.pick(&PORT_NAMES[..2]).to_owned(),
            protocol: r.pick(&[6, 17]),
            port: r.pick(&PORTS),
        });
        WorkloadEndpoint {
            labels: self.labels(&namespace),
            name: format!("w{number}"),
            node: if self.one_in(2) { NODE } else { "n2" }.to_owned(),
            orchestrator: "k8s".to_owned(),
            pod: None,
            interface: format!("cali{number}"),
            addresses,
            mac: None,
            profiles: self.list(2, |r| r.pick(&PROFILES).to_owned()),
            ports,
            allow_spoofed_source_prefixes: if self.one_in(4) {
                self.list(2, |r| r.pick(&NETS).parse().unwrap())
            } else {
                Vec::new()
            },
            origin: origin(),
            namespace,
        }
    }

    /// The host endpoint that may exist with this number.
    fn host_endpoint(&mut self, number: usize) -> HostEndpoint {
        let expected_ips: Vec<IpAddr> =
            self.list(2, |r| r.pick(&["10.0.0.254", "fd00::254", "192.168.7.1", "10.0.0.5"]).parse().unwrap());
        let mut labels = self.labels("");
        labels.remove("projectcalico.org/namespace");
        HostEndpoint {
            name: format!("h{number}"),
            node: if self.one_in(3) { "n2" } else { NODE }.to_owned(),
            interface: match self.below(4) {
                0 | 1 => HostInterface::All,
                2 if !expected_ips.is_empty() => HostInterface::Carrying(expected_ips.clone()),
                _ => HostInterface::Named(format!("eth{}", self.below(2))),
            },
            expected_ips,
            profiles: self.list(2, |r| r.pick(&PROFILES).to_owned()),
            ports: self.list(2, |r| NamedPort {
                name: r.pick(&PORT_NAMES[..2]).to_owned(),
                protocol: r.pick(&[6, 17]),
                port: r.pick(&PORTS),
            }),
            labels,
            origin: origin(),
        }
    }

    fn host_endpoints(&mut self) -> BTreeMap<String, Shared<HostEndpoint>> {
        let number = self.below(4);
        let endpoints = (0..number).map(|number| self.host_endpoint(number));
        endpoints.map(|endpoint| (endpoint.name.clone(), endpoint.into())).collect()
    }

    fn failsafes(&mut self) -> Option<Vec<FailsafePort>> {
        self.some(3, |r| {
            r.list(3, |r| FailsafePort {
                protocol: r.pick(&[6, 17]),
                net: r.some(2, |r| r.pick(&NETS).parse().unwrap()),
                port: r.pick(&PORTS),
            })
        })
    }

    fn network_set(&mut self) -> NetworkSet {
        let namespace = self.some(2, |r| r.pick(&NAMESPACES).to_owned());
        let mut labels = self.labels(namespace.as_deref().unwrap_or_default());
        if namespace.is_none() {
            labels.remove("projectcalico.org/namespace");
        }
        NetworkSet {
            profiles: namespace.iter().map(|namespace| format!("kns.{namespace}")).collect(),
            namespace,
            name: format!("s{}", self.below(1000)),
            nets: self.list(4, |r| r.pick(&NETS).parse().unwrap()),
            labels,
            origin: origin(),
        }
    }

    fn tiers(&mut self) -> BTreeMap<String, Tier> {
        let order = self.some(2, |r| r.pick(&[-1.0, 500.0, 1e6, 2e7]));
        let tier = Tier { order, default_action: self.pick(&[TierAction::Deny, TierAction::Pass]) };
        self.some(2, |_| ("zone".to_owned(), tier)).into_iter().collect()
    }

    /// Of the default and of the node, which overrides it, some say how to deny.
    fn felix(&mut self) -> BTreeMap<String, FelixConfiguration> {
        let names = ["default".to_owned(), format!("node.{NODE}")];
        let action = |r: &mut Self| r.some(3, |r| r.pick(&[DenyAction::Drop, DenyAction::Reject]));
        let of_name = |name| {
            let felix = FelixConfiguration {
                drop_action_override: action(self),
                iptables_filter_deny_action: action(self),
                nftables_filter_deny_action: action(self),
                failsafe_inbound_host_ports: self.failsafes(),
                failsafe_outbound_host_ports: self.failsafes(),
                ..FelixConfiguration::default()
            };
            (name, felix)
        };
        names.map(of_name).into()
    }

    pub(crate) fn set(&mut self) -> ResourceSet {
        let workloads = (1..9)
            .filter_map(|number| if self.one_in(5) { None } else { Some(self.workload(number).into()) })
            .collect();
        let profiles = PROFILES[..3]
            .iter()
            .filter_map(|name| if self.one_in(4) { None } else { Some(self.profile(name)) })
            .collect();
        let mut set = ResourceSet {
            workloads,
            policies: self.list(7, |r| r.policy().into()),
            profiles,
            network_sets: self.list(3, |r| r.network_set().into()),
            host_endpoints: self.host_endpoints(),
            tiers: self.tiers(),
            felix: self.felix(),
            ..ResourceSet::default()
        };
        distinct(&mut set);
        set
    }

    /// Something else in the set.
    pub(crate) fn change(&mut self, set: &mut ResourceSet) {
        let (workload, policy) = (self.below(set.workloads.len().max(1)), self.below(set.policies.len().max(1)));
        match self.below(12) {
            11 => set.host_endpoints = self.host_endpoints(),
            0 if !set.workloads.is_empty() => {
                set.workloads.remove(workload);
            }
            1 => {
                let number = 1 + self.below(9);
                let name = format!("w{number}");
                set.workloads.retain(|workload| workload.name != name);
                let workload = self.workload(number);
                set.workloads.push(workload.into());
            }
            2 | 3 if !set.workloads.is_empty() => {
                let labels = self.labels(&set.workloads[workload].namespace.clone());
                set.workloads[workload].labels = labels;
            }
            4 if !set.policies.is_empty() => {
                set.policies.remove(policy);
            }
            5 if !set.policies.is_empty() => {
                let rule = self.rule();
                set.policies[policy].ingress.insert(0, rule);
            }
            6 => *set = self.set(),
            7 => {}
            8 => {
                let network_set = self.network_set();
                set.network_sets.truncate(2);
                set.network_sets.push(network_set.into());
            }
            9 if self.one_in(2) => set.felix = self.felix(),
            9 => set.tiers = self.tiers(),
            _ => {
                let policy = self.policy();
                set.policies.push(policy.into());
            }
        }
        distinct(set);
    }

    pub(super) fn flow(&mut self) -> Flow {
        let v4 = self.one_in(2);
        let address = |r: &mut Self| -> IpAddr {
            let number = 1 + r.below(10);
            let texts = if v4 {
                [format!("10.0.0.{number}"), format!("10.0.{}.77", r.below(3)), "192.168.7.1".into(), "8.8.8.8".into()]
            } else {
                [format!("fd00::{number}"), "fd00::254".into(), "2001:db8::1".into(), "2a00::1".into()]
            };
            let choice = if r.one_in(4) { r.below(4) } else { 0 };
            texts[choice].parse().unwrap()
        };
        let (source, mut destination) = (address(self), address(self));
        if self.one_in(20) {
            destination = if v4 { "224.0.0.251" } else { "ff02::fb" }.parse().unwrap();
        }
        let protocol = self.pick(&PROTOCOLS);
        let port = |r: &mut Self| match protocol {
            6 | 17 | 132 => r.pick(&PORTS),
            _ => 0,
        };
        let (source_port, mut destination_port) = (port(self), port(self));
        if protocol == 1 || protocol == 58 {
            destination_port = u16::from_be_bytes([self.pick(&[0, 3, 8]), self.pick(&[0, 3])]);
        }
        Flow { source, destination, protocol, source_port, destination_port }
    }

    pub(crate) fn flows(&mut self, count: usize) -> Vec<Flow> {
        (0..count).map(|_| self.flow()).collect()
    }
}

/// Names are unique in valid resources, with the tier's prefix or without it.
fn distinct(set: &mut ResourceSet) {
    let mut seen = std::collections::HashSet::new();
    set.policies.retain(|policy| {
        let name = policy.name.strip_prefix("default.").unwrap_or(&policy.name).to_owned();
        seen.insert((policy.kind, policy.namespace.clone(), policy.tier.clone(), name))
    });
}
