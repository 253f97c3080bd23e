//! Cases that Calico's own tests pin: each is judged by the tables and by the plain evaluator.

use std::net::IpAddr;

use super::{LIMITS, NODE, compile, expected, fresh, host, origin};
use crate::{
    policy::{
        compiled::{Reason, RuleName},
        flow::Flow,
        store::Store,
        write::KernelState,
    },
    resources::{
        Shared,
        model::{
            EntityRule, Labels, NamedPort, Policy, PolicyHook, PolicyKind, PortMatch, Profile, ResourceSet, Rule,
            RuleAction, WorkloadEndpoint,
        },
        selector::Selector,
    },
};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

fn workload(
    name: &str,
    node: &str,
    addresses: &[&str],
    labels: &[(&str, &str)],
    profiles: &[&str],
) -> Shared<WorkloadEndpoint> {
    let mut labels: Labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    labels.insert("projectcalico.org/namespace".to_owned(), "x".to_owned());
    let endpoint = WorkloadEndpoint {
        namespace: "x".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        orchestrator: "k8s".to_owned(),
        pod: None,
        interface: format!("cali-{name}"),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        mac: None,
        profiles: profiles.iter().map(|&profile| profile.to_owned()).collect(),
        ports: Vec::new(),
        allow_spoofed_source_prefixes: Vec::new(),
        labels,
        origin: origin(),
    };
    endpoint.into()
}

pub(in crate::policy) fn rule(action: RuleAction) -> Rule {
    Rule {
        action,
        deny_action: None,
        number: None,
        ip_version: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: EntityRule::default(),
        destination: EntityRule::default(),
        origin: origin(),
    }
}

fn allow() -> Rule {
    rule(RuleAction::Allow)
}

fn deny() -> Rule {
    rule(RuleAction::Deny)
}

fn pass() -> Rule {
    rule(RuleAction::Pass)
}

fn policy(name: &str, tier: &str, ingress: Vec<Rule>) -> Policy {
    Policy {
        kind: PolicyKind::Global,
        namespace: None,
        name: name.to_owned(),
        tier: tier.to_owned(),
        order: None,
        selector: Selector::all(),
        applies_ingress: true,
        applies_egress: false,
        ingress,
        egress: Vec::new(),
        hook: PolicyHook::Normal,
        origin: origin(),
    }
}

fn profile(name: &str, ingress: Vec<Rule>, egress: Vec<Rule>) -> Profile {
    Profile { name: name.to_owned(), ingress, egress, labels_to_apply: Labels::new(), origin: None }
}

/// `x/w` at 10.65.0.1 and fd00::1 on this node without a profile, and peers with labels at 10.65.0.2 to .4.
fn set(policies: Vec<Policy>) -> ResourceSet {
    ResourceSet {
        workloads: vec![
            workload("w", NODE, &["10.65.0.1", "fd00::1"], &[("role", "server")], &[]),
            workload("a", "n2", &["10.65.0.2", "fd00::2"], &[("role", "a")], &["open"]),
            workload("b", "n2", &["10.65.0.3"], &[("role", "b")], &["open"]),
            workload("c", NODE, &["10.65.0.4"], &[], &["open"]),
        ]
        .into(),
        policies: policies.into_iter().map(Shared::from).collect(),
        profiles: vec![profile("open", vec![allow()], vec![allow()])],
        ..ResourceSet::default()
    }
}

pub(in crate::policy) fn one(ingress: Vec<Rule>) -> ResourceSet {
    set(vec![policy("p", "default", ingress)])
}

/// Whether `x/w` takes in the flow; the tables and the evaluator agree about it.
fn takes(set: &ResourceSet, flow: &Flow) -> (bool, RuleName) {
    let (_, maps) = fresh(set);
    let verdict = maps.judge(flow);
    assert_eq!(verdict, expected(set, flow), "{flow:?}");
    let end = verdict.destination.unwrap();
    (end.allow, end.rule)
}

