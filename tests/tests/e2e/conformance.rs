//! The conformance cases with the real thing: every probe goes through the loaded program by test run, and what sockets can
//! express goes over real sockets.

#[path = "../../../calico-ebpf-user/tests/cases/mod.rs"]
#[expect(dead_code, reason = "it is of more tests than this one")]
mod cases;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Stdio,
    thread,
    time::Duration,
};

use calico_ebpf_tests::{
    World,
    lab::{HOST4, HOST6, Namespace, OUTSIDE4, OUTSIDE6, Server, UPLINK},
};
use cases::{Case, Probe, Topology};
use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike as _},
};
use serde_json::Value;

/// How long to wait where an answer must come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait where none must.
const DENIED: Duration = Duration::from_millis(400);
const NODE: &str = "node1";

/// The lab of the topology. The workload `x/a` has the namespace of `x-a`.
fn world(topology: &Topology, outside: &BTreeSet<IpAddr>) -> World {
    let mut world = World::new(&[]);
    for workload in &topology.workloads {
        let addresses: Vec<IpAddr> = serde_json::from_value(workload["ips"].clone()).expect("addresses");
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses[..] else { panic!("one address of each family") };
        let text = |key: &str| workload[key].as_str().expect("text");
        let name = text("name").replace('/', "-");
        world.lab.add_workload_with(&name, text("interface"), v4, v6).expect("a workload");
    }
    let lab = &world.lab;
    lab.outside.ip_batch(&format!("route add fd00:10:65::/48 via {HOST6}")).expect("a route");
    for address in outside {
        let (add, via) = match address {
            IpAddr::V4(address) => (format!("addr add {address}/32 dev eth0"), IpAddr::V4(OUTSIDE4)),
            IpAddr::V6(address) => (format!("addr add {address}/128 dev eth0 nodad"), IpAddr::V6(OUTSIDE6)),
        };
        lab.outside.ip_batch(&add).expect("an address");
        lab.host.ip_batch(&format!("route add {address} via {via}")).expect("a route");
    }
    world.remove("workloads.yaml");
    world
}

/// Where a probe comes from or goes to.
fn namespace<'a>(world: &'a World, who: &str) -> &'a Namespace {
    if who.starts_with("ip:") { world.namespace("outside") } else { world.namespace(&who.replace('/', "-")) }
}

/// `of_host`: the case says what the host may.
fn of_sockets(probe: &Probe, of_host: bool) -> bool {
    let kind = match probe.proto.as_str() {
        "TCP" => true,
        // A server on all addresses answers from the wrong one outside.
        "UDP" => !probe.to.starts_with("ip:"),
        "ICMP" | "ICMPv6" => probe.icmp_type.is_none(),
        _ => false,
    };
    kind && (of_host || probe.from != "host" && probe.to != "host")
}

/// Whether a case is about a host endpoint.
fn of_host(policies: &std::path::Path) -> bool {
    fs::read_to_string(policies).expect("a file").contains("kind: HostEndpoint")
}

/// Whether an answer comes back over real sockets.
fn passes(world: &World, topology: &Topology, probe: &Probe) -> bool {
    let address = |who: &str, of_host: Ipv4Addr| match who {
        "host" => of_host.into(),
        who => cases::end(topology, who, probe).parse::<IpAddr>().expect("an address"),
    };
    let from = SocketAddr::new(address(&probe.from, Ipv4Addr::UNSPECIFIED), probe.sport.unwrap_or(0));
    let to = SocketAddr::new(address(&probe.to, HOST4), probe.port);
    let patience = if probe.allow { PATIENCE } else { DENIED };
    let namespace = namespace(world, &probe.from);
    match probe.proto.as_str() {
        "TCP" => namespace.enter(|| tcp(from, to, patience)).expect("the namespace is there"),
        "UDP" => namespace.enter(|| udp(from, to, patience)).expect("the namespace is there"),
        _ => {
            let wait = patience.as_secs().max(1).to_string();
            let mut ping = namespace.command("ping");
            ping.args(["-n", "-q", "-c", "1", "-W", &wait, "-I", &from.ip().to_string(), &to.ip().to_string()]);
            ping.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("ping is there").success()
        }
    }
}

