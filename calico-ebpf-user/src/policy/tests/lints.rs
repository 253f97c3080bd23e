//! A rule that is said never to decide never does.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{cases, generate::Random};
use crate::{
    policy::{
        compiled::Direction,
        evaluate::evaluate,
        flow::{EndVerdict, Flow},
        lint,
    },
    resources::{
        Remark,
        model::{PortMatch, ResourceSet, Rule, RuleAction},
    },
};

/// Without the policies that differ from others in nothing but their tiers: files cannot have them.
fn named_apart(mut set: ResourceSet) -> ResourceSet {
    let mut seen = BTreeSet::new();
    set.policies.retain(|policy| seen.insert((policy.kind, policy.namespace.clone(), policy.name.clone())));
    set
}

/// `RESOURCE FIELD` of the rules that never do anything.
fn dead(remarks: &[Remark]) -> BTreeSet<String> {
    let never = remarks.iter().filter(|remark| remark.message.starts_with("never"));
    never.map(|remark| format!("{} {}", remark.resource, remark.fields[0])).collect()
}

/// `RESOURCE FIELD` of the rule that decided.
fn deciding(end: &EndVerdict) -> Option<String> {
    let rule = &end.rule;
    let namespace = rule.namespace.as_ref().map_or(String::new(), |namespace| format!("{namespace}/"));
    let (kind, policy, number) = (rule.kind.as_ref()?, rule.policy.as_ref()?, rule.rule?);
    Some(format!("{kind}/{namespace}{policy} spec.{}[{number}]", rule.direction.as_str()))
}

fn decided(set: &ResourceSet, flow: &Flow) -> Vec<String> {
    let verdict = evaluate(set, flow);
    [verdict.source, verdict.destination].iter().flatten().filter_map(deciding).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn dead_rules_never_decide(seed in any::<u64>()) {
        let mut random = Random(seed);
        let set = named_apart(random.set());
        let remarks = lint(&set);
        let dead = dead(&remarks);
        for flow in random.flows(400) {
            for rule in decided(&set, &flow) {
                prop_assert!(!dead.contains(&rule), "{} is not dead: {:?}", rule, flow);
            }
        }
    }
}

/// Of rules that no flow out of all that the random resources tell apart is decided by, most are found.
#[test]
fn most_dead_rules_are_found() {
    let (mut found, mut silent) = (0, 0);
    for seed in 0..150 {
        let mut random = Random(seed);
        let mut set = random.set();
        // Several that surely have something to do with each other.
        for _ in 0..6 {
            random.change(&mut set);
        }
        let set = named_apart(set);
        let remarks = lint(&set);
        let mut alive = BTreeSet::new();
        for flow in random.flows(3_000) {
            alive.extend(decided(&set, &flow));
        }
        let dead = dead(&remarks);
        assert!(alive.is_disjoint(&dead), "seed {seed}: {:?}", alive.intersection(&dead));
        found += dead.len();
        let explained: BTreeSet<_> =
            remarks.iter().map(|remark| format!("{} {}", remark.resource, remark.fields[0])).collect();
        for policy in &set.policies {
            let namespace = policy.namespace.as_ref().map_or(String::new(), |namespace| format!("{namespace}/"));
            let resource = format!("{}/{namespace}{}", policy.kind.as_str(), policy.name);
            for (direction, rules) in [(Direction::Ingress, &policy.ingress), (Direction::Egress, &policy.egress)] {
                for (number, rule) in rules.iter().enumerate() {
                    let name = format!("{resource} spec.{}[{number}]", direction.as_str());
                    let about =
                        |text: &String| text.starts_with(&name) || text.starts_with(&format!("{resource} spec.s"));
                    if rule.action == RuleAction::Allow && !alive.contains(&name) && !explained.iter().any(about) {
                        silent += 1;
                    }
                }
            }
        }
    }
    println!("{found} dead rules found, {silent} more that decided nothing");
    assert!(found > 100, "{found}");
}

