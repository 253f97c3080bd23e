//! Looking at a data path: what it would do, what a reload would change, what `Log` rules met.

use std::{fs, time::Duration};

use calico_ebpf_tests::{
    Protocol::{Tcp, Udp},
    World, eventually,
    resources::policy,
};
use serde_json::Value;

const WEB_FROM_A: &str = "  types: [Ingress]
  ingress:
    - action: Allow
      source: {selector: app == 'a'}
      protocol: TCP
      destination: {ports: [80]}
    - action: Allow
      source: {selector: app == 'a'}
      protocol: UDP
";
const NOTHING: &str = "  types: [Ingress]\n";
const PATIENCE: Duration = Duration::from_secs(10);

fn json(world: &World, arguments: &[&str]) -> Value {
    let answer = world.command(&[arguments, &["--output", "json"]].concat());
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.json()
}

/// A directory with the world's files, but other policy.
fn other_files(world: &World, policies: &str) -> String {
    let directory = world.config().with_file_name("other");
    fs::create_dir_all(&directory).expect("a directory");
    fs::copy(world.config().join("workloads.yaml"), directory.join("workloads.yaml")).expect("copied");
    fs::write(directory.join("policy.yaml"), policies).expect("written");
    directory.to_str().expect("text").to_owned()
}

#[test]
fn the_loaded_program_explains_without_a_trace() {
    let mut world = World::new(&["a", "b"]);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", WEB_FROM_A));
    world.start();
    let rules = json(&world, &["rules"]);
    let [a, b] = ["a", "b"].map(|name| world.addresses(name)[0].to_string());
    let ask = |to: &str, port: &str, more: &[&str]| {
        let question = ["explain", "--live", "--from", &a, "--to", to, "--protocol", "TCP", "--port", port];
        json(&world, &[&question, more].concat())
    };
    let allowed = ask(&b, "80", &[]);
    assert_eq!(allowed["verdict"], "allow");
    assert_eq!(allowed["destination"]["policy"], "b-in");
    assert_eq!(allowed["destination"]["rule"], 0);
    assert_eq!(allowed["source"]["reason"], "profile");
    let denied = ask("t/b", "81", &[]);
    assert_eq!(denied["verdict"], "deny");
    assert_eq!(denied["dropReason"], "policy-ingress");
    assert_eq!(denied["destination"]["reason"], "tier-default");
    assert_eq!(ask("host", "80", &[])["source"]["reason"], "endpoint-to-host");

    let same = world.config().to_str().expect("text").to_owned();
    assert_eq!(ask(&b, "80", &["--config", &same])["files"], Value::Null);
    let other = other_files(&world, &policy("b-in", "app == 'b'", NOTHING));
    let differs = ask(&b, "80", &["--config", &other]);
    assert_eq!(differs["verdict"], "allow");
    assert_eq!(differs["files"]["verdict"], "deny");

    assert_eq!(json(&world, &["conntrack"]), Value::Array(vec![]), "no connection was made");
    assert_eq!(json(&world, &["rules"]), rules, "nothing was counted");
}

#[test]
fn a_diff_says_what_a_reload_would_cut() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", WEB_FROM_A));
    world.start();
    world.allowed("a", "b", Udp(80));
    world.allowed("a", "c", Udp(80));
    let generation = world.generation();
    let same = world.config().to_str().expect("text").to_owned();
    let nothing = json(&world, &["diff", "--config", &same]);
    assert!(nothing.as_object().expect("an object").values().all(|list| list == &Value::Array(vec![])), "{nothing}");

    let other = other_files(&world, &policy("b-in", "app == 'b'", NOTHING));
    let text = fs::read_to_string(format!("{other}/workloads.yaml")).expect("read");
    let kept: Vec<&str> = text.split("---\n").filter(|document| !document.contains("app: c")).collect();
    fs::write(format!("{other}/workloads.yaml"), kept.join("---\n")).expect("written");
    let check = |world: &World, by_policy: usize| {
        let changes = json(world, &["diff", "--config", &other]);
        let names = |list: &str| changes[list].as_array().expect("a list").clone();
        assert_eq!(names("workloadsRemoved").len(), 1, "{changes}");
        assert!(names("workloadsRemoved")[0].as_str().is_some_and(|name| name.starts_with("t/")));
        assert_eq!(names("ingress").len(), 1, "{changes}");
        assert_eq!(names("routesRemoved").len(), 2, "{changes}");
        assert_eq!(names("routesAdded").len(), 0, "{changes}");
        // Both families, to b by policy and to c because it goes.
        assert_eq!(names("cut").len(), by_policy + 2, "{changes}");
        assert_eq!(
            names("cut").iter().filter(|cut| cut["by"]["reason"] == "tier-default").count(),
            by_policy,
            "{changes}"
        );
    };
    check(&world, 2);
    assert_eq!(world.generation(), generation, "nothing was touched");
    world.allowed("a", "b", Udp(80));
    // Of a stopped data path, too.
    world.terminate();
    check(&world, 4);
}

#[test]
fn log_rules_are_recorded_and_go_on() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let rules = "  types: [Ingress]
  ingress:
    - action: Log
      protocol: TCP
    - action: Allow
";
    world.write("policy.yaml", &policy("b-log", "app == 'b'", rules));
    world.start();
    world.allowed("a", "b", Udp(80));
    world.allowed("a", "b", Tcp(80));
    let a = world.addresses("a").map(|address| address.to_string());
    eventually("both families are logged", PATIENCE, || {
        a.iter().all(|address| {
            world.log().lines().any(|line| {
                line.contains("met Log rule")
                    && line.contains(address)
                    && line.contains("b-log")
                    && line.contains(" tcp ")
            })
        })
    });
    assert!(
        !world.log().lines().any(|line| line.contains("met Log rule") && line.contains(" udp ")),
        "{}",
        world.log()
    );
}
