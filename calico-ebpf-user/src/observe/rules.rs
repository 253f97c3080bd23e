//! What judges each workload, rule by rule.

use std::collections::HashMap;

use calico_ebpf_common::abi::{Action, RuleEntry};
use serde::Serialize;

use super::inventory::{self, Local};
use crate::{
    dataplane::{self, view::View},
    policy::compiled::RuleName,
};

/// The rules of one workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRules {
    /// `NAMESPACE/NAME`, or `host`.
    pub endpoint: String,
    /// Host side of its veth or tap.
    pub interface: String,
    /// Of the host: policy before connection tracking, of this interface.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untracked: bool,
    /// What it sends is judged by these, the first that matches.
    pub egress: Vec<RuleLine>,
    /// What it receives is judged by these.
    pub ingress: Vec<RuleLine>,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleLine {
    /// `allow`, `deny`, `reject`, `pass` or `log`.
    pub action: &'static str,
    /// What it is called.
    #[serde(flatten)]
    pub name: Option<RuleName>,
    /// Packets that it decided, of all workloads that it applies to.
    pub hits: u64,
}

/// The rules of these workloads.
///
/// # Errors
/// If the maps cannot be read.
pub fn read(view: &View, workloads: &[&Local]) -> dataplane::Result<Vec<WorkloadRules>> {
    let names = inventory::rules(view)?;
    let mut tables = HashMap::new();
    for workload in workloads {
        for header in [workload.policy.egress_table, workload.policy.ingress_table] {
            if let std::collections::hash_map::Entry::Vacant(table) = tables.entry(header) {
                table.insert(lines(&view.table(header)?, &names));
            }
        }
    }
    let table = |header: u32| tables.get(&header).cloned().unwrap_or_default();
    Ok(workloads
        .iter()
        .map(|workload| WorkloadRules {
            endpoint: workload.endpoint.clone(),
            interface: workload.interface.clone(),
            untracked: false,
            egress: table(workload.policy.egress_table),
            ingress: table(workload.policy.ingress_table),
        })
        .collect())
}

/// The rules of untracked policy, of each interface that has some.
///
/// # Errors
/// If the maps cannot be read.
pub fn untracked(view: &View) -> dataplane::Result<Vec<WorkloadRules>> {
    let root = view.root()?;
    let interfaces: Vec<_> =
        root.settings(root.generation).untracked.iter().take_while(|of| of.interface[0] != 0).collect();
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    let names = inventory::rules(view)?;
    let table = |header: u32| Ok(lines(&view.table(header)?, &names));
    interfaces
        .into_iter()
        .map(|of| {
            let name = String::from_utf8_lossy(&of.interface).trim_end_matches('\0').to_owned();
            Ok(WorkloadRules {
                endpoint: "host".to_owned(),
                interface: name,
                untracked: true,
                egress: table(of.egress_table)?,
                ingress: table(of.ingress_table)?,
            })
        })
        .collect()
}

/// One line for each rule: a rule of a file that is several entries of the table is one line.
fn lines(table: &[RuleEntry], names: &HashMap<u32, (RuleName, u64)>) -> Vec<RuleLine> {
    let mut entries = table.to_vec();
    entries.dedup_by_key(|entry| entry.counter);
    let line = |entry: &RuleEntry| {
        let known = names.get(&entry.counter);
        RuleLine {
            action: match entry.action {
                Action::Allow => "allow",
                Action::Deny => "deny",
                Action::Reject => "reject",
                Action::Pass => "pass",
                Action::Log => "log",
                Action::Leave => "leave",
            },
            name: known.map(|(name, _)| name.clone()),
            hits: known.map_or(0, |(_, hits)| *hits),
        }
    };
    entries.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expanded_rule_is_one_line() {
        let entry = |counter| RuleEntry { action: Action::Allow, next: 0, counter };
        let lines = lines(&[entry(5), entry(5), entry(6)], &HashMap::new());
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].action, "allow");
    }
}
