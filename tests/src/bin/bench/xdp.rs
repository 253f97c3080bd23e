//! XDP: what it would save to deliver to workloads by it, and what a long deny list costs in it.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aya::{
    maps::{PerCpuArray, ProgramArray},
    programs::{TestRun as _, TestRunOptions, Xdp, XdpMode, loaded_programs},
};
use calico_ebpf_common::abi::{DropReason, names};
use etherparse::PacketBuilder;
use xtask::lab::{Namespace, OUTSIDE4, UPLINK};

use crate::{
    cpu,
    kernel::{ifindex, mac},
    policy::{Instance, SUBJECTS, map, pinned},
    random::Random,
    report::{Report, interleave},
    tcp,
    variant::{Kind, PORTS, Variant},
};

const COUNT: u32 = 200_000;
const ROUNDS: usize = 15;
const REPEAT: u32 = 400_000;

pub(crate) fn run(report: &mut Report, wants: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    if wants("delivery") {
        delivery(report).context("delivery")?;
    }
    if wants("denylist") {
        deny_list(report).context("a deny list")?;
    }
    Ok(())
}

/// How packets come from the uplink to a workload.
struct Way {
    name: &'static str,
    variant: Variant,
    mode: Option<XdpMode>,
}

impl Way {
    /// `sender_cuts`: the sender's veth has no offloads, so that what arrives is as from a wire: cut, and with checksums (a frame
    /// that XDP has sent on has lost that somebody was yet to make one). The uplink receives by NAPI and GRO then.
    fn new(name: &'static str, sender_cuts: bool, mode: Option<XdpMode>, workload_gro: bool) -> anyhow::Result<Self> {
        // Where XDP delivers, nobody else knows the connections: the way back is the kernel's routing.
        let mut variant = Variant::new(if mode.is_some() { Kind::Routing } else { Kind::Ours })?;
        let lab = &variant.lab;
        if sender_cuts {
            offload(&lab.outside, "eth0", &["tx", "off"])?;
            offload(&lab.host, UPLINK, &["gro", "on"])?;
        }
        if workload_gro {
            offload(&lab.workload("a").namespace, "eth0", &["gro", "on"])?;
        }
        if let Some(mode) = mode {
            variant.kernel.deliver(&lab.host, (UPLINK, mode), lab.workload("a"))?;
        }
        Ok(Self { name, variant, mode })
    }

    /// Makes the flow of datagrams one that both ends have answered, and counts from now on what arrives of it.
    fn datagrams(&mut self) -> anyhow::Result<()> {
        let lab = &self.variant.lab;
        let a = lab.workload("a");
        let server = a.namespace.enter(|| UdpSocket::bind((a.v4, PORTS.1)))??;
        let client = lab.outside.enter(|| UdpSocket::bind((OUTSIDE4, PORTS.0)))??;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        }
        let mut buffer = [0; 8];
        for _ in 0..3 {
            client.send_to(b"ask", SocketAddr::from((a.v4, PORTS.1)))?;
            let (_, from) = server.recv_from(&mut buffer).with_context(|| format!("{}: nothing arrives", self.name))?;
            server.send_to(b"answer", from)?;
            client.recv_from(&mut buffer).with_context(|| format!("{}: nothing comes back", self.name))?;
        }
        self.variant.kernel.sink(&a.namespace, "eth0")
    }

    /// Sends datagrams from outside; how many arrived, and how long it took.
    fn send(&mut self, count: u32) -> anyhow::Result<(u64, Duration)> {
        let Variant { lab, kernel, .. } = &mut self.variant;
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(mac(&lab.outside, "eth0")?, mac(&lab.host, UPLINK)?)
            .ipv4(OUTSIDE4.octets(), lab.workload("a").v4.octets(), 64)
            .udp(PORTS.0, PORTS.1)
            .write(&mut frame, &[0; 22])?;
        let before = kernel.sunk()?;
        let took = kernel.send(&lab.outside, "eth0", &frame, count)?;
        std::thread::sleep(Duration::from_millis(2));
        Ok((kernel.sunk()? - before, took))
    }

    /// Nanoseconds a datagram.
    fn nanoseconds(&mut self) -> anyhow::Result<f64> {
        let (arrived, took) = self.send(COUNT)?;
        ensure!(arrived as f64 >= 0.999 * f64::from(COUNT), "{}: only {arrived} of {COUNT} arrived", self.name);
        Ok(took.as_nanos() as f64 / f64::from(COUNT))
    }

    /// Gbit/s from outside to the workload.
    fn bulk(&mut self) -> anyhow::Result<f64> {
        let lab = &self.variant.lab;
        let a = lab.workload("a");
        tcp::bulk((&lab.outside, &a.namespace, a.v4))
    }
}

