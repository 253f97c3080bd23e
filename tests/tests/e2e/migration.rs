//! A workload goes from one host to another, and its traffic with it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{
    Protocol::Tcp,
    eventually,
    frames::{Wire, mac},
    hosts::{CONVERGENCE, Hosts, MESH},
    resources::{self, policy},
    stream::{Beat, Talk},
};
use xtask::cluster::{files, migrate::Landing};

const PACE: Duration = Duration::from_millis(2);
/// What is lost at most on a busy machine: a tenth of what Calico documents. `docs/migration.md` has what it is on a quiet one.
const MOST_LOST: Duration = Duration::from_millis(200);

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

/// What a hypervisor sends in the name of a guest that has arrived.
fn gratuitous_arp(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(address.octets());
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// Makes routes normal after a time that a test can wait for.
const SOON_NORMAL: (&str, &str) = ("liveMigrationRouteConvergenceTime", "4s");

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
    let elevated = |host: &str| {
        let text = routes(&hosts, host);
        w1.iter().all(|address| {
            text.lines().any(|line| line.contains(&format!("{address} ")) && line.contains("metric 512"))
        })
    };
    for host in ["host2", "host3", "host1"] {
        eventually(&format!("elevated routes on {host}"), CONVERGENCE, || elevated(host));
    }
    assert_eq!(migration(&hosts, "host2").as_deref(), Some("elevated"), "{}", hosts.describe());
    assert!(!routes(&hosts, "host1").contains("caliw1"), "{}", hosts.describe());
    for talk in opened.iter().chain(&accepted) {
        assert!(talk.goes_on(Duration::from_secs(10)), "a connection did not survive\n{}", hosts.describe());
    }
    for beat in beats {
        let silence = beat.silence();
        let (sent, received) = beat.stop();
        println!("\nfact: {} of {sent} lost, {silence:?} silence", sent - received);
        assert!(silence < MOST_LOST, "{silence:?}, lost {} of {sent}\n{}", sent - received, hosts.describe());
    }
    // Then as ever, and nobody has lost anything by that.
    let beats: Vec<Beat> = w1.iter().map(|to| Beat::start(&hosts.namespace("w3"), at(*to), PACE)).collect();
    for host in ["host2", "host3"] {
        eventually(&format!("normal routes on {host}"), CONVERGENCE, || {
            let text = routes(&hosts, host);
            w1.iter().all(|address| text.contains(&format!("{address} "))) && !text.contains("metric 512")
        });
    }
    assert_eq!(migration(&hosts, "host2"), None);
    thread::sleep(Duration::from_millis(500));
    for beat in beats {
        let (sent, received) = beat.stop();
        assert!(sent > 100 && sent == received, "lost {} of {sent}\n{}", sent - received, hosts.describe());
    }
    for talk in opened.iter().chain(&accepted) {
        assert!(talk.goes_on(Duration::from_secs(10)), "a connection did not survive\n{}", hosts.describe());
    }
    hosts.denied("w2", "w1", Tcp(80));
    hosts.allowed("w3", "w1", Tcp(80));
    hosts.allowed("outside", "w1", Tcp(80));
}
