//! What policy rejects is answered: real sockets are told at once.

use std::{
    io::{Error, ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    process::Stdio,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{
    Protocol::{Tcp, Udp},
    World, eventually,
    lab::{HOST4, OUTSIDE4},
    resources::{felix, policy},
};

/// How long an answer may take, on a loaded machine; the kernel itself would give up much later.
const SOON: Duration = Duration::from_secs(3);
/// How long to wait where none is expected.
const SILENCE: Duration = Duration::from_millis(400);
const EACCES: i32 = 13;

/// How a connection fails.
fn connecting(world: &World, from: &str, to: SocketAddr, patience: Duration) -> Error {
    let connected = world.namespace(from).enter(|| TcpStream::connect_timeout(&to, patience)).expect("enters");
    connected.err().unwrap_or_else(|| panic!("{from} is connected to {to}"))
}

/// How a datagram fails.
fn sending(world: &World, from: &str, to: SocketAddr, patience: Duration) -> Error {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let received = world.namespace(from).enter(|| {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(b"echo")?;
        socket.recv(&mut [0; 16])
    });
    received.expect("enters").err().unwrap_or_else(|| panic!("{from} has an answer of {to}"))
}

fn rejected(world: &World, from: &str, to: &str, protocols: &[calico_ebpf_tests::Protocol]) {
    for address in world.addresses(to) {
        for protocol in protocols {
            let before = Instant::now();
            match *protocol {
                Tcp(port) => {
                    let error = connecting(world, from, SocketAddr::new(address, port), SOON);
                    let text = format!("{from} to {to} ({address}): {error}\n{}", world.describe());
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{text}");
                }
                Udp(port) => {
                    let error = sending(world, from, SocketAddr::new(address, port), SOON);
                    let text = format!("{from} to {to} ({address}): {error}\n{}", world.describe());
                    // What the kernel makes of type 3 code 13, and of type 1 code 1.
                    let told = if address.is_ipv4() {
                        error.kind() == ErrorKind::HostUnreachable
                    } else {
                        error.raw_os_error() == Some(EACCES)
                    };
                    assert!(told, "{text}");
                }
                calico_ebpf_tests::Protocol::Icmp => unreachable!("not tried"),
            }
            assert!(before.elapsed() < SOON, "{from} to {to}: {:?}", before.elapsed());
        }
    }
}

fn silent(world: &World, from: &str, to: &str) {
    let address = SocketAddr::new(world.addresses(to)[1], 80);
    assert_eq!(connecting(world, from, address, SILENCE).kind(), ErrorKind::TimedOut, "{from} to {to}");
    assert_eq!(sending(world, from, address, SILENCE).kind(), ErrorKind::WouldBlock, "{from} to {to}");
}

const BOTH: [calico_ebpf_tests::Protocol; 2] = [Tcp(80), Udp(80)];

/// `b` may receive nothing, `c` may send nothing.
fn closed() -> [String; 2] {
    [policy("b-in", "app == 'b'", "  types: [Ingress]\n"), policy("c-out", "app == 'c'", "  types: [Egress]\n")]
}

#[test]
fn a_node_that_rejects_tells_everybody() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.start();
    world.enforce(&closed());
    silent(&world, "a", "b");
    silent(&world, "outside", "b");
    silent(&world, "c", "outside");
    for parameter in ["dropActionOverride", "iptablesFilterDenyAction"] {
        world.write("felix.yaml", &felix(parameter, "Reject"));
        world.enforce(&closed());
        rejected(&world, "a", "b", &BOTH);
        rejected(&world, "outside", "b", &BOTH);
        rejected(&world, "c", "a", &BOTH);
        rejected(&world, "c", "outside", &BOTH);
    }
    world.allowed("a", "outside", Tcp(80));
    world.allowed("outside", "a", Udp(80));
    // Nothing that was rejected has made a connection.
    let conntrack = world.command(&["conntrack"]).stdout;
    assert!(!conntrack.contains("t/lab-k8s-b-eth0") && !conntrack.contains("t/lab-k8s-c-eth0"), "{conntrack}");
    let b = world.lab.workload("b").v4.to_string();
    let ping = |from: &str| {
        let output = world.namespace(from).command("ping").args(["-n", "-c", "1", "-W", "2", &b]).output();
        String::from_utf8_lossy(&output.expect("ping").stdout).to_lowercase()
    };
    for from in ["a", "outside"] {
        let text = ping(from);
        assert!(text.contains("packet filtered"), "{from}: {text}");
    }
    // What is no matter of policy stays silent: the host, whose action is Drop.
    let host = SocketAddr::new(HOST4.into(), 80);
    assert_eq!(connecting(&world, "a", host, SILENCE).kind(), ErrorKind::TimedOut);
}

#[test]
fn rules_and_policies_say_it_for_themselves() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.serve(81);
    world.serve(82);
    world.start();
    let rule = |protocol: &str, port: u16, action: &str| {
        let metadata = match action {
            "" => String::new(),
            action => format!(", metadata: {{annotations: {{calico-ebpf/deny-action: {action}}}}}"),
        };
        format!("    - {{action: Deny, protocol: {protocol}, destination: {{ports: [{port}]}}{metadata}}}\n")
    };
    let rules = format!(
        "  types: [Ingress]\n  ingress:\n{}{}{}    - {{action: Allow}}\n",
        rule("TCP", 80, "Reject"),
        rule("TCP", 81, "Drop"),
        rule("TCP", 82, "")
    );
    let plain = policy("b-in", "app == 'b'", &rules);
    let annotated = plain.replace("  name: b-in\n", "  name: b-in\n  annotations: {calico-ebpf/deny-action: Reject}\n");
    let expect = |world: &World, told: [bool; 3], why: &str| {
        for (port, told) in [80, 81, 82].into_iter().zip(told) {
            let (patience, kind) =
                if told { (SOON, ErrorKind::ConnectionRefused) } else { (SILENCE, ErrorKind::TimedOut) };
            let to = SocketAddr::new(world.addresses("b")[0], port);
            assert_eq!(connecting(world, "a", to, patience).kind(), kind, "port {port}: {why}");
        }
    };
    world.enforce(std::slice::from_ref(&plain));
    expect(&world, [true, false, false], "only the rule that says so");
    let rules = world.command(&["rules", "t/b"]).stdout;
    assert!(rules.contains("reject") && rules.contains("deny"), "{rules}");
    world.enforce(&[annotated]);
    expect(&world, [true, false, true], "the policy's, but for the rule that says otherwise");
    world.write("felix.yaml", &felix("nftablesFilterDenyAction", "Reject"));
    world.enforce(std::slice::from_ref(&plain));
    expect(&world, [true, false, true], "the node's, but for the rule that says otherwise");
    world.allowed("a", "b", Udp(80));
    let config = world.config().to_str().expect("text");
    for judge in [&["--live"][..], &["--config", config, "--node", "lab"]] {
        let flow = ["explain", "--from", "t/a", "--to", "t/b", "--protocol", "TCP", "--port", "80", "--output", "json"];
        let mut command = world.program(&[&flow[..], judge].concat());
        let output = command.output().expect("explains");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(answer["destination"]["reject"], true, "{answer}");
        assert_eq!(answer["destination"]["verdict"], "deny", "{answer}");
    }
}

