//! Ports that the host publishes for a workload, by translating their destination, where its uplink is a host endpoint.

use std::{
    io::{Error, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, eventually,
    lab::{self, HOST4, HOST6, Namespace, Server, UPLINK},
    nft, resources,
    stream::{RESUMES, Talk},
};

use crate::host_endpoints::{host_endpoint, policy, uplink, world};

/// The port of the host.
const PUBLISHED: u16 = 32010;
/// The port of the workload that it is.
pub(crate) const TARGET: u16 = 8055;
const TABLES: [&str; 2] = ["netdev", "inet"];

/// Port 32010 of the host is port 8055 of `a`.
pub(crate) fn publish(world: &World) {
    let a = world.lab.workload("a");
    let (v4, v6) = (a.v4, a.v6);
    let to = format!("meta l4proto {{ tcp, udp }} th dport {PUBLISHED} dnat to");
    nft(
        &world.lab.host,
        &format!(
            "table ip hostport4 {{
                chain pre {{ type nat hook prerouting priority dstnat; ip daddr {HOST4} {to} {v4}:{TARGET}; }}
                chain post {{ type nat hook postrouting priority srcnat; }}
            }}
            table ip6 hostport6 {{
                chain pre {{ type nat hook prerouting priority dstnat; ip6 daddr {HOST6} {to} [{v6}]:{TARGET}; }}
                chain post {{ type nat hook postrouting priority srcnat; }}
            }}"
        ),
    );
}

/// A world whose uplink is a host endpoint, which publishes a port.
fn publishing(endpoint: &str) -> World {
    let mut world = world(&["a", "b"], &[22, 80, TARGET]);
    world.write("host.yaml", endpoint);
    world.start();
    assert!(!has_tables(&world), "nobody translates");
    publish(&world);
    sees_translation(&world);
    world
}

/// Waits until the program has seen that somebody translates.
fn sees_translation(world: &World) {
    let reached = || world.reaches("outside", HOST4.into(), Tcp(PUBLISHED), Duration::from_millis(300));
    eventually("the translation is seen", Duration::from_secs(10), reached);
    assert!(has_tables(world));
}

/// Whether our tables are there.
fn has_tables(world: &World) -> bool {
    let listed = world.lab.host.command("nft").args(["list", "tables"]).output().expect("nft");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let there =
        TABLES.map(|family| listed.lines().any(|line| line.starts_with(&format!("table {family} calico_host"))));
    assert_eq!(there[0], there[1], "{listed}");
    there[0]
}

fn delete_tables(world: &World, families: &[&str]) {
    let listed = world.lab.host.command("nft").args(["list", "tables"]).output().expect("nft");
    let listed = String::from_utf8(listed.stdout).expect("text");
    let ours = |line: &&str| families.iter().any(|family| line.starts_with(&format!("table {family} calico_host")));
    let commands: Vec<String> = listed.lines().filter(ours).map(|table| format!("delete {table}\n")).collect();
    assert_eq!(commands.len(), families.len(), "{listed}");
    nft(&world.lab.host, &commands.concat());
}

fn of_what_is_forwarded(protocol: &str, port: u16) -> String {
    let rule = format!("{{action: Allow, protocol: {protocol}, destination: {{ports: [{port}]}}}}");
    policy("forward", &format!("  applyOnForward: true\n  ingress: [{rule}]\n"))
}

fn talk(world: &World, index: usize) -> Talk {
    Talk::start(world.namespace("outside"), SocketAddr::new(world.addresses("host")[index], PUBLISHED))
}

fn goes_on(world: &World, talk: &Talk) {
    assert!(talk.goes_on(Duration::from_secs(5)), "{}", world.describe());
}

