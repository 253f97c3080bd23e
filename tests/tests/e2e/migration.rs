//! A workload goes from one host to another, and its traffic with it.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{
    Protocol::Tcp,
    eventually,
    frames::{Wire, gratuitous_arp, mac},
    hosts::{CONVERGENCE, Hosts, MESH},
    resources::{self, policy},
    stream::{Beat, Talk, Tally},
};
use xtask::{
    cluster::{files, migrate::Landing, plan::Options},
    program::{Instance, Program},
};

const PACE: Duration = Duration::from_millis(2);
/// What is lost at most on a busy machine: a tenth of what Calico documents.
const MOST_LOST: Duration = Duration::from_millis(200);
/// How long the former host may keep its route beside a better one, on such a machine: a millisecond or two elsewhere, and a
/// quarter of what [`SOON_NORMAL`] says at most.
const WITHDRAWAL: Duration = Duration::from_secs(3);

fn routes(hosts: &Hosts, who: &str) -> String {
    hosts.cluster.view.routes(who).expect("routes").join("\n")
}

/// Says in the resources that `w1` is on `host`.
fn say(hosts: &Hosts, host: &str) {
    let view = &hosts.cluster.view;
    let text = files::workloads(&view.plan, &view.options, |workload| {
        if workload.name == "w1" { host.to_owned() } else { workload.host.clone() }
    });
    hosts.cluster.write("workloads.yaml", &text).expect("writes");
}

/// How `host` sees the migration of `w1`: `routes` in the status of the workload.
fn migration(hosts: &Hosts, host: &str) -> Option<String> {
    let instance = &hosts.cluster.program(host).expect("it runs").instance;
    let status = instance.status().expect("status");
    let workloads = status["workloads"].as_array().expect("workloads").clone();
    let w1 = workloads.into_iter().find(|one| one["interface"] == "caliw1")?;
    w1["migration"]["routes"].as_str().map(str::to_owned)
}

/// Makes routes normal after a time that a test can wait for.
const SOON_NORMAL: (&str, &str) = ("liveMigrationRouteConvergenceTime", "12s");

