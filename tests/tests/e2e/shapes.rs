//! Packets of every shape that real stacks and devices make.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, eventually,
    frames::{Wire, mac},
    lab::{self, GATEWAY4, HOST_SIDE_MAC, Lab, Namespace, OUTSIDE4, UPLINK},
    nft,
    resources::{self, policy},
    stream::transfer,
};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, PacketBuilder,
};
use nix::sys::socket::{setsockopt, sockopt};

const ARRIVES: Duration = Duration::from_secs(3);
const SILENCE: Duration = Duration::from_millis(300);
const HOST_SIDE: [u8; 6] = [0xee; 6];

/// A packet from one address to another, in fragments of `size` bytes of payload (or whole), without the Ethernet header.
fn packets(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8], size: usize, id: u16) -> Vec<Vec<u8>> {
    let count = payload.chunks(size).len();
    let pieces = payload.chunks(size).enumerate();
    let made = pieces.map(|(number, piece)| {
        let offset = IpFragOffset::try_new((number * size / 8) as u16).expect("an offset");
        let more = number + 1 < count;
        match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header =
                    Ipv4Header::new(piece.len() as u16, 64, IpNumber(protocol), from.octets(), to.octets())
                        .expect("a header");
                (header.identification, header.fragment_offset, header.more_fragments) = (id, offset, more);
                header.header_checksum = header.calc_header_checksum();
                [header.to_bytes().as_slice(), piece].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let fragment = Ipv6FragmentHeader::new(IpNumber(protocol), offset, more, id.into()).to_bytes();
                let body = if count == 1 { piece.to_vec() } else { [&fragment[..], piece].concat() };
                let next_header = if count == 1 { IpNumber(protocol) } else { IpNumber::IPV6_FRAGMENTATION_HEADER };
                let header = Ipv6Header {
                    payload_length: body.len() as u16,
                    next_header,
                    hop_limit: 64,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Ipv6Header::default()
                };
                [&header.to_bytes()[..], &body].concat()
            }
            _ => panic!("one family"),
        }
    });
    made.collect()
}

fn frame(source: [u8; 6], destination: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let ether_type = if packet[0] >> 4 == 4 { EtherType::IPV4 } else { EtherType::IPV6 };
    let mut frame = Ethernet2Header { source, destination, ether_type }.to_bytes().to_vec();
    frame.extend_from_slice(packet);
    frame
}

/// UDP header and payload, with the right checksum.
fn datagram(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let header = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => (PacketBuilder::ipv4(from.octets(), to.octets(), 64), 20),
        (IpAddr::V6(from), IpAddr::V6(to)) => (PacketBuilder::ipv6(from.octets(), to.octets(), 64), 40),
        _ => panic!("one family"),
    };
    header.0.udp(from.port(), to.port()).write(&mut packet, payload).expect("a packet");
    packet.split_off(header.1)
}

/// Whether so large a datagram to an echo server comes back whole.
pub(crate) fn echoes(namespace: &Namespace, to: SocketAddr, bytes: usize) -> bool {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let echoed = namespace.enter(|| {
        let socket = UdpSocket::bind((any, 0)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        let mut answer = vec![0; 65536];
        (0..6).any(|_| {
            socket.send_to(&vec![7; bytes], to).is_ok()
                && socket.recv_from(&mut answer).is_ok_and(|(length, _)| length == bytes)
        })
    });
    echoed.expect("enters")
}

#[test]
fn big_datagrams_cross() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a"), ("host", "a")] {
        for address in world.addresses(to) {
            let echoed = echoes(world.namespace(from), SocketAddr::new(address, 80), 20_000);
            assert!(echoed, "{from} to {address}\n{}", world.describe());
        }
    }
}

#[test]
fn fragments_may_come_in_any_order() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.serve(81);
    let only_80 = "  types: [Ingress, Egress]
  ingress:
    - {action: Allow, protocol: UDP, destination: {ports: [80]}}
  egress:
    - {action: Allow, protocol: UDP, destination: {ports: [80]}}
