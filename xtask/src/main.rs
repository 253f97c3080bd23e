//! `cargo xtask`: set-up, build, demo, tests and benchmarks.

fn main() -> anyhow::Result<()> {
    anyhow::bail!("usage: cargo xtask build|run|test|lint|bench|lab|vm")
}
