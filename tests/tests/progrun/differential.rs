//! Random packets, whole and damaged, in sequences: the programs and the model must agree about each of them, about its bytes
//! afterwards, and about the tables at the end; and nothing may be left in them once all connections are over.
//!
//! `CALICO_EBPF_PACKETS` says how many packets (20,000 otherwise), `CALICO_EBPF_SEED` where to begin.

use std::collections::BTreeMap;

use calico_ebpf_common::abi::{ACCOUNT_TOTAL, NO_SLOT, host_action};
use calico_ebpf_common::abi::{
    Conn as Entry, DROP_REASONS, Event, OpenerKind, conn_flags, names, tcp_state, workload_flags,
};

use crate::{
    generate::{Random, frame, hook},
    harness::{A, ALLOW, B, DENY, UPLINK, World},
    model::{Conn, Hook, Key, Model, Policy, Tcp, Who, wide4},
};

/// Packets in one sequence: the table has room for all connections that they can open.
const SEQUENCE: u64 = 400;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn the_programs_and_the_model_agree() {
    let (packets, seed) = (number("CALICO_EBPF_PACKETS", 20_000), number("CALICO_EBPF_SEED", 1));
    let mut world = World::new();
    world.set_root(|root| {
        // Nothing has to give way, and time stands still until a sequence is over.
        (root.conn_fair_share, root.conn_unassured) = (1 << 20, 1 << 20);
    });
    set_timeouts(&mut world, u32::MAX / 4);
    // Otherwise the programs learn the MAC addresses out of what the model has nothing to say about.
    for name in [A, B] {
        world.set_workload(name, |workload| workload.flags |= workload_flags::MAC_CHECK);
    }
    let reasons = world.inside(|world| {
        let mut reasons = BTreeMap::new();
        for sequence in 0..packets.div_ceil(SEQUENCE) {
            run_sequence(world, seed + sequence, &mut reasons);
        }
        reasons
    });
    let named = |(reason, count): (&u32, &u64)| {
        let name = DROP_REASONS.iter().find(|(known, _)| *known as u32 == *reason).map_or("unknown", |(_, name)| name);
        format!("{name} {count}")
    };
    println!("{packets} packets; dropped: {}", reasons.iter().map(named).collect::<Vec<_>>().join(", "));
    assert!(reasons.len() > 10, "hardly anything was tried: {reasons:?}");
}

fn run_sequence(world: &mut World, seed: u64, reasons: &mut BTreeMap<u32, u64>) {
    let mut random = Random::new(seed);
    let mut model = Model::new();
    let (before, midstream) = (drops(world), world.events(Event::Midstream));
    let mut expected_drops = BTreeMap::new();
    let mut unknown = 0;
    set_policies(world, &mut model, &mut random);
    let mut recent: Vec<Vec<u8>> = Vec::new();
    for number in 0..SEQUENCE {
        if random.below(25) == 0 {
            set_policies(world, &mut model, &mut random);
        }
        let hook = hook(&mut random);
        let frame = frame(&mut random, hook, &recent);
        if recent.len() < 16 {
            recent.push(frame.clone());
        } else {
            let place = random.below(16) as usize;
            recent[place].clone_from(&frame);
        }
        let outcome = run(world, hook, &frame);
        let Some(expected) = model.run(hook, &frame) else {
            unknown += u64::from(outcome.action == crate::harness::DROP);
            continue;
        };
        assert!(
            outcome.action == expected.action && outcome.frame == expected.frame,
            "CALICO_EBPF_SEED={seed}, packet {number}: {hook:?}\n{frame:02x?}\nexpected {expected:02x?}\nfound {outcome:02x?}"
        );
        if let Some(reason) = expected.reason {
            *expected_drops.entry(reason as u32).or_insert(0) += 1;
        }
    }
    let after = drops(world);
    let mut others = 0;
    for (reason, count) in &after {
        let found = count - before[reason];
        let expected = expected_drops.get(reason).copied().unwrap_or(0);
        *reasons.entry(*reason).or_insert(0) += found;
        // Also what the model says nothing of.
        assert!(found >= expected, "CALICO_EBPF_SEED={seed}: reason {reason}: {found}, expected {expected}");
        others += found - expected;
    }
    reasons.retain(|_, count| *count > 0);
    assert!(
        others <= unknown,
        "CALICO_EBPF_SEED={seed}: {others} drops more than expected, {unknown} of frames without a verdict"
    );
    assert_eq!(world.events(Event::Midstream) - midstream, model.midstream, "CALICO_EBPF_SEED={seed}: midstream");
    assert_eq!(entries(world), model.conns, "CALICO_EBPF_SEED={seed}: the connections");
    forget_everything(world, seed);
}