fn flow(source: &str, protocol: u8, source_port: u16, destination_port: u16) -> Flow {
    let source: IpAddr = source.parse().unwrap();
    let destination = if source.is_ipv4() { "10.65.0.1" } else { "fd00::1" }.parse().unwrap();
    Flow { source, destination, protocol, source_port, destination_port }
}

/// Some of every kind.
fn all_flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for source in ["10.65.0.2", "10.65.0.3", "10.0.0.1", "8.8.8.8", "fd00::2", "2001:db8::1"] {
        for (protocol, from, to) in
            [(TCP, 31245, 80), (TCP, 80, 31245), (UDP, 31245, 53), (132, 1, 1), (253, 0, 0), (254, 0, 0)]
        {
            flows.push(flow(source, protocol, from, to));
        }
        flows.push(flow(source, ICMP, 0, 8 << 8));
    }
    flows
}

fn check(set: &ResourceSet, allowed: impl Fn(&Flow) -> bool, flows: &[Flow]) {
    for flow in flows {
        assert_eq!(takes(set, flow).0, allowed(flow), "{flow:?}");
    }
}

#[test]
fn what_another_process_took_back_counts_no_connection_as_judged() {
    let (store, maps) = fresh(&set(Vec::new()));
    let other = compile(&set(vec![policy("p", "default", vec![allow()])]), NODE);
    let next = store.generation() + 1;
    assert_eq!(store.plan(&other, &host()).unwrap().generation, next);
    for (ahead, given) in [(1, next + 2), (2, next + 2), (3, next + 4)] {
        let mut workloads = maps.state().workloads.to_vec();
        workloads[0].policy[1].egress_epoch = store.generation() + ahead;
        let state = KernelState { workloads: &workloads, ..maps.state() };
        let plan = Store::adopt(LIMITS, &state).plan(&other, &host()).unwrap();
        let again = Store::adopt(LIMITS, &state).behind_a_spent_generation().plan(&other, &host()).unwrap();
        assert_eq!(again.generation, given, "by the same process, too");
        assert_eq!(plan.generation, given, "the other side is in force still, and the number is new");
    }
}

#[test]
fn no_policy_and_no_profile_denies() {
    check(&set(Vec::new()), |_| false, &all_flows());
    assert_eq!(takes(&set(Vec::new()), &flow("10.65.0.2", TCP, 1, 1)).1.reason, Reason::NoProfile);
}

#[test]
fn tiers() {
    let flows = all_flows();
    let two = |first: Vec<Rule>, second: Vec<Rule>| {
        set(vec![policy("a", "kube-admin", first), policy("b", "default", second)])
    };
    // A tier whose policies select somebody else has no effect.
    let mut elsewhere = two(vec![deny()], vec![allow()]);
    elsewhere.policies[0].selector = Selector::parse("role == 'nobody'").unwrap();
    check(&elsewhere, |_| true, &flows);
    // The first tier that decides decides.
    check(&two(vec![allow()], vec![deny()]), |_| true, &flows);
    check(&two(vec![deny()], vec![allow()]), |_| false, &flows);
    // A pass to nowhere denies, also where the profile would come next and there is none.
    check(&one(vec![pass(), allow()]), |_| false, &flows);
    assert_eq!(takes(&one(vec![pass(), allow()]), &flows[0]).1.reason, Reason::NoProfile);
    // What comes after a pass in its tier is not looked at.
    check(&two(vec![pass(), deny()], vec![allow()]), |_| true, &flows);
    check(&two(vec![pass(), allow()], vec![deny()]), |_| false, &flows);
    // The end of the tier: that of `default` denies, that of `kube-admin` passes.
    let end = takes(&one(Vec::new()), &flows[0]);
    assert_eq!((end.0, end.1.reason, end.1.tier.as_deref()), (false, Reason::TierDefault, Some("default")));
    check(&two(Vec::new(), vec![allow()]), |_| true, &flows);
    // An unknown tier comes last.
    check(&set(vec![policy("a", "zone", vec![deny()]), policy("b", "default", vec![allow()])]), |_| true, &flows);
    // A log decides nothing.
    check(&one(vec![rule(RuleAction::Log), allow()]), |_| true, &flows);
    assert_eq!(takes(&one(vec![rule(RuleAction::Log), allow()]), &flows[0]).1.rule, Some(1));
}

