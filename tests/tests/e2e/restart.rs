//! The process dies, the data path does not.

use std::{net::SocketAddr, process::Command, thread, time::Duration};

use calico_ebpf_tests::{
    Protocol::Tcp,
    World,
    resources::policy,
    stream::{Beat, Talk},
};

const ALLOW: &str = "  types: [Ingress]\n  ingress:\n    - action: Allow\n";
const ONLY_A: &str = "  types: [Ingress]
  ingress:
    - action: Allow
      source: {selector: app == 'a'}
";

fn beats(world: &World, pairs: &[(&str, &str)]) -> Vec<Beat> {
    let beats = pairs.iter().flat_map(|(from, to)| {
        let namespace = world.namespace(from);
        world.addresses(to).map(|to| Beat::start(namespace, SocketAddr::new(to, 80), Duration::from_millis(1)))
    });
    beats.collect()
}

/// Every datagram must have come back.
fn nothing_lost(world: &World, beats: Vec<Beat>) {
    for beat in beats {
        let (sent, received) = beat.stop();
        assert!(sent > 100, "only {sent} sent");
        assert_eq!(received, sent, "lost {} of {sent}\n{}", sent - received, world.describe());
    }
}

#[test]
fn kill_and_restart_under_load_lose_nothing() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ONLY_A));
    world.start();
    // Neighbours are known and connections open before it is counted.
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a")] {
        world.allowed(from, to, Tcp(80));
    }
    let beats = beats(&world, &[("a", "b"), ("a", "outside"), ("outside", "a")]);
    let talk = Talk::start(world.namespace("a"), SocketAddr::new(world.addresses("b")[0], 80));
    for round in 0..3 {
        thread::sleep(Duration::from_millis(200));
        world.kill();
        assert!(talk.goes_on(Duration::from_secs(2)), "round {round}: without the process\n{}", world.log());
        world.start();
        assert!(talk.goes_on(Duration::from_secs(2)), "round {round}: after the restart\n{}", world.log());
    }
    nothing_lost(&world, beats);
    // The policy was never gone.
    world.denied("outside", "b", Tcp(80));
    world.kill();
    world.denied("outside", "b", Tcp(80));
    world.allowed("a", "b", Tcp(80));
}

#[test]
fn programs_are_replaced_and_never_stacked() {
    let mut world = World::new(&["a"]);
    world.start();
    let attached = |world: &World| -> usize {
        let output = Command::new("ip").args(["netns", "exec", world.lab.host.name(), "bpftool", "net"]).output();
        let text = String::from_utf8_lossy(&output.expect("bpftool").stdout).into_owned();
        text.matches("cali_").count()
    };
    let links = |world: &World| -> usize {
        let count = std::fs::read_dir(world.lab.pin_dir()).expect("pins").flatten();
        count.map(|entry| std::fs::read_dir(entry.path()).map_or(1, Iterator::count)).sum()
    };
    let (programs, pins) = (attached(&world), links(&world));
    for _ in 0..3 {
        world.kill();
        world.start();
    }
    assert_eq!(attached(&world), programs);
    assert_eq!(links(&world), pins);
}

#[test]
fn killed_at_any_moment_of_a_reload_a_whole_policy_is_in_force() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ONLY_A));
    world.start();
    for (from, to) in [("a", "b"), ("a", "outside")] {
        world.allowed(from, to, Tcp(80));
    }
    // Allowed under both policies, so it must never be interrupted.
    let beats = beats(&world, &[("a", "b"), ("a", "outside")]);
    for round in 0..20_u64 {
        let rules = if round % 2 == 0 { ALLOW } else { ONLY_A };
        world.write("policy.yaml", &policy("b-in", "app == 'b'", rules));
        // Spread over the time that a reload takes, without a source of chance that could not be repeated.
        thread::sleep(Duration::from_micros(round * 700));
        world.kill();
        world.start();
        // What is on disk is in force after a start, whatever was half done.
        let reached = world.reaches("c", world.addresses("b")[0], Tcp(80), Duration::from_millis(300));
        assert_eq!(reached, round % 2 == 0, "round {round}\n{}", world.describe());
    }
    nothing_lost(&world, beats);
}

#[test]
fn sigterm_leaves_the_data_path() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ONLY_A));
    world.start();
    world.terminate();
    world.allowed("a", "b", Tcp(80));
    world.denied("outside", "b", Tcp(80));
    let status = world.status();
    assert!(status["pid"].is_null(), "{status}");
    // Commands read the pinned maps.
    for command in ["workloads", "rules", "routes", "conntrack"] {
        assert_eq!(world.command(&[command]).code, 0, "{command}");
    }
}

#[test]
fn a_refused_start_leaves_what_is_in_force() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ONLY_A));
    world.start();
    world.kill();
    world.write("policy.yaml", "nonsense: [");
    let output = world.run_command(&[]).output().expect("starts");
    assert_eq!(output.status.code(), Some(1));
    world.allowed("a", "b", Tcp(80));
    world.denied("outside", "b", Tcp(80));
}