#[test]
fn a_workload_moves_and_its_connections_with_it() {
    let Some(hosts) = Hosts::start(MESH) else { return };
    // What w1 has opened may not be opened from the other side, and the other way around.
    let rules = "  types: [Ingress, Egress]\n  egress: [{action: Allow, protocol: TCP, destination: {selector: \"app == 'w2'\"}}]\n  \
                 ingress: [{action: Allow, source: {notSelector: \"app == 'w2'\"}}]\n";
    let (name, value) = SOON_NORMAL;
    hosts.enforce(&[policy("w1", "app == 'w1'", rules), resources::felix(name, value)]);
    hosts.denied("w2", "w1", Tcp(80));
    let (w1, w2) = (hosts.addresses("w1"), hosts.addresses("w2"));
    let at = |address: IpAddr| SocketAddr::new(address, 80);
    let opened: Vec<Talk> = w2.iter().map(|to| Talk::start(&hosts.namespace("w1"), at(*to))).collect();
    let accepted: Vec<Talk> = w1.iter().map(|to| Talk::start(&hosts.namespace("w3"), at(*to))).collect();
    let beats: Vec<Beat> = w1.iter().map(|to| Beat::start(&hosts.namespace("w3"), at(*to), PACE)).collect();
    thread::sleep(Duration::from_millis(200));

    // To the host of w2, with which it talks: from two hosts to one.
    let landing = Landing::prepare(&hosts.cluster.view, "w1", "host2").expect("a second interface");
    let wire = Wire::open(&hosts.namespace("w1"), landing.device);
    let own_mac = mac(&hosts.namespace("w1"), landing.device);
    let IpAddr::V4(v4) = w1[0] else { panic!("IPv4 first") };
    let begin = Instant::now();
    say(&hosts, "host2");
    landing.cut_over().expect("moves");
    assert!(wire.send(&gratuitous_arp(own_mac, v4)));
    println!("\nfact: cut over after {:?}", begin.elapsed());
    let told = |who: &str, preference: u32| {
        let told = hosts.cluster.view.bird(who).ask("show route all 10.65.1.1/32").unwrap_or_default();
        told.contains(&format!("BGP.local_pref: {preference}"))
    };
    let elevated = || routes(&hosts, "host2").matches("metric 512").count() == w1.len();
    eventually("elevated routes on host2", CONVERGENCE, elevated);
    for host in ["host3", "host1"] {
        eventually(&format!("elevated routes told to {host}"), CONVERGENCE, || told(host, 2_147_483_647 - 512));
    }
    assert_eq!(migration(&hosts, "host2").as_deref(), Some("elevated"), "{}", hosts.describe());
    // BIRD has just heard of the better route, host1's agent hears of it by the kernel: long before it would give up by itself.
    eventually("the route withdrawn from host1", WITHDRAWAL, || !routes(&hosts, "host1").contains("caliw1"));
    for talk in opened.iter().chain(&accepted) {
        assert!(talk.goes_on(Duration::from_secs(10)), "a connection did not survive\n{}", hosts.describe());
    }
    for beat in beats {
        let Tally { sent, received, outage, .. } = beat.stop();
        println!("\nfact: {} of {sent} lost, those of {outage:?}", sent - received);
        assert!(outage < MOST_LOST, "{outage:?}, lost {} of {sent}\n{}", sent - received, hosts.describe());
    }
    // Then as ever, and nobody has lost anything by that.
    let beats: Vec<Beat> = w1.iter().map(|to| Beat::start(&hosts.namespace("w3"), at(*to), PACE)).collect();
    eventually("normal routes on host2", CONVERGENCE, || !routes(&hosts, "host2").contains("metric 512"));
    for host in ["host3", "host1"] {
        eventually(&format!("normal routes told to {host}"), CONVERGENCE, || told(host, 2_147_483_647 - 1024));
        // One route for each family, and none left behind.
        let text = routes(&hosts, host);
        let ways = w1.iter().map(|address| text.matches(&format!("{address} via")).count());
        assert_eq!(ways.collect::<Vec<_>>(), [1, 1], "{text}");
    }
    assert_eq!(migration(&hosts, "host2"), None);
    thread::sleep(Duration::from_millis(500));
    for beat in beats {
        let Tally { sent, received, .. } = beat.stop();
        assert!(sent > 100 && sent == received, "lost {} of {sent}\n{}", sent - received, hosts.describe());
    }
    for talk in opened.iter().chain(&accepted) {
        assert!(talk.goes_on(Duration::from_secs(10)), "a connection did not survive\n{}", hosts.describe());
    }
    hosts.denied("w2", "w1", Tcp(80));
    hosts.allowed("w3", "w1", Tcp(80));
    hosts.allowed("outside", "w1", Tcp(80));
    // Who has not heard of it sends to the old host, which passes it on.
    let outside = hosts.namespace("outside");
    let old = ["192.0.2.11", "2001:db8:2::b"];
    let lines = w1.iter().zip(old).map(|(address, old)| format!("route replace {address} via {old} metric 1\n"));
    outside.ip_batch(&lines.collect::<String>()).expect("routes");
    hosts.allowed("outside", "w1", Tcp(80));
}

#[test]
fn a_route_waits_for_a_sign_of_life_but_not_where_nothing_is_known() {
    let Some(mut hosts) = Hosts::start(Options { hosts: 2, workloads: 2, ..MESH }) else { return };
    let landing = Landing::prepare(&hosts.cluster.view, "w1", "host2").expect("a second interface");
    say(&hosts, "host2");
    hosts.reload();
    // It is there still, and its host goes on with it.
    let host1 = hosts.cluster.program("host1").expect("it runs").instance.clone();
    assert!(host1.query(&["status"]).expect("status").contains("leaves for host2"), "{}", hosts.describe());
    thread::sleep(Duration::from_millis(500));
    hosts.allowed("outside", "w1", Tcp(80));
    let (w1, v6) = (hosts.namespace("w1"), hosts.addresses("w1")[1]);
    w1.ip("link set eth0 down").expect("goes");
    let has_route = |hosts: &Hosts, host: &str| routes(hosts, host).contains("caliw1");
    eventually("the old host to withdraw", CONVERGENCE, || !has_route(&hosts, "host1"));
    // Asked once a second, what is not there does not answer.
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(migration(&hosts, "host2").as_deref(), Some("withheld"), "{}", hosts.describe());
    assert!(!has_route(&hosts, "host2"), "{}", hosts.describe());
    // The next process goes on waiting.
    hosts.cluster.take_program("host2").expect("it runs").kill();
    hosts.cluster.start_program("host2").expect("starts");
    assert_eq!(migration(&hosts, "host2").as_deref(), Some("withheld"), "{}", hosts.describe());
    assert!(!has_route(&hosts, "host2"), "{}", hosts.describe());
    // It says nothing by itself, and answers.
    w1.ip_batch(&format!("link set eth0 up\naddr add {v6}/128 dev eth0 nodad\n")).expect("as it was");
    landing.cut_over().expect("moves");
    eventually("a sign of life", CONVERGENCE, || migration(&hosts, "host2").as_deref() == Some("elevated"));
    hosts.soon_allowed("w2", "w1", Tcp(80));
    hosts.soon_allowed("outside", "w1", Tcp(80));
    // One that starts anew knows nothing of another node, and does not wait.
    let program = hosts.cluster.take_program("host2").expect("it runs");
    program.stop().expect("purges");
    assert!(!has_route(&hosts, "host2"), "{}", hosts.describe());
    hosts.cluster.start_program("host2").expect("starts");
    assert_eq!(migration(&hosts, "host2"), None);
    assert!(has_route(&hosts, "host2"), "{}", hosts.describe());
    hosts.soon_allowed("outside", "w1", Tcp(80));
}

