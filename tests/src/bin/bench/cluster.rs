//! A big cluster: 10,000 workloads of which 250 are local, 1,000 policies of 10 rules each, 100 network sets.

use std::fmt::Write as _;

/// The node whose workloads are local.
const NODE: &str = "bench";

/// Names and contents of its files.
pub(crate) fn files() -> Vec<(String, String)> {
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
