//! The commands: what they print for programs, and how they end.

use std::process::Command;

use calico_ebpf_tests::{Protocol::Tcp, World, resources::policy};
use xtask::project;

#[test]
fn json_of_all_that_look_at_a_data_path() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let allow =
        "  types: [Ingress]\n  ingress:\n    - action: Allow\n      protocol: TCP\n      destination: {ports: [80]}\n";
    world.write("policy.yaml", &policy("b-in", "app == 'b'", allow));
    world.start();
    world.allowed("a", "b", Tcp(80));
    let status = world.status();
    for key in ["version", "node", "pid", "generation", "lastLoad", "workloads", "uplinks", "routes"] {
        assert!(!status[key].is_null(), "no {key} in {status}");
    }
    assert_eq!(status["node"], "lab");
    assert_eq!(status["pid"], world.pid());
    assert_eq!(status["lastLoad"]["ok"], true);
    assert_eq!(status["workloads"].as_array().map(Vec::len), Some(2), "{status}");
    for arguments in [&["workloads"][..], &["rules"], &["rules", "t/b"], &["routes"], &["conntrack"]] {
        let answer = world.command(&[arguments, &["--output", "json"]].concat());
        assert_eq!(answer.code, 0, "{arguments:?}: {answer:?}");
        assert!(!answer.json().is_null());
    }
    let connections = world.command(&["conntrack", "--output", "json"]).stdout;
    for address in world.addresses("a").into_iter().chain(world.addresses("b")) {
        assert!(connections.contains(&address.to_string()), "no {address} in {connections}");
    }
    // What decided can be seen: the rule and how often.
    let rules = world.command(&["rules", "t/b", "--output", "json"]);
    assert!(rules.stdout.contains("b-in"), "{rules:?}");
    let hits = world.command(&["rules", "t/b"]).stdout;
    assert!(hits.contains("b-in"), "{hits}");
}

/// A staged policy changes nothing but what is shown.
#[test]
fn staged_policies_are_shown() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.allowed("a", "b", Tcp(80));
    let staged = "apiVersion: projectcalico.org/v3\nkind: StagedGlobalNetworkPolicy\nmetadata: {name: close}\n\
                  spec: {selector: app == 'b', ingress: [{action: Deny}]}\n";
    world.write("staged.yaml", staged);
    assert_eq!(world.command(&["reload"]).code, 0);
    world.allowed("a", "b", Tcp(80));
    let rules = |who: &str| world.command(&["rules", who, "--output", "json"]).json()[0].clone();
    let (a, b) = (rules("t/a"), rules("t/b"));
    assert_eq!(b["staged"]["ingress"][0]["kind"], "StagedGlobalNetworkPolicy", "{b}");
    assert!(!b["ingress"].to_string().contains("Staged"), "{b}");
    assert!(a["ingress"].is_array() && a["staged"].is_null(), "{a}");
}

#[test]
fn exit_codes() {
    let world = World::new(&["a"]);
    let code = |arguments: &[&str]| {
        Command::new(project::binary()).args(arguments).output().expect("starts").status.code().expect("an exit code")
    };
    let config = world.config().to_str().expect("text").to_owned();
    assert_eq!(code(&["validate", &config]), 0);
    assert_eq!(code(&["validate", "/nonexistent"]), 1);
    assert_eq!(code(&["no-such-command"]), 2);
    assert_eq!(code(&["validate"]), 2);
    assert_eq!(code(&["--version"]), 0);
    world
        .write("bad.yaml", "apiVersion: projectcalico.org/v3\nkind: NetworkPolcy\nmetadata: {name: x, namespace: t}\n");
    assert_eq!(code(&["validate", &config]), 1);
    // Nothing is installed and nothing runs.
    assert_eq!(world.command(&["status"]).code, 1);
    assert_eq!(world.command(&["reload"]).code, 1);
    assert_eq!(world.command(&["purge"]).code, 0);
}

#[test]
fn once_leaves_a_working_data_path() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let status = world.run_command(&["--once"]).stdout(std::process::Stdio::null()).status();
    assert!(status.expect("starts").success());
    world.allowed("a", "b", Tcp(80));
    world.allowed("a", "outside", Tcp(80));
}

#[test]
fn a_dry_run_touches_nothing() {
    let world = World::new(&["a", "b"]);
    let output = world.run_command(&["--dry-run"]).output().expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(text.contains("calia"), "{text}");
    assert!(!world.lab.pin_dir().exists());
    assert_eq!(world.lab.host.ip("route show proto 80").expect("routes"), "");
    assert_eq!(world.command(&["status"]).code, 1);
}

