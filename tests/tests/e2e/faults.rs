//! What goes wrong between hosts: traffic ends right, no route of ours is left behind, nothing foreign is touched.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{
    Protocol::Tcp,
    eventually,
    hosts::{CONVERGENCE, Hosts, MESH},
    lab::Server,
    stream::{Beat, Talk, Tally},
};
use xtask::cluster::{bird::HOLD_TIME, plan::Options};

const BLOCK: &str = "10.65.2.0/26 via 192.0.2.12";

fn routes(hosts: &Hosts, who: &str) -> String {
    hosts.cluster.view.routes(who).expect("routes").join("\n")
}

fn is_established(hosts: &Hosts, host: &str, session: &str) -> bool {
    let sessions = hosts.cluster.view.bird(host).sessions().unwrap_or_default();
    sessions.iter().any(|one| one.name == session && one.established)
}

#[test]
fn a_routing_daemon_dies_and_a_host_is_cut_off() {
    let Some(mut hosts) = Hosts::start(MESH) else { return };
    hosts.allowed("w1", "w2", Tcp(80));
    let to = hosts.addresses("w2");
    let talk = Talk::start(&hosts.namespace("w1"), SocketAddr::new(to[0], 80));
    let beats: Vec<Beat> = to
        .iter()
        .map(|to| Beat::start(&hosts.namespace("w1"), SocketAddr::new(*to, 80), Duration::from_millis(2)))
        .collect();
    // BIRD is killed: its peers know that it may come back, and the kernel keeps what it wrote.
    hosts.cluster.bird("host2").expect("it runs").kill();
    thread::sleep(Duration::from_secs(1));
    assert!(routes(&hosts, "host1").contains(BLOCK), "{}", hosts.describe());
    assert!(routes(&hosts, "host2").contains("10.65.1.0/26 via 192.0.2.11"), "{}", hosts.describe());
    hosts.cluster.bird("host2").expect("it ran").recover().expect("starts");
    for (host, session) in [("host1", "Mesh_host2_4"), ("host1", "Mesh_host2_6"), ("outside", "host2_4")] {
        eventually(session, CONVERGENCE, || is_established(&hosts, host, session));
    }
    thread::sleep(Duration::from_secs(1));
    hosts.converge();
    for beat in beats {
        let Tally { sent, received, .. } = beat.stop();
        assert!(sent > 100 && sent == received, "lost {} of {sent}\n{}", sent - received, hosts.describe());
    }
    assert!(talk.goes_on(Duration::from_secs(2)), "{}", hosts.describe());
    // A session is torn down on purpose, again and again, and comes back.
    for _ in 0..2 {
        hosts.cluster.view.bird("host1").ask("restart Mesh_host2_4").expect("restarts");
        eventually("the session", CONVERGENCE, || is_established(&hosts, "host1", "Mesh_host2_4"));
    }
    eventually("the route", CONVERGENCE, || routes(&hosts, "host1").contains(BLOCK));
    assert!(talk.goes_on(Duration::from_secs(20)), "{}", hosts.describe());
    // A host is cut off without a word: its routes go when it has been silent for too long, and come back with it.
    hosts.cluster.connect("host2", false).expect("cuts");
    let cut = Instant::now();
    eventually("its route to be gone", CONVERGENCE, || !routes(&hosts, "host1").contains(BLOCK));
    let (took, most) = (cut.elapsed(), Duration::from_secs(u64::from(HOLD_TIME) + 10));
    assert!(took < most, "{took:?}");
    // Workloads of one host never needed the others.
    assert_eq!(
        hosts.cluster.program("host2").expect("it runs").instance.status().expect("status")["faults"],
        serde_json::json!([])
    );
    hosts.cluster.connect("host2", true).expect("connects");
    hosts.converge();
    hosts.soon_allowed("w3", "w2", Tcp(80));
    assert!(talk.goes_on(Duration::from_secs(120)), "the connection did not survive\n{}", hosts.describe());
}

