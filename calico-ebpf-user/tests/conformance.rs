//! Cases of Calico's policy language from file to verdict: read, compiled into tables, judged by what the kernel runs, and
//! held against the plain evaluator.
//!
//! Three namespaces of three workloads each on one node; a case brings policies and says of some flows whether they pass.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use calico_ebpf_user::{
    policy::{compile::compile, evaluate::evaluate, flow::Flow, maps::Maps, store::Store, write::Limits},
    resources,
};
use serde_json::{Map, Value, json};

#[derive(serde::Deserialize)]
struct Topology {
    namespaces: BTreeMap<String, Map<String, Value>>,
    workloads: Vec<Map<String, Value>>,
}

#[derive(serde::Deserialize)]
struct Case {
    title: String,
    #[serde(default)]
    workload_overrides: BTreeMap<String, Map<String, Value>>,
    #[serde(default)]
    namespace_overrides: BTreeMap<String, Map<String, Value>>,
    probes: Vec<Probe>,
}

#[derive(Debug, serde::Deserialize)]
struct Probe {
    from: String,
    to: String,
    proto: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    icmp_type: Option<u8>,
    #[serde(default)]
    icmp_code: u8,
    #[serde(default)]
    family: Option<u8>,
    allow: bool,
}

/// Cases that need what is refused for now.
const NOT_YET: &[&str] = &[
    "destination-nets-egress",
    "globalnetworkset-both-directions",
    "gnp-deny-all-default",
    "gnp-namespaceselector",
    "hep-alone",
    "icmp-type",
    "ipversion-4",
    "log-continues",
    "named-port",
    "named-port-egress",
    "networkset-namespaced",
    "no-policy-open",
    "noticmp-type-code",
    "notports",
    "notprotocol",
    "np-global",
    "np-namespaceselector-label",
    "order-k8s-is-1000",
    "pass-in-default-tier",
    "selector-vs-notselector",
    "source-notnets",
    "staged-global",
    "stateful-replies",
    "tier-above-k8s-policy",
    "tier-allow-is-final",
    "tier-default-pass",
    "tier-order",
    "tier-pass-then-allow",
];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/conformance")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&fs::read_to_string(path).expect("a file")).expect("what the test expects")
}

/// The namespaces and workloads of the topology as resources, with what the case changes.
fn resources_of(topology: &Topology, case: &Case) -> Value {
    let namespaces = topology.namespaces.iter().map(|(name, namespace)| {
        let mut namespace = namespace.clone();
        namespace.extend(case.namespace_overrides.get(name).cloned().unwrap_or_default());
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": namespace["labels"]}})
    });
    let workloads = topology.workloads.iter().map(|workload| {
        let mut workload = workload.clone();
        let name = workload["name"].as_str().expect("a name").to_owned();
        workload.extend(case.workload_overrides.get(&name).cloned().unwrap_or_default());
        json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "WorkloadEndpoint",
            "metadata": {
                "name": format!("node1-k8s-{}-eth0", workload["pod"].as_str().expect("a pod")),
                "namespace": workload["namespace"],
                "labels": workload["labels"],
            },
            "spec": {
                "node": "node1",
                "orchestrator": "k8s",
                "pod": workload["pod"],
                "endpoint": "eth0",
                "interfaceName": workload["interface"],
                "ipNetworks": workload["ips"],
                "profiles": workload["profiles"],
                "ports": workload["ports"],
            },
        })
    });
    json!({"apiVersion": "v1", "kind": "List", "items": namespaces.chain(workloads).collect::<Vec<_>>()})
}

/// An address of who is meant, `None` for the host, which no policy here judges.
fn address(topology: &Topology, who: &str, is_v4: bool) -> Option<IpAddr> {
    if let Some(text) = who.strip_prefix("ip:") {
        return Some(text.parse().expect("an address"));
    }
    let workload = topology.workloads.iter().find(|workload| workload["name"] == who)?;
    let addresses: Vec<IpAddr> = serde_json::from_value(workload["ips"].clone()).expect("addresses");
    addresses.into_iter().find(|address| address.is_ipv4() == is_v4)
}

fn flow(topology: &Topology, probe: &Probe) -> Option<Flow> {
    // An address outside decides the family by itself.
    let is_v6 = |who: &str| who.starts_with("ip:") && who.matches(':').count() > 1;
    let is_v4 = probe.family != Some(6) && !is_v6(&probe.from) && !is_v6(&probe.to);
    let (protocol, has_ports) = match probe.proto.as_str() {
        "TCP" => (6, true),
        "UDP" => (17, true),
        "SCTP" => (132, true),
        "ICMP" => (1, false),
        "ICMPv6" => (58, false),
        other => (other.parse().expect("a protocol number"), false),
    };
    let echo = if protocol == 58 { 128 } else { 8 };
    let kind = probe.icmp_type.unwrap_or(echo);
    let destination_port = match protocol {
        1 | 58 => u16::from_be_bytes([kind, probe.icmp_code]),
        _ if has_ports => probe.port,
        _ => 0,
    };
    Some(Flow {
        source: address(topology, &probe.from, is_v4)?,
        destination: address(topology, &probe.to, is_v4)?,
        protocol,
        source_port: if has_ports { 49152 } else { 0 },
        destination_port,
    })
}

#[test]
fn cases_from_file_to_verdict() {
    let topology: Topology = read(&data().join("topology.json"));
    let mut names: Vec<_> = fs::read_dir(data())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    names.sort();
    let limits =
        Limits { blocks: 1 << 16, slots: 64, counters: 4096, addresses: 4096, nets: 4096, spoof: 64, classes: 4096 };
    let mut wrong = Vec::new();
    let mut judged = 0;
    for policies in names {
        let name = policies.file_stem().expect("a name").to_string_lossy().into_owned();
        let case: Case = read(&policies.with_extension("json"));
        let common = std::env::temp_dir().join(format!("calico-ebpf-conformance-{}.json", std::process::id()));
        fs::write(&common, resources_of(&topology, &case).to_string()).expect("a file");
        let loaded = resources::load(&[common.clone(), policies]);
        fs::remove_file(&common).expect("removed");
        if NOT_YET.contains(&name.as_str()) {
            let refused =
                loaded.has_errors() && loaded.errors().all(|error| error.message.contains("not supported yet"));
            if !refused {
                wrong.push(format!("{name}: is not refused any more"));
            }
            continue;
        }
        if let Some(error) = loaded.errors().next() {
            wrong.push(format!("{name}: {error}"));
            continue;
        }
        let compiled = compile(&loaded.set, "node1");
        let plan = Store::empty(limits).plan(&compiled, &BTreeSet::new()).expect("it fits");
        let mut maps = Maps::default();
        maps.execute(&plan);
        for probe in &case.probes {
            let Some(flow) = flow(&topology, probe) else { continue };
            judged += 1;
            for (who, verdict) in [("tables", maps.judge(&flow)), ("evaluator", evaluate(&loaded.set, &flow))] {
                if verdict.allow() != probe.allow {
                    wrong.push(format!("{name} ({}): {probe:?}: the {who} say {verdict:?}", case.title));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(judged > 300, "only {judged} flows");
}
