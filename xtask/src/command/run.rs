//! `cargo xtask run`: the demo, or the program on this host.

use std::process::Command;

use crate::{cargo, demo, project, setup};

/// The demo without arguments, `calico-ebpf run` with them.
pub(super) fn run(arguments: &[String]) -> anyhow::Result<()> {
    match arguments {
        [] => {
            super::need_root("the demo")?;
            setup::ensure(setup::Purpose::Lab)?;
            super::build_program()?;
            demo::run(&project::root().join("examples/demo"))
        }
        [separator, rest @ ..] if separator == "--" => {
            setup::ensure(setup::Purpose::Build)?;
            super::build_program()?;
            cargo::run(Command::new(project::binary()).arg("run").args(rest))
        }
        [other, ..] => anyhow::bail!("unexpected `{other}`: arguments of `calico-ebpf run` go behind `--`"),
    }
}
