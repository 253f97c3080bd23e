//! One node of a thousand with a hundred workloads each: what it holds, what a start and a change take, and what BGP carries.

mod bgp;
mod node;

use std::fmt::Write as _;

use anyhow::Context as _;
use xtask::lab::{HOST_SIDE_MAC, Lab, Namespace, OUTSIDE4};

use crate::{generated::Cluster, report::Report};

const NODES: u32 = 1_000;
const CLUSTER: Cluster = Cluster { workloads: 100 * NODES, of_node: 100 };

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    node::run(report).context("the node")?;
    bgp::run(report).context("BGP")
}

/// A host that has all of the node's interfaces, and a default route.
struct Host {
    lab: Lab,
    /// Where the other ends of the interfaces are.
    _workloads: Namespace,
}

impl Host {
    fn new() -> anyhow::Result<Self> {
        let lab = Lab::new(&[])?;
        let workloads = Namespace::create(format!("{}-w", lab.name()))?;
        let (mut here, mut there) = (String::new(), String::new());
        for number in 0..CLUSTER.of_node {
            let interface = Cluster::interface(number);
            let _infallible = write!(
                here,
                "link add {interface} address {HOST_SIDE_MAC} type veth peer name {interface} netns {}\n\
                 link set {interface} up\n",
                workloads.name()
            );
            let _infallible = writeln!(there, "link set {interface} up");
        }
        lab.host.ip_batch(&here)?;
        workloads.ip_batch(&there)?;
        lab.host.ip(&format!("route add default via {OUTSIDE4}"))?;
        Ok(Self { lab, _workloads: workloads })
    }
}
