//! What a node holds, what a start takes, and what changes of single things take.

use std::{thread, time::Duration};

use anyhow::ensure;

use super::{CLUSTER, Host};
use crate::{
    generated::relabelled,
    memory,
    report::Report,
    watched::{Directory, Watched},
};

/// Changes of each kind, there and back.
const ROUNDS: usize = 10;
/// The file of another node.
const OTHER: &str = "w500.yaml";
/// One more workload, with the labels of the first one in that file: rules of this node are about it.
const MORE: u32 = CLUSTER.workloads + 400;
/// A megabyte.
const MB: usize = 1_000_000;
/// Smaller maps are in the sum only.
const WORTH_NAMING: u64 = 100_000;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    small_files(report)?;
    large_files(report)
}

/// A file for each node.
fn small_files(report: &mut Report) -> anyhow::Result<()> {
    let host = Host::new()?;
    let directory = Directory::new(CLUSTER.files())?;
    let program = started("a file for each node", &host, &directory)?;
    let maps = memory::maps(&host.lab)?;
    println!("\n| map | MB |\n|---|---|");
    for (name, bytes) in maps.iter().filter(|(_, bytes)| **bytes >= WORTH_NAMING) {
        println!("| {name} | {:.1} |", *bytes as f64 / MB as f64);
    }
    println!("| all {} | {:.1} |", maps.len(), maps.values().sum::<u64>() as f64 / MB as f64);
    println!("| in use of cali_rules | {:.1} |", memory::arena(&host.lab)? as f64 / MB as f64);

    let replaced = |name: &str, from: &str, to: &str| anyhow::Ok(directory.file(name)?.replacen(from, to, 1));
    let more = directory.file(OTHER)?.to_owned() + "---\n" + &CLUSTER.workload(MORE);
    let change = |name: &str, changed: &str| program.change(&directory, name, changed, ROUNDS);
    let [added, removed] = change(OTHER, &more)?;
    let rows = vec![
        ("a label elsewhere".to_owned(), change(OTHER, &relabelled(directory.file(OTHER)?)?)?.concat()),
        ("a label here".to_owned(), change("w000.yaml", &replaced("w000.yaml", "role: r", "role: x")?)?.concat()),
        ("a rule".to_owned(), change("p000.yaml", &replaced("p000.yaml", "action: Allow", "action: Deny")?)?.concat()),
        ("a workload more elsewhere".to_owned(), added),
        ("a workload less elsewhere".to_owned(), removed),
    ];
    report.section("from the renamed file to in force, among 100,000 workloads", "ms", rows);
    let [peak, settled] = program.memory()?;
    println!("after changes: memory {} MB, peak {} MB", settled / MB as u64, peak / MB as u64);
    Ok(())
}

/// The same workloads, but many nodes in one file of 1 MB and one of 10 MB.
fn large_files(report: &mut Report) -> anyhow::Result<()> {
    let host = Host::new()?;
    let mut files = CLUSTER.files();
    for (name, size) in [("large1.yaml", MB), ("large10.yaml", 10 * MB)] {
        let mut large = String::new();
        // The local node keeps its own file.
        let first = files.iter().position(|(name, _)| name.starts_with('w') && name != "w000.yaml").unwrap_or(0);
        while large.len() < size {
            let (file, text) = files.remove(first);
            ensure!(file.starts_with('w'), "not enough workloads for {name}");
            large += &(text + "---\n");
        }
        files.push((name.to_owned(), large));
    }
    let directory = Directory::new(files)?;
    let program = started("many nodes in a file", &host, &directory)?;
    let change = |name: &str| -> anyhow::Result<Vec<f64>> {
        let changed = relabelled(directory.file(name)?)?;
        Ok(program.change(&directory, name, &changed, ROUNDS)?.concat())
    };
    let rows = vec![
        (format!("{} KB", directory.file(OTHER)?.len() / 1000), change(OTHER)?),
        ("1 MB".to_owned(), change("large1.yaml")?),
        ("10 MB".to_owned(), change("large10.yaml")?),
    ];
    report.section("a label of another node's workload, by the size of its file", "ms", rows);
    Ok(())
}

/// The program in force on a host, with what that took and takes.
fn started(layout: &str, host: &Host, directory: &Directory) -> anyhow::Result<Watched> {
    let program = Watched::start(&host.lab, directory, &[])?;
    thread::sleep(Duration::from_secs(3));
    let (files, bytes) = directory.size();
    let [peak, settled] = program.memory()?;
    let routes = host.lab.host.ip("route show proto 80")?.lines().count();
    let routes6 = host.lab.host.ip("-6 route show proto 80")?.lines().count();
    ensure!(routes == CLUSTER.of_node as usize && routes6 == routes, "{routes} and {routes6} routes");
    println!(
        "{layout}: {files} files, {:.1} MB; in force after {:.2} s, ready after {:.2} s, {:.2} s of the processor; \
         memory {} MB, peak {} MB; {routes} routes of IPv4 and {routes6} of IPv6",
        bytes as f64 / MB as f64,
        program.in_force.as_secs_f64(),
        program.ready.as_secs_f64(),
        program.processor()?.as_secs_f64(),
        settled / MB as u64,
        peak / MB as u64,
    );
    Ok(program)
}
