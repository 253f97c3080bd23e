//! The life of a connection entry.

use calico_ebpf_common::abi::{DropReason, conn_flags, names, tcp_state};

use crate::{
    frames::{ACK, SYN, SYN_ACK, Tcp, tcp4, udp4},
    harness::{A, ALLOW, B, CONNS, DENY, DROP, OUTSIDE4, REDIRECT, STACK, UPLINK, World},
};

const FIN: Tcp = Tcp { flags: "FA", sequence: 101, acknowledgement: 501 };
const RST: Tcp = Tcp { flags: "R", sequence: 101, acknowledgement: 0 };

fn to_b(tcp: Tcp) -> Vec<u8> {
    tcp4(A.v4, 1000, B.v4, 80, tcp)
}

fn to_a(tcp: Tcp) -> Vec<u8> {
    tcp4(B.v4, 80, A.v4, 1000, tcp)
}

#[test]
fn a_handshake_assures_and_is_counted() {
    let mut world = World::new();
    let account = 2 * A.slot + 2;
    assert_eq!(world.from_a(&to_b(SYN)).action, REDIRECT);
    assert_eq!((world.quota(account).held, world.quota(account).unassured), (1, 1));
    assert_eq!(world.from_b(&to_a(SYN_ACK)).action, REDIRECT);
    assert_eq!(world.conn4().flags & (conn_flags::ANSWERED | conn_flags::ASSURED), conn_flags::ANSWERED);
    assert_eq!(world.from_a(&to_b(Tcp { acknowledgement: 9, ..ACK })).action, REDIRECT);
    assert_eq!(world.conn4().flags & conn_flags::ASSURED, 0, "a guess");
    assert_eq!(world.from_a(&to_b(ACK)).action, REDIRECT);
    let conn = world.conn4();
    assert_ne!(conn.flags & conn_flags::ASSURED, 0);
    assert_eq!(conn.tcp, tcp_state::SYN | tcp_state::SYN_ACK);
    assert_eq!((world.quota(account).held, world.quota(account).unassured), (1, 0));
    assert_eq!((world.quota(1).held, world.quota(1).unassured), (1, 0), "all accounts");
}

#[test]
fn a_closed_connection_is_opened_anew_and_judged_anew() {
    for close in [[FIN, FIN], [RST, RST]] {
        let mut world = World::new();
        for (from_a, tcp) in [(true, SYN), (false, SYN_ACK), (true, ACK), (true, close[0]), (false, close[1])] {
            let outcome = if from_a { world.from_a(&to_b(tcp)) } else { world.from_b(&to_a(tcp)) };
            assert_eq!(outcome.action, REDIRECT);
        }
        assert_eq!(world.from_a(&to_b(ACK)).action, REDIRECT, "the last packets of the old one");
        assert_eq!(world.from_a(&to_b(SYN)).action, REDIRECT);
        let conn = world.conn4();
        assert_eq!(conn.tcp, tcp_state::SYN);
        assert_eq!(conn.flags & conn_flags::ASSURED, 0);
        let account = world.quota(2 * A.slot + 2);
        assert_eq!((account.held, account.unassured), (1, 1), "{close:?}", close = close[0].flags);
    }
}

#[test]
fn an_idle_connection_is_forgotten() {
    let mut world = World::new();
    world.set_policy(A, ALLOW, DENY);
    world.set_policy(B, DENY, ALLOW);
    world.from_a(&udp4(A.v4, 1000, B.v4, 53));
    let now = world.call(names::PROG_CLOCK);
    world.set_conn4(|conn| conn.seen = [now.wrapping_sub(59_000); 2]);
    assert_eq!(world.from_b(&udp4(B.v4, 53, A.v4, 1000)).action, REDIRECT, "after 59 seconds");
    world.set_conn4(|conn| conn.seen = [now.wrapping_sub(61_000); 2]);
    assert_eq!(world.from_b(&udp4(B.v4, 53, A.v4, 1000)).action, DROP, "after 61 seconds");
    assert!(world.conns4().is_empty());
    assert_eq!(world.quota(2 * A.slot + 2).held, 0);
}

