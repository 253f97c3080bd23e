//! A big cluster: 10,000 workloads of which 250 are local, 1,000 policies of 10 rules each, 100 network sets.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::maps::{Array, MapData};
use calico_ebpf_common::abi::{Root, names};
use xtask::lab::Lab;

use crate::{
    cpu,
    policy::{Process, map, pinned, spawn, status},
    report::Report,
};

/// The node whose workloads are local.
const NODE: &str = "bench";
/// The program has one processor, who looks on the other one.
const PROGRAM: usize = 1;
const ONLOOKER: usize = 0;

/// Its start, and changes of a label and of a rule, of which the files are a few KB.
pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let lab = Lab::new(&[])?;
    let directory = std::env::temp_dir().join(format!("calico-ebpf-bench-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let done = in_cluster(report, &lab, &directory);
    fs::remove_dir_all(&directory)?;
    done
}

fn in_cluster(report: &mut Report, lab: &Lab, directory: &Path) -> anyhow::Result<()> {
    let files = files();
    for (name, text) in &files {
        fs::write(directory.join(name), text)?;
    }
    cpu::pin(PROGRAM)?;
    let start = Instant::now();
    let mut process = Process(spawn(lab, directory, false)?);
    cpu::pin(ONLOOKER)?;
    let root = loop {
        ensure!(start.elapsed() < Duration::from_secs(60), "the cluster is not in force");
        if let Ok(root) = root(lab)
            && root.get(&0, 0)?[0] != 0
        {
            break root;
        }
        std::thread::sleep(Duration::from_micros(500));
    };
    let loaded = start.elapsed().as_secs_f64() * 1e3;
    std::thread::sleep(Duration::from_secs(2));
    let peak = status(process.0.id(), "VmHWM")?;
    println!("a cluster: {loaded:.0} ms from the start of the program to in force, peak memory {} MB", peak / 1024);
    let generation = || root.get(&0, 0).map(|root| root[0]);
    let change = |name: &str, from: &str, to: &str| -> anyhow::Result<Vec<f64>> {
        let (_, text) = files.iter().find(|(file, _)| file == name).context("no such file")?;
        let mut samples = Vec::new();
        for round in 0..20 {
            let text = if round % 2 == 0 { text.replacen(from, to, 1) } else { text.clone() };
            let before = generation()?;
            let next = directory.join(".next");
            fs::write(&next, text)?;
            let start = Instant::now();
            fs::rename(&next, directory.join(name))?;
            while generation()? == before {
                ensure!(start.elapsed() < Duration::from_secs(10), "the change to {name} is not in force");
            }
            samples.push(start.elapsed().as_secs_f64() * 1e3);
            std::thread::sleep(Duration::from_millis(150));
        }
        Ok(samples)
    };
    let rows = vec![
        ("a label".to_owned(), change("w050.yaml", "role: r", "role: x")?),
        ("a rule's action".to_owned(), change("p000.yaml", "action: Allow", "action: Deny")?),
        ("a rule's selector".to_owned(), change("p001.yaml", "role == 'r", "role != 'r")?),
    ];
    report.section("from the renamed file to in force, among 10,000 workloads and 1,000 policies", "ms", rows);
    process.0.kill()?;
    process.0.wait()?;
    Ok(())
}

fn root(lab: &Lab) -> anyhow::Result<Array<MapData, [u32; size_of::<Root>() / 4]>> {
    Ok(Array::try_from(aya::maps::Map::Array(map(&pinned(lab, names::ROOT))?))?)
}

/// Names and contents of its files.
fn files() -> Vec<(String, String)> {
    let mut files = Vec::new();
    let namespaces = (0..20).map(|ns| {
        format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ns{ns}\n  labels: {{team: t{}}}\n", ns % 7)
    });
    files.push(("ns.yaml".to_owned(), namespaces.collect::<Vec<_>>().join("---\n")));
    for file in 0..100 {
        let workloads = (file * 100..file * 100 + 100).map(workload);
        files.push((format!("w{file:03}.yaml"), workloads.collect::<Vec<_>>().join("---\n")));
    }
    for file in 0..20 {
        let policies = (file * 50..file * 50 + 50).map(policy);
        files.push((format!("p{file:03}.yaml"), policies.collect::<Vec<_>>().join("---\n")));
    }
    let sets = (0..100).map(|set| {
        let mut text = format!(
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: s{set}\n  labels: {{set: s{set}}}\n\
             spec:\n  nets:\n"
        );
        for net in 0..100 {
            let _ = writeln!(text, "  - 203.{set}.{net}.0/24");
        }
        text
    });
    files.push(("sets.yaml".to_owned(), sets.collect::<Vec<_>>().join("---\n")));
    files
}

fn workload(number: u32) -> String {
    let node = if number < 250 { NODE.to_owned() } else { format!("n{}", number / 250) };
    let [_, a, b, c] = number.to_be_bytes();
    format!(
        "apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata:\n  name: {node}-k8s-pod{number}-eth0\n  \
         namespace: ns{ns}\n  labels:\n    app: app{app}\n    pod-template-hash: h{hash}\n    role: r{role}\nspec:\n  \
         node: {node}\n  orchestrator: k8s\n  pod: pod{number}\n  endpoint: eth0\n  interfaceName: cali{number:x}\n  \
         ipNetworks:\n  - 10.{a}.{b}.{c}/32\n  - fd00::{number:x}/128\n  profiles:\n  - kns.ns{ns}\n",
        ns = number % 20,
        app = number % 200,
        hash = number % 1000,
        role = number % 9,
    )
}

fn policy(number: u32) -> String {
    let mut text = format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata:\n  name: p{number}\nspec:\n  order: {}\n  \
         selector: app == 'app{}'\n  types: [Ingress]\n  ingress:\n",
        number % 100,
        number % 200
    );
    for rule in 0..10 {
        let peer = match rule {
            9 => format!("set == 's{}'", number % 100),
            _ => format!("app == 'app{}' && role == 'r{rule}'", (number * 7 + rule * 31) % 200),
        };
        let port = 1_000 + (number * 10 + rule) % 60_000;
        let _ = writeln!(
            text,
            "  - action: Allow\n    protocol: TCP\n    source:\n      selector: {peer}\n    destination:\n      ports: [\"{port}:{}\"]",
            port + 3
        );
    }
    text
}
