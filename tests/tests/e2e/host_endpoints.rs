//! Interfaces of the host as endpoints of their own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, eventually,
    frames::{Wire, mac},
    lab::{self, HOST4, HOST6, OUTSIDE4, UPLINK},
    resources::{self, NODE},
    stream::{Conversation, RESUMES, Talk},
};
use etherparse::{PacketBuilder, VlanId};

use crate::published::publish;

/// A `HostEndpoint` with the label `role: edge`; `spec` is lines of it, each indented by two.
pub(crate) fn host_endpoint(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {{name: {name}, labels: {{role: edge}}}}
spec:
  node: {NODE}
{spec}"
    )
}

pub(crate) fn uplink() -> String {
    host_endpoint("edge", &format!("  interfaceName: {UPLINK}\n"))
}

/// A policy of the host endpoints.
pub(crate) fn policy(name: &str, rules: &str) -> String {
    resources::policy(name, "role == 'edge'", rules)
}

const ALLOW_ALL: &str = "  ingress: [{action: Allow}]\n  egress: [{action: Allow}]\n";

pub(crate) fn world(workloads: &[&str], ports: &[u16]) -> World {
    let mut world = World::new(workloads);
    ports.iter().for_each(|port| world.serve(*port));
    world
}

/// Started, with a host endpoint `all` of all interfaces, and workloads that may send to the host.
fn world_of_all_interfaces(ports: &[u16]) -> World {
    let mut world = world(&["a", "b"], ports);
    world.write("felix.yaml", &resources::felix("defaultEndpointToHostAction", "Accept"));
    world.write("host.yaml", &host_endpoint("all", "  interfaceName: '*'\n"));
    world.start();
    world
}

#[test]
fn one_without_policy_leaves_the_failsafe_ports_and_forwards_everything() {
    let mut world = world(&["a", "b"], &[22, 53, 68, 80, 2379]);
    world.start();
    world.allowed("outside", "host", Tcp(80));
    world.allowed("host", "outside", Tcp(80));
    world.write("host.yaml", &uplink());
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    for (port, inbound, outbound) in [(22, true, false), (80, false, false), (2379, true, true)] {
        for (from, to, allowed) in [("outside", "host", inbound), ("host", "outside", outbound)] {
            if allowed { world.allowed(from, to, Tcp(port)) } else { world.denied(from, to, Tcp(port)) }
        }
    }
    world.allowed("outside", "host", Udp(68));
    world.denied("outside", "host", Udp(53));
    world.allowed("host", "outside", Udp(53));
    world.denied("host", "outside", Udp(68));
    world.denied("outside", "host", Icmp);
    world.denied("host", "outside", Icmp);
    for protocol in [Tcp(80), Udp(80), Icmp] {
        world.allowed("outside", "a", protocol);
        world.allowed("a", "outside", protocol);
        world.allowed("a", "b", protocol);
        world.allowed("host", "a", protocol);
    }
    world.denied("a", "host", Tcp(80));
    world.remove("host.yaml");
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    world.allowed("outside", "host", Tcp(80));
    world.allowed("host", "outside", Icmp);
}

#[test]
fn policies_judge_what_the_host_sends_and_receives() {
    let mut world = world(&["a"], &[22, 80, 443]);
    world.write("host.yaml", &uplink());
    world.start();
    world.denied("outside", "host", Tcp(80));
    let rules = "  ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]
  egress: [{action: Allow, protocol: UDP, destination: {ports: [443]}}, {action: Allow, protocol: ICMP}, {action: Allow, protocol: ICMPv6}]\n";
    world.enforce(&[policy("edge", rules)]);
    world.allowed("outside", "host", Tcp(80));
    world.denied("outside", "host", Tcp(443));
    world.denied("outside", "host", Udp(80));
    world.denied("outside", "host", Icmp);
    world.allowed("host", "outside", Udp(443));
    world.denied("host", "outside", Tcp(443));
    world.allowed("host", "outside", Icmp);
    // A policy that says nothing of forwarding has no say about it.
    world.enforce(&[policy(
        "deny",
        "  order: 1\n  types: [Ingress, Egress]\n  ingress: [{action: Deny}]\n  egress: [{action: Deny}]\n",
    )]);
    world.denied("outside", "host", Tcp(80));
    world.denied("host", "outside", Icmp);
    world.allowed("outside", "host", Tcp(22));
    for protocol in [Tcp(80), Udp(80), Icmp] {
        world.allowed("outside", "a", protocol);
        world.allowed("a", "outside", protocol);
        world.allowed("host", "a", protocol);
    }
    world.enforce(&[policy("all", ALLOW_ALL)]);
    for protocol in [Tcp(80), Udp(80), Icmp] {
        world.allowed("outside", "host", protocol);
        world.allowed("host", "outside", protocol);
    }
}

