//! Who may send what.

use calico_ebpf_common::abi::{DropReason, names, workload_flags};

use crate::{
    frames::{udp4, udp6},
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
