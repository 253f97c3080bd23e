//! Every shape of packet: what is whole passes where policy allows it, what is not is dropped with the right reason.

use calico_ebpf_common::abi::{
    DROP_REASONS, DropReason, EVENTS, Event, NO_SLOT, names, settings_flags, tcp_state, workload_flags,
};
use etherparse::{
    Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader,
    PacketBuilder,
};

use crate::{
    frames::{ACK, SYN, SYN_ACK, Tcp, fragment, icmpv6, tcp4, udp4, udp4_size, udp6, unreachable4},
    harness::{A, ALLOW, B, DENY, DROP, HOST_MAC, OUTSIDE4, OUTSIDE6, REDIRECT, STACK, UPLINK, World, owned},
};

/// A packet of any protocol from workload A.
fn ip4(to: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let header = Ipv4Header::new(payload.len() as u16, 64, IpNumber(protocol), A.v4, to).expect("a header");
    let mut frame = Vec::new();
    let step = PacketBuilder::ethernet2(A.mac, HOST_MAC).ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
    step.write(&mut frame, IpNumber(protocol), payload).expect("a packet");
    frame
}

/// The same over IPv6, `chain` of extension headers (each its kind) in front.
fn ip6(to: [u8; 16], chain: &[u8], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = payload.to_vec();
    let mut next = IpNumber(protocol);
    for kind in chain.iter().rev() {
        let header = Ipv6RawExtHeader::new_raw(next, &[4, 0, 0, 0, 0, 0]).expect("a header");
        body.splice(0..0, header.to_bytes());
        next = IpNumber(*kind);
    }
    frame6(to, next, &body)
}

fn frame6(to: [u8; 16], next_header: IpNumber, body: &[u8]) -> Vec<u8> {
    let header = Ipv6Header {
        payload_length: body.len() as u16,
        next_header,
        hop_limit: 64,
        source: A.v6,
        destination: to,
        ..Ipv6Header::default()
    };
    let mut frame = udp6(A.v6, 1, to, 1)[..14].to_vec();
    frame.extend_from_slice(&header.to_bytes());
    frame.extend_from_slice(body);
    frame
}

/// A fragment of a packet over IPv6; `offset` in units of eight bytes.
fn fragment6(protocol: u8, id: u32, offset: u16, more: bool, payload: &[u8]) -> Vec<u8> {
    let offset = IpFragOffset::try_new(offset).expect("an offset");
    let mut body = Ipv6FragmentHeader::new(IpNumber(protocol), offset, more, id).to_bytes().to_vec();
    body.extend_from_slice(payload);
    frame6(B.v6, IpNumber::IPV6_FRAGMENTATION_HEADER, &body)
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    udp4(A.v4, from, B.v4, to)[34..].to_vec()
}

#[test]
fn protocols_of_any_number_are_tracked_by_their_addresses() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    world.set_policy(B, DENY, ALLOW);
    // ESP, AH, GRE, OSPF, IGMP, mobility, "no next header", an experiment.
    for protocol in [50, 51, 47, 89, 2, 135, 59, 253] {
        let back = |mut frame: Vec<u8>| {
            frame[6..12].copy_from_slice(&B.mac);
            frame[26..30].copy_from_slice(&B.v4);
            frame[30..34].copy_from_slice(&A.v4);
            frame
        };
        let frame = ip4(B.v4, protocol, &[0; 16]);
        assert_eq!(world.from_b(&back(frame.clone())).action, DROP, "{protocol}: nobody asked");
        assert_eq!(world.from_a(&frame).action, REDIRECT, "{protocol}");
        assert_eq!(world.from_b(&back(frame)).action, REDIRECT, "{protocol}: the answer");
        if protocol != 51 {
            assert_eq!(world.from_a(&ip6(B.v6, &[], protocol, &[0; 16])).action, REDIRECT, "{protocol} over IPv6");
        }
    }
    assert_eq!((world.conns4().len(), world.conns6().len()), (8, 7));
    assert_eq!(world.from_a(&ip4(B.v4, 50, &[])).action, REDIRECT, "nothing in it");
}

