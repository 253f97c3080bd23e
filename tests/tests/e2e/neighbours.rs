//! ARP and neighbour discovery: on a host without a default route, where proxy ARP would stay silent.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol, World, eventually,
    frames::{Wire, mac},
    lab::{self, GATEWAY4, GATEWAY6, Namespace, Server},
    stream::Talk,
};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Icmpv6Type, IpNumber, Ipv6Header, PacketBuilder,
    SlicedPacket,
};

const ANSWER: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(300);
const HOST_SIDE: [u8; 6] = [0xee; 6];
const BROADCAST: [u8; 6] = [0xff; 6];

/// A request of `sender` for `target`.
fn arp_request(mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame =
        Ethernet2Header { source: mac, destination: BROADCAST, ether_type: EtherType::ARP }.to_bytes().to_vec();
    let arp = ArpEthIpv4Packet {
        operation: ArpOperation::REQUEST,
        sender_mac: mac,
        sender_ipv4: sender.octets(),
        target_mac: [0; 6],
        target_ipv4: target.octets(),
    };
    frame.extend_from_slice(&arp.to_bytes());
    frame
}

/// The MAC address in the answer for `target`, if one comes.
fn arp_answer(wire: &Wire, target: Ipv4Addr, patience: Duration) -> Option<[u8; 6]> {
    let frame = wire.receive(patience, |frame| {
        frame.get(12..14) == Some(&[8, 6])
            && frame.get(20..22) == Some(&[0, 2])
            && frame.get(28..32) == Some(&target.octets())
    })?;
    frame.get(22..28)?.try_into().ok()
}

/// A solicitation of `sender` for `target`.
fn solicitation(mac: [u8; 6], sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let last = target.octets();
    let group =
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(last[13]), u16::from_be_bytes([last[14], last[15]]));
    let group_mac = [0x33, 0x33, 0xff, last[13], last[14], last[15]];
    let mut body = target.octets().to_vec();
    // A source link-layer address may not come with the unspecified source (RFC 4861, 4.3).
    if !sender.is_unspecified() {
        body.extend_from_slice(&[1, 1]);
        body.extend_from_slice(&mac);
    }
    let ip = Ipv6Header {
        hop_limit: 255,
        next_header: IpNumber::IPV6_ICMP,
        source: sender.octets(),
        destination: group.octets(),
        ..Ipv6Header::default()
    };
    let builder = PacketBuilder::ethernet2(mac, group_mac).ip(etherparse::IpHeaders::Ipv6(ip, Default::default()));
    let builder = builder.icmpv6(Icmpv6Type::NeighborSolicitation);
    let mut frame = Vec::new();
    builder.write(&mut frame, &body).expect("writes to memory");
    frame
}

/// The MAC address in the advertisement of `target`, if one comes; the whole packet is checked.
fn advertisement(wire: &Wire, target: Ipv6Addr, patience: Duration) -> Option<[u8; 6]> {
    let wanted = |frame: &[u8]| {
        frame.get(12..14) == Some(&[0x86, 0xdd])
            && frame.get(20) == Some(&58)
            && frame.get(54) == Some(&136)
            && frame.get(62..78) == Some(&target.octets())
    };
    let frame = wire.receive(patience, wanted)?;
    let packet = SlicedPacket::from_ethernet(&frame).expect("a well-formed advertisement");
    let Some(etherparse::NetSlice::Ipv6(ip)) = &packet.net else { panic!("not IPv6") };
    let Some(etherparse::TransportSlice::Icmpv6(icmp)) = &packet.transport else { panic!("not ICMPv6") };
    assert_eq!(ip.header().hop_limit(), 255, "RFC 4861, 7.1.2");
    assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
    assert_eq!(frame.get(78..80), Some(&[2, 1][..]), "the target's link-layer address");
    frame.get(80..86)?.try_into().ok()
}

#[test]
fn arp_is_answered_for_every_address_but_the_own() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    let a = world.lab.workload("a");
    let wire = Wire::open(&a.namespace, "eth0");
    let own = mac(&a.namespace, "eth0");
    assert!(world.lab.host.ip("route show default").expect("routes").is_empty(), "no default route");
    for target in [GATEWAY4, world.lab.workload("b").v4, Ipv4Addr::new(198, 51, 100, 7)] {
        wire.send(&arp_request(own, a.v4, target));
        assert_eq!(arp_answer(&wire, target, ANSWER), Some(HOST_SIDE), "{target}");
    }
    wire.send(&arp_request(own, a.v4, a.v4));
    assert_eq!(arp_answer(&wire, a.v4, SILENCE), None, "its own address");
}

#[test]
fn arp_of_others_and_probes_stay_unanswered() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    let a = world.lab.workload("a");
    let wire = Wire::open(&a.namespace, "eth0");
    let own = mac(&a.namespace, "eth0");
    for (sender, target) in [
        (world.lab.workload("b").v4, GATEWAY4),
        (Ipv4Addr::new(10, 65, 9, 9), GATEWAY4),
        // Duplicate address detection (RFC 5227).
        (Ipv4Addr::UNSPECIFIED, a.v4),
        (Ipv4Addr::UNSPECIFIED, Ipv4Addr::new(10, 65, 9, 9)),
    ] {
        wire.send(&arp_request(own, sender, target));
        assert_eq!(arp_answer(&wire, target, SILENCE), None, "{target} asked for by {sender}");
    }
    // The wire works: the proper question is still answered.
    wire.send(&arp_request(own, a.v4, GATEWAY4));
    assert_eq!(arp_answer(&wire, GATEWAY4, ANSWER), Some(HOST_SIDE));
}

