//! A change of the files becomes the policy in force: for new connections and for those that run.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{
    Protocol::Tcp,
    World, eventually,
    resources::{documents, policy},
    stream::{RESUMES, Talk},
};

const DENY_A: &str = "  types: [Ingress]
  ingress:
    - action: Deny
      source: {selector: app == 'a'}
    - action: Allow
";
const ALLOW: &str = "  types: [Ingress]\n  ingress:\n    - action: Allow\n";

fn talks(world: &World, from: &str, to: &str) -> Vec<Talk> {
    let to = world.addresses(to).map(|address| SocketAddr::new(address, 80));
    to.into_iter().map(|to| Talk::start(world.namespace(from), to)).collect()
}

#[test]
fn a_new_deny_cuts_running_connections_and_no_others() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ALLOW));
    world.start();
    let cut = talks(&world, "a", "b");
    let stay =
        [talks(&world, "c", "b"), talks(&world, "outside", "b"), talks(&world, "b", "a"), talks(&world, "host", "b")];
    world.enforce(&[policy("b-in", "app == 'b'", DENY_A)]);
    for talk in &cut {
        assert!(!talk.goes_on(Duration::from_millis(700)), "a denied connection goes on\n{}", world.describe());
    }
    for talk in stay.iter().flatten() {
        assert!(talk.goes_on(Duration::from_secs(3)), "an allowed connection was cut\n{}", world.describe());
    }
    world.denied("a", "b", Tcp(80));
    // Allowed again, the old connections go on too: TCP repeats what was lost.
    world.enforce(&[policy("b-in", "app == 'b'", ALLOW)]);
    for talk in &cut {
        assert!(talk.goes_on(RESUMES), "allowed again, it does not go on\n{}", world.describe());
    }
}

#[test]
fn a_file_renamed_into_place_counts_within_a_second() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.allowed("a", "b", Tcp(80));
    let to = SocketAddr::new(world.addresses("b")[0], 80);
    let counts = || {
        let before = Instant::now();
        world.write("policy.yaml", &policy("b-in", "app == 'b'", DENY_A));
        eventually("the new policy", Duration::from_secs(3), || {
            !calico_ebpf_tests::lab::tcp(world.namespace("a"), to, Duration::from_millis(50)).expect("a probe")
        });
        before.elapsed()
    };
    // A machine that stands still for a moment does not do so three times.
    let mut took = vec![counts()];
    while took.len() < 3 && took.iter().all(|took| *took >= Duration::from_secs(1)) {
        world.remove("policy.yaml");
        world.allowed("a", "b", Tcp(80));
        took.push(counts());
    }
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
    // Written in place it counts too, a little later.
    std::fs::write(world.config().join("policy.yaml"), policy("b-in", "app == 'b'", ALLOW)).expect("writes");
    eventually("the file written in place", Duration::from_secs(3), || {
        calico_ebpf_tests::lab::tcp(world.namespace("a"), to, Duration::from_millis(300)).expect("a probe")
    });
}

#[test]
fn broken_files_leave_the_last_good_policy_in_force() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", DENY_A));
    world.start();
    let generation = world.generation();
    for broken in [
        "kind: [".to_owned(),
        policy("b-in", "app == ", ALLOW),
        policy("b-in", "app == 'b'", "  types: [Ingress]\n  ingres: []\n"),
        documents(&[policy("b-in", "app == 'b'", ALLOW), policy("b-in", "all()", ALLOW)]),
    ] {
        world.write("policy.yaml", &broken);
        let answer = world.command(&["reload"]);
        assert_eq!(answer.code, 1, "{broken}\n{answer:?}");
        assert!(answer.stderr.contains("policy.yaml:"), "no place in {answer:?}");
        let status = world.status();
        assert_eq!(status["lastLoad"]["ok"], false, "{status}");
        assert!(status["lastLoad"]["errors"][0]["line"].as_u64().is_some_and(|line| line > 0), "{status}");
        assert_eq!(status["generation"], generation, "{status}");
        world.denied("a", "b", Tcp(80));
    }
    // An emptied directory removes nothing either. What is on the way there is refused, too: it is followed at once.
    world.write("broken.yaml", "kind: [");
    assert_eq!(world.command(&["reload"]).code, 1);
    world.remove("policy.yaml");
    let kept = std::fs::read_to_string(world.config().join("workloads.yaml")).expect("reads");
    world.remove("workloads.yaml");
    world.remove("broken.yaml");
    assert_eq!(world.command(&["reload"]).code, 1);
    world.denied("a", "b", Tcp(80));
    world.write("workloads.yaml", &kept);
    world.enforce(&[policy("b-in", "app == 'b'", ALLOW)]);
    world.allowed("a", "b", Tcp(80));
    assert_eq!(world.status()["lastLoad"]["ok"], true);
}

