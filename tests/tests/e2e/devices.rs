//! Uplinks that are devices on top of others: VLANs, VLANs in VLANs, bonds, a VLAN on a bond; and links whose MTUs are far apart.
//!
//! Not every kernel has such devices; those of the virtual machines do.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, eventually,
    frames::Wire,
    lab::{GATEWAY4, GATEWAY6, HOST4, HOST6, Namespace, OUTSIDE4, OUTSIDE6, UPLINK},
    nft,
    resources::{self, NODE, policy},
    stream::{Beat, Tally, transfer},
};

use crate::{host_endpoints::host_endpoint, shapes::echoes};

/// What lies between the uplink and the cable, from below; `{}` is the device below.
#[derive(Clone, Copy)]
struct Stack {
    /// Makes a device and configures those it is made of.
    layers: &'static [(&'static str, &'static str)],
    /// The kind of device that the kernel has to have.
    kind: &'static str,
}

const VLAN: (&str, &str) = ("v100", "link add link {} name v100 type vlan id 100\nlink set v100 up");
/// The cable has room for the second tag.
const QINQ: (&str, &str) = (
    "s100",
    "link set {} mtu 1504\n\
     link add link {} name s100 type vlan proto 802.1ad id 100\n\
     link set s100 up",
);
const INNER: (&str, &str) =
    ("s100.c200", "link add link {} name s100.c200 mtu 1500 type vlan id 200\nlink set s100.c200 up");
const BOND: (&str, &str) = (
    "bond0",
    "link add bond0 type bond mode active-backup miimon 50\n\
     link set {} down\n\
     link set second down\n\
     link set {} master bond0\n\
     link set second master bond0\n\
     link set bond0 up",
);

/// Whether the kernel has a kind of device. In the virtual machines it must.
fn has(kind: &str, namespace: &Namespace) -> bool {
    let more = match kind {
        "vlan" => "id 1",
        "vrf" => "table 99",
        _ => "",
    };
    let refused = match namespace.ip(&format!("link add probe type {kind} {more}")) {
        Ok(_) => return namespace.ip("link del probe").is_ok(),
        Err(error) => error.to_string(),
    };
    // A VLAN needs a device below it; a kernel without VLANs does not get so far as to say so.
    if !refused.contains("Unknown device type") {
        return true;
    }
    assert!(std::env::var_os("CALICO_EBPF_NO_SKIP").is_none(), "no devices of type {kind}: {refused}");
    println!("\nfact: no {kind}");
    false
}

/// A world whose uplink is the top of `stack`, also at the other end; `None` where the kernel has no such devices.
fn world(stack: &Stack, tag_in_frame: bool) -> Option<(World, &'static str)> {
    let mut world = World::new(&["a"]);
    if !has(stack.kind, &world.lab.host) {
        return None;
    }
    let (host, outside) = (&world.lab.host, &world.lab.outside);
    host.ip(&format!("link add second type veth peer name second netns {}", outside.name())).expect("a second cable");
    let mut top = "";
    for (namespace, cable, own, gateway) in [
        (
            outside,
            "eth0",
            (OUTSIDE4, OUTSIDE6),
            format!("route replace 10.65.0.0/16 via {HOST4}\nroute replace fd00:65::/64 via {HOST6}"),
        ),
        (host, UPLINK, (HOST4, HOST6), format!("route add default via {OUTSIDE4}\nroute add default via {OUTSIDE6}")),
    ] {
        namespace.ip(&format!("addr flush dev {cable}")).expect("flushes");
        if tag_in_frame {
            for device in [cable, "second"] {
                let arguments = ["-K", device, "tx-vlan-hw-insert", "off", "rx-vlan-hw-parse", "off"];
                let stags = ["tx-vlan-stag-hw-insert", "off", "rx-vlan-stag-hw-parse", "off"];
                let status = namespace.command("ethtool").args(arguments).args(stags).status();
                assert!(status.expect("ethtool").success(), "{device}");
            }
        }
        let mut below = cable;
        for (name, lines) in stack.layers {
            namespace.ip_batch(&lines.replace("{}", below)).expect("a device");
            below = name;
        }
        namespace
            .ip_batch(&format!("addr add {}/24 dev {below}\naddr add {}/64 dev {below} nodad\n{gateway}", own.0, own.1))
            .expect("addresses");
        top = below;
    }
    [80, 81, 82].into_iter().for_each(|port| world.serve(port));
    Some((world, top))
}

/// Starts the program without telling it the uplink.
fn start(world: &mut World) {
    let mut command = world.program(&["run"]);
    command.arg("--config").arg(world.config()).args(["--node", NODE, "--listen", "off"]);
    world.start_command(command);
}

