//! Towards the neighbours of the host.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, frames,
    lab::{self, GATEWAY4, GATEWAY6, HOST_SIDE_MAC, HOST4, HOST6, Namespace, OUTSIDE4, OUTSIDE6, UPLINK},
    nft, resources,
    stream::{Beat, Tally, transfer},
};

#[test]
fn an_unresolved_neighbour_is_resolved() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.start();
    for _ in 0..3 {
        world.lab.host.ip(&format!("neigh flush dev {UPLINK}")).expect("flushes");
        world.lab.host.ip(&format!("-6 neigh flush dev {UPLINK}")).expect("flushes");
        let before = Instant::now();
        world.allowed("a", "outside", Tcp(80));
        assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
    }
}

#[test]
fn a_neighbour_may_change_its_mac() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.start();
    world.allowed("a", "outside", Tcp(80));
    world.allowed("outside", "a", Icmp);
    let outside = &world.lab.outside;
    outside.ip("link set eth0 address 02:00:00:00:00:77").expect("another MAC");
    // It speaks first, as a machine that takes an address over does: the host learns from its request.
    outside.ip("neigh flush dev eth0").expect("flushes");
    assert!(lab::ping(outside, HOST4.into(), Duration::from_secs(2)).expect("ping"));
    assert!(lab::ping(outside, HOST6.into(), Duration::from_secs(2)).expect("ping"));
    world.allowed("a", "outside", Tcp(80));
    assert!(world.lab.host.ip("neigh show").expect("neighbours").contains("02:00:00:00:00:77"));
}

/// What the uplink and a plainly forwarding kernel are told, so that neighbours are doubted within a second.
fn doubt_neighbours_early(host: &Namespace) {
    for family in ["ipv4", "ipv6"] {
        for (name, value) in [("base_reachable_time_ms", 100), ("delay_first_probe_time", 1), ("retrans_time_ms", 100)]
        {
            let setting = format!("net.{family}.neigh.{UPLINK}.{name}={value}");
            assert!(host.command("sysctl").args(["-qw", &setting]).status().expect("sysctl").success(), "{setting}");
        }
    }
}

/// The same network with nothing but the kernel's forwarding.
fn plain_kernel() -> World {
    let mut world = World::new(&["a"]);
    world.serve(80);
    let a = world.lab.workload("a");
    for setting in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
        assert!(world.lab.host.command("sysctl").args(["-qw", setting]).status().expect("sysctl").success());
    }
    world.lab.host.ip(&format!("route add {} dev calia", a.v4)).expect("a route");
    world.lab.host.ip(&format!("-6 route add {} dev calia", a.v6)).expect("a route");
    for gateway in [GATEWAY4.to_string(), GATEWAY6.to_string()] {
        a.namespace.ip(&format!("neigh replace {gateway} lladdr {HOST_SIDE_MAC} dev eth0")).expect("a neighbour");
    }
    world
}

/// Whoever it is asks for nobody's MAC any more: a question says its own.
const MUTE: &str = "
    table arp mute { chain out { type filter hook output priority 0; arp operation request drop; }; }
    table ip6 mute { chain out { type filter hook output priority 0; icmpv6 type nd-neighbor-solicit drop; }; }";
const UNMUTE: &str = "delete table arp mute; delete table ip6 mute";

/// How long nothing came back to `a` of each world, over both families, after the outside has taken this MAC.
fn silences(worlds: [&World; 2], mac: &str) -> [[Duration; 2]; 2] {
    worlds.iter().for_each(|world| world.allowed("a", "outside", Udp(80)));
    let beats = worlds.map(|world| {
        world
            .addresses("outside")
            .map(|address| Beat::start(world.namespace("a"), SocketAddr::new(address, 80), Duration::from_millis(2)))
    });
    thread::sleep(Duration::from_millis(300));
    for world in worlds {
        nft(&world.lab.outside, MUTE);
        let before = frames::mac_text(frames::mac(&world.lab.outside, "eth0"));
        // With its MAC it forgets its neighbours, and it may not ask: it is told who the host is.
        let host = frames::mac_text(frames::mac(&world.lab.host, UPLINK));
        let known = [HOST4.to_string(), HOST6.to_string()]
            .map(|address| format!("\nneigh replace {address} lladdr {host} dev eth0 nud permanent"));
        world.lab.outside.ip_batch(&format!("link set eth0 address {mac}{}", known.concat())).expect("another MAC");
        // Doubted from now on, so that both begin at the same moment of a neighbour's life.
        let doubted = [OUTSIDE4.to_string(), OUTSIDE6.to_string()]
            .map(|address| format!("neigh replace {address} lladdr {before} dev {UPLINK} nud stale\n"));
        world.lab.host.ip_batch(&doubted.concat()).expect("doubted neighbours");
    }
    // A second of delay, three probes of 100 ms, the broadcast.
    thread::sleep(Duration::from_secs(3));
    worlds.iter().for_each(|world| nft(&world.lab.outside, UNMUTE));
    beats.map(|beats| {
        beats.map(|beat| {
            let Tally { sent, received, outage, .. } = beat.stop();
            assert!(received > sent / 10, "{received} of {sent}");
            outage
        })
    })
}

