//! What policy costs: judging a new connection by few and many rules and sets, putting it in force, changing it, memory.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};
use calico_ebpf_common::abi::{ACCOUNT_TOTAL, LAYOUT_VERSION, account_opened_to, names};
use etherparse::PacketBuilder;
use xtask::lab::{Lab, OUTSIDE4, UPLINK};

use crate::{
    calibrate::Calibration,
    cpu,
    generated::NODE,
    kernel::{ifindex, mac},
    memory,
    random::Random,
    report::{Report, interleave},
    theirs,
    variant::binary,
};

const ROUNDS: usize = 9;
const REPEAT: u32 = 400_000;
/// Connections that are opened in one go: less than half of what the workload may hold unanswered.
const OPENINGS: u32 = 400;
/// Times that the same connections are opened; the last one is measured.
const WARM: u32 = 5;
/// Of whoever is beyond the uplink.
const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Subjects that are drawn from: so many that the processor cannot learn them by heart.
pub(crate) const SUBJECTS: u32 = 1 << 16;

pub(crate) fn run(report: &mut Report, wants: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    cpu::pin(1)?;
    if wants("rules") {
        rules(report).context("rules")?;
    }
    if wants("sets") {
        sets(report).context("sets")?;
    }
    if wants("theirs") {
        theirs::run(report).context("the kernel's own filters")?;
    }
    if wants("memory") {
        memory::run(report).context("memory")?;
    }
    Ok(())
}

/// A workload under a policy of `count` rules, each about a network and a port.
fn rules(report: &mut Report) -> anyhow::Result<()> {
    let calibration = Calibration::load()?;
    let mut instances = Vec::new();
    for count in [10, 100, 1_000, 10_000, 60_000_u32] {
        let rule = |number: u32| {
            let [_, a, b, c] = (number << 4).to_be_bytes();
            format!(
                "  - {{action: Allow, protocol: TCP, source: {{nets: [10.{a}.{b}.{c}/28]}}, destination: {{ports: [{}]}}}}\n",
                1_000 + number % 60_000
            )
        };
        let policy = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec:\n  \
                      selector: all()\n  types: [Ingress]\n  ingress:\n"
            .to_owned()
            + &(0..count).map(rule).collect::<String>();
        let mut instance = Instance::new(format!("{count} rules"), &policy)?;
        let mut random = Random(7);
        // One in two meets its rule, any of them; the other one has another rule's port, and is denied.
        let subjects: Vec<[u32; 2]> = (0..SUBJECTS)
            .map(|number| {
                let rule = random.below(count);
                let port = if number % 2 == 0 { rule } else { random.below(count) };
                [0x0a00_0000 | rule << 4 | random.below(16), 1_000 + port % 60_000]
            })
            .collect();
        instance.subjects(&subjects)?;
        instances.push(instance);
    }
    calibration.run(report)?;
    let name = |instance: &Instance| instance.name.clone();
    let judged = interleave(ROUNDS, &mut instances, name, |instance| instance.cost("bench_new"))?;
    report.section("class of the peer and judging it, random hits and misses", "ns", judged);
    for instance in &mut instances {
        let hits: Vec<[u32; 2]> = instance.subjects.iter().copied().step_by(2).collect();
        instance.subjects(&hits)?;
    }
    let again = interleave(ROUNDS, &mut instances, name, Instance::opening_again)?;
    report.section("the first packet of a connection, all of the program: allowed, from the uplink", "ns", again);
    let opened = interleave(ROUNDS, &mut instances, name, Instance::opening)?;
    report.section("the same, where connection and peer were never seen before", "ns", opened);
    for instance in &mut instances {
        instance.classes_for_addresses()?;
    }
    let judged = interleave(ROUNDS, &mut instances, name, |instance| instance.cost("bench_judge"))?;
    report.section("judging alone, random hits and misses", "ns", judged);
    Ok(())
}

