//! What does not fit is refused, never cut.

use super::{LIMITS, NODE, cases, expected, host};
use crate::{
    policy::{
        compile::compile,
        flow::Flow,
        maps::Maps,
        store::Store,
        write::{LimitError, Limits},
    },
    resources::model::{ResourceSet, Rule, RuleAction},
};

fn plan(set: &ResourceSet, limits: Limits) -> Result<(), LimitError> {
    Store::empty(limits).plan(&compile(set, NODE), &host()).map(drop)
}

fn what_is_too_much(set: &ResourceSet, limits: Limits) -> &'static str {
    match plan(set, limits) {
        Err(LimitError::Count { what, needed, limit }) => {
            assert!(needed > limit);
            what
        }
        other => panic!("{other:?}"),
    }
}

/// One rule for each of `count` source networks.
fn rules(count: u16, action: RuleAction) -> Vec<Rule> {
    let rule = |number: u16| {
        let mut rule = cases::rule(action);
        let [a, b] = number.to_be_bytes();
        rule.source.nets.push(format!("172.{a}.{b}.0/24").parse().unwrap());
        rule
    };
    (0..count).map(rule).collect()
}

#[test]
fn each_map_has_its_limit() {
    let set = cases::one(rules(10, RuleAction::Allow));
    assert_eq!(plan(&set, LIMITS), Ok(()));
    assert_eq!(what_is_too_much(&set, Limits { slots: 1, ..LIMITS }), "workloads and host endpoints on this node");
    assert_eq!(what_is_too_much(&set, Limits { counters: 10, ..LIMITS }), "rules with a counter");
    assert_eq!(what_is_too_much(&set, Limits { classes: 11, ..LIMITS }), "classes of addresses");
    assert!(what_is_too_much(&set, Limits { addresses4: 2, ..LIMITS }).starts_with("IPv4 addresses"));
    let mut v6 = set.clone();
    v6.policies[0].ingress[0].source.nets = vec!["fd00:1::/64".parse().unwrap(), "fd00:2::/64".parse().unwrap()];
    assert!(what_is_too_much(&v6, Limits { nets: 1, ..LIMITS }).starts_with("IPv6 networks"));
    assert!(matches!(plan(&set, Limits { blocks: 60, ..LIMITS }), Err(LimitError::Blocks { limit: 60, .. })));
    let mut spoofing = set.clone();
    spoofing.workloads[0].allow_spoofed_source_prefixes = vec!["10.0.0.0/8".parse().unwrap()];
    assert_eq!(plan(&spoofing, LIMITS), Ok(()));
    assert_eq!(what_is_too_much(&spoofing, Limits { spoof: 0, ..LIMITS }), "allowed spoofed source prefixes");
}

#[test]
fn tables_that_the_judge_cannot_follow() {
    // 64 rules that only log, and no more.
    assert_eq!(plan(&cases::one(rules(64, RuleAction::Log)), LIMITS), Ok(()));
    let too_many = plan(&cases::one(rules(65, RuleAction::Log)), LIMITS);
    assert!(matches!(too_many, Err(LimitError::Detours { needed: 65, limit: 64, .. })), "{too_many:?}");
    // With the profile's rule, the end of the tier and that of the profiles, it is one too many.
    let longest = u16::MAX - 2;
    let too_long = plan(&cases::one(rules(longest + 1, RuleAction::Allow)), LIMITS);
    assert!(matches!(too_long, Err(LimitError::Rules { needed: 65_537, limit: 65_536, .. })), "{too_long:?}");
}

#[test]
fn the_longest_table() {
    let longest = u16::MAX - 2;
    let set = cases::one(rules(longest, RuleAction::Allow));
    let limits = Limits { blocks: 1 << 20, nets: 1 << 17, classes: 1 << 17, counters: 1 << 17, ..LIMITS };
    let plan = Store::empty(limits).plan(&compile(&set, NODE), &host()).unwrap();
    let mut maps = Maps::default();
    maps.execute(&plan);
    for number in [0, 511, 512, 32_768, longest - 1] {
        let [a, b] = number.to_be_bytes();
        let flow = Flow {
            source: [172, a, b, 1].into(),
            destination: [10, 65, 0, 4].into(),
            protocol: 6,
            source_port: 1,
            destination_port: 2,
        };
        let verdict = maps.judge(&flow);
        assert_eq!(verdict, expected(&set, &flow));
        assert_eq!(verdict.destination.unwrap().rule.rule, Some(number.into()));
    }
}
