//! The resources of a cluster: one directory for all hosts.

use std::fmt::Write as _;

use super::plan::{Options, Plan, PlannedWorkload, Speaker};

/// What workloads are labelled with, in turn: the roles of the policy in `examples/cluster`.
pub const ROLES: [&str; 3] = ["web", "api", "db"];
/// Their namespace.
pub const NAMESPACE: &str = "shop";

/// The pools of addresses and the hosts.
#[must_use]
pub fn nodes(plan: &Plan, options: &Options) -> String {
    let mut text = "\
# Where addresses come from: each host has a block of each pool.
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: workloads-ipv4
spec:
  cidr: 10.65.0.0/16
  blockSize: 26
"
    .to_owned();
    if options.ipv6 {
        text.push_str(
            "---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata:
  name: workloads-ipv6
spec:
  cidr: fd00:65::/48
  blockSize: 122
",
        );
    }
    for host in plan.hosts() {
        text.push_str(&node(host, &plan.segments[host.ports[0].segment].name, options));
    }
    text
}

/// With whom the hosts speak BGP.
#[must_use]
pub fn bgp(plan: &Plan, options: &Options) -> String {
    let mesh = !options.racks && !options.route_reflector;
    let mut text = format!(
        "\
# With whom hosts speak BGP: `calico-ebpf bgp config` makes BIRD's configuration of this.
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata:
  name: default
spec:
  nodeToNodeMeshEnabled: {mesh}
"
    );
    // Those without workloads are no nodes of the cluster.
    let mut known = Vec::new();
    for host in plan.hosts() {
        let segment = &plan.segments[host.ports[0].segment].name;
        for peer in &host.peers {
            let is_node = plan.hosts().any(|other| other.name == peer.name);
            if is_node || known.contains(&&peer.name) {
                continue;
            }
            known.push(&peer.name);
            for address in peer.addresses.iter().filter(|address| address.is_ipv4() || options.ipv6) {
                let family = if address.is_ipv4() { 4 } else { 6 };
                let _infallible = write!(
                    text,
                    "---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata:
  name: {}-ipv{family}
spec:
  nodeSelector: segment == '{segment}'
  peerIP: \"{address}\"
  asNumber: {}
",
                    peer.name, peer.as_number
                );
            }
        }
    }
    text
}

fn node(host: &Speaker, segment: &str, options: &Options) -> String {
    let Speaker { name, as_number, .. } = host;
    let [v4, v6] = host.addresses();
    let mut text = format!(
        "---
apiVersion: projectcalico.org/v3
kind: Node
metadata:
  name: {name}
  labels: {{segment: {segment}}}
spec:
  bgp:
    asNumber: {as_number}
    ipv4Address: {v4}/24
"
    );
    if options.ipv6 {
        let _infallible = writeln!(text, "    ipv6Address: {v6}/64");
    }
    text
}

/// The workloads and their namespace. `host_of` says where each is.
#[must_use]
pub fn workloads(plan: &Plan, options: &Options, host_of: impl Fn(&PlannedWorkload) -> String) -> String {
    let mut text = format!(
        "\
# Who is where: `spec.node` is the host that owns a workload.
apiVersion: v1
kind: Namespace
metadata:
  name: {NAMESPACE}
"
    );
    for (workload, role) in plan.workloads.iter().zip(ROLES.iter().cycle()) {
        text.push_str("---\n");
        text.push_str(&resource(
            workload,
            &host_of(workload),
            options.ipv6,
            &format!("role: {role}, app: {}", workload.name),
        ));
    }
    text
}

/// A `WorkloadEndpoint`; `labels` as between the braces of YAML.
#[must_use]
pub fn resource(workload: &PlannedWorkload, node: &str, ipv6: bool, labels: &str) -> String {
    let PlannedWorkload { name, interface, v4, v6, .. } = workload;
    let networks = if ipv6 { format!("{v4}/32, \"{v6}/128\"") } else { format!("{v4}/32") };
    format!(
        "apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  namespace: {NAMESPACE}
  labels: {{{labels}}}
spec:
  node: {node}
  orchestrator: k8s
  pod: {name}
  endpoint: eth0
  interfaceName: {interface}
  ipNetworks: [{networks}]
  profiles: [kns.{NAMESPACE}]
"
    )
}
