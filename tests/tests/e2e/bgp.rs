//! Routes between hosts, told by BIRD as `bgp config` has it, and policy at both ends of them.

use std::{net::IpAddr, time::Duration};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp},
    eventually,
    frames::Wire,
    hosts::{CONVERGENCE, Hosts, MESH},
    lab::{GATEWAY4, GATEWAY6, HOST_SIDE_MAC},
    resources::policy,
};
use xtask::cluster::{Cluster, files, plan::Options};

const ALLOW: &str = "  types: [Ingress, Egress]\n  ingress: [{action: Allow}]\n  egress: [{action: Allow}]\n";
const NO_EGRESS: &str = "  types: [Egress]\n  egress: [{action: Deny, protocol: TCP}, {action: Allow}]\n";
const NO_INGRESS: &str = "  types: [Ingress]\n  ingress: [{action: Deny, protocol: TCP}, {action: Allow}]\n";

/// How many packets the rules of a workload's direction have denied, as its host counts them.
fn denied(hosts: &Hosts, host: &str, workload: &str, direction: &str) -> u64 {
    let instance = &hosts.cluster.program(host).expect("it runs").instance;
    let text = instance.query(&["rules", &format!("shop/{workload}"), "--output", "json"]).expect("rules");
    let all: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let rules = all[0][direction].as_array().unwrap_or_else(|| panic!("no {direction} in {text}")).iter();
    rules.filter(|rule| rule["action"] == "deny").filter_map(|rule| rule["hits"].as_u64()).sum()
}

/// Whether a frame is a packet from one address to another with nothing around it.
fn is_bare(frame: &[u8], from: IpAddr, to: IpAddr) -> bool {
    let at = |range: std::ops::Range<usize>| frame.get(range).unwrap_or_default();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            at(12..14) == [0x08, 0x00] && at(26..30) == from.octets() && at(30..34) == to.octets()
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            at(12..14) == [0x86, 0xdd] && at(22..38) == from.octets() && at(38..54) == to.octets()
        }
        _ => false,
    }
}

#[test]
fn blocks_are_told_and_packets_go_from_host_to_host_as_they_are() {
    let Some(hosts) = Hosts::start(MESH) else { return };
    let routes = |host: &str| hosts.cluster.view.routes(host).expect("routes").join("\n");
    for other in ["host2", "host3", "outside"] {
        for route in ["10.65.1.0/26 via 192.0.2.11", "fd00:65:0:1::/122 via 2001:db8:2::b"] {
            assert!(routes(other).contains(route), "no {route} on {other}\n{}", hosts.describe());
        }
        assert!(!routes(other).contains("10.65.1.1 "), "a single address of a block\n{}", hosts.describe());
    }
    assert!(routes("host1").contains("blackhole 10.65.1.0/26"), "{}", hosts.describe());
    for (from, to) in hosts.addresses("w1").into_iter().zip(hosts.addresses("w2")) {
        let wire = Wire::open(&hosts.namespace("host2"), "up0");
        assert!(hosts.reaches("w1", to, Tcp(80), Duration::from_secs(5)), "{to}\n{}", hosts.describe());
        assert!(wire.receive(Duration::from_secs(2), |frame| is_bare(frame, from, to)).is_some(), "{from} to {to}");
        assert!(wire.receive(Duration::from_secs(2), |frame| is_bare(frame, to, from)).is_some(), "{to} to {from}");
    }
    for (from, to) in [("w1", "w3"), ("w3", "w2"), ("outside", "w1"), ("w2", "outside"), ("host1", "w2")] {
        hosts.allowed(from, to, Tcp(80));
        hosts.allowed(from, to, Icmp);
    }
    // What nobody has of a block ends at its host and does not come back.
    let nobody: IpAddr = "10.65.1.50".parse().expect("an address");
    let wire = Wire::open(&hosts.namespace("outside"), "eth0");
    assert!(!hosts.reaches("outside", nobody, Icmp, Duration::from_millis(300)));
    let own = hosts.addresses("outside")[0];
    let mut sent = 0;
    let back = wire.receive(Duration::from_millis(300), |frame| {
        let ours = is_bare(frame, own, nobody);
        sent += u32::from(ours);
        // Whoever forwarded it took one off.
        ours && frame[22] < 64
    });
    assert!(sent > 0 && back.is_none(), "sent {sent}, back: {back:?}\n{}", hosts.describe());
}