fn messages(set: &ResourceSet) -> Vec<String> {
    lint(set).into_iter().map(|remark| format!("{}: {}", remark.fields[0], remark.message)).collect()
}

fn rule(action: RuleAction, change: impl FnOnce(&mut Rule)) -> Rule {
    let mut rule = cases::rule(action);
    change(&mut rule);
    rule
}

fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn what_is_decided_before() {
    use RuleAction::{Allow, Deny, Log, Pass};
    let tcp = |first, last| {
        move |rule: &mut Rule| {
            rule.protocol = Some(6);
            rule.destination.ports = vec![PortMatch::Range(first, last)];
        }
    };
    let from = |texts: &'static [&str]| move |rule: &mut Rule| rule.source.nets = nets(texts);
    for (rules, dead) in [
        (vec![rule(Allow, |_| {}), rule(Deny, tcp(1, 2))], vec![1]),
        (vec![rule(Log, |_| {}), rule(Deny, tcp(1, 2))], vec![]),
        (vec![rule(Pass, |_| {}), rule(Deny, tcp(1, 2)), rule(Log, |_| {})], vec![1, 2]),
        // Two together.
        (vec![rule(Allow, tcp(1, 10)), rule(Deny, tcp(11, 20)), rule(Allow, tcp(5, 15))], vec![2]),
        (vec![rule(Allow, tcp(1, 10)), rule(Deny, tcp(12, 20)), rule(Allow, tcp(5, 15))], vec![]),
        (vec![rule(Allow, from(&["10.0.0.0/8"])), rule(Deny, from(&["10.1.0.0/16", "10.2.0.0/16"]))], vec![1]),
        (vec![rule(Allow, from(&["10.1.0.0/16"])), rule(Deny, from(&["10.0.0.0/8"]))], vec![]),
        (vec![rule(Allow, from(&["0.0.0.0/0"])), rule(Deny, from(&["10.0.0.0/8"])), rule(Deny, |_| {})], vec![1]),
        (vec![rule(Allow, from(&["0.0.0.0/0"])), rule(Allow, from(&["::/0"])), rule(Deny, |_| {})], vec![2]),
        // In both dimensions, one after the other.
        (
            vec![
                rule(Allow, |rule| {
                    tcp(1, 100)(rule);
                    rule.source.nets = nets(&["10.0.0.0/8"]);
                }),
                rule(Allow, |rule| {
                    tcp(1, 100)(rule);
                    rule.source.not_nets = nets(&["10.0.0.0/8"]);
                }),
                rule(Deny, |rule| {
                    tcp(7, 7)(rule);
                    rule.ip_version = Some(4);
                }),
                rule(Deny, tcp(7, 7)),
            ],
            vec![2],
        ),
        // What contradicts itself.
        (
            vec![rule(Allow, |rule| {
                tcp(80, 80)(rule);
                rule.destination.not_ports = vec![PortMatch::Range(1, 100)];
            })],
            vec![0],
        ),
        (
            vec![rule(Allow, |rule| {
                rule.source.nets = nets(&["10.0.0.0/16"]);
                rule.source.not_nets = nets(&["10.0.0.0/8"]);
            })],
            vec![0],
        ),
        (
            vec![rule(Allow, |rule| {
                rule.protocol = Some(6);
                rule.not_protocol = Some(6);
            })],
            vec![0],
        ),
    ] {
        let set = cases::one(rules);
        let found = messages(&set);
        let never: Vec<_> = found.iter().filter(|message| message.contains("never")).collect();
        let expected: Vec<_> = dead.iter().map(|number| format!("spec.ingress[{number}]: ")).collect();
        assert_eq!(never.len(), expected.len(), "{never:?}");
        for (message, start) in never.iter().zip(&expected) {
            assert!(message.starts_with(start.as_str()), "{message}");
        }
    }
}
