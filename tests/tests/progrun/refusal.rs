//! Answers to what policy rejects, byte by byte against frames that others built.

use calico_ebpf_common::abi::{DropReason, names, settings_flags};
use etherparse::PacketBuilder;

use crate::{
    frames::{ACK, SYN, SYN_ACK, Tcp, fragment, icmpv6, tcp4, udp4, udp4_size, udp6, unreachable4},
    harness::{
        A, ALLOW, B, DENY, DROP, HOST_MAC, NEXT_MAC, OUTSIDE4, OUTSIDE6, Outcome, REDIRECT, REJECT, REJECT_RULE, STACK,
        UPLINK, World,
    },
};

fn rejecting(egress: u32, ingress: u32) -> World {
    let mut world = World::new();
    world.set_policy(A, egress, ingress);
    world
}

/// The reset for a segment between these, numbered as RFC 9293 says.
fn reset4(
    macs: [[u8; 6]; 2],
    of: ([u8; 4], u16, [u8; 4], u16),
    sequence: u32,
    acknowledgement: Option<u32>,
) -> Vec<u8> {
    let (from, from_port, to, to_port) = of;
    let step = PacketBuilder::ethernet2(macs[0], macs[1]).ipv4(to, from, 64);
    let step = step.tcp(to_port, from_port, sequence, 0).rst();
    let step = match acknowledgement {
        Some(number) => step.ack(number),
        None => step,
    };
    let mut frame = Vec::new();
    step.write(&mut frame, &[]).expect("a packet");
    frame
}

fn answered(outcome: &Outcome, expected: &[u8]) {
    assert_eq!(outcome.action, REDIRECT);
    assert_eq!(outcome.frame, expected);
}

#[test]
fn a_segment_is_answered_with_a_reset() {
    let mut world = rejecting(REJECT, ALLOW);
    // Of all kinds of segments, those as well that would be dropped before policy sees them.
    world.set_root(|root| root.settings[1].flags = settings_flags::JUDGE_INVALID);
    let ends = (A.v4, 1000, B.v4, 80);
    let macs = [HOST_MAC, A.mac];
    let send = |world: &mut World, tcp: Tcp| world.from_a(&tcp4(A.v4, 1000, B.v4, 80, tcp));
    answered(&send(&mut world, SYN), &reset4(macs, ends, 0, Some(101)));
    answered(&send(&mut world, ACK), &reset4(macs, ends, 501, None));
    answered(&send(&mut world, SYN_ACK), &reset4(macs, ends, 101, None));
    let fin = Tcp { flags: "F", sequence: u32::MAX, acknowledgement: 0 };
    answered(&send(&mut world, fin), &reset4(macs, ends, 0, Some(0)));
    assert_eq!(world.drops(DropReason::RejectedEgress), 4);
    assert_eq!(world.hits(REJECT_RULE), 4);
    for flags in ["R", "RA"] {
        let reset = Tcp { flags, sequence: 1, acknowledgement: 2 };
        let frame = tcp4(A.v4, 1000, B.v4, 80, reset);
        let outcome = world.from_a(&frame);
        assert_eq!(outcome.action, DROP, "no reset for a reset");
        assert_eq!(outcome.frame, frame);
    }
    assert!(world.conns4().is_empty(), "an answer makes no connection");
}

#[test]
fn payload_and_padding_count_as_what_they_are() {
    let mut world = rejecting(REJECT, ALLOW);
    for payload in [0, 1, 100, 1400] {
        let mut frame = Vec::new();
        let step = PacketBuilder::ethernet2(A.mac, HOST_MAC).ipv4(A.v4, B.v4, 64).tcp(1000, 80, 100, 1000).syn();
        step.write(&mut frame, &vec![1; payload]).expect("a packet");
        // Short frames are padded on the wire.
        frame.resize(frame.len().max(60), 0);
        let expected = reset4([HOST_MAC, A.mac], (A.v4, 1000, B.v4, 80), 0, Some(101 + payload as u32));
        answered(&world.from_a(&frame), &expected);
    }
    // Options of IP and of TCP are no payload.
    let mut frame = tcp4(A.v4, 1000, B.v4, 80, SYN);
    frame.splice(54..54, [2, 4, 5, 0xb4, 1, 1, 1, 0]);
    frame[46] = 7 << 4;
    frame.splice(34..34, [1, 1, 1, 0]);
    frame[14] = 0x46;
    frame[16..18].copy_from_slice(&52_u16.to_be_bytes());
    answered(&world.from_a(&frame), &reset4([HOST_MAC, A.mac], (A.v4, 1000, B.v4, 80), 0, Some(101)));
}

