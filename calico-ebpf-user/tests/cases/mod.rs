//! The conformance cases as data.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use calico_ebpf_user::{policy::flow::Flow, resources};
use serde_json::{Map, Value, json};

#[derive(serde::Deserialize)]
pub(crate) struct Topology {
    pub(crate) namespaces: BTreeMap<String, Map<String, Value>>,
    pub(crate) workloads: Vec<Map<String, Value>>,
}

#[derive(serde::Deserialize)]
pub(crate) struct Case {
    /// Which clause of the language it is about.
    #[allow(dead_code, reason = "not every test shows it")]
    pub(crate) title: String,
    #[serde(default)]
    pub(crate) workload_overrides: BTreeMap<String, Map<String, Value>>,
    #[serde(default)]
    pub(crate) namespace_overrides: BTreeMap<String, Map<String, Value>>,
    pub(crate) probes: Vec<Probe>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Probe {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) proto: String,
    #[serde(default)]
    pub(crate) port: u16,
    pub(crate) sport: Option<u16>,
    pub(crate) icmp_type: Option<u8>,
    pub(crate) icmp_code: Option<u8>,
    pub(crate) family: Option<u8>,
    pub(crate) allow: bool,
    /// What decides: `SOURCE END > DESTINATION END`, each `KIND/NAMESPACE/POLICY#RULE` or a reason.
    pub(crate) by: Option<String>,
    /// What decides with the staged policies applied, in the same form.
    #[allow(dead_code, reason = "not every test asks for it")]
    pub(crate) staged: Option<String>,
}

pub(crate) fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance")
}

pub(crate) fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).expect("a file");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The namespaces and workloads of the topology as resources, with what the case changes.
pub(crate) fn resources_of(topology: &Topology, case: &Case) -> Value {
    let namespaces = topology.namespaces.iter().map(|(name, namespace)| {
        let mut namespace = namespace.clone();
        namespace.extend(case.namespace_overrides.get(name).cloned().unwrap_or_default());
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": namespace["labels"]}})
    });
    let workloads = topology.workloads.iter().map(|workload| {
        let mut workload = workload.clone();
        let name = workload["name"].as_str().expect("a name").to_owned();
        workload.extend(case.workload_overrides.get(&name).cloned().unwrap_or_default());
        let mut spec = json!({
            "node": "node1",
            "orchestrator": "k8s",
            "pod": workload["pod"],
            "endpoint": "eth0",
            "interfaceName": workload["interface"],
            "ipNetworks": workload["ips"],
            "profiles": workload["profiles"],
            "ports": workload["ports"],
        });
        for key in ["serviceAccountName", "orchestrator"] {
            if let Some(value) = workload.get(key) {
                spec[key] = value.clone();
            }
        }
        json!({
            "apiVersion": "projectcalico.org/v3",
            "kind": "WorkloadEndpoint",
            "metadata": {
                "name": format!("node1-k8s-{}-eth0", workload["pod"].as_str().expect("a pod")),
                "namespace": workload["namespace"],
                "labels": workload["labels"],
            },
            "spec": spec,
        })
    });
    json!({"apiVersion": "v1", "kind": "List", "items": namespaces.chain(workloads).collect::<Vec<_>>()})
}

/// What `explain` and the evaluator call an end: an address, or `host`.
pub(crate) fn end(topology: &Topology, who: &str, probe: &Probe) -> String {
    if let Some(address) = who.strip_prefix("ip:") {
        return address.to_owned();
    }
    let Some(workload) = topology.workloads.iter().find(|workload| workload["name"] == who) else {
        assert_eq!(who, "host");
        return who.to_owned();
    };
    // An address outside decides the family by itself.
    let is_v6 = |who: &str| who.starts_with("ip:") && who.matches(':').count() > 1;
    let is_v4 = probe.family != Some(6) && !is_v6(&probe.from) && !is_v6(&probe.to);
    let addresses: Vec<IpAddr> = serde_json::from_value(workload["ips"].clone()).expect("addresses");
    let address = addresses.into_iter().find(|address| address.is_ipv4() == is_v4);
    address.expect("an address of the family").to_string()
}

pub(crate) fn query(topology: &Topology, probe: &Probe) -> Value {
    let mut query = json!({
        "from": end(topology, &probe.from, probe),
        "to": end(topology, &probe.to, probe),
        "protocol": probe.proto,
    });
    if ["TCP", "UDP", "SCTP", "UDPLite"].contains(&probe.proto.as_str()) {
        query["port"] = json!(probe.port);
    }
    for (key, value) in [
        ("sourcePort", probe.sport),
        ("icmpType", probe.icmp_type.map(u16::from)),
        ("icmpCode", probe.icmp_code.map(u16::from)),
    ] {
        if let Some(value) = value {
            query[key] = json!(value);
        }
    }
    query
}

/// The flow of a probe, `None` where an end is the host: that is not the business of policy alone.
pub(crate) fn flow(topology: &Topology, probe: &Probe) -> Option<Flow> {
    if probe.by.as_ref().is_some_and(|by| by.contains("host")) {
        return None;
    }
    let query = query(topology, probe);
    let address = |key: &str| query[key].as_str().and_then(|text| text.parse::<IpAddr>().ok());
    let number = |key: &str| query[key].as_u64().and_then(|number| u16::try_from(number).ok());
    let protocol = resources::protocol_number(query["protocol"].as_str()?).expect("a protocol");
    let echo = if protocol == 58 { 128 } else { 8 };
    Some(Flow {
        source: address("from")?,
        destination: address("to")?,
        protocol,
        source_port: number("port").map_or(0, |_| number("sourcePort").unwrap_or(49152)),
        destination_port: match protocol {
            1 | 58 => number("icmpType").unwrap_or(echo) << 8 | number("icmpCode").unwrap_or(0),
            _ => number("port").unwrap_or(0),
        },
    })
}

/// The cases of a directory, in the order of their names, with the files of their policies.
pub(crate) fn cases(directory: &str) -> Vec<(PathBuf, Case)> {
    let mut paths: Vec<_> = fs::read_dir(data().join(directory))
        .expect("the directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), read(&path.with_extension("json")))).collect()
}

/// The name of a case.
pub(crate) fn name(path: &Path) -> String {
    path.file_stem().expect("a name").to_string_lossy().into_owned()
}
