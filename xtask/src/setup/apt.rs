//! Packages of Debian and Ubuntu.

use std::process::Command;

use anyhow::{Context as _, bail};

use super::{find_program, say};
use crate::cargo;

/// Which of `packages` are not installed; `None` where there is no dpkg to ask.
pub(super) fn missing<'a>(packages: &[&'a str]) -> Option<Vec<&'a str>> {
    find_program("dpkg-query")?;
    let installed = |package: &&str| {
        let query = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]).output();
        query.is_ok_and(|output| output.stdout == b"installed")
    };
    Some(packages.iter().filter(|package| !installed(package)).copied().collect())
}

/// Whether apt could install a package of this name.
pub(super) fn knows(package: &str) -> bool {
    let policy = Command::new("apt-cache").args(["policy", package]).output();
    policy.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).contains("Candidate: ") && {
            !String::from_utf8_lossy(&output.stdout).contains("Candidate: (none)")
        }
    })
}

/// Installs `packages` for the reason `why`.
///
/// # Errors
/// Not root, no apt, or apt does not have them: the message says what to install.
pub(super) fn install(packages: &[&str], why: &str) -> anyhow::Result<()> {
    let wanted = missing(packages).unwrap_or_else(|| packages.to_vec());
    if wanted.is_empty() {
        return Ok(());
    }
    let line = format!("apt-get install -y --no-install-recommends {}", wanted.join(" "));
    if find_program("apt-get").is_none() {
        bail!("missing: {why}. There is no apt-get here; install what corresponds to: {}", wanted.join(" "));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("missing: {why}. Not root here; as root: {line}");
    }
    say(&format!("missing: {why}"));
    refresh(&wanted)?;
    let unknown: Vec<_> = wanted.iter().copied().filter(|package| !knows(package)).collect();
    if !unknown.is_empty() {
        bail!("missing: {why}. The apt sources of this system do not have {}", unknown.join(", "));
    }
    say(&format!("running `{line}`"));
    let mut command = apt_get();
    command.args(["install", "-y", "--no-install-recommends"]).args(&wanted);
    cargo::run(&mut command).with_context(|| format!("cannot install {}", wanted.join(", ")))
}

/// Makes apt look at its sources again where it does not know all of `packages`. Without root it stays as it is.
///
/// # Errors
/// The sources cannot be read.
pub(super) fn refresh(packages: &[&str]) -> anyhow::Result<()> {
    let useless = find_program("apt-get").is_none() || !nix::unistd::geteuid().is_root();
    if useless || packages.iter().all(|package| knows(package)) {
        return Ok(());
    }
    say("running `apt-get update`");
    cargo::run(apt_get().arg("update"))
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-q", "-o", "DPkg::Lock::Timeout=300"]).env("DEBIAN_FRONTEND", "noninteractive");
    command
}
