//! Untracked policy on the uplink, by XDP in each of its modes and without it; and who answers for workloads on the uplink's
//! own link.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Xdp, XdpMode},
};
use calico_ebpf_common::abi::names;
use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, eventually,
    frames::{Wire, mac, mac_text},
    lab::{HOST4, HOST6, OUTSIDE4, OUTSIDE6, UPLINK},
    resources::{self, NODE},
    stream::{Beat, Talk, transfer},
};
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};

use crate::restart::nothing_lost;

fn host_endpoint() -> String {
    format!(
        "apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {{name: uplink, labels: {{role: edge}}}}
spec: {{node: {NODE}, interfaceName: {UPLINK}, profiles: [projectcalico-default-allow]}}
"
    )
}

fn untracked(rules: &str) -> String {
    let rules = format!("  doNotTrack: true\n  applyOnForward: true\n{rules}");
    resources::policy("raw", "role == 'edge'", &rules)
}

fn felix(parameters: &[(&str, &str)]) -> String {
    let lines: String = parameters.iter().map(|(name, value)| format!("  {name}: {value}\n")).collect();
    format!("apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\nspec:\n{lines}")
}

/// Port 81 is shut, port 80 open, port 22 shut and open all the same; the rest is nobody's business. The host itself does not
/// speak to port 82.
const RULES: &str = "  types: [Ingress, Egress]
  ingress:
    - {action: Deny, protocol: TCP, destination: {ports: [22, 81]}}
    - {action: Deny, protocol: UDP, destination: {ports: [81]}}
    - {action: Allow, protocol: TCP, destination: {ports: [80]}}
    - {action: Allow, protocol: UDP, destination: {ports: [83]}}
  egress:
    - {action: Deny, protocol: UDP, destination: {ports: [82]}}
";

fn world(felix_parameters: &[(&str, &str)]) -> World {
    let mut world = World::new(&["a"]);
    [22, 80, 81, 82].into_iter().for_each(|port| world.serve(port));
    world.write("host.yaml", &host_endpoint());
    world.write("policy.yaml", &untracked(RULES));
    world.write("felix.yaml", &felix(felix_parameters));
    world
}

/// What `status` says of XDP on the uplink.
fn state(world: &World) -> (Option<String>, String) {
    let status = world.status();
    let state = &status["xdp"][0];
    assert_eq!(state["interface"], UPLINK, "{status}");
    (state["mode"].as_str().map(str::to_owned), state["reason"].as_str().expect("a reason").to_owned())
}

fn drops(world: &World, reason: &str) -> u64 {
    world.status()["drops"][reason].as_u64().unwrap_or(0)
}

/// The same whoever judges.
fn verdicts_are_right(world: &World) {
    for to in ["host", "a"] {
        world.allowed("outside", to, Tcp(80));
        world.allowed("outside", to, Tcp(22));
        world.allowed("outside", to, Udp(80));
        world.allowed("outside", to, Icmp);
        world.denied("outside", to, Tcp(81));
        world.denied("outside", to, Udp(81));
    }
    world.allowed("host", "outside", Tcp(82));
    world.denied("host", "outside", Udp(82));
    world.allowed("a", "outside", Udp(82));
    assert!(drops(world, "untracked-ingress") >= 4, "{}", world.describe());
    assert!(drops(world, "untracked-egress") >= 2, "{}", world.describe());
    // Each packet is judged once, whoever it is that judges: by a program before the other one, it would be counted twice.
    assert!(rule_hits(world, 2) > 0);
    let wire = Wire::open(&world.lab.outside, "eth0");
    let mut frame = Vec::new();
    let macs = (mac(&world.lab.outside, "eth0"), mac(&world.lab.host, UPLINK));
    let step = PacketBuilder::ethernet2(macs.0, macs.1).ipv4(OUTSIDE4.octets(), HOST4.octets(), 64).udp(9, 83);
    step.write(&mut frame, &[7; 20]).expect("a packet");
    let allowed = rule_hits(world, 3);
    (0..10).for_each(|_| assert!(wire.send(&frame)));
    eventually("all are judged", Duration::from_secs(2), || rule_hits(world, 3) >= allowed + 10);
    assert_eq!(rule_hits(world, 3), allowed + 10, "judged twice");
}

