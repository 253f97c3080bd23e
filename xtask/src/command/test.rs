//! `cargo xtask test`.

use crate::{cargo, lab, project, setup, vm};

/// Builds the program and runs all tests, or those that match a filter.
pub(super) fn run(arguments: &[String]) -> anyhow::Result<()> {
    super::need_root("`cargo xtask test`")?;
    setup::ensure(setup::Purpose::Test)?;
    lab::reap();
    // Builds the program too: of all packages at once, so that their dependencies are built once.
    let mut command = cargo::pinned("test");
    command.args(["--release", "--workspace", "--exclude", "calico-ebpf", "--no-fail-fast"]);
    command.env_remove("AYA_BUILD_SKIP").env("CALICO_EBPF_BIN", project::binary());
    // Most of the end-to-end tests wait for something most of the time.
    if !arguments.iter().any(|argument| argument.starts_with("--test-threads"))
        && std::env::var_os("RUST_TEST_THREADS").is_none()
    {
        command.env("RUST_TEST_THREADS", "4");
    }
    cargo::run(command.args(arguments))?;
    if !arguments.is_empty() {
        return Ok(());
    }
    match vm::obstacle() {
        None => vm::run(&[]),
        Some(obstacle) => {
            println!("vm: other kernels are not tried: {obstacle}");
            Ok(())
        }
    }
}