#[test]
fn a_connection_that_is_cut_is_reset() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("felix.yaml", &felix("dropActionOverride", "Reject"));
    world.start();
    for (from, to) in [("a", "b"), ("outside", "b"), ("a", "outside")] {
        for address in world.addresses(to) {
            world.enforce(&[policy("none", "app == 'nobody'", "  types: [Ingress]\n")]);
            let to = SocketAddr::new(address, 80);
            let connected = world.namespace(from).enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)));
            let mut stream = connected.expect("enters").expect("connects");
            stream.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
            let mut answer = [0; 4];
            stream.write_all(b"echo").and_then(|()| stream.read_exact(&mut answer)).expect("an echo");
            world.enforce(&[
                policy("a-out", "app == 'a'", "  types: [Egress]\n"),
                policy("b-in", "app == 'b'", "  types: [Ingress]\n"),
            ]);
            // More than one segment, as the kernel makes super-packets of.
            let written = stream.write_all(&[7; 20_000]);
            let error = written.and_then(|()| stream.read_exact(&mut answer)).expect_err("cut");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{from} to {to}\n{}", world.describe());
        }
    }
}

#[test]
fn what_the_host_translates_is_answered_by_whom_was_asked() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("felix.yaml", &felix("dropActionOverride", "Reject"));
    world.start();
    world.write("felix.yaml", &(felix("dropActionOverride", "Reject") + "  defaultEndpointToHostAction: Accept\n"));
    let (a, elsewhere) = (world.lab.workload("a").v4, Ipv4Addr::new(203, 0, 113, 1));
    let rules = format!(
        "table ip hostport {{
            chain pre {{ type nat hook prerouting priority dstnat;
                ip daddr {HOST4} tcp dport 8080 dnat to {a}:80;
                ip daddr {HOST4} udp dport 8080 dnat to {a}:80;
                ip daddr {elsewhere} tcp dport 8080 dnat to {OUTSIDE4}:80;
                ip daddr {elsewhere} udp dport 8080 dnat to {OUTSIDE4}:80;
            }}
            chain post {{ type nat hook postrouting priority srcnat; }}
        }}"
    );
    let mut nft = world.lab.host.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("writes");
    assert!(nft.wait().expect("nft").success());
    let forwarded = SocketAddr::new(HOST4.into(), 8080);
    let translated = SocketAddr::new(elsewhere.into(), 8080);
    let no_outside = "  types: [Egress]\n  egress:
    - {action: Deny, destination: {nets: [192.0.2.2/32]}}
    - {action: Allow}\n";
    world.enforce(&[policy("a-in", "app == 'a'", "  types: [Ingress]\n"), policy("b-out", "app == 'b'", no_outside)]);
    for (from, to) in [("outside", forwarded), ("b", forwarded), ("b", translated)] {
        eventually("the error of TCP", Duration::from_secs(3), || {
            connecting(&world, from, to, SILENCE).kind() == ErrorKind::ConnectionRefused
        });
        let error = sending(&world, from, to, SOON);
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{from} to {to}: {error}\n{}", world.describe());
    }
}
