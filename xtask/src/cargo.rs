//! The pinned toolchain's cargo.

use std::{ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, ensure};

use crate::{project, setup};

/// `cargo SUBCOMMAND` of the pinned toolchain, in the root of the workspace.
#[must_use]
pub fn pinned(subcommand: &str) -> Command {
    let mut command = rustup("cargo");
    command.arg(subcommand).current_dir(project::root());
    command
}

/// A program of the pinned toolchain, without what the outer cargo put into the environment for xtask itself.
#[must_use]
pub fn rustup(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", setup::TOOLCHAIN, program]);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|prefix| text.starts_with(prefix));
        if ours
            || matches!(&*text, "CARGO" | "RUSTC" | "RUSTUP_TOOLCHAIN" | "LD_LIBRARY_PATH" | "CARGO_PRIMARY_PACKAGE")
        {
            command.env_remove(&name);
        }
    }
    command.env("PATH", path());
    command
}

/// `PATH`, with our own tools before it and cargo's and the administrator's programs behind it.
fn path() -> OsString {
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = vec![setup::tools().join("bin")];
    all.extend(std::env::split_paths(&inherited));
    all.push(setup::cargo_home().join("bin"));
    all.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(all).unwrap_or(inherited)
}

/// Runs `command` to its end.
///
/// # Errors
/// It cannot be started, or it fails.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", describe(command)))?;
    ensure!(status.success(), "{} failed: {status}", describe(command));
    Ok(())
}

/// What `command` prints on standard output.
///
/// # Errors
/// It cannot be started, or it fails; the error carries what it said.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", describe(command)))?;
    ensure!(
        output.status.success(),
        "{} failed: {}\n{}",
        describe(command),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command line, for messages.
#[must_use]
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    format!("`{}`", words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
}