#[test]
fn order_of_policies() {
    let first_is = |policies: Vec<Policy>, name: &str| {
        let rule = takes(&set(policies), &flow("8.8.8.8", TCP, 1, 1)).1;
        assert_eq!(rule.policy.as_deref(), Some(name));
    };
    let with = |name: &str, order: Option<f64>| Policy { order, ..policy(name, "default", vec![allow()]) };
    first_is(vec![with("a", Some(2.0)), with("b", Some(1.5))], "b");
    first_is(vec![with("a", None), with("b", Some(1e9))], "b");
    first_is(vec![with("a", Some(0.0)), with("b", Some(-1.0))], "b");
    first_is(vec![with("b", Some(1.0)), with("a", Some(1.0))], "a");
    first_is(vec![with("b", None), with("a", None)], "a");
    // The tier's prefix does not count, and is shown as it was written.
    first_is(vec![with("default.b", None), with("c", None)], "default.b");
    first_is(vec![with("default.d", None), with("c", None)], "c");
}

#[test]
fn protocols() {
    let flows = all_flows();
    let with = |protocol, not_protocol| one(vec![Rule { protocol, not_protocol, ..allow() }]);
    check(&with(None, None), |_| true, &flows);
    for protocol in [TCP, UDP, ICMP, 253] {
        check(&with(Some(protocol), None), |flow| flow.protocol == protocol, &flows);
        check(&with(None, Some(protocol)), |flow| flow.protocol != protocol, &flows);
    }
    check(&with(Some(TCP), Some(TCP)), |_| false, &flows);
    for version in [4, 6] {
        let rules = vec![Rule { ip_version: Some(version), ..allow() }];
        check(&one(rules), |flow| flow.source.is_ipv4() == (version == 4), &flows);
    }
}

#[test]
fn networks() {
    let flows = all_flows();
    let entity = |nets: &[&str], not_nets: &[&str]| EntityRule {
        nets: nets.iter().map(|net| net.parse().unwrap()).collect(),
        not_nets: not_nets.iter().map(|net| net.parse().unwrap()).collect(),
        ..EntityRule::default()
    };
    let from = |nets: &[&str], not_nets: &[&str]| one(vec![Rule { source: entity(nets, not_nets), ..allow() }]);
    let to = |nets: &[&str], not_nets: &[&str]| one(vec![Rule { destination: entity(nets, not_nets), ..allow() }]);
    let is = |text: &'static str| move |flow: &Flow| flow.source.to_string().starts_with(text);
    check(&from(&["10.0.0.1/32"], &[]), is("10.0.0.1"), &flows);
    check(&from(&["10.0.0.0/8"], &[]), is("10."), &flows);
    check(&from(&["11.0.0.0/8", "10.65.0.2/31"], &[]), is("10.65.0."), &flows);
    // Host bits do not matter.
    check(&from(&["10.1.2.3/8"], &[]), is("10."), &flows);
    // A negated network limits the rule to its family.
    check(&from(&[], &["10.0.0.0/8"]), is("8."), &flows);
    check(&from(&[], &["10.65.0.0/16", "8.0.0.0/8"]), is("10.0.0.1"), &flows);
    check(&from(&[], &["10.0.0.0/8", "fd00::/8"]), |f| is("8.")(f) || is("2001:")(f), &flows);
    check(&from(&["10.0.0.0/8"], &["10.65.0.3/32"]), |f| is("10.0.0.1")(f) || is("10.65.0.2")(f), &flows);
    check(&from(&["10.0.0.0/8"], &["::/0"]), |_| false, &flows);
    check(&from(&[], &["0.0.0.0/0"]), |_| false, &flows);
    check(&from(&["0.0.0.0/0"], &[]), |f| f.source.is_ipv4(), &flows);
    check(&from(&["10.0.0.0/8", "fd00::/16"], &[]), |f| is("10.")(f) || is("fd00:")(f), &flows);
    check(&to(&["10.65.0.1/32"], &[]), |f| f.source.is_ipv4(), &flows);
    check(&to(&["10.65.0.2/32"], &[]), |_| false, &flows);
    check(&to(&[], &["10.65.0.0/24"]), |_| false, &flows);
}

