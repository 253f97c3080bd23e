//! One network namespace, under a name in `/run/netns`.

use std::{
    fs::File,
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::cargo;

/// A named network namespace. Dropping what made it removes the name; it ends with its last process and socket.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    made: bool,
}

impl Namespace {
    /// Makes it, with the loopback device up.
    ///
    /// # Errors
    /// Not root, or the name is taken.
    pub fn create(name: String) -> anyhow::Result<Self> {
        cargo::output(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name, made: true };
        namespace.ip_batch("link set lo up")?;
        Ok(namespace)
    }

    /// One that somebody else made, and removes.
    #[must_use]
    pub const fn of_others(name: String) -> Self {
        Self { name, made: false }
    }

    /// Its name, as `ip netns` takes it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip ARGUMENTS` in it, arguments separated by blanks, and returns what it prints.
    ///
    /// # Errors
    /// It fails.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        cargo::output(Command::new("ip").args(["-n", &self.name]).args(arguments.split_whitespace()))
    }

    /// Runs one `ip` command a line.
    ///
    /// # Errors
    /// The first that fails; those before it were done.
    pub fn ip_batch(&self, lines: &str) -> anyhow::Result<()> {
        ip_batch(&self.name, lines)
    }

    /// A command that runs in it. Note that `ip netns exec` gives it a fresh `/sys`, without a bpf file system.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay there.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    ///
    /// # Panics
    /// `work` does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        enter(&self.name, work)
    }

    /// Writes `value` to a file under `/proc/sys`, as the namespace sees it.
    ///
    /// # Errors
    /// There is no such file, or the kernel refuses the value.
    pub fn sysctl(&self, file: &str, value: &str) -> anyhow::Result<()> {
        write(&self.name, &format!("/proc/sys/{file}"), value)
    }

    /// Ends all processes that live in it.
    pub fn kill_processes(&self) {
        kill_processes(&self.name);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.made {
            return;
        }
        let _already_gone = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
    }
}

fn enter<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let path = format!("/run/netns/{name}");
    let file = File::open(&path).with_context(|| path.clone())?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| setns(&file, CloneFlags::CLONE_NEWNET).map(|()| work()));
        match thread.join() {
            Ok(result) => result.with_context(|| format!("cannot enter {path}")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Writes `value` to a file under `/proc/sys`, as the namespace `name` sees it.
pub(super) fn write(name: &str, file: &str, value: &str) -> anyhow::Result<()> {
    enter(name, || std::fs::write(file, value))?.with_context(|| format!("cannot write {file} in {name}"))
}

/// Ends all processes in the namespace `name`, but never this one.
pub(super) fn kill_processes(name: &str) {
    let Ok(pids) = cargo::output(Command::new("ip").args(["netns", "pids", name])) else { return };
    let own = std::process::id();
    for pid in pids.lines().filter_map(|line| line.trim().parse::<u32>().ok()).filter(|pid| *pid != own) {
        if let Ok(pid) = i32::try_from(pid) {
            let _ended_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

pub(super) fn ip_batch(namespace: &str, lines: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace, "-batch", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        // A broken pipe: it has failed, and says so below.
        let _ = input.write_all(lines.as_bytes()).and_then(|()| input.write_all(b"\n"));
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip in {namespace} failed: {}\n{lines}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
