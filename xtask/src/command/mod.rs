//! The commands of `cargo xtask`.

mod lab;
mod lint;
mod run;
mod test;

use anyhow::Context as _;

use crate::{bench, cargo, project, setup, vm};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  run                  the demo: a lab of network namespaces under examples/demo/
  run -- ARGUMENTS     `calico-ebpf run ARGUMENTS` on this host
  build                the program: target/release/calico-ebpf
  test [FILTER]        all tests, or those whose name contains FILTER
  lint                 formatting, clippy, documentation, licences
  lab                  a lab of one host to play with, until Ctrl-C
  lab up|status|exec|move|down
                       a cluster of hosts with BGP between them; `lab help` says more
  vm [KERNEL...]       the end-to-end tests under other kernels
  bench                how fast it is

Every command first looks for what it needs and installs what is missing.";

/// Runs the command that `arguments` name.
///
/// # Errors
/// What the command says; wrong usage.
pub fn dispatch(arguments: &[String]) -> anyhow::Result<()> {
    let Some((command, rest)) = arguments.split_first() else {
        anyhow::bail!("{USAGE}");
    };
    let asks_for_help = |argument: &String| ["-h", "--help"].contains(&argument.as_str());
    if rest.first().is_some_and(asks_for_help) {
        println!("{USAGE}");
        return Ok(());
    }
    match command.as_str() {
        "build" => build(),
        "run" => run::run(rest),
        "test" => test::run(rest),
        "lint" => lint::run(),
        "lab" => lab::run(rest),
        "bench" => bench::run(rest),
        "vm" => machines(rest),
        "help" | "-h" | "--help" => {
            println!("{USAGE}");
            Ok(())
        }
        other => anyhow::bail!("unknown command `{other}`\n\n{USAGE}"),
    }
}

fn build() -> anyhow::Result<()> {
    setup::ensure(setup::Purpose::Build)?;
    build_program()?;
    println!("{}", project::target().join("release/calico-ebpf").display());
    Ok(())
}

fn machines(kernels: &[String]) -> anyhow::Result<()> {
    setup::ensure(setup::Purpose::Test)?;
    vm::run(kernels)
}

/// Builds the program with the BPF object inside. The set-up has been made.
fn build_program() -> anyhow::Result<()> {
    let mut command = cargo::pinned("build");
    command.args(["--release", "--package", "calico-ebpf-user"]).env_remove("AYA_BUILD_SKIP");
    cargo::run(&mut command).context("the program does not build")
}

/// Refuses without root: network namespaces and BPF need it.
fn need_root(what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "{what} makes network namespaces and loads BPF programs: run it as root"
    );
    Ok(())
}

/// Waits for Ctrl-C or SIGTERM.
fn wait_for_interrupt() -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM])?;
    signals.forever().next();
    Ok(())
}