#[test]
fn ports() {
    let range = |first, last| PortMatch::Range(first, last);
    let flows: Vec<Flow> = [0, 1, 79, 80, 81, 82, 443, 65534, 65535]
        .into_iter()
        .flat_map(|port| [flow("8.8.8.8", TCP, 5, port), flow("8.8.8.8", TCP, port, 5), flow("8.8.8.8", UDP, 5, port)])
        .chain([flow("8.8.8.8", ICMP, 0, 80), flow("8.8.8.8", 253, 0, 0)])
        .collect();
    for (ports, not_ports) in [
        (vec![range(80, 80)], vec![]),
        (vec![range(80, 81)], vec![]),
        (vec![range(0, 80)], vec![]),
        (vec![range(80, 65535)], vec![]),
        (vec![range(65535, 65535)], vec![]),
        (vec![range(79, 80), range(443, 443), range(80, 81)], vec![]),
        (vec![], vec![range(80, 80)]),
        (vec![], vec![range(0, 79), range(81, 65535)]),
        (vec![range(79, 443)], vec![range(80, 81)]),
        (vec![], vec![range(0, 65535)]),
    ] {
        let within = |list: &[PortMatch], port: u16| {
            list.iter().any(|p| matches!(p, PortMatch::Range(first, last) if (*first..=*last).contains(&port)))
        };
        let content = |port| (ports.is_empty() || within(&ports, port)) && !within(&not_ports, port);
        let entity = EntityRule { ports: ports.clone(), not_ports: not_ports.clone(), ..EntityRule::default() };
        let to = Rule { protocol: Some(TCP), destination: entity.clone(), ..allow() };
        check(&one(vec![to]), |flow| flow.protocol == TCP && content(flow.destination_port), &flows);
        let from = Rule { protocol: Some(TCP), source: entity, ..allow() };
        check(&one(vec![from]), |flow| flow.protocol == TCP && content(flow.source_port), &flows);
    }
    // Source and destination together, and one port of two protocols kept apart.
    let rules = vec![
        Rule {
            protocol: Some(TCP),
            source: EntityRule { ports: vec![range(5, 5)], ..EntityRule::default() },
            destination: EntityRule { ports: vec![range(80, 80)], ..EntityRule::default() },
            ..allow()
        },
        Rule {
            protocol: Some(UDP),
            destination: EntityRule { ports: vec![range(81, 81)], ..EntityRule::default() },
            ..allow()
        },
    ];
    let allowed = |f: &Flow| match f.protocol {
        TCP => f.source_port == 5 && f.destination_port == 80,
        UDP => f.destination_port == 81,
        _ => false,
    };
    check(&one(rules), allowed, &flows);
}

