//! What an uplink receives before anything else: untracked policy and questions of the link, by the XDP program and by the
//! TC program alone. Both have to come to the same.

use calico_ebpf_common::abi::{DropReason, judged, names};
use etherparse::ArpOperation;

use crate::{
    frames::{SYN, arp, fragment, icmpv6, solicitation, tcp4, udp4, udp4_size, udp6},
    harness::{
        A, ALLOW, ALLOW_RULE, DENY, DENY_RULE, DROP, HOST_MAC, HOST4, LEAVE, LEAVE_RULE, NEXT_MAC, OUTSIDE4, OUTSIDE6,
        REDIRECT, REJECT, STACK, UPLINK, World, lacks_frags,
    },
};

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;

/// The host's own, by IPv6.
const HOST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];

/// What became of a frame in the XDP program.
#[derive(Debug, PartialEq, Eq)]
enum Arrived {
    Dropped,
    /// With the word that it leaves in front, where it leaves one.
    Passed(Option<u32>),
    Answered(Vec<u8>),
}

fn arrive(world: &mut World, frame: &[u8]) -> Arrived {
    let outcome = world.arrive(frame);
    match outcome.action {
        XDP_DROP => Arrived::Dropped,
        XDP_TX => Arrived::Answered(outcome.frame),
        XDP_PASS => {
            let word = outcome.frame.len().checked_sub(frame.len()).filter(|more| *more == 4);
            let (word, rest) = outcome.frame.split_at(word.unwrap_or(0));
            assert_eq!(rest, frame, "what passes is as it came");
            let word = word.try_into().ok().map(u32::from_ne_bytes);
            // It says by which interface, too.
            Arrived::Passed(word.map(|word| judged::on(world.ifindex(UPLINK), word)))
        }
        other => panic!("XDP action {other}"),
    }
}

/// Before 5.18 a test run does not show what is in front of a frame.
fn passed(word: u32) -> Arrived {
    Arrived::Passed((!lacks_frags()).then_some(word))
}

/// IPv6 with extension headers, each of eight bytes, before UDP.
fn extended(headers: &[u8]) -> Vec<u8> {
    let mut frame = udp6(OUTSIDE6, 1000, HOST6, 53);
    let mut next = 17;
    for header in headers.iter().rev() {
        frame.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]);
        next = *header;
    }
    frame[20] = next;
    let length = (frame.len() - 54) as u16;
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame
}

#[test]
fn without_untracked_policy_nothing_is_judged() {
    let mut world = World::new();
    let frame = udp4(OUTSIDE4, 1000, HOST4, 53);
    assert_eq!(arrive(&mut world, &frame), Arrived::Passed(None));
    assert_eq!(world.from_uplink(&frame).action, STACK);
    assert_eq!(world.to_uplink(None, &udp4(HOST4, 53, OUTSIDE4, 1000)).action, STACK);
    assert_eq!([ALLOW_RULE, DENY_RULE, LEAVE_RULE].map(|rule| world.hits(rule)), [0; 3]);
}

#[test]
fn both_programs_judge_alike() {
    let mut world = World::new();
    let frames = [
        udp4(OUTSIDE4, 1000, HOST4, 53),
        tcp4(OUTSIDE4, 1000, HOST4, 80, SYN),
        udp4(OUTSIDE4, 1000, A.v4, 53),
        udp6(OUTSIDE6, 1000, HOST6, 53),
        icmpv6(OUTSIDE6, HOST6, 64, 128, &[0; 8]),
        extended(&[0, 60, 60]),
        fragment(udp4(OUTSIDE4, 1000, HOST4, 53), 7, 0, true),
    ];
    for frame in &frames {
        for (table, rule, expected) in [
            (ALLOW, ALLOW_RULE, passed(judged::ALLOWED)),
            (LEAVE, LEAVE_RULE, passed(judged::LEFT)),
            (DENY, DENY_RULE, Arrived::Dropped),
            // Nobody is told, whatever it says elsewhere.
            (REJECT, crate::harness::REJECT_RULE, Arrived::Dropped),
        ] {
            world.set_untracked(table, 0);
            let (hits, drops) = (world.hits(rule), world.drops(DropReason::UntrackedIngress));
            let is_dropped = expected == Arrived::Dropped;
            assert_eq!(arrive(&mut world, frame), expected, "table {table}, {frame:02x?}");
            let action = world.from_uplink(frame).action;
            assert_eq!(action == DROP, is_dropped, "table {table}, action {action}, {frame:02x?}");
            // A workload's own policy may count, too.
            assert!(world.hits(rule) >= hits + 2);
            let dropped = world.drops(DropReason::UntrackedIngress) - drops;
            assert_eq!(dropped, if is_dropped { 2 } else { 0 });
        }
    }
}