/// A host's configuration of BIRD, its sessions over IPv6 with a second channel that tells routes of IPv4 with next hops of
/// IPv6 (RFC 8950). `calico-ebpf bgp config` has no way to say so, since no resource of Calico's does.
fn told_over_ipv6(config: &str) -> String {
    let protocols = config.split_inclusive("\n}\n").map(|protocol| {
        let channel = protocol.find("  ipv6 {\n").filter(|_| protocol.contains("protocol bgp ")).map(|begin| {
            let end = protocol.rfind("}\n").expect("an end");
            protocol[begin..end].replace("ipv6 {", "ipv4 {\n    extended next hop on;").replace("port6(", "port4(")
        });
        match channel {
            Some(channel) => format!("{}{channel}}}\n", protocol.strip_suffix("}\n").expect("an end")),
            None => protocol.to_owned(),
        }
    });
    protocols.collect()
}

#[test]
fn routes_of_ipv4_may_have_next_hops_of_ipv6() {
    let options = Options { hosts: 2, workloads: 2, ..MESH };
    if !options.bgp.is_here() {
        println!("\nfact: no {:?}", options.bgp);
        return;
    }
    let mut cluster = Cluster::new(options).expect("a cluster (as root?)");
    // The network between the hosts has no IPv4 at all.
    let nodes = files::nodes(&cluster.view.plan, &options);
    let nodes: Vec<&str> = nodes.lines().filter(|line| !line.contains("ipv4Address")).collect();
    cluster.write("nodes.yaml", &nodes.join("\n")).expect("writes");
    for host in ["host1", "host2"] {
        let namespace = cluster.view.namespace(host).expect("there is one");
        namespace.ip("-4 addr flush dev up0").expect("flushes");
    }
    cluster.start().expect("everything starts");
    let mut hosts = Hosts { cluster };
    let way = |hosts: &Hosts, from: &str, next_hop: &str| {
        let what = format!("{from}: no way over {next_hop}\n{}", hosts.describe());
        let number = if from == "host1" { 2 } else { 1 };
        let wanted = format!("10.65.{number}.0/26 via inet6 {next_hop}");
        eventually(&what, CONVERGENCE, || {
            hosts.cluster.view.routes(from).expect("routes").iter().any(|route| route.contains(&wanted))
        });
    };
    let configure = |hosts: &mut Hosts, change: &dyn Fn(&str) -> String| {
        for host in ["host1", "host2"] {
            let bird = hosts.cluster.bird(host).expect("it runs");
            let config = change(&bird.config().expect("a configuration"));
            bird.configure(&config).unwrap_or_else(|error| panic!("{error:#}\n{config}"));
        }
    };
    configure(&mut hosts, &told_over_ipv6);
    // Peers that are not said to be neighbours are told the global address, neighbours the one of the link besides.
    for (next_hops, direct) in [(["2001:db8:2::c", "2001:db8:2::b"], false), (["fe80:", "fe80:"], true)] {
        if direct {
            configure(&mut hosts, &|config| config.replace("  multihop;\n", "  direct;\n"));
        }
        way(&hosts, "host1", next_hops[0]);
        way(&hosts, "host2", next_hops[1]);
        hosts.enforce(&[policy("w1", "app == 'w1'", ALLOW), policy("w2", "app == 'w2'", ALLOW)]);
        let (from, to) = (hosts.addresses("w1")[0], hosts.addresses("w2")[0]);
        let wire = Wire::open(&hosts.namespace("host2"), "up0");
        hosts.soon_allowed("w1", "w2", Tcp(80));
        assert!(wire.receive(Duration::from_secs(2), |frame| is_bare(frame, from, to)).is_some(), "{from} to {to}");
        assert!(wire.receive(Duration::from_secs(2), |frame| is_bare(frame, to, from)).is_some(), "{to} to {from}");
        hosts.allowed("w2", "w1", Tcp(80));
        hosts.allowed("w1", "w2", Icmp);
        let instance = &hosts.cluster.program("host1").expect("it runs").instance;
        let connections = instance.query(&["conntrack"]).expect("connections");
        let fast = |line: &str| line.contains(&format!("{to}:80")) && line.contains(" fast ");
        assert!(connections.lines().any(fast), "past the stack: {connections}");
        // Each end judges.
        hosts.enforce(&[policy("w1", "app == 'w1'", NO_EGRESS)]);
        let before = denied(&hosts, "host1", "w1", "egress");
        hosts.denied("w1", "w2", Tcp(80));
        assert!(denied(&hosts, "host1", "w1", "egress") > before, "{}", hosts.describe());
        hosts.enforce(&[policy("w1", "app == 'w1'", ALLOW), policy("w2", "app == 'w2'", NO_INGRESS)]);
        let before = denied(&hosts, "host2", "w2", "ingress");
        hosts.denied("w1", "w2", Tcp(80));
        assert!(denied(&hosts, "host2", "w2", "ingress") > before, "{}", hosts.describe());
    }
    let neighbours = hosts.namespace("host1").ip("-4 neigh show dev up0").expect("neighbours");
    assert!(!neighbours.contains("10.65."), "nobody is asked for by ARP: {neighbours}");
}