#[test]
fn selectors() {
    let flows = all_flows();
    let is = |text: &'static str| move |flow: &Flow| flow.source.to_string() == text;
    let a = |flow: &Flow| is("10.65.0.2")(flow) || is("fd00::2")(flow);
    let known = |flow: &Flow| a(flow) || is("10.65.0.3")(flow);
    let with = |selector: Option<&str>, not_selector: Option<&str>| {
        let parse = |text: Option<&str>| text.map(|text| Selector::parse(text).unwrap());
        EntityRule { selector: parse(selector), not_selector: parse(not_selector), ..EntityRule::default() }
    };
    let from = |entity: EntityRule| one(vec![Rule { source: entity, ..allow() }]);
    check(&from(with(Some("role == 'a'"), None)), a, &flows);
    // The empty set: nothing matches it, everything its negation.
    check(&from(with(Some("role == 'nobody'"), None)), |_| false, &flows);
    check(&from(with(None, Some("role == 'nobody'"))), |_| true, &flows);
    check(&from(with(None, Some("role == 'a'"))), |f| !a(f), &flows);
    // Negation inside of the selector needs a known endpoint, the negated selector does not.
    check(&from(with(Some("role != 'a'"), None)), is("10.65.0.3"), &flows);
    check(&from(with(Some("all()"), None)), known, &flows);
    check(&from(with(Some("all()"), Some("role == 'a'"))), is("10.65.0.3"), &flows);
    let to = |entity: EntityRule| one(vec![Rule { destination: entity, ..allow() }]);
    check(&to(with(Some("role == 'server'"), None)), |_| true, &flows);
    check(&to(with(Some("role == 'a'"), None)), |_| false, &flows);
    check(&to(with(None, Some("role == 'server'"))), |_| false, &flows);
}

#[test]
fn namespaces() {
    let flows = all_flows();
    let namespaced = |entity: EntityRule| {
        let rules = vec![Rule { source: entity, ..allow() }];
        let mut policy = Policy { kind: PolicyKind::Namespaced, ..policy("p", "default", rules) };
        policy.namespace = Some("x".to_owned());
        let mut set = set(vec![policy]);
        // `b` lives elsewhere, in a namespace with labels of its own.
        let b = &mut set.workloads[2];
        b.namespace = "y".to_owned();
        b.labels.insert("projectcalico.org/namespace".to_owned(), "y".to_owned());
        b.profiles.push("kns.y".to_owned());
        let mut profile = profile("kns.y", Vec::new(), Vec::new());
        profile.labels_to_apply.insert("pcns.kind".to_owned(), "prod".to_owned());
        set.profiles.push(profile);
        set
    };
    let selector = |text: &str| Some(Selector::parse(text).unwrap());
    let a = |f: &Flow| ["10.65.0.2", "fd00::2"].contains(&f.source.to_string().as_str());
    let b = |f: &Flow| f.source.to_string() == "10.65.0.3";
    check(&namespaced(EntityRule { selector: selector("has(role)"), ..EntityRule::default() }), a, &flows);
    // A negated selector alone limits the rule to the namespace, too.
    check(&namespaced(EntityRule { not_selector: selector("role == 'z'"), ..EntityRule::default() }), a, &flows);
    let other = |text| EntityRule {
        namespace_selector: selector(text),
        selector: selector("has(role)"),
        ..EntityRule::default()
    };
    check(&namespaced(other("kind == 'prod'")), b, &flows);
    check(&namespaced(other("all()")), |f| a(f) || b(f), &flows);
    check(&namespaced(other("global()")), |_| false, &flows);
    check(&namespaced(EntityRule::default()), |_| true, &flows);
    // A policy of another namespace selects nothing here.
    let mut elsewhere = namespaced(EntityRule::default());
    elsewhere.policies[0].namespace = Some("y".to_owned());
    check(&elsewhere, |_| false, &flows);
    assert_eq!(takes(&elsewhere, &flows[0]).1.reason, Reason::NoProfile);
}

