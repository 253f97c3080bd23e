//! ARP and neighbour discovery.

use calico_ebpf_common::abi::DropReason;
use etherparse::ArpOperation;

use crate::{
    frames::{arp, icmpv6, solicitation},
    harness::{A, B, DROP, HOST_MAC, REDIRECT, STACK, World},
};

const GATEWAY4: [u8; 4] = [169, 254, 1, 1];
const GATEWAY6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0xec, 0xee, 0xee, 0xff, 0xfe, 0xee, 0xee, 0xee];
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa];

#[test]
fn arp_requests_are_answered_for_whatever_address() {
    let mut world = World::new();
    for target in [GATEWAY4, B.v4, [8, 8, 8, 8]] {
        let outcome = world.from_a(&arp(ArpOperation::REQUEST, A.mac, A.v4, target));
        assert_eq!(outcome.action, REDIRECT);
        let mut expected = arp(ArpOperation::REPLY, HOST_MAC, target, A.v4);
        expected[..6].copy_from_slice(&A.mac);
        expected[32..38].copy_from_slice(&A.mac);
        assert_eq!(outcome.frame[..42], expected[..42], "for {target:?}");
    }
}

#[test]
fn probes_and_own_addresses_are_not_answered() {
    let mut world = World::new();
    for (sender, target) in [([0; 4], A.v4), ([0; 4], GATEWAY4), (A.v4, A.v4)] {
        assert_eq!(world.from_a(&arp(ArpOperation::REQUEST, A.mac, sender, target)).action, DROP);
    }
    assert_eq!(world.drops(DropReason::Arp), 0, "nothing wrong with them");
}

#[test]
fn arp_senders_are_checked() {
    let mut world = World::new();
    assert_eq!(world.from_a(&arp(ArpOperation::REQUEST, A.mac, B.v4, GATEWAY4)).action, DROP);
    assert_eq!(world.from_a(&arp(ArpOperation::REPLY, A.mac, B.v4, GATEWAY4)).action, DROP);
    let mut other_mac = arp(ArpOperation::REQUEST, A.mac, A.v4, GATEWAY4);
    other_mac[22..28].copy_from_slice(&B.mac);
    assert_eq!(world.from_a(&other_mac).action, DROP);
    assert_eq!(world.drops(DropReason::Arp), 3);
    assert_eq!(world.from_a(&arp(ArpOperation::REPLY, A.mac, A.v4, GATEWAY4)).action, STACK, "the host asked");
}

#[test]
fn solicitations_are_answered() {
    let mut world = World::new();
    for (sender, target) in [(A.v6, GATEWAY6), (A.v6, B.v6), (LINK_LOCAL, GATEWAY6)] {
        let outcome = world.from_a(&solicitation(sender, target));
        assert_eq!(outcome.action, REDIRECT);
        assert_eq!(outcome.frame.len(), 86);
        assert_eq!(outcome.frame[..6], A.mac);
        assert_eq!(outcome.frame[6..12], HOST_MAC);
        let body = [&[0xe0, 0, 0, 0][..], &target, &[2, 1], &HOST_MAC].concat();
        // The checksum by another's hand.
        let mut expected = icmpv6(target, sender, 255, 136, &body);
        expected[..6].copy_from_slice(&A.mac);
        expected[6..12].copy_from_slice(&HOST_MAC);
        assert_eq!(outcome.frame, expected);
    }
}

#[test]
fn duplicate_address_detection_is_not_answered() {
    let mut world = World::new();
    for (sender, target) in [([0; 16], A.v6), ([0; 16], LINK_LOCAL), (A.v6, A.v6), (LINK_LOCAL, LINK_LOCAL)] {
        assert_eq!(world.from_a(&solicitation(sender, target)).action, DROP);
    }
    assert_eq!(world.drops(DropReason::Nd), 0, "nothing wrong with them");
}

#[test]
fn solicitations_of_others_are_dropped() {
    let mut world = World::new();
    let mut frame = solicitation(B.v6, GATEWAY6);
    frame[6..12].copy_from_slice(&A.mac);
    assert_eq!(world.from_a(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::Nd), 1);
}

#[test]
fn routers_among_workloads_are_not_listened_to() {
    let mut world = World::new();
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(world.from_a(&icmpv6(LINK_LOCAL, all_nodes, 255, 134, &[0; 12])).action, DROP);
    assert_eq!(world.from_a(&icmpv6(LINK_LOCAL, all_nodes, 255, 137, &[0; 36])).action, DROP);
    assert_eq!(world.drops(DropReason::Nd), 2);
    let all_routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    assert_eq!(world.from_a(&icmpv6(LINK_LOCAL, all_routers, 255, 133, &[0; 4])).action, STACK);
}

#[test]
fn multicast_listeners_report_to_the_host() {
    let mut world = World::new();
    let routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
    for sender in [LINK_LOCAL, [0; 16], A.v6] {
        let report = icmpv6(sender, routers, 1, 143, &[0; 24]);
        assert_eq!(world.from_a(&report).action, STACK, "from {sender:?}");
        // As they are sent: behind a hop-by-hop header with the router alert (RFC 3810, section 5).
        let mut alert = report.clone();
        alert.splice(54..54, [58, 0, 5, 2, 0, 0, 1, 0]);
        alert[18..21].copy_from_slice(&[0, report.len() as u8 - 54 + 8, 0]);
        assert_eq!(world.from_a(&alert).action, STACK, "from {sender:?}");
    }
    assert_eq!(world.from_a(&icmpv6(B.v6, routers, 1, 143, &[0; 24])).action, DROP, "another's address");
}
