//! What BGP carries to one node, and what that costs: each workload's address by itself, or the blocks of the nodes.
//!
//! A real BIRD on what `bgp config` makes of the cluster's files hears it all over one session, as from a route reflector:
//! another BIRD that has a static route, with the next hop of its node, for each address or block of the other nodes.

use std::{
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use xtask::{cargo, cluster::bird::Bird, lab::Namespace, setup::find_program};

use super::{CLUSTER, Host, NODES};
use crate::{
    cpu,
    generated::{NODE, relabelled},
    policy::status,
    report::Report,
    variant::binary,
    watched::{Directory, ONLOOKER, PROGRAM, Watched},
};

/// The network of the nodes: node N has the address of this number, the reflector the last one.
const NETWORK: u32 = 172 << 24 | 16 << 16;
const REFLECTOR: Ipv4Addr = Ipv4Addr::from_bits(NETWORK | 0xfffe);
const UPLINK: &str = "up0";
/// Two of these for each node.
const BLOCK: u8 = 26;
const PATIENCE: Duration = Duration::from_secs(100);
const ROUNDS: usize = 5;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    if find_program("bird").is_none() {
        println!("there is no bird: nothing about BGP");
        return Ok(());
    }
    let host = Host::new()?;
    let addresses = [(&host.lab.host, UPLINK, node_address(0)), (&host.lab.outside, "eth0", REFLECTOR)];
    for (namespace, interface, address) in addresses {
        namespace.ip(&format!("addr add {address}/16 dev {interface}"))?;
    }
    let mut files = CLUSTER.files();
    files.push(("bgp.yaml".to_owned(), resources()));
    let directory = Directory::new(files)?;
    let start = Instant::now();
    let config = own_config(directory.path())?;
    let blocks = config.matches("blackhole;").count();
    println!("bgp config: {:.2} s, {blocks} blocks of this node", start.elapsed().as_secs_f64());
    let program = Watched::start(&host.lab, &directory, &[])?;
    let changed = relabelled(directory.file("w500.yaml")?)?;
    let change = || Ok::<_, anyhow::Error>(program.change(&directory, "w500.yaml", &changed, ROUNDS)?.concat());
    let mut changes = vec![("no routes".to_owned(), change()?)];
    let cases = [("a route for each block", block_routes()), ("a route for each workload", workload_routes())];
    for (name, routes) in cases {
        let scratch = Scratch::new()?;
        let before = Before::now(&host, &program)?;
        let node = bird(&scratch, "node", &host.lab.host, &config, PROGRAM)?;
        let start = Instant::now();
        let reflector = bird(&scratch, "reflector", &host.lab.outside, &reflector_config(&routes), ONLOOKER)?;
        // And its own blocks, which go nowhere.
        let wanted = before.leaves + routes.len() + blocks;
        while leaves(&host.lab.host)? < wanted {
            ensure!(start.elapsed() < PATIENCE, "BGP does not converge: {}", node.control.ask("show protocols all")?);
            thread::sleep(Duration::from_millis(20));
        }
        let converged = start.elapsed();
        // The program looks at what has changed, and is done with it.
        thread::sleep(Duration::from_secs(5));
        let processor = program.processor()? - before.processor;
        println!(
            "{name}: {} routes, {:.1} KB of BGP, in the kernel {:.2} s after the reflector's start; BIRD {:.1} MB here, \
             {:.1} MB the reflector; the routes in the kernel {} KB; calico-ebpf meanwhile {:.2} s of the processor",
            routes.len(),
            received(&host.lab.host)? as f64 / 1e3,
            converged.as_secs_f64(),
            memory(&node)? as f64 / 1e6,
            memory(&reflector)? as f64 / 1e6,
            trie_size(&host.lab.host)?,
            processor.as_secs_f64(),
        );
        changes.push((name.to_owned(), change()?));
        drop((node, reflector));
        host.lab.host.ip("route flush proto bird")?;
    }
    report.section("a label of another node's workload, with the routes of BGP in the kernel", "ms", changes);
    Ok(())
}

/// What there was before routes came.
struct Before {
    leaves: usize,
    processor: Duration,
}

impl Before {
    fn now(host: &Host, program: &Watched) -> anyhow::Result<Self> {
        Ok(Self { leaves: leaves(&host.lab.host)?, processor: program.processor()? })
    }
}

fn node_address(node: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(NETWORK | (node + 1))
}