/// How many packets the host's stack has forwarded.
fn forwarded(host: &Namespace) -> u64 {
    let output = host.command("nft").args(["list", "table", "inet", "seen"]).output().expect("nft");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no counter: {text}"))
}

/// Our filters on a device.
fn filters(world: &World, device: &str) -> bool {
    let index = world.lab.host.ip(&format!("-o link show dev {device}")).expect("a device");
    let index = index.split(':').next().expect("an index").to_owned();
    let layouts = std::fs::read_dir(world.lab.pin_dir()).into_iter().flatten().flatten();
    let pins = layouts.flat_map(|layout| std::fs::read_dir(layout.path()).into_iter().flatten().flatten());
    let pinned = pins.filter(|pin| pin.file_name().to_string_lossy().starts_with(&format!("link_{index}_"))).count();
    let by_tc = |direction| {
        let output = world.lab.host.command("tc").args(["filter", "show", "dev", device, direction]).output();
        String::from_utf8_lossy(&output.expect("tc").stdout).contains("cali_")
    };
    pinned > 0 || by_tc("ingress") || by_tc("egress")
}

const RULES: &str = "  types: [Ingress, Egress]
  ingress:
    - {action: Deny, protocol: TCP, destination: {ports: [81]}}
    - {action: Allow}
  egress:
    - {action: Deny, protocol: TCP, destination: {ports: [82]}}
    - {action: Allow}
";

/// Traffic both ways, by the fast path, of all shapes; policy at the workload for what comes and what goes.
fn carries_everything(stack: &Stack) {
    const BYTES: usize = 4 << 20;
    for tag_in_frame in [false, true] {
        let Some((mut world, top)) = world(stack, tag_in_frame) else { return };
        world.write("policy.yaml", &policy("a", "app == 'a'", RULES));
        start(&mut world);
        let status = world.status();
        assert_eq!(status["uplinks"].as_array().map(Vec::as_slice), Some(&[top.into()][..]), "{status}");
        assert!(filters(&world, top), "{}", world.describe());
        let below = stack.layers.iter().map(|(name, _)| *name).filter(|name| *name != top);
        for device in below.chain([UPLINK, "second"]) {
            assert!(!filters(&world, device), "{device}: judged once, where it is what it is");
        }
        for (from, to) in [("a", "outside"), ("outside", "a")] {
            for protocol in [Tcp(80), Udp(80), Icmp] {
                world.allowed(from, to, protocol);
            }
            for address in world.addresses(to) {
                assert!(echoes(world.namespace(from), SocketAddr::new(address, 80), 20_000), "{from}, {address}");
            }
        }
        world.denied("outside", "a", Tcp(81));
        world.denied("a", "outside", Tcp(82));
        world.allowed("host", "outside", Tcp(82));
        nft(
            &world.lab.host,
            "table inet seen {\n chain forward {\n type filter hook forward priority 0\n counter\n }\n }",
        );
        for (from, to) in [("a", "outside"), ("outside", "a")] {
            for address in world.addresses(to) {
                let before = forwarded(&world.lab.host);
                let to = SocketAddr::new(address, 80);
                let received = world.namespace(from).enter(|| transfer(to, BYTES)).expect("enters");
                assert_eq!(received, BYTES, "{from} to {to}\n{}", world.describe());
                let by_stack = forwarded(&world.lab.host) - before;
                // The handshake, and nothing of the 64 super-packets that are the least that it takes.
                assert!(by_stack < 16, "{from} to {to}: {by_stack} packets took the stack\n{}", world.describe());
            }
        }
        finds_the_mtu(&world, top);
    }
}

/// The uplink takes less than the workload's link.
fn finds_the_mtu(world: &World, top: &str) {
    const BYTES: usize = 1 << 20;
    let a = &world.lab.workload("a").namespace;
    for namespace in [&world.lab.host, &world.lab.outside] {
        namespace.ip(&format!("link set {top} mtu 1400")).expect("an MTU");
    }
    // Both ends claim to take more.
    world
        .lab
        .outside
        .ip_batch(&format!(
            "route replace 10.65.0.0/16 via {HOST4} advmss 1460\nroute replace fd00:65::/64 via {HOST6} advmss 1440"
        ))
        .expect("routes");
    a.ip_batch(&format!(
        "route replace default via {GATEWAY4} dev eth0 advmss 1460\n\
         route replace default via {GATEWAY6} dev eth0 advmss 1440"
    ))
    .expect("routes");
    eventually("the new MTU is known", Duration::from_secs(5), || {
        let mut ping = a.command("ping");
        let output = ping.args(["-n", "-c", "1", "-W", "1", "-M", "do", "-s", "1420", &OUTSIDE4.to_string()]).output();
        String::from_utf8_lossy(&output.expect("ping").stdout).contains("1400")
    });
    for command in ["route flush cache", "-6 route flush cache"] {
        a.ip(command).expect("flushes");
    }
    for address in world.addresses("outside") {
        let received = a.enter(|| transfer(SocketAddr::new(address, 80), BYTES)).expect("enters");
        assert_eq!(received, BYTES, "{address}\n{}", world.describe());
        let route = a.ip(&format!("route get {address}")).expect("a route");
        assert!(route.contains("mtu 1400"), "{route}");
    }
}

