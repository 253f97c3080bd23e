//! Plans of the policy store, executed on real maps: what the kernel holds is what the store thinks. Needs root.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use calico_ebpf_common::abi::Workload;
use calico_ebpf_user::{
    dataplane::{AttachMode, Desired, DesiredWorkload, Snapshot},
    policy::{compile::compile, compiled::Compiled, maps::Maps, store::Store},
    resources,
};
use lab::{Lab, run};

const NODE: &str = "here";

fn workload(name: &str, interface: &str, node: &str, addresses: &str, role: &str) -> String {
    format!(
        "---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{namespace: shop, name: {name}, labels: {{role: {role}}}}}
spec: {{node: {node}, orchestrator: k8s, pod: {name}, endpoint: eth0, interfaceName: {interface}, ipNetworks: [{addresses}]}}
"
    )
}

fn policy(name: &str, body: &str) -> String {
    format!(
        "---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {{name: {name}}}
spec: {body}
"
    )
}

fn read(yaml: &str, name: &str) -> Compiled {
    let path: PathBuf = std::env::temp_dir().join(format!("{name}.yaml"));
    fs::write(&path, yaml).expect("written");
    let loaded = resources::load(std::slice::from_ref(&path));
    fs::remove_file(&path).expect("removed");
    let errors: Vec<String> = loaded.errors().map(|error| error.render()).collect();
    assert_eq!(errors, [] as [String; 0]);
    compile(&loaded.set, NODE)
}

fn desired(compiled: &Compiled, store: &Store) -> Desired {
    let workloads = compiled.workloads.iter().map(|(name, workload)| DesiredWorkload {
        name: name.clone(),
        pod: None,
        slot: store.slot(name).expect("a slot").slot,
        interface: workload.interface.clone(),
        addresses: workload.addresses.clone(),
        mac: workload.mac,
        spoof: !workload.spoof.is_empty(),
        migration: None,
    });
    Desired { workloads: workloads.collect(), node: NODE.to_owned(), ..Desired::default() }
}

/// The kernel's maps against the store's picture of them, but for what the loader adds.
fn assert_same(kernel: &Snapshot, image: &Maps) {
    let (kernel, image) = (kernel.state(), image.state());
    assert_eq!(kernel.root.generation, image.root.generation);
    assert_eq!(kernel.root.settings, image.root.settings);
    assert_eq!(kernel.workload_names, image.workload_names);
    assert_eq!(kernel.rule_names, image.rule_names);
    assert_eq!(kernel.addresses, image.addresses);
    assert_eq!(kernel.spoof, image.spoof);
    assert!(kernel.blocks[..image.blocks.len()] == *image.blocks, "rule tables");
    for (slot, image) in image.workloads.iter().enumerate() {
        let kernel = kernel.workloads[slot];
        assert_eq!((kernel.policy, kernel.incarnation), (image.policy, image.incarnation), "slot {slot}");
        if !kernel_has(&kernel) {
            assert_eq!(kernel, Workload { incarnation: kernel.incarnation, ..Workload::default() });
        }
    }
}

fn kernel_has(workload: &Workload) -> bool {
    workload.flags != 0 || workload.policy != Workload::default().policy
}

