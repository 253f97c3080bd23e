//! Sequences of states, as Calico tests its calculation: whatever came before, a state ends the same. Forwards, backwards,
//! with nothing between, each alone, and taken over by a new process anywhere.

mod cases;

use std::{collections::BTreeSet, fs, net::IpAddr};

use calico_ebpf_user::{
    policy::{
        compile::compile,
        evaluate::evaluate,
        flow::{Flow, Verdict},
        maps::Maps,
        store::Store,
        write::Limits,
    },
    resources::{self, model::ResourceSet},
};
use cases::{Probe, Topology, data, flow, read, resources_of};
use serde_json::json;

const NODE: &str = "node1";
const LIMITS: Limits = Limits {
    blocks: 1 << 16,
    slots: 64,
    counters: 4096,
    addresses4: 4096,
    addresses6: 4096,
    nets: 4096,
    spoof: 64,
    classes: 4096,
};

/// What the files say at one time, and what that means.
struct State {
    name: String,
    set: ResourceSet,
    expected: Vec<(Flow, bool)>,
}

/// Maps that outlive their states.
struct World {
    store: Store,
    maps: Maps,
}

impl World {
    fn new() -> Self {
        Self { store: Store::empty(LIMITS), maps: Maps::default() }
    }

    fn apply(&mut self, set: &ResourceSet) {
        let plan = self.store.plan(&compile(set, NODE), &BTreeSet::new()).expect("it fits");
        self.maps.execute(&plan);
        self.store = plan.next;
    }

    fn take_over(&mut self) {
        self.store = Store::adopt(LIMITS, &self.maps.state());
    }

    /// What everything says about these flows.
    fn verdicts(&self, flows: &[Flow]) -> Vec<Verdict> {
        flows.iter().map(|flow| self.maps.judge(flow)).collect()
    }

    fn check(&self, state: &State, how: &str) {
        for (flow, allow) in &state.expected {
            let verdict = self.maps.judge(flow);
            assert_eq!(verdict.allow(), *allow, "{} ({how}): {flow:?} {verdict:?}", state.name);
            // The evaluator also judges what other nodes do.
            let expected = evaluate(&state.set, flow);
            assert!(verdict.source.is_none() || verdict.source == expected.source, "{} ({how}): {flow:?}", state.name);
            assert_eq!(verdict.destination, expected.destination, "{} ({how}): {flow:?}", state.name);
        }
        let flows: Vec<Flow> = state.expected.iter().map(|(flow, _)| *flow).collect();
        let mut alone = Self::new();
        alone.apply(&state.set);
        assert_eq!(self.verdicts(&flows), alone.verdicts(&flows), "{} ({how})", state.name);
    }
}

/// All ways through the states.
fn check_sequences(states: &[State]) {
    let empty = ResourceSet::default();
    let indices: Vec<usize> = (0..states.len()).collect();
    let backwards: Vec<usize> = indices.iter().rev().copied().collect();
    // Every state meets others than its neighbours.
    let mixed: Vec<usize> = indices.iter().map(|index| index * 37 % states.len().max(1)).collect();
    for (how, order) in [("forwards", &indices), ("backwards", &backwards), ("mixed", &mixed)] {
        for with_empty in [false, true] {
            let mut world = World::new();
            for (step, &index) in order.iter().enumerate() {
                if with_empty {
                    world.apply(&empty);
                }
                if step % 5 == 4 {
                    world.take_over();
                }
                world.apply(&states[index].set);
                world.check(&states[index], how);
            }
            // In the end nothing of all this is left.
            world.apply(&empty);
            world.take_over();
            world.apply(&empty);
            let left = world.maps.state();
            assert!(left.rule_names.is_empty() && left.workload_names.is_empty(), "{how}");
            assert!(left.addresses.is_empty(), "{how}: {:?}", left.addresses);
        }
    }
}

fn load(name: &str, texts: &[&str]) -> ResourceSet {
    let files: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(i, text)| {
            let path = std::env::temp_dir().join(format!("calico-ebpf-states-{name}-{i}-{}.yaml", std::process::id()));
            fs::write(&path, text).expect("a file");
            path
        })
        .collect();
    let loaded = resources::load(&files);
    for file in files {
        fs::remove_file(file).expect("removed");
    }
    let errors: Vec<_> = loaded.errors().map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{name}: {}", errors.join("\n"));
    loaded.set
}

