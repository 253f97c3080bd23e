//! `rules`.

use std::{collections::HashMap, fmt::Write as _, process::ExitCode};

use serde::Serialize;

use super::{args::Rules, context::Context, output, table::Table};
use crate::{
    agent::control::Request,
    observe::{
        inventory::{self, Who},
        rules::{self, WorkloadRules},
    },
    policy::{
        compiled::{Direction, Reason, RuleName, host_endpoint_of_seat},
        staged::StagedRules,
    },
};

pub(super) fn run(context: &Context, arguments: &Rules) -> anyhow::Result<ExitCode> {
    let who: Option<Who> = match &arguments.who {
        Some(text) => match text.parse() {
            Ok(who) => Some(who),
            Err(error) => {
                output::complain(&format!("error: {error}"));
                return Ok(ExitCode::from(2));
            }
        },
        None => None,
    };
    let view = context.view()?;
    let mut all = inventory::workloads(&view)?;
    let hosts = inventory::host_endpoints(&view)?;
    let chosen = match &who {
        None => {
            all.extend(hosts);
            all.iter().collect()
        }
        Some(Who::Host) => hosts.iter().collect(),
        Some(who) => {
            let chosen = who.among(&all);
            if chosen.is_empty() {
                anyhow::bail!("{who}: no workload of this node; `workloads` lists them");
            }
            chosen
        }
    };
    let mut staged = staged(context)?;
    let of_host = if who.is_none() || who == Some(Who::Host) { rules::untracked(&view)? } else { Vec::new() };
    let shown: Vec<Shown> = rules::read(&view, &chosen)?
        .into_iter()
        .chain(of_host)
        .map(|rules| {
            let staged = staged.remove(&rules.endpoint);
            Shown { rules, staged }
        })
        .collect();
    output::result(context.format, &shown, |shown| render(shown, who == Some(Who::Host)))?;
    Ok(ExitCode::SUCCESS)
}

/// The rules of a workload, and those that staged policies would make of them, where they are others.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    rules: WorkloadRules,
    #[serde(skip_serializing_if = "Option::is_none")]
    staged: Option<StagedRules>,
}

/// What staged policies would change, by workload. They are not in the maps: only a running process knows them.
fn staged(context: &Context) -> anyhow::Result<HashMap<String, StagedRules>> {
    let reply = context.ask(&Request::Staged)?;
    let staged = reply.map(|reply| reply.staged).unwrap_or_default();
    Ok(staged.into_iter().map(|rules| (rules.endpoint.clone(), rules)).collect())
}

fn render(workloads: &[Shown], host: bool) -> String {
    if host && workloads.is_empty() {
        return "host: no host endpoint, so no policy applies to the host itself\n".into();
    }
    let mut text = String::new();
    for (i, Shown { rules: WorkloadRules { endpoint, interface, untracked, egress, ingress }, staged }) in
        workloads.iter().enumerate()
    {
        if i > 0 {
            text.push('\n');
        }
        // Writing to a `String` cannot fail.
        let before = if *untracked { ", before connection tracking" } else { "" };
        let _ = writeln!(text, "{endpoint} ({interface}{before})");
        let is_workload = host_endpoint_of_seat(endpoint).is_none();
        for (direction, rules) in [(Direction::Egress, egress), (Direction::Ingress, ingress)] {
            let _ = writeln!(text, "  {}", direction.as_str());
            // What a workload sends comes in by an interface of the host, and what it receives leaves by one.
            let passed = |name: &&RuleName| is_workload && name.direction != direction;
            let mut table = Table::new(&[">", "ACTION", ">PACKETS", "TIER", "RULE"]);
            for (number, rule) in rules.iter().enumerate() {
                let name = rule.name.as_ref();
                table.row([
                    number.to_string(),
                    rule.action.into(),
                    rule.hits.to_string(),
                    tier(name),
                    match (name, name.filter(passed)) {
                        (_, Some(name)) => format!("{}, of the host endpoint '*'", what(name)),
                        (name, None) => name.map_or_else(|| "unknown".into(), what),
                    },
                ]);
            }
            if table.is_empty() && *untracked {
                text.push_str("    no rules: everything is left to the policy behind\n");
            } else if table.is_empty() {
                text.push_str("    no rules: everything is denied\n");
            } else {
                text.push_str(&table.render(4));
            }
        }
        let Some(staged) = staged else { continue };
        for (direction, rules) in [("egress", &staged.egress), ("ingress", &staged.ingress)] {
            let _ = writeln!(text, "  {direction} with the staged policies applied");
            let mut table = Table::new(&[">", "ACTION", "TIER", "RULE"]);
            for (number, rule) in rules.iter().enumerate() {
                table.row([number.to_string(), rule.action.clone(), tier(Some(&rule.name)), what(&rule.name)]);
            }
            text.push_str(&table.render(4));
        }
    }
    text
}

fn tier(name: Option<&RuleName>) -> String {
    name.and_then(|name| name.tier.clone()).unwrap_or_else(|| "-".into())
}

/// What a rule is, in words.
fn what(name: &RuleName) -> String {
    match name.reason {
        Reason::TierDefault => "end of the tier: a policy applied, and no rule matched".into(),
        Reason::NoProfile => "no profile allowed it".into(),
        Reason::Failsafe => {
            let (list, index) = (name.policy.as_deref().unwrap_or("?"), name.rule.unwrap_or_default());
            format!("failsafe: {list}, entry {index}")
        }
        Reason::Undecided => "no rule matched: left to the policy behind".into(),
        Reason::NoPolicy => "no policy decides about it".into(),
        Reason::ToHost => "for the host itself, which does not forward it".into(),
        Reason::Rule | Reason::Profile => {
            let namespace = name.namespace.as_ref().map_or(String::new(), |namespace| format!("{namespace}/"));
            let (kind, policy) = (name.kind.as_deref().unwrap_or("?"), name.policy.as_deref().unwrap_or("?"));
            let index = name.rule.map_or(String::new(), |index| format!(", rule {index}"));
            format!("{kind} {namespace}{policy}{index}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        observe::rules::RuleLine,
        policy::{compiled::Direction, staged::StagedRule},
    };

    #[test]
    fn rules_say_where_they_come_from() {
        let name = RuleName {
            direction: Direction::Egress,
            reason: Reason::Rule,
            tier: Some("default".into()),
            kind: Some("NetworkPolicy".into()),
            namespace: Some("shop".into()),
            policy: Some("web".into()),
            rule: Some(2),
        };
        let staged = RuleName { kind: Some("StagedNetworkPolicy".into()), ..name.clone() };
        let line = RuleLine { action: "allow", name: Some(name), hits: 12 };
        let shown = Shown {
            rules: WorkloadRules {
                endpoint: "shop/w".into(),
                interface: "cali1".into(),
                untracked: false,
                egress: vec![line],
                ingress: vec![],
            },
            staged: Some(StagedRules {
                endpoint: "shop/w".into(),
                egress: vec![StagedRule { action: "deny".into(), name: staged }],
                ingress: vec![],
            }),
        };
        let text = render(&[shown], false);
        assert!(text.contains("0  allow        12  default  NetworkPolicy shop/web, rule 2"), "{text}");
        assert!(text.contains("everything is denied"), "{text}");
        assert!(text.contains("0  deny    default  StagedNetworkPolicy shop/web, rule 2"), "{text}");
    }
}
