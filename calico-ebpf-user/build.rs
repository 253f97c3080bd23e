//! Builds the BPF object that the binary carries.

use anyhow::Context as _;

/// The toolchain whose LLVM bpf-linker is built against; `xtask` installs it.
const TOOLCHAIN: &str = "1.98.0";

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-env-changed=AYA_BUILD_SKIP");
    // Checks and lints of this crate need no object.
    if std::env::var_os("AYA_BUILD_SKIP").is_some() {
        let out = std::env::var_os("OUT_DIR").context("OUT_DIR is not set")?;
        for object in ["kern", "bench", "bench-policy", "bench-calibrate"].map(|name| format!("calico-ebpf-{name}")) {
            std::fs::write(std::path::Path::new(&out).join(object), [])?;
        }
        return Ok(());
    }
    // SAFETY: the build script has one thread. The kernel side needs unstable features (BPF inline assembly in
    // aya-ebpf, build-std); set here, and not for the whole workspace, no other crate sees it.
    unsafe {
        std::env::set_var("RUSTC_BOOTSTRAP", "1");
        // What the inner cargo says comes out as warnings of this crate: errors only.
        std::env::set_var("CARGO_TERM_QUIET", "true");
        // The kernel verifies what comes out, so it is made the same way everywhere: split into units for incremental
        // compilation, or by another profile from the environment, it is other code, which may be refused.
        std::env::set_var("CARGO_INCREMENTAL", "0");
        let profiles = std::env::vars_os().map(|(name, _)| name);
        for name in profiles.filter(|name| name.to_string_lossy().starts_with("CARGO_PROFILE_")) {
            std::env::remove_var(name);
        }
    }
    aya_build::build_ebpf(
        [aya_build::Package {
            name: "calico-ebpf",
            root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../calico-ebpf"),
            ..Default::default()
        }],
        aya_build::Toolchain::Custom(TOOLCHAIN),
    )
}
