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
fn doctor_finds_nothing_wrong_in_a_running_lab() {
    let mut world = World::new(&["a"]);
    world.start();
    let answer = world.command(&["doctor", "--output", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(!answer.json().is_null());
}
