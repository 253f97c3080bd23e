//! Purge removes everything of ours, and nothing else.

use std::{fs, process::Command, time::Duration};

use calico_ebpf_tests::{Protocol::Tcp, World, eventually, resources};

/// What could be left over, as text: equal before and after.
fn traces(world: &World) -> Vec<(String, String)> {
    let host = &world.lab.host;
    let run = |program: &str, arguments: &[&str]| {
        let output = host.command(program).args(arguments).output().expect(program);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut traces = vec![
        ("routes".to_owned(), run("ip", &["-4", "route", "show", "table", "all"])),
        ("routes 6".to_owned(), run("ip", &["-6", "route", "show", "table", "main", "proto", "80"])),
        ("qdiscs".to_owned(), run("tc", &["qdisc"])),
        ("nftables".to_owned(), run("nft", &["list", "tables"])),
        ("rules".to_owned(), run("ip", &["rule"])),
    ];
    for name in [
        "net.ipv4.conf.all.forwarding",
        "net.ipv6.conf.all.forwarding",
        "net.ipv4.conf.up0.forwarding",
        "net.ipv4.conf.calia.rp_filter",
        "net.ipv6.conf.calia.accept_ra",
    ] {
        traces.push((name.to_owned(), run("sysctl", &["-n", name])));
    }
    traces
}

/// The filters on all interfaces, as far as this `bpftool` and `tc` know how they are attached.
fn filters(world: &World) -> String {
    let host = &world.lab.host;
    let mut text = String::new();
    for command in ["bpftool net", "tc filter show dev calia ingress", "tc filter show dev calia egress"] {
        let mut words = command.split(' ');
        let output = host.command(words.next().unwrap_or_default()).args(words).output().expect(command);
        text.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    text
}

#[test]
fn nothing_is_left() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("felix.yaml", &resources::felix("interfacePrefix", "cali"));
    let before = traces(&world);
    world.start();
    world.allowed("a", "b", Tcp(80));
    assert_ne!(traces(&world), before, "the traces see nothing");
    let refused = world.command(&["purge"]);
    assert_eq!(refused.code, 1, "purge while it runs: {refused:?}");
    world.allowed("a", "b", Tcp(80));
    world.terminate();
    let answer = world.command(&["purge"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    for (was, is) in before.iter().zip(traces(&world)) {
        assert_eq!(*was, is, "\n{answer:?}");
    }
    let left = filters(&world);
    assert!(!left.contains("cali_"), "{left}");
    assert!(!world.lab.pin_dir().exists(), "{:?} is left", world.lab.pin_dir());
    let run = fs::read_dir("/run/calico-ebpf").into_iter().flatten().flatten();
    let left: Vec<_> = run
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains(world.lab.name()))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    // Again: nothing installed is no error.
    assert_eq!(world.command(&["purge"]).code, 0);
    assert_eq!(world.command(&["status"]).code, 1);
}

#[test]
fn tables_are_found_without_pins() {
    let mut world = World::new(&["a"]);
    world.write("felix.yaml", &resources::felix("interfacePrefix", "cali"));
    let tables = |world: &World| {
        let output = world.lab.host.command("nft").args(["list", "tables"]).output().expect("nft");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    world.start();
    // Nothing is ours to take away while somebody has the namespace.
    let elsewhere = format!("{}-other", world.lab.pin_dir().display());
    let other = world.program(&["purge"]).args(["--pin-dir", &elsewhere]).output().expect("starts");
    assert!(other.status.success() && other.stdout == b"nothing is installed\n", "{other:?}");
    world.terminate();
    let there = tables(&world);
    assert!(there.contains("calico_"), "{there}");
    fs::remove_dir_all(world.lab.pin_dir()).expect("removes the pins");
    let answer = world.command(&["purge"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(tables(&world), "", "{answer:?}");
    assert!(answer.stdout.contains("nftables table"), "{answer:?}");
}

#[test]
fn what_is_no_directory_of_pins_stays() {
    let world = World::new(&["a"]);
    let own = world.config().with_file_name("empty");
    fs::create_dir(&own).expect("a directory");
    let answer = world.program(&["purge"]).arg("--pin-dir").arg(&own).output().expect("starts");
    assert!(answer.status.success() && own.exists(), "{answer:?}");
}

#[test]
fn foreign_filters_stay() {
    let mut world = World::new(&["a"]);
    let tc = |arguments: &str| {
        let status = world.lab.host.command("tc").args(arguments.split_whitespace()).status();
        assert!(status.expect("tc").success(), "{arguments}");
    };
    tc("qdisc add dev calia clsact");
    let matches_nothing =
        ["filter", "add", "dev", "calia", "ingress", "prio", "7", "handle", "7", "bpf", "bytecode", "1,6 0 0 0,"];
    assert!(world.lab.host.command("tc").args(matches_nothing).status().expect("tc").success());
    world.start();
    world.terminate();
    assert_eq!(world.command(&["purge"]).code, 0);
    let output =
        Command::new("tc").args(["-n", world.lab.host.name(), "filter", "show", "dev", "calia", "ingress"]).output();
    let text = String::from_utf8_lossy(&output.expect("tc").stdout).into_owned();
    assert!(text.contains("pref 7"), "{text}");
    assert!(!text.contains("cali_"), "{text}");
}

fn sysctl(world: &World, name: &str) -> String {
    let output = world.lab.host.command("sysctl").args(["-n", name]).output().expect("sysctl");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn set_sysctl(world: &World, name: &str, value: &str) {
    let setting = format!("{name}={value}");
    assert!(world.lab.host.command("sysctl").args(["-qw", &setting]).status().expect("sysctl").success(), "{setting}");
}

#[test]
fn sysctls_get_the_values_back_that_they_had_before_the_first_start() {
    let mut world = World::new(&["a"]);
    let (forward, ra, other) = ("net.ipv4.ip_forward", "net.ipv6.conf.calia.accept_ra", "net.ipv6.conf.all.forwarding");
    for (name, value) in [(forward, "0"), (ra, "2"), (other, "0"), ("net.ipv6.conf.up0.accept_ra", "1")] {
        set_sysctl(&world, name, value);
    }
    // Several processes, one of them killed: the oldest value counts.
    world.start();
    world.kill();
    world.start();
    world.terminate();
    let get = |name: &str| sysctl(&world, name);
    assert_eq!([get(forward), get(ra), get(other)], ["1", "0", "1"]);
    assert_eq!(get("net.ipv6.conf.up0.accept_ra"), "2", "an uplink that learns by RA goes on learning");
    // One that is made anew when forwarding is on already would have learned, too.
    world.start();
    world.lab.host.ip("link del up0").expect("deletes");
    world.lab.uplink().expect("an uplink");
    let learns = || sysctl(&world, "net.ipv6.conf.up0.accept_ra") == "2";
    eventually("it goes on learning", Duration::from_secs(10), learns);
    world.terminate();
    let get = |name: &str| sysctl(&world, name);
    // Somebody else's business since.
    set_sysctl(&world, ra, "1");
    let answer = world.command(&["purge", "--output", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!([get(forward), get(other)], ["0", "0"], "{answer:?}");
    assert_eq!(get("net.ipv6.conf.up0.accept_ra"), "1", "{answer:?}");
    assert_eq!(get(ra), "1", "{answer:?}");
    let text = |key: &str| answer.json()[key].to_string();
    assert!(text("restored").contains("ip_forward"), "{answer:?}");
    assert!(text("left").contains("calia/accept_ra"), "{answer:?}");
}

#[test]
fn an_interface_without_its_workload_gets_its_sysctls_back() {
    let mut world = World::new(&["a", "b"]);
    let ra = "net.ipv6.conf.calia.accept_ra";
    set_sysctl(&world, ra, "2");
    world.start();
    let get = |world: &World| sysctl(world, ra);
    assert_eq!(get(&world), "0");
    // What was changed for one workload goes over to the next one on the same interface.
    let text = fs::read_to_string(world.config().join("workloads.yaml")).expect("reads");
    let other = text.replace("app: a}", "app: a}\n  name: lab-k8s-other-eth0").replace("pod: a", "pod: other");
    assert_ne!(text, other);
    world.write("workloads.yaml", &other);
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    assert_eq!(get(&world), "0", "{}", world.describe());
    let kept: Vec<&str> = other.split("---\n").filter(|document| !document.contains("app: a}")).collect();
    world.write("workloads.yaml", &kept.join("---\n"));
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    assert_eq!(get(&world), "2", "{}", world.describe());
    // And once more changed for one, it is known until the end.
    world.write("workloads.yaml", &text);
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    assert_eq!(get(&world), "0");
    world.terminate();
    let purged = world.command(&["purge"]);
    assert_eq!(get(&world), "2", "{purged:?}");
}

#[test]
fn an_interface_made_anew_has_nothing_of_the_one_before() {
    let mut world = World::new(&["a"]);
    let name = "net.ipv6.conf.calia.disable_ipv6";
    set_sysctl(&world, name, "1");
    world.start();
    assert_eq!(sysctl(&world, name), "0");
    world.kill();
    let a = world.lab.workload("a");
    a.disconnect().expect("disconnects");
    a.connect().expect("connects");
    world.start();
    world.terminate();
    let answer = world.command(&["purge", "--output", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert_eq!(sysctl(&world, name), "0", "{answer:?}");
}