#[test]
fn solicitations_are_answered_and_probes_are_not() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    let a = world.lab.workload("a");
    let wire = Wire::open(&a.namespace, "eth0");
    let own = mac(&a.namespace, "eth0");
    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
    for sender in [a.v6, link_local] {
        for target in [GATEWAY6, world.lab.workload("b").v6, Ipv6Addr::new(0x2001, 0xdb8, 9, 0, 0, 0, 0, 9)] {
            wire.send(&solicitation(own, sender, target));
            assert_eq!(advertisement(&wire, target, ANSWER), Some(HOST_SIDE), "{target} for {sender}");
        }
    }
    for (sender, target) in [
        // Duplicate address detection (RFC 4862, 5.4): an answer would take the address from the workload.
        (Ipv6Addr::UNSPECIFIED, a.v6),
        (Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99)),
        (world.lab.workload("b").v6, GATEWAY6),
        (a.v6, a.v6),
    ] {
        wire.send(&solicitation(own, sender, target));
        assert_eq!(advertisement(&wire, target, SILENCE), None, "{target} asked for by {sender}");
    }
}

#[test]
fn a_workload_with_duplicate_address_detection_gets_its_addresses() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    let a = world.lab.workload("a");
    // As an ordinary guest: the kernel probes for each address before it uses it.
    a.namespace.ip("link set eth0 down").expect("down");
    // It takes a second for each probe: long enough to be seen.
    let settings = ["net.ipv6.conf.eth0.accept_dad=1", "net.ipv6.conf.eth0.dad_transmits=4"];
    assert!(a.namespace.command("sysctl").arg("-qw").args(settings).status().expect("sysctl").success());
    a.namespace.ip("link set eth0 up").expect("up");
    a.namespace.ip(&format!("addr replace {}/128 dev eth0", a.v6)).expect("an address");
    let addresses = || a.namespace.ip("-6 addr show dev eth0").expect("addresses");
    assert!(addresses().contains("tentative"), "no probe: {}", addresses());
    eventually("the addresses to be accepted", Duration::from_secs(10), || !addresses().contains("tentative"));
    assert!(!addresses().contains("dadfailed"), "{}", addresses());
    a.namespace.ip(&format!("route replace default via {GATEWAY6} dev eth0")).expect("a route");
    let reached = world.reaches("a", world.addresses("b")[1], Protocol::Tcp(80), ANSWER);
    assert!(reached, "{}", world.describe());
}

#[test]
fn a_changed_mac_address_heals() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.allowed("a", "b", Protocol::Tcp(80));
    world.allowed("host", "b", Protocol::Tcp(80));
    // One that says nothing: the kernel tells of it.
    world.lab.workload("b").namespace.ip("link set eth0 address 02:00:5e:00:53:01").expect("another MAC address");
    world.allowed("a", "b", Protocol::Udp(80));
    world.allowed("outside", "b", Protocol::Udp(80));
    world.allowed("host", "b", Protocol::Udp(80));
    // Without the process it is learned from what the workload asks and sends.
    world.kill();
    world.lab.workload("b").namespace.ip("link set eth0 address 02:00:5e:00:53:02").expect("another MAC address");
    world.allowed("b", "outside", Protocol::Tcp(80));
    world.allowed("a", "b", Protocol::Udp(80));
    world.start();
    world.allowed("a", "b", Protocol::Udp(80));
}

/// What is at the end of a workload's veth may be a bridge with a virtual machine behind it, which has another MAC address.
#[test]
fn a_machine_behind_a_workload_keeps_its_connections_over_a_restart() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    let (a, v4, v6) = (&world.lab.workload("a").namespace, world.lab.workload("a").v4, world.lab.workload("a").v6);
    let machine = Namespace::create(lab::unique_name().expect("a name")).expect("a namespace");
    let moved =
        format!("link add link eth0 name eth1 type macvlan mode bridge\nlink set eth1 netns {}", machine.name());
    a.ip_batch(&format!("addr flush dev eth0\n{moved}")).expect("a second device");
    let lines = format!(
        "link set eth1 up\naddr add {v4}/32 dev eth1\naddr add {v6}/128 dev eth1 nodad\nroute add {GATEWAY4} dev eth1\n\
         route add default via {GATEWAY4} dev eth1\nroute add default via {GATEWAY6} dev eth1"
    );
    machine.ip_batch(&lines).expect("addresses");
    let _server = Server::start(&machine, 80).expect("a server");
    for to in world.addresses("b") {
        // So that it is known by what it sends.
        assert!(lab::tcp(&machine, SocketAddr::new(to, 80), ANSWER).expect("a probe"), "{}", world.describe());
    }
    let talks = world.addresses("a").map(|to| Talk::start(world.namespace("b"), SocketAddr::new(to, 80)));
    world.kill();
    world.start();
    for talk in &talks {
        assert!(talk.goes_on(Duration::from_secs(3)), "{}", world.describe());
    }
}
