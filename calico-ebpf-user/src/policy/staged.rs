//! What staged policies would change: never in the maps, only for people.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Mutex, PoisonError},
};

use calico_ebpf_common::abi::Action;
use serde::{Deserialize, Serialize};

use super::{
    compile::compile,
    compiled::{Compiled, RuleName},
    flow::{Flow, Verdict},
    maps::Maps,
    write::LimitError,
};
use crate::resources::model::{ResourceSet, StagedAction};

/// Resources with staged policies among them that would change something.
#[derive(Debug)]
pub struct Staged {
    set: ResourceSet,
    node: String,
    /// What the maps of a host with these addresses would hold with them applied; made when it is first asked for.
    maps: Mutex<Option<(BTreeSet<IpAddr>, Maps)>>,
}

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
    /// `allow`, `deny`, `reject`, `pass` or `log`.
    pub action: String,
    /// What it is called.
    #[serde(flatten)]
    pub name: RuleName,
}

impl Staged {
    /// Of the workloads of `node`; `None` where no staged policy would change anything.
    #[must_use]
    pub fn new(set: ResourceSet, node: &str) -> Option<Self> {
        matters(&set).then(|| Self { set, node: node.to_owned(), maps: Mutex::default() })
    }

    /// The workloads whose rules would be others, with these rules.
    #[must_use]
    pub fn changes(&self) -> Vec<StagedRules> {
        let (now, applied) = (compile(&self.set, &self.node), compile(&self.set.with_staged_applied(), &self.node));
        let workloads = now.workloads.iter().zip(&applied.workloads);
        let rules = workloads.filter_map(|((endpoint, was), (_, would_be))| {
            let (egress, ingress) = (rules(&applied, would_be.egress), rules(&applied, would_be.ingress));
            let same = egress == rules(&now, was.egress) && ingress == rules(&now, was.ingress);
            (!same).then(|| StagedRules { endpoint: endpoint.clone(), egress, ingress })
        });
        rules.collect()
    }

    /// What would become of these flows with the staged policies applied, one after the other, on a host with these addresses.
    ///
    /// # Errors
    /// If the maps would have no room.
    pub fn judge(&self, host: &BTreeSet<IpAddr>, flows: &[Flow]) -> Result<Vec<Verdict>, LimitError> {
        let mut known = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, maps)) = &*known
            && of == host
        {
            return Ok(maps.judge_all(flows));
        }
        let maps = Maps::of(&compile(&self.set.with_staged_applied(), &self.node), host)?;
        let (_, maps) = known.insert((host.clone(), maps));
        Ok(maps.judge_all(flows))
    }
}

/// Whether any staged policy would change something. One that shall be ignored does not.
#[must_use]
pub fn matters(set: &ResourceSet) -> bool {
    set.staged.iter().any(|staged| staged.action != StagedAction::Ignore)
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
        Action::Reject => "reject",
        Action::Pass => "pass",
        Action::Log => "log",
        Action::Leave => "leave",
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
        let changes = |set: &ResourceSet| Staged::new(set.clone(), "n1").expect("it matters").changes();
        assert!(!matters(&set) && Staged::new(set.clone(), "n1").is_none());
        let mut policy = set.policies[0].clone();
        policy.kind = PolicyKind::StagedGlobal;
        policy.selector = crate::resources::selector::Selector::parse("role == 'server'").unwrap();
        policy.ingress[0].action = RuleAction::Deny;
        set.staged = vec![StagedPolicy { action: StagedAction::Ignore, policy: policy.clone() }];
        assert!(!matters(&set));
        // In place of the policy of that name, which the other workloads then are without.
        set.staged[0].action = StagedAction::Set;
        let changed = changes(&set);
        let names: Vec<_> = changed.iter().map(|rules| rules.endpoint.as_str()).collect();
        assert_eq!(names, ["x/c", "x/w"]);
        let first = &changed[1].ingress[0];
        assert_eq!((first.action.as_str(), first.name.kind.as_deref()), ("deny", Some("StagedGlobalNetworkPolicy")));
        // As a policy of its own it changes only those that it selects.
        set.staged[0].policy.name = "q".to_owned();
        let names: Vec<_> = changes(&set).into_iter().map(|rules| rules.endpoint).collect();
        assert_eq!(names, ["x/w"]);
    }
}
