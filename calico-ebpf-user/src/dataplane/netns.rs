//! Network namespaces.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{DataplaneError, Result};

/// Where `ip netns` keeps those with a name.
const NAMED: &str = "/run/netns";

/// Moves the calling thread into the network namespace `name` (as in `ip netns`) or, with a slash in it, of that path.
/// Nothing but the network namespace changes. Threads started later inherit it, so call it first of all.
///
/// # Errors
/// [`DataplaneError::Netns`] if there is no such namespace, or for want of privilege.
pub fn enter(name: &str) -> Result<()> {
    let path = if name.contains('/') { PathBuf::from(name) } else { Path::new(NAMED).join(name) };
    let entered = File::open(&path).and_then(|file| {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
    });
    entered.map_err(|source| DataplaneError::Netns { name: name.to_owned(), source })
}

/// The kernel's number of the calling thread's network namespace (the inode of it in `/proc`). It may be given out again when the
/// namespace is gone.
///
/// # Errors
/// If `/proc` cannot be read.
pub(crate) fn own() -> Result<u64> {
    let path = "/proc/thread-self/ns/net";
    fs::metadata(path).map(|found| found.ino()).map_err(DataplaneError::io(format!("look at {path}")))
}

/// A way to the network namespace with this number: its name, or a process in it. `None` if there is none, so that nobody can
/// be in it.
pub(crate) fn find(number: u64) -> Option<PathBuf> {
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = entries(NAMED);
    let of_processes = entries("/proc").map(|process| process.join("ns/net"));
    named.chain(of_processes).find(|path| fs::metadata(path).is_ok_and(|found| found.ino() == number))
}
