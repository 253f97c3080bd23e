//! Paths as users write them.

use std::{
    io,
    path::{Component, Path, PathBuf},
};

/// A path as an absolute one without `.`, `..` and doubled slashes: several ways to write one pin directory are one
/// instance.
///
/// # Errors
/// The working directory is gone, and the path is relative.
pub(super) fn absolute(path: &Path) -> io::Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_is_one_path() {
        for path in ["/p/q", "/p//q/", "/p/./q", "/p/r/../q"] {
            assert_eq!(absolute(Path::new(path)).expect("absolute"), Path::new("/p/q"), "{path}");
        }
    }
}