";
    world.write("policy.yaml", &policy("only-80", "all()", only_80));
    world.start();
    assert_eq!(world.status()["fragments"], "reassembled", "{}", world.describe());
    let host_mac = mac(&world.lab.host, UPLINK);
    let mut id = 100;
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a")] {
        let sender = Wire::open(world.namespace(from), "eth0");
        let receiver = Wire::open(world.namespace(to), "eth0");
        let own = mac(world.namespace(from), "eth0");
        let gateway = if from == "outside" { host_mac } else { HOST_SIDE };
        for (source, destination) in world.addresses(from).into_iter().zip(world.addresses(to)) {
            for (port, order) in [(80, [0, 1, 2]), (80, [2, 1, 0]), (80, [1, 0, 2]), (81, [0, 1, 2]), (81, [2, 1, 0])] {
                id += 1;
                let (source, destination) = (SocketAddr::new(source, 999), SocketAddr::new(destination, port));
                let whole = datagram(source, destination, &[id as u8; 3000]);
                let pieces = packets(source.ip(), destination.ip(), 17, &whole, 1200, id);
                for piece in order {
                    assert!(sender.send(&frame(own, gateway, &pieces[piece])), "sends");
                }
                // The last bytes of it, as any piece that arrives may end.
                let arrived = |patience| {
                    receiver.receive(patience, |frame| {
                        frame.len() > 200
                            && frame[frame.len() - 100..] == [id as u8; 100]
                            && (frame.windows(16).any(|window| window == wide(destination.ip()))
                                || frame.get(30..34) == Some(&narrow(destination.ip())))
                    })
                };
                let what = format!("{from} to {destination}, in the order {order:?}");
                if port == 80 {
                    assert!(arrived(ARRIVES).is_some(), "{what}\n{}", world.describe());
                    // What is left of it must not be taken for the next one.
                    while arrived(Duration::from_millis(30)).is_some() {}
                } else {
                    assert!(arrived(SILENCE).is_none(), "{what}: denied");
                }
            }
        }
    }
}

fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn narrow(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

#[test]
fn overlapping_fragments_are_never_put_together() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    let a = world.lab.workload("a");
    let (sender, receiver) = (Wire::open(&a.namespace, "eth0"), Wire::open(world.namespace("b"), "eth0"));
    let own = mac(&a.namespace, "eth0");
    for (source, destination) in world.addresses("a").into_iter().zip(world.addresses("b")) {
        let whole = datagram(SocketAddr::new(source, 999), SocketAddr::new(destination, 80), &[0x5a; 2000]);
        let pieces = packets(source, destination, 17, &whole, 1200, 7);
        // The second one once more, eight bytes earlier and with something else in it.
        let mut other = whole.clone();
        other[1192..].fill(0x66);
        let mut overlapping = packets(source, destination, 17, &other[1192..], 4000, 7).remove(0);
        let at = if source.is_ipv4() { 6 } else { 42 };
        if source.is_ipv6() {
            overlapping = packets(source, destination, 17, &other, 1200, 7).remove(1);
            overlapping.splice(48..48, [0x66; 8]);
            let length = (overlapping.len() - 40) as u16;
            overlapping[4..6].copy_from_slice(&length.to_be_bytes());
            overlapping[at..at + 2].copy_from_slice(&(149_u16 << 3).to_be_bytes());
        } else {
            overlapping[at..at + 2].copy_from_slice(&149_u16.to_be_bytes());
            let mut header = Ipv4Header::from_slice(&overlapping).expect("a header").0;
            header.header_checksum = header.calc_header_checksum();
            overlapping[..20].copy_from_slice(&header.to_bytes());
        }
        for piece in [&pieces[1], &overlapping, &pieces[0]] {
            assert!(sender.send(&frame(own, HOST_SIDE, piece)));
        }
        let arrived = receiver.receive(SILENCE, |frame| frame.ends_with(&[0x5a; 60]) || frame.ends_with(&[0x66; 60]));
        assert!(arrived.is_none(), "{source}: {arrived:02x?}");
    }
}