#[test]
fn a_published_port_is_judged_by_what_it_is_translated_to() {
    let world = publishing(&uplink());
    // Nothing of the host is allowed, and nobody says anything of what is forwarded.
    for protocol in [Tcp(PUBLISHED), Udp(PUBLISHED)] {
        world.allowed("outside", "host", protocol);
    }
    for protocol in [Tcp(80), Udp(80), Tcp(TARGET), Icmp] {
        world.denied("outside", "host", protocol);
    }
    world.allowed("outside", "host", Tcp(22));

    world.enforce(&[of_what_is_forwarded("TCP", TARGET)]);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    world.denied("outside", "host", Udp(PUBLISHED));
    world.denied("outside", "a", Tcp(80));
    world.enforce(&[of_what_is_forwarded("TCP", PUBLISHED)]);
    world.denied("outside", "host", Tcp(PUBLISHED));

    // What the host itself may receive has nothing to do with it, nor what it may send.
    let normal = |rule: &str| policy("normal", &format!("  ingress: [{rule}]\n  egress: [{{action: Deny}}]\n"));
    for rule in
        [format!("{{action: Allow, protocol: TCP, destination: {{ports: [{PUBLISHED}]}}}}"), "{action: Deny}".into()]
    {
        world.enforce(&[normal(&rule)]);
        world.allowed("outside", "host", Tcp(PUBLISHED));
        world.allowed("outside", "host", Udp(PUBLISHED));
        world.enforce(&[normal(&rule), of_what_is_forwarded("UDP", TARGET)]);
        world.denied("outside", "host", Tcp(PUBLISHED));
        world.allowed("outside", "host", Udp(PUBLISHED));
    }
    // The workload's own policy has a say as ever.
    let own = resources::policy("own", "app == 'a'", "  ingress: [{action: Allow, protocol: TCP}]\n");
    world.enforce(&[own]);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    world.denied("outside", "host", Udp(PUBLISHED));
}

#[test]
fn what_the_host_opens_itself_is_answered() {
    let world = publishing(&uplink());
    world.enforce(&[policy("out", "  types: [Egress]\n  egress: [{action: Allow}]\n")]);
    assert!(has_tables(&world));
    for protocol in [Tcp(80), Udp(80), Icmp] {
        world.allowed("host", "outside", protocol);
        world.denied("outside", "host", protocol);
    }
}

#[test]
fn policy_before_dnat_decides_for_good() {
    let world = publishing(&uplink());
    let before = |action: &str, port: u16| {
        let rule = format!("{{action: {action}, destination: {{ports: [{port}]}}, protocol: TCP}}");
        policy("before", &format!("  preDNAT: true\n  applyOnForward: true\n  ingress: [{rule}]\n"))
    };
    world.enforce(&[before("Deny", PUBLISHED)]);
    world.denied("outside", "host", Tcp(PUBLISHED));
    world.allowed("outside", "host", Udp(PUBLISHED));
    world.enforce(&[before("Deny", TARGET)]);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    // What it allows, policy of what is forwarded is not asked about, whatever it would say.
    let nothing = of_what_is_forwarded("TCP", 1);
    world.enforce(&[before("Allow", PUBLISHED), nothing.clone()]);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    world.denied("outside", "host", Udp(PUBLISHED));
    let talks = [0, 1].map(|index| talk(&world, index));
    talks.iter().for_each(|talk| goes_on(&world, talk));
    world.enforce(&[before("Allow", TARGET), nothing]);
    world.denied("outside", "host", Tcp(PUBLISHED));
    for talk in &talks {
        assert!(!talk.goes_on(Duration::from_millis(1500)), "{}", world.describe());
    }
}

/// What is no workload of ours.
pub(crate) struct Container {
    namespace: Namespace,
    _server: Server,
}

impl Container {
    pub(crate) const ADDRESSES: [&str; 2] = ["172.17.0.2", "fd00:17::2"];

    /// With a server on [`TARGET`].
    pub(crate) fn start(world: &World) -> Self {
        let host = &world.lab.host;
        let namespace = Namespace::create(lab::unique_name().expect("a name")).expect("a namespace");
        host.ip(&format!("link add dock0 type veth peer name eth0 netns {}", namespace.name())).expect("a pair");
        for (namespace, device, last) in [(host, "dock0", 1), (&namespace, "eth0", 2)] {
            namespace.ip(&format!("link set {device} up")).expect("up");
            namespace.ip(&format!("addr add 172.17.0.{last}/24 dev {device}")).expect("an address");
            namespace.ip(&format!("-6 addr add fd00:17::{last}/64 dev {device} nodad")).expect("an address");
        }
        namespace.ip("route add default via 172.17.0.1").expect("a route");
        namespace.ip("-6 route add default via fd00:17::1").expect("a route");
        let server = Server::start(&namespace, TARGET).expect("a server");
        Self { namespace, _server: server }
    }

