//! `cargo xtask vm`: the end-to-end tests under other kernels, in virtual machines.
//!
//! Each kernel is one that Debian ships, taken from its packages and kept in the target directory; the machine is QEMU
//! without hardware help (nested virtual machines would be slower than that, or stop); user space is busybox, the host's
//! own `ip`, `nft`, `bpftool` and `ping`, and static builds of the program and of the tests.

mod guest;
mod kernels;
mod qemu;

use std::{
    path::PathBuf,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{cargo, debian, project, setup};
use kernels::{KERNELS, Kernel};

/// Processors of this machine for each guest that runs: as many as a guest has. With less, one that is under load may do
/// nothing any more but receive its own packets.
const PROCESSORS_EACH: usize = 2;

/// What runs on every kernel: each program loads, traffic passes, is denied, follows a reload, outlives the process.
const EVERYWHERE: &[&str] = &[
    "kernel::",
    "reach::policy_holds_for_both_families",
    "reach::replies_follow",
    "neighbours::",
    "reload::a_new_deny_cuts",
    "restart::kill_and_restart_under_load",
    "closed::filters_deleted_by_hand",
    "xdp::in_the_driver",
    "purge::nothing_is_left",
];

/// What else runs on the oldest one: what is done by other means there than on the kernels that tests usually run on.
const ON_THE_OLDEST: &[&str] = &[
    "refusal::a_node_that_rejects",
    "refusal::a_connection_that_is_cut",
    "published::what_policy_rejects",
    "services::what_is_known",
    "xdp::switched_off",
    "xdp::workloads_inside",
];

/// What else runs on the oldest and on the newest one: devices and protocols that not every machine's kernel has.
const AT_THE_ENDS: &[&str] = &[
    "devices::a_vlan_in_a_vlan",
    "devices::a_vlan_on_a_bond",
    "devices::a_vlan_beside_its_own_cable",
    "devices::a_bond_that_loses_a_cable",
    "devices::what_is_in_a_vrf",
    "shapes::associations_of_a_real_stack",
    "shapes::super_packets_of_udp",
];

/// Runs the tests under the named series, or all; behind `--` names of other tests may follow.
///
/// # Errors
/// A kernel cannot be had, or a test fails under one.
pub fn run(arguments: &[String]) -> anyhow::Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "the virtual machines are x86_64: there is nothing to run them with here");
    let mut parts = arguments.splitn(2, |argument| argument == "--");
    let names = parts.next().unwrap_or_default();
    let asked: Option<Vec<&str>> = parts.next().map(|filters| filters.iter().map(String::as_str).collect());
    let chosen: Vec<_> = match names {
        [] => KERNELS.iter().collect(),
        names => names.iter().map(|name| find(name)).collect::<anyhow::Result<_>>()?,
    };
    let binaries = build()?;
    let failures = Mutex::new(Vec::new());
    let queue = Mutex::new(chosen.into_iter());
    let at_once = thread::available_parallelism().map_or(1, |processors| (processors.get() / PROCESSORS_EACH).max(1));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                // A name of its own, so that the queue is free while the guest runs.
                let next = || locked(&queue).next();
                while let Some(kernel) = next() {
                    let filters = asked.clone().unwrap_or_else(|| tests_of(kernel));
                    if !passes(kernel, &binaries, &filters) {
                        locked(&failures).push(kernel.series);
                    }
                }
            });
        }
    });
    let failures = locked(&failures);
    ensure!(failures.is_empty(), "failed under {}", failures.join(", "));
    Ok(())
}

fn tests_of(kernel: &Kernel) -> Vec<&'static str> {
    let is = |end: Option<&Kernel>| end.is_some_and(|end| end.series == kernel.series);
    let (oldest, newest) = (is(KERNELS.first()), is(KERNELS.last()));
    let if_so = |so: bool, tests: &'static [&'static str]| if so { tests } else { &[] };
    [EVERYWHERE, if_so(oldest, ON_THE_OLDEST), if_so(oldest || newest, AT_THE_ENDS)].concat()
}

