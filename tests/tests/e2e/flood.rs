//! Nobody fills up, evicts or slows down another's connections.

use std::{net::SocketAddr, time::Duration};

use calico_ebpf_tests::{
    Protocol::{Tcp, Udp},
    World,
    frames::{Wire, mac},
    stream::Talk,
};
use etherparse::PacketBuilder;

/// More than the table holds.
const SIZE: &str = "4096";
const FLOOD: u32 = 20_000;

/// Sends a SYN from each of so many port pairs.
fn flood(wire: &Wire, macs: ([u8; 6], [u8; 6]), from: [u8; 4], to: [u8; 4], port: Option<u16>) {
    for number in 0..FLOOD {
        let [_, _, high, low] = number.to_be_bytes();
        let (source, other) =
            (10_000 + u16::from(high) * 7 + u16::from(low), 1_000 + u16::from(high) * 256 + u16::from(low));
        let builder = PacketBuilder::ethernet2(macs.0, macs.1).ipv4(from, to, 64);
        let mut frame = Vec::with_capacity(64);
        let builder = builder.tcp(source, port.unwrap_or(other), number, 1024).syn();
        builder.write(&mut frame, &[]).expect("writes to memory");
        wire.send(&frame);
    }
}

fn others_are_well(world: &World, running: &[Talk]) {
    for talk in running {
        assert!(talk.goes_on(Duration::from_secs(3)), "a running connection suffers\n{}", world.describe());
    }
    for (from, to) in [("b", "c"), ("c", "outside"), ("outside", "c"), ("host", "c")] {
        world.allowed(from, to, Tcp(80));
        world.allowed(from, to, Udp(80));
    }
}

fn running(world: &World) -> Vec<Talk> {
    let pairs = [("b", "c"), ("c", "outside"), ("outside", "b"), ("host", "b")];
    let talks = pairs.map(|(from, to)| Talk::start(world.namespace(from), SocketAddr::new(world.addresses(to)[0], 80)));
    talks.into()
}

#[test]
fn a_flood_from_a_workload_hurts_nobody_else() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.start_with(&["--connections", SIZE]);
    let running = running(&world);
    let a = world.lab.workload("a");
    let wire = Wire::open(&a.namespace, "eth0");
    let macs = (mac(&a.namespace, "eth0"), [0xee; 6]);
    // To the outside, where nobody answers, and to another workload.
    flood(&wire, macs, a.v4.octets(), [192, 0, 2, 77], None);
    others_are_well(&world, &running);
    flood(&wire, macs, a.v4.octets(), world.lab.workload("b").v4.octets(), None);
    others_are_well(&world, &running);
    // Not even its own new connections are refused for long: its unanswered ones give way.
    world.allowed("a", "outside", Tcp(80));
}

#[test]
fn a_flood_from_outside_to_an_open_port_hurts_nobody_else() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.start_with(&["--connections", SIZE]);
    let running = running(&world);
    let wire = Wire::open(&world.lab.outside, "eth0");
    let macs = (mac(&world.lab.outside, "eth0"), mac(&world.lab.host, "up0"));
    // From all over the network.
    for network in 0..5_u8 {
        flood(&wire, macs, [198, 51, 100, network], world.lab.workload("a").v4.octets(), Some(80));
    }
    others_are_well(&world, &running);
    world.allowed("a", "outside", Tcp(80));
    world.allowed("b", "a", Tcp(80));
}
