//! `cargo xtask run`: the demo.

/// Runs the demo until Ctrl-C.
///
/// # Errors
/// The lab cannot be made, or the program fails.
pub fn run() -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