#[test]
fn broadcasts_are_judged_too() {
    let mut world = World::new();
    world.set_untracked(DENY, 0);
    let mut frame = udp4(OUTSIDE4, 68, [255; 4], 67);
    frame[..6].copy_from_slice(&BROADCAST);
    assert_eq!(arrive(&mut world, &frame), Arrived::Dropped);
    assert_eq!(world.from_uplink(&frame).action, DROP);
}

#[test]
fn neighbours_are_never_shut_out() {
    let mut world = World::new();
    world.set_untracked(DENY, DENY);
    let from = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
    for kind in 133..=137 {
        let frame = icmpv6(from, HOST6, 255, kind, &[0; 20]);
        assert_eq!(arrive(&mut world, &frame), passed(judged::LEFT), "type {kind}");
        assert_ne!(world.from_uplink(&frame).action, DROP, "type {kind}");
        assert_eq!(world.to_uplink(None, &icmpv6(HOST6, from, 255, kind, &[0; 20])).action, STACK, "type {kind}");
    }
    let passed_on = icmpv6(OUTSIDE6, HOST6, 64, 135, &[0; 20]);
    assert_eq!(arrive(&mut world, &passed_on), Arrived::Dropped, "a router has passed it on: it is none");
    let arp = arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, HOST4);
    assert_eq!(arrive(&mut world, &arp), Arrived::Passed(None));
    assert_eq!(world.from_uplink(&arp).action, STACK);
}

#[test]
fn later_fragments_follow_the_first() {
    let mut world = World::new();
    world.set_untracked(DENY, 0);
    let later = fragment(udp4_size(OUTSIDE4, 1000, HOST4, 53, 64, 64), 7, 9, false);
    assert_eq!(arrive(&mut world, &later), passed(judged::LEFT));
    assert_eq!(world.from_uplink(&later).action, STACK);
}

#[test]
fn what_cannot_be_read_is_dropped_by_the_program_that_sees_all_of_it() {
    let mut world = World::new();
    let mut short_header = udp4(OUTSIDE4, 1000, HOST4, 53);
    short_header[14] = 0x44;
    let cut = udp4(OUTSIDE4, 1000, HOST4, 53)[..36].to_vec();
    let mut too_long = udp4(OUTSIDE4, 1000, HOST4, 53);
    too_long[16] = 0xff;
    let deep = extended(&[60; 7]);
    for frame in [&short_header, &cut, &too_long, &deep] {
        world.set_untracked(0, 0);
        assert_eq!(world.from_uplink(frame).action, STACK, "nobody asked");
        world.set_untracked(ALLOW, 0);
        assert_eq!(world.from_uplink(frame).action, DROP, "{frame:02x?}");
    }
    for frame in [&short_header, &cut, &deep] {
        assert_eq!(arrive(&mut world, frame), Arrived::Passed(None), "{frame:02x?}");
    }
    assert_eq!(world.drops(DropReason::Malformed), 3);
    assert_eq!(world.drops(DropReason::Headers), 1);
    // Of a frame in several buffers the XDP program knows the first: that one is denied by its headers.
    world.set_untracked(DENY, 0);
    assert_eq!(arrive(&mut world, &too_long), Arrived::Dropped);
}

#[test]
fn frames_in_several_buffers_are_judged() {
    if lacks_frags() {
        return;
    }
    let mut world = World::new();
    for size in [100, 5_000, 8_900] {
        let frame = udp4_size(OUTSIDE4, 1000, HOST4, 53, 64, size);
        world.set_untracked(ALLOW, 0);
        assert_eq!(world.arrive(&frame).action, XDP_PASS);
        world.set_untracked(DENY, 0);
        assert_eq!(world.arrive(&frame).action, XDP_DROP, "{size} bytes");
    }
    assert_eq!((world.hits(ALLOW_RULE), world.hits(DENY_RULE)), (3, 3));
    assert_eq!(
        world.arrive_at(names::PROG_XDP_LINEAR, &udp4(OUTSIDE4, 1000, HOST4, 53)).action,
        XDP_DROP,
        "the other program"
    );
}

#[test]
fn what_the_host_itself_sends_is_judged_where_it_leaves() {
    let mut world = World::new();
    let frame = udp4(HOST4, 53, OUTSIDE4, 1000);
    let of_a = udp4(A.v4, 53, OUTSIDE4, 1000);
    world.set_untracked(DENY, ALLOW);
    assert_eq!(world.to_uplink(None, &frame).action, STACK);
    assert_eq!(world.hits(ALLOW_RULE), 1);
    world.set_untracked(ALLOW, DENY);
    assert_eq!(world.to_uplink(None, &frame).action, DROP);
    assert_eq!(world.to_uplink(None, &udp6(HOST6, 53, OUTSIDE6, 1000)).action, DROP);
    assert_eq!(world.drops(DropReason::UntrackedEgress), 2);
    let forwarded = world.to_uplink(Some(A.interface), &of_a).action;
    assert_eq!((forwarded, world.drops(DropReason::UntrackedEgress)), (STACK, 2), "forwarded for a workload");
}