#[test]
fn protocols_of_any_number_cross() {
    let mut world = World::new(&["a", "b"]);
    let rules = "  types: [Ingress]
  ingress:
    - {action: Allow, protocol: SCTP, destination: {ports: [80]}}
    - {action: Allow, protocol: 253}
    - {action: Allow, protocol: 50}
";
    world.write("policy.yaml", &policy("b-in", "app == 'b'", rules));
    world.start();
    let outside = Wire::open(&world.lab.outside, "eth0");
    let receiver = Wire::open(world.namespace("b"), "eth0");
    let a = Wire::open(world.namespace("a"), "eth0");
    let own = [mac(world.namespace("a"), "eth0"), mac(&world.lab.outside, "eth0")];
    let host_mac = mac(&world.lab.host, UPLINK);
    for (wire, from, own, gateway) in [(&a, "a", own[0], HOST_SIDE), (&outside, "outside", own[1], host_mac)] {
        for (source, destination) in world.addresses(from).into_iter().zip(world.addresses("b")) {
            for (protocol, port, passes) in
                [(132, 80, true), (132, 81, false), (253, 0, true), (50, 0, true), (47, 0, false)]
            {
                let mark = [protocol, port, from.len() as u8, 0x77, 0x31, 0x41, 0x59, 0x26];
                let payload = [&[0, 9, 0, port][..], &[0; 12], &mark, &[0; 8]].concat();
                let packet = packets(source, destination, protocol, &payload, 4000, 0).remove(0);
                assert!(wire.send(&frame(own, gateway, &packet)));
                let patience = if passes { ARRIVES } else { SILENCE };
                let found = receiver.receive(patience, |frame| frame.windows(8).any(|window| window == mark));
                assert_eq!(found.is_some(), passes, "{from}, {source}, protocol {protocol}\n{}", world.describe());
            }
        }
    }
}

#[test]
fn headers_beyond_the_first_buffer() {
    let mut world = World::new(&["a", "b"]);
    let rules = ["ingress", "egress"].map(|direction| {
        let rule = |protocol| format!("    - {{action: Allow, protocol: {protocol}, destination: {{ports: [80]}}}}\n");
        format!("  {direction}:\n{}{}", rule("UDP"), rule("TCP"))
    });
    world.write("policy.yaml", &policy("only-80", "all()", &rules.concat()));
    world.start();
    let host_mac = mac(&world.lab.host, UPLINK);
    let mut number: u32 = 0x3141_5926;
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a")] {
        let receiver = Wire::open(world.namespace(to), "eth0");
        let link = [mac(world.namespace(from), "eth0"), if from == "outside" { host_mac } else { HOST_SIDE }];
        for ends in world.addresses(from).into_iter().zip(world.addresses(to)) {
            for (protocol, port, long) in
                [(17, 80, false), (17, 80, true), (6, 80, false), (6, 80, true), (17, 81, true), (6, 81, false)]
            {
                number += 1;
                // Its own connection each, from a port of its own.
                let (mark, ports) = (number.to_be_bytes().repeat(25), [number as u16, port]);
                let builder = PacketBuilder::ethernet2(link[0], link[1]).ip(ip_headers(ends, long));
                let mut frame = Vec::new();
                match protocol {
                    17 => builder.udp(ports[0], ports[1]).write(&mut frame, &mark),
                    _ => builder.tcp(ports[0], ports[1], 7, 1000).syn().write(&mut frame, &mark),
                }
                .expect("a packet");
                send_by_ring(world.namespace(from), &frame);
                let patience = if port == 80 { ARRIVES } else { SILENCE };
                let found = receiver.receive(patience, |frame| frame.ends_with(&mark));
                let what = format!("{from} to {}, protocol {protocol}, port {port}, long: {long}", ends.1);
                assert_eq!(found.is_some(), port == 80, "{what}\n{}", world.describe());
            }
        }
    }
}

