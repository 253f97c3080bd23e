//! The file system that pins live in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FsWord, statfs},
    mount::{MountFlags, mount},
};

use super::error::{DataplaneError, Result};

/// `BPF_FS_MAGIC`, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: FsWord = 0xcafe_4a11_u32 as FsWord;
const DEFAULT_MOUNT: &str = "/sys/fs/bpf";

/// Whether the path, or the nearest of its parents that exists, is on a bpffs.
pub(crate) fn is_bpffs(path: &Path) -> bool {
    path.ancestors().find_map(|path| statfs(path).ok()).is_some_and(|fs| fs.f_type == BPF_FS_MAGIC)
}

/// Makes sure that the pin directory exists on a bpffs. Mounts `/sys/fs/bpf` if that is where it belongs, nothing is
/// there, and the mount would outlive this process: pins in a private mount namespace die with it.
pub(crate) fn prepare(pin_dir: &Path) -> Result<()> {
    if !is_bpffs(pin_dir) {
        let refuse = |why: String| DataplaneError::NoBpffs {
            path: pin_dir.to_owned(),
            why: format!(": {why}"),
            mount_at: mount_point(pin_dir),
        };
        let default = Path::new(DEFAULT_MOUNT);
        if !pin_dir.starts_with(default) {
            return Err(refuse(format!("only {DEFAULT_MOUNT} is mounted automatically")));
        }
        if is_private_mount_namespace() {
            return Err(refuse("a mount made in this private mount namespace would vanish with it".to_owned()));
        }
        let occupied = fs::read_dir(default).map_err(|error| refuse(error.to_string()))?.next().is_some();
        if occupied {
            return Err(refuse(format!("{DEFAULT_MOUNT} is not empty")));
        }
        let options = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("bpf", default, "bpf", options, c"mode=700").map_err(|error| refuse(error.to_string()))?;
        tracing::info!("mounted a bpffs at {DEFAULT_MOUNT}");
    }
    fs::create_dir_all(pin_dir).map_err(DataplaneError::io(format!("make {}", pin_dir.display())))
}

/// Where somebody would mount a bpffs for this pin directory.
fn mount_point(pin_dir: &Path) -> PathBuf {
    if pin_dir.starts_with(DEFAULT_MOUNT) {
        return DEFAULT_MOUNT.into();
    }
    pin_dir.parent().map_or_else(|| pin_dir.to_owned(), Path::to_owned)
}

/// Inode numbers that the kernel has given to the first mount namespace (`MNT_NS_INIT_INO` since 6.17; before, the first
/// dynamic number, or the one after it).
const FIRST_NAMESPACE: [&str; 3] = ["mnt:[4026531832]", "mnt:[4026531840]", "mnt:[4026531841]"];

/// Whether a mount made here may vanish with this process: it is the first of its container, or in another mount
/// namespace than the first process.
pub(crate) fn is_private_mount_namespace() -> bool {
    let Ok(own) = fs::read_link("/proc/self/ns/mnt") else { return true };
    match fs::read_link("/proc/1/ns/mnt") {
        _ if std::process::id() == 1 => true,
        Ok(first) => own != first,
        // The first process may be closed to us, root or not.
        Err(_) => !FIRST_NAMESPACE.iter().any(|first| own == Path::new(first)),
    }
}