fn tcp(from: SocketAddr, to: SocketAddr, patience: Duration) -> bool {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let connected = || -> nix::Result<TcpStream> {
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let wait = TimeVal::milliseconds(i64::try_from(patience.as_millis()).unwrap_or(i64::MAX));
        setsockopt(&socket, sockopt::SendTimeout, &wait)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        Ok(socket.into())
    };
    let Ok(mut stream) = connected() else { return false };
    let mut answer = [0; 4];
    stream.write_all(b"echo").is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *b"echo"
}

fn udp(from: SocketAddr, to: SocketAddr, patience: Duration) -> bool {
    let Ok(socket) = UdpSocket::bind(from) else { return false };
    let mut answer = [0; 16];
    // A second one, if the first is lost while a neighbour is asked for.
    (0..2).any(|_| {
        socket.set_read_timeout(Some(patience / 2)).is_ok()
            && socket.send_to(b"echo", to).is_ok()
            && socket.recv_from(&mut answer).is_ok_and(|(length, _)| length == 4)
    })
}

/// What the loaded program says of every probe, and whether the files say the same.
fn explained(world: &World, topology: &Topology, case: &Case) -> Vec<Value> {
    let file = world.config().with_file_name("queries");
    let lines = case.probes.iter().map(|probe| format!("{}\n", cases::query(topology, probe))).collect::<String>();
    fs::write(&file, lines).expect("written");
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let answer = world.command(&["explain", "--live", "--config", &text(world.config()), "--queries", &text(&file)]);
    assert_eq!(answer.code, 0, "{answer:?}");
    answer.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_loaded_program_and_real_sockets_say_what_the_cases_say() {
    let topology: Topology = cases::read(&cases::data().join("topology.json"));
    let all: Vec<_> =
        ["calico", "k8s"].into_iter().flat_map(cases::cases).map(|(path, case)| (of_host(&path), path, case)).collect();
    let probes = || all.iter().flat_map(|(of_host, _, case)| case.probes.iter().map(|probe| (*of_host, probe)));
    let whos = probes().flat_map(|(_, probe)| [&probe.from, &probe.to]);
    let outside = whos.filter_map(|who| who.strip_prefix("ip:")?.parse().ok()).collect();
    let mut world = world(&topology, &outside);
    let mut servers = BTreeMap::new();
    for (_, probe) in probes().filter(|(of_host, probe)| of_sockets(probe, *of_host) && probe.port != 0) {
        let namespace = namespace(&world, &probe.to);
        let name = (namespace.name().to_owned(), probe.port);
        servers.entry(name).or_insert_with(|| Server::start(namespace, probe.port).expect("a server"));
    }

    let mut started = false;
    let (mut asked, mut connected, mut wrong) = (0, 0, Vec::new());
    for (of_host, path, case) in &all {
        let name = cases::name(path);
        world.write("topology.json", &cases::resources_of(&topology, case).to_string());
        let text = fs::read_to_string(path).expect("a file");
        // The uplink of the lab has another name than that of the topology.
        let uplink = format!("interfaceName: {UPLINK}");
        world.write("policy.yaml", &text.replace("interfaceName: eth0", &uplink));
        if started {
            let answer = world.command(&["reload"]);
            assert_eq!(answer.code, 0, "{name}: {answer:?}");
        } else {
            world.start_with(&["--node", NODE]);
            started = true;
        }
        for (probe, answer) in case.probes.iter().zip(explained(&world, &topology, case)) {
            asked += 1;
            let about_host = probe.from == "host" || probe.to == "host";
            let verdict = if probe.allow { "allow" } else { "deny" };
            if !about_host && answer["verdict"] != verdict || !answer["files"].is_null() {
                wrong.push(format!("{name} ({}): {probe:?}: the program says {answer}", case.title));
            }
        }
        let of_case: Vec<&Probe> = case.probes.iter().filter(|probe| of_sockets(probe, *of_host)).collect();
        connected += of_case.len();
        thread::scope(|scope| {
            let running: Vec<_> =
                of_case.iter().map(|probe| scope.spawn(|| passes(&world, &topology, probe) == probe.allow)).collect();
            for (probe, right) in of_case.iter().zip(running) {
                if !right.join().expect("no panic") {
                    wrong.push(format!("{name} ({}): {probe:?}: real sockets say otherwise", case.title));
                }
            }
        });
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    println!("{asked} probes asked of the program, {connected} over sockets, {} cases", all.len());
    assert!(asked > 500 && connected > 400, "only {asked} and {connected}");
}
