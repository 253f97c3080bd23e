//! What a workload may not send to by the address that it sends to, where the host translates destinations.

use calico_ebpf_common::abi::{
    DropReason, Event, MARK_LEFT, MARK_REPLY, MARK_TRANSLATED, NO_SLOT, OpenerKind, PRIORITY_DENIED, PRIORITY_REJECTED,
    conn_flags, names,
};

use crate::{
    frames::{ACK, SYN, SYN_ACK, Tcp, icmp4, tcp4, udp4, unreachable4},
    harness::{A, ALLOW, B, BEHIND_DNAT, DENY, DROP, HOST4, OUTSIDE4, REDIRECT, REJECT, STACK, UPLINK, World},
};

const RST: Tcp = Tcp { flags: "R", sequence: 101, acknowledgement: 0 };
/// What a table of ours writes on what was left to the stack, and translated.
const LEFT: u32 = MARK_LEFT | MARK_TRANSLATED;
const SERVICE: [u8; 4] = [10, 96, 0, 1];

/// A world where `a` may send to nobody by the address that it sends to, and the host translates.
fn world() -> World {
    let mut world = World::new();
    world.set_translates_for(A);
    world.set_policy(A, DENY, DENY);
    world
}

#[test]
fn what_is_denied_may_still_be_translated() {
    let mut world = world();
    let outcome = world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, SYN));
    assert_eq!((outcome.action, outcome.priority), (STACK, PRIORITY_DENIED));
    assert_eq!((world.drops(DropReason::PolicyEgress), world.events(Event::LeftToTranslation)), (1, 1));
    assert!(world.conns4().is_empty(), "of what is denied there is no entry");
    // Also what belongs to a connection by the translated addresses alone, and what is for the host.
    for frame in [
        tcp4(A.v4, 1000, SERVICE, 80, RST),
        unreachable4(A.v4, SERVICE, &tcp4(SERVICE, 80, A.v4, 1000, ACK)),
        tcp4(A.v4, 1000, HOST4, 80, SYN),
    ] {
        assert_eq!(world.from_a(&frame).priority, PRIORITY_DENIED);
    }
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, B.v4, 80, SYN)).action, DROP, "nobody translates workloads");
    assert_eq!(world.from_a(&tcp4(B.v4, 1000, SERVICE, 80, SYN)).action, DROP, "nor what is forged");
    world.set_policy(A, ALLOW, ALLOW);
    assert_eq!(
        world.from_a(&tcp4(A.v4, 1000, HOST4, 80, SYN)).priority,
        PRIORITY_DENIED,
        "defaultEndpointToHostAction"
    );
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, SYN)).priority, 0);
    world.set_policy(A, REJECT, ALLOW);
    assert_eq!(world.from_a(&tcp4(A.v4, 1001, SERVICE, 80, SYN)).priority, PRIORITY_REJECTED);
}

/// A connection of `a` to the service whose name policy has come to deny.
fn connected() -> World {
    let mut world = world();
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, SYN)).priority, 0);
    assert_eq!(world.answer(0, SYN_ACK), STACK);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, ACK)).priority, 0);
    world.set_policy(A, DENY, DENY);
    assert_eq!(world.answer(MARK_REPLY, ACK), STACK);
    assert_eq!(world.conn4().opener, OpenerKind::Translated as u8);
    world
}

impl World {
    /// What becomes of an answer of the service.
    fn answer(&mut self, mark: u32, tcp: Tcp) -> i32 {
        self.leave(A.interface, UPLINK, mark, &tcp4(SERVICE, 80, A.v4, 1000, tcp)).action
    }
}

