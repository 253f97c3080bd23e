//! One installed data path: its pin directory, its names, and the lock that keeps two processes off it.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use calico_ebpf_common::abi::LAYOUT_VERSION;
use rustix::fs::{FlockOperation, Mode, OFlags};

use super::error::{DataplaneError, Result};

/// Where it is pinned by default.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/calico-ebpf";

/// An instance, named by its pin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    pin_dir: PathBuf,
}

impl Default for Instance {
    fn default() -> Self {
        Self { pin_dir: DEFAULT_PIN_DIR.into() }
    }
}

impl Instance {
    /// The instance of this pin directory, which need not exist.
    #[must_use]
    pub fn new(pin_dir: impl Into<PathBuf>) -> Self {
        Self { pin_dir: pin_dir.into() }
    }

    /// The pin directory.
    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Where the maps and links of this layout version are pinned: maps by their names, links as `link_IFINDEX_in` and
    /// `link_IFINDEX_out`.
    #[must_use]
    pub fn layout_dir(&self) -> PathBuf {
        self.pin_dir.join(format!("v{LAYOUT_VERSION}"))
    }

    /// A name fit for a file: the pin directory with `_` for `/`, other special characters as `%XX`.
    #[must_use]
    pub fn name(&self) -> String {
        let text = self.pin_dir.to_string_lossy();
        let mut name = String::with_capacity(text.len());
        for byte in text.trim_matches('/').bytes() {
            match byte {
                b'/' => name.push('_'),
                b'-' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => name.push(char::from(byte)),
                _ => name.push_str(&format!("%{byte:02X}")),
            }
        }
        // A socket's path has 107 characters.
        if name.len() > 60 {
            let tail = name.split_off(44);
            name.push_str(&format!("~{:08x}", fnv1a(tail.as_bytes())));
        }
        name
    }

    /// Whether anything of this layout version is installed.
    #[must_use]
    pub fn is_installed(&self) -> bool {
        self.layout_dir().join(calico_ebpf_common::abi::names::ROOT).exists()
    }

    /// Locks the instance; the pin directory must exist. The lock goes with the process.
    ///
    /// # Errors
    /// [`DataplaneError::Busy`] if another process has it and keeps it for a second.
    pub fn lock(&self) -> Result<Lock> {
        patiently(|| self.try_lock(), |error| matches!(error, DataplaneError::Busy { .. }))
    }

    fn try_lock(&self) -> Result<Lock> {
        // A purge may remove the directory between opening and locking it.
        for _ in 0..8 {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let what = || format!("lock {}", self.pin_dir.display());
            let fd = rustix::fs::open(&self.pin_dir, flags, Mode::empty())
                .map_err(io::Error::from)
                .map_err(DataplaneError::io(what()))?;
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(DataplaneError::Busy { path: self.pin_dir.clone() });
                }
                Err(error) => return Err(DataplaneError::io(what())(error.into())),
            }
            let locked = rustix::fs::fstat(&fd).map_err(io::Error::from).map_err(DataplaneError::io(what()))?;
            if fs::metadata(&self.pin_dir).is_ok_and(|now| now.ino() == locked.st_ino) {
                return Ok(Lock { directory: fd });
            }
        }
        Err(DataplaneError::Busy { path: self.pin_dir.clone() })
    }

    /// Whether a process holds the lock, and keeps it for a second.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.lock(), Err(DataplaneError::Busy { .. }))
    }
}

/// The instance is ours until this is dropped.
#[derive(Debug)]
pub struct Lock {
    directory: OwnedFd,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing would not do while a child that has not executed its program yet holds a copy of the descriptor.
        let _ = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
    }
}

/// Tries again for a second what fails because something is taken. Of a process that was killed, a child that has not executed its
/// program yet may still hold copies of the descriptors.
///
/// # Errors
/// Those of the last attempt.
pub(crate) fn patiently<T, E>(attempt: impl Fn() -> Result<T, E>, is_taken: impl Fn(&E) -> bool) -> Result<T, E> {
    const NAP: Duration = Duration::from_millis(10);
    // Naps and not a time: on a machine that stands still for a moment, whoever has it gets no further either.
    for _ in 0..100 {
        match attempt() {
            Err(error) if is_taken(&error) => thread::sleep(NAP),
            outcome => return outcome,
        }
    }
    attempt()
}

/// FNV-1a, 32 bits: short, and the same in every version.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_lock_that_goes_soon_is_waited_for() {
        let instance = Instance::new(std::env::temp_dir().join(format!("calico-ebpf-lock-{}", std::process::id())));
        fs::create_dir(instance.pin_dir()).expect("a directory");
        let lock = instance.lock().expect("free");
        assert!(instance.is_running());
        let child = thread::spawn(move || {
            thread::sleep(Duration::from_millis(200));
            drop(lock);
        });
        let again = instance.lock();
        let _ended = child.join();
        fs::remove_dir(instance.pin_dir()).expect("removed");
        again.expect("free again");
    }

    #[test]
    fn names_are_distinct_and_fit_for_files() {
        assert_eq!(Instance::default().name(), "sys_fs_bpf_calico-ebpf");
        assert_ne!(Instance::new("/a_b").name(), Instance::new("/a/b").name());
        let long = |end| Instance::new(format!("/sys/fs/bpf/{}{end}", "x".repeat(200))).name();
        assert!(long("1").len() <= 60);
        assert_ne!(long("1"), long("2"));
    }
}
