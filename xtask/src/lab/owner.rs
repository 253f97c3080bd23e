//! Who made a laboratory: written into its name, so that what a killed process left can be removed by the next one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::namespace::kill_processes;

/// What all names begin with.
const PREFIX: &str = "calilab";
/// Where pins go.
const BPFFS: &str = "/sys/fs/bpf";

/// The name of the laboratory `number` of this process: prefix, process, the time that process started, number.
pub(super) fn name(number: u32) -> anyhow::Result<String> {
    let pid = std::process::id();
    let start = start_time(pid).context("cannot read /proc/self/stat")?;
    Ok(format!("{PREFIX}-{pid}-{start}-{number}"))
}

pub(super) fn pin_dir(lab: &str) -> PathBuf {
    Path::new(BPFFS).join(lab)
}

/// Removes what is pinned under the laboratory's directory.
pub(super) fn remove_pins(lab: &str) {
    // Everything under it is a pin: a file, or a directory of such.
    let _nothing_pinned = fs::remove_dir_all(pin_dir(lab));
}

/// Removes laboratories whose process is dead: namespaces, the processes in them, pins.
pub fn reap() {
    for name in names("/run/netns").filter(|name| is_orphan(name)) {
        kill_processes(&name);
        let _gone = Command::new("ip").args(["netns", "del", &name]).status();
    }
    for name in names(BPFFS).filter(|name| is_orphan(name)) {
        remove_pins(&name);
    }
}

fn names(directory: &str) -> impl Iterator<Item = String> {
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
    use super::{is_orphan, name, start_time};

    #[test]
    fn own_labs_are_no_orphans() {
        let own = name(0).expect("reads /proc");
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