/// How often a rule of the policy decided.
fn rule_hits(world: &World, rule: u64) -> u64 {
    let answer = world.command(&["rules", "host", "--output", "json"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    let rules = answer.json();
    let lines = rules.as_array().into_iter().flatten().filter_map(|of| of["ingress"].as_array()).flatten();
    lines
        .filter(|line| line["policy"] == "raw" && line["rule"].as_u64() == Some(rule))
        .filter_map(|line| line["hits"].as_u64())
        .sum()
}

fn link_details(world: &World) -> String {
    world.lab.host.ip(&format!("-d link show dev {UPLINK}")).expect("a link")
}

#[test]
fn in_the_driver() {
    let mut world = world(&[]);
    world.start();
    let (mode, reason) = state(&world);
    assert_eq!(mode.as_deref(), Some("native"), "{reason}");
    assert!(link_details(&world).contains("xdp"), "{}", link_details(&world));
    verdicts_are_right(&world);
    let text = world.command(&["status"]).stdout;
    assert!(text.contains("up0, native: "), "{text}");
    let doctor = world.command(&["doctor"]).stdout;
    assert!(doctor.contains("native"), "{doctor}");
}

/// A veth whose other end sends by more queues than this one has takes no XDP program natively.
fn without_native_mode(world: &World) {
    let outside = world.lab.outside.name();
    world.lab.host.ip(&format!("link del {UPLINK}")).expect("deletes");
    world
        .lab
        .host
        .ip_batch(&format!(
            "link add {UPLINK} numtxqueues 1 numrxqueues 1 type veth peer name eth0 netns {outside} numtxqueues 4 numrxqueues 4\n\
             addr add {HOST4}/24 dev {UPLINK}\n\
             addr add {HOST6}/64 dev {UPLINK} nodad\n\
             link set {UPLINK} up"
        ))
        .expect("adds");
    world
        .lab
        .outside
        .ip_batch(&format!(
            "addr add {OUTSIDE4}/24 dev eth0\n\
             addr add {OUTSIDE6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add 10.65.0.0/16 via {HOST4}\n\
             route add fd00:65::/64 via {HOST6}"
        ))
        .expect("configures");
}

#[test]
fn behind_the_driver() {
    let mut world = world(&[("genericXDPEnabled", "true")]);
    without_native_mode(&world);
    world.start();
    let (mode, reason) = state(&world);
    assert_eq!(mode.as_deref(), Some("generic"), "{reason}");
    assert!(link_details(&world).contains("xdpgeneric"), "{}", link_details(&world));
    verdicts_are_right(&world);
}

#[test]
fn only_where_the_driver_can_unless_told_otherwise() {
    let mut world = world(&[]);
    without_native_mode(&world);
    world.start();
    let (mode, reason) = state(&world);
    assert_eq!(mode, None);
    assert!(reason.contains("genericXDPEnabled"), "{reason}");
    assert!(!link_details(&world).contains("xdp"), "{}", link_details(&world));
    verdicts_are_right(&world);
}

#[test]
fn switched_off() {
    let mut world = world(&[("xdpEnabled", "false")]);
    world.start();
    let (mode, reason) = state(&world);
    assert_eq!(mode, None);
    assert!(reason.contains("xdpEnabled"), "{reason}");
    verdicts_are_right(&world);
    // And on again.
    world.write("felix.yaml", &felix(&[]));
    assert_eq!(world.command(&["reload"]).code, 0);
    assert_eq!(state(&world).0.as_deref(), Some("native"));
}

/// An XDP program of somebody else, on the uplink as long as this lives.
struct Foreign {
    _programs: Ebpf,
    directory: std::path::PathBuf,
}

impl Foreign {
    fn attach(world: &World) -> Self {
        let mut directory = world.lab.pin_dir().into_os_string();
        directory.push("-foreign");
        std::fs::create_dir_all(&directory).expect("a directory");
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(&directory).override_global("AYA_LOG_LEVEL", &0_u8, true);
        for map in [names::CONNS4, names::CONNS6, names::RING4, names::RING6, names::RULES] {
            loader.map_max_entries(map, 64);
        }
        let mut programs = loader.load(calico_ebpf_user::dataplane::object()).expect("loads the object");
        let program: &mut Xdp =
            programs.program_mut(names::PROG_XDP_LINEAR).expect("a program").try_into().expect("for XDP");
        program.load().expect("loads");
        let attached = world.lab.host.enter(|| program.attach(c"up0", XdpMode::Driver).map(drop));
        attached.expect("enters").expect("attaches");
        Self { _programs: programs, directory: directory.into() }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn beside_a_program_of_somebody_else() {
    let mut world = world(&[]);
    let foreign = Foreign::attach(&world);
    world.start();
    let (mode, reason) = state(&world);
    assert_eq!(mode, None);
    assert!(reason.contains("another XDP program is there, cali_xdp_up1 (id "), "{reason}");
    assert!(world.log().contains("another XDP program is there"), "{}", world.log());
    let doctor = world.command(&["doctor"]);
    assert!(doctor.stdout.contains("has a program of somebody else, cali_xdp_up1"), "{doctor:?}");
    verdicts_are_right(&world);
    // It goes, and something moves on the link.
    drop(foreign);
    world.lab.host.ip(&format!("link set {UPLINK} alias moved")).expect("moves");
    eventually("ours is there", Duration::from_secs(5), || state(&world).0.as_deref() == Some("native"));
    verdicts_are_right(&world);
}

#[test]
fn nobody_pays_for_what_is_not_there() {
    let mut world = world(&[]);
    world.remove("policy.yaml");
    world.start();
    assert_eq!(world.status()["xdp"].as_array().map(Vec::len), Some(0));
    assert!(!link_details(&world).contains("xdp"), "{}", link_details(&world));
    world.allowed("outside", "host", Tcp(81));
    // It comes and goes with its policy, and what it says about what comes in.
    world.enforce(&[untracked(RULES)]);
    assert_eq!(state(&world).0.as_deref(), Some("native"));
    world.denied("outside", "host", Tcp(81));
    world.enforce(&[untracked(
        "  types: [Egress]\n  egress:\n    - {action: Deny, protocol: UDP, destination: {ports: [82]}}\n",
    )]);
    assert_eq!(state(&world).0, None);
    assert!(!link_details(&world).contains("xdp"), "{}", link_details(&world));
    world.allowed("outside", "host", Tcp(81));
    world.denied("host", "outside", Udp(82));
    world.remove("policy.yaml");
    assert_eq!(world.command(&["reload"]).code, 0);
    world.allowed("host", "outside", Udp(82));
}

#[test]
fn answers_to_the_host_come_by_failsafe_ports_or_by_rules() {
    let mut world = world(&[]);
    world.serve(179);
    world.write("policy.yaml", &untracked("  types: [Ingress]\n  ingress:\n    - {action: Deny}\n"));
    world.start();
    // Nothing knows here what is an answer.
    world.denied("host", "outside", Tcp(80));
    world.denied("outside", "host", Icmp);
    world.denied("outside", "a", Tcp(80));
    world.allowed("host", "outside", Tcp(179));
    world.allowed("outside", "host", Tcp(22));
    world.allowed("outside", "host", Tcp(179));
    world.write("felix.yaml", &felix(&[("failsafeInboundHostPorts", "[]"), ("failsafeOutboundHostPorts", "[]")]));
    assert_eq!(world.command(&["reload"]).code, 0);
    world.denied("outside", "host", Tcp(22));
    world.denied("host", "outside", Tcp(179));
}

#[test]
fn a_deny_list_of_a_hundred_thousand_networks() {
    const NETWORKS: u32 = 100_000;
    let list = |with: &str| {
        let nets: String = (0..NETWORKS)
            .map(|number| {
                let address = Ipv4Addr::from(0x0b00_0000 + number * 8);
                format!("  - {address}/{}\n", 29 + number % 4)
            })
            .collect();
        format!(
            "apiVersion: projectcalico.org/v3
kind: GlobalNetworkSet
metadata: {{name: deny-list, labels: {{list: deny}}}}
spec:
  nets:
{with}{nets}"
        )
    };
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.write("host.yaml", &host_endpoint());
    world.write("list.yaml", &list(""));
    let rules = "  types: [Ingress]\n  ingress:\n    - {action: Deny, source: {selector: list == 'deny'}}\n";
    world.write("policy.yaml", &untracked(rules));
    world.start();
    assert_eq!(state(&world).0.as_deref(), Some("native"));
    world.allowed("outside", "host", Tcp(80));
    world.allowed("outside", "a", Tcp(80));
    let member = format!("  - {OUTSIDE4}/32\n  - \"{OUTSIDE6}/128\"\n");
    for (with, listed) in [(member.as_str(), true), ("", false)] {
        world.write("list.yaml", &list(with));
        let begin = Instant::now();
        assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
        println!("reload of {NETWORKS} networks: {:?}", begin.elapsed());
        for to in ["host", "a"] {
            if listed { world.denied("outside", to, Tcp(80)) } else { world.allowed("outside", to, Tcp(80)) }
        }
    }
}

#[test]
fn kill_and_restart_lose_nothing() {
    let mut world = world(&[]);
    world.start();
    world.allowed("outside", "a", Tcp(80));
    world.allowed("outside", "host", Tcp(80));
    let program = |world: &World| {
        let details = link_details(world);
        let (_, id) = details.split_once("prog/xdp id ").unwrap_or_else(|| panic!("{details}"));
        id.split_whitespace().next().and_then(|id| id.parse::<u32>().ok()).expect("an id")
    };
    let before = program(&world);
    let generation = world.generation();
    let beats: Vec<Beat> = ["a", "host"]
        .into_iter()
        .flat_map(|to| world.addresses(to))
        .map(|to| Beat::start(world.namespace("outside"), SocketAddr::new(to, 80), Duration::from_millis(1)))
        .collect();
    let talk = Talk::start(world.namespace("outside"), SocketAddr::new(HOST4.into(), 80));
    for _ in 0..2 {
        thread::sleep(Duration::from_millis(200));
        world.kill();
        world.denied("outside", "host", Tcp(81));
        assert_eq!(program(&world), before.max(program(&world)), "it stays");
        world.start();
        assert_eq!(state(&world).0.as_deref(), Some("native"));
        world.denied("outside", "host", Tcp(81));
        assert!(talk.goes_on(Duration::from_secs(2)), "{}", world.log());
    }
    assert_eq!(world.generation(), generation, "nothing has changed");
    assert_ne!(program(&world), before, "the new process has put its own program in place");
    nothing_lost(&world, beats);
}

#[test]
fn taken_away_by_hand_it_comes_back() {
    let mut world = world(&[]);
    world.start();
    let pin = world.lab.pin_dir();
    let pins = || {
        let layouts = std::fs::read_dir(&pin).into_iter().flatten().flatten();
        layouts
            .flat_map(|layout| std::fs::read_dir(layout.path()).into_iter().flatten().flatten())
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().contains("_xdp_"))
            .collect::<Vec<_>>()
    };
    let [link] = &pins()[..] else { panic!("{:?}", pins()) };
    std::fs::remove_file(link).expect("removes the pin");
    eventually("it is back", Duration::from_secs(5), || pins().len() == 1 && link_details(&world).contains("xdp"));
    verdicts_are_right(&world);
    world.terminate();
    let answer = world.command(&["purge"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.contains("XDP program of up0 (native)"), "{answer:?}");
    assert!(!link_details(&world).contains("xdp"), "{}", link_details(&world));
    world.allowed("outside", "host", Tcp(81));
}

/// A workload inside of the uplink's own networks.
const INSIDE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const INSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x50);

fn world_with_neighbour(l2: &str, mode: &str) -> World {
    let mut world = World::new(&["a"]);
    world.lab.add_workload_with("n", "calin", INSIDE4, INSIDE6).expect("a workload");
    world.serve(80);
    let pools = [("v4", "192.0.2.0/24"), ("v6", "2001:db8:2::/64"), ("others", "10.65.0.0/16")].map(|(name, cidr)| {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: '{cidr}'}}\n"
        )
    });
    world.write("neighbour.yaml", &resources::documents(&[resources::workload(world.lab.workload("n"))]));
    world.write("pools.yaml", &resources::documents(&pools));
    world.write("felix.yaml", &felix(&[("localSubnetL2Reachability", l2), ("genericXDPEnabled", "true")]));
    if mode != "none" {
        world.write("host.yaml", &host_endpoint());
        world.write("policy.yaml", &untracked(RULES));
    }
    world
}