/// Of a packet, `long` ones with 40 bytes of options, or an extension header, that say nothing.
fn ip_headers(ends: (IpAddr, IpAddr), long: bool) -> IpHeaders {
    match ends {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = Ipv4Header { time_to_live: 64, ..Ipv4Header::default() };
            (header.source, header.destination) = (source.octets(), destination.octets());
            if long {
                header.options = [1; 40].into();
            }
            IpHeaders::Ipv4(header, Ipv4Extensions::default())
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut header = Ipv6Header { hop_limit: 64, ..Ipv6Header::default() };
            (header.source, header.destination) = (source.octets(), destination.octets());
            let padding = [&[1, 36][..], &[0; 36]].concat();
            let options = Ipv6RawExtHeader::new_raw(IpNumber::UDP, &padding).expect("whole words");
            let destination_options = long.then_some(options);
            IpHeaders::Ipv6(header, Ipv6Extensions { destination_options, ..Ipv6Extensions::default() })
        }
        _ => panic!("one family"),
    }
}

/// Sends a frame of which the kernel has no more than the Ethernet header in one piece: the rest stays in pages of the ring that
/// it came by (`tpacket_fill_skb` in net/packet/af_packet.c).
fn send_by_ring(namespace: &Namespace, frame: &[u8]) {
    let bytes: Vec<_> = frame.iter().map(|byte| format!("{byte:#04x}")).collect();
    let mut command = namespace.command("trafgen");
    // Nothing of the machine is changed for it.
    command.args(["--no-sock-mem", "--notouch-irq", "--cpus", "1", "--num", "1", "--dev", "eth0"]);
    let output = command.arg(format!("{{ {} }}", bytes.join(", "))).output().expect("trafgen");
    assert!(output.status.success(), "{output:?}");
}

/// Datagrams that the sender's kernel, or the host's uplink, makes one packet of.
#[test]
fn super_packets_of_udp() {
    const COUNT: usize = 50;
    let mut world = World::new(&["a", "b"]);
    // Lists of datagrams, as hosts that forward may have it; older versions of ethtool know it by this name.
    let lists = ["-K", UPLINK, "gro", "on", "rx-gro-list", "on"];
    assert!(world.lab.host.command("ethtool").args(lists).status().expect("ethtool").success());
    world.start();
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a")] {
        for (own, address) in world.addresses(from).into_iter().zip(world.addresses(to)) {
            let bind = |address| move || UdpSocket::bind((address, 0)).expect("a socket");
            let receiver = world.namespace(to).enter(bind(address)).expect("enters");
            let sender = world.namespace(from).enter(bind(own)).expect("enters");
            sender.connect(receiver.local_addr().expect("an address")).expect("connects");
            receiver.set_read_timeout(Some(ARRIVES)).expect("a timeout");
            let mut buffer = [0; 2000];
            // Smaller than what is read of a header of TCP, and larger.
            for size in [4, 1000] {
                let mut arrive = |what: &str| {
                    for number in 0..COUNT {
                        let received = receiver.recv(&mut buffer);
                        assert!(
                            received.as_ref().is_ok_and(|length| *length == size),
                            "{from} to {address}, {what}, {number}: {received:?}\n{}",
                            world.describe()
                        );
                    }
                };
                // One by one, in a burst.
                (0..COUNT).for_each(|_| assert_eq!(sender.send(&vec![7; size]).expect("sends"), size));
                arrive("a burst");
                setsockopt(&sender, sockopt::UdpGsoSegment, &(size as i32)).expect("segments");
                assert_eq!(sender.send(&vec![7; size * COUNT]).expect("sends"), size * COUNT);
                arrive("a super-packet");
                setsockopt(&sender, sockopt::UdpGsoSegment, &0).expect("no segments");
            }
        }
    }
}

