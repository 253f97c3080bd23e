//! The command line: one file a command.

mod args;
mod bgp;
mod confirm;
mod conntrack;
mod context;
mod diff;
mod doctor;
mod explain;
mod flows;
mod logging;
mod output;
mod paths;
mod purge;
mod reload;
mod routes;
mod rules;
mod run;
mod status;
mod table;
mod validate;
mod workloads;

use std::{ffi::OsString, process::ExitCode};

use clap::Parser as _;

use self::{
    args::{Cli, Command},
    context::Context,
};

/// Does what the arguments say. Exit codes: 0 done, 1 refused or failed (the reason is on standard error), 2 wrong usage.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors; a closed pipe is nobody's fault.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    logging::start(&cli.common);
    dispatch(cli).unwrap_or_else(|error| output::failure(&error))
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::Validate(validate) = &cli.command {
        return validate::run(&validate.paths, validate.strict, cli.common.node.as_deref(), cli.common.output);
    }
    if let Command::Explain(explain) = &cli.command
        && !explain.live
    {
        return explain::run(explain, cli.common.node.as_deref(), cli.common.output);
    }
    if let Command::Bgp(bgp) = &cli.command {
        return bgp::run(&bgp.command, &context::node_name(cli.common.node.as_deref()), cli.common.output);
    }
    let context = Context::new(cli.common)?;
    match cli.command {
        Command::Run(run) => run::run(&context, run),
        Command::Explain(explain) => explain::run_live(&context, &explain),
        Command::Validate(_) | Command::Bgp(_) => unreachable!("done above"),
        Command::Status => status::run(&context),
        Command::Workloads => workloads::run(&context),
        Command::Rules(rules) => rules::run(&context, &rules),
        Command::Routes => routes::run(&context),
        Command::Conntrack => conntrack::run(&context),
        Command::Flows(flows) => flows::run(&context, &flows),
        Command::Diff(diff) => diff::run(&context, &diff),
        Command::Reload(reload) => reload::run(&context, &reload),
        Command::Confirm => confirm::run(&context),
        Command::Purge => purge::run(&context),
        Command::Doctor => doctor::run(&context),
    }
}