#[test]
fn a_workload_that_came_stays_although_its_former_host_is_dead_and_its_routing_daemon_is_not() {
    let Some(mut hosts) = Hosts::start(MESH) else { return };
    let (name, value) = SOON_NORMAL;
    hosts.enforce(&[resources::felix(name, value)]);
    // Out of its block, so that the host tells its addresses one by one.
    let landing = Landing::prepare(&hosts.cluster.view, "w1", "host2").expect("a second interface");
    say(&hosts, "host2");
    landing.cut_over().expect("moves");
    landing.clear().expect("clears");
    let normal = || routes(&hosts, "host2").contains("10.65.1.1 dev caliw1 proto 80 scope link metric 1024");
    eventually("normal routes on host2", CONVERGENCE, normal);
    hosts.cluster.take_program("host2").expect("it runs").kill();
    let landing = Landing::prepare(&hosts.cluster.view, "w1", "host3").expect("a third interface");
    say(&hosts, "host3");
    landing.cut_over().expect("moves");
    for from in ["w3", "outside"] {
        hosts.soon_allowed(from, "w1", Tcp(80));
    }
    let log = hosts.cluster.view.log("host3", "calico-ebpf");
    eventually("host3 to keep it", CONVERGENCE, || {
        std::fs::read_to_string(&log).expect("a log").contains("its routes keep the elevated priority")
    });
    assert!(routes(&hosts, "host2").contains("dev caliw1"), "nobody withdraws them\n{}", hosts.describe());
    thread::sleep(Duration::from_secs(5));
    assert_eq!(migration(&hosts, "host3").as_deref(), Some("elevated"), "{}", hosts.describe());
    for from in ["w3", "outside"] {
        hosts.allowed(from, "w1", Tcp(80));
    }
    // It runs again, and withdraws.
    hosts.cluster.start_program("host2").expect("starts");
    assert!(!routes(&hosts, "host2").contains("dev caliw1"), "{}", hosts.describe());
    for from in ["w2", "w3", "outside"] {
        hosts.soon_allowed(from, "w1", Tcp(80));
    }
}

#[test]
fn agents_killed_meanwhile_leave_nothing_wrong() {
    let Some(mut hosts) = Hosts::start(Options { hosts: 2, workloads: 2, ..MESH }) else { return };
    let (name, value) = SOON_NORMAL;
    hosts.enforce(&[resources::felix(name, value)]);
    let foreign = [
        "10.65.1.50 via 192.0.2.2 dev up0 proto static metric 4000",
        "10.65.9.9 dev up0 proto 80 scope link metric 1024",
    ];
    for host in ["host1", "host2"] {
        let lines = foreign.map(|route| format!("route add {route}\n")).concat();
        hosts.namespace(host).ip_batch(&lines).expect("routes");
    }
    let landing = Landing::prepare(&hosts.cluster.view, "w1", "host2").expect("a second interface");
    let mut there = false;
    for (killed, delay) in [("host2", 0), ("host1", 0), ("host1", 4), ("host2", 8), ("host2", 20), ("host1", 50)] {
        there = !there;
        let (new, old) = if there { ("host2", "host1") } else { ("host1", "host2") };
        say(&hosts, new);
        if there { landing.cut_over() } else { landing.go_back() }.expect("moves");
        thread::sleep(Duration::from_millis(delay));
        hosts.cluster.take_program(killed).expect("it runs").kill();
        hosts.cluster.start_program(killed).expect("starts");
        let what = format!("{new} alone to have routes, {killed} killed after {delay} ms");
        let own = |hosts: &Hosts, host: &str| routes(hosts, host).matches("dev caliw1").count();
        let begin = Instant::now();
        while own(&hosts, new) != 2 || own(&hosts, old) != 0 {
            assert!(begin.elapsed() < CONVERGENCE, "{what}\n{}", hosts.describe());
            thread::sleep(Duration::from_millis(20));
        }
        for from in ["w2", "outside"] {
            hosts.soon_allowed(from, "w1", Tcp(80));
        }
        for host in ["host1", "host2"] {
            let all = hosts.namespace(host).ip("-d route show").expect("routes");
            let there = |route: &str| all.contains(route.split(" dev").next().unwrap_or_default());
            assert!(foreign.iter().all(|route| there(route)), "{what}: {all}");
        }
    }
    eventually("normal routes", CONVERGENCE, || {
        ["host1", "host2"].iter().all(|host| !routes(&hosts, host).contains("metric 512"))
    });
    hosts.allowed("w2", "w1", Tcp(80));
}