#[test]
fn a_reset_over_ipv6() {
    let mut world = rejecting(REJECT, ALLOW);
    let of = |from: [u8; 16], to: [u8; 16], macs: [[u8; 6]; 2]| {
        PacketBuilder::ethernet2(macs[0], macs[1]).ipv6(from, to, 64)
    };
    let (mut syn, mut expected) = (Vec::new(), Vec::new());
    of(A.v6, B.v6, [A.mac, HOST_MAC]).tcp(1000, 80, 7, 1000).syn().write(&mut syn, &[1, 2, 3]).expect("a packet");
    of(B.v6, A.v6, [HOST_MAC, A.mac]).tcp(80, 1000, 0, 0).rst().ack(11).write(&mut expected, &[]).expect("a packet");
    answered(&world.from_a(&syn), &expected);
    // Behind an extension header, too.
    syn.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    syn[20] = 60;
    let length = syn.len() as u16 - 54;
    syn[18..20].copy_from_slice(&length.to_be_bytes());
    answered(&world.from_a(&syn), &expected);
    assert!(world.conns6().is_empty());
}

/// The ICMP error for a frame, which quotes so many bytes of it.
fn prohibited4(frame: &[u8], quoted: usize) -> Vec<u8> {
    let address = |at: usize| -> [u8; 4] { frame[at..at + 4].try_into().expect("four bytes") };
    let mac = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().expect("six bytes") };
    let mut expected = Vec::new();
    let step = PacketBuilder::ethernet2(mac(0), mac(6)).ipv4(address(30), address(26), 64);
    step.icmpv4_raw(3, 13, [0; 4]).write(&mut expected, &frame[14..14 + quoted]).expect("a packet");
    // The type of service of ICMP errors, and the header's checksum with it.
    expected[15] = 0xc0;
    expected[24..26].copy_from_slice(&[0; 2]);
    let sum: u32 = expected[14..34].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    expected[24..26].copy_from_slice(&sum.to_be_bytes());
    expected
}

fn prohibited6(frame: &[u8], quoted: usize) -> Vec<u8> {
    let address = |at: usize| -> [u8; 16] { frame[at..at + 16].try_into().expect("sixteen bytes") };
    let mac = |at: usize| -> [u8; 6] { frame[at..at + 6].try_into().expect("six bytes") };
    let mut expected = Vec::new();
    let step = PacketBuilder::ethernet2(mac(0), mac(6)).ipv6(address(38), address(22), 64);
    step.icmpv6_raw(1, 1, [0; 4]).write(&mut expected, &frame[14..14 + quoted]).expect("a packet");
    expected
}

#[test]
fn a_datagram_is_answered_with_what_rfc_1812_lets_quote() {
    let mut world = rejecting(REJECT, ALLOW);
    for payload in [0, 1, 2, 3, 4, 100, 227, 228, 229, 519, 520, 521, 1400] {
        let frame = udp4_size(A.v4, 1000, B.v4, 53, 64, payload);
        let answer = world.from_a(&frame);
        answered(&answer, &prohibited4(&frame, (payload + 28).min(548)));
        assert!(answer.frame.len() <= 14 + 576);
    }
    assert_eq!(world.drops(DropReason::RejectedEgress), 13);
}

#[test]
fn a_datagram_over_ipv6_is_answered_with_what_rfc_4443_lets_quote() {
    let mut world = rejecting(REJECT, ALLOW);
    for payload in [0, 1, 2, 3, 200, 1183, 1184, 1185, 1400] {
        let mut frame = Vec::new();
        let step = PacketBuilder::ethernet2(A.mac, HOST_MAC).ipv6(A.v6, B.v6, 64).udp(1000, 53);
        let bytes: Vec<u8> = (0..payload).map(|byte| byte as u8).collect();
        step.write(&mut frame, &bytes).expect("a packet");
        let answer = world.from_a(&frame);
        answered(&answer, &prohibited6(&frame, (payload as usize + 48).min(1232)));
        assert!(answer.frame.len() <= 14 + 1280);
    }
}

