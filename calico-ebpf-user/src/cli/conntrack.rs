//! `conntrack`.

use std::{process::ExitCode, time::Duration};

use super::{context::Context, output, table::Table};
use crate::observe::{
    clock::short,
    connections::{self, Connection},
};

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let connections = connections::read(&context.view()?)?;
    output::result(context.format, &connections, |connections| render(connections))?;
    Ok(ExitCode::SUCCESS)
}

fn render(connections: &[Connection]) -> String {
    let mut table = Table::new(&["PROTO", "FROM", "TO", "STATE", ">AGE", ">IDLE", "PATH", "ALLOWED BY"]);
    for connection in connections {
        let time = |seconds: f64| short(Duration::try_from_secs_f64(seconds).unwrap_or_default());
        let rules = [&connection.source, &connection.destination].map(|end| end.rule.as_ref().map(ToString::to_string));
        let rules: Vec<String> = rules.into_iter().flatten().collect();
        table.row([
            connection.protocol.clone(),
            connection.source.to_string(),
            connection.destination.to_string(),
            connection.state.into(),
            time(connection.age),
            time(connection.idle),
            if connection.via_stack { "stack" } else { "fast" }.into(),
            rules.join(" + "),
        ]);
    }
    table.render(0)
}
