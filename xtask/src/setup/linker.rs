//! bpf-linker, of the LLVM that the pinned rustc has.
//!
//! rustc hands over bitcode, which only the same major version of LLVM is sure to read; the symptom of a mismatch is nothing
//! but `Invalid record` in the middle of the build.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::{BPF_LINKER, LLVM_MAJOR, TOOLCHAIN, apt, cargo_home, find_program, say, tools};
use crate::cargo;

/// What is needed to build bpf-linker, by the names of Debian's packages.
const PACKAGES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "g++"];

/// The bpf-linker that the build would use.
pub(super) fn find() -> Option<PathBuf> {
    let ours = tools().join("bin/bpf-linker");
    if ours.exists() { Some(ours) } else { find_program("bpf-linker") }
}

pub(super) fn ensure() -> anyhow::Result<()> {
    let rustc = rustc_llvm()?;
    ensure!(
        rustc == LLVM_MAJOR,
        "Rust {TOOLCHAIN} here has LLVM {rustc}, not {LLVM_MAJOR}: this is not the toolchain that this project is pinned to"
    );
    let Some(found) = find() else {
        say("bpf-linker is missing: it links the kernel side");
        return install(&cargo_home());
    };
    match linker_llvm(&found) {
        Some(LLVM_MAJOR) => Ok(()),
        Some(other) => {
            say(&format!(
                "{} is built with LLVM {other}, rustc {} with LLVM {rustc}: such a pair fails with `Invalid record`",
                found.display(),
                TOOLCHAIN
            ));
            say("yours is left alone, another one is put into the target directory");
            install(&tools())
        }
        None => {
            say(&format!("cannot tell which LLVM {} is built with, {rustc} is needed; taking it", found.display()));
            Ok(())
        }
    }
}

fn install(root: &Path) -> anyhow::Result<()> {
    let error = match llvm_prefix() {
        Ok(prefix) => return build(root, &prefix),
        Err(error) => error,
    };
    say(&format!("{error:#}"));
    say(&format!("building bpf-linker with the LLVM inside of Rust {TOOLCHAIN} instead, for this project alone"));
    rustc_prefix().and_then(|prefix| build(&tools(), &prefix)).with_context(|| {
        format!(
            "bpf-linker is needed, built with LLVM {LLVM_MAJOR}. One of these, then run this command again:\n\
             * a distribution that has LLVM {LLVM_MAJOR} (Debian 12 and 13 do): apt-get install {packages}\n\
             * the LLVM project's own packages for your release, then: apt-get install {packages}\n\
             * LLVM {LLVM_MAJOR} anywhere else, with LLVM_PREFIX naming its directory\n\
             * a ready-made bpf-linker of LLVM {LLVM_MAJOR}, put on the PATH",
            packages = PACKAGES.join(" ")
        )
    })
}

/// Builds it with the LLVM in `prefix`, and looks at what came out.
fn build(root: &Path, prefix: &Path) -> anyhow::Result<()> {
    let mut command = cargo::rustup("cargo");
    command.args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--no-default-features"]);
    command.arg("--features").arg(format!("llvm-{LLVM_MAJOR}")).arg("--root").arg(root).env("LLVM_PREFIX", prefix);
    say(&format!("running LLVM_PREFIX={} {} (about a minute)", prefix.display(), cargo::describe(&command)));
    cargo::run(&mut command)?;
    let found = root.join("bin/bpf-linker");
    let llvm = linker_llvm(&found).with_context(|| format!("{} does not say its LLVM", found.display()))?;
    ensure!(llvm == LLVM_MAJOR, "{} came out with LLVM {llvm}, not {LLVM_MAJOR}", found.display());
    cargo::output(Command::new(&found).arg("--version")).map(drop)
}