#[test]
fn policies_of_what_is_forwarded() {
    let mut world = world(&["a", "b"], &[80, 443]);
    world.write("host.yaml", &uplink());
    world.start();
    world.enforce(&[policy(
        "forward",
        "  applyOnForward: true
  ingress: [{action: Allow, protocol: TCP, destination: {selector: app == 'a', ports: [80]}}]
  egress: [{action: Allow, protocol: UDP, source: {selector: app == 'b'}, destination: {ports: [443]}}]\n",
    )]);
    world.allowed("outside", "a", Tcp(80));
    world.denied("outside", "a", Tcp(443));
    world.denied("outside", "b", Tcp(80));
    world.denied("outside", "a", Icmp);
    world.allowed("b", "outside", Udp(443));
    world.denied("b", "outside", Udp(80));
    world.denied("a", "outside", Udp(443));
    world.denied("b", "outside", Icmp);
    world.allowed("a", "b", Tcp(443));
    world.allowed("host", "a", Tcp(443));
    // For the host itself it counts as well: nothing of it is allowed.
    world.denied("outside", "host", Tcp(80));
    world.denied("host", "outside", Udp(443));
    world.enforce(&[policy("forward", &format!("  applyOnForward: true\n{ALLOW_ALL}"))]);
    for protocol in [Tcp(80), Udp(80), Icmp] {
        for (from, to) in [("outside", "a"), ("b", "outside"), ("outside", "host"), ("host", "outside")] {
            world.allowed(from, to, protocol);
        }
    }
}

#[test]
fn policies_before_dnat() {
    let mut world = world(&["a"], &[22, 80, 8055]);
    world.write("host.yaml", &uplink());
    world.start();
    publish(&world);
    let before_dnat = |name: &str, order: u32, rule: &str| {
        policy(name, &format!("  order: {order}\n  preDNAT: true\n  applyOnForward: true\n  ingress: [{rule}]\n"))
    };
    let deny = before_dnat("deny", 20, "{action: Deny}");
    world.enforce(std::slice::from_ref(&deny));
    world.denied("outside", "host", Tcp(32010));
    world.denied("outside", "a", Tcp(8055));
    world.denied("outside", "host", Tcp(80));
    world.allowed("outside", "host", Tcp(22));
    world.allowed("a", "outside", Tcp(80));
    world.allowed("host", "a", Tcp(8055));
    let allow = |port: u16| {
        before_dnat("allow", 10, &format!("{{action: Allow, protocol: TCP, destination: {{ports: [{port}]}}}}"))
    };
    world.enforce(&[deny.clone(), allow(8055)]);
    world.denied("outside", "host", Tcp(32010));
    world.enforce(&[deny.clone(), allow(32010)]);
    world.allowed("outside", "host", Tcp(32010));
    world.denied("outside", "a", Tcp(8055));
    // What is allowed here no other policy of the host endpoint is asked about.
    world.enforce(&[deny, allow(80), policy("normal", "  ingress: [{action: Deny}]\n")]);
    world.allowed("outside", "host", Tcp(80));
    // At its end nothing happens.
    world.enforce(&[
        allow(32010),
        policy("normal", "  ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]\n"),
    ]);
    world.allowed("outside", "host", Tcp(80));
    world.denied("outside", "host", Tcp(8055));
    world.allowed("outside", "a", Tcp(8055));
}