#[test]
fn sctp_and_udplite_have_ports() {
    let mut world = World::new();
    world.set_policy(B, DENY, ALLOW);
    for protocol in [132, 136] {
        let of = |from: u16, to: u16| [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 12]].concat();
        assert_eq!(world.from_a(&ip4(B.v4, protocol, &of(1000, 53))).action, REDIRECT);
        assert_eq!(world.from_a(&ip6(B.v6, &[], protocol, &of(1000, 53))).action, REDIRECT);
        let mut answer = ip4(B.v4, protocol, &of(53, 1000));
        answer[6..12].copy_from_slice(&B.mac);
        answer[26..30].copy_from_slice(&B.v4);
        answer[30..34].copy_from_slice(&A.v4);
        assert_eq!(world.from_b(&answer).action, REDIRECT, "{protocol}");
        answer[34..36].copy_from_slice(&54_u16.to_be_bytes());
        assert_eq!(world.from_b(&answer).action, DROP, "{protocol}: another port");
    }
    assert_eq!(world.from_a(&ip4(B.v4, 132, &[0; 11])).action, DROP, "SCTP has twelve bytes at least");
    assert_eq!(world.drops(DropReason::Malformed), 1);
}

#[test]
fn ip_options_take_the_stack() {
    let mut world = World::new();
    let mut header = Ipv4Header::new(18, 64, IpNumber::UDP, A.v4, B.v4).expect("a header");
    header.options = Ipv4Options::try_from(&[148, 4, 0, 0][..]).expect("router alert");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(A.mac, HOST_MAC)
        .ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        .udp(1000, 53)
        .write(&mut frame, &[7; 10])
        .expect("a packet");
    let outcome = world.from_a(&frame);
    assert_eq!((outcome.action, &outcome.frame), (STACK, &frame));
    assert_eq!(world.from_a(&frame).action, STACK, "by its connection");
    assert_eq!(world.conn4().ends[1].slot, B.slot);
    world.set_policy(B, ALLOW, DENY);
    assert_eq!(world.from_a(&frame).action, DROP, "where the ports are is known");
    assert_eq!(world.drops(DropReason::PolicyIngress), 1);
}

#[test]
fn extension_headers_are_walked_to_a_depth() {
    let mut world = World::new();
    for chain in [&[0][..], &[60], &[0, 60, 43, 60], &[0, 60, 60, 60, 60, 60]] {
        assert_eq!(world.from_a(&ip6(B.v6, chain, 17, &udp(1000, 53))).action, STACK, "{chain:?}");
    }
    assert_eq!(world.conns6().len(), 1, "all of one connection");
    assert_eq!(world.from_a(&ip6(B.v6, &[60; 7], 17, &udp(1000, 53))).action, DROP);
    assert_eq!(world.drops(DropReason::Headers), 1);
    // A routing header with segments left leads elsewhere.
    let mut routed = ip6(B.v6, &[43], 17, &udp(1000, 53));
    routed[54 + 3] = 1;
    assert_eq!(world.from_a(&routed).action, DROP);
    assert_eq!(world.drops(DropReason::Headers), 2);
    let mut cut = ip6(B.v6, &[60], 17, &udp(1000, 53));
    cut[54 + 1] = 200;
    assert_eq!(world.from_a(&cut).action, DROP, "longer than the packet");
    assert_eq!(world.drops(DropReason::Malformed), 1);
}

