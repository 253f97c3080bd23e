//! Policy at both ends.

use calico_ebpf_common::abi::{DropReason, conn_flags};

use crate::{
    frames::{ACK, SYN, SYN_ACK, tcp4, udp4, udp6},
    harness::{A, ALLOW, ALLOW_RULE, B, DENY, DENY_RULE, DROP, HOST_MAC, OUTSIDE4, OUTSIDE6, REDIRECT, STACK, World},
};

#[test]
fn allowed_between_workloads() {
    let mut world = World::new();
    let outcome = world.from_a(&udp4(A.v4, 1000, B.v4, 53));
    assert_eq!(outcome.action, REDIRECT);
    assert_eq!(outcome.frame[..6], B.mac);
    assert_eq!(outcome.frame[6..12], HOST_MAC);
    assert_eq!(world.hits(ALLOW_RULE), 2, "at both ends");
    let conn = world.conn4();
    assert_eq!([conn.ends[0].slot, conn.ends[1].slot], [A.slot, B.slot]);
    assert_eq!([conn.ends[0].rule, conn.ends[1].rule], [ALLOW_RULE; 2]);
    assert_eq!([conn.ends[0].incarnation, conn.ends[1].incarnation], [7; 2]);

    assert_eq!(world.from_a(&udp6(A.v6, 1000, B.v6, 53)).action, REDIRECT);
    assert_eq!(world.conns6().len(), 1);
    assert_eq!(world.from_b(&udp6(B.v6, 53, A.v6, 1000)).action, REDIRECT);
    assert_eq!(world.conns6().len(), 1);
}

#[test]
fn denied_by_either_end() {
    let mut world = World::new();
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, DROP);
    assert_eq!(world.from_a(&udp6(A.v6, 1000, B.v6, 53)).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyEgress), 2);
    world.set_policy(A, ALLOW, ALLOW);
    world.set_policy(B, ALLOW, DENY);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, DROP);
    assert_eq!(world.from_a(&udp6(A.v6, 1000, B.v6, 53)).action, DROP);
    assert_eq!(world.from_uplink(&udp4(OUTSIDE4, 1000, B.v4, 53)).action, DROP);
    assert_eq!(world.from_uplink(&udp6(OUTSIDE6, 1000, B.v6, 53)).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyIngress), 4);
    assert_eq!(world.hits(DENY_RULE), 6);
    assert!(world.conns4().is_empty() && world.conns6().is_empty());
}

#[test]
fn no_table_denies() {
    let mut world = World::new();
    world.set_policy(A, 0, ALLOW);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, DROP);
    world.set_policy(A, 63, ALLOW);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, DROP);
    world.set_policy(A, 1 << 30, ALLOW);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, DROP);
    assert_eq!(world.drops(DropReason::NoTable), 3);
}

#[test]
fn answers_follow_their_connection() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    world.set_policy(B, DENY, ALLOW);
    assert_eq!(world.from_b(&udp4(B.v4, 53, A.v4, 1000)).action, DROP, "nobody asked");
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, REDIRECT);
    assert_eq!(world.from_b(&udp4(B.v4, 53, A.v4, 1000)).action, REDIRECT);
    assert_eq!(world.from_b(&udp4(B.v4, 54, A.v4, 1000)).action, DROP, "another port");
}

