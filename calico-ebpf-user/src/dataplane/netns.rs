//! Network namespaces.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{DataplaneError, Result};

/// Moves the calling thread into the network namespace `name` (as in `ip netns`) or, with a slash in it, of that path.
/// Nothing but the network namespace changes. Threads started later inherit it, so call it first of all.
///
/// # Errors
/// [`DataplaneError::Netns`] if there is no such namespace, or for want of privilege.
pub fn enter(name: &str) -> Result<()> {
    let path = if name.contains('/') { PathBuf::from(name) } else { Path::new("/run/netns").join(name) };
    let entered = File::open(&path).and_then(|file| {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(io::Error::from)
    });
    entered.map_err(|source| DataplaneError::Netns { name: name.to_owned(), source })
}