#[test]
fn a_vlan() {
    carries_everything(&Stack { layers: &[VLAN], kind: "vlan" });
}

#[test]
fn a_vlan_in_a_vlan() {
    carries_everything(&Stack { layers: &[QINQ, INNER], kind: "vlan" });
}

#[test]
fn a_bond() {
    carries_everything(&Stack { layers: &[BOND], kind: "bond" });
}

#[test]
fn a_vlan_on_a_bond() {
    carries_everything(&Stack { layers: &[BOND, VLAN], kind: "bond" });
}

#[test]
fn a_bond_that_loses_a_cable() {
    let Some((mut world, _)) = world(&Stack { layers: &[BOND], kind: "bond" }, false) else { return };
    start(&mut world);
    world.allowed("a", "outside", Udp(80));
    let beats = world
        .addresses("outside")
        .map(|address| Beat::start(world.namespace("a"), SocketAddr::new(address, 80), Duration::from_millis(5)));
    for cable in [UPLINK, "second"] {
        std::thread::sleep(Duration::from_millis(300));
        world.lab.host.ip(&format!("link set {cable} down")).expect("cuts it");
        std::thread::sleep(Duration::from_secs(1));
        world.allowed("a", "outside", Tcp(80));
        world.allowed("outside", "a", Tcp(80));
        world.lab.host.ip(&format!("link set {cable} up")).expect("mends it");
        std::thread::sleep(Duration::from_millis(500));
    }
    for beat in beats {
        let Tally { sent, received, outage, .. } = beat.stop();
        assert!(received * 10 > sent * 7 && outage < Duration::from_secs(2), "{received} of {sent}, {outage:?}");
    }
}

/// Traffic of a VLAN is the VLAN's, also where the device below it is judged for itself.
#[test]
fn a_vlan_beside_its_own_cable() {
    for tag_in_frame in [false, true] {
        let Some((mut world, top)) = world(&Stack { layers: &[VLAN], kind: "vlan" }, tag_in_frame) else { return };
        let endpoint = |device: &str| {
            format!(
                "apiVersion: projectcalico.org/v3
kind: HostEndpoint
metadata: {{name: {device}, labels: {{device: {device}}}}}
spec: {{node: {NODE}, interfaceName: {device}, profiles: [projectcalico-default-allow]}}
"
            )
        };
        let untracked = |name: &str, device: &str, rule: &str| {
            let selector = format!("device == '{device}'");
            let rules =
                format!("  doNotTrack: true\n  applyOnForward: true\n  types: [Ingress]\n  ingress:\n    - {rule}\n");
            policy(name, &selector, &rules)
        };
        world.write("host.yaml", &resources::documents(&[endpoint(UPLINK), endpoint(top)]));
        // Allowed on the cable, where nothing comes; denied on the VLAN.
        let policies = [
            untracked("cable-allows", UPLINK, "{action: Allow, protocol: TCP, destination: {ports: [81]}}"),
            untracked("cable-denies", UPLINK, "{action: Deny, protocol: TCP, destination: {ports: [82]}}"),
            untracked("vlan-denies", top, "{action: Deny, protocol: TCP, destination: {ports: [81]}}"),
        ];
        world.write("policy.yaml", &resources::documents(&policies));
        start(&mut world);
        for to in ["host", "a"] {
            world.allowed("outside", to, Tcp(80));
            world.denied("outside", to, Tcp(81));
            world.allowed("outside", to, Tcp(82));
        }
        // Without the VLAN what comes by the cable is the cable's, and judged before the kernel makes a packet of it.
        let modes = |world: &World| world.status()["xdp"].to_string();
        assert!(modes(&world).contains("VLAN"), "{}", modes(&world));
        world.lab.host.ip(&format!("link del {top}")).expect("deletes");
        let (host, outside) = (&world.lab.host, &world.lab.outside);
        outside.ip_batch(&format!("link del {top}\naddr add {OUTSIDE4}/24 dev eth0")).expect("an address");
        host.ip(&format!("addr add {HOST4}/24 dev {UPLINK}")).expect("an address");
        eventually("the cable has its program", Duration::from_secs(5), || modes(&world).contains("\"native\""));
        let reaches =
            |port, patience| world.reaches("outside", HOST4.into(), Tcp(port), Duration::from_millis(patience));
        assert!(reaches(81, 5000) && !reaches(82, 400), "{}", world.describe());
    }
}

