//! The uplink as a host endpoint.

use calico_ebpf_common::abi::{
    ACCOUNT_HOST, DropReason, Event, MARK_ASKED, MARK_REPLY, MARK_SETTLED, NO_SLOT, PRIORITY_DENIED, PRIORITY_REJECTED,
    account_opened_by, account_opened_to, conn_flags,
};

use crate::{
    frames::{ACK, SYN, SYN_ACK, Tcp, fragment, icmpv6, solicitation, tcp4, udp4, udp4_size, unreachable4},
    harness::{
        A, ALLOW, ALLOW_RULE, B, BEFORE_DNAT, BEHIND_DNAT, DENY, DROP, HOST_SLOT, HOST4, OUTSIDE_SLOT, OUTSIDE4,
        OUTSIDE6, REDIRECT, REJECT, STACK, UPLINK, World,
    },
};

/// Beyond the neighbour.
const FAR4: [u8; 4] = [198, 51, 100, 7];
const RST: Tcp = Tcp { flags: "R", sequence: 1, acknowledgement: 0 };

#[test]
fn what_comes_in_for_the_host_and_its_answers() {
    let mut world = World::new();
    let syn = tcp4(OUTSIDE4, 1000, HOST4, 80, SYN);
    assert_eq!(world.from_uplink(&syn).action, STACK, "nobody's business");
    assert!(world.conns4().is_empty());
    world.set_host_endpoint([DENY, DENY], None);
    assert_eq!(world.from_uplink(&syn).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyIngress), 1);
    assert!(world.conns4().is_empty());
    world.set_host_endpoint([DENY, ALLOW], None);
    assert_eq!(world.from_uplink(&syn).action, STACK);
    let conn = world.conn4();
    assert_eq!((conn.ends[0].slot, conn.ends[1].slot, conn.ends[1].rule), (NO_SLOT, HOST_SLOT, ALLOW_RULE));
    assert_ne!(conn.flags & conn_flags::VIA_STACK, 0);
    assert_eq!(world.to_uplink(None, &tcp4(HOST4, 80, OUTSIDE4, 1000, SYN_ACK)).action, STACK, "the answer");
    assert_eq!(world.to_uplink(None, &tcp4(HOST4, 81, OUTSIDE4, 1000, SYN)).action, DROP, "another one");
    assert_eq!(world.drops(DropReason::PolicyEgress), 1);
    assert_eq!(world.hits(ALLOW_RULE), 1, "the connection was judged once");
    // A new policy cuts it in both directions.
    world.set_host_endpoint([DENY, DENY], None);
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, HOST4, 80, ACK)).action, DROP);
    assert_eq!(world.to_uplink(None, &tcp4(HOST4, 80, OUTSIDE4, 1000, ACK)).action, DROP);
    world.set_host_endpoint([DENY, ALLOW], None);
    assert_eq!(world.to_uplink(None, &tcp4(HOST4, 80, OUTSIDE4, 1000, ACK)).action, STACK, "and lets it live again");
}

#[test]
fn what_the_host_sends_and_its_answers() {
    let mut world = World::new();
    let syn = tcp4(HOST4, 1000, OUTSIDE4, 80, SYN);
    world.set_host_endpoint([DENY, ALLOW], None);
    assert_eq!(world.to_uplink(None, &syn).action, DROP);
    world.set_host_endpoint([ALLOW, DENY], None);
    assert_eq!(world.to_uplink(None, &syn).action, STACK);
    assert_eq!((world.conn4().ends[0].slot, world.conn4().account), (HOST_SLOT, ACCOUNT_HOST));
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 80, HOST4, 1000, SYN_ACK)).action, STACK, "the answer");
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 81, HOST4, 1000, SYN_ACK)).action, DROP, "no answer");
    assert_eq!(world.from_uplink(&unreachable4(OUTSIDE4, HOST4, &syn)).action, STACK, "an error about it");
    let other = tcp4(HOST4, 1001, OUTSIDE4, 80, SYN);
    assert_eq!(world.from_uplink(&unreachable4(OUTSIDE4, HOST4, &other)).action, DROP, "about nothing known");
    // Who claims to be the host comes from elsewhere.
    assert_eq!(world.from_uplink(&tcp4(HOST4, 1000, OUTSIDE4, 80, ACK)).action, DROP);
    assert_eq!(world.drops(DropReason::SpoofedLocal), 1);
    // Errors of the host's own are about what was judged.
    assert_eq!(world.to_uplink(None, &unreachable4(HOST4, OUTSIDE4, &other)).action, STACK);
    assert_eq!(world.to_uplink(None, &tcp4(HOST4, 5, OUTSIDE4, 5, RST)).action, DROP, "of no connection");
}

