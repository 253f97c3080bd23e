//! What an uplink receives before anything else: untracked policy and questions of the link, by the XDP program and by the
//! TC program alone.

use calico_ebpf_common::abi::{DropReason, names};
use etherparse::ArpOperation;

use crate::{
    frames::{arp, fragment, icmpv6, solicitation, tcp4, udp4, udp4_size, udp6, SYN},
    harness::{
        A, ALLOW, ALLOW_RULE, DENY, DENY_RULE, DROP, HOST4, HOST_MAC, LEAVE, LEAVE_RULE, NEXT_MAC, OUTSIDE4, OUTSIDE6,
        REDIRECT, REJECT, STACK, World,
    },
};

/// `XDP_DROP`, `XDP_PASS` and `XDP_TX`.
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;

/// The host's own, by IPv6.
const HOST6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const NEIGHBOUR6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

fn wide([a, b, c, d]: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// From the neighbour on the uplink.
fn from_neighbour(mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&NEXT_MAC);
    frame
}

#[test]
fn without_untracked_policy_nothing_is_judged() {
    let mut world = World::new();
    let frame = udp4(OUTSIDE4, 1000, HOST4, 53);
    assert_eq!(world.arrive(&frame).action, XDP_PASS);
    assert_eq!(world.from_uplink(&frame).action, STACK);
    assert_eq!(world.to_uplink(None, &udp4(HOST4, 53, OUTSIDE4, 1000)).action, STACK);
    assert_eq!([ALLOW_RULE, DENY_RULE, LEAVE_RULE].map(|rule| world.hits(rule)), [0; 3]);
}
