//! What this machine needs before anything can be built or tried: found out, installed, or told.
//!
//! Nothing here is guessed twice: a stamp in the target directory remembers what was verified, and is believed while the
//! things it speaks of (toolchain, linker, programs) are where they were.

mod apt;
mod bpftool;
pub mod daemons;
mod linker;
mod stamp;
mod toolchain;
mod tools;

use std::path::PathBuf;

use anyhow::bail;

use crate::project;

pub use toolchain::STATIC_TARGET;
pub use tools::find_program;

/// The toolchain that everything but xtask is built with.
pub const TOOLCHAIN: &str = "1.98.0";
/// The LLVM inside that toolchain: bpf-linker reads its bitcode and must not be older or newer.
pub const LLVM_MAJOR: u32 = 22;
/// The version of bpf-linker that is installed where there is none.
pub const BPF_LINKER: &str = "0.13.0";

/// What one is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// Build the program.
    Build,
    /// Run the demo or a lab besides.
    Lab,
    /// Run a lab of many hosts besides.
    Cluster,
    /// Run the tests besides.
    Test,
    /// Run the benchmarks besides.
    Bench,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Build => "build",
            Self::Lab => "lab",
            Self::Cluster => "cluster",
            Self::Test => "test",
            Self::Bench => "bench",
        }
    }
}

/// Makes sure that everything for `purpose` is here; installs what is missing, saying what and why.
///
/// # Errors
/// Something is missing and cannot be installed from here: the message says what to do.
pub fn ensure(purpose: Purpose) -> anyhow::Result<()> {
    if stamp::holds(purpose) {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "rustup is missing: the kernel side is built with Rust {TOOLCHAIN}, which rustup installs beside what you have.\n\
             Install rustup, the Rust project's toolchain installer, as the user that runs this command, then run it again."
        );
    }
    toolchain::ensure(purpose)?;
    linker::ensure()?;
    tools::ensure(purpose)?;
    if purpose >= Purpose::Test {
        daemons::ensure_all()?;
    }
    stamp::write(purpose)
}

/// Where tools are put that must not replace what the user has.
#[must_use]
pub fn tools() -> PathBuf {
    project::target().join("tools")
}

/// Where cargo installs programs.
#[must_use]
pub fn cargo_home() -> PathBuf {
    std::env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

fn rustup_home() -> PathBuf {
    std::env::var_os("RUSTUP_HOME").map_or_else(|| home().join(".rustup"), PathBuf::from)
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from)
}

/// One line on standard error about what the set-up does.
fn say(text: &str) {
    eprintln!("set-up: {text}");
}