#[test]
fn what_the_host_opens_is_one_connection_to_its_end() {
    const FIN: Tcp = Tcp { flags: "FA", sequence: 2, acknowledgement: 2 };
    let mut world = World::new();
    world.set_host_endpoint([ALLOW, DENY], None);
    let sent = |segment| tcp4(HOST4, 1000, OUTSIDE4, 80, segment);
    let received = |segment| tcp4(OUTSIDE4, 80, HOST4, 1000, segment);
    assert_eq!(world.to_uplink(None, &sent(SYN)).action, STACK);
    let answer = world.from_uplink(&received(SYN_ACK));
    assert_eq!((answer.action, answer.mark), (STACK, 0), "it is the host's, and no answer to what was masqueraded");
    assert_eq!(world.to_uplink(None, &sent(ACK)).action, STACK);
    let conn = world.conn4();
    assert_ne!(conn.flags & conn_flags::ASSURED, 0, "{conn:?}");
    assert_eq!(world.to_uplink(None, &sent(FIN)).action, STACK);
    assert_eq!(world.from_uplink(&received(ACK)).action, STACK, "half closed");
    assert_eq!(world.from_uplink(&received(FIN)).action, STACK);
    assert_eq!(world.conn4().created, conn.created);
    assert_eq!(world.hits(ALLOW_RULE), 1, "judged once");
    assert_eq!(world.drops(DropReason::TcpInvalid), 0);
}

#[test]
fn what_ipv6_needs_to_work_is_judged_by_nobody() {
    let mut world = World::new();
    world.set_host_endpoint([DENY, DENY], Some([DENY, DENY]));
    let mut host6 = OUTSIDE6;
    host6[15] = 1;
    assert_eq!(world.from_uplink(&solicitation(OUTSIDE6, host6)).action, STACK);
    assert_eq!(world.to_uplink(None, &solicitation(host6, OUTSIDE6)).action, STACK);
    let mut routers = [0; 16];
    (routers[0], routers[1], routers[15]) = (0xff, 2, 0x16);
    assert_eq!(world.to_uplink(None, &icmpv6(host6, routers, 1, 143, &[0; 4])).action, STACK, "a listener's report");
    assert_eq!(world.to_uplink(None, &icmpv6(host6, routers, 64, 143, &[0; 4])).action, DROP, "one that was passed on");
    assert_eq!(world.from_uplink(&icmpv6(OUTSIDE6, host6, 64, 135, &[0; 20])).action, DROP, "likewise");
    assert_eq!(world.to_uplink(None, &icmpv6(host6, OUTSIDE6, 64, 128, &[0; 4])).action, DROP, "an echo request");
}

#[test]
fn what_is_forwarded_to_a_workload() {
    let mut world = World::new();
    let syn = tcp4(OUTSIDE4, 1000, A.v4, 80, SYN);
    world.set_host_endpoint([DENY, DENY], None);
    assert_eq!(world.from_uplink(&syn).action, REDIRECT, "no policy of what is forwarded");
    assert_eq!(world.conn4().ends[0].slot, NO_SLOT);
    let mut world = World::new();
    world.set_host_endpoint([DENY, DENY], Some([DENY, ALLOW]));
    assert_eq!(world.from_uplink(&syn).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyIngress), 1);
    world.set_host_endpoint([DENY, DENY], Some([ALLOW, DENY]));
    assert_eq!(world.from_uplink(&syn).action, REDIRECT);
    let conn = world.conn4();
    assert_eq!((conn.ends[0].slot, conn.ends[1].slot), (OUTSIDE_SLOT, A.slot));
    assert_eq!(world.from_a(&tcp4(A.v4, 80, OUTSIDE4, 1000, SYN_ACK)).action, REDIRECT, "the answer goes straight out");
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, A.v4, 80, ACK)).action, REDIRECT);
    assert_eq!(world.hits(ALLOW_RULE), 2, "the host endpoint's and the workload's, once each");
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, A.v4, 80, ACK)).action, DROP, "the workload denies it");
    world.set_policy(A, ALLOW, ALLOW);
    world.set_host_endpoint([ALLOW, ALLOW], Some([DENY, ALLOW]));
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, A.v4, 80, ACK)).action, DROP, "the host endpoint denies it");
    assert_eq!(world.from_a(&tcp4(A.v4, 80, OUTSIDE4, 1000, ACK)).action, DROP);
}

