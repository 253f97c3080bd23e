//! The conformance cases from file to verdict: through `explain --queries`, and by the plain evaluator.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use calico_ebpf_user::{
    policy::{evaluate::evaluate, flow::Flow},
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
#[serde(deny_unknown_fields)]
struct Probe {
    from: String,
    to: String,
    proto: String,
    #[serde(default)]
    port: u16,
    sport: Option<u16>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    family: Option<u8>,
    allow: bool,
    /// What decides: `SOURCE END > DESTINATION END`, each `KIND/NAMESPACE/POLICY#RULE` or a reason.
    by: Option<String>,
}

/// Cases of kinds that are refused for now.
const REFUSED: [&str; 1] = ["127-hep-alone"];

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance")
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).expect("a file");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
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
fn end(topology: &Topology, who: &str, probe: &Probe) -> String {
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

fn query(topology: &Topology, probe: &Probe) -> Value {
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

/// The flow of a query, `None` where an end is the host: that is no policy's business.
fn flow(query: &Value) -> Option<Flow> {
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

/// The answers of `explain --queries`.
fn explain(files: &[&Path], queries: &[Value]) -> Result<Vec<Value>, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calico-ebpf"));
    command.args(["--node", "node1", "explain", "--queries", "-"]);
    for file in files {
        command.arg("--config").arg(file);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let text: String = queries.iter().map(|query| format!("{query}\n")).collect();
    let mut input = child.stdin.take().expect("its input");
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    // Where the files are refused nobody reads the queries.
    let _ = writer.join().expect("the writer ends");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let answers = String::from_utf8(output.stdout).expect("UTF-8");
    Ok(answers.lines().map(|line| serde_json::from_str(line).expect("an answer")).collect())
}

/// What decided at both ends, shortly.
fn decided(answer: &Value) -> String {
    let end = |end: &Value| -> String {
        let text = |key: &str| end[key].as_str().map(str::to_owned);
        match (text("kind"), text("policy"), end["rule"].as_u64()) {
            (Some(kind), Some(policy), Some(rule)) => {
                let namespace = text("namespace").map_or(String::new(), |namespace| namespace + "/");
                format!("{kind}/{namespace}{policy}#{rule}")
            }
            _ => match (text("reason"), text("tier")) {
                (Some(reason), Some(tier)) => format!("{reason} {tier}"),
                (Some(reason), None) => reason,
                (None, _) => "nobody".to_owned(),
            },
        }
    };
    format!("{} > {}", end(&answer["source"]), end(&answer["destination"]))
}

/// Runs the cases of a directory; gives the number of probes.
fn run(directory: &str) -> usize {
    let topology: Topology = read(&data().join("topology.json"));
    let mut names: Vec<_> = fs::read_dir(data().join(directory))
        .expect("the directory")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    names.sort();
    let mut wrong = Vec::new();
    let mut judged = 0;
    for policies in names {
        let name = policies.file_stem().expect("a name").to_string_lossy().into_owned();
        let case: Case = read(&policies.with_extension("json"));
        let common = std::env::temp_dir().join(format!("calico-ebpf-{directory}-{}.json", std::process::id()));
        fs::write(&common, resources_of(&topology, &case).to_string()).expect("a file");
        let queries: Vec<_> = case.probes.iter().map(|probe| query(&topology, probe)).collect();
        let answers = explain(&[&common, &policies], &queries);
        let set = resources::load(&[common.clone(), policies]).set;
        fs::remove_file(&common).expect("removed");
        let answers = match answers {
            Ok(answers) => answers,
            Err(errors) => {
                if !REFUSED.contains(&name.as_str()) {
                    wrong.push(format!("{name}: {errors}"));
                }
                continue;
            }
        };
        assert_eq!(answers.len(), queries.len(), "{name}");
        for ((probe, query), answer) in case.probes.iter().zip(&queries).zip(&answers) {
            judged += 1;
            let mut complain = |who: &str, says: &dyn std::fmt::Display| {
                wrong.push(format!("{name} ({}): {probe:?}: the {who} says {says}", case.title));
            };
            if answer["verdict"] != if probe.allow { "allow" } else { "deny" } {
                complain("program", answer);
            }
            if probe.by.as_ref().is_some_and(|by| *by != decided(answer)) {
                complain("program", &decided(answer));
            }
            if let Some(verdict) = flow(query).map(|flow| evaluate(&set, &flow))
                && verdict.allow() != probe.allow
            {
                complain("evaluator", &format!("{verdict:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    judged
}

#[test]
fn calico() {
    assert!(run("calico") > 700);
}

#[test]
fn kubernetes() {
    assert!(run("k8s") > 400);
}

#[test]
fn own() {
    assert!(run("own") > 300);
}