/// The installation of LLVM to build against, installed if need be.
fn llvm_prefix() -> anyhow::Result<PathBuf> {
    let usual = PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}"));
    let given = std::env::var_os("LLVM_PREFIX").map(PathBuf::from);
    if let Some(prefix) = given.filter(|prefix| prefix.join("bin/llvm-config").exists()) {
        return Ok(prefix);
    }
    let complete = usual.join("bin/llvm-config").exists() && usual.join("include/llvm-c/Core.h").exists();
    if !complete || apt::missing(PACKAGES).is_some_and(|missing| !missing.is_empty()) {
        apt::install(PACKAGES, &format!("LLVM {LLVM_MAJOR}, to build bpf-linker against"))?;
    }
    Ok(usual)
}

/// The library that rustc itself uses, under the name that bpf-linker's build looks for: the same LLVM to the last patch, with
/// the BPF back end, and it needs no package. It is bound to this place, so such a linker is for this project alone.
fn rustc_prefix() -> anyhow::Result<PathBuf> {
    let sysroot = cargo::output(cargo::rustup("rustc").args(["--print", "sysroot"]))?;
    let libraries = Path::new(sysroot.trim()).join("lib");
    let name = format!("libLLVM.so.{LLVM_MAJOR}.");
    let found = fs::read_dir(&libraries).with_context(|| libraries.display().to_string())?.flatten();
    let library = found
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&name)));
    let library = library.with_context(|| format!("no {name}* in {}", libraries.display()))?;
    let prefix = tools().join("rustc-llvm");
    let directory = prefix.join("lib");
    fs::create_dir_all(&directory)?;
    // One name for the linker, the other (its soname) for the program when it runs.
    for link in [Path::new("libLLVM.so"), Path::new(library.file_name().unwrap_or_default())] {
        let link = directory.join(link);
        if link.is_symlink() {
            fs::remove_file(&link)?;
        }
        symlink(&library, &link).with_context(|| link.display().to_string())?;
    }
    Ok(prefix)
}

fn rustc_llvm() -> anyhow::Result<u32> {
    let version = cargo::output(cargo::rustup("rustc").arg("-vV"))?;
    let line = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    line.and_then(major).with_context(|| format!("rustc does not say its LLVM version:\n{version}"))
}

/// The LLVM that a bpf-linker is built with: by the library that it is linked with, or by the name of its bitcode's producer.
fn linker_llvm(linker: &Path) -> Option<u32> {
    let libraries = Command::new("ldd").arg(linker).output().ok();
    let libraries = libraries.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let linked = libraries.lines().find_map(|line| {
        let name = line.trim_start();
        let version = name.strip_prefix("libLLVM.so.").or_else(|| name.strip_prefix("libLLVM-"))?;
        major(version)
    });
    linked.or_else(|| producer(&fs::read(linker).ok()?))
}

/// Finds `LLVM22.1.8`, which every LLVM writes into its bitcode.
fn producer(binary: &[u8]) -> Option<u32> {
    const MARK: &[u8] = b"LLVM";
    let starts = binary.windows(MARK.len()).enumerate().filter(|(_, bytes)| *bytes == MARK);
    starts.map(|(at, _)| &binary[at + MARK.len()..]).find_map(|rest| {
        let end = rest.iter().take(12).take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
        let version = std::str::from_utf8(rest.get(..end)?).ok()?;
        (version.split('.').count() >= 3).then(|| major(version)).flatten()
    })
}

fn major(version: &str) -> Option<u32> {
    let digits = version.len() - version.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
    version.get(..digits)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{major, producer};

    #[test]
    fn major_of_a_version() {
        assert_eq!(major("22.1.8"), Some(22));
        assert_eq!(major("22.1 => /usr/lib/x"), Some(22));
        assert_eq!(major("x"), None);
    }

    #[test]
    fn producer_is_a_whole_version() {
        assert_eq!(producer(b"..LLVM error..LLVM22.1.8\0..."), Some(22));
        assert_eq!(producer(b"LLVM22 LLVM"), None);
    }
}