    /// With a port that the host publishes in place of that of `a`.
    fn publish(world: &World) -> Self {
        let [v4, v6] = Self::ADDRESSES;
        nft(
            &world.lab.host,
            &format!(
                "flush chain ip hostport4 pre
                add rule ip hostport4 pre ip daddr {HOST4} tcp dport {PUBLISHED} dnat to {v4}:{TARGET}
                flush chain ip6 hostport6 pre
                add rule ip6 hostport6 pre ip6 daddr {HOST6} tcp dport {PUBLISHED} dnat to [{v6}]:{TARGET}"
            ),
        );
        Self::start(world)
    }
}

#[test]
fn what_is_no_workload_may_be_published_too() {
    let world = publishing(&uplink());
    let container = Container::publish(&world);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    for index in 0..2 {
        goes_on(&world, &talk(&world, index));
    }
    // Nobody would ask at the interface that it leaves by, but for the programs that hang there now.
    world.enforce(&[of_what_is_forwarded("TCP", 1)]);
    world.denied("outside", "host", Tcp(PUBLISHED));
    world.enforce(&[of_what_is_forwarded("TCP", TARGET)]);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    for index in 0..2 {
        goes_on(&world, &talk(&world, index));
    }
    world.denied("outside", "host", Tcp(80));
    among_themselves(&world, &container);
}

/// What passes between workloads and others of the host is as it was before, and whole to whoever tracks it.
fn among_themselves(world: &World, container: &Container) {
    let invalid = "type filter hook forward priority filter; ct state invalid drop;";
    nft(&world.lab.host, &format!("table inet strict {{ chain forward {{ {invalid} }}; }}"));
    for (own, workload) in Container::ADDRESSES.iter().zip(world.addresses("a")) {
        let own: IpAddr = own.parse().expect("an address");
        for (from, to) in [(world.namespace("a"), own), (&container.namespace, workload)] {
            let talk = Talk::start(from, SocketAddr::new(to, TARGET));
            assert!(talk.goes_on(Duration::from_secs(5)), "{to}\n{}", world.describe());
        }
    }
}

#[test]
fn what_is_no_workload_and_the_host_endpoint_of_all_interfaces() {
    let world = publishing(&host_endpoint("all", "  interfaceName: '*'\n"));
    let container = Container::publish(&world);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    among_themselves(&world, &container);
}

#[test]
fn an_interface_made_anew_publishes_again() {
    let world = publishing(&uplink());
    let host = &world.lab.host;
    let index = || host.ip(&format!("-o link show {UPLINK}")).expect("an interface");
    let before = index();
    host.ip(&format!("link del {UPLINK}")).expect("takes the uplink away");
    world.lab.uplink().expect("makes it anew");
    assert_ne!(before, index(), "another one");
    let is_judged = || !world.reaches("outside", HOST4.into(), Tcp(80), Duration::from_millis(1500));
    eventually("the programs hang there", Duration::from_secs(10), is_judged);
    sees_translation(&world);
    world.denied("outside", "host", Tcp(80));
}

#[test]
fn a_connection_to_a_published_port_follows_the_policy_that_judges_it() {
    let mut world = publishing(&uplink());
    let normal = |port: u16| {
        let rule = format!("{{action: Allow, protocol: TCP, destination: {{ports: [{port}]}}}}");
        policy("normal", &format!("  ingress: [{rule}]\n  egress: [{rule}]\n"))
    };
    for index in 0..2 {
        world.enforce(&[normal(PUBLISHED), of_what_is_forwarded("TCP", TARGET)]);
        let talk = talk(&world, index);
        goes_on(&world, &talk);
        // It has an entry by the host's address, which is denied now: that is not about what the host publishes.
        world.enforce(&[normal(1), of_what_is_forwarded("TCP", TARGET)]);
        goes_on(&world, &talk);
        world.kill();
        goes_on(&world, &talk);
        world.denied("outside", "host", Tcp(80));
        world.start();
        goes_on(&world, &talk);
        world.enforce(&[normal(PUBLISHED), of_what_is_forwarded("TCP", 1)]);
        assert!(!talk.goes_on(Duration::from_millis(1500)), "{}", world.describe());
        world.enforce(&[normal(1), of_what_is_forwarded("TCP", TARGET)]);
        assert!(talk.goes_on(RESUMES), "{}", world.describe());
    }
}