#[test]
fn a_stopped_data_path_can_be_looked_at() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.allowed("a", "b", Tcp(80));
    let running = world.status();
    world.kill();
    let stopped = world.status();
    assert!(stopped["pid"].is_null(), "{stopped}");
    for key in ["version", "node", "generation", "uplinks"] {
        assert_eq!(stopped[key], running[key], "{key}");
    }
    let sorted = |status: &serde_json::Value| {
        let mut routes: Vec<_> = status["routes"].as_array().expect("a list").iter().map(ToString::to_string).collect();
        routes.sort();
        routes
    };
    assert_eq!(sorted(&stopped), sorted(&running));
    assert!(stopped["lastLoad"].is_null() || stopped["lastLoad"]["ok"] == true, "{stopped}");
    let connections = world.command(&["conntrack", "--output", "json"]).json();
    assert!(connections.as_array().is_some_and(|list| !list.is_empty()), "{connections}");
    // What needs the process says so.
    for command in ["reload", "confirm"] {
        let answer = world.command(&[command]);
        assert_eq!(answer.code, 1, "{answer:?}");
        assert!(answer.stderr.contains("no process"), "{answer:?}");
    }
}

#[test]
fn who_may_be_an_endpoint_a_pod_an_address_or_the_host() {
    let mut world = World::new(&["a"]);
    world.start();
    let a = world.lab.workload("a");
    let rules = |who: &str| world.command(&["rules", who, "--output", "json"]);
    let by_name = rules("t/lab-k8s-a-eth0").json();
    assert!(by_name.to_string().contains("lab-k8s-a-eth0"), "{by_name}");
    for who in ["t/a", &a.v4.to_string(), &a.v6.to_string()] {
        assert_eq!(rules(who).json(), by_name, "{who}");
    }
    let host = rules("host");
    assert_eq!(host.code, 0, "{host:?}");
    assert!(!host.stdout.contains("lab-k8s-a-eth0"), "{host:?}");
    let nobody = rules("t/nobody");
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(nobody.stderr.contains("t/nobody"), "{nobody:?}");
    assert_eq!(rules("not a name").code, 2);
}

/// The checks of `doctor` of this name.
fn checks(world: &World, name: &str) -> Vec<serde_json::Value> {
    let all = world.command(&["doctor", "--output", "json"]).json();
    let all = all.as_array().expect("a list");
    all.iter().filter(|check| check["name"] == name).cloned().collect()
}

#[test]
fn doctor_finds_the_programs_of_others_and_what_was_switched_off() {
    let mut world = World::new(&["a"]);
    world.start();
    assert!(checks(&world, "other programs").iter().all(|check| check["status"] == "ok"), "ours are taken for others'");
    // Under clsact it is there already.
    let _there = world.lab.host.command("tc").args(["qdisc", "add", "dev", "up0", "clsact"]).output().expect("tc");
    let passes_all =
        ["filter", "add", "dev", "up0", "ingress", "prio", "7", "handle", "7", "bpf", "bytecode", "1,6 0 0 0,"];
    assert!(world.lab.host.command("tc").args(passes_all).status().expect("tc").success());
    let found = checks(&world, "other programs");
    assert!(
        found.iter().any(|check| check["status"] == "warning" && check["detail"].to_string().contains("up0")),
        "{found:?}"
    );
    world.lab.host.sysctl("net/ipv4/conf/up0/forwarding", "0").expect("switches it off");
    let found = checks(&world, "forwarding");
    assert!(
        found.iter().any(|check| check["status"] == "warning" && check["detail"].to_string().contains("up0")),
        "{found:?}"
    );
    world.terminate();
    assert!(
        world.lab.host.command("sysctl").args(["-qw", "net.ipv4.ip_forward=0"]).status().expect("sysctl").success()
    );
    let found = checks(&world, "forwarding");
    let bad = found.iter().find(|check| check["status"] == "warning").unwrap_or_else(|| panic!("{found:?}"));
    assert!(bad["advice"].to_string().contains("net.ipv4.ip_forward=1"), "{bad}");
    // Neither stops the data path.
    assert_eq!(world.command(&["doctor"]).code, 0);
}

#[test]
fn doctor_finds_nothing_wrong_in_a_running_lab() {
    let mut world = World::new(&["a"]);
    world.start();
    let answer = world.command(&["doctor", "--output", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(!answer.json().is_null());
}
