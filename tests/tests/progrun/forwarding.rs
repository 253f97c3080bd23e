//! The ways out.

use calico_ebpf_common::abi::{DropReason, MARK_UNTRANSLATED, PASSED, names, workload_flags};

use crate::{
    frames::{fragment, udp4, udp4_size, udp4_ttl, udp6, unreachable4},
    harness::{A, ALLOW, B, DENY, DROP, HOST4, OUTSIDE4, OUTSIDE6, REDIRECT, STACK, UPLINK, World},
};

#[test]
fn ttl_and_checksum() {
    let mut world = World::new();
    for ttl in [2, 64, 255] {
        let outcome = world.from_a(&udp4_ttl(A.v4, 1000, B.v4, 53, ttl));
        assert_eq!(outcome.action, REDIRECT);
        // Built with that TTL from the start: the checksum must be the same.
        let expected = udp4_ttl(A.v4, 1000, B.v4, 53, ttl - 1);
        assert_eq!(outcome.frame[14..], expected[14..], "TTL {ttl}");
    }
    for ttl in [0, 1] {
        let frame = udp4_ttl(A.v4, 1000, B.v4, 53, ttl);
        let outcome = world.from_a(&frame);
        assert_eq!(outcome.action, STACK, "TTL {ttl}");
        assert_eq!(outcome.frame, frame, "the kernel answers with what the sender sent");
    }
    let outcome = world.from_a(&udp6(A.v6, 1000, B.v6, 53));
    assert_eq!(outcome.frame[21], 63);
}

#[test]
fn too_big_for_the_workload() {
    let mut world = World::new();
    world.set_workload(B, |workload| workload.mtu = 1000);
    let of = |bytes: usize| udp4_size(A.v4, 1000, B.v4, 53, 64, bytes - 28);
    assert_eq!(world.from_a(&of(1000)).action, REDIRECT);
    assert_eq!(world.from_a(&of(1001)).action, STACK);
    // A super-packet counts by its segments.
    let ifindex = world.ifindex(A.interface);
    let run =
        |world: &mut World, size| world.run_with(names::PROG_FROM_WORKLOAD, ifindex, ifindex, size, &of(3000)).action;
    assert_eq!(run(&mut world, 972), REDIRECT);
    assert_eq!(run(&mut world, 973), STACK);
}

#[test]
fn by_the_uplink() {
    let mut world = World::new();
    for (first, second) in [
        (udp4(A.v4, 1000, OUTSIDE4, 53), udp4_ttl(A.v4, 1000, OUTSIDE4, 53, 63)),
        (udp4(A.v4, 1000, [198, 51, 100, 7], 53), udp4_ttl(A.v4, 1000, [198, 51, 100, 7], 53, 63)),
    ] {
        assert_eq!(world.from_a(&first).action, STACK);
        world.to_uplink(Some(A.interface), &first);
        let outcome = world.from_a(&first);
        assert_eq!(outcome.action, REDIRECT);
        assert_eq!(outcome.frame[14..], second[14..]);
    }
    let frame = udp6(A.v6, 1000, OUTSIDE6, 53);
    assert_eq!(world.from_a(&frame).action, STACK);
    world.to_uplink(Some(A.interface), &frame);
    let outcome = world.from_a(&frame);
    assert_eq!(outcome.action, REDIRECT);
    assert_eq!(outcome.frame[21], 63);
    let of = |bytes: usize| udp4_size(A.v4, 1000, OUTSIDE4, 53, 64, bytes - 28);
    assert_eq!(world.from_a(&of(1500)).action, REDIRECT);
    assert_eq!(world.from_a(&of(1501)).action, STACK, "too big for the uplink");
    world.set_root(|root| root.uplinks = [0; 8]);
    assert_eq!(world.from_a(&of(100)).action, STACK, "no uplink of ours");
}

#[test]
fn an_interface_that_is_gone() {
    let mut world = World::new();
    world.set_workload(B, |workload| workload.ifindex = 0);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, B.v4, 53)).action, DROP);
    world.set_workload(B, |workload| workload.flags = 0);
    assert_eq!(world.from_a(&udp4(A.v4, 1001, B.v4, 53)).action, DROP);
    assert_eq!(world.drops(DropReason::NoInterface), 2);
}

#[test]
fn without_a_peer_by_the_interface_itself() {
    let mut world = World::new();
    world.set_workload(B, |workload| workload.flags &= !workload_flags::PEER);
    let outcome = world.from_a(&udp4(A.v4, 1000, B.v4, 53));
    assert_eq!(outcome.action, REDIRECT);
    assert_eq!(outcome.frame[..6], B.mac);
}

