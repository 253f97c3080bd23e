//! Services: addresses that the host gives another destination, as kube-proxy does it, for what workloads send. Policy is about that.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    thread,
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::{self, Tcp, Udp},
    World, eventually,
    lab::{HOST4, HOST6, OUTSIDE4, OUTSIDE6},
    nft,
    resources::{felix, policy},
    stream::{Conversation, RESUMES, Talk},
};

use crate::published::{Container, TARGET};

const ARRIVES: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(1500);
/// The address of the services.
const SERVICE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 1))];
/// Its ports: port 80 of `b`, of somebody outside, of the host, and of a container that is no workload.
const OF_B: u16 = 8080;
const OF_OUTSIDE: u16 = 8081;
const OF_HOST: u16 = 8082;
const OF_CONTAINER: u16 = 8083;
/// A port of the host that is port 80 of `b`.
const NODE_PORT: u16 = 32010;

/// Who translates also gives what goes to `b` the host's address.
const MASQUERADED: bool = true;

/// A world with servers on port 80 whose host translates, with what is enforced in the beginning.
fn serving(workloads: &[&str], masqueraded: bool, policies: &[String]) -> World {
    let mut world = World::new(workloads);
    world.serve(80);
    translate(&world, masqueraded);
    world.start();
    world.enforce(policies);
    world
}

fn translate(world: &World, masqueraded: bool) {
    let b = world.addresses("b");
    let hosts: [(IpAddr, IpAddr); 2] = [(HOST4.into(), OUTSIDE4.into()), (HOST6.into(), OUTSIDE6.into())];
    for (index, family) in ["ip", "ip6"].into_iter().enumerate() {
        let ((host, outside), service, b) = (hosts[index], SERVICE[index], b[index]);
        let to = |address: IpAddr, port: u16| SocketAddr::new(address, port);
        let container = Container::ADDRESSES[index].parse().expect("an address");
        let of = |address: IpAddr, port: u16, to: SocketAddr| {
            format!("{family} daddr {address} meta l4proto {{ tcp, udp }} th dport {port} dnat to {to};\n")
        };
        let rules = [
            of(service, OF_B, to(b, 80)),
            of(service, OF_OUTSIDE, to(outside, 80)),
            of(service, OF_HOST, to(host, 80)),
            of(service, OF_CONTAINER, to(container, TARGET)),
            of(host, NODE_PORT, to(b, 80)),
        ]
        .concat();
        let masquerade = if masqueraded { format!("{family} daddr {b} masquerade;") } else { String::new() };
        nft(
            &world.lab.host,
            &format!(
                "table {family} services {{
                   chain pre {{ type nat hook prerouting priority dstnat; {rules} }}
                   chain post {{ type nat hook postrouting priority srcnat; {masquerade} }}
                 }}"
            ),
        );
    }
}

fn reach(world: &World, from: &str, to: [IpAddr; 2], protocol: Protocol) {
    for address in to {
        assert!(
            world.reaches(from, address, protocol, ARRIVES),
            "{from}: {address} {protocol:?}\n{}",
            world.describe()
        );
    }
}

fn miss(world: &World, from: &str, to: [IpAddr; 2], protocol: Protocol) {
    for address in to {
        assert!(
            !world.reaches(from, address, protocol, SILENCE),
            "{from}: {address} {protocol:?}\n{}",
            world.describe()
        );
    }
}

/// What `a` may send to.
fn egress(destinations: &[&str]) -> String {
    let rule = |destination: &&str| format!("    - {{action: Allow, destination: {{{destination}}}}}\n");
    let rules: String = destinations.iter().map(rule).collect();
    policy("egress", "app == 'a'", &format!("  types: [Egress]\n  egress:\n{rules}"))
}

/// The services by their own addresses.
const BY_NAME: [&str; 2] = ["nets: [10.96.0.0/12]", "nets: ['fd00:96::/64']"];
const TO_B: [&str; 1] = ["selector: app == 'b'"];