/// Sends a file by SCTP; whether it arrives.
fn sctp(world: &World, from: &str, to: (&str, IpAddr), port: u16) -> bool {
    const BYTES: usize = 1 << 20;
    let (directory, kind) = (world.config().parent().expect("a directory"), if to.1.is_ipv4() { "4" } else { "6" });
    let (sent, received) = (directory.join("sent"), directory.join("received"));
    std::fs::write(&sent, vec![7; BYTES]).expect("writes");
    let _none_yet = std::fs::remove_file(&received);
    let start = |namespace: &Namespace, from: String, to: String| {
        namespace.command("socat").args(["-u", &from, &to]).stderr(Stdio::null()).spawn().expect("socat")
    };
    let listens = format!("SCTP{kind}-LISTEN:{port},reuseaddr");
    let address = if to.1.is_ipv4() { to.1.to_string() } else { format!("[{}]", to.1) };
    let mut arrived = false;
    for _ in 0..5 {
        // Another server each time: it serves one client, perhaps one that has given up.
        let mut server = start(world.namespace(to.0), listens.clone(), format!("CREATE:{}", received.display()));
        std::thread::sleep(Duration::from_millis(100));
        let connects = format!("SCTP{kind}:{address}:{port},connect-timeout=1");
        let mut client = start(world.namespace(from), format!("OPEN:{}", sent.display()), connects);
        let is_sent = client.wait().expect("socat").success();
        arrived = is_sent
            && server.wait().expect("socat").success()
            && std::fs::metadata(&received).is_ok_and(|file| file.len() == BYTES as u64);
        let _ended_already = server.kill();
        let _ = server.wait();
        if is_sent {
            break;
        }
    }
    arrived
}

#[test]
fn associations_of_a_real_stack() {
    if !std::path::Path::new("/proc/sys/net/sctp").exists() {
        assert!(std::env::var_os("CALICO_EBPF_NO_SKIP").is_none(), "no SCTP");
        println!("\nfact: no SCTP");
        return;
    }
    let mut world = World::new(&["a", "b"]);
    let rules = "  types: [Ingress]
  ingress:
    - {action: Allow, protocol: SCTP, destination: {ports: [80]}}
";
    let policies = ["a", "b"].map(|name| policy(&format!("{name}-in"), &format!("app == '{name}'"), rules));
    world.write("policy.yaml", &resources::documents(&policies));
    world.start();
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a")] {
        for address in world.addresses(to) {
            assert!(sctp(&world, from, (to, address), 80), "{from} to {address}\n{}", world.describe());
        }
    }
    for address in world.addresses("b") {
        assert!(!sctp(&world, "a", ("b", address), 81), "{address}");
    }
    let connections = world.command(&["conntrack"]).stdout;
    assert!(connections.lines().any(|line| line.contains("sctp") && line.contains(" fast ")), "{connections}");
}