#[test]
fn other_protocols_are_answered_with_errors() {
    let mut world = rejecting(REJECT, ALLOW);
    let mut echo = Vec::new();
    let step = PacketBuilder::ethernet2(A.mac, HOST_MAC).ipv4(A.v4, B.v4, 64);
    step.icmpv4_echo_request(1, 2).write(&mut echo, &[5; 56]).expect("a packet");
    let answer = world.from_a(&echo);
    answered(&answer, &prohibited4(&echo, 84));
    let echo = icmpv6(A.v6, B.v6, 64, 128, &[5; 60]);
    answered(&world.from_a(&echo), &prohibited6(&echo, 40 + 64));
    // Whatever it is.
    let mut unknown = udp4(A.v4, 1000, B.v4, 53);
    unknown[23] = 253;
    assert_eq!(world.from_a(&unknown).action, REDIRECT);
}

#[test]
fn what_nobody_may_answer() {
    let mut world = rejecting(REJECT, ALLOW);
    let silent = |world: &mut World, frame: &[u8], why: &str| {
        let outcome = world.from_a(frame);
        assert_eq!(outcome.action, DROP, "{why}");
        assert_eq!(outcome.frame, frame, "{why}");
    };
    silent(&mut world, &unreachable4(A.v4, B.v4, &udp4(B.v4, 1, A.v4, 2)), "an ICMP error");
    silent(&mut world, &icmpv6(A.v6, B.v6, 64, 1, &[0; 60]), "an ICMPv6 error");
    let mut redirect = unreachable4(A.v4, B.v4, &udp4(B.v4, 1, A.v4, 2));
    redirect[34] = 5;
    silent(&mut world, &redirect, "a redirect");
    silent(&mut world, &udp4(A.v4, 1000, [224, 0, 0, 1], 53), "multicast");
    silent(&mut world, &udp4(A.v4, 1000, [255; 4], 53), "broadcast");
    silent(&mut world, &udp6(A.v6, 1000, [0xff; 16], 53), "multicast over IPv6");
    let later = fragment(udp4(A.v4, 1000, B.v4, 53), 7, 10, false);
    silent(&mut world, &later, "a later fragment");
    let mut to_all = udp4(A.v4, 1000, B.v4, 53);
    to_all[..6].copy_from_slice(&[0xff; 6]);
    silent(&mut world, &to_all, "to a broadcast MAC");
    // What is no matter of policy stays without an answer.
    silent(&mut world, &tcp4(B.v4, 1000, A.v4, 80, SYN), "a forged source");
    // The first fragment says enough.
    let first = fragment(udp4(A.v4, 1000, B.v4, 53), 8, 0, true);
    assert_eq!(world.from_a(&first).action, REDIRECT);
}

#[test]
fn silence_is_the_default() {
    let mut world = rejecting(DENY, ALLOW);
    for frame in [tcp4(A.v4, 1000, B.v4, 80, SYN), udp4(A.v4, 1000, B.v4, 53), udp6(A.v6, 1000, B.v6, 53)] {
        let outcome = world.from_a(&frame);
        assert_eq!((outcome.action, outcome.frame), (DROP, frame));
    }
    assert_eq!(world.drops(DropReason::PolicyEgress), 3);
}