/// Where it leaves nobody looks at it once more; of others nobody believes that it need not.
#[test]
fn what_goes_past_the_stack_is_looked_at_once() {
    let mut world = World::new();
    world.set_workload(B, |workload| workload.flags &= !workload_flags::PEER);
    let out = udp4(A.v4, 1000, OUTSIDE4, 53);
    assert_eq!(world.from_a(&out).action, STACK);
    world.to_uplink(Some(A.interface), &out);
    let inside = udp4(A.v4, 1000, B.v4, 53);
    for (frame, interface) in [(out, UPLINK), (inside, B.interface)] {
        let sent = world.from_a(&frame);
        assert_eq!((sent.action, &sent.control[..3]), (REDIRECT, &PASSED[..]), "to {interface}");
        // By now whoever looked would drop it.
        world.set_policy(A, DENY, DENY);
        world.set_policy(B, DENY, DENY);
        let left = world.pass(interface, Some(A.interface), sent.control, &sent.frame);
        assert_eq!(left.action, STACK, "by {interface}");
        assert_ne!(left.control[..3], PASSED, "by {interface}");
        assert_eq!(world.pass(interface, Some(A.interface), left.control, &sent.frame).action, DROP, "by {interface}");
        world.set_policy(A, ALLOW, ALLOW);
        world.set_policy(B, ALLOW, ALLOW);
    }
    // What the host itself sends nobody has judged: a process may set any mark.
    world.set_host_endpoint([DENY, DENY], None);
    let own = udp4(HOST4, 1, OUTSIDE4, 2);
    for control in [[0; 5], [PASSED[0], PASSED[1], PASSED[2], 0, 0]] {
        assert_eq!(world.pass(UPLINK, None, control, &own).action, DROP);
    }
}

/// What the stack forwards from a workload came in by that workload's interface.
#[test]
fn what_comes_in_elsewhere_is_no_workloads() {
    let mut world = World::new();
    let (inside, out) = (udp4(A.v4, 1000, B.v4, 53), udp4(A.v4, 1000, OUTSIDE4, 53));
    for round in ["unknown", "known"] {
        for (interface, frame) in [(B.interface, &inside), (UPLINK, &out)] {
            assert_eq!(world.leave(interface, B.interface, 0, frame).action, DROP, "{round}, by {interface}");
            assert_eq!(world.leave(interface, A.interface, 0, frame).action, STACK, "{round}, by {interface}");
        }
    }
    assert_eq!(world.drops(DropReason::SpoofedLocal), 4);
}

/// Which way the stack takes by the mark, it takes for all packets of a connection.
#[test]
fn what_rules_of_the_host_mark_takes_the_stack() {
    let mut world = World::new();
    for (mark, then) in [(0x64, STACK), (MARK_UNTRANSLATED, REDIRECT)] {
        let frame = udp4(A.v4, 1000 + u16::from(mark == 0x64), OUTSIDE4, 53);
        assert_eq!(world.from_a(&frame).action, STACK);
        assert_eq!(world.leave(UPLINK, A.interface, mark, &frame).action, STACK);
        assert_eq!(world.from_a(&frame).action, then, "{mark:#x}");
    }
}

#[test]
fn later_fragments_follow_the_first() {
    let mut world = World::new();
    let frame = udp4_size(A.v4, 1000, B.v4, 53, 64, 64);
    assert_eq!(world.from_a(&fragment(frame.clone(), 5, 9, false)).action, DROP, "nothing to follow");
    assert_eq!(world.drops(DropReason::Fragment), 1);
    assert_eq!(world.from_a(&fragment(frame.clone(), 5, 0, true)).action, STACK);
    assert_eq!(world.from_a(&fragment(frame.clone(), 5, 9, false)).action, STACK);
    assert_eq!(world.from_a(&fragment(frame.clone(), 6, 9, false)).action, DROP, "of another packet");
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_a(&fragment(frame.clone(), 7, 0, true)).action, DROP);
    assert_eq!(world.from_a(&fragment(frame, 7, 9, false)).action, DROP);
}

#[test]
fn icmp_errors_belong_to_what_they_quote() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    world.set_policy(B, DENY, DENY);
    let request = udp4(A.v4, 1000, OUTSIDE4, 53);
    let error = unreachable4(OUTSIDE4, A.v4, &request);
    assert_eq!(world.from_uplink(&error).action, DROP, "there is no such connection");
    world.from_a(&request);
    world.to_uplink(Some(A.interface), &request);
    assert_eq!(world.from_uplink(&error).action, REDIRECT);
    let router = [192, 0, 2, 77];
    assert_eq!(world.from_uplink(&unreachable4(router, A.v4, &request)).action, REDIRECT, "from on the way");
    assert_eq!(world.forwarded_to_a("up0", &error).action, STACK);
    // A workload may speak for its own connections only.
    assert_eq!(world.from_b(&unreachable4(B.v4, A.v4, &request)).action, DROP);
    world.set_policy(B, DENY, ALLOW);
    let local = udp4(A.v4, 1000, B.v4, 53);
    world.from_a(&local);
    assert_eq!(world.from_b(&unreachable4(B.v4, A.v4, &local)).action, REDIRECT);
}
