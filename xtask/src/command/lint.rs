//! `cargo xtask lint`.

use crate::{cargo, dependencies, project, setup};

/// Formatting, clippy, documentation, dependencies.
pub(super) fn run() -> anyhow::Result<()> {
    setup::ensure(setup::Purpose::Build)?;
    step("formatting");
    cargo::run(cargo::pinned("fmt").args(["--all", "--check"]))?;
    step("clippy");
    cargo::run(checker("clippy").args(["--all-targets", "--", "-D", "warnings"]))?;
    step("clippy, kernel side");
    // On its own: it has its own panic handler and another target.
    let mut kernel = cargo::pinned("clippy");
    kernel.args([
        "--release",
        "--package",
        "calico-ebpf",
        "--bin",
        "calico-ebpf-kern",
        "--target",
        "bpfel-unknown-none",
    ]);
    kernel.args(["-Z", "build-std=core", "--", "-D", "warnings"]);
    kernel.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", project::target().join("lint-bpf"));
    kernel.env("CARGO_ENCODED_RUSTFLAGS", "--cfg=bpf_target_arch=\"x86_64\"");
    cargo::run(&mut kernel)?;
    step("documentation");
    cargo::run(checker("doc").args(["--no-deps", "--document-private-items"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    step("licences and sources of dependencies");
    let count = dependencies::check()?;
    eprintln!("lint: {count} packages are as deny.toml allows");
    if setup::find_program("cargo-deny").is_some() {
        step("known vulnerabilities");
        cargo::run(cargo::pinned("deny").args(["check", "advisories"]))?;
    } else {
        eprintln!("lint: cargo-deny is not installed: known vulnerabilities are not looked up");
    }
    Ok(())
}

/// A cargo command over all crates of user space. Without the BPF object, so in a target directory of its own: the real build
/// would otherwise be made again after each of these.
fn checker(subcommand: &str) -> std::process::Command {
    let mut command = cargo::pinned(subcommand);
    command.args(["--release", "--workspace", "--exclude", "calico-ebpf"]);
    command.env("AYA_BUILD_SKIP", "1").env("CARGO_TARGET_DIR", project::target().join("lint"));
    command
}

fn step(name: &str) {
    eprintln!("lint: {name}");
}
