//! What staged policies would change: never in the maps, only for people.

use calico_ebpf_common::abi::Action;
use serde::{Deserialize, Serialize};

use super::{
    compile::compile,
    compiled::{Compiled, RuleName},
};
use crate::resources::model::{ResourceSet, StagedAction};

/// The rules of a workload as they would be with the staged policies applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRules {
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// What it sends would be judged by these, the first that matches.
    pub egress: Vec<StagedRule>,
    /// What it receives would be judged by these.
    pub ingress: Vec<StagedRule>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagedRule {
    /// `allow`, `deny`, `pass` or `log`.
    pub action: String,
    /// What it is called.
    #[serde(flatten)]
    pub name: RuleName,
}

/// Whether any staged policy would change something.
#[must_use]
pub fn matters(set: &ResourceSet) -> bool {
    set.staged.iter().any(|staged| staged.action != StagedAction::Ignore)
}

/// The workloads of `node` whose rules would be others, with these rules.
#[must_use]
pub fn changes(set: &ResourceSet, node: &str) -> Vec<StagedRules> {
    if !matters(set) {
        return Vec::new();
    }
    let (now, applied) = (compile(set, node), compile(&set.with_staged_applied(), node));
    let workloads = now.workloads.iter().zip(&applied.workloads);
    let rules = workloads.filter_map(|((endpoint, was), (_, would_be))| {
        let (egress, ingress) = (rules(&applied, would_be.egress), rules(&applied, would_be.ingress));
        let same = egress == rules(&now, was.egress) && ingress == rules(&now, was.ingress);
        (!same).then(|| StagedRules { endpoint: endpoint.clone(), egress, ingress })
    });
    rules.collect()
}

/// The rules of a table, each of the files' once.
fn rules(compiled: &Compiled, table: usize) -> Vec<StagedRule> {
    let mut entries: Vec<_> = compiled.tables[table].rules.iter().collect();
    entries.dedup_by_key(|entry| &entry.name);
    let rule = |entry: &super::compiled::TableRule| StagedRule {
        action: action(entry.action).to_owned(),
        name: (*entry.name).clone(),
    };
    entries.into_iter().map(rule).collect()
}

const fn action(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::Pass => "pass",
        Action::Log => "log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::tests::cases,
        resources::model::{PolicyKind, RuleAction, StagedPolicy},
    };

    #[test]
    fn only_workloads_that_would_be_judged_otherwise() {
        let mut set = cases::one(vec![cases::rule(RuleAction::Allow)]);
        assert!(!matters(&set) && changes(&set, "n1").is_empty());
        let mut policy = set.policies[0].clone();
        policy.kind = PolicyKind::StagedGlobal;
        policy.selector = crate::resources::selector::Selector::parse("role == 'server'").unwrap();
        policy.ingress[0].action = RuleAction::Deny;
        set.staged = vec![StagedPolicy { action: StagedAction::Ignore, policy: policy.clone() }];
        assert!(!matters(&set));
        // In place of the policy of that name, which the other workloads then are without.
        set.staged[0].action = StagedAction::Set;
        let changed = changes(&set, "n1");
        let names: Vec<_> = changed.iter().map(|rules| rules.endpoint.as_str()).collect();
        assert_eq!(names, ["x/c", "x/w"]);
        let first = &changed[1].ingress[0];
        assert_eq!((first.action.as_str(), first.name.kind.as_deref()), ("deny", Some("StagedGlobalNetworkPolicy")));
        // As a policy of its own it changes only those that it selects.
        set.staged[0].policy.name = "q".to_owned();
        let names: Vec<_> = changes(&set, "n1").into_iter().map(|rules| rules.endpoint).collect();
        assert_eq!(names, ["x/w"]);
    }
}