#[test]
fn what_is_behind_a_packet_is_not_the_packet() {
    let mut world = World::new();
    // Ethernet pads short frames: these claim fewer bytes than a port needs, and have them in the padding.
    for (protocol, length) in [(17, 7), (6, 19), (1, 4), (132, 11), (136, 2)] {
        let mut payload = udp(1000, 53);
        payload.resize(26, 0x50);
        let mut frame = ip4(B.v4, protocol, &payload);
        frame[16..18].copy_from_slice(&(20 + length as u16).to_be_bytes());
        assert_eq!(world.from_a(&frame).action, DROP, "{protocol}");
        let mut frame = ip6(B.v6, &[], if protocol == 1 { 58 } else { protocol }, &payload);
        frame[18..20].copy_from_slice(&(length as u16).to_be_bytes());
        assert_eq!(world.from_a(&frame).action, DROP, "{protocol} over IPv6");
    }
    assert_eq!(world.drops(DropReason::Malformed), 10);
    // The TCP header longer than the segment, shorter than itself; the packet longer than the frame.
    let whole = tcp4(A.v4, 1000, B.v4, 80, SYN);
    for (at, value) in [(46, 0xf0), (46, 0x40), (17, 0xff), (14, 0x44), (14, 0x55)] {
        let mut frame = whole.clone();
        frame[at] = value;
        assert_eq!(world.from_a(&frame).action, DROP, "byte {at} is {value:#x}");
    }
    // A test run takes no frame without a whole IP header.
    for length in 34..whole.len() {
        assert_eq!(world.from_a(&whole[..length]).action, DROP, "{length} bytes");
    }
    assert_eq!(world.drops(DropReason::Malformed), 15 + whole.len() as u64 - 34);
    assert!(world.conns4().is_empty() && world.conns6().is_empty());
    // Padding itself does no harm.
    let mut padded = udp4_size(A.v4, 1000, B.v4, 53, 64, 1);
    padded.resize(60, 0);
    assert_eq!(world.from_a(&padded).action, REDIRECT);
}

#[test]
fn tiny_and_overlapping_fragments_are_dropped() {
    let mut world = World::new();
    let segment = tcp4(A.v4, 1000, B.v4, 80, SYN);
    let cut = |bytes: usize| {
        let mut frame = segment[..34 + bytes].to_vec();
        frame[16..18].copy_from_slice(&(20 + bytes as u16).to_be_bytes());
        frame
    };
    for (frame, what) in [
        (fragment(cut(8), 1, 0, true), "only the ports"),
        (fragment(cut(16), 1, 0, true), "not all of the header"),
        (fragment(cut(16), 1, 1, true), "over the flags"),
        (fragment(cut(16), 1, 2, false), "over the checksum"),
        (fragment(cut(0), 1, 5, false), "empty"),
    ] {
        assert_eq!(world.from_a(&frame).action, DROP, "{what}");
    }
    assert_eq!(world.drops(DropReason::Fragment), 5);
    let tcp = &segment[34..];
    for (frame, what) in [
        (fragment6(6, 1, 0, true, &tcp[..16]), "not all of the header"),
        (fragment6(6, 1, 2, true, tcp), "over the header"),
        (fragment6(60, 1, 0, true, &[17, 0, 1, 4, 0, 0, 0, 0]), "the chain of headers goes on in the next one"),
    ] {
        assert_eq!(world.from_a(&frame).action, DROP, "{what}");
    }
    assert_eq!(world.drops(DropReason::Fragment), 8);
    assert!(world.conns4().is_empty() && world.conns6().is_empty());
}

#[test]
fn fragments_over_ipv6_follow_the_first() {
    let mut world = World::new();
    let payload = udp(1000, 53);
    assert_eq!(world.from_a(&fragment6(17, 5, 3, false, &payload)).action, DROP, "nothing to follow");
    assert_eq!(world.from_a(&fragment6(17, 5, 0, true, &payload)).action, STACK);
    assert_eq!(world.from_a(&fragment6(17, 5, 3, false, &payload)).action, STACK);
    assert_eq!(world.from_a(&fragment6(17, 6, 3, false, &payload)).action, DROP, "of another packet");
    assert_eq!(world.from_a(&fragment6(17, 7, 0, false, &payload)).action, STACK, "whole: no fragment at all");
    // On its way to the workload that is to get them.
    assert_eq!(world.conns6().len(), 1);
}

#[test]
fn the_stack_holds_fragments_back() {
    let mut world = World::new();
    world.set_root(|root| root.reassembles = 1);
    let frame = udp4_size(A.v4, 1000, OUTSIDE4, 53, 64, 64);
    let (first, second) = (fragment(frame.clone(), 5, 0, true), fragment(frame, 5, 9, false));
    assert_eq!(world.from_a(&second).action, STACK, "before the first");
    assert_eq!(world.from_a(&first).action, STACK);
    // It cuts them again where they leave: in order.
    assert_eq!(world.to_uplink(Some(A.interface), &second).action, DROP, "not without the first");
    assert_eq!(world.to_uplink(Some(A.interface), &first).action, STACK);
    assert_eq!(world.to_uplink(Some(A.interface), &second).action, STACK);
    assert_eq!(world.drops(DropReason::Fragment), 1);
    assert_eq!(world.from_b(&second).action, DROP, "another's address");
    assert_eq!(world.drops(DropReason::SpoofedSource), 1);
}