fn offload(namespace: &Namespace, device: &str, what: &[&str]) -> anyhow::Result<()> {
    let output = namespace.command("ethtool").args(["-K", device]).args(what).output().context("ethtool")?;
    ensure!(output.status.success(), "{device}: {what:?}");
    Ok(())
}

/// The same packets from the uplink to a workload: by the TC program, policy and connections included, and by an XDP program
/// that knows neither.
fn delivery(report: &mut Report) -> anyhow::Result<()> {
    let (driver, generic) = (Some(XdpMode::Driver), Some(XdpMode::Skb));
    let ways = [
        ("calico-ebpf (TC)", true, None, false),
        ("bare XDP in the driver, GRO at the workload (driver)", true, driver, true),
        ("bare generic XDP, GRO at the workload (generic, GRO)", true, generic, true),
        ("bare generic XDP, workload as it is (generic)", true, generic, false),
    ];
    let make = |(name, cuts, mode, gro)| Way::new(name, cuts, mode, gro);
    let mut datagrams = ways.map(make).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    for way in &mut datagrams {
        way.datagrams()?;
    }
    let name = |way: &Way| way.name.to_owned();
    cpu::pin(1)?;
    let rows = interleave(ROUNDS, &mut datagrams, name, Way::nanoseconds)?;
    report.section("64-byte UDP from the uplink to a workload, established, one CPU", "ns/packet", rows);

    // What a workload with its veth as it is made gets by XDP in the driver.
    let mut as_it_is = Way::new("bare XDP in the driver, workload as it is", true, driver, false)?;
    let a = &as_it_is.variant.lab.workload("a").namespace;
    as_it_is.variant.kernel.sink(a, "eth0")?;
    let (arrived, _) = as_it_is.send(10_000)?;
    println!("{}: {arrived} of 10000 datagrams arrive", as_it_is.name);

    let mut streams = vec![Way::new("calico-ebpf, super-packets from a veth (TC, whole)", false, None, false)?];
    for way in ways {
        let way = make(way)?;
        if way.mode == Some(XdpMode::Skb) {
            // What GRO has put together is longer than the workload's link takes, and generic XDP drops it.
            offload(&way.variant.lab.host, UPLINK, &["gro", "off"])?;
        }
        streams.push(way);
    }
    let rows = interleave(9, &mut streams, name, Way::bulk)?;
    report.section("TCP bulk from outside to a workload, client and server on a CPU each", "Gbit/s", rows);
    Ok(())
}

/// An uplink that drops what comes from a set of networks.
fn deny_list(report: &mut Report) -> anyhow::Result<()> {
    cpu::pin(1)?;
    let mut lists = Vec::new();
    for (name, count, mixed) in [
        ("10 networks", 10, false),
        ("1,000,000 addresses", 1_000_000, false),
        ("1,000,000 networks, /22 to /32", 1_000_000, true),
    ] {
        let mut random = Random(13);
        let members: Vec<(u32, u32)> = (0..count)
            .map(|_| {
                let length = if mixed { 22 + random.below(11) } else { 32 };
                (random.next() & u32::MAX << (32 - length), length)
            })
            .collect();
        let mut list = List::new(name, &members)?;
        println!("{name}: started in {:.2} s", list.instance.took.as_secs_f64());
        let known: HashSet<(u32, u32)> = members.iter().copied().collect();
        let listed =
            |address: u32| (22..=32).any(|length| known.contains(&(address & u32::MAX << (32 - length), length)));
        while list.strangers.len() < SUBJECTS as usize {
            list.strangers.extend(Some(random.next()).filter(|address| !listed(*address)));
        }
        list.members.extend((0..SUBJECTS).map(|_| members[random.below(count) as usize].0));
        lists.push(list);
    }
    let name = |list: &List| list.instance.name.clone();
    for (title, dropped) in [("dropped: random members", true), ("passed: random addresses that are none", false)] {
        for list in &mut lists {
            let addresses = if dropped { &list.members } else { &list.strangers };
            let subjects: Vec<[u32; 2]> = addresses.iter().map(|address| [*address, 80]).collect();
            list.instance.subjects(&subjects)?;
        }
        let rows = interleave(9, &mut lists, name, |list| list.cost(dropped))?;
        report.section(&format!("a deny list in the XDP program, {title}"), "ns", rows);
    }
    Ok(())
}