#[test]
fn a_neighbour_that_changes_its_mac_in_silence_heals_as_fast_as_in_the_kernel() {
    let mut ours = World::new(&["a"]);
    ours.serve(80);
    ours.start();
    let kernel = plain_kernel();
    let worlds = [&ours, &kernel];
    worlds.iter().for_each(|world| doubt_neighbours_early(&world.lab.host));
    for mac in ["02:00:00:00:00:77", "02:00:00:00:00:78"] {
        let [ours, kernel] = silences(worlds, mac);
        println!("{mac}: silent for {ours:?}, with the kernel's own forwarding {kernel:?}");
        for (ours, kernel) in ours.into_iter().zip(kernel) {
            // Else nothing was measured.
            assert!(kernel > Duration::from_millis(800), "the kernel healed in {kernel:?}");
            // What is more is the machine's.
            assert!(ours < kernel + Duration::from_millis(600), "{ours:?}, the kernel {kernel:?}");
        }
    }
    for (family, world) in [("-4", &ours), ("-6", &ours)] {
        let neighbours = world.lab.host.ip(&format!("{family} neigh show dev {UPLINK}")).expect("neighbours");
        assert!(neighbours.contains("02:00:00:00:00:78"), "{neighbours}");
    }
}

#[test]
fn a_port_forwarded_by_the_host_works_both_ways() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let only_80 =
        "  types: [Ingress]\n  ingress:\n    - action: Allow\n      protocol: TCP\n      destination: {ports: [80]}\n";
    world.write("policy.yaml", &resources::policy("a-in", "app == 'a'", only_80));
    world.write("felix.yaml", &resources::felix("defaultEndpointToHostAction", "Accept"));
    world.start();
    let a = world.lab.workload("a").v4;
    let rules = format!(
        "table ip hostport {{
            chain pre {{ type nat hook prerouting priority dstnat; ip daddr {HOST4} tcp dport 8080 dnat to {a}:80; }}
            chain post {{ type nat hook postrouting priority srcnat; }}
        }}"
    );
    nft(&world.lab.host, &rules);
    let to = SocketAddr::new(HOST4.into(), 8080);
    for from in ["outside", "b"] {
        let reached = lab::tcp(world.namespace(from), to, Duration::from_secs(3)).expect("a probe");
        assert!(reached, "{from} to the forwarded port\n{}", world.describe());
    }
    // More than a few packets, and the direct way beside it.
    let talk = calico_ebpf_tests::stream::Talk::start(world.namespace("outside"), to);
    world.allowed("outside", "a", Tcp(80));
    assert!(talk.goes_on(Duration::from_secs(3)));
}

#[test]
fn what_the_host_masquerades_comes_back() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.start();
    // The neighbour knows no way back to the workloads.
    world.lab.outside.ip("route del 10.65.0.0/16").expect("deletes the route");
    assert!(!world.reaches("a", OUTSIDE4.into(), Tcp(80), Duration::from_millis(400)));
    let rules = format!(
        "table ip masq {{
            chain post {{ type nat hook postrouting priority srcnat; oifname {UPLINK} ip saddr 10.65.0.0/16 snat to {HOST4}; }}
        }}"
    );
    nft(&world.lab.host, &rules);
    let to = SocketAddr::new(OUTSIDE4.into(), 80);
    // Without a device of the fast path, all that goes out takes the stack, where the NAT is.
    world.terminate();
    let mut command = world.program(&["run"]);
    command.arg("--config").arg(world.config()).args([
        "--node",
        resources::NODE,
        "--uplink",
        "lo",
        "--listen",
        "off",
        "--once",
    ]);
    assert!(command.stdout(Stdio::null()).status().expect("starts").success());
    assert!(lab::tcp(world.namespace("a"), to, Duration::from_secs(3)).expect("a probe"), "{}", world.describe());
}

#[test]
fn the_stack_answers_what_the_fast_path_cannot_do() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    let a = &world.lab.workload("a").namespace;
    let b = world.lab.workload("b");
    // Time exceeded, from the host: what traceroute lives on.
    for (address, ttl) in [(b.v4.to_string(), "1"), (b.v6.to_string(), "1")] {
        let mut ping = a.command("ping");
        let output = ping.args(["-n", "-c", "1", "-W", "2", "-t", ttl, &address]).output().expect("ping");
        let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
        assert!(text.contains("exceeded"), "{address}: {text}");
    }
    // Too big for the next hop.
    world.lab.host.ip(&format!("link set {UPLINK} mtu 1300")).expect("a smaller MTU");
    world.lab.outside.ip("link set eth0 mtu 1300").expect("a smaller MTU");
    let mut ping = a.command("ping");
    let output = ping.args(["-n", "-c", "2", "-W", "2", "-M", "do", "-s", "1400", &OUTSIDE4.to_string()]).output();
    let text = String::from_utf8_lossy(&output.expect("ping").stdout).to_lowercase();
    assert!(text.contains("1300") || text.contains("frag needed"), "{text}");
    // Fragments of an allowed packet arrive.
    let mut ping = a.command("ping");
    ping.args(["-n", "-q", "-c", "1", "-W", "2", "-M", "dont", "-s", "4000", &b.v4.to_string()]);
    assert!(ping.stdout(Stdio::null()).status().expect("ping").success(), "fragments\n{}", world.describe());
}

