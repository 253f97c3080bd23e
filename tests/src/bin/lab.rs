//! `cargo xtask`, for tests of its labs: they have a program already and need none built.
#![forbid(unsafe_code)]

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    xtask::command::dispatch(&arguments)
}
