//! bpftool on Ubuntu 24.04: what is on the `PATH` is a script that looks for the one of the running kernel, and refuses where
//! that kernel is not Ubuntu's or its tools are not installed. One of another kernel does as well.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{apt, find_program, say, tools};

/// Where Ubuntu puts the tools of each kernel, a directory each.
const OF_KERNELS: &str = "/usr/lib";

/// Makes sure that bpftool is not only there but works.
pub(super) fn ensure() -> anyhow::Result<()> {
    let Some(found) = find_program("bpftool") else { return Ok(()) };
    if works(&found) {
        return Ok(());
    }
    say(&format!("{} does not work for the kernel that runs here", found.display()));
    if of_a_kernel().is_none() {
        apt::install(&["linux-tools-generic"], "bpftool (shows the maps)")?;
    }
    let real = of_a_kernel().with_context(|| {
        format!("{} does not work, and linux-tools-generic has none: install a bpftool that does", found.display())
    })?;
    let link = tools().join("bin/bpftool");
    say(&format!("taking {} for it", real.display()));
    fs::create_dir_all(tools().join("bin"))?;
    if link.is_symlink() {
        fs::remove_file(&link)?;
    }
    symlink(&real, &link).with_context(|| link.display().to_string())
}

fn works(bpftool: &Path) -> bool {
    Command::new(bpftool).arg("version").output().is_ok_and(|output| output.status.success())
}

/// The newest-named one that works, of whatever kernel.
fn of_a_kernel() -> Option<PathBuf> {
    let directories = fs::read_dir(OF_KERNELS).ok()?.flatten().map(|entry| entry.path());
    let tools = directories
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("linux-tools-")));
    let mut found: Vec<_> = tools.map(|path| path.join("bpftool")).filter(|path| path.is_file()).collect();
    found.sort();
    found.into_iter().rev().find(|bpftool| works(bpftool))
}
