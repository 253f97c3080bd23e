//! The pinned Rust, by rustup.

use std::{path::Path, process::Command};

use super::{Purpose, TOOLCHAIN, say};
use crate::cargo;

/// The target of the static binary that the virtual machines run.
pub const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

pub(super) fn ensure(purpose: Purpose) -> anyhow::Result<()> {
    let with_static = purpose >= Purpose::Test && cfg!(target_arch = "x86_64");
    if let Ok(sysroot) = cargo::output(cargo::rustup("rustc").args(["--print", "sysroot"])) {
        let sysroot = Path::new(sysroot.trim());
        let missing = missing(sysroot, with_static);
        if missing.is_empty() {
            return Ok(());
        }
        say(&format!("Rust {TOOLCHAIN} lacks {}", missing.join(", ")));
    } else {
        say(&format!("Rust {TOOLCHAIN} is not installed: the pinned compiler, whose LLVM fits bpf-linker's"));
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", TOOLCHAIN, "--profile", "minimal", "--no-self-update"]);
    install.args(["-c", "rust-src,clippy,rustfmt"]);
    if with_static {
        install.args(["-t", STATIC_TARGET]);
    }
    say(&format!("running {}", cargo::describe(&install)));
    cargo::run(&mut install)
}

/// What the toolchain lacks, with the reason.
fn missing(sysroot: &Path, with_static: bool) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists() {
        missing.push("rust-src (core is built for the BPF target)");
    }
    if !sysroot.join("bin/cargo-clippy").exists() {
        missing.push("clippy");
    }
    if !sysroot.join("bin/rustfmt").exists() {
        missing.push("rustfmt");
    }
    if with_static && !sysroot.join("lib/rustlib").join(STATIC_TARGET).exists() {
        missing.push("the musl target (the virtual machines run a static binary)");
    }
    missing
}