/// A workload with a policy about a network set.
fn sets(report: &mut Report) -> anyhow::Result<()> {
    let mut instances = Vec::new();
    let mut memory = Vec::new();
    for (name, count, mixed) in [
        ("10 members", 10, false),
        ("1,000 members", 1_000, false),
        ("100,000 members", 100_000, false),
        ("1,000,000 members", 1_000_000, false),
        ("1,000,000 mixed prefixes", 1_000_000, true),
    ] {
        let mut random = Random(11);
        let members: Vec<(u32, u32)> = (0..count)
            .map(|_| {
                let length = if mixed { 14 + random.below(19) } else { 32 };
                (random.next() & u32::MAX << (32 - length), length)
            })
            .collect();
        let mut text = "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: s\n  labels: \
                        {set: s}\nspec:\n  nets:\n"
            .to_owned();
        for (address, length) in &members {
            text += &format!("  - {}/{length}\n", Ipv4Addr::from(*address));
        }
        text += "---\napiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {name: p}\nspec:\n  \
                 selector: all()\n  types: [Ingress]\n  ingress:\n  - {action: Deny, source: {selector: set == 's'}}\n  \
                 - {action: Allow}\n";
        let instance = Instance::new(name.to_owned(), &text)?;
        memory.push((name.to_owned(), vec![instance.memory()? as f64 / 1e6]));
        println!("{name}: started in {:.2} s, peak memory {} MB", instance.took.as_secs_f64(), instance.peak / 1024);
        let hits: Vec<u32> =
            (0..SUBJECTS).map(|_| members[random.below(count) as usize].0 | u32::from(mixed)).collect();
        instances.push((instance, hits));
    }
    let name = |(instance, _): &(Instance, _)| instance.name.clone();
    let mut one = |title: &str, subjects: &Choice| -> anyhow::Result<()> {
        for (instance, hits) in &mut instances {
            instance.subjects(&subjects(hits, &mut Random(5)))?;
        }
        let rows = interleave(ROUNDS, &mut instances, name, |(instance, _)| instance.cost("bench_class"))?;
        report.section(title, "ns", rows);
        Ok(())
    };
    one("class of an address in a set, always the same one", &|hits, _| vec![[hits[0], 80]])?;
    one("class of a random member", &|hits, _| hits.iter().map(|hit| [*hit, 80]).collect())?;
    one("class of a random address, most of them no members", &|_, random| {
        (0..SUBJECTS).map(|_| [random.next(), 80]).collect()
    })?;
    report.section("maps of addresses and rules in the kernel", "MB", memory);
    Ok(())
}

/// Picks subjects (address and port) from the members of a set, or at random.
type Choice = dyn Fn(&[u32], &mut Random) -> Vec<[u32; 2]>;

/// Kills what it runs.
pub(crate) struct Process(pub(crate) Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// A data path with one workload, and the programs that ask its tables.
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) lab: Lab,
    pub(crate) ebpf: Ebpf,
    /// What the workload receives is judged by.
    table: u32,
    own_class: u32,
    /// The first packet of a connection that somebody beyond the uplink opens.
    pub(crate) opener: Vec<u8>,
    pub(crate) took: Duration,
    peak: u64,
    subjects: Vec<[u32; 2]>,
}

