//! `run`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
};

use super::{
    args::{Listen, Run, Switch},
    context::Context,
    output,
};
use crate::{
    agent::{self, dry_run},
    dataplane,
};

/// Felix's port for metrics.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9091);

pub(super) fn run(context: &Context, run: Run) -> anyhow::Result<ExitCode> {
    let mut dataplane = dataplane::Options::new(context.instance.clone());
    dataplane.conns = run.connections;
    let options = agent::Options {
        config: run.config,
        node: context.node(),
        uplinks: context.uplinks.clone(),
        dataplane,
        listen: match run.listen {
            None => agent::Listen::IfFree(METRICS),
            Some(Listen::Off) => agent::Listen::Off,
            Some(Listen::At(address)) => agent::Listen::Exactly(address),
        },
        once: run.once,
        watch: run.watch == Switch::On,
        confirm: run.confirm,
    };
    if run.dry_run {
        let steps = dry_run::steps(&options)?;
        output::result(context.format, &steps, |steps| steps.iter().map(|step| format!("{step}\n")).collect())?;
    } else {
        agent::run(&options)?;
    }
    Ok(ExitCode::SUCCESS)
}
