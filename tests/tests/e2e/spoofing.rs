//! What a workload must not send, and what must not come in from outside.

use std::{net::IpAddr, time::Duration};

use calico_ebpf_tests::{
    World,
    frames::{Wire, mac, mac_text},
    resources,
};
use etherparse::{PacketBuilder, VlanId};

const ARRIVES: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(300);
const HOST_SIDE: [u8; 6] = [0xee; 6];
const MARK: &[u8] = b"is this let through?";

/// A UDP packet with the mark in it, in a frame.
fn packet(macs: ([u8; 6], [u8; 6]), source: IpAddr, destination: IpAddr) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(macs.0, macs.1);
    let builder = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => builder.ipv4(source.octets(), destination.octets(), 64),
        (IpAddr::V6(source), IpAddr::V6(destination)) => builder.ipv6(source.octets(), destination.octets(), 64),
        _ => panic!("one family"),
    };
    let mut frame = Vec::new();
    builder.udp(4000, 4001).write(&mut frame, MARK).expect("writes to memory");
    frame
}

/// Whether a packet from `source` comes out at `wire`.
fn arrives(wire: &Wire, source: IpAddr, patience: Duration) -> bool {
    let frame = wire.receive(patience, |frame| frame.ends_with(MARK) && carries(frame, source));
    frame.is_some()
}

fn carries(frame: &[u8], source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => frame.get(26..30) == Some(&source.octets()),
        IpAddr::V6(source) => frame.get(22..38) == Some(&source.octets()),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_workload_sends_from_its_own_addresses_only() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    let (a, b) = (world.lab.workload("a"), world.lab.workload("b"));
    let (from, to) = (Wire::open(&a.namespace, "eth0"), Wire::open(&b.namespace, "eth0"));
    let macs = (mac(&a.namespace, "eth0"), HOST_SIDE);
    for (own, target) in a.addresses().into_iter().zip(b.addresses()) {
        from.send(&packet(macs, own, target));
        assert!(arrives(&to, own, ARRIVES), "{own}");
    }
    for source in ["10.65.0.99", "10.65.0.11", "192.0.2.1", "127.0.0.1", "0.0.0.0", "169.254.1.1"] {
        from.send(&packet(macs, ip(source), b.v4.into()));
        assert!(!arrives(&to, ip(source), SILENCE), "{source}");
    }
    for source in ["fd00:65::99", "fd00:65::b", "2001:db8:2::1", "::1", "::", "fe80::77"] {
        from.send(&packet(macs, ip(source), b.v6.into()));
        assert!(!arrives(&to, ip(source), SILENCE), "{source}");
    }
    // They are counted.
    let status = world.status();
    assert!(status.to_string().to_lowercase().contains("spoof"), "no counter of spoofed packets: {status}");
}

#[test]
fn frames_that_no_workload_sends_are_dropped() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    let (a, b) = (world.lab.workload("a"), world.lab.workload("b"));
    let (from, to) = (Wire::open(&a.namespace, "eth0"), Wire::open(&b.namespace, "eth0"));
    let own = mac(&a.namespace, "eth0");
    let mut tagged = Vec::new();
    let builder = PacketBuilder::ethernet2(own, HOST_SIDE).single_vlan(VlanId::try_new(7).expect("in range"));
    let builder = builder.ipv4(a.v4.octets(), b.v4.octets(), 64).udp(4000, 4001);
    builder.write(&mut tagged, MARK).expect("writes to memory");
    from.send(&tagged);
    // To somebody else's MAC.
    from.send(&packet((own, [2, 0, 0, 0, 0, 9]), a.v4.into(), b.v4.into()));
    let host = Wire::open(&world.lab.host, &b.interface);
    assert!(to.receive(SILENCE, |frame| frame.ends_with(MARK)).is_none());
    // Another protocol altogether.
    let mut other = [own, own].concat();
    other[..6].copy_from_slice(&HOST_SIDE);
    other.extend_from_slice(&[0x88, 0xb5]);
    other.extend_from_slice(MARK);
    from.send(&other);
    assert!(host.receive(SILENCE, |frame| frame.ends_with(MARK)).is_none());
}

#[test]
fn a_configured_mac_is_the_only_one() {
    let mut world = World::new(&["a", "b"]);
    let own = mac(&world.lab.workload("a").namespace, "eth0");
    let text = mac_text(own);
    let documents = [
        resources::NAMESPACE.to_owned(),
        resources::workload_with(world.lab.workload("a"), &format!("  mac: \"{text}\"\n")),
        resources::workload(world.lab.workload("b")),
    ];
    world.write("workloads.yaml", &resources::documents(&documents));
    world.start();
    let (a, b) = (world.lab.workload("a"), world.lab.workload("b"));
    let (from, to) = (Wire::open(&a.namespace, "eth0"), Wire::open(&b.namespace, "eth0"));
    from.send(&packet(([2, 0, 0, 0, 0, 9], HOST_SIDE), a.v4.into(), b.v4.into()));
    assert!(!arrives(&to, a.v4.into(), SILENCE), "another MAC");
    from.send(&packet((own, HOST_SIDE), a.v4.into(), b.v4.into()));
    assert!(arrives(&to, a.v4.into(), ARRIVES), "its MAC");
}

#[test]
fn allowed_spoofed_prefixes_are_let_through() {
    let mut world = World::new(&["a", "b"]);
    let more = "  allowSpoofedSourcePrefixes: [198.51.100.0/24, \"2001:db8:99::/48\"]\n";
    let documents = [
        resources::NAMESPACE.to_owned(),
        resources::workload_with(world.lab.workload("a"), more),
        resources::workload(world.lab.workload("b")),
    ];
    world.write("workloads.yaml", &resources::documents(&documents));
    world.start();
    let (a, b) = (world.lab.workload("a"), world.lab.workload("b"));
    let (from, to) = (Wire::open(&a.namespace, "eth0"), Wire::open(&b.namespace, "eth0"));
    let macs = (mac(&a.namespace, "eth0"), HOST_SIDE);
    for (source, target, passes) in [
        (ip("198.51.100.7"), b.v4.into(), true),
        (ip("198.51.101.7"), b.v4.into(), false),
        (ip("2001:db8:99::7"), b.v6.into(), true),
        (ip("2001:db8:98::7"), b.v6.into(), false),
    ] {
        from.send(&packet(macs, source, target));
        assert_eq!(arrives(&to, source, if passes { ARRIVES } else { SILENCE }), passes, "{source}");
    }
}

#[test]
fn local_sources_do_not_come_in_from_outside() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    let b = world.lab.workload("b");
    let (from, to) = (Wire::open(&world.lab.outside, "eth0"), Wire::open(&b.namespace, "eth0"));
    let macs = (mac(&world.lab.outside, "eth0"), mac(&world.lab.host, "up0"));
    for (index, source) in [("192.0.2.2", true), ("10.65.0.10", false), ("192.0.2.1", false)].into_iter().enumerate() {
        let (source, passes) = (ip(source.0), source.1);
        from.send(&packet(macs, source, b.v4.into()));
        assert_eq!(arrives(&to, source, if passes { ARRIVES } else { SILENCE }), passes, "{index}: {source}");
    }
    for (source, passes) in [("2001:db8:2::2", true), ("fd00:65::a", false), ("2001:db8:2::1", false)] {
        from.send(&packet(macs, ip(source), b.v6.into()));
        assert_eq!(arrives(&to, ip(source), if passes { ARRIVES } else { SILENCE }), passes, "{source}");
    }
}
