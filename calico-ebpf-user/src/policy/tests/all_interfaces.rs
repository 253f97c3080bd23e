//! The host endpoint of all interfaces, and what workloads send and receive.

use std::net::IpAddr;

use super::{
    NODE,
    cases::{self, rule},
    expected, fresh, host, origin,
};
use crate::{
    policy::{
        compile::compile,
        compiled::{Compiled, Direction, Reason},
        flow::{EndVerdict, Flow},
        maps::Maps,
    },
    resources::{
        model::{HostEndpoint, HostInterface, Labels, Policy, PolicyHook, PortMatch, ResourceSet, Rule, RuleAction},
        selector::Selector,
    },
};

/// A workload of this node that may do everything, one elsewhere, and an address of the host.
const C: &str = "10.65.0.4";
const ELSEWHERE: &str = "10.65.0.2";
const HOST: &str = "10.0.0.254";
const FAR: &str = "198.51.100.7";

fn to_port(action: RuleAction, port: u16) -> Rule {
    let mut rule = Rule { protocol: Some(6), ..rule(action) };
    rule.destination.ports = vec![PortMatch::Range(port, port)];
    rule
}

fn policy(name: &str, hook: PolicyHook, ingress: Vec<Rule>, egress: Vec<Rule>) -> Policy {
    let before = cases::one(Vec::new()).policies[0].clone();
    Policy {
        name: name.to_owned(),
        selector: Selector::parse("role == 'edge'").unwrap(),
        applies_ingress: !ingress.is_empty(),
        applies_egress: !egress.is_empty(),
        ingress,
        egress,
        hook,
        ..Policy::clone(&before)
    }
}

fn set(interface: HostInterface, policies: Vec<Policy>) -> ResourceSet {
    let mut set = cases::one(Vec::new());
    set.policies = policies.into_iter().map(Into::into).collect();
    let endpoint = HostEndpoint {
        name: "all".to_owned(),
        node: NODE.to_owned(),
        interface,
        expected_ips: Vec::new(),
        profiles: Vec::new(),
        ports: Vec::new(),
        labels: Labels::from([("role".to_owned(), "edge".to_owned())]),
        origin: origin(),
    };
    set.host_endpoints.insert(endpoint.name.clone(), endpoint.into());
    set
}

fn flow(source: &str, destination: &str, port: u16) -> Flow {
    let [source, destination] = [source, destination].map(|address| address.parse::<IpAddr>().unwrap());
    Flow { source, destination, protocol: 6, source_port: 1000, destination_port: port }
}

/// The ends of a flow to a port, as tables and evaluator say.
fn judged(set: &ResourceSet, maps: &Maps, flow: &Flow) -> [Option<EndVerdict>; 2] {
    let verdict = maps.judge(flow);
    assert_eq!(verdict, expected(set, flow), "{flow:?}");
    [verdict.source, verdict.destination]
}

fn allowed(set: &ResourceSet, source: &str, destination: &str, port: u16) -> bool {
    judged(set, &fresh(set).1, &flow(source, destination, port)).iter().flatten().all(|end| end.allow)
}

#[test]
fn policy_of_what_comes_in_judges_what_workloads_send() {
    for hook in [PolicyHook::PreDnat, PolicyHook::Forward] {
        let deny = || vec![to_port(RuleAction::Deny, 80), rule(RuleAction::Allow)];
        let all = set(HostInterface::All, vec![policy("p", hook, deny(), Vec::new())]);
        for to in [C, ELSEWHERE, FAR] {
            assert!(!allowed(&all, C, to, 80), "{to}");
            assert!(allowed(&all, C, to, 81), "{to}");
        }
        for to in [HOST, "224.0.0.251", "255.255.255.255", "127.0.0.1"] {
            assert!(allowed(&all, C, to, 80), "{to} is no way through the host");
        }
        assert!(allowed(&all, FAR, C, 80), "it does not come in by the workload's interface");
        let [end, _] = judged(&all, &fresh(&all).1, &flow(C, FAR, 80)).map(|end| end.map(|end| end.rule));
        let end = end.unwrap();
        assert_eq!((end.direction, end.policy.as_deref(), end.rule), (Direction::Ingress, Some("p"), Some(0)));
        // A named interface is no workload's.
        let named = set(HostInterface::Named("eth0".to_owned()), vec![policy("p", hook, deny(), Vec::new())]);
        assert!(allowed(&named, C, FAR, 80));
    }
}