fn neighbour_is_reached(world: &World) {
    world.allowed("outside", "n", Tcp(80));
    world.allowed("outside", "n", Icmp);
    world.allowed("n", "outside", Tcp(80));
    let uplink = mac_text(mac(&world.lab.host, UPLINK));
    for address in [IpAddr::from(INSIDE4), INSIDE6.into()] {
        let known = world.lab.outside.ip(&format!("neigh show to {address} dev eth0")).expect("neighbours");
        assert!(known.contains(&uplink), "{address}: {known}, the uplink's is {uplink}");
    }
}

#[test]
fn workloads_inside_the_uplinks_network_are_answered_for() {
    let mut world = world_with_neighbour("PodsAndLoadBalancers", "none");
    world.start();
    assert!(!link_details(&world).contains("xdp"), "nobody pays for a few questions");
    neighbour_is_reached(&world);
    // Not those of others, and not those that probe.
    let outside = &world.lab.outside;
    for stranger in ["192.0.2.51", "10.65.0.10"] {
        let _ = outside.ip(&format!("route add {stranger}/32 dev eth0"));
        let _nobody = outside.command("ping").args(["-c", "1", "-W", "1", stranger]).output().expect("ping");
        let known = outside.ip(&format!("neigh show to {stranger} dev eth0")).expect("neighbours");
        assert!(!known.contains("lladdr"), "{stranger}: {known}");
    }
    let wire = Wire::open(outside, "eth0");
    let own = mac(outside, "eth0");
    let (hardware, probe) = (ArpHardwareId::ETHERNET, ArpOperation::REQUEST);
    let packet = ArpPacket::new(hardware, EtherType::IPV4, probe, &own, &[0; 4], &[0; 6], &INSIDE4.octets());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(own, [0xff; 6]).arp(packet.expect("a packet")).write(&mut frame).expect("a packet");
    assert!(wire.send(&frame));
    let answer = |frame: &[u8]| frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == INSIDE4.octets();
    assert_eq!(wire.receive(Duration::from_millis(300), answer), None, "a probe was answered");
    // It goes, and nobody answers for it any more.
    world.remove("neighbour.yaml");
    assert_eq!(world.command(&["reload"]).code, 0);
    world.lab.outside.ip("neigh flush dev eth0").expect("flushes");
    world.denied("outside", "n", Icmp);
    let known = world.lab.outside.ip(&format!("neigh show to {INSIDE4} dev eth0")).expect("neighbours");
    assert!(!known.contains("lladdr"), "{known}");
}

