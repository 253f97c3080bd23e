//! Where things are in this project.

use std::path::PathBuf;

/// The root of the workspace.
#[must_use]
pub fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map(PathBuf::from).unwrap_or(manifest)
}

/// Where cargo builds: `CARGO_TARGET_DIR` or `target`.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The program, as `cargo xtask build` leaves it; `CALICO_EBPF_BIN` names another one.
#[must_use]
pub fn binary() -> PathBuf {
    std::env::var_os("CALICO_EBPF_BIN").map_or_else(|| target().join("release/calico-ebpf"), PathBuf::from)
}