#[test]
fn all_conformance_cases_one_after_the_other() {
    let topology: Topology = read(&data().join("topology.json"));
    let mut states = Vec::new();
    for (path, case) in ["calico", "k8s", "own"].into_iter().flat_map(cases::cases) {
        let name = cases::name(&path);
        let common = resources_of(&topology, &case).to_string();
        let set = load("conformance", &[&common, &fs::read_to_string(&path).expect("a file")]);
        let judged = |probe: &Probe| Some((flow(&topology, probe)?, probe.allow));
        states.push(State { name, set, expected: case.probes.iter().filter_map(judged).collect() });
    }
    assert!(states.len() > 130, "{}", states.len());
    check_sequences(&states);
}

/// A policy set does not depend on the order in which its resources stand in the files.
#[test]
fn the_order_of_documents_means_nothing() {
    let topology: Topology = read(&data().join("topology.json"));
    for (path, case) in ["calico", "own"].into_iter().flat_map(cases::cases) {
        let name = cases::name(&path);
        let mut common = resources_of(&topology, &case);
        let text = fs::read_to_string(&path).expect("a file");
        let mut documents: Vec<&str> = text.split("\n---\n").collect();
        documents.reverse();
        common["items"].as_array_mut().expect("items").reverse();
        let set = load("reversed", &[&documents.join("\n---\n"), &common.to_string()]);
        let judged = |probe: &Probe| Some((flow(&topology, probe)?, probe.allow));
        let state = State { name, set, expected: case.probes.iter().filter_map(judged).collect() };
        let mut world = World::new();
        world.apply(&state.set);
        world.check(&state, "reversed");
    }
}

/// A state from the documents in `texts` and lines `SOURCE DESTINATION PROTOCOL SOURCE-PORT PORT allow|deny`.
fn state(name: &str, texts: &[&str], table: &str) -> State {
    let number = |text: &str| text.parse().expect("a number");
    let expected = table
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [source, destination, protocol, from, to, verdict] = fields[..] else { panic!("{line}") };
            let address = |text: &str| text.parse::<IpAddr>().expect("an address");
            let flow = Flow {
                source: address(source),
                destination: address(destination),
                protocol: resources::protocol_number(protocol).expect("a protocol"),
                source_port: number(from),
                destination_port: number(to),
            };
            (flow, verdict == "allow")
        })
        .collect();
    State { name: name.to_owned(), set: load(name, texts), expected }
}

fn workload(name: &str, node: &str, address: &str, labels: &str, more: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\n\
         metadata: {{name: {name}, namespace: ns, labels: {{{labels}}}}}\n\
         spec: {{node: {node}, orchestrator: k8s, interfaceName: cali{name}, ipNetworks: [{address}], {more}}}\n"
    )
}

const PROFILE: &str = "---\napiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {name: open}\n\
                       spec: {ingress: [{action: Allow}], egress: [{action: Allow}]}\n";

fn global(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
    )
}

fn network_set(name: &str, labels: &str, nets: &str) -> String {
    let set = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "GlobalNetworkSet",
        "metadata": {"name": name, "labels": {labels: "yes"}},
        "spec": {"nets": nets.split_whitespace().collect::<Vec<_>>()},
    });
    format!("---\n{set}\n")
}