#[test]
fn a_stray_segment_from_outside_gets_one_reset() {
    let mut world = World::new(&["a"]);
    let deny_out = "  types: [Egress]\n  egress:\n    - {action: Deny}\n";
    world.write("policy.yaml", &policy("a-out", "app == 'a'", deny_out));
    world.start_with(&["--watch", "off"]);
    let wire = Wire::open(&world.lab.outside, "eth0");
    let macs = [mac(&world.lab.outside, "eth0"), mac(&world.lab.host, UPLINK)];
    let a = world.lab.workload("a").v4;
    let step = PacketBuilder::ethernet2(macs[0], macs[1]).ipv4(OUTSIDE4.octets(), a.octets(), 64);
    let mut segment = Vec::new();
    step.tcp(1001, 80, 7, 1000).ack(9).write(&mut segment, &[]).expect("a packet");
    let answers = |frame: &[u8]| frame.get(36..38) == Some(&1001_u16.to_be_bytes());
    // A segment in the middle is judged as a new connection; who knows nothing of it says so, once.
    assert!(wire.send(&segment));
    let answer = wire.receive(ARRIVES, answers).unwrap_or_else(|| panic!("no answer\n{}", world.describe()));
    assert_eq!(answer[47] & 4, 4, "a RST");
    assert!(wire.receive(SILENCE, answers).is_none());
    assert_eq!(world.status()["events"]["midstream"], 1);
    // Whether a RST of nothing is dropped is a setting; that it is, is tested where time can be turned.
    let settings = |text: &str| {
        world.write("felix.yaml", &resources::felix("disableConntrackInvalidCheck", text));
        let output = world.run_command(&["--dry-run"]).output().expect("starts calico-ebpf");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let plan = settings("true");
    // Beside the way back, which is 32.
    assert!(plan.contains("flags 33"), "{plan}");
    assert!(!settings("false").contains("flags 33"));
}

#[test]
fn the_broadcasts_of_its_networks_are_the_hosts() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.write("felix.yaml", &resources::felix("defaultEndpointToHostAction", "Accept"));
    world.start();
    let broadcast = SocketAddr::from(([192, 0, 2, 255], 80));
    let a = || world.namespace("a");
    assert!(lab::udp(a(), broadcast, ARRIVES).expect("a probe"), "the host hears them\n{}", world.describe());
    world.write("felix.yaml", &resources::felix("defaultEndpointToHostAction", "Drop"));
    assert_eq!(world.command(&["reload"]).code, 0);
    assert!(!lab::udp(a(), broadcast, SILENCE).expect("a probe"), "{}", world.describe());
    world.denied("a", "host", Udp(80));
}

#[test]
fn a_hairpin_through_the_uplink() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.lab.host.ip(&format!("route add 203.0.113.0/24 via {OUTSIDE4}")).expect("a route");
    // What the neighbour forwards for an address of its own comes back in its own name.
    let sysctl = world.lab.outside.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]).status();
    assert!(sysctl.expect("sysctl").success());
    for to in ["b", "a"] {
        let address = world.lab.workload(to).v4;
        let rules = format!(
            "table ip hairpin {{}}
             delete table ip hairpin
             table ip hairpin {{
               chain pre {{ type nat hook prerouting priority dstnat; ip daddr 203.0.113.9 dnat to {address}; }}
               chain post {{ type nat hook postrouting priority srcnat; ip saddr 10.65.0.0/16 masquerade; }}
             }}"
        );
        nft(&world.lab.outside, &rules);
        for protocol in [Tcp(80), Udp(80), Icmp] {
            let reached = world.reaches("a", Ipv4Addr::new(203, 0, 113, 9).into(), protocol, ARRIVES);
            assert!(reached, "a to {to} by {protocol:?}\n{}", world.describe());
        }
    }
    // One that comes back in the workload's name may be anybody's.
    nft(&world.lab.outside, "flush chain ip hairpin post");
    assert!(!world.reaches("b", Ipv4Addr::new(203, 0, 113, 9).into(), Udp(80), SILENCE));
}

#[test]
fn a_workload_reaches_itself_by_a_service_of_its_host() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.start();
    let a = world.lab.workload("a").v4;
    // As kube-proxy does it.
    nft(
        &world.lab.host,
        &format!(
            "table ip service {{
               chain pre {{ type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 tcp dport 8080 dnat to {a}:80; }}
               chain post {{ type nat hook postrouting priority srcnat; ip saddr {a} ip daddr {a} masquerade; }}
             }}"
        ),
    );
    let to = SocketAddr::from(([10, 96, 0, 1], 8080));
    // The service's address need not be routed anywhere but out.
    world.lab.host.ip(&format!("route add 10.96.0.0/12 via {OUTSIDE4}")).expect("a route");
    let reached = lab::tcp(world.namespace("a"), to, ARRIVES).expect("a probe");
    assert!(reached, "{}", world.describe());
    assert!(world.reaches("a", a.into(), Tcp(80), ARRIVES), "and without the host");
}