#[test]
fn what_a_workload_sends_outside_is_judged_where_it_leaves() {
    let mut world = World::new();
    world.set_host_endpoint([DENY, DENY], Some([DENY, DENY]));
    let syn = tcp4(A.v4, 1000, FAR4, 80, SYN);
    assert_eq!(world.from_a(&syn).action, STACK, "by the stack, as every first one");
    assert_eq!(world.to_uplink(Some(A.interface), &syn).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyEgress), 1);
    assert_eq!(world.from_a(&syn).action, STACK, "again");
    assert_eq!(world.to_uplink(Some(A.interface), &syn).action, DROP, "and again");
    world.set_host_endpoint([DENY, DENY], Some([DENY, ALLOW]));
    assert_eq!(world.from_a(&syn).action, STACK);
    assert_eq!(world.to_uplink(Some(A.interface), &syn).action, STACK);
    let conn = world.conn4();
    assert_eq!((conn.ends[0].slot, conn.ends[1].slot), (A.slot, OUTSIDE_SLOT));
    assert_eq!(conn.flags & (conn_flags::VIA_STACK | conn_flags::PROBING), 0);
    assert_eq!(world.from_uplink(&tcp4(FAR4, 80, A.v4, 1000, SYN_ACK)).action, REDIRECT, "the answer");
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, FAR4, 80, ACK)).action, REDIRECT, "past the stack");
    world.set_host_endpoint([DENY, DENY], Some([DENY, DENY]));
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, FAR4, 80, ACK)).action, DROP, "cut");
}

#[test]
fn who_is_attacked_pays_whoever_judges_outside() {
    let mut world = World::new();
    world.set_host_endpoint([DENY, DENY], Some([ALLOW, ALLOW]));
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, A.v4, 80, SYN)).action, REDIRECT);
    let conn = world.conn4();
    assert_eq!((conn.ends[0].slot, conn.account), (OUTSIDE_SLOT, account_opened_to(A.slot)));
}

#[test]
fn what_both_sides_are_denied_no_side_answers() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    world.set_host_endpoint([DENY, DENY], Some([DENY, DENY]));
    let (sent, received) = (udp4(A.v4, 1000, FAR4, 53), udp4(FAR4, 53, A.v4, 1000));
    for _ in 0..2 {
        assert_eq!(world.from_a(&sent).action, STACK, "where it leaves it is judged");
        assert_eq!(world.to_uplink(Some(A.interface), &sent).action, DROP);
        assert_eq!(world.from_uplink(&received).action, DROP, "it answers nothing that has left");
    }
    // Nor does what comes in elsewhere.
    assert_eq!(world.forwarded_to_a("up0", &received).action, STACK);
    assert_eq!(world.from_a(&sent).action, STACK);
    assert_eq!(world.to_uplink(Some(A.interface), &sent).action, DROP);
}

#[test]
fn errors_about_what_came_from_outside_leave_again() {
    let mut world = World::new();
    world.set_host_endpoint([DENY, DENY], Some([ALLOW, ALLOW]));
    let query = udp4(OUTSIDE4, 1000, A.v4, 53);
    assert_eq!(world.from_uplink(&query).action, REDIRECT);
    assert_eq!(world.from_a(&unreachable4(A.v4, OUTSIDE4, &query)).action, STACK);
}