#[test]
fn every_hook_answers() {
    let mut world = World::new();
    world.set_policy(B, ALLOW, REJECT);
    // Between two workloads of the host, the receiver's ingress.
    let expected = reset4([HOST_MAC, A.mac], (A.v4, 1000, B.v4, 80), 0, Some(101));
    answered(&world.from_a(&tcp4(A.v4, 1000, B.v4, 80, SYN)), &expected);
    // From outside, back to who handed it over.
    let syn = tcp4(OUTSIDE4, 1000, B.v4, 80, SYN);
    let expected = reset4([HOST_MAC, NEXT_MAC], (OUTSIDE4, 1000, B.v4, 80), 0, Some(101));
    answered(&world.from_uplink(&syn), &expected);
    let datagram = udp6(OUTSIDE6, 1000, B.v6, 53);
    answered(&world.from_uplink(&datagram), &prohibited6(&datagram, 58));
    assert_eq!(world.drops(DropReason::RejectedIngress), 3);

    // Out of the stack, to a workload: back into the stack as if the workload had sent it.
    let mut world = rejecting(ALLOW, REJECT);
    let mut syn = tcp4(OUTSIDE4, 1000, A.v4, 80, SYN);
    syn[..12].copy_from_slice(&[A.mac, HOST_MAC].concat());
    let expected = reset4([A.mac, HOST_MAC], (OUTSIDE4, 1000, A.v4, 80), 0, Some(101));
    answered(&world.forwarded_to_a(UPLINK, &syn), &expected);
    // The host's own is not policed.
    assert_eq!(world.host_to_a(&syn).action, STACK);
    // Out of the stack, to outside, with a destination that is not what the workload asked for.
    let mut world = rejecting(REJECT, ALLOW);
    let syn = tcp4(A.v4, 1000, OUTSIDE4, 80, SYN);
    let expected = reset4([HOST_MAC, A.mac], (A.v4, 1000, OUTSIDE4, 80), 0, Some(101));
    answered(&world.to_uplink(Some(A.interface), &syn), &expected);
    assert!(world.conns4().is_empty() && world.conns6().is_empty());
}

#[test]
fn a_connection_that_is_cut_gets_its_reset() {
    let mut world = World::new();
    world.from_a(&tcp4(A.v4, 1000, B.v4, 80, SYN));
    world.from_b(&tcp4(B.v4, 80, A.v4, 1000, SYN_ACK));
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, B.v4, 80, ACK)).action, REDIRECT);
    world.set_policy(A, REJECT, ALLOW);
    let expected = reset4([HOST_MAC, A.mac], (A.v4, 1000, B.v4, 80), 501, None);
    answered(&world.from_a(&tcp4(A.v4, 1000, B.v4, 80, ACK)), &expected);
    // The other side, too.
    let data = Tcp { flags: "A", sequence: 501, acknowledgement: 101 };
    let expected = reset4([HOST_MAC, B.mac], (B.v4, 80, A.v4, 1000), 101, None);
    answered(&world.from_b(&tcp4(B.v4, 80, A.v4, 1000, data)), &expected);
    assert_eq!(world.conns4().len(), 1, "it stays, out of date, until it expires");
}

#[test]
fn answers_pass_all_programs() {
    let mut world = World::new();
    world.set_policy(A, DENY, DENY);
    let answer = tcp4(A.v4, 80, OUTSIDE4, 1000, Tcp { flags: "RA", sequence: 0, acknowledgement: 101 });
    for (program, interface) in [
        (names::PROG_FROM_WORKLOAD, A.interface),
        (names::PROG_TO_WORKLOAD, A.interface),
        (names::PROG_FROM_UPLINK, UPLINK),
        (names::PROG_TO_UPLINK, UPLINK),
    ] {
        assert_eq!(world.run_marked(program, interface, &answer).action, STACK, "{program}");
    }
    assert_eq!(world.from_a(&answer).action, DROP, "without the mark it is judged");
    assert!(world.conns4().is_empty());
}

#[test]
fn errors_are_limited_resets_are_not() {
    let mut world = rejecting(REJECT, ALLOW);
    let ifindex = world.ifindex(A.interface);
    let mut run = |frame: &[u8]| world.run_with(names::PROG_FROM_WORKLOAD, ifindex, ifindex, 0, frame).action;
    let datagram = udp4(A.v4, 1000, B.v4, 53);
    let answered = (0..2000).filter(|_| run(&datagram) == REDIRECT).count();
    assert!((100..1000).contains(&answered), "{answered} of 2000");
    let syn = tcp4(A.v4, 1000, B.v4, 80, SYN);
    assert!((0..500).all(|_| run(&syn) == REDIRECT));
    assert_eq!(world.drops(DropReason::RejectedEgress), 2500);
}
