//! `cargo xtask bench`: how fast the data path is.

use std::process::Command;

use crate::{cargo, lab, project, setup};

/// Builds the program and the benchmarks, and runs those of the given sections (all without any).
///
/// # Errors
/// The set-up or the build fails, or a benchmark does: a packet lost is an error.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    setup::ensure(setup::Purpose::Bench)?;
    lab::reap();
    let mut build = cargo::pinned("build");
    build.args(["--release", "--package", "calico-ebpf-user", "--package", "calico-ebpf-tests", "--bins"]);
    cargo::run(build.env_remove("AYA_BUILD_SKIP"))?;
    cargo::run(Command::new(project::target().join("release/bench")).args(arguments))
}
