//! `diff`: what a reload would change.

use std::{fmt::Write as _, process::ExitCode};

use anyhow::ensure;

use super::{args, context::Context, output};
use crate::{
    observe::changes::{self, Changes},
    resources::{self, Severity},
};

pub(super) fn run(context: &Context, arguments: &args::Diff) -> anyhow::Result<ExitCode> {
    let loaded = resources::load(&arguments.config);
    for diagnostic in &loaded.diagnostics {
        if diagnostic.severity != Severity::Notice {
            output::complain(&diagnostic.render());
        }
    }
    ensure!(!loaded.has_errors(), "the files are refused");
    let view = context.view()?;
    // Whose data path it is says the data path itself.
    let node = match view.info()?.node {
        node if node.is_empty() => context.node(),
        node => node,
    };
    let changes = changes::of(&context.instance, &view, &loaded.set, &node)?;
    output::result(context.format, &changes, render)?;
    Ok(ExitCode::SUCCESS)
}

fn render(changes: &Changes) -> String {
    let mut text = String::new();
    let mut list = |title: &str, sign: char, items: &[String]| {
        if !items.is_empty() {
            // Writing to a `String` cannot fail.
            let _ = writeln!(text, "{title}");
            items.iter().for_each(|item| {
                let _ = writeln!(text, "  {sign} {item}");
            });
        }
    };
    list("workloads that come", '+', &changes.workloads_added);
    list("workloads that go", '-', &changes.workloads_removed);
    list("other rules for what they send", '~', &changes.egress);
    list("other rules for what they receive", '~', &changes.ingress);
    list("routes that come", '+', &changes.routes_added);
    list("routes that go", '-', &changes.routes_removed);
    let cut: Vec<String> = changes.cut.iter().map(ToString::to_string).collect();
    list("connections that are cut", '-', &cut);
    if text.is_empty() {
        text.push_str("nothing changes\n");
    }
    text
}