#[test]
fn a_connection_by_a_name_is_judged_elsewhere() {
    let mut world = connected();
    let conn = world.conn4();
    assert_eq!([conn.ends[0].slot, conn.ends[1].slot], [A.slot, NO_SLOT]);
    assert_ne!(conn.flags & conn_flags::ASSURED, 0, "it keeps what it has shown");
    let dropped = world.drops(DropReason::PolicyEgress);
    // The stack is asked each time, but nobody judges.
    for _ in 0..2 {
        let outcome = world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, ACK));
        assert_eq!((outcome.action, outcome.priority), (STACK, PRIORITY_DENIED));
        assert_eq!(world.answer(MARK_REPLY, ACK), STACK);
        assert_eq!(world.drops(DropReason::PolicyEgress), dropped);
        world.set_policy(A, DENY, DENY);
    }
    let error = unreachable4(A.v4, SERVICE, &tcp4(SERVICE, 80, A.v4, 1000, ACK));
    let outcome = world.from_a(&error);
    assert_eq!((outcome.action, outcome.priority), (STACK, PRIORITY_DENIED), "nor errors about it");
    // The answers are those that the stack gave that address.
    assert_eq!(world.answer(0, ACK), DROP);
    let error = unreachable4(SERVICE, A.v4, &tcp4(A.v4, 1000, SERVICE, 80, ACK));
    assert_eq!(world.leave(A.interface, UPLINK, 0, &error).action, DROP);
    assert_eq!(world.leave(A.interface, UPLINK, MARK_REPLY, &error).action, STACK);
    // It does not leave by its name, nor is it another's.
    assert_eq!(world.leave(UPLINK, A.interface, 0, &tcp4(A.v4, 1000, SERVICE, 80, ACK)).action, DROP);
    assert_eq!(world.from_b(&tcp4(A.v4, 1000, SERVICE, 80, ACK)).action, DROP);
    // Where its name is allowed, it is a connection like any other.
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, ACK)).priority, 0);
    assert_eq!(world.answer(0, ACK), STACK);
}

#[test]
fn policy_before_dnat_is_about_the_name() {
    let mut world = connected();
    world.set_policy(A, BEHIND_DNAT, DENY);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, ACK)).action, DROP);
    assert_eq!(world.answer(MARK_REPLY, ACK), DROP);
}

#[test]
fn nothing_is_learned_from_another_packet() {
    let mut world = world();
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, SYN)).priority, PRIORITY_DENIED);
    let translated = tcp4(A.v4, 1000, B.v4, 8080, SYN);
    assert_eq!(world.leave(B.interface, A.interface, LEFT, &translated).action, DROP);
    assert!(world.conns4().is_empty(), "what policy denies there is denied");
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.leave(B.interface, A.interface, LEFT, &translated).action, STACK);
    assert_eq!(world.conns4().len(), 1);
    world.set_policy(A, DENY, DENY);
    assert_eq!(world.answer(MARK_REPLY, SYN_ACK), DROP, "whatever the stack says");
}

#[test]
fn an_address_of_the_hosts_is_one_connections_and_then_anothers() {
    let mut world = world();
    world.set_policy(A, ALLOW, DENY);
    let syn = |port| tcp4(HOST4, port, B.v4, 80, SYN);
    assert_eq!(world.leave(B.interface, A.interface, MARK_TRANSLATED, &syn(1000)).action, STACK);
    assert_eq!(world.leave(B.interface, A.interface, MARK_TRANSLATED, &syn(1001)).action, STACK);
    // The host's own, and what another one's policy denies.
    assert_eq!(world.run(names::PROG_TO_WORKLOAD, B.interface, None, &syn(1000)).action, STACK);
    let by_host = world.conns4().iter().filter(|(_, conn)| conn.opener == OpenerKind::Host as u8).count();
    assert_eq!(by_host, 1);
    world.set_translates_for(B);
    world.set_policy(B, DENY, ALLOW);
    assert_eq!(world.leave(UPLINK, B.interface, MARK_TRANSLATED, &syn(1001)).action, DROP);
}

