//! Who may send what.

use calico_ebpf_common::abi::{DropReason, names, settings_flags, workload_flags};

use crate::{
    frames::{fragment, udp4, udp6},
    harness::{A, B, DROP, HOST4, OUTSIDE4, REDIRECT, STACK, UPLINK, World},
};

#[test]
fn other_source_addresses_are_dropped() {
    let mut world = World::new();
    for source in [B.v4, OUTSIDE4, HOST4, [0; 4], [127, 0, 0, 1]] {
        assert_eq!(world.from_a(&udp4(source, 1000, B.v4, 53)).action, DROP, "{source:?}");
    }
    assert_eq!(world.from_a(&udp6(B.v6, 1000, B.v6, 53)).action, DROP);
    let link_local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(world.from_a(&udp6(link_local, 1000, B.v6, 53)).action, DROP);
    assert_eq!(world.drops(DropReason::SpoofedSource), 7);
    assert!(world.conns4().is_empty() && world.conns6().is_empty());
}

#[test]
fn the_connection_of_another_cannot_be_used() {
    let mut world = World::new();
    let frame = udp4(A.v4, 1000, B.v4, 53);
    assert_eq!(world.from_a(&frame).action, REDIRECT);
    assert_eq!(world.from_b(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::SpoofedSource), 1);
    assert_eq!(world.conns4().len(), 1, "and it is still there");
}

#[test]
fn allowed_prefixes() {
    let mut world = World::new();
    let frame = udp4([10, 99, 1, 1], 1000, B.v4, 53);
    world.allow_spoofing4(A, 16, [10, 99, 0, 0]);
    assert_eq!(world.from_a(&frame).action, DROP, "without the flag");
    world.set_workload(A, |workload| workload.flags |= workload_flags::SPOOF);
    assert_eq!(world.from_a(&frame).action, REDIRECT);
    assert_eq!(world.from_a(&frame).action, REDIRECT, "and again, by its connection");
    assert_eq!(world.from_a(&udp4([10, 98, 1, 1], 1000, B.v4, 53)).action, DROP);
    assert_eq!(world.from_b(&frame).action, DROP, "another's prefixes");
}

#[test]
fn source_mac_addresses() {
    let mut world = World::new();
    let mut frame = udp4(A.v4, 1000, B.v4, 53);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
    assert_eq!(world.from_a(&frame).action, REDIRECT, "none is configured");
    world.set_workload(A, |workload| {
        workload.flags |= workload_flags::MAC_CHECK;
        workload.mac = A.mac;
    });
    assert_eq!(world.from_a(&frame).action, DROP, "with a connection");
    frame[34..36].copy_from_slice(&7_u16.to_be_bytes());
    assert_eq!(world.from_a(&frame).action, DROP, "without one");
    assert_eq!(world.drops(DropReason::SpoofedMac), 2);
}

#[test]
fn a_mac_address_is_learned() {
    let mut world = World::new();
    world.set_workload(A, |workload| workload.mac = [0; 6]);
    assert_eq!(world.from_b(&udp4(B.v4, 1000, A.v4, 53)).action, STACK, "the kernel finds it out");
    world.from_a(&udp4(A.v4, 1000, OUTSIDE4, 53));
    let outcome = world.from_b(&udp4(B.v4, 1000, A.v4, 53));
    assert_eq!(outcome.action, REDIRECT);
    assert_eq!(outcome.frame[..6], A.mac);
    // And another one, when it comes with another.
    let mut frame = udp4(A.v4, 1001, OUTSIDE4, 53);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 0x77]);
    world.from_a(&frame);
    assert_eq!(world.from_b(&udp4(B.v4, 1001, A.v4, 53)).frame[..6], [2, 0, 0, 0, 0, 0x77]);
}

#[test]
fn other_frames() {
    let mut world = World::new();
    let mut frame = udp4(A.v4, 1000, B.v4, 53);
    frame[..6].copy_from_slice(&[2, 2, 2, 2, 2, 2]);
    assert_eq!(world.from_a(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::ForeignMac), 1);
    let mut frame = udp4(A.v4, 1000, B.v4, 53);
    frame[12..14].copy_from_slice(&[0x88, 0x47]);
    assert_eq!(world.from_a(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::EtherType), 1);
    let mut frame = udp4(A.v4, 1000, B.v4, 53);
    frame[14] = 0x44;
    assert_eq!(world.from_a(&frame).action, DROP);
    let mut frame = udp4(A.v4, 1000, B.v4, 53);
    frame[16] = 0xff;
    assert_eq!(world.from_a(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::Malformed), 2);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 4789)).action, DROP);
    assert_eq!(world.drops(DropReason::Encapsulated), 1);
}

#[test]
fn an_interface_without_a_workload_drops() {
    let mut world = World::new();
    let frame = udp4(A.v4, 1000, B.v4, 53);
    assert_eq!(world.run(names::PROG_DROP, A.interface, None, &frame).action, DROP);
    assert_eq!(world.run(names::PROG_FROM_WORKLOAD, UPLINK, Some(UPLINK), &frame).action, DROP);
    world.set_workload(A, |workload| workload.flags &= !workload_flags::ACTIVE);
    assert_eq!(world.from_a(&frame).action, DROP, "before its policy is in the maps");
    assert_eq!(world.drops(DropReason::NoWorkload), 3);
}