#[test]
fn the_maps_hold_what_the_store_thinks() {
    let lab = Lab::new();
    lab.add_interface("cali1");
    lab.add_interface("cali2");
    let allow = "{types: [Ingress, Egress], selector: all(), ingress: [{action: Allow, protocol: TCP, destination: {ports: [80, '8000:8100']}, source: {selector: role == 'b'}}], egress: [{action: Allow, destination: {nets: [10.0.0.0/8]}}, {action: Allow, destination: {nets: ['fd00::/8']}}]}";
    let one = workload("a", "cali1", NODE, "10.1.0.1/32, 'fd00::1/128'", "a");
    let two = workload("b", "cali2", NODE, "10.1.0.2/32, 'fd00::2/128'", "b");
    let far = workload("c", "cali3", "there", "10.1.0.3/32", "b");
    let steps = [
        one.clone() + &policy("allow", allow),
        one.clone() + &two + &far + &policy("allow", allow),
        one.clone()
            + &two
            + &policy("allow", allow)
            + &policy("deny", "{order: 1, selector: role == 'a', ingress: [{action: Deny}]}"),
        two.clone() + &far,
        one + &two + &policy("allow", allow),
    ];
    let hosts: BTreeSet<IpAddr> = BTreeSet::from([IpAddr::from([192, 0, 2, 1])]);
    let mut dataplane = lab.open(AttachMode::Auto);
    let mut store = dataplane.store().expect("a store");
    let mut image = Maps::default();
    for (number, yaml) in steps.iter().enumerate() {
        let compiled = read(yaml, &format!("{}-{number}", lab.name));
        let plan = store.plan(&compiled, &hosts).expect("there is room");
        let applied = dataplane.apply(Some(&plan), &desired(&compiled, &plan.next)).expect("applied");
        assert_eq!(applied.faults, [] as [String; 0]);
        image.execute(&plan);
        store = plan.next;
        assert_same(&dataplane.snapshot().expect("readable"), &image);

        // Another process would find nothing to do.
        if number % 2 == 1 {
            drop(dataplane);
            dataplane = lab.open(AttachMode::Auto);
        }
        let adopted = dataplane.store().expect("a store");
        let plan = adopted.plan(&compiled, &hosts).expect("there is room");
        let writes: Vec<String> = plan.prepare.iter().chain(&plan.retire).map(ToString::to_string).collect();
        assert_eq!(writes, [] as [String; 0], "after step {number}");

        let rules = lab.view().rules().expect("rules");
        assert_eq!(rules.len(), compiled.rule_names().len());
        for (_, _, workload) in lab.view().workloads().expect("workloads") {
            let policy = workload.policy[store.generation() as usize & 1];
            for table in [policy.egress_table, policy.ingress_table] {
                assert!(!lab.view().table(table).expect("a table").is_empty());
            }
        }
    }
}

/// Prints how long things take; asserts only what is far from normal.
#[test]
fn many_workloads() {
    const LOCAL: usize = 100;
    let lab = Lab::new();
    let mut batch = String::new();
    let pod = lab.pod();
    for i in 0..LOCAL {
        let _ = writeln!(batch, "link add cali{i} up type veth peer name cali{i} netns {pod}");
    }
    let path = std::env::temp_dir().join(format!("{}.batch", lab.name));
    fs::write(&path, batch).expect("written");
    run(&["ip", "-batch", &path.to_string_lossy()]);
    fs::remove_file(&path).expect("removed");
    let mut yaml = policy("p", "{selector: all(), ingress: [{action: Allow, source: {selector: role == 'r1'}}]}");
    for i in 0..LOCAL {
        yaml +=
            &workload(&format!("l{i}"), &format!("cali{i}"), NODE, &format!("10.2.{}.{}/32", i / 250, i % 250), "r1");
    }
    for i in 0..2_000 {
        yaml +=
            &workload(&format!("f{i}"), "cali0", &format!("n{i}"), &format!("10.3.{}.{}/32", i / 250, i % 250), "r1");
    }
    let compiled = read(&yaml, &lab.name);
    let mut dataplane = lab.open(AttachMode::Auto);
    let store = dataplane.store().expect("a store");
    let plan = store.plan(&compiled, &BTreeSet::new()).expect("there is room");
    let desired = desired(&compiled, &plan.next);
    let mut timed = |what: &str, plan| {
        let start = Instant::now();
        let applied = dataplane.apply(plan, &desired).expect("applied");
        assert_eq!(applied.faults, [] as [String; 0]);
        println!("{what}: {:?}, {} changes", start.elapsed(), applied.changes);
        start.elapsed()
    };
    timed("first apply of 100 interfaces and 2,100 addresses", Some(&plan));
    assert!(timed("nothing to do", None) < Duration::from_secs(2));
    let start = Instant::now();
    assert!(dataplane.attachments().are_intact().expect("looks"));
    println!("looking at every filter: {:?}", start.elapsed());
    drop(dataplane);
    let start = Instant::now();
    let mut dataplane = lab.open(AttachMode::Auto);
    println!("opening again: {:?}", start.elapsed());
    let start = Instant::now();
    let adopted = dataplane.store().expect("a store");
    println!("adopting: {:?}", start.elapsed());
    assert!(adopted.plan(&compiled, &BTreeSet::new()).expect("there is room").is_empty());
    let start = Instant::now();
    dataplane.apply(None, &desired).expect("applied");
    println!("replacing 200 programs in place: {:?}", start.elapsed());
}
