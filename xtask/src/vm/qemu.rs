//! Starting a virtual machine and listening to its console.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

/// How long a machine may take: it emulates every instruction.
const PATIENCE: Duration = Duration::from_secs(1500);
/// All that the emulator can, but the fast string instructions: it goes through them byte by byte, and the verifier
/// copies whole programs for each instruction that it replaces. Loading takes half the time without.
const CPU: &str = "max,-erms,-fsrm";
/// The sign of QEMU's emulation racing with a kernel that changes its own text, once in hundreds of boots.
const EMULATOR_RACE: &str = "int3: 0000";

/// Boots and waits for the end; returns what was on the console, which is in `log` too.
pub(super) fn boot(kernel: &Path, image: &Path, log: &Path) -> anyhow::Result<String> {
    let text = once(kernel, image, log)?;
    if text.contains(EMULATOR_RACE) {
        eprintln!("vm: the emulator has raced with the kernel, once more");
        return once(kernel, image, log);
    }
    Ok(text)
}

fn once(kernel: &Path, image: &Path, log: &Path) -> anyhow::Result<String> {
    let mut command = Command::new("qemu-system-x86_64");
    // Never KVM: where it is nested it may stop the guest instead of failing.
    command.args(["-accel", "tcg", "-cpu", CPU, "-smp", "2", "-m", "1536", "-nographic", "-no-reboot", "-nic", "none"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(image).args(["-append", "console=ttyS0 panic=-1 quiet"]);
    let output = fs::File::create(log)?;
    let child = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::inherit()).spawn();
    let mut machine = Machine(child.context("cannot start qemu-system-x86_64")?);
    let end = Instant::now() + PATIENCE;
    while machine.0.try_wait()?.is_none() {
        if Instant::now() > end {
            bail!("no end after {PATIENCE:?}; see {}", log.display());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(String::from_utf8_lossy(&fs::read(log)?).replace('\r', ""))
}

/// A running machine; ends with its owner.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ = self.0.wait();
    }
}
