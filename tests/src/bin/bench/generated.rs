//! The files of a cluster: 1,000 policies of 10 rules each, 100 network sets, and as many workloads as are asked for.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use anyhow::Context as _;

/// The node whose workloads are local.
pub(crate) const NODE: &str = "bench";
/// Workloads in a file.
pub(crate) const OF_FILE: u32 = 100;

/// How many workloads, and how many of them a node has: the first node is [`NODE`].
#[derive(Clone, Copy)]
pub(crate) struct Cluster {
    pub(crate) workloads: u32,
    pub(crate) of_node: u32,
}

impl Cluster {
    /// Names and contents of its files: a hundred workloads a file, from `w000.yaml` on.
    pub(crate) fn files(self) -> Vec<(String, String)> {
        let mut files = vec![("ns.yaml".to_owned(), documents((0..20).map(namespace)))];
        for file in 0..self.workloads / OF_FILE {
            let workloads = file * OF_FILE..(file + 1) * OF_FILE;
            files.push((format!("w{file:03}.yaml"), documents(workloads.map(|number| self.workload(number)))));
        }
        for file in 0..20 {
            files.push((format!("p{file:03}.yaml"), documents((file * 50..file * 50 + 50).map(policy))));
        }
        files.push(("sets.yaml".to_owned(), documents((0..100).map(set))));
        files
    }

    /// A workload, as a document.
    pub(crate) fn workload(self, number: u32) -> String {
        let node = self.node(number);
        format!(
            "apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata:\n  name: {node}-k8s-pod{number}-eth0\n  \
             namespace: ns{ns}\n  labels:\n    app: app{app}\n    pod-template-hash: h{hash}\n    role: r{role}\nspec:\n  \
             node: {node}\n  orchestrator: k8s\n  pod: pod{number}\n  endpoint: eth0\n  interfaceName: {interface}\n  \
             ipNetworks:\n  - {address}/32\n  - {address6}/128\n  profiles:\n  - kns.ns{ns}\n",
            ns = number % 20,
            app = number % 200,
            hash = number % 1000,
            role = number % 9,
            interface = Self::interface(number),
            address = self.address(number),
            address6 = Ipv6Addr::from(0xfd00 << 112 | u128::from(number)),
        )
    }

    /// The node that a workload is on.
    pub(crate) fn node(self, number: u32) -> String {
        match number / self.of_node {
            0 => NODE.to_owned(),
            other => format!("n{other}"),
        }
    }

    /// The host side of a workload's veth.
    pub(crate) fn interface(number: u32) -> String {
        format!("cali{number:x}")
    }

    /// A workload's address: those of a node begin with a block of addresses, as IPAM gives them out.
    pub(crate) fn address(self, number: u32) -> Ipv4Addr {
        let (node, place) = (number / self.of_node, number % self.of_node);
        Ipv4Addr::from(10 << 24 | (node * self.of_node.next_power_of_two() + place))
    }
}

/// A file of workloads with another role for the first one that rules of [`NODE`] are about.
pub(crate) fn relabelled(file: &str) -> anyhow::Result<String> {
    let counts = |document: &&str| document.contains("app: app0\n") && document.contains("role: r5\n");
    let document = file.split("---\n").find(counts).context("no such workload")?;
    Ok(file.replacen(document, &document.replace("role: r5", "role: x"), 1))
}

/// Texts as the documents of one file.
fn documents(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join("---\n")
}

fn namespace(number: u32) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ns{number}\n  labels: {{team: t{}}}\n", number % 7)
}

fn set(number: u32) -> String {
    let mut text = format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: s{number}\n  labels: {{set: s{number}}}\n\
         spec:\n  nets:\n"
    );
    for net in 0..100 {
        let _infallible = writeln!(text, "  - 203.{number}.{net}.0/24");
    }
    text
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
