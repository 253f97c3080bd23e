//! Workloads and their own host.

use calico_ebpf_common::abi::{DropReason, OpenerKind, host_action};

use crate::{
    frames::{ACK, SYN, SYN_ACK, tcp4, udp4, udp6},
    harness::{A, ALLOW, DENY, DROP, HOST4, STACK, World},
};

fn set_host_action(world: &mut World, action: u32) {
    world.set_root(|root| {
        for settings in &mut root.settings {
            settings.host_action = action;
        }
    });
}

#[test]
fn to_the_host_egress_policy_then_the_action() {
    let mut world = World::new();
    let frame = udp4(A.v4, 1000, HOST4, 53);
    assert_eq!(world.from_a(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::EndpointToHost), 1);
    for to in [[127, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
        assert_eq!(world.from_a(&udp4(A.v4, 1000, to, 53)).action, DROP, "{to:?}");
    }
    assert!(world.conns4().is_empty());
    for action in [host_action::ACCEPT, host_action::RETURN] {
        set_host_action(&mut world, action);
        assert_eq!(world.from_a(&frame).action, STACK);
        assert_eq!(world.from_a(&udp4(A.v4, 1000, [255; 4], 67)).action, STACK);
    }
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_a(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyEgress), 1);
}

#[test]
fn the_action_changes_for_running_connections_too() {
    let mut world = World::new();
    let frame = udp4(A.v4, 1000, HOST4, 53);
    set_host_action(&mut world, host_action::ACCEPT);
    assert_eq!(world.from_a(&frame).action, STACK);
    set_host_action(&mut world, host_action::DROP);
    assert_eq!(world.from_a(&frame).action, DROP);
}

#[test]
fn the_host_is_allowed_and_so_are_the_answers() {
    let mut world = World::new();
    world.set_policy(A, DENY, DENY);
    assert_eq!(world.host_to_a(&tcp4(HOST4, 1000, A.v4, 80, SYN)).action, STACK);
    assert_eq!(world.conn4().opener, OpenerKind::Host as u8);
    assert_eq!(world.from_a(&tcp4(A.v4, 80, HOST4, 1000, SYN_ACK)).action, STACK);
    assert_eq!(world.from_a(&tcp4(A.v4, 81, HOST4, 1000, SYN_ACK)).action, DROP, "another port");
    world.set_policy(A, DENY, DENY);
    assert_eq!(world.host_to_a(&tcp4(HOST4, 1000, A.v4, 80, ACK)).action, STACK, "whatever the rules become");
    assert_eq!(world.from_a(&tcp4(A.v4, 80, HOST4, 1000, ACK)).action, STACK);
}

#[test]
fn what_policy_cut_the_host_does_not_mend() {
    let mut world = World::new();
    set_host_action(&mut world, host_action::ACCEPT);
    world.from_a(&tcp4(A.v4, 1000, HOST4, 22, SYN));
    world.host_to_a(&tcp4(HOST4, 22, A.v4, 1000, SYN_ACK));
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, HOST4, 22, ACK)).action, STACK);
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.host_to_a(&tcp4(HOST4, 22, A.v4, 1000, ACK)).action, STACK);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, HOST4, 22, ACK)).action, DROP);
    assert_eq!(world.host_to_a(&tcp4(HOST4, 22, A.v4, 1000, ACK)).action, STACK, "what was under way");
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, HOST4, 22, ACK)).action, DROP);
}

#[test]
fn multicasts_are_judged_and_then_for_the_host() {
    let mut world = World::new();
    let (mdns4, mdns6) = ([224, 0, 0, 251], [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb]);
    // IGMP has the router alert.
    let mut igmp = udp4(A.v4, 0, [224, 0, 0, 22], 0);
    igmp.splice(34..34, [148, 4, 0, 0]);
    (igmp[14], igmp[17], igmp[23]) = (0x46, igmp[17] + 4, 2);
    for frame in [udp4(A.v4, 5353, mdns4, 5353), udp6(A.v6, 5353, mdns6, 5353), igmp.clone()] {
        assert_eq!(world.from_a(&frame).action, DROP);
    }
    assert_eq!(world.drops(DropReason::EndpointToHost), 3);
    set_host_action(&mut world, host_action::ACCEPT);
    for frame in [udp4(A.v4, 5353, mdns4, 5353), udp6(A.v6, 5353, mdns6, 5353), igmp.clone()] {
        assert_eq!(world.from_a(&frame).action, STACK);
    }
    assert!(world.conns4().is_empty() && world.conns6().is_empty(), "nobody answers from there");
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_a(&igmp).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyEgress), 1);
    // DHCP comes from no address, or from one of the link.
    world.set_policy(A, ALLOW, ALLOW);
    assert_eq!(world.from_a(&udp4([0; 4], 68, [255; 4], 67)).action, DROP);
    let (own, servers) =
        ([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa], [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]);
    assert_eq!(world.from_a(&udp6(own, 546, servers, 547)).action, DROP);
    assert_eq!(world.drops(DropReason::SpoofedSource), 2);
}