#[test]
fn routes_deleted_by_hand_and_foreign_ones() {
    let Some(hosts) = Hosts::start(Options { hosts: 2, workloads: 2, ..MESH }) else { return };
    let host1 = hosts.namespace("host1");
    let [v4, v6] = hosts.addresses("w1")[..] else { panic!("two addresses") };
    let instance = hosts.cluster.program("host1").expect("it runs").instance.clone();
    let own = |hosts: &Hosts| {
        let text = routes(hosts, "host1");
        [v4, v6].iter().all(|address| text.contains(&format!("{address} dev caliw1 proto 80")))
    };
    host1.ip_batch(&format!("route del {v4} dev caliw1\nroute del {v6} dev caliw1")).expect("deletes");
    eventually("our routes to be back", CONVERGENCE, || own(&hosts));
    hosts.allowed("w2", "w1", Tcp(80));
    // Somebody else's route to the same address is left alone, and ours comes back when it is gone.
    let foreign = format!("{v4} via 192.0.2.2 proto static metric 1024");
    host1.ip(&format!("route replace {foreign}")).expect("replaces");
    let faults = |hosts: &Hosts| {
        let instance = &hosts.cluster.program("host1").expect("it runs").instance;
        instance.status().expect("status")["faults"].to_string()
    };
    eventually("a word about it", CONVERGENCE, || faults(&hosts).contains("another program's route"));
    assert!(host1.ip("route show proto static").expect("routes").contains(&v4.to_string()));
    host1.ip(&format!("route del {foreign}")).expect("deletes");
    eventually("our routes to be back", CONVERGENCE, || own(&hosts));
    eventually("nothing more to say", CONVERGENCE, || faults(&hosts) == "[]");
    hosts.allowed("w2", "w1", Tcp(80));
    // A better one on another host leads its traffic elsewhere, until it is gone; nobody of ours touches it.
    let host2 = hosts.namespace("host2");
    host2.ip(&format!("route add {v4} via 192.0.2.2 proto static")).expect("adds");
    assert!(!hosts.reaches("w2", v4, Tcp(80), Duration::from_millis(400)));
    hosts.reload();
    assert!(host2.ip("route show proto static").expect("routes").contains(&v4.to_string()));
    host2.ip(&format!("route del {v4} via 192.0.2.2 proto static")).expect("deletes");
    hosts.allowed("w2", "w1", Tcp(80));
    // What is purged leaves nothing behind, here or there, and BIRD withdraws it.
    let mut hosts = hosts;
    hosts.cluster.take_program("host1").expect("it runs").stop().expect("purges");
    assert!(!routes(&hosts, "host1").contains("proto 80"), "{}", routes(&hosts, "host1"));
    assert!(instance.status().is_err());
}

/// An address outside, one for each family, that two hosts say they have: two equal ways for all others.
const SHARED: [&str; 2] = ["203.0.113.9", "2001:db8:99::9"];

/// `config` of a BIRD, which tells that the shared addresses are here.
fn sharing(config: &str) -> String {
    let [v4, v6] = SHARED;
    let told =
        |family: u8, net: String| format!("function calico_export{family}() {{\n  if net = {net} then accept;\n");
    let text = config
        .replace("function calico_export4() {\n", &told(4, format!("{v4}/32")))
        .replace("function calico_export6() {\n", &told(6, format!("{v6}/128")));
    assert_ne!(text, config);
    format!(
        "{text}protocol static shared4 {{ ipv4; route {v4}/32 blackhole; }}\n\
         protocol static shared6 {{ ipv6; route {v6}/128 blackhole; }}\n"
    )
}

#[test]
fn traffic_follows_the_routes_that_are_left() {
    let Some(mut hosts) = Hosts::start(MESH) else { return };
    let shared: Vec<IpAddr> = SHARED.iter().map(|text| text.parse().expect("an address")).collect();
    let mut servers = Vec::new();
    let mut plain = Vec::new();
    for name in ["host2", "host3"] {
        let namespace = hosts.namespace(name);
        let lines = format!("addr add {}/32 dev lo\naddr add {}/128 dev lo nodad", SHARED[0], SHARED[1]);
        namespace.ip_batch(&lines).expect("addresses");
        servers.push(Server::start(&namespace, 80).expect("a server"));
        let bird = hosts.cluster.bird(name).expect("it runs");
        let config = bird.config().expect("a configuration");
        bird.configure(&sharing(&config)).expect("BIRD takes it");
        plain.push(config);
    }
    let ways = |hosts: &Hosts| -> Vec<usize> {
        let ways = ["-4", "-6"].into_iter().zip(SHARED).map(|(family, to)| {
            let text = hosts.namespace("host1").ip(&format!("{family} route show {to}")).expect("routes");
            let hops = ["192.0.2.12 ", "192.0.2.13 ", "2001:db8:2::c ", "2001:db8:2::d "];
            hops.iter().filter(|hop| text.contains(*hop)).count()
        });
        ways.collect()
    };
    eventually("two ways", CONVERGENCE, || ways(&hosts) == [2, 2]);
    // All packets of a connection go one way: the other host knows nothing of it.
    let reached =
        |hosts: &Hosts, patience: Duration| shared.iter().all(|to| hosts.reaches("w1", *to, Tcp(80), patience));
    for round in 0..12 {
        assert!(reached(&hosts, Duration::from_secs(5)), "round {round}\n{}", hosts.describe());
    }
    // One is withdrawn: the other serves all, from the moment on that the kernel knows.
    hosts.cluster.bird("host3").expect("it runs").configure(&plain[1]).expect("BIRD takes it");
    eventually("one way", CONVERGENCE, || ways(&hosts) == [1, 1]);
    for round in 0..4 {
        assert!(reached(&hosts, Duration::from_secs(5)), "round {round}\n{}", hosts.describe());
    }
    hosts.cluster.bird("host3").expect("it runs").configure(&sharing(&plain[1])).expect("BIRD takes it");
    eventually("two ways again", CONVERGENCE, || ways(&hosts) == [2, 2]);
    // One is cut off without a word: what is dead is left as soon as BGP notices.
    hosts.cluster.connect("host2", false).expect("cuts");
    let cut = Instant::now();
    eventually("one way", CONVERGENCE, || ways(&hosts) == [1, 1]);
    let (took, most) = (cut.elapsed(), Duration::from_secs(u64::from(HOLD_TIME) + 10));
    assert!(took < most, "{took:?}");
    for round in 0..4 {
        assert!(reached(&hosts, Duration::from_secs(5)), "round {round}\n{}", hosts.describe());
    }
}