#[test]
fn a_workload_with_several_addresses_and_interfaces() {
    let mut world = World::new(&["a", "b"]);
    let a = world.lab.workload("a");
    let more: [IpAddr; 2] = [Ipv4Addr::new(10, 66, 0, 1).into(), Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, 0, 1).into()];
    let second: IpAddr = Ipv4Addr::new(10, 67, 0, 1).into();
    for address in more {
        a.namespace.ip(&format!("addr add {address} dev eth0 nodad")).expect("an address");
    }
    world
        .lab
        .host
        .ip(&format!("link add cali2nd address {HOST_SIDE_MAC} type veth peer name eth1 netns {}", a.namespace.name()))
        .expect("a second interface");
    world.lab.host.ip("link set cali2nd up").expect("up");
    a.namespace
        .ip_batch(&format!(
            "addr add {second}/32 dev eth1
             link set eth1 up
             route add {GATEWAY4} dev eth1 scope link table 67
             route add default via {GATEWAY4} dev eth1 table 67
             rule add from {second} lookup 67"
        ))
        .expect("the second interface");
    let first =
        resources::workload(a).replace("ipNetworks: [", &format!("ipNetworks: [{}/32, \"{}/128\", ", more[0], more[1]));
    let other = format!(
        "apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{namespace: t, labels: {{app: second}}}}
spec:
  node: {}
  orchestrator: k8s
  pod: a
  endpoint: eth1
  interfaceName: cali2nd
  ipNetworks: [{second}/32]
  profiles: [kns.t]
",
        resources::NODE
    );
    let documents = [resources::NAMESPACE.to_owned(), first, other, resources::workload(world.lab.workload("b"))];
    world.write("workloads.yaml", &resources::documents(&documents));
    let rules = "  types: [Ingress]\n  ingress:\n    - {action: Allow, protocol: UDP}\n";
    world.write("policy.yaml", &policy("second-in", "app == 'second'", rules));
    world.serve(80);
    world.start();
    for address in more.into_iter().chain(world.addresses("a")) {
        assert!(world.reaches("b", address, Tcp(80), ARRIVES), "{address}\n{}", world.describe());
    }
    assert!(!world.reaches("b", second, Tcp(80), SILENCE), "the other interface has its own policy");
    assert!(!world.reaches("b", second, Icmp, SILENCE) && world.reaches("b", second, Udp(80), ARRIVES));
    // Not by the other's interface.
    let wire = Wire::open(&world.lab.workload("a").namespace, "eth0");
    let receiver = Wire::open(world.namespace("b"), "eth0");
    let own = mac(&world.lab.workload("a").namespace, "eth0");
    let payload = datagram(SocketAddr::new(second, 9), SocketAddr::new(world.addresses("b")[0], 9), &[0x3c; 40]);
    let packet = packets(second, world.addresses("b")[0], 17, &payload, 4000, 0).remove(0);
    assert!(wire.send(&frame(own, HOST_SIDE, &packet)));
    assert!(receiver.receive(SILENCE, |frame| frame.ends_with(&[0x3c; 40])).is_none());
}