fn wide([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[test]
fn who_asks_for_a_workload_gets_the_uplinks_address() {
    let mut world = World::new();
    world.answer_for(wide(A.v4), true);
    let mut unicast = arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, A.v4);
    unicast[..6].copy_from_slice(&HOST_MAC);
    for question in [arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, A.v4), unicast] {
        let mut expected = arp(ArpOperation::REPLY, HOST_MAC, A.v4, OUTSIDE4);
        expected[..6].copy_from_slice(&NEXT_MAC);
        expected[32..38].copy_from_slice(&NEXT_MAC);
        match arrive(&mut world, &question) {
            Arrived::Answered(frame) => assert_eq!(frame[..42], expected[..42]),
            other => panic!("{other:?}"),
        }
        let outcome = world.from_uplink(&question);
        assert_eq!((outcome.action, &outcome.frame[..42]), (REDIRECT, &expected[..42]));
    }
}

#[test]
fn where_xdp_cannot_answer_the_other_program_does() {
    let mut world = World::new();
    world.answer_for(wide(A.v4), false);
    let question = arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, A.v4);
    assert_eq!(arrive(&mut world, &question), Arrived::Passed(None));
    assert_eq!(world.from_uplink(&question).action, REDIRECT);
}

#[test]
fn probes_and_questions_for_others_are_not_answered() {
    let mut world = World::new();
    world.answer_for(wide(A.v4), true);
    let mut elsewhere = arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, A.v4);
    elsewhere[..6].copy_from_slice(&[2, 0, 0, 0, 7, 7]);
    let mut forged = arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, A.v4);
    forged[22..28].copy_from_slice(&[2, 0, 0, 0, 7, 7]);
    for (what, frame) in [
        ("a probe", arp(ArpOperation::REQUEST, NEXT_MAC, [0; 4], A.v4)),
        ("an announcement", arp(ArpOperation::REQUEST, NEXT_MAC, A.v4, A.v4)),
        ("the host", arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, HOST4)),
        ("another workload", arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, crate::harness::B.v4)),
        ("a stranger", arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, [192, 0, 2, 77])),
        ("an answer", arp(ArpOperation::REPLY, NEXT_MAC, OUTSIDE4, A.v4)),
        ("a question to another host", elsewhere),
        ("a question in another's name", forged),
        ("half of one", arp(ArpOperation::REQUEST, NEXT_MAC, OUTSIDE4, A.v4)[..30].to_vec()),
    ] {
        assert_eq!(arrive(&mut world, &frame), Arrived::Passed(None), "{what}");
        assert_eq!(world.from_uplink(&frame).action, STACK, "{what}");
    }
}

#[test]
fn solicitations_for_a_workload_are_answered() {
    let mut world = World::new();
    world.answer_for(A.v6, true);
    let mut question = solicitation(OUTSIDE6, A.v6);
    question[6..12].copy_from_slice(&NEXT_MAC);
    let mut to_us = question.clone();
    to_us[..6].copy_from_slice(&HOST_MAC);
    for question in [question, to_us] {
        let body = [&[0xe0, 0, 0, 0][..], &A.v6, &[2, 1], &HOST_MAC].concat();
        let mut expected = icmpv6(A.v6, OUTSIDE6, 255, 136, &body);
        expected[..6].copy_from_slice(&NEXT_MAC);
        expected[6..12].copy_from_slice(&HOST_MAC);
        assert_eq!(arrive(&mut world, &question), Arrived::Answered(expected.clone()));
        let outcome = world.from_uplink(&question);
        assert_eq!((outcome.action, outcome.frame), (REDIRECT, expected));
    }
}

#[test]
fn duplicate_address_detection_is_left_to_the_link() {
    let mut world = World::new();
    world.answer_for(A.v6, true);
    let set = |mut frame: Vec<u8>| {
        frame[6..12].copy_from_slice(&NEXT_MAC);
        frame
    };
    let mut routed = set(solicitation(OUTSIDE6, A.v6));
    routed[21] = 64;
    for (what, frame) in [
        ("a probe", set(solicitation([0; 16], A.v6))),
        ("its own", set(solicitation(A.v6, A.v6))),
        ("another workload", set(solicitation(OUTSIDE6, crate::harness::B.v6))),
        ("from beyond a router", routed),
        ("half of one", set(solicitation(OUTSIDE6, A.v6))[..70].to_vec()),
    ] {
        assert_eq!(world.arrive(&frame).action, XDP_PASS, "{what}");
        assert_ne!(world.from_uplink(&frame).action, REDIRECT, "{what}");
    }
}