#[test]
fn what_is_not_known_to_be_translated_is_limited() {
    let mut world = world();
    let left = (0..300).filter(|port| world.from_a(&udp4(A.v4, 1000 + port, SERVICE, 53)).action == STACK).count();
    assert!((100..200).contains(&left), "{left}");
    assert_eq!(world.from_a(&udp4(A.v4, 999, SERVICE, 53)).action, DROP);
}

#[test]
fn what_makes_no_connection_is_judged_where_it_leaves() {
    let mut world = world();
    let error = unreachable4(A.v4, OUTSIDE4, &udp4(OUTSIDE4, 53, A.v4, 1000));
    assert_eq!(world.leave(UPLINK, A.interface, LEFT, &error).action, DROP);
    assert_eq!(world.drops(DropReason::IcmpUnrelated), 1);
    assert_eq!(world.leave(UPLINK, A.interface, 0, &error).action, STACK, "it was judged where it came in");
    let timestamp = icmp4(A.v4, OUTSIDE4, 13, 0);
    assert_eq!(world.leave(UPLINK, A.interface, LEFT, &timestamp).action, DROP);
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.leave(UPLINK, A.interface, LEFT, &timestamp).action, STACK);
    assert_eq!(world.leave(UPLINK, A.interface, LEFT, &tcp4(A.v4, 1000, OUTSIDE4, 80, RST)).action, STACK);
}

#[test]
fn a_connection_whose_name_is_denied_later_goes_on() {
    let mut world = world();
    world.set_policy(A, ALLOW, DENY);
    let request = udp4(A.v4, 1000, SERVICE, 53);
    let answer = udp4(SERVICE, 53, A.v4, 1000);
    assert_eq!(world.from_a(&request).priority, 0);
    assert_eq!(world.leave(A.interface, UPLINK, MARK_REPLY, &answer).action, STACK);
    assert_eq!(world.conn4().opener, OpenerKind::Workload as u8);
    world.set_policy(A, DENY, DENY);
    assert_eq!(world.leave(A.interface, UPLINK, 0, &answer).action, DROP);
    assert_eq!(world.leave(A.interface, UPLINK, MARK_REPLY, &answer).action, STACK);
    assert_eq!(world.conn4().opener, OpenerKind::Translated as u8);
    assert_eq!(world.from_a(&request).priority, PRIORITY_DENIED);
}

#[test]
fn what_is_masqueraded_is_its_workloads_still() {
    let mut world = world();
    let syn = tcp4(HOST4, 1000, B.v4, 80, SYN);
    assert_eq!(world.leave(B.interface, A.interface, MARK_TRANSLATED, &syn).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyEgress), 1);
    let outside = tcp4(HOST4, 1000, OUTSIDE4, 80, SYN);
    assert_eq!(world.leave(UPLINK, A.interface, MARK_TRANSLATED, &outside).action, DROP);
    assert_eq!(world.leave(UPLINK, A.interface, 0, &outside).action, STACK, "it was judged where it came in");
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.leave(B.interface, A.interface, MARK_TRANSLATED, &syn).action, STACK);
    let conn = world.conn4();
    assert_eq!([conn.ends[0].slot, conn.ends[1].slot], [A.slot, B.slot]);
    assert_ne!(conn.flags & conn_flags::BEHIND_DNAT, 0);
    // Judged again from the other side.
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.from_b(&tcp4(B.v4, 80, HOST4, 1000, SYN_ACK)).action, STACK);
    assert_eq!(world.conns4().len(), 1);
    world.set_policy(A, DENY, DENY);
    assert_eq!(world.from_b(&tcp4(B.v4, 80, HOST4, 1000, ACK)).action, DROP);
}

#[test]
fn where_nobody_translates_nothing_is_left() {
    let mut world = World::new();
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, SERVICE, 80, SYN)).action, DROP);
    assert_eq!(world.events(Event::LeftToTranslation), 0);
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.leave(A.interface, UPLINK, MARK_REPLY, &tcp4(SERVICE, 80, A.v4, 1000, SYN_ACK)).action, DROP);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, B.v4, 80, SYN)).action, REDIRECT);
}