#[test]
fn from_the_uplink_nobody_is_local() {
    let mut world = World::new();
    for (source, destination) in [(B.v4, A.v4), (HOST4, A.v4), (A.v4, HOST4), (HOST4, HOST4)] {
        assert_eq!(world.from_uplink(&udp4(source, 1000, destination, 53)).action, DROP, "{source:?}");
    }
    assert_eq!(world.drops(DropReason::SpoofedLocal), 4);
    // Nor by a connection of theirs.
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, REDIRECT);
    assert_eq!(world.from_uplink(&udp4(A.v4, 1000, B.v4, 53)).action, DROP);
    assert_eq!(world.host_to_a(&udp4(HOST4, 1000, A.v4, 53)).action, STACK);
    assert_eq!(world.from_uplink(&udp4(HOST4, 1000, A.v4, 53)).action, DROP);
    assert_eq!(world.drops(DropReason::SpoofedLocal), 6);
}

#[test]
fn whom_nobody_can_answer_nobody_hears() {
    let mut world = World::new();
    // Whatever the routes say.
    world.set_root(|root| root.settings.iter_mut().for_each(|settings| settings.flags = 0));
    for source in [[0; 4], [224, 1, 1, 1], [255; 4]] {
        assert_eq!(world.from_uplink(&udp4(source, 1000, A.v4, 53)).action, DROP, "{source:?}");
    }
    let mut many = [0; 16];
    (many[0], many[1], many[15]) = (0xff, 2, 1);
    for source in [[0; 16], many] {
        assert_eq!(world.from_uplink(&udp6(source, 1000, A.v6, 53)).action, DROP, "{source:?}");
    }
    assert_eq!(world.drops(DropReason::ReversePath), 5);
    assert_eq!(world.from_uplink(&udp4(OUTSIDE4, 1000, A.v4, 53)).action, REDIRECT);
}

#[test]
fn there_must_be_a_way_back() {
    let mut world = World::new();
    // Nobody's network, one behind the uplink, one behind another interface; of both families.
    let (lost4, behind4, other4) = ([203, 0, 113, 7], [198, 51, 100, 7], [198, 18, 0, 7]);
    let of6 = |net: u8| [0x20, 1, 0x0d, 0xb8, 0, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
    let (lost6, behind6, other6) = (of6(0x66), of6(2), of6(0x18));
    world.ip(&format!("route add 198.18.0.0/16 dev {}", B.interface));
    world.ip(&format!("-6 route add 2001:db8:18::/48 dev {}", B.interface));
    let expect = |world: &mut World, flags: u32, port: u16, expected: [bool; 3]| {
        world.set_root(|root| root.settings[1].flags = flags);
        let before = world.drops(DropReason::ReversePath);
        let v4 = [lost4, behind4, other4].map(|s| world.from_uplink(&udp4(s, port, A.v4, 53)).action == REDIRECT);
        let v6 = [lost6, behind6, other6].map(|s| world.from_uplink(&udp6(s, port, A.v6, 53)).action == REDIRECT);
        assert_eq!((v4, v6), (expected, expected), "flags {flags}");
        let dropped = expected.iter().filter(|passes| !**passes).count() as u64;
        assert_eq!(world.drops(DropReason::ReversePath) - before, 2 * dropped, "flags {flags}");
    };
    expect(&mut world, 0, 1000, [true, true, true]);
    // Connections that are known are not asked again.
    expect(&mut world, settings_flags::BACK_STRICT, 1000, [true, true, true]);
    expect(&mut world, settings_flags::BACK_LOOSE, 1001, [false, true, true]);
    expect(&mut world, settings_flags::BACK_STRICT, 1002, [false, true, false]);
    // A blackhole is no way.
    world.ip("route add blackhole 203.0.113.0/24");
    world.ip("-6 route add blackhole 2001:db8:66::/48");
    expect(&mut world, settings_flags::BACK_LOOSE, 1003, [false, true, true]);
    // A default route is one, for all.
    world.ip("route del blackhole 203.0.113.0/24");
    world.ip("-6 route del blackhole 2001:db8:66::/48");
    world.ip("route add default via 192.0.2.2");
    world.ip("-6 route add default via 2001:db8:2::2");
    expect(&mut world, settings_flags::BACK_LOOSE, 1004, [true, true, true]);
    expect(&mut world, settings_flags::BACK_STRICT, 1005, [true, true, false]);
    // What is for the host is the stack's.
    assert_eq!(world.from_uplink(&udp4(other4, 1, HOST4, 53)).action, STACK);
    // The first part of a packet in parts, too.
    let before = world.drops(DropReason::ReversePath);
    assert_eq!(world.from_uplink(&fragment(udp4(other4, 1006, A.v4, 53), 7, 0, true)).action, DROP);
    assert_eq!(world.drops(DropReason::ReversePath) - before, 1);
}