#[test]
fn egress_policy_is_about_what_a_service_stands_for() {
    for masqueraded in [!MASQUERADED, MASQUERADED] {
        let mut world = serving(&["a", "b"], masqueraded, &[egress(&TO_B)]);
        for protocol in [Tcp(OF_B), Udp(OF_B)] {
            reach(&world, "a", SERVICE, protocol);
        }
        reach(&world, "a", world.addresses("b"), Tcp(80));
        reach(&world, "a", world.addresses("host"), Tcp(NODE_PORT));
        for protocol in [Tcp(OF_OUTSIDE), Udp(OF_OUTSIDE), Tcp(OF_B + 100)] {
            miss(&world, "a", SERVICE, protocol);
        }
        miss(&world, "a", world.addresses("outside"), Tcp(80));
        // Connections go on, are cut, and are picked up again, with what judges them.
        let talks = SERVICE.map(|address| Talk::start(world.namespace("a"), SocketAddr::new(address, OF_B)));
        let all_go_on = |world: &World| {
            for talk in &talks {
                assert!(talk.goes_on(RESUMES), "{}", world.describe());
            }
        };
        world.enforce(&[egress(&["selector: app == 'c'"])]);
        for talk in &talks {
            assert!(!talk.goes_on(SILENCE), "{}", world.describe());
        }
        miss(&world, "a", SERVICE, Tcp(OF_B));
        world.enforce(&[egress(&TO_B)]);
        all_go_on(&world);
        world.kill();
        all_go_on(&world);
        reach(&world, "a", SERVICE, Tcp(OF_B));
        world.start();
        all_go_on(&world);
        // Also one that was opened when its name was allowed, too.
        world.enforce(&[]);
        let others = SERVICE.map(|address| Talk::start(world.namespace("a"), SocketAddr::new(address, OF_B)));
        world.enforce(&[egress(&TO_B)]);
        for talk in &others {
            assert!(talk.goes_on(ARRIVES), "{}", world.describe());
        }
        // What it is called by says nothing.
        world.enforce(&[egress(&BY_NAME)]);
        miss(&world, "a", SERVICE, Tcp(OF_B));
        for talk in &talks {
            assert!(!talk.goes_on(SILENCE), "{}", world.describe());
        }
        world.enforce(&[egress(&["nets: [192.0.2.0/24]", "nets: ['2001:db8:2::/64']"])]);
        reach(&world, "a", SERVICE, Tcp(OF_OUTSIDE));
        miss(&world, "a", SERVICE, Tcp(OF_B));
    }
}

#[test]
fn ingress_policy_knows_who_asks_by_a_service() {
    for masqueraded in [!MASQUERADED, MASQUERADED] {
        let from_a = "  types: [Ingress]\n  ingress: [{action: Allow, source: {selector: app == 'a'}}]\n";
        let world = serving(&["a", "b", "c"], masqueraded, &[policy("ingress", "app == 'b'", from_a)]);
        for protocol in [Tcp(OF_B), Udp(OF_B)] {
            reach(&world, "a", SERVICE, protocol);
            miss(&world, "c", SERVICE, protocol);
        }
        reach(&world, "a", world.addresses("host"), Tcp(NODE_PORT));
        miss(&world, "c", world.addresses("host"), Tcp(NODE_PORT));
        // Also when connections are judged again.
        let talks = SERVICE.map(|address| Talk::start(world.namespace("a"), SocketAddr::new(address, OF_B)));
        let more = policy(
            "more",
            "app == 'b'",
            "  order: 1\n  types: [Ingress]\n  ingress: [{action: Deny, protocol: SCTP}]\n",
        );
        world.enforce(&[policy("ingress", "app == 'b'", from_a), more]);
        for talk in &talks {
            assert!(talk.goes_on(ARRIVES), "{}", world.describe());
        }
        world.enforce(&[policy("ingress", "app == 'b'", &from_a.replace("'a'", "'c'"))]);
        for talk in &talks {
            assert!(!talk.goes_on(SILENCE), "{}", world.describe());
        }
    }
}

#[test]
fn what_becomes_the_hosts_is_for_the_host() {
    let world = serving(&["a", "b"], !MASQUERADED, &[]);
    // Calico's default drops what is for the host, and a node port of another workload is not.
    reach(&world, "a", world.addresses("host"), Tcp(NODE_PORT));
    for (to, protocol) in [(world.addresses("host"), Tcp(80)), (SERVICE, Tcp(OF_HOST)), (SERVICE, Udp(OF_HOST))] {
        miss(&world, "a", to, protocol);
    }
    reach(&world, "host", world.addresses("a"), Tcp(80));
    world.enforce(&[felix("defaultEndpointToHostAction", "Accept")]);
    reach(&world, "a", world.addresses("host"), Tcp(80));
    for protocol in [Tcp(OF_HOST), Udp(OF_HOST)] {
        reach(&world, "a", SERVICE, protocol);
    }
    world.enforce(&[felix("defaultEndpointToHostAction", "Drop")]);
    miss(&world, "a", SERVICE, Tcp(OF_HOST));
}

#[test]
fn what_is_the_hosts_by_a_route_alone_is_for_the_host() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.start();
    let single = [Ipv4Addr::new(198, 51, 100, 7).into(), Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, 7).into()];
    let of_network = [Ipv4Addr::new(203, 0, 113, 9).into(), Ipv6Addr::new(0x2001, 0xdb8, 0x71, 0, 0, 0, 0, 9).into()];
    for route in ["198.51.100.7", "2001:db8:64::7", "203.0.113.0/24", "2001:db8:71::/64"] {
        world.lab.host.ip(&format!("route add local {route} dev lo")).expect("a route");
    }
    let is_closed = |address: IpAddr| !world.reaches("a", address, Tcp(80), SILENCE);
    for address in single.into_iter().chain(of_network) {
        eventually("the route is seen", Duration::from_secs(10), || is_closed(address));
    }
    for to in [single, of_network] {
        miss(&world, "a", to, Udp(80));
    }
    reach(&world, "a", world.addresses("outside"), Tcp(80));
    world.enforce(&[felix("defaultEndpointToHostAction", "Accept")]);
    for to in [single, of_network] {
        for protocol in [Tcp(80), Udp(80)] {
            reach(&world, "a", to, protocol);
        }
    }
}

