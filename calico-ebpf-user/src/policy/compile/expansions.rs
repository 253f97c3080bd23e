//! The rules of policies and profiles as alternatives that tables are made of.

use std::sync::Arc;

use super::Compiler;
use crate::{
    policy::{
        compiled::{Direction, Reason, RuleMatch, RuleName},
        conditions::Conditions,
        expand::{PortNames, expand},
    },
    resources::{
        Shared,
        model::{DenyAction, Policy, PolicyKind, Profile, Rule, RuleAction},
    },
};

/// Rules of a table before it is known where the next tier begins.
pub(super) type Rules = Vec<(Does, Arc<RuleName>, Arc<RuleMatch>)>;

/// What a rule does: its action, and what becomes of what it denies where it says so.
pub(super) type Does = (RuleAction, Option<DenyAction>);

/// By direction and seat, see [`Side`].
pub(super) type OfPolicy = [Option<Arc<Expansion>>; 4];

/// Kind, namespace, tier and name of a policy, or name of a profile, and for which tables.
pub(super) type RulesOf = (Option<PolicyKind>, Option<String>, String, Side);

/// Rules of which direction a table has, and whose it is: the sender's (`Egress`) or the receiver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Side {
    pub(super) direction: Direction,
    pub(super) seat: Direction,
}

impl Side {
    /// Of whoever sends has egress rules, of whoever receives ingress rules.
    pub(super) const fn of(direction: Direction) -> Self {
        Self { direction, seat: direction }
    }

    /// Of what a host endpoint forwards: what comes in by it is sent by somebody outside, what leaves is received there.
    pub(super) const fn outside(direction: Direction) -> Self {
        let seat = match direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        };
        Self { direction, seat }
    }

    pub(super) fn index(self) -> usize {
        self.direction as usize + if self.seat == self.direction { 0 } else { 2 }
    }
}

/// Rules as they were expanded.
#[derive(Debug)]
pub(super) struct Known {
    /// What they were expanded from, of a policy.
    pub(super) policy: Option<Shared<Policy>>,
    pub(super) expansion: Arc<Expansion>,
}

#[derive(Debug)]
pub(super) struct Expansion {
    /// Others have another number.
    pub(super) number: u32,
    pub(super) rules: Rules,
    /// Conditions that they ask about, ascending; also those of rules that come to nothing.
    pub(super) conditions: Vec<u32>,
}

impl Compiler {
    pub(super) fn policy(&mut self, index: usize, policy: &Shared<Policy>, side: Side) -> Arc<Expansion> {
        // Most have the same place as before, which spares making a name of them.
        if let Some((known, expansions)) = self.policies.get(index)
            && let Some(expansion) = &expansions[side.index()]
            && known.is(policy)
        {
            return Arc::clone(expansion);
        }
        let name_in_all = format!("{}/{}", policy.tier, policy.name);
        let of = (Some(policy.kind), policy.namespace.clone(), name_in_all, side);
        if let Some(known) = self.expansions.get(&of)
            && known.policy.as_ref().is_some_and(|known| known.is(policy))
        {
            return Arc::clone(&known.expansion);
        }
        let direction = side.direction;
        let name = RuleName {
            direction,
            reason: Reason::Rule,
            tier: Some(policy.tier.clone()),
            kind: Some(policy.kind.as_str().to_owned()),
            namespace: policy.namespace.clone(),
            policy: Some(policy.name.clone()),
            rule: None,
        };
        let rules = of_direction(&policy.ingress, &policy.egress, direction);
        self.expand(of, Some(policy), rules, &name)
    }

    pub(super) fn profile(&mut self, profile: &Profile, direction: Direction) -> Arc<Expansion> {
        let of = (None, None, profile.name.clone(), Side::of(direction));
        let name = RuleName::of_profile(&profile.name, direction);
        self.expand(of, None, of_direction(&profile.ingress, &profile.egress, direction), &name)
    }

    /// Expands rules; those that come to the same as before stay the same ones.
    pub(super) fn expand(
        &mut self,
        of: RulesOf,
        policy: Option<&Shared<Policy>>,
        rules: &[Rule],
        name: &RuleName,
    ) -> Arc<Expansion> {
        #[cfg(test)]
        {
            self.work.expansions += 1;
        }
        let Self { names, conditions, .. } = self;
        let namespace = of.1.as_deref();
        let rules = expand_all(rules, name, of.3.seat, namespace, names, conditions);
        self.keep(of, policy, rules)
    }

    /// The expansion to these rules: where they are what they were, the same one.
    pub(super) fn keep(&mut self, of: RulesOf, policy: Option<&Shared<Policy>>, rules: Rules) -> Arc<Expansion> {
        let Self { conditions, expansions, next_expansion, .. } = self;
        let conditions = conditions.take_met();
        let expansion = match expansions.get(&of).map(|known| &known.expansion) {
            Some(known) if known.rules == rules && known.conditions == conditions => Arc::clone(known),
            _ => {
                *next_expansion += 1;
                Arc::new(Expansion { number: *next_expansion, rules, conditions })
            }
        };
        let known = Known { policy: policy.cloned(), expansion: Arc::clone(&expansion) };
        expansions.insert(of, known);
        expansion
    }
}

fn of_direction<'r>(ingress: &'r [Rule], egress: &'r [Rule], direction: Direction) -> &'r [Rule] {
    match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    }
}

fn expand_all(
    rules: &[Rule],
    name: &RuleName,
    seat: Direction,
    namespace: Option<&str>,
    names: &PortNames,
    conditions: &mut Conditions,
) -> Rules {
    let mut expanded = Vec::new();
    let mut last: Option<Arc<RuleName>> = None;
    for (index, rule) in (0..).zip(rules) {
        let number = Some(rule.number.unwrap_or(index));
        let name = match last.take_if(|last| last.rule == number) {
            Some(name) => name,
            None => Arc::new(RuleName { rule: number, ..name.clone() }),
        };
        last = Some(name.clone());
        for matches in expand(rule, seat, namespace, names, conditions) {
            expanded.push(((rule.action, rule.deny_action), name.clone(), matches));
        }
    }
    expanded
}