fn run(world: &mut World, hook: Hook, frame: &[u8]) -> crate::harness::Outcome {
    match hook {
        Hook::FromA => world.from_a(frame),
        Hook::FromB => world.from_b(frame),
        Hook::ToA { own: true } => world.host_to_a(frame),
        Hook::ToA { own: false } => world.forwarded_to_a(UPLINK, frame),
        Hook::FromUplink => world.from_uplink(frame),
        Hook::ToUplink { own } => world.to_uplink((!own).then_some(A.interface), frame),
    }
}

/// Other rules for everybody, in force at once.
fn set_policies(world: &mut World, model: &mut Model, random: &mut Random) {
    for (name, index) in [(A, 0), (B, 1)] {
        let (egress, ingress) = (random.below(4) != 0, random.below(4) != 0);
        let table = |allow| if allow { ALLOW } else { DENY };
        world.set_policy(name, table(egress), table(ingress));
        let epoch = world.epoch(name);
        model.policies[index] = Policy { egress, ingress, epoch };
    }
    model.host_accepts = random.below(2) == 0;
    let action = if model.host_accepts { host_action::ACCEPT } else { host_action::DROP };
    world.set_root(|root| root.settings.iter_mut().for_each(|settings| settings.host_action = action));
}

fn drops(world: &World) -> BTreeMap<u32, u64> {
    DROP_REASONS.iter().map(|(reason, _)| (*reason as u32, world.drops(*reason))).collect()
}

fn set_timeouts(world: &mut World, ticks: u32) {
    world.set_root(|root| {
        let timeouts = &mut root.timeouts;
        for timeout in [
            &mut timeouts.tcp_syn,
            &mut timeouts.tcp_established,
            &mut timeouts.tcp_fin,
            &mut timeouts.tcp_reset,
            &mut timeouts.udp,
            &mut timeouts.icmp,
            &mut timeouts.generic,
        ] {
            *timeout = ticks;
        }
    });
}

/// What the programs have in their table, in the model's words.
fn entries(world: &World) -> std::collections::HashMap<Key, Conn> {
    let v4 = world.conns4().into_iter().map(|(key, conn)| {
        let ends = [(wide4(key.addr_a), key.port_a), (wide4(key.addr_b), key.port_b)];
        entry(ends, key.protocol, &conn)
    });
    let v6 = world.conns6().into_iter().map(|(key, conn)| {
        let ends = [(key.addr_a, key.port_a), (key.addr_b, key.port_b)];
        entry(ends, key.protocol, &conn)
    });
    v4.chain(v6).collect()
}

fn entry(ends: [([u8; 16], [u8; 2]); 2], protocol: u8, conn: &Entry) -> (Key, Conn) {
    let ends = ends.map(|(address, port)| (address, u16::from_be_bytes(port)));
    let flag = |flag| conn.flags & flag != 0;
    let state = |bit| conn.tcp & bit != 0;
    let who = |slot| match slot {
        NO_SLOT => Who::Other,
        slot if slot == A.slot => Who::A,
        _ => Who::B,
    };
    let entry = Conn {
        opener: ends[usize::from(!flag(conn_flags::OPENER_IS_A))],
        ends: conn.ends.map(|end| who(end.slot)),
        epochs: conn.ends.map(|end| end.epoch),
        by_host: conn.opener == OpenerKind::Host as u8,
        via_stack: flag(conn_flags::VIA_STACK),
        probing: flag(conn_flags::PROBING),
        answered: flag(conn_flags::ANSWERED),
        assured: flag(conn_flags::ASSURED),
        tcp: Tcp {
            syn: state(tcp_state::SYN),
            syn_ack: state(tcp_state::SYN_ACK).then_some(conn.syn_ack),
            fins: [state(tcp_state::FIN_OPENER), state(tcp_state::FIN_RESPONDER)],
            reset: state(tcp_state::RST),
            midstream: state(tcp_state::MIDSTREAM),
        },
    };
    ((ends, protocol), entry)
}

/// Lets everything expire: then nothing may be left, nor be charged to anybody.
fn forget_everything(world: &mut World, seed: u64) {
    let old = world.call(names::PROG_CLOCK).wrapping_sub(1000);
    world.age_all(old);
    set_timeouts(world, 10);
    for _ in 0..2 * SEQUENCE {
        if world.conns4().is_empty() && world.conns6().is_empty() {
            break;
        }
        world.call(names::PROG_SWEEP);
    }
    set_timeouts(world, u32::MAX / 4);
    assert!(world.conns4().is_empty() && world.conns6().is_empty(), "CALICO_EBPF_SEED={seed}: never forgotten");
    for account in [0, ACCOUNT_TOTAL, 2 * A.slot + 2, 2 * A.slot + 3, 2 * B.slot + 2, 2 * B.slot + 3] {
        let quota = world.quota(account);
        assert_eq!((quota.held, quota.unassured), (0, 0), "CALICO_EBPF_SEED={seed}: account {account}");
    }
    world.clear_fragments();
}