#[test]
fn what_was_elsewhere_and_becomes_the_hosts_is_for_the_host() {
    let moving = [Ipv4Addr::new(203, 0, 113, 77).into(), Ipv6Addr::new(0x2001, 0xdb8, 0x71, 0, 0, 0, 0, 0x77).into()];
    let mut world = World::new(&["a"]);
    world.serve(80);
    let alive = Arc::new(());
    let echoes = |world: &World, who: &str| {
        for at in moving {
            let bind = || UdpSocket::bind((at, 81));
            let socket = world.namespace(who).enter(bind).expect("enters").expect("binds");
            socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
            let alive = Arc::downgrade(&alive);
            thread::spawn(move || {
                while alive.strong_count() > 0 {
                    let mut question = [0; 64];
                    let Ok((length, from)) = socket.recv_from(&mut question) else { continue };
                    let _asked_again_otherwise = socket.send_to(&question[..length], from);
                }
            });
        }
    };
    let [v4, v6] = moving.map(|address: IpAddr| address.to_string());
    let addresses = |verb: &str| format!("addr {verb} {v4}/32 dev lo\naddr {verb} {v6}/128 dev lo nodad");
    world.lab.outside.ip_batch(&addresses("add")).expect("addresses");
    echoes(&world, "outside");
    let routes = format!("route add {v4} via {OUTSIDE4}\nroute add {v6} via {OUTSIDE6}");
    world.lab.host.ip_batch(&routes).expect("routes");
    world.start();
    let talks = moving.map(|to| Conversation::open(world.namespace("a"), SocketAddr::new(to, 81)));
    let go_on = |patience: Duration| talks.iter().map(|talk| talk.goes_on(patience)).collect::<Vec<_>>();
    for _ in 0..3 {
        assert_eq!(go_on(ARRIVES), [true; 2], "{}", world.describe());
    }
    world.lab.host.ip_batch(&addresses("add")).expect("addresses");
    echoes(&world, "host");
    for address in moving {
        let is_closed = || !world.reaches("a", address, Tcp(80), SILENCE);
        eventually("the address is seen", Duration::from_secs(10), is_closed);
    }
    assert_eq!(go_on(SILENCE), [false; 2], "{}", world.describe());
    world.enforce(&[felix("defaultEndpointToHostAction", "Accept")]);
    assert_eq!(go_on(ARRIVES), [true; 2], "{}", world.describe());
}

#[test]
fn what_is_no_workload_may_be_a_service_too() {
    let world = serving(&["a", "b"], !MASQUERADED, &[]);
    let _container = Container::start(&world);
    reach(&world, "a", SERVICE, Tcp(OF_CONTAINER));
    world.enforce(&[egress(&["nets: [172.17.0.0/16]", "nets: ['fd00:17::/64']"])]);
    for protocol in [Tcp(OF_CONTAINER), Udp(OF_CONTAINER)] {
        reach(&world, "a", SERVICE, protocol);
    }
    miss(&world, "a", SERVICE, Tcp(OF_B));
    world.enforce(&[egress(&BY_NAME)]);
    miss(&world, "a", SERVICE, Tcp(OF_CONTAINER));
}

#[test]
fn what_is_known_to_be_a_service_is_not_counted_as_dropped() {
    let world = serving(&["a", "b"], !MASQUERADED, &[egress(&TO_B)]);
    let drops = || world.status()["drops"]["policy-egress"].as_u64().unwrap_or_default();
    for protocol in [Tcp(OF_B), Udp(OF_B)] {
        reach(&world, "a", SERVICE, protocol);
    }
    let before = drops();
    for _ in 0..5 {
        for protocol in [Tcp(OF_B), Udp(OF_B)] {
            reach(&world, "a", SERVICE, protocol);
        }
    }
    assert_eq!(drops(), before, "{}", world.describe());
    miss(&world, "a", world.addresses("outside"), Udp(80));
    assert!(drops() > before, "what is dropped is counted");
}

#[test]
fn without_our_tables_what_is_denied_stays_denied() {
    let mut world = serving(&["a", "b"], !MASQUERADED, &[egress(&TO_B)]);
    reach(&world, "a", SERVICE, Tcp(OF_B));
    world.kill();
    nft(&world.lab.host, "flush ruleset");
    translate(&world, !MASQUERADED);
    for protocol in [Tcp(OF_B), Udp(OF_B), Tcp(OF_OUTSIDE)] {
        miss(&world, "a", SERVICE, protocol);
    }
    miss(&world, "a", world.addresses("host"), Tcp(80));
    world.start();
    let is_back = || world.reaches("a", SERVICE[0], Tcp(OF_B), Duration::from_millis(300));
    eventually("the tables are back", Duration::from_secs(10), is_back);
    miss(&world, "a", SERVICE, Tcp(OF_OUTSIDE));
}