impl Instance {
    /// One whose node is `bench`.
    pub(crate) fn new(name: String, resources: &str) -> anyhow::Result<Self> {
        let lab = Lab::new(&["a"])?;
        // The way back to the peers, which is looked for.
        lab.host.ip(&format!("route add 10.0.0.0/8 via {OUTSIDE4}"))?;
        let workload = lab.workload("a");
        let text = format!(
            "{resources}---\napiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: {{name: bench-k8s-a-eth0, namespace: bench}}\n\
             spec:\n  node: bench\n  orchestrator: k8s\n  pod: a\n  endpoint: eth0\n  interfaceName: {}\n  ipNetworks: [{}/32]\n",
            workload.interface, workload.v4
        );
        let own = workload.v4.octets();
        let config = std::env::temp_dir().join(format!("{}.yaml", lab.host.name()));
        fs::write(&config, text)?;
        let start = Instant::now();
        let mut child = spawn(&lab, &config, true)?;
        let mut peak = 0;
        let exit = loop {
            peak = peak.max(status(child.id(), "VmHWM").unwrap_or(0));
            if let Some(exit) = child.try_wait()? {
                break exit;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = start.elapsed();
        fs::remove_file(&config)?;
        ensure!(exit.success(), "{name}: the policy is not in force");
        let directory = pinned(&lab, "");
        let mut ebpf =
            EbpfLoader::new().default_map_pin_directory(&directory).load(calico_ebpf_user::BENCH_POLICY_OBJECT)?;
        for program in [
            "bench_draw",
            "bench_class",
            "bench_judge",
            "bench_new",
            "bench_opened",
            "bench_open",
            "bench_reopened",
            "bench_reopen",
        ] {
            let program: &mut SchedClassifier = ebpf.program_mut(program).context("no such program")?.try_into()?;
            program.load()?;
        }
        let from_uplink = SchedClassifier::from_pin(directory.join(format!("prog_{}", names::PROG_FROM_UPLINK)))?;
        let mut programs = ProgramArray::try_from(ebpf.map_mut("BENCH_PROGRAM").context("no BENCH_PROGRAM")?)?;
        programs.set(0, from_uplink.fd()?, 0)?;
        let mut opener = Vec::new();
        PacketBuilder::ethernet2(OUTSIDE_MAC, mac(&lab.host, UPLINK)?)
            .ipv4(OUTSIDE4.octets(), own, 64)
            .tcp(1, 2, 0, 64_000)
            .syn()
            .write(&mut opener, &[])?;
        let headers: [u8; 54] = opener.as_slice().try_into()?;
        Array::<_, [u8; 54]>::try_from(ebpf.map_mut("BENCH_FRAME").context("no BENCH_FRAME")?)?.set(0, &headers, 0)?;
        let addresses = map(&pinned(&lab, names::ADDRESSES4))?;
        let addresses = HashMap::<_, [u8; 4], [u32; 6]>::try_from(aya::maps::Map::HashMap(addresses))?;
        let [_, own_class, ..] = addresses.get(&own, 0)?;
        let workloads = map(&pinned(&lab, names::WORKLOADS))?;
        let workloads = Array::<_, [u32; 16]>::try_from(aya::maps::Map::Array(workloads))?;
        // The first generation is odd; the second half of `Workload` has both sides' tables, egress before ingress.
        let table = workloads.get(&0, 0)?[13];
        Ok(Self { name, lab, ebpf, table, own_class, opener, took, peak, subjects: Vec::new() })
    }

    /// Peers' addresses and destination ports to draw from.
    pub(crate) fn subjects(&mut self, subjects: &[[u32; 2]]) -> anyhow::Result<()> {
        self.subjects = subjects.to_vec();
        let own_class = self.own_class;
        self.fill(|[peer, port]| [own_class, peer, 6 << 16 | port, 6 << 16 | 49_152])
    }

    /// The same with the classes in place of the addresses.
    fn classes_for_addresses(&mut self) -> anyhow::Result<()> {
        let mut classes = Vec::with_capacity(self.subjects.len());
        for [peer, _] in self.subjects.clone() {
            let map = self.ebpf.map_mut("BENCH_SUBJECTS").context("no BENCH_SUBJECTS")?;
            Array::<_, [u32; 4]>::try_from(map)?.set(0, &[0, peer, 0, 0], 0)?;
            self.draw_from(1)?;
            let program: &SchedClassifier = self.ebpf.program("bench_class").context("no such program")?.try_into()?;
            let result = program.test_run(TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::default() })?;
            classes.push(result.return_value);
        }
        let own_class = self.own_class;
        let mut classes = classes.into_iter();
        self.fill(|[_, port]| [own_class, classes.next().unwrap_or(0), 6 << 16 | port, 6 << 16 | 49_152])
    }

    fn fill(&mut self, mut subject: impl FnMut([u32; 2]) -> [u32; 4]) -> anyhow::Result<()> {
        let map = self.ebpf.map_mut("BENCH_SUBJECTS").context("no BENCH_SUBJECTS")?;
        let mut map = Array::<_, [u32; 4]>::try_from(map)?;
        let subjects: Vec<[u32; 4]> = self.subjects.iter().map(|drawn| subject(*drawn)).collect();
        for (index, subject) in (0..).zip(&subjects) {
            map.set(index, subject, 0)?;
        }
        self.draw_from(u32::try_from(subjects.len())?)
    }

    /// Lets the programs draw from the first `count` subjects, a power of two.
    fn draw_from(&mut self, count: u32) -> anyhow::Result<()> {
        let mut ask = Array::<_, [u32; 2]>::try_from(self.ebpf.map_mut("BENCH_ASK").context("no BENCH_ASK")?)?;
        Ok(ask.set(0, &[self.table, count - 1], 0)?)
    }

    /// Nanoseconds of a run of `program`, less those of drawing a subject.
    fn cost(&mut self, program: &str) -> anyhow::Result<f64> {
        let frame = [0_u8; 64];
        let run = |name: &str| -> anyhow::Result<f64> {
            let program: &SchedClassifier = self.ebpf.program(name).context("no such program")?.try_into()?;
            let options = TestRunOptions { data_in: Some(&frame), repeat: REPEAT, ..TestRunOptions::default() };
            let result = program.test_run(options)?;
            ensure!(result.return_value as i32 != -1, "{name} found no subject");
            Ok(result.duration.as_nanos() as f64)
        };
        let draw = run("bench_draw")?;
        Ok(run(program)? - draw)
    }

    /// Nanoseconds of the data path's program for the first packet of a connection that enters by the uplink: of
    /// connections that were there before, so that what they touch is in the processor's cache.
    fn opening_again(&mut self) -> anyhow::Result<f64> {
        let mut cost = self.opening_by("bench_reopen", "bench_reopened")?;
        // Looked for once: a walk through the whole table empties the cache.
        let opened = self.opened()?;
        for _ in 0..WARM {
            self.forget(&opened)?;
            cost = self.opening_by("bench_reopen", "bench_reopened")?;
        }
        self.forget(&opened)?;
        Ok(cost)
    }

    /// The same of random connections, all of them new: the memory that they touch is in no cache.
    fn opening(&mut self) -> anyhow::Result<f64> {
        let cost = self.opening_by("bench_open", "bench_opened")?;
        self.forget(&self.opened()?)?;
        Ok(cost)
    }

    /// The connections that are there.
    fn opened(&self) -> anyhow::Result<Vec<[u8; 16]>> {
        Ok(self.connections()?.keys().collect::<Result<_, _>>()?)
    }

    fn connections(&self) -> anyhow::Result<HashMap<MapData, [u8; 16], [u8; 64]>> {
        let conns = map(&pinned(&self.lab, names::CONNS4))?;
        Ok(HashMap::try_from(aya::maps::Map::HashMap(conns))?)
    }

    /// Nobody has these connections any more, which are all.
    fn forget(&self, opened: &[[u8; 16]]) -> anyhow::Result<()> {
        let mut conns = self.connections()?;
        for key in opened {
            conns.remove(key)?;
        }
        let quotas = map(&pinned(&self.lab, names::QUOTAS))?;
        let mut quotas = Array::<_, [u64; 2]>::try_from(aya::maps::Map::Array(quotas))?;
        for account in [ACCOUNT_TOTAL, account_opened_to(0)] {
            quotas.set(account, &[0; 2], 0)?;
        }
        Ok(())
    }

    fn opening_by(&mut self, opens: &str, only_makes: &str) -> anyhow::Result<f64> {
        let uplink = ifindex(&self.lab.host, UPLINK)?;
        // struct __sk_buff up to its field `ingress_ifindex`, the tenth word; `ifindex` is the eleventh.
        let mut context = [0_u8; 192];
        context[40..44].copy_from_slice(&uplink.to_ne_bytes());
        let mut run = |name: &str| -> anyhow::Result<f64> {
            let turn = self.ebpf.map_mut("BENCH_TURN").context("no BENCH_TURN")?;
            Array::<_, u32>::try_from(turn)?.set(0, &0, 0)?;
            let program: &SchedClassifier = self.ebpf.program(name).context("no such program")?.try_into()?;
            let options = TestRunOptions {
                data_in: Some(&self.opener),
                ctx_in: Some(&context),
                repeat: OPENINGS,
                ..TestRunOptions::default()
            };
            let result = self.lab.host.enter(|| program.test_run(options))??;
            // TC_ACT_REDIRECT: anything else is another path than the one to be measured.
            ensure!(result.return_value == 7, "{name} returned {}", result.return_value as i32);
            Ok(result.duration.as_nanos() as f64)
        };
        Ok(run(opens)? - run(only_makes)?)
    }

    /// Bytes of the maps about addresses and rules.
    fn memory(&self) -> anyhow::Result<u64> {
        let maps = [names::RULES, names::ADDRESSES4, names::ADDRESSES6, names::NETS6];
        maps.into_iter().map(|name| locked(&pinned(&self.lab, name))).sum()
    }
}

/// Runs the program on `config`.
pub(crate) fn spawn(lab: &Lab, config: &Path, once: bool) -> anyhow::Result<Child> {
    let mut command = running(lab, config)?;
    command.args(["--uplink", UPLINK]).stdout(Stdio::null());
    if once {
        command.arg("--once");
    }
    Ok(command.spawn()?)
}

/// The command that does; its uplinks are those of the default routes.
pub(crate) fn running(lab: &Lab, config: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(binary()?);
    command
        .args(["run", "--node", NODE, "--listen", "off", "--netns", lab.host.name()])
        .args(["--log-level", "error", "--pin-dir"])
        .arg(lab.pin_dir())
        .arg("--config")
        .arg(config);
    Ok(command)
}

pub(crate) fn pinned(lab: &Lab, name: &str) -> PathBuf {
    lab.pin_dir().join(format!("v{LAYOUT_VERSION}")).join(name)
}

pub(crate) fn map(path: &Path) -> anyhow::Result<MapData> {
    MapData::from_pin(path).with_context(|| path.display().to_string())
}

/// Bytes that the kernel says a map occupies.
pub(crate) fn locked(path: &Path) -> anyhow::Result<u64> {
    let map = map(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", std::os::fd::AsFd::as_fd(map.fd()).as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock")?;
    Ok(line.trim().parse()?)
}

/// A figure of /proc/PID/status, in KiB.
pub(crate) fn status(pid: u32, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such figure")?;
    let digits: String = line.chars().filter(char::is_ascii_digit).collect();
    Ok(digits.parse()?)
}