#[test]
fn named_ports() {
    let name = |name: &str| PortMatch::Named(name.to_owned());
    let with = |rule: Rule| {
        let mut set = one(vec![rule]);
        let port = |name: &str, protocol, port| NamedPort { name: name.to_owned(), protocol, port };
        set.workloads[0].ports =
            vec![port("http", TCP, 8080), port("http", TCP, 8081), port("dns", UDP, 53), port("dns", TCP, 54)];
        set.workloads[1].ports = vec![port("client", TCP, 1234), port("http", TCP, 9999)];
        set
    };
    let flows: Vec<Flow> = [53, 54, 80, 1234, 8080, 8081, 9999]
        .into_iter()
        .flat_map(|port| {
            ["10.65.0.2", "10.65.0.3", "8.8.8.8", "fd00::2"].into_iter().flat_map(move |source| {
                [flow(source, TCP, 1, port), flow(source, UDP, 1, port), flow(source, TCP, port, 1)]
            })
        })
        .collect();
    let to = |protocol, ports: Vec<PortMatch>, not_ports: Vec<PortMatch>| {
        let destination = EntityRule { ports, not_ports, ..EntityRule::default() };
        with(Rule { protocol: Some(protocol), destination, ..allow() })
    };
    let tcp_to = |ports: &'static [u16]| move |f: &Flow| f.protocol == TCP && ports.contains(&f.destination_port);
    check(&to(TCP, vec![name("http")], vec![]), tcp_to(&[8080, 8081]), &flows);
    check(
        &to(TCP, vec![name("http"), PortMatch::Range(80, 80), name("dns")], vec![]),
        tcp_to(&[54, 80, 8080, 8081]),
        &flows,
    );
    check(&to(UDP, vec![name("dns")], vec![]), |f| f.protocol == UDP && f.destination_port == 53, &flows);
    check(&to(UDP, vec![name("http")], vec![]), |_| false, &flows);
    check(&to(TCP, vec![], vec![name("http")]), |f| f.protocol == TCP && !tcp_to(&[8080, 8081])(f), &flows);
    check(&to(TCP, vec![name("http")], vec![PortMatch::Range(8081, 9000)]), tcp_to(&[8080]), &flows);
    check(&to(TCP, vec![PortMatch::Range(8000, 9000)], vec![name("http")]), |_| false, &flows);
    let source = EntityRule { ports: vec![name("client")], ..EntityRule::default() };
    let from_a = |f: &Flow| ["10.65.0.2", "fd00::2"].contains(&f.source.to_string().as_str());
    check(
        &with(Rule { protocol: Some(TCP), source, ..allow() }),
        |f| f.protocol == TCP && f.source_port == 1234 && from_a(f),
        &flows,
    );
    // With a selector, the name means the ports of those endpoints.
    let source = EntityRule {
        ports: vec![name("http")],
        selector: Some(Selector::parse("role == 'b'").unwrap()),
        ..EntityRule::default()
    };
    check(&with(Rule { protocol: Some(TCP), source, ..allow() }), |_| false, &flows);
    // However many rules it takes, it is one rule to people.
    let (_, maps) = fresh(&to(TCP, vec![name("http"), name("dns")], vec![]));
    let names = maps.state().rule_names.values().filter(|rule| rule.reason == Reason::Rule).count();
    assert_eq!(names, 1);
}

#[test]
fn icmp() {
    let packet = |protocol, kind: u16, code: u16| {
        flow(if protocol == ICMP { "8.8.8.8" } else { "2001:db8::1" }, protocol, 0, kind << 8 | code)
    };
    let mut flows: Vec<Flow> = [(0, 0), (8, 0), (8, 3), (3, 3), (255, 255)]
        .into_iter()
        .flat_map(|(kind, code)| [packet(ICMP, kind, code), packet(58, kind, code)])
        .collect();
    flows.push(flow("8.8.8.8", TCP, 1, 8 << 8));
    let with = |icmp, not_icmp| one(vec![Rule { protocol: Some(ICMP), icmp, not_icmp, ..allow() }]);
    let is = |f: &Flow, kind: u16| f.protocol == ICMP && f.destination_port >> 8 == kind;
    let code = |f: &Flow, code: u16| f.destination_port & 0xff == code;
    check(&with(Some((8, None)), None), |f| is(f, 8), &flows);
    check(&with(Some((8, Some(3))), None), |f| is(f, 8) && code(f, 3), &flows);
    check(&with(None, Some((8, None))), |f| f.protocol == ICMP && !is(f, 8), &flows);
    check(&with(None, Some((8, Some(3)))), |f| f.protocol == ICMP && !(is(f, 8) && code(f, 3)), &flows);
    check(&with(Some((8, None)), Some((8, Some(3)))), |f| is(f, 8) && code(f, 0), &flows);
}

