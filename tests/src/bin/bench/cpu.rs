//! Processors: benchmarks say where they run.

use std::{fs, time::Duration};

use anyhow::Context as _;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, SysconfVar, sysconf},
};

/// Processors of this machine.
pub(crate) fn count() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// Keeps the calling thread on one processor.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(())
}

/// Processor time that a process has taken: its own and the kernel's for it.
pub(crate) fn taken(pid: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may contain anything: utime and stime are the 14th and 15th field (proc(5)).
    let (_, fields) = text.rsplit_once(')').context("no name")?;
    let ticks: Vec<u64> = fields.split_whitespace().skip(11).take(2).map(str::parse).collect::<Result<_, _>>()?;
    let hz = sysconf(SysconfVar::CLK_TCK)?.context("no clock")?;
    Ok(Duration::from_secs_f64(ticks.iter().sum::<u64>() as f64 / hz as f64))
}
