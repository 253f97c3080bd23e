//! Path MTU discovery and traceroute, through the host and beyond it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use calico_ebpf_tests::{
    World,
    lab::{GATEWAY4, GATEWAY6, HOST4, HOST6, Namespace, OUTSIDE4, OUTSIDE6, Server, UPLINK},
    resources::policy,
    stream::transfer,
};

/// The neighbour on the network behind it, and the far end there.
const ROUTER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 1);
const FAR4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const FAR6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 3, 0, 0, 0, 0, 2);

/// Requests come in, messages about connections only if they belong to one.
const REQUESTS: &str = "  types: [Ingress]
  ingress:
    - {action: Allow, protocol: TCP}
    - {action: Allow, protocol: ICMP, icmp: {type: 8}}
    - {action: Allow, protocol: ICMPv6, icmp: {type: 128}}
";

/// A world with a network behind the neighbour, and the MTUs of the three links from workload `a` to there.
fn world(mtus: [u32; 3]) -> (World, Namespace) {
    let mut world = World::new(&["a"]);
    let far = Namespace::create(format!("{}-far", world.lab.name())).expect("a namespace");
    let (host, outside, a) = (&world.lab.host, &world.lab.outside, &world.lab.workload("a").namespace);
    let [first, second, third] = mtus;
    outside
        .ip_batch(&format!(
            "link add far type veth peer name eth0 netns {}
             addr add {ROUTER4}/24 dev far
             addr add {ROUTER6}/64 dev far nodad
             link set far mtu {third} up
             link set eth0 mtu {second}",
            far.name()
        ))
        .expect("a network behind the neighbour");
    // Both ends claim to take what their links cannot: else nobody would send too much.
    far.ip_batch(&format!(
        "addr add {FAR4}/24 dev eth0
         addr add {FAR6}/64 dev eth0 nodad
         link set eth0 mtu {third} up
         route add default via {ROUTER4} advmss 1460
         route add default via {ROUTER6} advmss 1440"
    ))
    .expect("the far end");
    host.ip_batch(&format!(
        "route add 203.0.113.0/24 via {OUTSIDE4}
         route add 2001:db8:3::/64 via {OUTSIDE6}
         link set {UPLINK} mtu {second}
         link set calia mtu {first}"
    ))
    .expect("the host");
    a.ip_batch(&format!(
        "link set eth0 mtu {first}
         route replace default via {GATEWAY4} dev eth0 advmss 1460
         route replace default via {GATEWAY6} dev eth0 advmss 1440"
    ))
    .expect("the workload");
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        assert!(outside.command("sysctl").args(["-qw", setting]).status().expect("sysctl").success(), "{setting}");
    }
    world.write("policy.yaml", &policy("a-in", "app == 'a'", REQUESTS));
    world.start();
    (world, far)
}

fn ping(from: &Namespace, to: IpAddr, more: &[&str]) -> String {
    let mut ping = from.command("ping");
    let output = ping.args(["-n", "-W", "2", "-i", "0.2"]).args(more).arg(to.to_string()).output().expect("ping");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Who said what: the address and the rest of lines like `From ADDRESS icmp_seq=1 ...`.
fn said(text: &str) -> Vec<(IpAddr, String)> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("From ")).filter_map(|line| line.split_once(' '));
    lines.filter_map(|(who, what)| Some((who.trim_end_matches(':').parse().ok()?, what.to_lowercase()))).collect()
}

#[test]
fn the_path_mtu_is_found_both_ways() {
    const BYTES: usize = 1 << 20;
    for (mtus, down) in [([1500, 1400, 1300], false), ([1300, 1400, 1500], true)] {
        let (world, far) = world(mtus);
        let a = world.lab.workload("a");
        for (family, far_address) in [FAR4.into(), FAR6.into()].into_iter().enumerate() {
            let (from, to): (_, IpAddr) =
                if down { (&far, a.addresses()[family]) } else { (&a.namespace, far_address) };
            let [host, neighbour]: [IpAddr; 2] = match (family, down) {
                (0, false) => [HOST4.into(), OUTSIDE4.into()],
                (0, true) => [HOST4.into(), ROUTER4.into()],
                (_, false) => [HOST6.into(), OUTSIDE6.into()],
                (_, true) => [HOST6.into(), ROUTER6.into()],
            };
            let order =
                if down { [(neighbour, "1400"), (host, "1300")] } else { [(host, "1400"), (neighbour, "1300")] };
            // Each hop says what its next one takes, with an address of its own.
            for ((who, mtu), size) in order.into_iter().zip(["1440", "1340"]) {
                let text = ping(from, to, &["-c", "1", "-M", "do", "-s", size]);
                let found = said(&text).iter().any(|(by, what)| *by == who && what.contains(mtu));
                assert!(found, "{to}: {who} says {mtu}:\n{text}\n{}", world.describe());
            }
            let server = Server::start(if down { &a.namespace } else { &far }, 80).expect("a server");
            // Forgotten, so that TCP finds it out itself.
            for command in ["route flush cache", "-6 route flush cache"] {
                from.ip(command).expect("flushes");
            }
            let to = SocketAddr::new(to, 80);
            let received = from.enter(|| transfer(to, BYTES)).expect("enters");
            assert_eq!(received, BYTES, "{to}\n{}", world.describe());
            let route = from.ip(&format!("route get {}", to.ip())).expect("a route");
            assert!(route.contains("mtu 1300"), "{route}");
            drop(server);
        }
    }
}

#[test]
fn traceroute_shows_the_host() {
    let (world, far) = world([1500; 3]);
    let a = world.lab.workload("a");
    let [a4, a6] = a.addresses();
    for (from, to, hops) in [
        (&a.namespace, FAR4.into(), [IpAddr::from(HOST4), OUTSIDE4.into()]),
        (&a.namespace, FAR6.into(), [HOST6.into(), OUTSIDE6.into()]),
        (&far, a4, [ROUTER4.into(), HOST4.into()]),
        (&far, a6, [ROUTER6.into(), HOST6.into()]),
    ] {
        for (ttl, hop) in (1..).zip(hops) {
            // The second packet is one of a known connection.
            let text = ping(from, to, &["-c", "2", "-t", &ttl.to_string()]);
            let said = said(&text);
            assert!(!said.is_empty(), "{to}, TTL {ttl}:\n{text}\n{}", world.describe());
            for (who, what) in said {
                assert!(who == hop && what.contains("exceeded"), "{to}, TTL {ttl}: {hop} says it:\n{text}");
            }
        }
        let text = ping(from, to, &["-c", "1", "-t", "3"]);
        assert!(text.contains(" 0% packet loss"), "three hops are enough:\n{text}");
    }
}