#[test]
fn of_two_hosts_that_claim_a_workload_one_steps_back() {
    let Some(mut hosts) = Hosts::start(Options { hosts: 3, workloads: 3, ..MESH }) else { return };
    let landing = Landing::prepare(&hosts.cluster.view, "w1", "host2").expect("a second interface");
    // host2 reads other files, which say that w1 is there.
    let view = hosts.cluster.view.clone();
    let other = view.base().join("other");
    std::fs::create_dir_all(&other).expect("a directory");
    for entry in std::fs::read_dir(view.config()).expect("files").flatten() {
        std::fs::copy(entry.path(), other.join(entry.file_name())).expect("copies");
    }
    let claim = |claimed: bool| {
        let text = files::workloads(&view.plan, &view.options, |workload| {
            if workload.name == "w1" && claimed { "host2".to_owned() } else { workload.host.clone() }
        });
        std::fs::write(other.join(".new"), text).expect("writes");
        std::fs::rename(other.join(".new"), other.join("workloads.yaml")).expect("renames");
    };
    let instance = hosts.cluster.program("host2").expect("it runs").instance.clone();
    hosts.cluster.take_program("host2").expect("it runs").kill();
    let log = view.log("host2", "calico-ebpf");
    let more = ["--listen", "off", "--connections", "65536"];
    let program = Program::start(Instance { config: other.clone(), ..instance }, &more, Some(&log)).expect("starts");
    claim(true);
    landing.cut_over().expect("moves");
    let host1 = hosts.cluster.program("host1").expect("it runs").instance.clone();
    let yielded = || host1.status().expect("status")["yielded"][0]["endpoint"].as_str().unwrap_or_default().to_owned();
    eventually("host1 to step back", CONVERGENCE, || yielded().contains("w1"));
    assert!(!routes(&hosts, "host1").contains("caliw1"), "{}", hosts.describe());
    assert!(host1.query(&["status"]).expect("status").contains("another host has"), "{}", hosts.describe());
    for from in ["w2", "w3", "outside"] {
        hosts.soon_allowed(from, "w1", Tcp(80));
    }
    // The other one knows who it was.
    let host2 = program.instance.clone();
    let rival = || host2.status().expect("status")["contested"][0]["host"].as_str().unwrap_or_default().to_owned();
    eventually("host2 to hear of it", CONVERGENCE, || rival() == "192.0.2.11");
    assert!(host2.query(&["status"]).expect("status").contains("192.0.2.11"), "{}", hosts.describe());
    // It stays so.
    thread::sleep(Duration::from_secs(3));
    assert!(yielded().contains("w1"), "{}", hosts.describe());
    assert_eq!(rival(), "192.0.2.11", "{}", hosts.describe());
    // The other one gives up: it comes back.
    claim(false);
    landing.go_back().expect("moves");
    eventually("host1 to take it back", CONVERGENCE, || yielded().is_empty());
    assert_eq!(routes(&hosts, "host1").matches("dev caliw1").count(), 2, "{}", hosts.describe());
    for from in ["w2", "w3", "outside"] {
        hosts.soon_allowed(from, "w1", Tcp(80));
    }
    let said = std::fs::read_to_string(view.log("host1", "calico-ebpf")).expect("a log");
    assert!(said.contains("it is left to that one") && said.contains("it is ours again"), "{said}");
    eventually("host2 to hear no more of it", CONVERGENCE, || rival().is_empty());
    let said = std::fs::read_to_string(&log).expect("a log");
    assert!(said.contains("has stepped back: it is ours") && said.contains("wants this workload any more"), "{said}");
    drop(program);
}
