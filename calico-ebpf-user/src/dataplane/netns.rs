//! Network namespaces.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    os::{
        fd::AsFd as _,
        unix::{fs::MetadataExt as _, net::UnixDatagram},
    },
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    error::{DataplaneError, Result},
    sys,
};

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

/// The cookie of the calling thread's network namespace, which no other one ever has while the machine runs. `None` before Linux 5.14.
pub(crate) fn cookie() -> Option<u64> {
    sys::namespace_cookie(UnixDatagram::unbound().ok()?.as_fd())
}

/// A way to the network namespace with this cookie: its name, or a process in it. `None` if there is none, so that nobody can
/// be in it.
pub(crate) fn find(wanted: u64) -> Option<PathBuf> {
    let entries = |directory| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let of_processes = entries("/proc").map(|process| process.join("ns/net"));
    let mut paths: Vec<_> = entries(NAMED).chain(of_processes).collect();
    let mut seen = HashSet::new();
    paths.retain(|path| fs::metadata(path).is_ok_and(|found| seen.insert(found.ino())));
    // Only who is in one can ask for its cookie: a thread that ends with that.
    let look = move || {
        let is_wanted =
            |path: &PathBuf| path.to_str().is_some_and(|name| enter(name).is_ok()) && cookie() == Some(wanted);
        paths.into_iter().find(is_wanted)
    };
    thread::spawn(look).join().ok().flatten()
}
