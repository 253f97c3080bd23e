//! Who made a laboratory: written into its name, so that what a killed process left can be removed by the next one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context as _;

use super::namespace::kill_processes;

/// What all names begin with.
const PREFIX: &str = "calilab";
/// Where pins go.
const BPFFS: &str = "/sys/fs/bpf";

/// Names given out by this process.
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A name that nobody else has: prefix, process, the time that process started, number.
///
/// Whatever begins with it is removed by [`reap`] once this process is dead: network namespaces, and directories in the bpf
/// file system and among the temporary ones, also where a file system is mounted.
///
/// # Errors
/// `/proc` cannot be read.
pub fn unique_name() -> anyhow::Result<String> {
    let pid = std::process::id();
    let start = start_time(pid).context("cannot read /proc/self/stat")?;
    Ok(format!("{PREFIX}-{pid}-{start}-{}", COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// Where a laboratory of that name pins.
#[must_use]
pub fn pin_dir(lab: &str) -> PathBuf {
    Path::new(BPFFS).join(lab)
}

/// Removes what is pinned under the laboratory's directory.
pub(super) fn remove_pins(lab: &str) {
    // Everything under it is a pin: a file, or a directory of such.
    let _nothing_pinned = fs::remove_dir_all(pin_dir(lab));
}

/// Removes laboratories whose process is dead: namespaces, the processes in them, pins, temporary directories and mounts.
pub fn reap() {
    for name in names(Path::new("/run/netns")).filter(|name| is_orphan(name)) {
        kill_processes(&name);
        let _gone = Command::new("ip").args(["netns", "del", &name]).status();
    }
    for name in names(Path::new(BPFFS)).filter(|name| is_orphan(name)) {
        remove_pins(&name);
    }
    let temporary = std::env::temp_dir();
    for name in names(&temporary).filter(|name| is_orphan(name)) {
        let directory = temporary.join(name);
        let _nothing_mounted = Command::new("umount").arg("-l").arg(&directory).stderr(Stdio::null()).status();
        let _gone = fs::remove_dir_all(&directory);
    }
}

/// Whether the process that gave out this name with [`unique_name`] lives.
#[must_use]
pub fn is_kept(name: &str) -> bool {
    name.starts_with(PREFIX) && !is_orphan(name)
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
}

/// Whether it belongs to a laboratory of ours whose process is gone.
fn is_orphan(name: &str) -> bool {
    let mut parts = name.split('-');
    if parts.next() != Some(PREFIX) {
        return false;
    }
    let (Some(pid), Some(start)) = (number(parts.next()), number(parts.next())) else { return false };
    u32::try_from(pid).is_ok_and(|pid| start_time(pid) != Some(start))
}

fn number(text: Option<&str>) -> Option<u64> {
    text?.parse().ok()
}

/// When a process started, in ticks since boot: field 22 of `stat`, 20 fields after the name in parentheses.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    number(stat.rsplit_once(") ")?.1.split(' ').nth(19))
}

#[cfg(test)]
mod tests {
    use super::{is_orphan, start_time, unique_name};

    #[test]
    fn own_labs_are_no_orphans() {
        let own = unique_name().expect("reads /proc");
        assert!(!is_orphan(&own));
        assert!(!is_orphan(&format!("{own}-host")));
    }

    #[test]
    fn reused_pid_is_an_orphan() {
        let pid = std::process::id();
        let start = start_time(pid).expect("reads /proc");
        assert!(is_orphan(&format!("calilab-{pid}-{}-0-host", start + 1)));
        assert!(!is_orphan(&format!("other-{pid}-{}-0-host", start + 1)));
        assert!(!is_orphan("calilab-notes"));
    }
}
