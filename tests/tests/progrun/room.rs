//! Room for connections.

use calico_ebpf_common::abi::DropReason;

use crate::{
    frames::{ACK, SYN, SYN_ACK, Tcp, tcp4, udp4},
    harness::{A, B, DROP, HOST4, OUTSIDE4, REDIRECT, STACK, World},
};

#[test]
fn a_flood_evicts_its_own() {
    let mut world = World::new();
    // B has a connection, and A an assured one.
    world.from_b(&udp4(B.v4, 7, OUTSIDE4, 53));
    for (from_a, tcp) in [(true, SYN), (false, SYN_ACK), (true, ACK)] {
        if from_a {
            world.from_a(&tcp4(A.v4, 9, B.v4, 80, tcp));
        } else {
            world.from_b(&tcp4(B.v4, 80, A.v4, 9, tcp));
        }
    }
    for port in 1000..1300 {
        assert_eq!(world.from_a(&tcp4(A.v4, port, B.v4, 80, SYN)).action, REDIRECT, "port {port}");
    }
    let account = world.quota(2 * A.slot + 2);
    assert_eq!((account.held, account.unassured), (65, 64));
    assert_eq!(world.conns4().len(), 66);
    let has = |world: &World, port: u16| {
        let port = port.to_be_bytes();
        world.conns4().iter().any(|(key, _)| key.port_a == port || key.port_b == port)
    };
    assert!(has(&world, 7), "B's");
    assert!(has(&world, 9), "A's assured one");
    assert!(has(&world, 1299), "the last one");
}

#[test]
fn questions_that_were_answered_take_no_room_from_others() {
    let mut world = World::new();
    for port in 1000..1300 {
        assert_eq!(world.from_a(&udp4(A.v4, port, B.v4, 53)).action, REDIRECT, "port {port}");
        assert_eq!(world.from_b(&udp4(B.v4, 53, A.v4, port)).action, REDIRECT, "port {port}");
    }
    let account = world.quota(2 * A.slot + 2);
    assert_eq!((account.held, account.unassured), (300, 0));
}

#[test]
fn among_those_that_outlive_others_room_is_found() {
    let mut world = World::new();
    // From outside, where addresses may be forged: of every two one is assured, and its place among the candidates is lost.
    for port in 1000..2000 {
        world.from_uplink(&udp4(OUTSIDE4, port, A.v4, 53));
        if port % 2 == 0 {
            world.from_a(&udp4(A.v4, 53, OUTSIDE4, port));
            world.from_uplink(&udp4(OUTSIDE4, port, A.v4, 53));
        }
    }
    // By chance.
    assert!(world.drops(DropReason::Quota) < 10, "{}", world.drops(DropReason::Quota));
}

#[test]
fn above_the_fair_share_only_while_there_is_room() {
    let mut world = World::new();
    world.set_root(|root| {
        root.conn_limit = 64;
        root.conn_fair_share = 8;
        root.conn_unassured = 1000;
    });
    let assure = |world: &mut World, port| {
        let from_a = world.from_a(&tcp4(A.v4, port, B.v4, 80, SYN)).action;
        if from_a == REDIRECT {
            world.from_b(&tcp4(B.v4, 80, A.v4, port, SYN_ACK));
            world.from_a(&tcp4(A.v4, port, B.v4, 80, ACK));
        }
        from_a
    };
    for port in 1000..1032 {
        assert_eq!(assure(&mut world, port), REDIRECT, "port {port}");
    }
    assert_eq!(assure(&mut world, 2000), DROP, "half full, and above its share");
    assert_eq!(world.drops(DropReason::Quota), 1);
    for port in 0..8 {
        assert_eq!(world.from_b(&udp4(B.v4, 3000 + port, A.v4, 53)).action, REDIRECT, "B has its share");
    }
    assert_eq!(world.from_uplink(&udp4(OUTSIDE4, 1, A.v4, 2)).action, REDIRECT, "and so has what comes from outside");
    assert_eq!(world.host_to_a(&udp4(HOST4, 1, A.v4, 2)).action, STACK, "and the host");
    // A's running connections go on.
    assert_eq!(world.from_a(&tcp4(A.v4, 1000, B.v4, 80, Tcp { sequence: 200, ..ACK })).action, REDIRECT);
}

#[test]
fn a_flood_from_outside_is_the_workloads_own_trouble() {
    let mut world = World::new();
    world.from_uplink(&tcp4(OUTSIDE4, 1, B.v4, 80, SYN));
    world.from_a(&udp4(A.v4, 1000, B.v4, 53));
    for port in 2000..2200 {
        assert_eq!(world.from_uplink(&tcp4(OUTSIDE4, port, A.v4, 80, SYN)).action, REDIRECT);
    }
    assert_eq!(world.quota(2 * A.slot + 3).held, 64);
    assert_eq!(world.quota(2 * A.slot + 2).held, 1, "what A opened itself");
    assert_eq!(world.quota(2 * B.slot + 3).held, 1);
}

#[test]
fn a_full_map_refuses_all_but_the_host() {
    let mut world = World::new();
    world.set_root(|root| {
        root.conn_limit = 1 << 20;
        root.conn_unassured = 1 << 20;
    });
    let mut refused = 0;
    for port in 0..1100 {
        refused += u32::from(world.from_a(&udp4(A.v4, 1000 + port, B.v4, 53)).action == DROP);
    }
    assert!(refused > 0);
    assert_eq!(world.drops(DropReason::TableFull), u64::from(refused));
    assert_eq!(world.host_to_a(&udp4(HOST4, 1, A.v4, 2)).action, STACK);
}