#[test]
fn policy_before_dnat_is_not_asked_behind_it() {
    let mut world = World::new();
    world.set_policy(A, BEHIND_DNAT, ALLOW);
    // As the workload sends it, and as the stack delivers it with another destination.
    let syn = |destination| tcp4(A.v4, 1000, destination, 80, SYN);
    for destination in [B.v4, FAR4] {
        assert_eq!(world.from_a(&syn(destination)).action, DROP);
    }
    assert_eq!(world.forwarded_to_b(A.interface, &syn(B.v4)).action, STACK);
    assert_eq!(world.to_uplink(Some(A.interface), &syn(FAR4)).action, STACK);
    assert!(world.conns4().iter().all(|(_, conn)| conn.flags & conn_flags::BEHIND_DNAT != 0));
    // Judged again, it is not asked either.
    world.set_policy(A, ALLOW, ALLOW);
    world.set_policy(A, BEHIND_DNAT, ALLOW);
    for (from_b, destination) in [(true, B.v4), (false, FAR4)] {
        let answer = tcp4(destination, 80, A.v4, 1000, SYN_ACK);
        let outcome = if from_b { world.from_b(&answer) } else { world.from_uplink(&answer) };
        assert_eq!(outcome.action, STACK, "{destination:?}");
    }
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.from_b(&tcp4(B.v4, 80, A.v4, 1000, ACK)).action, DROP);
}

#[test]
fn what_is_denied_may_still_be_translated() {
    let mut world = World::new();
    world.set_translates();
    let syn = tcp4(OUTSIDE4, 1000, HOST4, 32010, SYN);
    world.set_host_endpoint([DENY, DENY], Some([DENY, DENY]));
    let outcome = world.from_uplink(&syn);
    assert_eq!((outcome.action, outcome.priority, outcome.mark), (STACK, PRIORITY_DENIED, 0));
    assert_eq!((world.drops(DropReason::PolicyIngress), world.events(Event::LeftToTranslation)), (0, 1));
    assert!(world.conns4().is_empty(), "of what is denied there is no entry");
    // What belongs to a connection does so by its new addresses.
    for frame in
        [tcp4(OUTSIDE4, 1000, HOST4, 32010, RST), unreachable4(OUTSIDE4, HOST4, &tcp4(HOST4, 5, OUTSIDE4, 5, SYN))]
    {
        assert_eq!(world.from_uplink(&frame).priority, PRIORITY_DENIED);
    }
    // Neither what is for a workload nor what forges.
    for frame in [tcp4(OUTSIDE4, 1000, A.v4, 80, SYN), tcp4(A.v4, 1000, HOST4, 80, SYN)] {
        assert_eq!(world.from_uplink(&frame).action, DROP);
    }
    // So it is with addresses of nobody.
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, FAR4, 80, SYN)).priority, PRIORITY_DENIED);
    world.set_host_endpoint([REJECT, REJECT], None);
    assert_eq!(world.from_uplink(&syn).priority, PRIORITY_REJECTED);
    assert_eq!(world.to_uplink(None, &tcp4(HOST4, 32010, OUTSIDE4, 1000, RST)).action, STACK, "so it is rejected");
    assert_ne!(world.to_uplink(None, &tcp4(HOST4, 1, OUTSIDE4, 1000, SYN)).action, STACK, "it opens a connection");
    // Also of a connection that was there.
    world.set_host_endpoint([DENY, ALLOW], None);
    assert_eq!(world.from_uplink(&syn).action, STACK);
    world.set_host_endpoint([REJECT, REJECT], None);
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, HOST4, 32010, ACK)).priority, PRIORITY_REJECTED);
    assert_eq!(world.to_uplink(None, &tcp4(HOST4, 32010, OUTSIDE4, 1000, RST)).action, STACK);
}

