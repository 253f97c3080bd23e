//! `cargo xtask bench`: how fast the data path is.

/// Runs the benchmarks.
///
/// # Errors
/// Nothing is measured yet.
pub fn run(_arguments: &[String]) -> anyhow::Result<()> {
    anyhow::bail!("no benchmark is here yet")
}
