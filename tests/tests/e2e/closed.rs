//! Fail closed: nothing passes before its policy is in force, and none of it can be taken away.

use std::{process::Command, time::Duration};

use calico_ebpf_tests::{Protocol::Tcp, World, eventually, resources};

/// The identifiers of the links that are pinned for `interface`.
fn links(world: &World, interface: &str) -> Vec<String> {
    let index = world.lab.host.ip(&format!("-o link show dev {interface}")).expect("an interface");
    let prefix = format!("link_{}_", index.split(':').next().expect("an index"));
    let directories = std::fs::read_dir(world.lab.pin_dir()).expect("pins").flatten().map(|entry| entry.path());
    let pins = directories.flat_map(|directory| std::fs::read_dir(directory).into_iter().flatten().flatten());
    let links = pins.filter(|pin| pin.file_name().to_string_lossy().starts_with(&prefix)).map(|pin| {
        let output = Command::new("bpftool").args(["-j", "link", "show", "pinned"]).arg(pin.path()).output();
        let link: serde_json::Value = serde_json::from_slice(&output.expect("bpftool").stdout).unwrap_or_default();
        link["id"].to_string()
    });
    links.collect()
}

#[test]
fn an_interface_that_appears_while_the_agent_is_dead_passes_nothing() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("felix.yaml", &resources::felix("interfacePrefix", "cali"));
    world.lab.workload("b").disconnect().expect("deletes the veth");
    world.start();
    world.allowed("a", "outside", Tcp(80));
    world.kill();
    world.lab.workload("b").connect().expect("makes a veth");
    // As somebody in its place would have it: a way there, and back.
    world.lab.host.ip(&format!("route replace {} dev calib", world.lab.workload("b").v4)).expect("a route");
    world.denied("b", "outside", Tcp(80));
    world.denied("b", "host", Tcp(80));
    world.start();
    world.allowed("b", "outside", Tcp(80));
    world.allowed("a", "b", Tcp(80));
}

#[test]
fn an_interface_of_the_prefix_without_a_workload_passes_nothing() {
    let mut world = World::new(&["a", "stray"]);
    world.serve(80);
    world.write("felix.yaml", &resources::felix("interfacePrefix", "cali"));
    let known = [resources::NAMESPACE.to_owned(), resources::workload(world.lab.workload("a"))];
    world.write("workloads.yaml", &resources::documents(&known));
    world.start();
    world.lab.host.ip(&format!("route add {} dev calistray", world.lab.workload("stray").v4)).expect("a route");
    world.denied("stray", "outside", Tcp(80));
    world.denied("stray", "a", Tcp(80));
    world.denied("stray", "host", Tcp(80));
    world.allowed("a", "outside", Tcp(80));
}

#[test]
fn an_interface_that_loses_its_workload_keeps_dropping() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.allowed("b", "outside", Tcp(80));
    let only_a = [resources::NAMESPACE.to_owned(), resources::workload(world.lab.workload("a"))];
    world.write("workloads.yaml", &resources::documents(&only_a));
    assert_eq!(world.command(&["reload"]).code, 0);
    world.lab.host.ip(&format!("route add {} dev calib", world.lab.workload("b").v4)).expect("a route");
    world.denied("b", "outside", Tcp(80));
    world.denied("b", "host", Tcp(80));
    world.kill();
    world.denied("b", "outside", Tcp(80));
}

#[test]
fn filters_deleted_by_hand_are_put_back() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let deny = "  types: [Egress]\n  egress:\n    - action: Deny\n";
    world.write("policy.yaml", &resources::policy("a-out", "app == 'a'", deny));
    world.start();
    world.denied("a", "outside", Tcp(80));
    let before = links(&world, "calia");
    if before.is_empty() {
        // Attached by clsact: there the qdisc is what can be deleted.
        let deleted = world.lab.host.command("tc").args(["qdisc", "del", "dev", "calia", "clsact"]).status();
        assert!(deleted.expect("tc").success());
        let filters = || {
            let output = world.lab.host.command("tc").args(["filter", "show", "dev", "calia", "ingress"]).output();
            String::from_utf8_lossy(&output.expect("tc").stdout).into_owned()
        };
        eventually("the filters to be back", Duration::from_secs(3), || filters().contains("cali_"));
    }
    for id in &before {
        let detached = world.lab.host.command("bpftool").args(["link", "detach", "id", id]).status();
        assert!(detached.expect("bpftool").success());
    }
    eventually("the links to be back", Duration::from_secs(3), || {
        let now = links(&world, "calia");
        now.len() == before.len() && now.iter().all(|id| !before.contains(id))
    });
    world.denied("a", "outside", Tcp(80));
    world.allowed("b", "outside", Tcp(80));
}

#[test]
fn a_qdisc_deleted_by_hand_is_put_back() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let deny = "  types: [Egress]\n  egress:\n    - action: Deny\n";
    world.write("policy.yaml", &resources::policy("a-out", "app == 'a'", deny));
    let mut command = world.run_command(&[]);
    command.env("CALICO_EBPF_ATTACH", "clsact");
    world.start_command(command);
    assert_eq!(links(&world, "calia"), Vec::<String>::new(), "attached by links");
    let filters = |interface: &str| {
        ["ingress", "egress"].map(|direction| {
            let arguments = ["filter", "show", "dev", interface, direction];
            let output = world.lab.host.command("tc").args(arguments).output().expect("tc");
            String::from_utf8_lossy(&output.stdout).matches("cali_").count()
        })
    };
    let before = filters("calia");
    assert!(before.iter().all(|count| *count > 0), "{before:?}");
    for interface in ["calia", "up0"] {
        let deleted = world.lab.host.command("tc").args(["qdisc", "del", "dev", interface, "clsact"]).status();
        assert!(deleted.expect("tc").success());
        eventually("the filters to be back", Duration::from_secs(3), || filters(interface) == before);
    }
    world.denied("a", "outside", Tcp(80));
    world.allowed("b", "outside", Tcp(80));
    world.allowed("outside", "b", Tcp(80));
}

#[test]
fn forwarding_starts_only_with_policy() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let deny = "  types: [Ingress, Egress]\n";
    world.write("policy.yaml", &resources::policy("all", "all()", deny));
    // A sender that never stops trying, from before the start on.
    let to = std::net::SocketAddr::new(world.addresses("b")[0], 80);
    let beat = calico_ebpf_tests::stream::Beat::start(world.namespace("a"), to, Duration::from_micros(300));
    world.start();
    std::thread::sleep(Duration::from_millis(200));
    let tally = beat.stop();
    assert!(tally.sent > 100);
    assert_eq!(tally.received, 0, "of {} some passed before the policy", tally.sent);
}