/// All fields in one rule (Calico's `TestLoadKitchenSinkPolicy`): it matches one flow, and none that is not quite like it.
#[test]
fn all_fields_together() {
    let selector = |text: &str| Some(Selector::parse(text).unwrap());
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let range = |first, last| PortMatch::Range(first, last);
    let name = |name: &str| PortMatch::Named(name.to_owned());
    let everything = Rule {
        ip_version: Some(4),
        protocol: Some(TCP),
        not_protocol: Some(UDP),
        source: EntityRule {
            nets: nets(&["10.65.0.0/24", "192.0.2.0/24"]),
            not_nets: nets(&["10.65.0.3/32"]),
            selector: selector("has(role)"),
            not_selector: selector("role == 'b'"),
            namespace_selector: selector("!has(nothing)"),
            ports: vec![range(1000, 2000), name("client")],
            not_ports: vec![range(1500, 1500), name("client")],
        },
        destination: EntityRule {
            nets: nets(&["10.65.0.1/32"]),
            not_nets: nets(&["10.65.0.128/25"]),
            selector: selector("role == 'server'"),
            not_selector: selector("role == 'a'"),
            namespace_selector: selector("all()"),
            ports: vec![name("http"), range(80, 90)],
            not_ports: vec![range(85, 85), name("none")],
        },
        ..allow()
    };
    let mut set = one(vec![everything.clone(), Rule { action: RuleAction::Log, ..everything }, pass()]);
    let port = |name: &str, port| NamedPort { name: name.to_owned(), protocol: TCP, port };
    set.workloads[0].ports = vec![port("http", 8080)];
    set.workloads[1].ports = vec![port("client", 1700), port("client", 3000)];
    let good = flow("10.65.0.2", TCP, 1000, 80);
    check(&set, |_| true, &[good, flow("10.65.0.2", TCP, 2000, 8080), flow("10.65.0.2", TCP, 1499, 90)]);
    let not_quite = [
        Flow { source: "10.65.0.3".parse().unwrap(), ..good },
        Flow { source: "192.0.2.1".parse().unwrap(), ..good },
        flow("fd00::2", TCP, 1000, 80),
        Flow { protocol: UDP, ..good },
        Flow { source_port: 999, ..good },
        Flow { source_port: 1500, ..good },
        Flow { source_port: 1700, ..good },
        Flow { source_port: 3000, ..good },
        Flow { destination_port: 79, ..good },
        Flow { destination_port: 85, ..good },
        Flow { destination_port: 8081, ..good },
    ];
    for flow in &not_quite {
        assert_eq!(takes(&set, flow).1.reason, Reason::NoProfile, "{flow:?}");
    }
}