#[test]
fn every_reason_and_event_is_documented() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/packets.md")).expect("the page");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: Vec<&str> = rows.map(|(name, _)| name).collect();
    let reasons = DROP_REASONS.iter().map(|(_, name)| *name);
    let events = EVENTS.iter().map(|(_, name)| *name);
    assert_eq!(documented, reasons.chain(events).collect::<Vec<_>>());
}

#[test]
fn tcp_that_opens_nothing_is_invalid() {
    let mut world = World::new();
    let of = |flags| tcp4(A.v4, 1000, B.v4, 80, Tcp { flags, sequence: 7, acknowledgement: 9 });
    for flags in ["R", "RA", "SA", "FA", "F", "", "SF"] {
        assert_eq!(world.from_a(&of(flags)).action, DROP, "{flags}");
    }
    assert_eq!(world.drops(DropReason::TcpInvalid), 7);
    let from_outside = tcp4(OUTSIDE4, 1000, A.v4, 80, SYN_ACK);
    assert_eq!(world.from_uplink(&from_outside).action, DROP);
    assert_eq!(world.forwarded_to_a(UPLINK, &from_outside).action, DROP);
    assert_eq!(world.drops(DropReason::TcpInvalid), 9);
    assert!(world.conns4().is_empty());
    world.set_root(|root| root.settings[1].flags = settings_flags::JUDGE_INVALID);
    assert_eq!(world.from_a(&of("RA")).action, REDIRECT, "the check is disabled");
    world.set_policy(B, ALLOW, DENY);
    let other = tcp4(A.v4, 1001, B.v4, 80, SYN_ACK);
    assert_eq!(world.from_a(&other).action, DROP, "policy judges it");
    assert_eq!(world.drops(DropReason::PolicyIngress), 1);
}

#[test]
fn a_stray_segment_is_judged_and_its_reset_passes() {
    let mut world = World::new();
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, A.v4, 80, ACK)).action, REDIRECT);
    assert_eq!(world.events(Event::Midstream), 1);
    assert_eq!(world.conn4().tcp, tcp_state::MIDSTREAM);
    let reset = tcp4(A.v4, 80, OUTSIDE4, 1000, Tcp { flags: "R", sequence: 501, acknowledgement: 0 });
    assert_eq!(world.from_a(&reset).action, REDIRECT, "the answer of who knows nothing of it");
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, A.v4, 80, ACK)).action, REDIRECT);
    assert_eq!(world.events(Event::Midstream), 1, "one connection");
    world.set_policy(A, DENY, DENY);
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1001, A.v4, 80, ACK)).action, DROP);
    assert_eq!(world.events(Event::Midstream), 2, "denied, and counted");
}

#[test]
fn after_a_takeover_segments_are_of_either_orientation() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    let now = world.call(names::PROG_CLOCK);
    world.set_root(|root| root.takeover = now.max(1));
    // What B sends to A in a connection that A opened.
    world.set_policy(B, DENY, ALLOW);
    assert_eq!(world.from_b(&tcp4(B.v4, 80, A.v4, 1000, ACK)).action, REDIRECT);
    assert_eq!(world.from_b(&tcp4(B.v4, 81, A.v4, 1000, SYN_ACK)).action, REDIRECT, "the connection was being opened");
    assert_eq!(world.from_b(&tcp4(B.v4, 82, A.v4, 1000, SYN)).action, DROP, "that is new");
    world.set_root(|root| root.takeover = now.wrapping_sub(31_000));
    assert_eq!(world.from_b(&tcp4(B.v4, 83, A.v4, 1000, ACK)).action, DROP, "half a minute later");
}