/// Offloads of a device, as `ethtool -k` tells them.
fn offloads(namespace: &Namespace, device: &str) -> String {
    let output = namespace.command("ethtool").args(["-k", device]).output().expect("ethtool");
    assert!(output.status.success(), "{device}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().skip(1).collect::<Vec<_>>().join("\n")
}

#[test]
fn no_offload_is_lost() {
    let mut world = World::new(&["a", "b"]);
    let direct = Lab::new(&["a"]).expect("a lab");
    world.serve(80);
    world.start();
    for address in world.addresses("b") {
        assert!(world.reaches("a", address, Tcp(80), ARRIVES));
    }
    let ends = |lab: &Lab| {
        let a = &lab.workload("a").namespace;
        [(a, "eth0"), (&lab.host, "calia"), (&lab.host, UPLINK), (&lab.outside, "eth0")]
            .map(|(namespace, device)| offloads(namespace, device))
    };
    assert_eq!(ends(&world.lab), ends(&direct), "as two veths that nobody has touched");
}

#[test]
fn segments_of_64_kilobytes_are_forwarded_whole() {
    const WHOLE: usize = 60_000;
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    for to in ["b", "outside"] {
        for address in world.addresses(to) {
            let wire = Wire::open(world.namespace(to), "eth0");
            let mut largest = 0;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    wire.receive(Duration::from_secs(10), |frame| {
                        largest = largest.max(frame.len());
                        largest > WHOLE
                    })
                });
                let received = world.namespace("a").enter(|| transfer(SocketAddr::new(address, 80), 32 << 20));
                assert_eq!(received.expect("enters"), 32 << 20, "{address}");
            });
            assert!(largest > WHOLE, "{address}: {largest} bytes\n{}", world.describe());
        }
    }
}

/// Frames of a tap device in one namespace that come out of one in another.
struct Wires {
    ends: [Child; 2],
    socket: PathBuf,
}

impl Wires {
    fn between(host: (&Namespace, &str), guest: (&Namespace, &str), name: &str) -> Self {
        let socket = std::env::temp_dir().join(format!("{name}-tap"));
        let tap = |device: &str| format!("TUN,tun-type=tap,tun-name={device},iff-no-pi,iff-up");
        let start = |(namespace, device): (&Namespace, &str), other: String| {
            let mut command: Command = namespace.command("socat");
            command.args(["-b", "70000", &tap(device), &other]).spawn().expect("socat")
        };
        let listens = start(guest, format!("UNIX-LISTEN:{},type=5", socket.display()));
        eventually("socat listens", Duration::from_secs(5), || socket.exists());
        let connects = start(host, format!("UNIX-CONNECT:{},type=5,retry=100,interval=0.05", socket.display()));
        Self { ends: [listens, connects], socket }
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        for child in &mut self.ends {
            let _ended_already = child.kill();
            let _ = child.wait();
        }
        let _gone_already = std::fs::remove_file(&self.socket);
    }
}

#[test]
fn a_tap_as_virtual_machines_have_it() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let a = world.lab.workload("a");
    a.disconnect().expect("no veth");
    let wires = Wires::between((&world.lab.host, "calia"), (&a.namespace, "eth0"), world.lab.name());
    let there = |namespace: &Namespace, device: &str| namespace.ip(&format!("link show {device}")).is_ok();
    eventually("the taps are there", ARRIVES, || there(&world.lab.host, "calia") && there(&a.namespace, "eth0"));
    world.lab.host.ip(&format!("link set calia address {HOST_SIDE_MAC}")).expect("a MAC");
    a.namespace
        .ip_batch(&format!(
            "addr add {}/32 dev eth0
             addr add {}/128 dev eth0 nodad
             route add {GATEWAY4} dev eth0 scope link
             route add default via {GATEWAY4} dev eth0
             route add default via {} dev eth0",
            a.v4,
            a.v6,
            lab::GATEWAY6
        ))
        .expect("addresses");
    world.start();
    world.allowed("a", "b", Tcp(80));
    world.allowed("b", "a", Tcp(80));
    world.allowed("a", "outside", Udp(80));
    world.allowed("outside", "a", Icmp);
    world.allowed("host", "a", Tcp(80));
    let status = world.status();
    let delivery = |interface: &str| {
        let workloads = status["workloads"].as_array().expect("a list");
        workloads.iter().find(|one| one["interface"] == interface).expect("is there")["delivery"].clone()
    };
    assert_eq!((delivery("calia"), delivery("calib")), ("interface".into(), "peer".into()));
    drop(wires);
}