#[test]
fn all_interfaces_and_those_that_carry_an_address() {
    let mut world = world(&["a"], &[22, 80]);
    world.write("felix.yaml", &resources::felix("defaultEndpointToHostAction", "Accept"));
    world.write("host.yaml", &host_endpoint("all", "  interfaceName: '*'\n"));
    world.start();
    world.denied("outside", "host", Tcp(80));
    world.allowed("outside", "host", Tcp(22));
    world.denied("host", "outside", Tcp(80));
    world.allowed("outside", "a", Tcp(80));
    world.allowed("a", "host", Tcp(80));
    world.allowed("host", "a", Tcp(80));
    // Policy before DNAT of all interfaces has a say about workloads, too.
    let before = "  preDNAT: true\n  applyOnForward: true\n  ingress: [{action: Deny, protocol: TCP, destination: {ports: [80]}}]\n";
    world.enforce(&[policy("before", before)]);
    world.denied("a", "host", Tcp(80));
    world.allowed("a", "host", Udp(80));
    world.enforce(&[policy("all", ALLOW_ALL)]);
    world.allowed("outside", "host", Tcp(80));
    world.allowed("a", "host", Tcp(80));
    // One by address, which names no interface, goes before that of all.
    let carrying = format!("  expectedIPs: ['{HOST4}', '{HOST6}']\n").replace("edge", "x");
    let carrying = host_endpoint("carrying", &carrying).replace("role: edge", "role: inner");
    world.write("host.yaml", &resources::documents(&[host_endpoint("all", "  interfaceName: '*'\n"), carrying]));
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    world.denied("outside", "host", Tcp(80));
    world.allowed("outside", "host", Tcp(22));
    let status = world.status();
    assert_eq!(status["hostEndpoints"][1]["endpoint"], "carrying", "{status}");
    assert_eq!(status["hostEndpoints"][1]["interfaces"], serde_json::json!([UPLINK]), "{status}");
}

#[test]
fn the_one_of_all_interfaces_judges_what_workloads_send_and_receive() {
    let world = world_of_all_interfaces(&[80, 443]);
    let rule = "{action: Deny, protocol: TCP, destination: {ports: [80]}}";
    for hook in ["preDNAT: true\n  applyOnForward: true", "applyOnForward: true"] {
        world.enforce(&[policy("in", &format!("  {hook}\n  ingress: [{rule}, {{action: Allow}}]\n"))]);
        for to in ["b", "outside"] {
            world.denied("a", to, Tcp(80));
            world.allowed("a", to, Tcp(443));
            world.allowed("a", to, Icmp);
        }
        world.allowed("host", "a", Tcp(80));
        world.denied("outside", "a", Tcp(80));
    }
    // Of what is for the host itself it is asked before DNAT alone.
    world.allowed("a", "host", Tcp(80));
    let config = world.config().to_str().expect("text").to_owned();
    let flow = ["--from", "t/a", "--to", "t/b", "--protocol", "TCP", "--port", "80", "--output", "json"];
    let said = world.command(&[&["explain", "--config", &config, "--node", NODE], &flow[..]].concat());
    let said: serde_json::Value = serde_json::from_str(&said.stdout).expect("an answer");
    assert_eq!((&said["source"]["endpoint"], &said["source"]["policy"]), (&"all".into(), &"in".into()), "{said}");

    let out = format!("  applyOnForward: true\n  egress: [{rule}, {{action: Allow}}]\n");
    world.enforce(&[policy("out", &out)]);
    for (from, to) in [("a", "b"), ("outside", "a"), ("a", "outside")] {
        world.denied(from, to, Tcp(80));
        world.allowed(from, to, Tcp(443));
    }
    world.allowed("host", "a", Tcp(80));
    // A connection that it allowed ends when it does not allow it any more, and is judged once.
    for index in 0..2 {
        let to = SocketAddr::new(world.addresses("b")[index], 443);
        let talk = Talk::start(world.namespace("a"), to);
        assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
        world.enforce(&[policy("out", &out.replace("80", "443"))]);
        assert!(!talk.goes_on(Duration::from_millis(1500)), "{}", world.describe());
        world.enforce(&[policy("out", &out)]);
        assert!(talk.goes_on(RESUMES), "{}", world.describe());
    }
}

#[test]
fn policy_before_dnat_of_all_interfaces_is_about_what_a_workload_sends_to() {
    let world = world_of_all_interfaces(&[80, 8055]);
    publish(&world);
    let allow = |port: u16| {
        let rule = format!("{{action: Allow, protocol: TCP, destination: {{ports: [{port}]}}}}");
        policy("before", &format!("  preDNAT: true\n  applyOnForward: true\n  ingress: [{rule}, {{action: Deny}}]\n"))
    };
    world.enforce(&[allow(32010)]);
    world.allowed("b", "host", Tcp(32010));
    world.denied("b", "a", Tcp(8055));
    for index in 0..2 {
        let to = SocketAddr::new(world.addresses("host")[index], 32010);
        let talk = Talk::start(world.namespace("b"), to);
        assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
        // Judged again, behind the translation.
        let other = resources::policy("other", "app == 'b'", "  egress: [{action: Allow}]\n");
        world.enforce(&[allow(32010), other]);
        assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
        world.enforce(&[allow(32010)]);
        assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
    }
    world.enforce(&[allow(8055)]);
    world.denied("b", "host", Tcp(32010));
    world.allowed("b", "a", Tcp(8055));
}

