//! A big cluster: 10,000 workloads of which 250 are local, 1,000 policies of 10 rules each, 100 network sets.

use std::{thread, time::Duration};

use xtask::lab::{Lab, UPLINK};

use crate::{
    generated::Cluster,
    report::Report,
    watched::{Directory, Watched},
};

/// Changes of each kind, there and back.
const ROUNDS: usize = 10;
/// Programs that get all files at once.
const FILLS: usize = 3;

/// Its files into a program that runs, a start on them, and changes of a label, an address and a rule, of which the files are a few KB.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster { workloads: 10_000, of_node: 250 };
    let mut fills = Vec::new();
    for _ in 0..FILLS {
        let lab = Lab::new(&[])?;
        let directory = Directory::empty(cluster.files())?;
        fills.push(Watched::start(&lab, &directory, &["--uplink", UPLINK])?.fill(&directory)?.as_millis());
    }
    println!("a cluster: {fills:?} ms from its files to in force, in a program that runs without any");
    let lab = Lab::new(&[])?;
    let directory = Directory::new(cluster.files())?;
    let program = Watched::start(&lab, &directory, &["--uplink", UPLINK])?;
    thread::sleep(Duration::from_secs(2));
    let [peak, _] = program.memory()?;
    let loaded = program.in_force.as_millis();
    println!("a cluster: {loaded} ms from the start of the program to in force, peak memory {} MB", peak >> 20);
    let change = |name: &str, from: &str, to: &str| -> anyhow::Result<Vec<f64>> {
        let changed = directory.file(name)?.replacen(from, to, 1);
        Ok(program.change(&directory, name, &changed, ROUNDS)?.concat())
    };
    let rows = vec![
        ("a label".to_owned(), change("w050.yaml", "role: r", "role: x")?),
        ("an address".to_owned(), change("w050.yaml", "  - 10.", "  - 11.")?),
        ("a rule's action".to_owned(), change("p000.yaml", "action: Allow", "action: Deny")?),
        ("a rule's selector".to_owned(), change("p001.yaml", "role == 'r", "role != 'r")?),
    ];
    report.section("from the renamed file to in force, among 10,000 workloads and 1,000 policies", "ms", rows);
    Ok(())
}
