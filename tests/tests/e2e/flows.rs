//! Who talks to whom: looked at once and followed.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, eventually,
    resources::policy,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

const FROM_A: &str = "  types: [Ingress]
  ingress:
    - action: Allow
      source: {selector: app == 'a'}
      protocol: TCP
      destination: {ports: [80]}
    - action: Allow
      source: {selector: app == 'a'}
      protocol: UDP
";
const STAGED: &str = "apiVersion: projectcalico.org/v3
kind: StagedGlobalNetworkPolicy
metadata: {name: b-in}
spec:
  selector: app == 'b'
  types: [Ingress]
  ingress:
    - {action: Deny, protocol: UDP}
    - {action: Allow, protocol: ICMP}
    - {action: Allow, protocol: ICMPv6}
    - {action: Allow, protocol: TCP, source: {selector: app == 'a'}, destination: {ports: [80]}}
";
const PATIENCE: Duration = Duration::from_secs(15);

/// `flows --follow` in the background.
struct Follower {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Follower {
    fn start(world: &World, arguments: &[&str]) -> Self {
        let mut command = world.program(&[&["flows", "--follow"], arguments].concat());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("starts calico-ebpf");
        let output = child.stdout.take().expect("was piped");
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                kept.lock().expect("the lines").push(line);
            }
        });
        Self { child, lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("the lines").clone()
    }

    /// Each line is one object.
    fn flows(&self) -> Vec<Value> {
        let lines = self.lines();
        lines.iter().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }

    /// The newest line about a flow.
    fn last(&self, world: &World, from: &str, to: &str, protocol: &str) -> Option<Value> {
        self.flows().into_iter().rfind(|flow| is(world, flow, from, to, protocol))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is(world: &World, flow: &Value, from: &str, to: &str, protocol: &str) -> bool {
    let is = |end: &Value, who: &str| world.addresses(who).iter().any(|address| end["address"] == address.to_string());
    flow["protocol"] == protocol && is(&flow["source"], from) && is(&flow["destination"], to)
}

fn flows(world: &World, arguments: &[&str]) -> Vec<Value> {
    let answer = world.command(&[&["flows", "--output", "json"], arguments].concat());
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.json().as_array().expect("a list").clone()
}

fn find(world: &World, flows: &[Value], verdict: &str, from: &str, to: &str, protocol: &str) -> Value {
    let found = flows.iter().find(|flow| flow["verdict"] == verdict && is(world, flow, from, to, protocol));
    found.unwrap_or_else(|| panic!("no {verdict} {from} -> {to} {protocol}: {flows:#?}")).clone()
}

#[test]
fn a_look_says_who_talks_to_whom() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", FROM_A));
    world.start();
    world.allowed("a", "c", Udp(80));
    // Nobody looked yet: the connections are known, their packets are not, and that is said.
    let first = world.command(&["flows", "--output", "json"]);
    assert!(first.stderr.contains("from now on"), "{first:?}");
    let before = first.json();
    let before = before.as_array().expect("a list");
    assert_eq!(before.len(), 2, "{before:?}");
    assert!(before.iter().all(|flow| flow["source"]["packets"].is_null() && flow["verdict"] == "allow"), "{before:?}");

    world.allowed("a", "b", Tcp(80));
    world.denied("c", "b", Tcp(80));
    world.denied("a", "b", Icmp);
    world.allowed("outside", "c", Udp(80));
    world.allowed("host", "b", Udp(80));
    let second = world.command(&["flows"]);
    assert_eq!((second.code, second.stderr.as_str()), (0, ""), "it is recorded already");
    let flows_now = flows(&world, &[]);
    let web = find(&world, &flows_now, "allow", "a", "b", "tcp");
    assert_eq!(web["destination"]["port"], 80);
    assert_eq!(web["destination"]["rule"]["policy"], "b-in");
    assert!(web["destination"]["endpoint"].as_str().is_some_and(|name| name.starts_with("t/")), "{web}");
    for side in ["source", "destination"] {
        // SYN, ACK and FIN of either at the least.
        assert!(web[side]["packets"].as_u64() >= Some(3) && web[side]["bytes"].as_u64() >= Some(120), "{web}");
    }
    assert_eq!(web.get("pending"), None, "nothing is staged");
    let denied = find(&world, &flows_now, "deny", "c", "b", "tcp");
    assert_eq!(denied["reason"], "policy-ingress");
    assert_eq!(denied["destination"]["rule"]["reason"], "tier-default");
    assert_eq!(denied["source"]["rule"]["reason"], "profile");
    assert_eq!(denied["destination"]["packets"], 0);
    assert_eq!(find(&world, &flows_now, "deny", "a", "b", "icmp")["icmp"], json!([8, 0]));
    let outside = find(&world, &flows_now, "allow", "outside", "c", "udp");
    assert_eq!(outside["source"]["endpoint"], Value::Null);
    assert!(outside["destination"]["packets"].as_u64() >= Some(1), "{outside}");
    let of_host = find(&world, &flows_now, "allow", "host", "b", "udp");
    assert!(of_host["source"]["packets"].as_u64() >= Some(1), "{of_host}");
    assert_eq!(of_host["destination"]["rule"], Value::Null, "nobody judges what the host opens");

    let only = flows(&world, &["--denied", "--from", "t/c"]);
    assert!(!only.is_empty() && only.iter().all(|flow| flow["verdict"] == "deny"), "{only:?}");
    assert!(only.iter().all(|flow| is(&world, flow, "c", "b", "tcp")), "{only:?}");
    assert_eq!(world.command(&["flows", "--from", "t/nobody"]).code, 1);
    assert_eq!(world.command(&["flows", "--from", "nobody"]).code, 2);
}