/// Calico's `ingress_egress_test`.
#[test]
fn directions_and_types() {
    let from_to = |source: &str, destination: &str| Flow {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        protocol: TCP,
        source_port: 49152,
        destination_port: 80,
    };
    let (w0, w1, w2) = ("10.65.0.10", "10.65.0.11", "10.65.0.12");
    let base = |policies: Vec<Policy>| ResourceSet {
        workloads: vec![
            workload("w0", NODE, &[w0], &[("name", "w0")], &["open"]),
            workload("w1", NODE, &[w1], &[("name", "w1")], &["open"]),
            workload("w2", NODE, &[w2], &[("name", "w2")], &["open"]),
        ]
        .into(),
        ..set(policies)
    };
    let of_w0 = |ingress: Vec<Rule>, egress: Vec<Rule>, types: &str| Policy {
        selector: Selector::parse("name == 'w0'").unwrap(),
        egress,
        applies_ingress: types.contains('i'),
        applies_egress: types.contains('e'),
        ..policy("p", "default", ingress)
    };
    let w1_only = EntityRule { selector: Some(Selector::parse("name == 'w1'").unwrap()), ..EntityRule::default() };
    let from_w1 = || Rule { source: w1_only.clone(), ..allow() };
    let to_w1 = || Rule { destination: w1_only.clone(), ..allow() };
    // Which flows pass: w1 -> w0, w2 -> w0, w0 -> w1, w0 -> w2; those between the others always do.
    for (policies, passing) in [
        (vec![], [true, true, true, true]),
        (vec![of_w0(vec![from_w1()], vec![], "i")], [true, false, true, true]),
        (vec![of_w0(vec![], vec![to_w1()], "e")], [true, true, true, false]),
        (vec![of_w0(vec![from_w1()], vec![], "ie")], [true, false, false, false]),
        (vec![of_w0(vec![allow()], vec![deny()], "i")], [true, true, true, true]),
        (vec![of_w0(vec![allow()], vec![deny()], "ie")], [true, true, false, false]),
        (vec![of_w0(vec![], vec![], "i")], [false, false, true, true]),
    ] {
        let set = base(policies);
        let (_, maps) = fresh(&set);
        let flows = [(w1, w0), (w2, w0), (w0, w1), (w0, w2), (w1, w2), (w2, w1)].map(|(s, d)| from_to(s, d));
        for (flow, pass) in flows.iter().zip(passing.into_iter().chain([true, true])) {
            let verdict = maps.judge(flow);
            assert_eq!(verdict, expected(&set, flow));
            assert_eq!(verdict.allow(), pass, "{flow:?} {verdict:?}");
        }
    }
}

/// Profiles come in the workload's order; a pass in them denies, and so does one that does not exist.
#[test]
fn profiles() {
    let with = |names: &[&str]| {
        let mut set = set(Vec::new());
        set.workloads[0].profiles = names.iter().map(|&name| name.to_owned()).collect();
        set.profiles.push(profile("tcp", vec![Rule { protocol: Some(TCP), ..allow() }], vec![]));
        set.profiles.push(profile("no-tcp", vec![Rule { protocol: Some(TCP), ..deny() }], vec![]));
        set.profiles.push(profile("pass", vec![pass()], vec![]));
        set
    };
    let flows = all_flows();
    let tcp = |f: &Flow| f.protocol == TCP;
    check(&with(&["tcp"]), tcp, &flows);
    check(&with(&["missing", "tcp"]), |_| false, &flows);
    check(&with(&["tcp", "missing", "open"]), tcp, &flows);
    check(&with(&["tcp", "no-tcp", "open"]), |_| true, &flows);
    check(&with(&["no-tcp", "tcp", "open"]), |f| !tcp(f), &flows);
    check(&with(&["pass", "open"]), |_| false, &flows);
    assert_eq!(takes(&with(&["pass", "open"]), &flows[0]).1.policy.as_deref(), Some("pass"));
    // Labels of profiles count, the workload's own first.
    let mut set = with(&["open"]);
    set.profiles[0].labels_to_apply =
        Labels::from([("role".to_owned(), "open".to_owned()), ("extra".to_owned(), "1".to_owned())]);
    set.policies = vec![policy("p", "default", vec![]).into()];
    for (selector, selects) in [("extra == '1'", true), ("role == 'open'", false), ("role == 'server'", true)] {
        set.policies[0].selector = Selector::parse(selector).unwrap();
        check(&set, |_| !selects, &flows);
    }
}