struct List {
    instance: Instance,
    members: Vec<u32>,
    strangers: Vec<u32>,
}

impl List {
    fn new(name: &str, members: &[(u32, u32)]) -> anyhow::Result<Self> {
        let mut text = format!(
            "apiVersion: projectcalico.org/v3\nkind: FelixConfiguration\nmetadata: {{name: default}}\n\
             spec: {{failsafeInboundHostPorts: [], failsafeOutboundHostPorts: []}}\n---\n\
             apiVersion: projectcalico.org/v3\nkind: HostEndpoint\nmetadata: {{name: edge, labels: {{role: edge}}}}\n\
             spec: {{node: bench, interfaceName: {UPLINK}, profiles: [projectcalico-default-allow]}}\n---\n\
             apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  \
             selector: role == 'edge'\n  doNotTrack: true\n  applyOnForward: true\n  types: [Ingress]\n  ingress:\n  \
             - {{action: Deny, source: {{selector: set == 's'}}}}\n---\n\
             apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: s\n  labels: {{set: s}}\n\
             spec:\n  nets:\n"
        );
        for (address, length) in members {
            text += &format!("  - {}/{length}\n", Ipv4Addr::from(*address));
        }
        let mut instance = Instance::new(name.to_owned(), &text)?;
        for program in ["bench_arrived", "bench_arrive"] {
            let program: &mut Xdp = instance.ebpf.program_mut(program).context("no such program")?.try_into()?;
            program.load()?;
        }
        let link = instance.lab.host.ip(&format!("-d link show dev {UPLINK}"))?;
        let (_, id) = link.split_once("prog/xdp id ").context("no XDP program")?;
        let id: u32 = id.split_whitespace().next().context("no id")?.parse()?;
        let program = loaded_programs().flatten().find(|program| program.id() == id).context("it is gone")?;
        let mut programs = ProgramArray::try_from(instance.ebpf.map_mut("BENCH_XDP").context("no BENCH_XDP")?)?;
        programs.set(0, &program.fd()?, 0)?;
        Ok(Self { instance, members: Vec::new(), strangers: Vec::new() })
    }

    /// Nanoseconds of the XDP program, less those of making the packet; all are dropped, or none.
    fn cost(&mut self, dropped: bool) -> anyhow::Result<f64> {
        let uplink = ifindex(&self.instance.lab.host, UPLINK)?;
        let length = u32::try_from(self.instance.opener.len())?;
        let context: Vec<u8> = [0, length, 0, uplink, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let run = |name: &str| -> anyhow::Result<f64> {
            let program: &Xdp = self.instance.ebpf.program(name).context("no such program")?.try_into()?;
            let options = TestRunOptions {
                data_in: Some(&self.instance.opener),
                ctx_in: Some(&context),
                repeat: REPEAT,
                ..TestRunOptions::default()
            };
            let result = self.instance.lab.host.enter(|| program.test_run(options))??;
            ensure!(result.return_value != 0, "{name} made no packet");
            Ok(result.duration.as_nanos() as f64)
        };
        let makes = run("bench_arrived")?;
        let before = self.drops()?;
        let cost = run("bench_arrive")? - makes;
        let (drops, expected) = (self.drops()? - before, if dropped { u64::from(REPEAT) } else { 0 });
        ensure!(drops == expected, "{}: {drops} dropped, not {expected}", self.instance.name);
        Ok(cost)
    }

    fn drops(&self) -> anyhow::Result<u64> {
        let drops = map(&pinned(&self.instance.lab, names::DROPS))?;
        let drops = PerCpuArray::<_, u64>::try_from(aya::maps::Map::PerCpuArray(drops))?;
        Ok(drops.get(&(DropReason::UntrackedIngress as u32), 0)?.iter().sum())
    }
}
