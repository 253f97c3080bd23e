//! The file system of a virtual machine.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};

use super::{
    kernels::{Files, Kernel},
    quiet,
};
use crate::{project, setup};

/// What the last line of the guest begins with; its exit code follows.
pub(super) const EXIT: &str = "guest exit:";

/// The host's programs that the tests call. Busybox has an `ip` too, which cannot do namespaces.
const PROGRAMS: &[&str] = &["ip", "tc", "nft", "bpftool", "ping", "ethtool", "socat", "dash"];
/// Busybox stands in for these.
const APPLETS: &[&str] = &["mount", "modprobe", "insmod", "sysctl", "poweroff", "mkdir", "cat", "sleep", "true"];
/// The modules that traffic needs, as directories and files of `kernel/`.
const MODULES: &[&str] = &[
    "net",
    "lib",
    "crypto",
    "arch",
    "drivers/net/veth.ko",
    "drivers/net/macvlan.ko",
    "drivers/net/dummy.ko",
    "drivers/net/tun.ko",
    "drivers/net/vrf.ko",
    "drivers/net/bonding",
];

/// Packs the file system; returns its path.
pub(super) fn image(
    kernel: &Kernel,
    files: &Files,
    program: &Path,
    tests: &Path,
    filters: &[&str],
) -> anyhow::Result<PathBuf> {
    let base = project::target().join("vm");
    let root = base.join(format!("root-{}", kernel.series));
    let _leftovers = fs::remove_dir_all(&root);
    for directory in ["bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "run", "tmp", "etc", "root"] {
        fs::create_dir_all(root.join(directory))?;
    }
    copy(program, &root.join("calico-ebpf"))?;
    copy(tests, &root.join("e2e"))?;
    let busybox = setup::find_program("busybox").context("no busybox")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    for applet in APPLETS {
        symlink("/bin/busybox", root.join("bin").join(applet))?;
    }
    // Where the kernel looks for it.
    symlink("/bin/busybox", root.join("sbin/modprobe"))?;
    for name in PROGRAMS {
        let path = setup::find_program(name).with_context(|| format!("no {name}"))?;
        copy(&path, &root.join("usr/bin").join(name))?;
        libraries(&path, &root)?;
    }
    symlink("/usr/bin/dash", root.join("bin/sh"))?;
    modules(files, &root)?;
    script(&root, filters)?;
    let image = base.join(format!("{}.cpio", kernel.series));
    pack(&root, &image)?;
    fs::remove_dir_all(&root)?;
    Ok(image)
}

fn script(root: &Path, filters: &[&str]) -> anyhow::Result<()> {
    let init = format!(
        "#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CALICO_EBPF_BIN=/calico-ebpf
# What this kernel lacks, a test may not pass over.
export CALICO_EBPF_NO_SKIP=1
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
# What some kernels do not load by themselves.
for module in veth macvlan tun vrf 8021q bonding sctp sch_ingress cls_bpf act_bpf nf_tables nft_chain_nat; do modprobe $module; done
/e2e --nocapture --test-threads=1 {}
echo '{EXIT}' $?
poweroff -f
",
        filters.join(" ")
    );
    let path = root.join("init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn modules(files: &Files, root: &Path) -> anyhow::Result<()> {
    let to = root.join("lib/modules").join(&files.release);
    fs::create_dir_all(to.join("kernel/drivers/net"))?;
    for part in MODULES {
        let from = files.modules.join("kernel").join(part);
        if from.exists() {
            quiet(Command::new("cp").arg("-a").arg(&from).arg(to.join("kernel").join(part)))?;
        }
    }
    for name in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        let _not_in_every_kernel = fs::copy(files.modules.join(name), to.join(name));
    }
    quiet(Command::new("depmod").arg("-b").arg(root).arg(&files.release))
}

/// Copies the shared libraries that a program is linked with, and the loader.
fn libraries(program: &Path, root: &Path) -> anyhow::Result<()> {
    let output = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(path.trim_start_matches('/'));
        if !to.exists() {
            if let Some(directory) = to.parent() {
                fs::create_dir_all(directory)?;
            }
            copy(Path::new(path), &to)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn pack(root: &Path, image: &Path) -> anyhow::Result<()> {
    let listed = Command::new("find").arg(".").current_dir(root).output()?;
    let file = fs::File::create(image)?;
    let mut cpio = Command::new("cpio");
    cpio.args(["-o", "-H", "newc", "-R", "0:0", "--quiet"]).current_dir(root);
    let mut child = cpio.stdin(Stdio::piped()).stdout(file).spawn().context("cannot start cpio")?;
    child.stdin.take().context("standard input was asked for")?.write_all(&listed.stdout)?;
    ensure!(child.wait()?.success(), "cpio failed");
    Ok(())
}