#[test]
fn nobody_is_answered_for_unless_told_so() {
    let mut world = world_with_neighbour("Disabled", "none");
    world.start();
    world.denied("outside", "n", Icmp);
}

#[test]
fn answers_come_beside_xdp_too() {
    for generic in [false, true] {
        let mut world = world_with_neighbour("PodsAndLoadBalancers", "xdp");
        if generic {
            without_native_mode(&world);
        }
        world.start();
        assert_eq!(state(&world).0.as_deref(), Some(if generic { "generic" } else { "native" }));
        neighbour_is_reached(&world);
        let groups = world.lab.host.ip(&format!("maddr show dev {UPLINK}")).expect("groups");
        assert!(groups.contains("33:33:ff:00:00:50"), "{groups}");
        world.terminate();
        assert_eq!(world.command(&["purge"]).code, 0);
        let groups = world.lab.host.ip(&format!("maddr show dev {UPLINK}")).expect("groups");
        assert!(!groups.contains("33:33:ff:00:00:50"), "{groups}");
    }
}

#[test]
fn what_native_mode_takes_from_a_veth() {
    let mut world = world(&[]);
    let features = |world: &World| {
        let of = |namespace: &calico_ebpf_tests::lab::Namespace, interface: &str| {
            let output = namespace.command("ethtool").args(["-k", interface]).output().expect("ethtool");
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>()
        };
        [of(&world.lab.host, UPLINK), of(&world.lab.outside, "eth0")].concat()
    };
    let before = features(&world);
    world.start_with(&["--log-level", "debug"]);
    assert!(!world.log().contains("refuses cali_xdp_up"), "{}", world.log());
    assert_eq!(state(&world).0.as_deref(), Some("native"));
    let changed: Vec<_> = before
        .iter()
        .zip(features(&world))
        .filter(|(was, is)| *was != is)
        .map(|(was, is)| format!("{} -> {}", was.trim(), is.trim()))
        .collect();
    println!("features: {changed:?}");
    // Frames get room in front for the program, and no segmentation is left to the other end of a veth that has one (Linux
    // 6.18): what docs/xdp.md says.
    let kept = ["rx-checksumming", "tx-checksumming", "scatter-gather"];
    assert!(changed.iter().all(|line| !kept.iter().any(|kept| line.starts_with(kept))), "{changed:?}");
    let bytes = 8 << 20;
    for to in world.addresses("host").into_iter().chain(world.addresses("a")) {
        let received = world.namespace("outside").enter(|| transfer(SocketAddr::new(to, 80), bytes)).expect("enters");
        assert_eq!(received, bytes, "{to}");
    }
}
