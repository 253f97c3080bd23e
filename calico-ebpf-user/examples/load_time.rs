//! How long reading takes: `cargo run --release --example load_time PATH...`.

use std::{path::PathBuf, time::Instant};

use calico_ebpf_user::resources::{Reader, Report};

fn main() {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let mut reader = Reader::default();
    for round in ["first", "again"] {
        let start = Instant::now();
        let loaded = reader.load(&paths);
        let taken = start.elapsed();
        let report = Report::new(&loaded, false, None);
        print!("{}", report.findings());
        println!("{round}: {taken:?}: {}", report.summary());
    }
}