#[test]
fn the_sweep_closes_what_has_expired_and_nothing_else() {
    let mut world = World::new();
    world.from_a(&udp4(A.v4, 1000, B.v4, 53));
    let now = world.call(names::PROG_CLOCK);
    assert_eq!(world.call(names::PROG_SWEEP), 0);
    assert_eq!(world.conns4().len(), 1);
    world.set_conn4(|conn| conn.seen = [now.wrapping_sub(61_000); 2]);
    world.from_a(&udp4(A.v4, 1001, OUTSIDE4, 53));
    assert_eq!(world.conns4().len(), 2, "there is room: nobody looks");
    world.set_root(|root| root.conn_limit = 8);
    world.from_a(&udp4(A.v4, 1002, OUTSIDE4, 53));
    assert_eq!(world.conns4().len(), 2, "there is less room: the new connection turns the hand");
    world.age_all(now.wrapping_sub(61_000));
    assert_eq!(world.call(names::PROG_SWEEP), 2);
    assert!(world.conns4().is_empty());
    assert_eq!((world.quota(1).held, world.quota(1).unassured), (0, 0));
}

#[test]
fn ports_used_again_and_again_do_not_fill_the_ring() {
    let mut world = World::new();
    for time in 0..2 * CONNS {
        let opened = world.from_a(&tcp4(A.v4, 1000, B.v4, 80, SYN));
        assert_eq!(opened.action, REDIRECT, "time {time}");
        world.from_b(&tcp4(B.v4, 80, A.v4, 1000, RST));
    }
    assert_eq!(world.drops(DropReason::TableFull), 0);
    assert_eq!(world.conns4().len(), 1);
}

#[test]
fn nor_do_those_of_many_connections() {
    let mut world = World::new();
    // Faster than the clock ticks, and the last one stays.
    for port in 1000..1000 + CONNS as u16 / 16 {
        for _ in 0..64 {
            world.from_a(&tcp4(A.v4, port, B.v4, 80, SYN));
            world.from_b(&tcp4(B.v4, 80, A.v4, port, RST));
        }
        world.from_a(&tcp4(A.v4, port, B.v4, 80, SYN));
    }
    assert_eq!(world.drops(DropReason::TableFull), 0);
}

#[test]
fn what_the_stack_delivers_takes_the_stack_both_ways() {
    let mut world = World::new();
    let (request, answer) = (udp4(OUTSIDE4, 1000, A.v4, 53), udp4(A.v4, 53, OUTSIDE4, 1000));
    assert_eq!(world.forwarded_to_a(UPLINK, &request).action, STACK);
    assert_ne!(world.conn4().flags & conn_flags::VIA_STACK, 0);
    assert_eq!(world.from_a(&answer).action, STACK);
    assert_eq!(world.to_uplink(Some(A.interface), &answer).action, STACK);
    assert_ne!(world.conn4().flags & conn_flags::VIA_STACK, 0, "it is translated, as far as we know");
    assert_eq!(world.from_uplink(&request).action, STACK);
    world.set_policy(A, ALLOW, DENY);
    assert_eq!(world.forwarded_to_a(UPLINK, &request).action, DROP);
    assert_eq!(world.drops(DropReason::PolicyIngress), 1);
}

#[test]
fn the_first_packet_to_elsewhere_finds_out_whether_it_is_translated() {
    let mut world = World::new();
    let request = udp4(A.v4, 1000, OUTSIDE4, 53);
    assert_eq!(world.from_a(&request).action, STACK);
    assert_ne!(world.conn4().flags & conn_flags::PROBING, 0);
    assert_eq!(world.from_a(&request).action, STACK, "nobody knows yet");
    assert_eq!(world.to_uplink(Some(A.interface), &request).action, STACK);
    assert_eq!(world.conn4().flags & (conn_flags::PROBING | conn_flags::VIA_STACK), 0);
    assert_eq!(world.from_a(&request).action, REDIRECT);
    assert_eq!(world.from_uplink(&udp4(OUTSIDE4, 53, A.v4, 1000)).action, REDIRECT);
}

#[test]
fn a_translated_packet_is_judged_where_it_leaves() {
    let mut world = World::new();
    assert_eq!(world.from_a(&udp4(A.v4, 1000, [10, 96, 0, 1], 53)).action, STACK);
    // The stack has put another destination into it.
    let leaving = udp4(A.v4, 1000, OUTSIDE4, 53);
    assert_eq!(world.to_uplink(Some(A.interface), &leaving).action, STACK);
    assert_eq!(world.conns4().len(), 2);
    assert_eq!(world.from_a(&udp4(A.v4, 1000, [10, 96, 0, 1], 53)).action, STACK);
    assert_eq!(world.from_uplink(&udp4(OUTSIDE4, 53, A.v4, 1000)).action, STACK);
    world.set_policy(A, DENY, ALLOW);
    assert_eq!(world.to_uplink(Some(A.interface), &leaving).action, DROP);
    assert_eq!(world.to_uplink(None, &leaving).action, STACK, "the host's own is not ours");
}