/// Boots a kernel and says how it went.
fn passes(kernel: &Kernel, binaries: &Binaries, filters: &[&str]) -> bool {
    let start = Instant::now();
    let outcome = boot(kernel, binaries, filters);
    let seconds = start.elapsed().as_secs();
    match outcome {
        Ok(report) => println!("vm: {} ok, {report}, {seconds} s", kernel.series),
        Err(error) if kernel.optional && error.is::<kernels::Unavailable>() => {
            println!("vm: {}: {error}", kernel.series);
        }
        Err(error) => {
            println!("vm: {} FAILED after {seconds} s: {error:#}", kernel.series);
            return false;
        }
    }
    true
}

/// What a thread that panicked leaves behind is as good as before.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Static builds for the guests.
struct Binaries {
    program: PathBuf,
    tests: PathBuf,
}

fn find(name: &str) -> anyhow::Result<&'static Kernel> {
    let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.series).collect();
    let found = KERNELS.iter().find(|kernel| kernel.series == name);
    found.with_context(|| format!("no kernel {name}; there are {}", known.join(", ")))
}

fn build() -> anyhow::Result<Binaries> {
    let mut command = cargo::pinned("build");
    command.args(["--release", "--target", setup::STATIC_TARGET, "--message-format", "json-render-diagnostics"]);
    // They are unpacked by an emulated processor.
    command.args(["--config", "profile.release.strip=true"]);
    // Together, so that their dependencies are built once.
    command.args(["--package", "calico-ebpf-user", "--bin", "calico-ebpf"]);
    command.args(["--package", "calico-ebpf-tests", "--test", "e2e"]);
    let messages = cargo::output(command.env_remove("AYA_BUILD_SKIP")).context("the static build fails")?;
    let messages: Vec<Value> = messages.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let executable = |name: &str| {
        let mut of_target = messages.iter().filter(|message| message["target"]["name"] == name);
        let path = of_target.find_map(|message| message["executable"].as_str().map(PathBuf::from));
        path.with_context(|| format!("cargo does not say where {name} is"))
    };
    Ok(Binaries { program: executable("calico-ebpf")?, tests: executable("e2e")? })
}

/// One kernel: its tests, and whether the facts are those of the table.
fn boot(kernel: &Kernel, binaries: &Binaries, filters: &[&str]) -> anyhow::Result<String> {
    let files = kernels::fetch(kernel)?;
    let image = guest::image(kernel, &files, &binaries.program, &binaries.tests, filters)?;
    let log = project::target().join("vm").join(format!("{}.log", kernel.series));
    let text = qemu::boot(&files.kernel, &image, &log)?;
    let _space = std::fs::remove_file(&image);
    let code = text.lines().find_map(|line| line.trim().strip_prefix(guest::EXIT));
    match code.map(str::trim) {
        Some("0") => {}
        Some(code) => bail!("the tests failed with {code}; see {}\n{}", log.display(), failed(&text)),
        None => bail!("no verdict; see {}", log.display()),
    }
    let facts: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("fact: ")).collect();
    // Facts come from the tests of the table's own module.
    let asked = filters.contains(&"kernel::");
    for expected in kernel.facts.iter().filter(|_| asked) {
        ensure!(facts.contains(expected), "{expected} is expected of this kernel, the guest says {facts:?}");
    }
    let summary = text.lines().find(|line| line.contains("test result:")).unwrap_or_default();
    let passed = summary.split_whitespace().nth(3).unwrap_or("?");
    ensure!(passed.parse::<u32>().is_ok_and(|count| count as usize >= filters.len()), "only {passed} tests ran");
    Ok(format!("{passed} tests, {}", facts.join(", ")))
}

/// The lines that say what failed.
fn failed(text: &str) -> String {
    let lines = text.lines().filter(|line| line.contains("FAILED") || line.contains("panicked"));
    lines.take(10).collect::<Vec<_>>().join("\n")
}

/// Says why the virtual machines cannot be run here, if so.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("this is not x86_64".into());
    }
    let missing = ["qemu-system-x86_64", "busybox", "cpio", "dpkg-deb", "apt-get", "dash"];
    let missing: Vec<_> = missing.into_iter().filter(|name| setup::find_program(name).is_none()).collect();
    if !missing.is_empty() {
        return Some(format!("{} missing", missing.join(", ")));
    }
    debian::mirror().is_none().then(|| debian::NO_MIRROR.to_owned())
}

/// Runs a command whose output nobody wants to see.
fn quiet(command: &mut Command) -> anyhow::Result<()> {
    cargo::output(command).map(drop)
}