#[test]
fn a_running_connection_follows_policy_and_outlives_the_agent() {
    let mut world = world(&["a"], &[80, 443]);
    world.write("host.yaml", &uplink());
    world.start();
    let allow = |port: u16| {
        let rule = format!("{{action: Allow, protocol: TCP, destination: {{ports: [{port}]}}}}");
        policy("edge", &format!("  applyOnForward: true\n  ingress: [{rule}]\n  egress: [{rule}]\n"))
    };
    world.enforce(&[allow(80)]);
    let pairs = [("outside", "host"), ("host", "outside"), ("outside", "a"), ("a", "outside")];
    for index in 0..2 {
        let talks = pairs.map(|(from, to)| {
            let to = SocketAddr::new(world.addresses(to)[index], 80);
            Talk::start(world.namespace(from), to)
        });
        for talk in &talks {
            assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
        }
        world.kill();
        for talk in &talks {
            assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
        }
        world.denied("outside", "host", Tcp(443));
        world.start();
        for talk in &talks {
            assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
        }
        world.enforce(&[allow(443)]);
        for (talk, pair) in talks.iter().zip(pairs) {
            assert!(!talk.goes_on(Duration::from_millis(1500)), "{pair:?}\n{}", world.describe());
        }
        world.allowed("outside", "host", Tcp(443));
        world.enforce(&[allow(80)]);
        for talk in &talks {
            assert!(talk.goes_on(RESUMES), "{}", world.describe());
        }
    }
    let reached = lab::tcp(world.namespace("outside"), SocketAddr::new(HOST4.into(), 80), Duration::from_secs(3));
    assert!(reached.expect("a probe"));
}

#[test]
fn networks_that_are_the_hosts_as_a_whole_are_the_hosts() {
    let mut world = world(&["a"], &[80, 443]);
    let of_network = [Ipv4Addr::new(203, 0, 113, 9).into(), Ipv6Addr::new(0x2001, 0xdb8, 0x71, 0, 0, 0, 0, 9).into()];
    for network in ["203.0.113.0/24", "2001:db8:71::/64"] {
        world.lab.host.ip(&format!("route add local {network} dev lo")).expect("a route");
        let gateway = if network.contains(':') { HOST6.to_string() } else { HOST4.to_string() };
        world.lab.outside.ip(&format!("route add {network} via {gateway}")).expect("a route");
    }
    let reached = |world: &World, protocol, patience: u64| {
        of_network.map(|address| world.reaches("outside", address, protocol, Duration::from_millis(patience)))
    };
    world.start();
    assert_eq!(reached(&world, Tcp(80), 5000), [true; 2], "{}", world.describe());
    world.write("host.yaml", &uplink());
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    world.enforce(&[policy("edge", "  types: [Egress]\n  egress: [{action: Allow}]\n")]);
    for protocol in [Tcp(80), Icmp] {
        assert_eq!(reached(&world, protocol, 400), [false; 2], "{protocol:?}\n{}", world.describe());
    }
    world.allowed("outside", "a", Tcp(80));
    world.enforce(&[policy("edge", "  ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]\n")]);
    assert_eq!(reached(&world, Tcp(80), 5000), [true; 2], "{}", world.describe());
    assert_eq!(reached(&world, Tcp(443), 400), [false; 2], "{}", world.describe());
}