#[test]
fn after_a_workload_came_segments_of_its_connections_are_of_either_orientation() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    world.set_policy(B, DENY, ALLOW);
    let now = world.call(names::PROG_CLOCK);
    let outside = |port| tcp4(OUTSIDE4, port, A.v4, 1000, ACK);
    assert_eq!(world.from_uplink(&outside(80)).action, DROP, "it did not come from elsewhere");
    world.set_workload(A, |workload| workload.flags |= workload_flags::ARRIVING);
    assert_eq!(world.from_uplink(&outside(80)).action, REDIRECT, "before its first packet");
    assert_eq!(world.from_b(&tcp4(B.v4, 80, A.v4, 1000, ACK)).action, REDIRECT, "of a neighbour that it talks to");
    world.set_workload(A, |workload| {
        workload.flags &= !workload_flags::ARRIVING;
        workload.takeover = now.max(1);
    });
    assert_eq!(world.from_uplink(&outside(81)).action, REDIRECT);
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 82, A.v4, 1000, SYN)).action, DROP, "that is new");
    assert_eq!(
        world.from_uplink(&tcp4(OUTSIDE4, 83, B.v4, 1000, SYN_ACK)).action,
        DROP,
        "B has been here all the time"
    );
    world.set_workload(A, |workload| workload.takeover = now.wrapping_sub(31_000));
    assert_eq!(world.from_uplink(&outside(84)).action, DROP, "half a minute later");
}

/// A connects to B, whose address is elsewhere afterwards.
fn connect_to_b_that_goes(world: &mut World) {
    for (frame, from_a) in [
        (tcp4(A.v4, 1000, B.v4, 80, SYN), true),
        (tcp4(B.v4, 80, A.v4, 1000, SYN_ACK), false),
        (tcp4(A.v4, 1000, B.v4, 80, ACK), true),
    ] {
        let outcome = if from_a { world.from_a(&frame) } else { world.from_b(&frame) };
        assert_eq!(outcome.action, REDIRECT);
    }
    world.set_workload(B, |workload| workload.flags = 0);
    world.insert::<4, 24>(names::ADDRESSES4, &B.v4, &owned(NO_SLOT, 0));
}

#[test]
fn a_connection_with_a_workload_that_goes_elsewhere_goes_on() {
    let mut world = World::new();
    // B answers only what A has opened.
    world.set_policy(A, ALLOW, DENY);
    connect_to_b_that_goes(&mut world);
    // What A may do changes with it.
    world.set_policy(A, ALLOW, DENY);
    let answer = tcp4(B.v4, 80, A.v4, 1000, ACK);
    assert_eq!(world.from_uplink(&answer).action, REDIRECT, "from another host now");
    assert_eq!(world.drops(DropReason::NoTable), 0);
    assert_eq!(world.from_uplink(&tcp4(B.v4, 81, A.v4, 1000, ACK)).action, DROP, "no connection");
    assert_ne!(world.from_a(&tcp4(A.v4, 1000, B.v4, 80, ACK)).action, DROP);
}

#[test]
fn a_connection_with_a_workload_that_goes_elsewhere_is_judged_again() {
    let mut world = World::new();
    connect_to_b_that_goes(&mut world);
    // A may not do any more what it has done.
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_uplink(&tcp4(B.v4, 80, A.v4, 1000, ACK)).action, DROP);
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, B.v4, 80, ACK)).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyEgress), 2);
}

#[test]
fn opened_from_both_sides_and_closed_by_one() {
    let mut world = World::new();
    world.set_policy(B, DENY, ALLOW);
    let to_b = |tcp| tcp4(A.v4, 1000, B.v4, 80, tcp);
    let to_a = |tcp| tcp4(B.v4, 80, A.v4, 1000, tcp);
    for _ in 0..3 {
        assert_eq!(world.from_a(&to_b(SYN)).action, REDIRECT, "again and again");
    }
    assert_eq!(world.from_b(&to_a(Tcp { flags: "S", sequence: 500, acknowledgement: 0 })).action, REDIRECT);
    assert_eq!(world.from_a(&to_b(Tcp { flags: "SA", sequence: 100, acknowledgement: 501 })).action, REDIRECT);
    assert_eq!(world.from_b(&to_a(SYN_ACK)).action, REDIRECT);
    assert_eq!(world.from_a(&to_b(ACK)).action, REDIRECT);
    assert_eq!(world.from_a(&to_b(Tcp { flags: "FA", sequence: 101, acknowledgement: 501 })).action, REDIRECT);
    for _ in 0..3 {
        assert_eq!(world.from_b(&to_a(ACK)).action, REDIRECT, "the other half is open");
    }
    assert_eq!(world.conns4().len(), 1);
}

