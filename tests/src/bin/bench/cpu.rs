//! Processors: benchmarks say where they run.

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
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