#[test]
fn each_end_refuses_by_itself() {
    let Some(mut hosts) = Hosts::start(MESH) else { return };
    hosts.allowed("w1", "w2", Tcp(80));
    // Only the source's host is told to refuse: nothing gets to the other one.
    hosts.enforce(&[policy("w1", "app == 'w1'", NO_EGRESS)]);
    let before = denied(&hosts, "host1", "w1", "egress");
    let wire = Wire::open(&hosts.namespace("host2"), "up0");
    hosts.denied("w1", "w2", Tcp(80));
    assert!(denied(&hosts, "host1", "w1", "egress") > before, "{}", hosts.describe());
    let (from, to) = (hosts.addresses("w1")[0], hosts.addresses("w2")[0]);
    let leaked = wire.receive(Duration::from_millis(100), |frame| is_bare(frame, from, to) && frame[23] == 6);
    assert!(leaked.is_none(), "{leaked:?}");
    hosts.allowed("w1", "w2", Icmp);
    hosts.allowed("w3", "w2", Tcp(80));
    // Only the destination's.
    hosts.enforce(&[policy("w1", "app == 'w1'", ALLOW), policy("w2", "app == 'w2'", NO_INGRESS)]);
    let before = denied(&hosts, "host2", "w2", "ingress");
    hosts.denied("w1", "w2", Tcp(80));
    assert!(denied(&hosts, "host2", "w2", "ingress") > before, "{}", hosts.describe());
    assert_eq!(denied(&hosts, "host1", "w1", "egress"), 0, "the counters tell the end\n{}", hosts.describe());

    // Workloads of other hosts have labels that selectors find, and their changes count at once.
    let only = "  types: [Ingress]\n  ingress: [{action: Allow, source: {selector: \"app == 'w1'\"}}]\n";
    hosts.enforce(&[policy("w2", "app == 'w2'", only)]);
    hosts.allowed("w1", "w2", Tcp(80));
    hosts.denied("w3", "w2", Tcp(80));
    let view = &hosts.cluster.view;
    let text = files::workloads(&view.plan, &view.options, |workload| workload.host.clone());
    let swapped = text.replace("app: w1", "app: x").replace("app: w3", "app: w1").replace("app: x", "app: w3");
    hosts.cluster.write("workloads.yaml", &swapped).expect("writes");
    hosts.reload();
    hosts.allowed("w3", "w2", Tcp(80));
    hosts.denied("w1", "w2", Tcp(80));
    hosts.cluster.write("workloads.yaml", &text).expect("writes");
    hosts.enforce(&[policy("w1", "app == 'w1'", NO_EGRESS), policy("w2", "app == 'w2'", NO_INGRESS)]);

    // The source's host is taken over by somebody: its programs are gone. What protects w2 is its own host.
    let instance = hosts.cluster.program("host1").expect("it runs").instance.clone();
    hosts.cluster.take_program("host1").expect("it runs").kill();
    instance.query(&["purge"]).expect("purges");
    let (host1, w1) = (hosts.namespace("host1"), hosts.namespace("w1"));
    let [v4, v6] = hosts.addresses("w1")[..] else { panic!("two addresses") };
    // As before there were programs: routes, forwarding, and somebody who answers for the gateway.
    host1.ip_batch(&format!("route add {v4} dev caliw1\nroute add {v6} dev caliw1")).expect("routes");
    host1.sysctl("net/ipv4/ip_forward", "1").expect("forwards");
    host1.sysctl("net/ipv6/conf/all/forwarding", "1").expect("forwards");
    w1.ip_batch(&format!(
        "neigh replace {GATEWAY4} lladdr {HOST_SIDE_MAC} dev eth0\nneigh replace {GATEWAY6} lladdr {HOST_SIDE_MAC} dev eth0"
    ))
    .expect("neighbours");
    hosts.soon_allowed("w1", "w2", Icmp);
    // It polices nothing any more: what only it was told to refuse passes.
    hosts.allowed("w1", "w3", Tcp(80));
    let before = denied(&hosts, "host2", "w2", "ingress");
    hosts.denied("w1", "w2", Tcp(80));
    assert!(denied(&hosts, "host2", "w2", "ingress") > before, "{}", hosts.describe());
}