#[test]
fn what_untracked_policy_allows_goes_on_whatever_else_comes() {
    let mut world = world(&["a"], &[80]);
    world.write("host.yaml", &uplink());
    world.start();
    let forwarded = |rules: &str| format!("  applyOnForward: true\n{rules}");
    world.enforce(&[policy("all", &forwarded(ALLOW_ALL))]);
    let to = [world.addresses("host"), world.addresses("a")].concat();
    let talk = |to: IpAddr| Conversation::open(world.namespace("outside"), SocketAddr::new(to, 80));
    let talks: Vec<_> = to.into_iter().map(talk).collect();
    let go_on =
        |patience: u64| talks.iter().map(|talk| talk.goes_on(Duration::from_millis(patience))).collect::<Vec<_>>();
    assert_eq!(go_on(5000), [true; 4], "{}", world.describe());
    let deny = policy("deny", &forwarded("  ingress: [{action: Deny}]\n  egress: [{action: Deny}]\n"));
    world.enforce(std::slice::from_ref(&deny));
    assert_eq!(go_on(1000), [false; 4], "{}", world.describe());
    let untracked = "  doNotTrack: true\n  applyOnForward: true\n  ingress: [{action: Allow, protocol: UDP}]\n  \
                     egress: [{action: Allow, protocol: UDP}]\n";
    world.enforce(&[deny, policy("raw", untracked)]);
    assert_eq!(go_on(5000), [true; 4], "{}", world.describe());
}

#[test]
fn what_workloads_have_opened_to_the_host_follows_policy_that_comes_later() {
    let world = world_of_all_interfaces(&[80]);
    let talks = world.addresses("host").map(|to| Conversation::open(world.namespace("a"), SocketAddr::new(to, 80)));
    let go_on =
        |patience: u64| talks.iter().map(|talk| talk.goes_on(Duration::from_millis(patience))).collect::<Vec<_>>();
    assert_eq!(go_on(5000), [true; 2], "{}", world.describe());
    let before = |action: &str| {
        let rules =
            format!("  preDNAT: true\n  applyOnForward: true\n  ingress: [{{action: {action}, protocol: UDP}}]\n");
        policy("before", &rules)
    };
    world.enforce(&[before("Deny")]);
    assert_eq!(go_on(1000), [false; 2], "{}", world.describe());
    world.enforce(&[before("Allow")]);
    assert_eq!(go_on(5000), [true; 2], "{}", world.describe());
}

#[test]
fn a_tag_that_has_but_a_priority_hides_nothing() {
    let mut world = world(&["a"], &[]);
    world.start();
    let socket = world.lab.host.enter(|| UdpSocket::bind((HOST4, 4001))).expect("enters").expect("binds");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
    let macs = (mac(&world.lab.outside, "eth0"), mac(&world.lab.host, UPLINK));
    let tagged = |tags: u8| {
        let builder = PacketBuilder::ethernet2(macs.0, macs.1);
        let builder = match tags {
            1 => builder.single_vlan(VlanId::ZERO),
            _ => builder.double_vlan(VlanId::ZERO, VlanId::ZERO),
        };
        let builder = builder.ipv4(OUTSIDE4.octets(), HOST4.octets(), 64).udp(4000, 4001);
        let mut frame = Vec::new();
        builder.write(&mut frame, b"tagged").expect("writes to memory");
        frame
    };
    let wire = Wire::open(&world.lab.outside, "eth0");
    let arrives = |tags: u8| {
        wire.send(&tagged(tags));
        socket.recv(&mut [0; 16]).is_ok()
    };
    for tags in [1, 2] {
        assert!(arrives(tags), "the stack takes it in as untagged");
    }
    world.write("host.yaml", &uplink());
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    for tags in [1, 2] {
        assert!(!arrives(tags), "{tags}\n{}", world.describe());
    }
    world.enforce(&[policy("all", ALLOW_ALL)]);
    for tags in [1, 2] {
        assert!(arrives(tags), "{tags}\n{}", world.describe());
    }
}