/// Calico's `netsets_test`: members change, overlap, are everything, go one by one.
#[test]
fn network_sets_come_and_go() {
    let base = PROFILE.to_owned()
        + &workload("w", "node1", "10.65.0.1", "role: server", "profiles: [open]")
        + &workload("v", "node1", "10.65.0.2", "role: client", "profiles: [open]")
        + &global(
            "p",
            "selector: role == 'server', ingress: [{action: Allow, source: {selector: has(good), notSelector: has(bad)}}]",
        );
    let with = |name: &str, sets: &[(&str, &str, &str)], table: &str| {
        let sets: String = sets.iter().map(|(name, label, nets)| network_set(name, label, nets)).collect();
        state(name, &[&(base.clone() + &sets)], table)
    };
    let states = [
        with("none", &[], "10.65.0.2 10.65.0.1 TCP 5 80 deny\n 8.8.8.8 10.65.0.1 TCP 5 80 deny"),
        with(
            "one",
            &[("a", "good", "8.8.8.0/24")],
            "8.8.8.8 10.65.0.1 TCP 5 80 allow\n 8.8.9.8 10.65.0.1 TCP 5 80 deny\n 10.65.0.2 10.65.0.1 TCP 5 80 deny",
        ),
        with(
            "members-changed",
            &[("a", "good", "8.8.9.0/24 10.65.0.2")],
            "8.8.8.8 10.65.0.1 TCP 5 80 deny\n 8.8.9.8 10.65.0.1 TCP 5 80 allow\n 10.65.0.2 10.65.0.1 UDP 5 80 allow",
        ),
        with(
            "two-overlap",
            &[("a", "good", "8.8.0.0/16"), ("b", "good", "8.8.8.0/24 8.8.8.8/32 8.8.8.8/32")],
            "8.8.8.8 10.65.0.1 TCP 5 80 allow\n 8.8.9.8 10.65.0.1 TCP 5 80 allow\n 8.9.0.1 10.65.0.1 TCP 5 80 deny",
        ),
        with(
            "one-of-two-gone",
            &[("b", "good", "8.8.8.0/24 8.8.8.8/32")],
            "8.8.8.8 10.65.0.1 TCP 5 80 allow\n 8.8.9.8 10.65.0.1 TCP 5 80 deny",
        ),
        with(
            "good-and-bad",
            &[("a", "good", "8.8.0.0/16"), ("b", "bad", "8.8.8.0/24")],
            "8.8.8.8 10.65.0.1 TCP 5 80 deny\n 8.8.9.8 10.65.0.1 TCP 5 80 allow",
        ),
        with(
            "everything",
            &[("a", "good", "0.0.0.0/0"), ("b", "bad", "8.8.8.8/32")],
            "8.8.8.8 10.65.0.1 TCP 5 80 deny\n 9.9.9.9 10.65.0.1 TCP 5 80 allow\n 10.65.0.2 10.65.0.1 TCP 5 80 allow",
        ),
        with("relabelled", &[("a", "other", "0.0.0.0/0")], "9.9.9.9 10.65.0.1 TCP 5 80 deny"),
    ];
    check_sequences(&states);
}

