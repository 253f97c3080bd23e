//! What the maps of a node take that has many workloads. Their interfaces need not exist for that.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context as _, ensure};
use aya::maps::Array;
use calico_ebpf_common::abi::names;
use xtask::lab::Lab;

use crate::{
    policy::{locked, map, pinned, spawn},
    report::Report,
};

/// Workloads of the other nodes.
const PEERS: u32 = 10_000;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let few = Taken::by(&(shared_policy() + &workloads(250, 0)))?;
    let many = Taken::by(&(shared_policy() + &workloads(1_250, 0)))?;
    let more = (many.total() - few.total()) / 1_000.0;
    report.section("one more workload that shares its policies", "bytes", vec![("all maps".to_owned(), vec![more])]);

    let policies: String = (0..250).map(own_policy).collect();
    let apart = Taken::by(&(policies + &workloads(250, PEERS)))?;
    let rows = vec![
        ("maps of addresses and rules".to_owned(), vec![apart.tables / 1e6]),
        ("of that in use in the arena".to_owned(), vec![apart.arena / 1e6]),
    ];
    report.section("250 workloads with 250 policies over overlapping selectors, 10,000 peers", "MB", rows);
    Ok(())
}

/// Bytes of a node's maps.
struct Taken {
    /// Of the maps of addresses and rules.
    tables: f64,
    /// Of all the others.
    others: f64,
    /// Used in the arena, which has one size.
    arena: f64,
}

impl Taken {
    fn by(resources: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(&[])?;
        let config = std::env::temp_dir().join(format!("{}.yaml", lab.host.name()));
        fs::write(&config, resources)?;
        let done = spawn(&lab, &config, true)?.wait();
        fs::remove_file(&config)?;
        ensure!(done?.success(), "the policy is not in force");
        let (mut tables, mut others) = (0.0, 0.0);
        for (name, bytes) in maps(&lab)? {
            if [names::RULES, names::ADDRESSES4, names::ADDRESSES6, names::NETS6].contains(&name.as_str()) {
                tables += bytes as f64;
            } else {
                others += bytes as f64;
            }
        }
        Ok(Self { tables, others, arena: arena(&lab)? as f64 })
    }

    /// What grows.
    fn total(&self) -> f64 {
        self.tables + self.others + self.arena
    }
}

/// All maps, and the bytes that each occupies.
pub(crate) fn maps(lab: &Lab) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(pinned(lab, ""))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with("cali_") {
            maps.insert(name.to_owned(), locked(&path).with_context(|| name.to_owned())?);
        }
    }
    Ok(maps)
}

/// Bytes of the arena that are in use.
pub(crate) fn arena(lab: &Lab) -> anyhow::Result<usize> {
    let blocks = Array::<_, [u64; 8]>::try_from(aya::maps::Map::Array(map(&pinned(lab, names::RULES))?))?;
    Ok(blocks.iter().filter(|block| !matches!(block, Ok([0, 0, 0, 0, 0, 0, 0, 0]))).count() * 64)
}

fn shared_policy() -> String {
    policy("shared", "all()", 0)
}

/// The policy of one application, about peers of others: each peer is in the selectors of many.
fn own_policy(number: u32) -> String {
    policy(&format!("p{number}"), &format!("app == 'app{number}'"), number)
}

fn policy(name: &str, selector: &str, number: u32) -> String {
    let mut text = format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
         selector: {selector}\n  types: [Ingress, Egress]\n  ingress:\n"
    );
    for rule in 0..10 {
        let peer = match rule % 3 {
            0 => format!("role == 'r{}'", (number + rule) % 9),
            1 => format!("app in {{'app{}', 'app{}'}}", (number + rule) % 250, (number * 7 + rule) % 250),
            _ => format!("role == 'r{}' && app != 'app{}'", (number * 5 + rule) % 9, (number + rule) % 250),
        };
        let _ = writeln!(
            text,
            "  - {{action: Allow, protocol: TCP, source: {{selector: \"{peer}\"}}, destination: {{ports: [{}]}}}}",
            1_000 + number * 10 + rule
        );
    }
    text + "  egress:\n  - {action: Allow}\n---\n"
}

/// Workloads of this node, and of others.
fn workloads(local: u32, peers: u32) -> String {
    let workload = |number: u32| {
        let node = if number < local { "bench" } else { "n2" };
        let [_, a, b, c] = number.to_be_bytes();
        format!(
            "apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata:\n  name: {node}-k8s-pod{number}-eth0\n  \
             namespace: bench\n  labels: {{app: app{}, role: r{}}}\nspec:\n  node: {node}\n  orchestrator: k8s\n  \
             pod: pod{number}\n  endpoint: eth0\n  interfaceName: cali{number:x}\n  ipNetworks: [10.{a}.{b}.{c}/32, \
             \"fd00::{number:x}/128\"]\n---\n",
            number % 250,
            number % 9
        )
    };
    (0..local + peers).map(workload).collect()
}