#[test]
fn a_change_of_rules_cuts_or_spares_running_connections() {
    let mut world = World::new();
    let (request, answer) = (udp4(A.v4, 1000, B.v4, 53), udp4(B.v4, 53, A.v4, 1000));
    world.from_a(&request);
    // The responder's egress and the opener's ingress have no say.
    world.set_policy(B, DENY, ALLOW);
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.from_b(&answer).action, REDIRECT);
    assert_eq!(world.from_a(&request).action, REDIRECT);
    let epoch = world.conn4().ends[1].epoch;
    assert_eq!(epoch, 2, "the entry knows that it was judged again");

    world.set_policy(B, DENY, DENY);
    assert_eq!(world.from_b(&answer).action, DROP, "seen by the answer, judged as the opener");
    assert_eq!(world.drops(DropReason::PolicyIngress), 1);
    assert_eq!(world.from_a(&request).action, DROP);
    // Even where B might open a connection to A, what B sends in this one is no such connection.
    world.set_policy(B, ALLOW, DENY);
    world.set_policy(A, ALLOW, ALLOW);
    assert_eq!(world.from_b(&answer).action, DROP);
    assert_eq!(world.from_a(&request).action, DROP);
    world.set_policy(B, ALLOW, ALLOW);
    assert_eq!(world.from_a(&request).action, REDIRECT, "allowed again");
}

#[test]
fn a_generation_is_switched_by_one_word() {
    let mut world = World::new();
    let request = udp4(A.v4, 1000, B.v4, 53);
    world.from_a(&request);
    world.set_workload(A, |workload| {
        workload.policy[0].egress_table = DENY;
        workload.policy[0].egress_epoch = 2;
    });
    assert_eq!(world.from_a(&request).action, REDIRECT, "generation 1");
    world.set_root(|root| root.generation = 2);
    assert_eq!(world.from_a(&request).action, DROP, "generation 2");
}

#[test]
fn an_address_that_moves_takes_no_connection_along() {
    let mut world = World::new();
    let request = udp4(A.v4, 1000, B.v4, 53);
    world.from_a(&request);
    world.insert::<4, 24>(calico_ebpf_common::abi::names::ADDRESSES4, &A.v4, &crate::harness::owned(B.slot, 0));
    world.set_policy(A, ALLOW, ALLOW);
    assert_eq!(world.from_a(&request).action, DROP);
    assert_eq!(world.drops(DropReason::SpoofedSource), 1);
}

#[test]
fn another_owner_of_the_slot_voids_the_connection() {
    let mut world = World::new();
    world.from_a(&udp4(A.v4, 1000, B.v4, 53));
    world.set_policy(B, DENY, DENY);
    world.set_workload(A, |workload| workload.incarnation = 8);
    assert_eq!(world.from_b(&udp4(B.v4, 53, A.v4, 1000)).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyEgress), 1, "judged as a new one");
}

#[test]
fn a_running_connection_is_picked_up_at_a_takeover_only() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    world.set_policy(B, DENY, ALLOW);
    let answer = tcp4(B.v4, 80, A.v4, 1000, ACK);
    assert_eq!(world.from_b(&answer).action, DROP);
    let now = world.call(calico_ebpf_common::abi::names::PROG_CLOCK);
    world.set_root(|root| root.takeover = now);
    assert_eq!(world.from_b(&tcp4(B.v4, 80, A.v4, 1000, SYN)).action, DROP, "a new one is no running one");
    assert_eq!(world.from_b(&answer).action, REDIRECT);
    let conn = world.conn4();
    assert_eq!(conn.ends[0].slot, A.slot, "A opened it");
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, B.v4, 80, ACK)).action, REDIRECT);
    world.set_root(|root| root.takeover = now.wrapping_sub(31_000));
    assert_eq!(world.from_b(&tcp4(B.v4, 81, A.v4, 1000, ACK)).action, DROP, "too late");
}

#[test]
fn from_the_uplink() {
    let mut world = World::new();
    let outcome = world.from_uplink(&tcp4(OUTSIDE4, 1000, A.v4, 80, SYN));
    assert_eq!(outcome.action, REDIRECT);
    assert_eq!(outcome.frame[..6], A.mac);
    let conn = world.conn4();
    assert_eq!(conn.flags & conn_flags::VIA_STACK, 0);
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_a(&tcp4(A.v4, 80, OUTSIDE4, 1000, SYN_ACK)).action, REDIRECT, "answers straight out");
    assert_eq!(world.from_uplink(&udp4(OUTSIDE4, 1, [10, 65, 0, 99], 2)).action, STACK, "no workload of this host");
}