/// Calico's `tiered_policy_test`, with a tier whose end changes from Deny to Pass and whose place changes.
#[test]
fn tiers_change() {
    let tier = |name: &str, spec: &str| {
        format!("---\napiVersion: projectcalico.org/v3\nkind: Tier\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
    };
    let base = PROFILE.to_owned()
        + &workload("w", "node1", "10.65.0.1", "role: server", "profiles: [open]")
        + &workload("a", "node2", "10.65.0.2", "role: a", "profiles: [open]")
        + &workload("b", "node1", "10.65.0.3", "role: b", "profiles: [open]")
        + &global(
            "one.p",
            "tier: one, selector: role == 'server', ingress: [{action: Pass, source: {selector: role == 'a'}}, {action: Deny, source: {nets: [8.8.8.8/32]}}]",
        )
        + &global(
            "two.p",
            "tier: two, selector: role == 'server', ingress: [{action: Deny, source: {selector: role == 'a'}}, {action: Allow, source: {nets: [8.8.8.8/32]}}, {action: Pass}]",
        );
    let with = |name: &str, one: &str, two: &str, table: &str| {
        state(name, &[&base, &(tier("one", one) + &tier("two", two))], table)
    };
    let states = [
        with(
            "one-first",
            "order: 1",
            "order: 2",
            "10.65.0.2 10.65.0.1 TCP 5 80 deny\n 8.8.8.8 10.65.0.1 TCP 5 80 deny\n 10.65.0.3 10.65.0.1 TCP 5 80 deny",
        ),
        with(
            "one-passes",
            "order: 1, defaultAction: Pass",
            "order: 2",
            "10.65.0.2 10.65.0.1 TCP 5 80 deny\n 8.8.8.8 10.65.0.1 TCP 5 80 deny\n 10.65.0.3 10.65.0.1 TCP 5 80 allow",
        ),
        with(
            "two-first",
            "order: 3",
            "order: 2, defaultAction: Pass",
            "10.65.0.2 10.65.0.1 TCP 5 80 deny\n 8.8.8.8 10.65.0.1 TCP 5 80 allow\n 10.65.0.3 10.65.0.1 TCP 5 80 deny",
        ),
        with(
            "equal-orders",
            "order: 2, defaultAction: Pass",
            "order: 2",
            "8.8.8.8 10.65.0.1 TCP 5 80 deny\n 9.9.9.9 10.65.0.1 TCP 5 80 allow",
        ),
        with(
            "no-orders",
            "defaultAction: Pass",
            "order: 9",
            "8.8.8.8 10.65.0.1 TCP 5 80 allow\n 9.9.9.9 10.65.0.1 TCP 5 80 allow",
        ),
    ];
    check_sequences(&states);
}

/// States of Calico's calculation tests: named ports, inherited labels, profiles, endpoints with one address.
#[test]
fn endpoints_change() {
    let policy = global(
        "p",
        "selector: has(server), ingress: [{action: Allow, protocol: TCP, destination: {ports: [http]}}, {action: Allow, protocol: UDP, source: {selector: tint == 'red', ports: [client]}}]",
    );
    let server = |more: &str| workload("w", "node1", "10.65.0.1", "server: 'yes'", more);
    let client = |labels: &str, more: &str| workload("c", "node2", "10.65.0.2", labels, more);
    let port = |name: &str, protocol: &str, port: u16| format!("{{name: {name}, protocol: {protocol}, port: {port}}}");
    let tint = "---\napiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {name: tint}\nspec: {labelsToApply: {tint: red}}\n";
    let with = |name: &str, parts: &[String], table: &str| {
        let parts: String = parts.concat();
        state(name, &[PROFILE, &policy, &parts], table)
    };
    let named = |ports: &[String]| format!("profiles: [open], ports: [{}]", ports.join(", "));
    let red = || client("tint: red", &named(&[port("client", "UDP", 7)]));
    let states = [
        with(
            "no-ports",
            &[server("profiles: [open]"), client("", "")],
            "10.65.0.2 10.65.0.1 TCP 5 80 deny\n 10.65.0.2 10.65.0.1 UDP 7 80 deny",
        ),
        with(
            "named",
            &[server(&named(&[port("http", "TCP", 80)])), red()],
            "10.65.0.2 10.65.0.1 TCP 5 80 allow\n 10.65.0.2 10.65.0.1 UDP 7 80 allow\n 10.65.0.2 10.65.0.1 UDP 8 80 deny",
        ),
        with(
            "other-number",
            &[server(&named(&[port("http", "TCP", 8080)])), red()],
            "10.65.0.2 10.65.0.1 TCP 5 80 deny\n 10.65.0.2 10.65.0.1 TCP 5 8080 allow",
        ),
        with(
            "one-name-twice",
            &[server(&named(&[port("http", "TCP", 80), port("http", "TCP", 8080)])), client("tint: blue", "")],
            "10.65.0.2 10.65.0.1 TCP 5 80 allow\n 10.65.0.2 10.65.0.1 TCP 5 8080 allow\n 10.65.0.2 10.65.0.1 UDP 7 80 deny",
        ),
        with(
            "protocol-mismatch",
            &[server(&named(&[port("http", "UDP", 80)])), client("tint: red", &named(&[port("client", "TCP", 7)]))],
            "10.65.0.2 10.65.0.1 TCP 5 80 deny\n 10.65.0.2 10.65.0.1 UDP 7 80 deny",
        ),
        with(
            "label-inherited",
            &[
                server("profiles: [open]"),
                client("", "profiles: [tint], ports: [{name: client, protocol: UDP, port: 7}]"),
                tint.to_owned(),
            ],
            "10.65.0.2 10.65.0.1 UDP 7 80 allow",
        ),
        with(
            "profile-gone",
            &[
                server("profiles: [open]"),
                client("", "profiles: [tint], ports: [{name: client, protocol: UDP, port: 7}]"),
            ],
            "10.65.0.2 10.65.0.1 UDP 7 80 deny",
        ),
        with(
            "one-address-on-two-nodes",
            &[
                server(&named(&[port("http", "TCP", 80)])),
                client("tint: blue", &named(&[port("client", "UDP", 9)])),
                workload("d", "node3", "10.65.0.2", "tint: red", &named(&[port("client", "UDP", 7)])),
            ],
            "10.65.0.2 10.65.0.1 UDP 7 80 allow\n 10.65.0.2 10.65.0.1 UDP 9 80 deny",
        ),
        with(
            "selected-no-more",
            &[workload("w", "node1", "10.65.0.1", "", "profiles: [open]")],
            "9.9.9.9 10.65.0.1 TCP 5 1 allow",
        ),
    ];
    check_sequences(&states);
}