#[test]
fn what_the_stack_has_translated_is_judged_where_it_leaves() {
    let mut world = World::new();
    world.set_translates();
    let syn = tcp4(OUTSIDE4, 1000, A.v4, 80, SYN);
    for (forward, action) in [(DENY, DROP), (ALLOW, STACK)] {
        world.set_host_endpoint([DENY, DENY], Some([forward, DENY]));
        for (port, mark) in [(1, MARK_ASKED), (2, MARK_SETTLED)] {
            let other = tcp4(OUTSIDE4, port, A.v4, 80, SYN);
            assert_eq!(world.leave(A.interface, UPLINK, mark, &other).action, STACK, "{mark:#x}: settled");
        }
        assert_eq!(world.leave(A.interface, UPLINK, 0, &syn).action, action);
    }
    let conns = world.conns4();
    let asked: Vec<_> = conns.iter().filter(|(_, conn)| conn.ends[0].slot == OUTSIDE_SLOT).collect();
    assert_eq!((asked.len(), asked[0].1.ends[1].slot), (1, A.slot));
    assert!(conns.iter().all(|(_, conn)| conn.flags & conn_flags::BEHIND_DNAT != 0));
    let answer = world.from_a(&tcp4(A.v4, 80, OUTSIDE4, 1000, SYN_ACK));
    assert_eq!(answer.action, STACK);
    // It leaves with the host's address.
    let translated = tcp4(HOST4, 32010, OUTSIDE4, 1000, SYN_ACK);
    assert_eq!(world.leave(UPLINK, A.interface, MARK_REPLY, &translated).action, STACK);
    assert_eq!(world.leave(UPLINK, A.interface, 0, &translated).action, DROP);
    assert_eq!(world.to_uplink(None, &translated).action, DROP, "the host itself sends it");
}

#[test]
fn what_was_settled_and_is_not_any_more_is_judged_again() {
    for (forward, action) in [(DENY, DROP), (ALLOW, STACK)] {
        let mut world = World::new();
        world.set_translates();
        world.set_host_endpoint([DENY, DENY], Some([forward, DENY]));
        let segment = |tcp| tcp4(OUTSIDE4, 1000, A.v4, 80, tcp);
        assert_eq!(world.leave(A.interface, UPLINK, MARK_SETTLED, &segment(SYN)).action, STACK);
        assert_eq!(world.from_a(&tcp4(A.v4, 80, OUTSIDE4, 1000, SYN_ACK)).action, STACK);
        assert_eq!(world.leave(A.interface, UPLINK, MARK_SETTLED, &segment(ACK)).action, STACK);
        assert_eq!(world.conn4().ends[0].slot, NO_SLOT);
        assert_eq!(world.leave(A.interface, UPLINK, 0, &segment(ACK)).action, action);
        assert_eq!(world.conn4().ends[0].slot, OUTSIDE_SLOT);
        assert_eq!(world.leave(A.interface, UPLINK, 0, &segment(ACK)).action, action);
        assert_eq!(world.from_a(&tcp4(A.v4, 80, OUTSIDE4, 1000, ACK)).action, action);
        if action == DROP {
            assert_eq!(world.leave(A.interface, UPLINK, MARK_SETTLED, &segment(ACK)).action, STACK, "settled again");
            assert_eq!(world.conn4().ends[0].slot, NO_SLOT);
            assert_eq!(world.from_a(&tcp4(A.v4, 80, OUTSIDE4, 1000, ACK)).action, STACK);
            assert_eq!(world.leave(A.interface, UPLINK, 0, &segment(ACK)).action, DROP);
        }
    }
}

#[test]
fn what_policy_before_dnat_decides_is_settled() {
    let mut world = World::new();
    world.set_translates();
    let syn = tcp4(OUTSIDE4, 1000, HOST4, 32010, SYN);
    // A rule of policy before DNAT that denies, and one behind it that allows.
    world.set_host_endpoint([DENY, BEHIND_DNAT], None);
    assert_eq!(world.from_uplink(&syn).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyIngress), 1);
    world.set_host_endpoint([DENY, BEFORE_DNAT], None);
    for frame in [syn, tcp4(OUTSIDE4, 1000, HOST4, 32010, ACK)] {
        let outcome = world.from_uplink(&frame);
        assert_eq!((outcome.action, outcome.mark), (STACK, MARK_SETTLED));
    }
    assert_ne!(world.conn4().flags & conn_flags::SETTLED, 0);
    // Judged again, it is not any more.
    world.set_host_endpoint([DENY, ALLOW], None);
    assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, 1000, HOST4, 32010, ACK)).mark, 0);
    // What is forwarded as it came, it has been asked about.
    world.set_host_endpoint([DENY, DENY], Some([ALLOW, ALLOW]));
    let far = [203, 0, 113, 9];
    for tcp in [SYN, ACK] {
        assert_eq!(world.from_uplink(&tcp4(FAR4, 1000, far, 80, tcp)).mark, MARK_ASKED);
    }
}

