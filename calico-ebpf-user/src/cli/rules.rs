//! `rules`.

use std::{fmt::Write as _, process::ExitCode};

use super::{args::Rules, context::Context, output, table::Table};
use crate::{
    observe::{
        inventory::{self, Who},
        rules::{self, RuleLine, WorkloadRules},
    },
    policy::compiled::Reason,
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
    let all = inventory::workloads(&view)?;
    let chosen = match &who {
        None => all.iter().collect(),
        // No policy applies to the host itself yet.
        Some(Who::Host) => Vec::new(),
        Some(who) => {
            let chosen = who.among(&all);
            if chosen.is_empty() {
                let text = arguments.who.as_deref().unwrap_or_default();
                anyhow::bail!("{text}: no workload of this node; `workloads` lists them");
            }
            chosen
        }
    };
    let shown = rules::read(&view, &chosen)?;
    output::result(context.format, &shown, |shown| render(shown, who == Some(Who::Host)))?;
    Ok(ExitCode::SUCCESS)
}

fn render(workloads: &[WorkloadRules], host: bool) -> String {
    if host {
        return "host: no policy applies to the host itself\n".into();
    }
    let mut text = String::new();
    for (i, WorkloadRules { endpoint, interface, egress, ingress }) in workloads.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "{endpoint} ({interface})");
        for (direction, rules) in [("egress", egress), ("ingress", ingress)] {
            let _ = writeln!(text, "  {direction}");
            let mut table = Table::new(&[">", "ACTION", ">PACKETS", "TIER", "RULE"]);
            for (number, rule) in rules.iter().enumerate() {
                let tier = rule.name.as_ref().and_then(|name| name.tier.clone()).unwrap_or_else(|| "-".into());
                table.row([number.to_string(), rule.action.into(), rule.hits.to_string(), tier, what(rule)]);
            }
            if table.is_empty() {
                text.push_str("    no rules: everything is denied\n");
            } else {
                text.push_str(&table.render(4));
            }
        }
    }
    text
}

/// What a rule is, in words.
fn what(rule: &RuleLine) -> String {
    let Some(name) = &rule.name else { return "unknown".into() };
    match name.reason {
        Reason::TierDefault => "end of the tier: a policy applied, and no rule matched".into(),
        Reason::NoProfile => "no profile allowed it".into(),
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
    use crate::policy::compiled::{Direction, RuleName};

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
        let line = RuleLine { action: "allow", name: Some(name), hits: 12 };
        let text = render(
            &[WorkloadRules {
                endpoint: "shop/w".into(),
                interface: "cali1".into(),
                egress: vec![line],
                ingress: vec![],
            }],
            false,
        );
        assert!(text.contains("0  allow        12  default  NetworkPolicy shop/web, rule 2"), "{text}");
        assert!(text.contains("everything is denied"), "{text}");
    }
}
