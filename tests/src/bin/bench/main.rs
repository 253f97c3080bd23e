//! Benchmarks of the data path: `cargo xtask bench [SECTION...]`.
//!
//! Everything that is compared runs interleaved in this one process, each variant in a laboratory of its own; what counts
//! are the ratios. A packet counts only when it reached the sink: a run that lost some is an error, not a figure.

mod calibrate;
mod cluster;
mod cpu;
mod generated;
mod kernel;
mod memory;
mod migration;
mod packets;
mod policy;
mod program;
mod random;
mod reload;
mod report;
mod scale;
mod tcp;
mod theirs;
mod variant;
mod watched;
mod xdp;

use anyhow::{Context as _, ensure};

use report::Report;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let known = [
        "packets",
        "program",
        "tcp",
        "xdp",
        "delivery",
        "denylist",
        "reload",
        "policy",
        "rules",
        "sets",
        "theirs",
        "memory",
        "cluster",
        "scale",
        "migration",
    ];
    if let Some(unknown) = arguments.iter().find(|argument| !known.contains(&argument.as_str())) {
        anyhow::bail!("there is no section {unknown}; there are: {}", known.join(", "));
    }
    let wants = |section: &str| arguments.is_empty() || arguments.iter().any(|argument| argument == section);
    ensure!(cpu::count() >= 2, "needs two processors");
    xtask::lab::reap();

    let mut report = Report::default();
    if wants("program") {
        program::run(&mut report).context("the program alone")?;
    }
    if wants("packets") {
        packets::run(&mut report).context("packets")?;
    }
    if wants("tcp") {
        tcp::run(&mut report).context("TCP")?;
    }
    // XDP, whole or in parts.
    let parts = ["delivery", "denylist"];
    xdp::run(&mut report, |part| wants("xdp") || parts.contains(&part) && wants(part)).context("XDP")?;
    if wants("reload") {
        reload::run(&mut report).context("reload")?;
    }
    // Policy, whole or in parts.
    let parts = ["rules", "sets", "theirs", "memory"];
    policy::run(&mut report, |part| wants("policy") || parts.contains(&part) && wants(part)).context("policy")?;
    if wants("cluster") {
        cluster::run(&mut report).context("a cluster")?;
    }
    if wants("scale") {
        scale::run(&mut report).context("a node of a very big cluster")?;
    }
    // Needs BIRD, and so only by name.
    if arguments.iter().any(|argument| argument == "migration") {
        migration::run(&mut report).context("a move")?;
    }
    report.print();
    Ok(())
}