#[test]
fn an_unconfirmed_start_is_taken_back() {
    let mut world = world(&["a", "b"], &[22, 80]);
    let taken_back = |world: &World| {
        eventually("it is taken back", Duration::from_secs(20), || world.status()["confirmWithin"].is_null());
    };
    world.write("host.yaml", &uplink());
    // There was nothing before: host endpoints are open again, and workloads stay what they are.
    world.write("policy.yaml", &resources::policy("b-in", "app == 'b'", "  ingress: [{action: Deny}]\n"));
    world.start_with(&["--watch", "off", "--confirm", "6"]);
    world.denied("outside", "host", Tcp(80));
    taken_back(&world);
    world.allowed("outside", "host", Tcp(80));
    world.denied("a", "b", Tcp(80));
    assert_eq!(world.command(&["reload"]).code, 1, "it stays refused");
    world.terminate();

    // What was in force before comes back.
    world.start_with(&["--watch", "off", "--confirm", "60"]);
    world.denied("outside", "host", Tcp(80));
    assert_eq!(world.command(&["confirm"]).code, 0);
    world.enforce(&[policy("edge", "  ingress: [{action: Allow, destination: {ports: [80]}, protocol: TCP}]\n")]);
    world.allowed("outside", "host", Tcp(80));
    world.allowed("a", "b", Tcp(80));
    world.kill();
    let shut = resources::policy("b-in", "app == 'b'", "  ingress: [{action: Deny}]\n");
    world.write("policy.yaml", &resources::documents(&[policy("edge", "  ingress: [{action: Deny}]\n"), shut]));
    world.start_with(&["--watch", "off", "--confirm", "6"]);
    world.denied("outside", "host", Tcp(80));
    world.denied("a", "b", Tcp(80));
    taken_back(&world);
    world.allowed("outside", "host", Tcp(80));
    world.allowed("a", "b", Tcp(80));
    assert_eq!(world.command(&["reload"]).code, 1, "it stays refused");
    world.allowed("outside", "host", Tcp(80));
    // Other files are read again.
    world.enforce(&[policy("edge", "  ingress: [{action: Deny}]\n")]);
    world.denied("outside", "host", Tcp(80));
    world.allowed("a", "b", Tcp(80));
    world.allowed("outside", "host", Tcp(22));
}

#[test]
fn an_unconfirmed_start_gives_back_what_it_took_away() {
    let mut world = world(&["a", "b", "c"], &[22, 80, 443]);
    let described = std::fs::read_to_string(world.config().join("workloads.yaml")).expect("a file");
    world.write("host.yaml", &uplink());
    world.write(
        "policy.yaml",
        &policy("edge", "  ingress: [{action: Allow, protocol: TCP, destination: {ports: [80]}}]\n"),
    );
    world.start();
    let routes = |world: &World| world.lab.host.ip("route show proto 80").expect("routes");
    let before = routes(&world);
    let as_before = |world: &World| {
        world.allowed("outside", "host", Tcp(80));
        world.denied("outside", "host", Tcp(443));
        for (from, to) in [("a", "b"), ("b", "outside"), ("outside", "b"), ("outside", "c")] {
            world.allowed(from, to, Tcp(80));
        }
        assert_eq!(routes(world).lines().collect::<BTreeSet<_>>(), before.lines().collect());
    };
    as_before(&world);
    world.kill();
    // The host endpoint has another name now, and labels that no policy knows; `b` is no more, and `a` has its interface; that of `c`
    // comes a little later.
    world.lab.workload("c").disconnect().expect("disconnects");
    world.write("host.yaml", &host_endpoint("other", &format!("  interfaceName: {UPLINK}\n")).replace("edge", "none"));
    let a = resources::workload(world.lab.workload("a")).replace("interfaceName: calia", "interfaceName: calib");
    let c = resources::workload(world.lab.workload("c"));
    world.write("workloads.yaml", &resources::documents(&[resources::NAMESPACE.to_owned(), a, c]));
    world.start_with(&["--watch", "off", "--confirm", "10"]);
    world.lab.workload("c").connect().expect("connects");
    world.denied("outside", "host", Tcp(80));
    world.denied("a", "outside", Tcp(80));
    world.denied("outside", "b", Tcp(80));
    assert_ne!(routes(&world), before);
    thread::sleep(Duration::from_secs(10));
    as_before(&world);
    // It stays so, and the next process goes on from there.
    thread::sleep(Duration::from_secs(2));
    assert!(!world.log().contains("somebody else"), "{}", world.log());
    as_before(&world);
    // What others take away is put back, and what is made anew is seen to.
    world.lab.host.ip("route flush proto 80").expect("flushes");
    world.lab.workload("a").disconnect().expect("disconnects");
    world.lab.workload("a").connect().expect("connects");
    world.lab.host.ip(&format!("link del {UPLINK}")).expect("deletes");
    world.lab.uplink().expect("an uplink");
    let is_judged = || !world.reaches("outside", HOST4.into(), Tcp(443), Duration::from_millis(1500));
    eventually("the routes are back", Duration::from_secs(10), || {
        routes(&world).lines().count() == before.lines().count()
    });
    eventually("the uplink is judged", Duration::from_secs(10), is_judged);
    as_before(&world);
    world.terminate();
    world.write("host.yaml", &uplink());
    world.write("workloads.yaml", &described);
    world.start();
    as_before(&world);
}