#[test]
fn large_transfers_arrive_whole() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    for to in world.addresses("b").into_iter().chain(world.addresses("outside")) {
        let length = 8 << 20;
        let received = world.namespace("a").enter(|| transfer(SocketAddr::new(to, 80), length)).expect("enters");
        assert_eq!(received, length, "{to}");
    }
}

/// An address that only the neighbour outside has, without a network.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

#[test]
fn a_way_for_ipv4_may_lead_over_ipv6() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.lab.outside.ip(&format!("addr add {ELSEWHERE}/32 dev lo")).expect("an address");
    // Its own questions are not to tell the host who it is.
    world.lab.outside.sysctl("net/ipv4/conf/all/arp_announce", "2").expect("a setting");
    // As BGP writes it where sessions and next hops are of IPv6 alone (RFC 8950).
    world.lab.host.ip(&format!("route add {ELSEWHERE}/32 via inet6 {OUTSIDE6} dev {UPLINK}")).expect("a route");
    world.start();
    let to = SocketAddr::new(ELSEWHERE.into(), 80);
    for round in 0..3 {
        // The next hop is resolved as one of IPv6.
        world.lab.host.ip(&format!("-6 neigh flush dev {UPLINK}")).expect("flushes");
        let reached = lab::tcp(world.namespace("a"), to, Duration::from_secs(3)).expect("a probe");
        assert!(reached, "round {round}\n{}", world.describe());
    }
    let length = 1 << 20;
    assert_eq!(world.namespace("a").enter(|| transfer(to, length)).expect("enters"), length);
    let connections = world.command(&["conntrack"]).stdout;
    let ours: Vec<&str> = connections.lines().filter(|line| line.contains(&to.to_string())).collect();
    assert!(ours.len() >= 4 && ours.iter().all(|line| line.contains(" fast ")), "past the stack: {connections}");
    let neighbours = world.lab.host.ip(&format!("-4 neigh show dev {UPLINK}")).expect("neighbours");
    assert!(!neighbours.contains(&ELSEWHERE.to_string()), "nobody asks for it by ARP: {neighbours}");
    // The route goes, and with it the way; another one of the same kind counts at once.
    world.lab.host.ip(&format!("route del {ELSEWHERE}/32")).expect("deletes");
    assert!(!lab::tcp(world.namespace("a"), to, Duration::from_millis(400)).expect("a probe"));
    world.lab.host.ip(&format!("route add {ELSEWHERE}/32 via inet6 {OUTSIDE6} dev {UPLINK}")).expect("a route");
    assert!(lab::tcp(world.namespace("a"), to, Duration::from_secs(3)).expect("a probe"), "{}", world.describe());
}

#[test]
fn who_comes_by_another_way_than_answers_would_go() {
    let mut world = World::new(&["a", "b"]);
    world.lab.outside.ip(&format!("addr add {ELSEWHERE}/32 dev lo")).expect("an address");
    world.start();
    let a = world.lab.workload("a");
    let receiver = a.namespace.enter(|| UdpSocket::bind((a.v4, 5000))).expect("enters").expect("a socket");
    receiver.set_read_timeout(Some(Duration::from_millis(400))).expect("a timeout");
    let mut port = 6000;
    let mut arrives = || {
        port += 1;
        let send = || UdpSocket::bind((ELSEWHERE, port))?.send_to(b"x", (a.v4, 5000));
        world.lab.outside.enter(send).expect("enters").expect("sends");
        receiver.recv(&mut [0; 8]).is_ok()
    };
    let drops = || world.status()["drops"]["reverse-path"].as_u64().unwrap_or_default();
    let mode = |mode: &str| {
        world.write("felix.yaml", &resources::felix("bpfEnforceRPF", mode));
        assert_eq!(world.command(&["reload"]).code, 0);
    };
    // Loose unless told otherwise: some way must be there.
    assert!(!arrives() && drops() == 1, "{}", world.describe());
    world.lab.host.ip(&format!("route add {ELSEWHERE}/32 dev calib scope link")).expect("a route");
    assert!(arrives(), "{}", world.describe());
    mode("Strict");
    assert!(!arrives() && drops() == 2, "{}", world.describe());
    world.lab.host.ip(&format!("route replace {ELSEWHERE}/32 via {OUTSIDE4}")).expect("a route");
    assert!(arrives(), "{}", world.describe());
    world.lab.host.ip(&format!("route del {ELSEWHERE}/32")).expect("deletes");
    mode("Disabled");
    assert!(arrives() && drops() == 2, "{}", world.describe());
}