/// The pool, the nodes, and the reflector as everybody's peer.
fn resources() -> String {
    let mut text = format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata:\n  name: pool\nspec:\n  cidr: 10.0.0.0/8\n  blockSize: {BLOCK}\n\
         ---\napiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata:\n  name: default\nspec:\n  \
         nodeToNodeMeshEnabled: false\n\
         ---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata:\n  name: reflector\nspec:\n  peerIP: {REFLECTOR}\n  \
         asNumber: 64512\n"
    );
    for node in 0..NODES {
        let name = CLUSTER.node(node * CLUSTER.of_node);
        let address = node_address(node);
        let _infallible = write!(
            text,
            "---\napiVersion: projectcalico.org/v3\nkind: Node\nmetadata:\n  name: {name}\nspec:\n  bgp:\n    \
             ipv4Address: {address}/16\n"
        );
    }
    text
}

/// A route for each workload of the other nodes.
fn workload_routes() -> Vec<String> {
    (CLUSTER.of_node..CLUSTER.workloads)
        .map(|number| route(&format!("{}/32", CLUSTER.address(number)), number / CLUSTER.of_node))
        .collect()
}

/// A route for each block of the other nodes.
fn block_routes() -> Vec<String> {
    let size = 1 << (32 - BLOCK);
    let blocks = |node: u32| (0..CLUSTER.of_node.div_ceil(size)).map(move |block| (node, block));
    (1..NODES)
        .flat_map(blocks)
        .map(|(node, block)| {
            let first = CLUSTER.address(node * CLUSTER.of_node).to_bits() + block * size;
            route(&format!("{}/{BLOCK}", Ipv4Addr::from_bits(first)), node)
        })
        .collect()
}

fn route(net: &str, node: u32) -> String {
    format!("  route {net} via {};\n", node_address(node))
}

/// What `bgp config` says that this node's BIRD shall do.
fn own_config(directory: &Path) -> anyhow::Result<String> {
    let mut command = Command::new(binary()?);
    command.args(["bgp", "config", "--flavour", "bird", "--node", NODE, "--config"]).arg(directory);
    cargo::output(&mut command)
}

fn reflector_config(routes: &[String]) -> String {
    let here = node_address(0);
    format!(
        "router id {REFLECTOR};\nprotocol device {{ }}\nprotocol direct {{ ipv4; }}\n\
         protocol static {{\n  ipv4;\n{}}}\n\
         protocol bgp node {{\n  local {REFLECTOR} as 64512;\n  neighbor {here} as 64512;\n  multihop;\n  \
         connect delay time 1; connect retry time 1;\n  \
         ipv4 {{ import none; export where source = RTS_STATIC; next hop keep; }};\n}}\n",
        routes.concat()
    )
}

/// A directory of BIRD's files; removed when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("calico-ebpf-bench-bgp-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone_already = fs::remove_dir_all(&self.0);
    }
}

/// Starts a BIRD on a processor.
fn bird(scratch: &Scratch, name: &str, namespace: &Namespace, config: &str, processor: usize) -> anyhow::Result<Bird> {
    cpu::pin(processor)?;
    let bird = Bird::start(false, &scratch.0, name, namespace, config);
    cpu::pin(ONLOOKER)?;
    bird
}

/// Bytes of a BIRD's memory. `ip netns exec` becomes what it runs.
fn memory(bird: &Bird) -> anyhow::Result<u64> {
    Ok(status(bird.id().context("BIRD has ended")?, "VmRSS")? * 1024)
}

/// A figure of a namespace's file in /proc/net.
fn figure(namespace: &Namespace, file: &str, name: &str) -> anyhow::Result<usize> {
    let text = namespace.enter(|| fs::read_to_string(format!("/proc/thread-self/net/{file}")))??;
    let figures = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix(name)?.split_whitespace().next()?.parse::<usize>().ok());
    // Of the main and the local table, where both have their own.
    Ok(figures.sum::<usize>())
}

/// Destinations that the kernel has routes of IPv4 to (net/ipv4/fib_trie.c).
fn leaves(namespace: &Namespace) -> anyhow::Result<usize> {
    figure(namespace, "fib_triestat", "Leaves:")
}

/// KB that they take.
fn trie_size(namespace: &Namespace) -> anyhow::Result<usize> {
    figure(namespace, "fib_triestat", "Total size:")
}

/// Bytes that BGP's peer has sent.
fn received(namespace: &Namespace) -> anyhow::Result<u64> {
    let mut command = namespace.command("ss");
    let text = cargo::output(command.args(["-tinH", "state", "established", &format!("dst {REFLECTOR}")]))?;
    let figures = text.split_whitespace().filter_map(|word| word.strip_prefix("bytes_received:")?.parse::<u64>().ok());
    figures.reduce(u64::max).context("no session")
}
