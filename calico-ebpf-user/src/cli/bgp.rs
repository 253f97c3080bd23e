//! `bgp config`: a routing daemon's configuration for this node, offline.

use std::process::ExitCode;

use anyhow::ensure;

use super::{
    args::{BgpCommand, BgpConfig, Flavour, Format},
    output,
};
use crate::{
    bgp::{self, NodeBgp},
    resources::{self, Severity},
};

pub(super) fn run(command: &BgpCommand, node: &str, format: Format) -> anyhow::Result<ExitCode> {
    let BgpCommand::Config(BgpConfig { config, flavour, hold_time }) = command;
    let loaded = resources::load(config);
    for diagnostic in &loaded.diagnostics {
        if diagnostic.severity != Severity::Notice {
            output::complain(&diagnostic.render());
        }
    }
    ensure!(!loaded.has_errors(), "the files are refused");
    let speaker = NodeBgp::new(&loaded.set, node)?;
    let text = match flavour {
        Flavour::Bird => bgp::bird(&speaker, *hold_time),
        Flavour::Frr => bgp::frr(&speaker, *hold_time)?,
        Flavour::Gobgp => bgp::gobgp(&speaker, *hold_time)?,
        Flavour::GobgpZebra => bgp::zebra(&speaker),
    };
    output::result(format, &serde_json::json!({"node": node, "config": text}), |_| text.clone())?;
    Ok(ExitCode::SUCCESS)
}