#[test]
fn what_is_forwarded_from_outside_to_outside() {
    let mut world = World::new();
    let far = [203, 0, 113, 9];
    let syn = tcp4(FAR4, 1000, far, 80, SYN);
    world.set_host_endpoint([DENY, DENY], None);
    assert_eq!(world.from_uplink(&syn).action, STACK);
    assert!(world.conns4().is_empty(), "nobody judges it, nobody keeps it");
    world.set_host_endpoint([DENY, DENY], Some([DENY, ALLOW]));
    assert_eq!(world.from_uplink(&syn).action, DROP);
    world.set_host_endpoint([DENY, DENY], Some([ALLOW, DENY]));
    assert_eq!(world.from_uplink(&syn).action, STACK);
    assert_eq!(world.to_uplink(Some("up0"), &syn).action, DROP, "it may come in, but not leave");
    world.set_host_endpoint([DENY, DENY], Some([ALLOW, ALLOW]));
    assert_eq!(world.from_uplink(&syn).action, STACK);
    assert_eq!(world.to_uplink(Some("up0"), &syn).action, STACK);
    let conn = world.conn4();
    assert_eq!((conn.ends[0].slot, conn.ends[1].slot), (OUTSIDE_SLOT, OUTSIDE_SLOT));
    assert_ne!(conn.flags & conn_flags::VIA_STACK, 0, "the stack forwards it");
    let answer = tcp4(far, 80, FAR4, 1000, SYN_ACK);
    assert_eq!(world.from_uplink(&answer).action, STACK);
    assert_eq!(world.to_uplink(Some("up0"), &answer).action, STACK);
}

#[test]
fn what_the_host_masquerades_comes_back() {
    let mut world = World::new();
    world.set_host_endpoint([DENY, DENY], None);
    // The stack has given it the host's address.
    let query = udp4(HOST4, 40_000, FAR4, 53);
    assert_eq!(world.to_uplink(Some(A.interface), &query).action, STACK);
    assert_eq!(world.conn4().account, account_opened_by(A.slot), "it is the workload's");
    assert_eq!(world.from_uplink(&udp4(FAR4, 53, HOST4, 40_000)).action, STACK);
    assert_eq!(world.from_uplink(&udp4(FAR4, 53, HOST4, 40_001)).action, DROP);
    assert_eq!(world.to_uplink(None, &udp4(HOST4, 40_002, FAR4, 53)).action, DROP, "the host's own is judged");
}

#[test]
fn later_fragments_go_where_they_are_nothing_without_the_first() {
    let mut world = World::new();
    world.set_host_endpoint([DENY, DENY], Some([DENY, DENY]));
    let first = fragment(udp4_size(OUTSIDE4, 1000, HOST4, 53, 64, 800), 5, 0, true);
    let last = fragment(udp4_size(OUTSIDE4, 1000, HOST4, 53, 64, 100), 5, 101, false);
    assert_eq!(world.from_uplink(&first).action, DROP);
    assert_eq!(world.from_uplink(&last).action, STACK);
    let first = fragment(udp4_size(OUTSIDE4, 1000, A.v4, 53, 64, 800), 6, 0, true);
    assert_eq!(world.from_uplink(&first).action, DROP, "of what is forwarded");
    world.set_host_endpoint([ALLOW, ALLOW], Some([ALLOW, ALLOW]));
    assert_eq!(world.from_uplink(&first).action, STACK, "the workload judges it when it is whole");
    assert!(world.conns4().is_empty());
}

#[test]
fn what_cannot_be_parsed_does_not_pass_a_host_endpoint() {
    let mut world = World::new();
    let mut frame = udp4(OUTSIDE4, 1000, HOST4, 53);
    // A header length of four bytes.
    frame[14] = 0x41;
    assert_eq!(world.from_uplink(&frame).action, STACK);
    world.set_host_endpoint([ALLOW, ALLOW], None);
    assert_eq!(world.from_uplink(&frame).action, DROP);
    assert_eq!(world.drops(DropReason::Malformed), 1);
}