#[test]
fn what_is_in_a_vrf_is_an_interface_of_the_host() {
    let mut world = World::new(&["a"]);
    if !has("vrf", &world.lab.host) {
        return;
    }
    let (host, outside) = (&world.lab.host, &world.lab.outside);
    let lines = format!(
        "link add red type vrf table 99\nlink set red up\nlink add second type veth peer name second netns {}\n\
         link set second master red\nlink set second up\naddr add 198.51.100.1/24 dev second",
        outside.name()
    );
    host.ip_batch(&lines).expect("a VRF");
    outside.ip_batch("link set second up\naddr add 198.51.100.2/24 dev second").expect("the other end");
    let reached = |world: &World, patience: u64| {
        world.reaches("outside", Ipv4Addr::new(198, 51, 100, 1).into(), Icmp, Duration::from_millis(patience))
    };
    world.start();
    assert!(reached(&world, 5000), "{}", world.describe());
    world.write("host.yaml", &host_endpoint("all", "  interfaceName: '*'\n"));
    assert_eq!(world.command(&["reload"]).code, 0, "{}", world.log());
    assert!(!reached(&world, 500), "{}", world.describe());
    let interfaces = world.status()["hostEndpoints"][0]["interfaces"].to_string();
    assert!(interfaces.contains("second") && interfaces.contains("red"), "{interfaces}");
    let open = "  ingress: [{action: Allow}]\n  egress: [{action: Allow}]\n";
    world.enforce(&[crate::host_endpoints::policy("all", open)]);
    assert!(reached(&world, 5000), "{}", world.describe());
}

/// Links that take 9000 bytes beside such that take 1500, on either side of the host.
#[test]
fn jumbo_frames_on_one_side_or_both() {
    const BYTES: usize = 8 << 20;
    for [workload, uplink] in [[9000, 1500], [1500, 9000], [9000, 9000]] {
        let mut world = World::new(&["a", "b"]);
        world.serve(80);
        let (host, outside, a) = (&world.lab.host, &world.lab.outside, &world.lab.workload("a").namespace);
        host.ip_batch(&format!("link set calia mtu {workload}\nlink set {UPLINK} mtu {uplink}")).expect("MTUs");
        // Everybody claims to take what his own link may not.
        outside
            .ip_batch(&format!(
                "link set eth0 mtu {uplink}\n\
                 route replace 10.65.0.0/16 via {HOST4} advmss 8960\n\
                 route replace fd00:65::/64 via {HOST6} advmss 8940"
            ))
            .expect("outside");
        a.ip_batch(&format!(
            "link set eth0 mtu {workload}\n\
             route replace default via {GATEWAY4} dev eth0 advmss 8960\n\
             route replace default via {GATEWAY6} dev eth0 advmss 8940"
        ))
        .expect("the workload");
        world.start();
        for (from, to) in [("a", "outside"), ("outside", "a"), ("a", "b"), ("b", "a")] {
            for address in world.addresses(to) {
                let to = SocketAddr::new(address, 80);
                // In one packet where the links take it, in pieces of two sizes where not; and more than any takes.
                for bytes in [8_000, 20_000] {
                    assert!(echoes(world.namespace(from), to, bytes), "{workload}, {uplink}: {from} to {to}, {bytes}");
                }
                let received = world.namespace(from).enter(|| transfer(to, BYTES)).expect("enters");
                assert_eq!(received, BYTES, "{workload}, {uplink}: {from} to {to}\n{}", world.describe());
            }
        }
        let largest = largest_segment(&world, workload.min(uplink));
        assert!(largest, "{workload}, {uplink}: super-packets stay whole\n{}", world.describe());
    }
}

/// Whether `a` is sent super-packets by the outside, of segments as large as the links take.
fn largest_segment(world: &World, mtu: u32) -> bool {
    const WHOLE: usize = 55_000;
    let wire = Wire::open(world.namespace("a"), "eth0");
    let [to, _] = world.addresses("a");
    let (mut largest, mut enough) = (0, false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            wire.receive(Duration::from_secs(10), |frame| {
                largest = largest.max(frame.len());
                enough = largest > WHOLE;
                enough
            })
        });
        let length = 32 << 20;
        let received = world.namespace("outside").enter(|| transfer(SocketAddr::new(to, 80), length));
        assert_eq!(received.expect("enters"), length);
    });
    println!("links of {mtu}: packets of up to {largest} bytes");
    enough
}