#[test]
fn an_unconfirmed_reload_is_rolled_back() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    // So that only `reload` reads the files.
    world.start_with(&["--watch", "off"]);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", DENY_A));
    let answer = world.command(&["reload", "--confirm", "5"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    world.denied("a", "b", Tcp(80));
    // After five seconds, and what the machine takes besides.
    let to = world.addresses("b")[0];
    eventually("a roll back", Duration::from_secs(20), || world.reaches("a", to, Tcp(80), Duration::from_millis(300)));
    world.allowed("a", "b", Tcp(80));
    // What was rolled back stays refused until the files change.
    assert_eq!(world.command(&["reload"]).code, 1);
    world.allowed("a", "b", Tcp(80));
    world.write("policy.yaml", &policy("b-in2", "app == 'b'", DENY_A));
    assert_eq!(world.command(&["reload", "--confirm", "2"]).code, 0);
    assert_eq!(world.command(&["confirm"]).code, 0);
    thread::sleep(Duration::from_millis(2300));
    world.denied("a", "b", Tcp(80));
}

#[test]
fn what_the_watch_was_quicker_to_load_may_be_doubted_still() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let good = policy("b-in", "app == 'b'", ALLOW);
    world.write("policy.yaml", &good);
    world.start();
    let brings = |world: &World, policy: &str| {
        let generation = world.generation();
        world.write("policy.yaml", policy);
        eventually("the watch has read it", Duration::from_secs(5), || world.generation() != generation);
    };
    brings(&world, &policy("b-in", "app == 'b'", DENY_A));
    world.denied("a", "b", Tcp(80));
    let answer = world.command(&["reload", "--confirm", "2"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let to = world.addresses("b")[0];
    eventually("a roll back", Duration::from_secs(20), || world.reaches("a", to, Tcp(80), Duration::from_millis(300)));
    assert_eq!(world.command(&["reload"]).code, 1, "it stays refused");

    // Who sees his mistake himself has nothing to confirm any more, and nothing is held against the good files.
    brings(&world, &policy("b-in2", "app == 'b'", DENY_A));
    assert_eq!(world.command(&["reload", "--confirm", "600"]).code, 0);
    brings(&world, &good);
    assert!(world.status()["confirmWithin"].is_null(), "{}", world.status());
    assert_eq!(world.command(&["confirm"]).code, 1);
    world.terminate();
    world.start();
    world.allowed("a", "b", Tcp(80));
    // What has been in force since the start nothing comes before.
    let answer = world.command(&["reload", "--confirm", "2"]);
    assert!(answer.code == 1 && answer.stderr.contains("nothing that could be taken back"), "{answer:?}");
}

#[test]
fn a_directory_made_anew_is_watched_again() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    let workloads = std::fs::read(world.config().join("workloads.yaml")).expect("reads");
    std::fs::remove_dir_all(world.config()).expect("removes");
    std::fs::create_dir(world.config()).expect("a directory");
    std::fs::write(world.config().join("workloads.yaml"), workloads).expect("writes");
    thread::sleep(Duration::from_millis(500));
    let generation = world.generation();
    world.write("policy.yaml", &policy("b-in", "app == 'b'", DENY_A));
    eventually("it is read", Duration::from_secs(5), || world.generation() != generation);
    world.denied("a", "b", Tcp(80));
}

#[test]
fn a_mounted_config_map_switches_at_once() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    // As the kubelet does: files are links through `..data`, which is replaced.
    let base = world.config().to_owned();
    let version = |name: &str, rules: &str| {
        let directory = base.join(name);
        std::fs::create_dir(&directory).expect("a directory");
        std::fs::write(directory.join("policy.yaml"), policy("b-in", "app == 'b'", rules)).expect("writes");
        std::os::unix::fs::symlink(name, base.join("..data_tmp")).expect("links");
        std::fs::rename(base.join("..data_tmp"), base.join("..data")).expect("renames");
    };
    version("..1", DENY_A);
    std::os::unix::fs::symlink("..data/policy.yaml", base.join("policy.yaml")).expect("links");
    world.start();
    world.denied("a", "b", Tcp(80));
    version("..2", ALLOW);
    let to = SocketAddr::new(world.addresses("b")[0], 80);
    eventually("the switched policy", Duration::from_secs(3), || {
        calico_ebpf_tests::lab::tcp(world.namespace("a"), to, Duration::from_millis(300)).expect("a probe")
    });
}