#[test]
fn following_shows_what_is_new_and_what_goes_on() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", FROM_A));
    world.start();
    world.allowed("a", "c", Udp(80));
    let all = Follower::start(&world, &["--output", "json"]);
    let denied = Follower::start(&world, &["--output", "json", "--denied"]);
    let from_a = Follower::start(&world, &["--output", "json", "--from", "t/a"]);
    let between = Follower::start(&world, &["--output", "json", "--from", "t/c", "--to", "t/b"]);
    let table = Follower::start(&world, &[]);
    eventually("the heading", PATIENCE, || table.lines().first().is_some_and(|line| line.starts_with("VERDICT")));
    // The others have begun when they show something.
    eventually("everybody follows", PATIENCE, || {
        world.denied("c", "b", Udp(80));
        world.allowed("a", "b", Udp(80));
        [&all, &denied, &from_a, &between].iter().all(|follower| !follower.lines().is_empty())
    });

    world.allowed("a", "b", Tcp(80));
    world.denied("c", "b", Tcp(80));
    world.denied("a", "b", Icmp);
    world.allowed("outside", "c", Tcp(80));
    eventually("both ends, the verdict, and what decided", PATIENCE, || {
        let (Some(web), Some(other)) = (all.last(&world, "a", "b", "tcp"), all.last(&world, "c", "b", "tcp")) else {
            return false;
        };
        let name = |end: &Value| end["endpoint"].as_str().is_some_and(|name| name.starts_with("t/"));
        web["verdict"] == "allow"
            && web["reason"].is_null()
            && name(&web["source"])
            && name(&web["destination"])
            && web["source"]["rule"]["policy"] == "kns.t"
            && web["destination"]["rule"]["policy"] == "b-in"
            && web["destination"]["rule"]["rule"] == 0
            && web["source"]["bytes"].as_u64() >= Some(120)
            && other["verdict"] == "deny"
            && other["reason"] == "policy-ingress"
            && other["destination"]["rule"]["reason"] == "tier-default"
            && all.last(&world, "outside", "c", "tcp").is_some_and(|flow| flow["source"]["endpoint"].is_null())
            && all.last(&world, "a", "b", "icmp").is_some_and(|flow| flow["verdict"] == "deny")
    });
    eventually("each has what it asked for", PATIENCE, || {
        denied.last(&world, "a", "b", "icmp").is_some()
            && from_a.last(&world, "a", "b", "tcp").is_some()
            && between.last(&world, "c", "b", "tcp").is_some()
            && table.lines().iter().any(|line| line.starts_with("deny") && line.contains("end of tier"))
    });
    assert!(denied.flows().iter().all(|flow| flow["verdict"] == "deny"), "{:#?}", denied.flows());
    let of = |flow: &Value, side: &str, who: &str| {
        world.addresses(who).iter().any(|address| flow[side]["address"] == address.to_string())
    };
    assert!(from_a.flows().iter().all(|flow| of(flow, "source", "a")), "{:#?}", from_a.flows());
    let both = |flow: &Value| of(flow, "source", "c") && of(flow, "destination", "b");
    assert!(between.flows().iter().all(both), "{:#?}", between.flows());
    assert!(
        !all.flows().iter().any(|flow| is(&world, flow, "a", "c", "udp")),
        "a connection that was there and says nothing is no news"
    );

    // What goes on is shown again, with the packets of all of it.
    let packets = || {
        all.flows()
            .iter()
            .filter(|flow| is(&world, flow, "c", "b", "icmp"))
            .map(|flow| flow["source"]["packets"].as_u64().expect("a number"))
            .collect::<Vec<_>>()
    };
    eventually("it is shown again with more", PATIENCE, || {
        world.denied("c", "b", Icmp);
        packets().len() > 1
    });
    assert!(packets().is_sorted_by(|a, b| a < b), "{:?}", packets());
}