#[test]
fn icmp_errors_about_nothing_are_dropped() {
    let mut world = World::new();
    let request = udp4(A.v4, 1000, OUTSIDE4, 53);
    assert_eq!(world.from_uplink(&unreachable4(OUTSIDE4, A.v4, &request)).action, DROP);
    assert_eq!(world.from_a(&unreachable4(A.v4, B.v4, &request)).action, DROP);
    assert_eq!(world.forwarded_to_a(UPLINK, &unreachable4(OUTSIDE4, A.v4, &request)).action, DROP);
    assert_eq!(world.drops(DropReason::IcmpUnrelated), 3);
    assert_eq!(world.host_to_a(&unreachable4([192, 0, 2, 1], A.v4, &request)).action, STACK, "the host knows");
    // Of the right connection, but to another than who sent what is quoted.
    world.from_a(&request);
    assert_eq!(world.from_uplink(&unreachable4(OUTSIDE4, B.v4, &request)).action, DROP);
    // The quoted packet is not there, not whole, or no packet.
    let error = unreachable4(OUTSIDE4, A.v4, &request);
    assert_eq!(world.from_uplink(&error).action, STACK, "its connection still takes the stack");
    for length in [42, 50, 62, 64] {
        let mut short = error[..length].to_vec();
        short[16..18].copy_from_slice(&(length as u16 - 14).to_be_bytes());
        assert_eq!(world.from_uplink(&short).action, DROP, "{length} bytes");
    }
    for (at, value) in [(42, 0x65), (42, 0x43), (48, 0x20 + 1)] {
        let mut wrong = error.clone();
        wrong[at] = value;
        if at == 48 {
            wrong[49] = 1;
        }
        assert_eq!(world.from_uplink(&wrong).action, DROP, "byte {at} is {value:#x}");
    }
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_uplink(&error).action, DROP, "policy has cut the connection");
    // Of what the host sent with the workload's address, which it then is for, but not from.
    let mut world = World::new();
    world.host_to_a(&request);
    assert_eq!(world.from_uplink(&unreachable4(OUTSIDE4, A.v4, &request)).action, DROP);
}

#[test]
fn packet_too_big_reaches_who_sent_in_fragments() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    // The first fragment of a datagram to outside, quoted by a router on the way.
    let mut first = fragment6(17, 9, 0, true, &udp(1000, 53));
    first[38..54].copy_from_slice(&OUTSIDE6);
    assert_eq!(world.from_a(&first).action, STACK);
    let router = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77];
    let error = |quoted: &[u8]| icmpv6(router, A.v6, 64, 2, &[&1280_u32.to_be_bytes()[..], quoted].concat());
    assert_eq!(world.from_uplink(&error(&first[14..])).action, STACK);
    let mut other = first.clone();
    *other.last_mut().expect("bytes") = 1;
    other[63] = 99;
    assert_eq!(world.from_uplink(&error(&other[14..])).action, DROP, "another port");
}

#[test]
fn echo_is_told_apart_by_its_identifier() {
    let mut world = World::new();
    world.set_policy(B, DENY, ALLOW);
    let echo = |from: [u8; 4], to: [u8; 4], reply: bool, id| {
        let header = etherparse::IcmpEchoHeader { id, seq: 1 };
        let kind = if reply { Icmpv4Type::EchoReply(header) } else { Icmpv4Type::EchoRequest(header) };
        let mac = if from == A.v4 { A.mac } else { B.mac };
        let mut frame = Vec::new();
        let step = PacketBuilder::ethernet2(mac, HOST_MAC).ipv4(from, to, 64).icmpv4(kind);
        step.write(&mut frame, &[0; 8]).expect("a packet");
        frame
    };
    assert_eq!(world.from_a(&echo(A.v4, B.v4, false, 7)).action, REDIRECT);
    assert_eq!(world.from_b(&echo(B.v4, A.v4, true, 7)).action, REDIRECT);
    assert_eq!(world.from_b(&echo(B.v4, A.v4, true, 8)).action, DROP);
}
