//! The process dies, the data path does not.

use std::{
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{
    Protocol::Tcp,
    World, eventually,
    resources::{self, policy},
    stream::{Beat, Talk, Tally},
};

const ALLOW: &str = "  types: [Ingress]\n  ingress:\n    - action: Allow\n";
const ONLY_A: &str = "  types: [Ingress]
  ingress:
    - action: Allow
      source: {selector: app == 'a'}
";

/// Starts the program; returns the pace at which some 500 datagrams pass during a start. That is one in a millisecond or
/// two, but on a machine that emulates its processors: such a load would leave them no time to start anything.
fn start(world: &mut World) -> Duration {
    let before = Instant::now();
    world.start();
    (before.elapsed() / 500).max(Duration::from_millis(1))
}

fn beats(world: &World, pairs: &[(&str, &str)], pace: Duration) -> Vec<Beat> {
    let beats = pairs.iter().flat_map(|(from, to)| {
        let namespace = world.namespace(from);
        world.addresses(to).map(|to| Beat::start(namespace, SocketAddr::new(to, 80), pace))
    });
    beats.collect()
}

/// Every datagram must have come back.
pub(crate) fn nothing_lost(world: &World, beats: Vec<Beat>) {
    for beat in beats {
        let Tally { sent, received, .. } = beat.stop();
        assert!(sent > 100, "only {sent} sent");
        assert_eq!(received, sent, "lost {} of {sent}\n{}", sent - received, world.describe());
    }
}

#[test]
fn kill_and_restart_under_load_lose_nothing() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ONLY_A));
    let pace = start(&mut world);
    // Neighbours are known and connections open before it is counted.
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a")] {
        world.allowed(from, to, Tcp(80));
    }
    let beats = beats(&world, &[("a", "b"), ("a", "outside"), ("outside", "a")], pace);
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
    const ROUNDS: u64 = 36;
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ONLY_A));
    let pace = start(&mut world);
    for (from, to) in [("a", "b"), ("a", "outside")] {
        world.allowed(from, to, Tcp(80));
    }
    // How long it takes from the file to the generation, on this machine as it is now.
    let (generation, before) = (world.generation(), Instant::now());
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ALLOW));
    eventually("the reload", Duration::from_secs(10), || world.generation() > generation);
    let took = before.elapsed();
    // Allowed under both policies, so it must never be interrupted.
    let beats = beats(&world, &[("a", "b"), ("a", "outside")], pace);
    // Nothing is lost by waiting for what is to come.
    let reached = |world: &World, expected: bool| {
        let patience = Duration::from_millis(if expected { 5000 } else { 300 });
        world.addresses("b").map(|address| world.reaches("c", address, Tcp(80), patience))
    };
    let mut late = 0;
    for round in 0..ROUNDS {
        let new = round % 2 == 1;
        let generation = world.generation();
        world.write("policy.yaml", &policy("b-in", "app == 'b'", if new { ALLOW } else { ONLY_A }));
        // All over that time, in an order that can be repeated: 25 and 36 have no common factor.
        thread::sleep(took.mul_f64(1.5) * u32::try_from(round * 25 % ROUNDS).expect("small") / 36);
        world.kill();
        let switched = world.generation() != generation;
        late += u64::from(switched);
        // Old or new, whole: as the generation says, for both families alike.
        let expected = new == switched;
        assert_eq!(
            reached(&world, expected),
            [expected; 2],
            "round {round}, switched: {switched}\n{}",
            world.describe()
        );
        world.start();
        // What is on disk is in force after a start, whatever was half done.
        assert_eq!(reached(&world, new), [new; 2], "round {round}\n{}", world.describe());
    }
    println!("a reload takes {took:?}; of {ROUNDS} kills {late} came behind its switch");
    nothing_lost(&world, beats);
}

#[test]
fn killed_while_interfaces_change_hands_it_finds_its_routes_again() {
    const ROUNDS: u32 = 24;
    /// So many that changing their routes takes longer than anything else.
    const ADDRESSES: u8 = 250;
    let mut world = World::new(&["a", "b"]);
    let address = |workload: usize, number: u8| format!("10.66.{workload}.{number}");
    let describe = |interfaces: [&str; 2]| {
        let workloads = world.lab.workloads.iter().zip(interfaces).enumerate();
        let mut documents = vec![resources::NAMESPACE.to_owned()];
        documents.extend(workloads.map(|(number, (workload, interface))| {
            let more: String = (1..=ADDRESSES).map(|last| format!("{}/32, ", address(number, last))).collect();
            let text = resources::workload(workload).replace("ipNetworks: [", &format!("ipNetworks: [{more}"));
            text.replace(&format!("interfaceName: {}", workload.interface), &format!("interfaceName: {interface}"))
        }));
        resources::documents(&documents)
    };
    // Both change places, or one moves to an interface that was nobody's.
    let veth = "link add caliother type veth peer name other\nlink set caliother up\nlink set other up";
    world.lab.host.ip_batch(veth).expect("an interface");
    let states = [["calia", "calib"], ["calib", "calia"], ["caliother", "calia"]];
    let files = states.map(describe);
    world.start();
    let before = Instant::now();
    world.write("workloads.yaml", &files[1]);
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    let took = before.elapsed();
    for round in 0..ROUNDS {
        let state = round as usize % states.len();
        world.write("workloads.yaml", &files[state]);
        // All over that time, in an order that can be repeated: 7 and 24 have no common factor.
        thread::sleep(took.mul_f64(1.5) * (round * 7 % ROUNDS) / ROUNDS);
        world.kill();
        world.start();
        let status = world.status();
        assert_eq!(status["faults"], serde_json::json!([]), "round {round}\n{}", world.log());
        let routes = world.lab.host.ip("route show proto 80").expect("routes");
        for (number, interface) in states[state].into_iter().enumerate() {
            let first = format!("10.66.{number}.");
            let of_it: Vec<&str> = routes.lines().filter(|line| line.starts_with(&first)).collect();
            let right = of_it.iter().filter(|line| line.contains(&format!("dev {interface} "))).count();
            assert!(
                right == of_it.len() && right == usize::from(ADDRESSES),
                "round {round}: {of_it:?}\n{}",
                world.log()
            );
        }
    }
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