#[test]
fn without_our_tables_what_is_denied_stays_denied() {
    let mut world = publishing(&uplink());
    let denied = |world: &World| {
        for protocol in [Tcp(80), Udp(80), Icmp, Tcp(PUBLISHED), Udp(PUBLISHED)] {
            world.denied("outside", "host", protocol);
        }
        world.allowed("outside", "host", Tcp(22));
        world.allowed("outside", "a", Tcp(TARGET));
    };
    world.kill();
    world.allowed("outside", "host", Tcp(PUBLISHED));
    delete_tables(&world, &TABLES);
    denied(&world);
    world.start();
    sees_translation(&world);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    world.kill();
    delete_tables(&world, &TABLES[..1]);
    denied(&world);
    world.start();
    world.kill();
    // Of the other table alone frames are left that are for everybody: neither TCP takes them nor are they forwarded.
    sees_translation(&world);
    delete_tables(&world, &TABLES[1..]);
    for protocol in [Tcp(80), Tcp(PUBLISHED), Udp(PUBLISHED)] {
        world.denied("outside", "host", protocol);
    }
    world.start();
    // A running process puts back what somebody takes away.
    for families in [&TABLES[..], &TABLES[..1], &TABLES[1..]] {
        delete_tables(&world, families);
        sees_translation(&world);
        world.denied("outside", "host", Udp(80));
    }
    // With the last who translates they go.
    nft(&world.lab.host, "delete table ip hostport4\ndelete table ip6 hostport6");
    eventually("the tables are gone", Duration::from_secs(10), || !has_tables(&world));
    world.denied("outside", "host", Tcp(80));
    publish(&world);
    sees_translation(&world);
    world.terminate();
    assert_eq!(world.command(&["purge"]).code, 0);
    assert!(!has_tables(&world), "purged");
}

#[test]
fn what_policy_rejects_is_told_behind_the_translation() {
    let connecting = |world: &World, to: IpAddr, port: u16| -> Error {
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(to, port), Duration::from_secs(3));
        let connected = world.namespace("outside").enter(connect).expect("enters");
        connected.err().unwrap_or_else(|| panic!("connected to {to}, port {port}"))
    };
    let world = publishing(&resources::documents(&[uplink(), resources::felix("dropActionOverride", "Reject")]));
    for address in world.addresses("host") {
        let error = connecting(&world, address, 80);
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}\n{}", world.describe());
    }
    world.allowed("outside", "host", Tcp(PUBLISHED));
    // So it is with a connection that policy cuts.
    let normal = |port: u16| {
        let rule = format!("{{action: Allow, protocol: TCP, destination: {{ports: [{port}]}}}}");
        policy("normal", &format!("  ingress: [{rule}]\n"))
    };
    world.enforce(&[normal(80)]);
    for address in world.addresses("host") {
        let connect = || TcpStream::connect_timeout(&SocketAddr::new(address, 80), Duration::from_secs(3));
        let mut stream = world.namespace("outside").enter(connect).expect("enters").expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        world.enforce(&[normal(1)]);
        let told = stream.write_all(b"more").and_then(|()| stream.read(&mut [0; 16]));
        assert_eq!(told.expect_err("cut").kind(), std::io::ErrorKind::ConnectionReset, "{}", world.describe());
        world.enforce(&[normal(80)]);
    }
    world.enforce(&[of_what_is_forwarded("UDP", TARGET)]);
    for address in world.addresses("host") {
        let error = connecting(&world, address, PUBLISHED);
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}\n{}", world.describe());
    }
    world.allowed("outside", "host", Udp(PUBLISHED));
}

#[test]
fn the_host_endpoint_of_all_interfaces_judges_so_too() {
    let world = publishing(&host_endpoint("all", "  interfaceName: '*'\n"));
    world.allowed("outside", "host", Tcp(PUBLISHED));
    world.denied("outside", "host", Tcp(80));
    world.enforce(&[of_what_is_forwarded("TCP", TARGET)]);
    world.allowed("outside", "host", Tcp(PUBLISHED));
    world.denied("outside", "host", Udp(PUBLISHED));
    world.enforce(&[of_what_is_forwarded("TCP", PUBLISHED)]);
    world.denied("outside", "host", Tcp(PUBLISHED));
}
