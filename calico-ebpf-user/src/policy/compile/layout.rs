//! The order of the rules in a table.

use std::{ops::Range, sync::Arc};

use calico_ebpf_common::abi::Action;

use super::{
    expansions::{Does, Expansion},
    tables::{Through, TierRules},
};
use crate::{
    policy::compiled::{Direction, Reason, RuleMatch, RuleName, Table, TableRule},
    resources::model::{DenyAction, RuleAction},
};

/// One rule after the other: failsafe ports, policies before DNAT, tiers, then profiles. Which of them are policies before DNAT.
pub(super) fn lay_out(
    rules: &mut Vec<TableRule>,
    failsafes: Option<&Arc<Expansion>>,
    before: &[TierRules<'_>],
    tiers: &[TierRules<'_>],
    profiles: Option<&[Arc<Expansion>]>,
    direction: Direction,
    deny_action: DenyAction,
) -> Range<u16> {
    let denial = |own| denial(own, deny_action);
    rules.extend(failsafes.iter().flat_map(|failsafes| &failsafes.rules).map(|expanded| rule(Action::Allow, expanded)));
    let before_dnat = lay_out_before_dnat(rules, before, direction, deny_action);
    lay_out_tiers(rules, tiers, true, direction, deny_action);
    let Some(profiles) = profiles else {
        rules.push(default_rule(Action::Allow, direction, Reason::NoPolicy, None));
        return before_dnat;
    };
    rules.extend(profiles.iter().flat_map(|profile| &profile.rules).map(|expanded| {
        let (action, own) = expanded.0;
        let action = match action {
            RuleAction::Allow => Action::Allow,
            RuleAction::Log => Action::Log,
            // There is no tier after the profiles.
            RuleAction::Deny | RuleAction::Pass => denial(own),
        };
        rule(action, expanded)
    }));
    rules.push(default_rule(denial(None), direction, Reason::NoProfile, None));
    before_dnat
}

/// Untracked policy: failsafe ports, then tiers. What is denied is so in silence, and what no rule decides is
/// left to the policy behind: neither a tier nor the whole has an end that denies.
pub(super) fn lay_out_untracked(failsafes: &[Arc<Expansion>], tiers: &[TierRules<'_>], direction: Direction) -> Table {
    let of_failsafes = failsafes.iter().flat_map(|failsafe| &failsafe.rules);
    let mut rules: Vec<TableRule> = of_failsafes.map(|expanded| rule(Action::Leave, expanded)).collect();
    for TierRules { policies, .. } in tiers {
        let expanded: Vec<_> = policies.iter().flat_map(|policy| &policy.rules).collect();
        let next = u16::try_from(rules.len() + expanded.len()).unwrap_or(u16::MAX);
        rules.extend(expanded.into_iter().map(|expanded| match expanded.0.0 {
            RuleAction::Allow => rule(Action::Allow, expanded),
            RuleAction::Deny => rule(Action::Deny, expanded),
            RuleAction::Log => rule(Action::Log, expanded),
            RuleAction::Pass => TableRule { next, ..rule(Action::Pass, expanded) },
        }));
    }
    rules.push(default_rule(Action::Leave, direction, Reason::Undecided, None));
    Table { rules, of_host_endpoint: 0, before_dnat: 0..0 }
}

/// The first rules of a workload's table: what the host endpoint of all interfaces denies. All else passes on to the workload's
/// own, which come next. With those of policy before DNAT.
pub(super) fn lay_out_through(through: &Through<'_>, deny_action: DenyAction) -> (Vec<TableRule>, Range<u16>) {
    let Through { direction, to_host, before, forward } = through;
    let mut rules = Vec::new();
    let to_host = to_host.iter().flat_map(|expansion| &expansion.rules);
    rules.extend(to_host.map(|expanded| rule(Action::Allow, expanded)));
    let before_dnat = lay_out_before_dnat(&mut rules, before, *direction, deny_action);
    lay_out_tiers(&mut rules, forward, true, *direction, deny_action);
    let own = index_of(&rules);
    for rule in rules.iter_mut().filter(|rule| rule.action == Action::Allow) {
        (rule.action, rule.next) = (Action::Pass, own);
    }
    (rules, before_dnat)
}

/// Policies before DNAT, at the end of whose tiers nothing happens. Which rules they are.
fn lay_out_before_dnat(
    rules: &mut Vec<TableRule>,
    before: &[TierRules<'_>],
    direction: Direction,
    deny_action: DenyAction,
) -> Range<u16> {
    let start = index_of(rules);
    lay_out_tiers(rules, before, false, direction, deny_action);
    if before.is_empty() { 0..0 } else { start..index_of(rules) }
}

/// Tiers one after the other; `ends`: whether something happens at their ends.
fn lay_out_tiers(
    rules: &mut Vec<TableRule>,
    tiers: &[TierRules<'_>],
    ends: bool,
    direction: Direction,
    deny_action: DenyAction,
) {
    let denial = |own| denial(own, deny_action);
    for TierRules { name, passes, policies } in tiers {
        let start = rules.len();
        rules.extend(policies.iter().flat_map(|policy| &policy.rules).map(|expanded| {
            let (action, own) = expanded.0;
            let action = match action {
                RuleAction::Allow => Action::Allow,
                RuleAction::Deny => denial(own),
                RuleAction::Log => Action::Log,
                RuleAction::Pass => Action::Pass,
            };
            rule(action, expanded)
        }));
        let action = if *passes { Action::Pass } else { denial(None) };
        if ends {
            rules.push(default_rule(action, direction, Reason::TierDefault, Some(name)));
        }
        // A pass leads to whatever comes after this tier.
        let next = index_of(rules);
        for rule in &mut rules[start..] {
            rule.next = if rule.action == Action::Pass { next } else { 0 };
        }
    }
}

/// Where the next rule stands.
pub(super) fn index_of(rules: &[TableRule]) -> u16 {
    u16::try_from(rules.len()).unwrap_or(u16::MAX)
}

fn rule(action: Action, (_, name, matches): &(Does, Arc<RuleName>, Arc<RuleMatch>)) -> TableRule {
    TableRule { action, next: 0, name: name.clone(), matches: matches.clone() }
}

fn denial(own: Option<DenyAction>, of_node: DenyAction) -> Action {
    match own.unwrap_or(of_node) {
        DenyAction::Drop => Action::Deny,
        DenyAction::Reject => Action::Reject,
    }
}

/// A rule that matches everything.
fn default_rule(action: Action, direction: Direction, reason: Reason, tier: Option<&str>) -> TableRule {
    let name = Arc::new(nameless(direction, reason, tier));
    TableRule { action, next: 0, name, matches: Arc::default() }
}

/// Of what is no rule of the files.
pub(super) fn nameless(direction: Direction, reason: Reason, tier: Option<&str>) -> RuleName {
    let tier = tier.map(str::to_owned);
    RuleName { direction, reason, tier, kind: None, namespace: None, policy: None, rule: None }
}
