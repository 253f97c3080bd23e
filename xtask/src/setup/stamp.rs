//! The memory of the set-up: what was verified, and by what it is recognised again in a few stats.

use std::{fmt::Write as _, fs, os::unix::fs::MetadataExt as _, path::PathBuf};

use super::{BPF_LINKER, LLVM_MAJOR, Purpose, TOOLCHAIN, daemons, find_program, linker, rustup_home, tools};
use crate::project;

/// Whether the last set-up for `purpose` still holds.
pub(super) fn holds(purpose: Purpose) -> bool {
    fs::read_to_string(path(purpose)).is_ok_and(|stamp| Some(stamp) == fingerprint(purpose))
}

/// Remembers that everything is here.
pub(super) fn write(purpose: Purpose) -> anyhow::Result<()> {
    if let Some(fingerprint) = fingerprint(purpose) {
        fs::create_dir_all(project::target())?;
        fs::write(path(purpose), fingerprint)?;
    }
    Ok(())
}

fn path(purpose: Purpose) -> PathBuf {
    project::target().join(format!("setup-{}.stamp", purpose.as_str()))
}

/// Changes when anything changes that the set-up looks at; `None` where something is missing.
fn fingerprint(purpose: Purpose) -> Option<String> {
    let mut text = format!("rust {TOOLCHAIN} llvm {LLVM_MAJOR} bpf-linker {BPF_LINKER}\n");
    let toolchains = fs::read_dir(rustup_home().join("toolchains")).ok()?;
    let installed = toolchains.flatten().find(|entry| entry.file_name().to_string_lossy().starts_with(TOOLCHAIN))?;
    // rustup rewrites this file whenever a component comes or goes.
    let components = fs::metadata(installed.path().join("lib/rustlib/components")).ok()?;
    let _ = writeln!(text, "{} {}", installed.path().display(), components.mtime());
    let linker = linker::find()?;
    let meta = fs::metadata(&linker).ok()?;
    let _ = writeln!(text, "{} {} {}", linker.display(), meta.size(), meta.mtime());
    for tool in tools::needed(purpose) {
        let _ = writeln!(text, "{}", find_program(tool.program)?.display());
    }
    if purpose >= Purpose::Test && daemons::obstacle().is_none() {
        for tree in daemons::TREES {
            let _ = writeln!(text, "{}", tree.find()?.display());
        }
    }
    Some(text)
}