#[test]
fn following_ends_when_nobody_reads() {
    let mut world = World::new(&["a"]);
    world.start();
    let mut child = world.program(&["flows", "--follow"]).stdout(Stdio::piped()).spawn().expect("starts calico-ebpf");
    drop(child.stdout.take());
    eventually("the end", PATIENCE, || child.try_wait().expect("waits").is_some_and(|status| status.success()));
}

#[test]
fn following_goes_on_without_the_process() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.kill();
    let follower = Follower::start(&world, &["--output", "json", "--to", "t/b"]);
    eventually("the flow", PATIENCE, || {
        world.allowed("a", "b", Udp(80));
        follower.last(&world, "a", "b", "udp").is_some()
    });
    world.start();
    let before = follower.lines().len();
    eventually("more of it, beside the next process", PATIENCE, || {
        world.allowed("a", "b", Udp(80));
        follower.lines().len() > before
    });
    let pid = Pid::from_raw(i32::try_from(follower.child.id()).expect("a pid"));
    kill(pid, None::<Signal>).expect("it still runs");
}

#[test]
fn staged_policies_are_held_against_what_flows() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", FROM_A));
    world.write("staged.yaml", STAGED);
    world.start();
    let follower = Follower::start(&world, &["--output", "json", "--to", "t/b"]);
    eventually("it follows", PATIENCE, || {
        world.allowed("a", "b", Udp(80));
        !follower.lines().is_empty()
    });
    world.allowed("a", "b", Tcp(80));
    world.allowed("a", "c", Tcp(80));
    world.denied("a", "b", Icmp);
    world.denied("c", "b", Tcp(80));
    world.allowed("host", "b", Udp(80));
    let now = flows(&world, &[]);

    let cut = find(&world, &now, "allow", "a", "b", "udp");
    assert_eq!(cut["destination"]["rule"]["kind"], "GlobalNetworkPolicy", "it is not in force: {cut}");
    assert_eq!(cut["pending"]["verdict"], "deny", "{cut}");
    assert_eq!(cut["pending"]["destination"]["verdict"], "deny", "{cut}");
    assert_eq!(cut["pending"]["destination"]["rule"]["kind"], "StagedGlobalNetworkPolicy", "{cut}");
    assert_eq!(cut["pending"]["destination"]["rule"]["rule"], 0, "{cut}");
    assert_eq!(cut["pending"]["source"]["rule"]["policy"], "kns.t", "{cut}");
    for protocol in ["icmp", "icmpv6"] {
        let opened = find(&world, &now, "deny", "a", "b", protocol);
        assert_eq!(opened["pending"]["verdict"], "allow", "{opened}");
    }
    let same = find(&world, &now, "allow", "a", "b", "tcp");
    assert_eq!(same["pending"]["verdict"], "allow", "by another rule: {same}");
    assert_eq!(same["pending"]["destination"]["rule"]["rule"], 3, "{same}");
    let still = find(&world, &now, "deny", "c", "b", "tcp");
    assert_eq!(still.get("pending"), None, "the end of the tier denies it in any case: {still}");
    for (from, to, protocol) in [("a", "c", "tcp"), ("host", "b", "udp")] {
        let other = find(&world, &now, "allow", from, to, protocol);
        assert_eq!(other.get("pending"), None, "nothing is staged there: {other}");
    }
    let table = world.command(&["flows", "--from", "t/a", "--to", "t/b"]).stdout;
    assert!(table.contains("; pending: deny by "), "{table}");
    eventually("a follower sees it, too", PATIENCE, || {
        follower.last(&world, "a", "b", "udp").is_some_and(|flow| flow["pending"]["verdict"] == "deny")
    });

    // What is staged is nowhere but in the process.
    world.terminate();
    assert!(flows(&world, &[]).iter().all(|flow| flow.get("pending").is_none()));
    // Without anything staged there is nothing to hold against.
    world.remove("staged.yaml");
    world.start();
    assert!(flows(&world, &[]).iter().all(|flow| flow.get("pending").is_none()));
}
