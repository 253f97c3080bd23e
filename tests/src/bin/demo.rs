//! The demo on other files than the project's own, so that a test may edit them: `demo DIRECTORY`.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1);
    let directory = directory.ok_or_else(|| anyhow::anyhow!("usage: demo DIRECTORY"))?;
    xtask::demo::run(directory.as_ref())
}
