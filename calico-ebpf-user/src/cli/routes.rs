//! `routes`.

use std::process::ExitCode;

use super::{context::Context, output, table::Table};
use crate::{agent::control::Request, observe::status::RouteState, routes};

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let running = context.ask(&Request::Status)?.and_then(|reply| reply.status);
    let shown = match running {
        Some(status) => status.routes,
        None => routes::read(&context.view()?)?.iter().map(RouteState::from).collect(),
    };
    output::result(context.format, &shown, |shown| render(shown))?;
    Ok(ExitCode::SUCCESS)
}

fn render(routes: &[RouteState]) -> String {
    let mut table = Table::new(&["DESTINATION", "INTERFACE", "WORKLOAD", ">PROTOCOL", ">METRIC", "STATE"]);
    for route in routes {
        table.row([
            route.destination.clone(),
            route.interface.clone(),
            route.endpoint.clone(),
            route.protocol.to_string(),
            route.metric.to_string(),
            if route.installed { "installed" } else { "missing" }.to_owned(),
        ]);
    }
    table.render(0)
}