#[test]
fn the_end_of_a_tier_denies_only_behind_dnat() {
    let only = || vec![to_port(RuleAction::Allow, 80)];
    let before = set(HostInterface::All, vec![policy("p", PolicyHook::PreDnat, only(), Vec::new())]);
    assert!(allowed(&before, C, FAR, 81));
    let forward = set(HostInterface::All, vec![policy("p", PolicyHook::Forward, only(), Vec::new())]);
    assert!(allowed(&forward, C, FAR, 80));
    assert!(!allowed(&forward, C, FAR, 81));
    let [end, _] = judged(&forward, &fresh(&forward).1, &flow(C, FAR, 81));
    assert_eq!(end.map(|end| end.rule.reason), Some(Reason::TierDefault));
    // What is allowed before DNAT is asked nothing more there, but the workload is asked.
    let both = vec![
        policy("a", PolicyHook::PreDnat, vec![to_port(RuleAction::Allow, 81)], Vec::new()),
        policy("b", PolicyHook::Forward, only(), Vec::new()),
    ];
    let both = set(HostInterface::All, both);
    assert!(allowed(&both, C, FAR, 81));
    assert!(!allowed(&both, C, FAR, 82));
    assert!(!allowed(&both, "10.65.0.1", FAR, 81), "it has no profile");
}

#[test]
fn policy_of_what_leaves_judges_what_workloads_receive() {
    let egress = || vec![to_port(RuleAction::Deny, 80), rule(RuleAction::Allow)];
    let forward = set(HostInterface::All, vec![policy("p", PolicyHook::Forward, Vec::new(), egress())]);
    assert!(!allowed(&forward, FAR, C, 80));
    assert!(!allowed(&forward, C, C, 80), "between workloads");
    assert!(allowed(&forward, FAR, C, 81));
    assert!(allowed(&forward, C, FAR, 80), "what leaves by other interfaces is asked about there");
    let normal = set(HostInterface::All, vec![policy("p", PolicyHook::Normal, egress(), egress())]);
    assert!(allowed(&normal, FAR, C, 80));
    assert!(allowed(&normal, C, FAR, 80));
}

#[test]
fn where_it_does_not_judge_tables_are_what_they_were() {
    let without = compile(&cases::one(Vec::new()), NODE);
    let normal = policy("p", PolicyHook::Normal, vec![rule(RuleAction::Deny)], vec![rule(RuleAction::Deny)]);
    let with = compile(&set(HostInterface::All, vec![normal]), NODE);
    let rules = |compiled: &Compiled| -> Vec<usize> {
        let of = |table: usize| compiled.tables[table].rules.len();
        compiled.workloads.values().flat_map(|workload| [of(workload.egress), of(workload.ingress)]).collect()
    };
    assert_eq!(with.host_condition, None);
    // The set without one has a policy, which has no rules, of all workloads.
    assert!(rules(&with).iter().zip(rules(&without)).all(|(with, without)| *with <= without));
}

#[test]
fn host_endpoints_can_be_opened_again() {
    let mut without = set(HostInterface::All, Vec::new());
    let policies = vec![
        policy("a", PolicyHook::PreDnat, vec![rule(RuleAction::Pass), rule(RuleAction::Deny)], Vec::new()),
        policy("b", PolicyHook::Forward, vec![rule(RuleAction::Deny)], vec![rule(RuleAction::Deny)]),
    ];
    let mut tier = cases::one(vec![rule(RuleAction::Pass), rule(RuleAction::Deny)]).policies[0].clone();
    tier.applies_egress = true;
    tier.egress = vec![to_port(RuleAction::Pass, 80), rule(RuleAction::Deny)];
    without.policies.push(tier.clone());
    let mut with = set(HostInterface::All, policies);
    with.policies.push(tier);
    assert!(!allowed(&with, C, FAR, 80) && !allowed(&with, FAR, C, 80));
    let opened = compile(&with, NODE).with_open_host_endpoints();
    assert!(opened.host_endpoints.is_empty());
    let maps = Maps::of(&opened, &host()).unwrap();
    for (source, destination) in [(C, FAR), (FAR, C), (C, C), (C, HOST)] {
        for port in [80, 81] {
            let flow = flow(source, destination, port);
            assert_eq!(maps.judge(&flow), expected(&without, &flow), "{flow:?}");
        }
    }
}
