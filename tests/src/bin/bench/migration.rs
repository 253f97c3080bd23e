//! A workload that moves from host to host and back, while datagrams go to it from a third one: what is lost, and where the
//! time goes.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use calico_ebpf_tests::{
    frames::{Wire, gratuitous_arp, mac},
    hosts::{Hosts, MESH},
    resources,
    stream::{Beat, Tally},
};
use xtask::{
    cluster::{files, migrate::Landing},
    lab::Namespace,
};

use crate::report::Report;

const MOVES: usize = 12;
const PACE: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(10);
/// How long before it moves the resources say so, where they say so before.
const AHEAD: Duration = Duration::from_millis(300);

/// How a workload moves.
#[derive(Clone, Copy, Debug)]
struct Manner {
    name: &'static str,
    /// How long before it moves the resources say so.
    ahead: Duration,
    /// Whether it announces itself where it arrives.
    announced: bool,
}

const MANNERS: [Manner; 3] = [
    Manner { name: "said as it moves, announced", ahead: Duration::ZERO, announced: true },
    Manner { name: "said as it moves, silent", ahead: Duration::ZERO, announced: false },
    Manner { name: "said 300 ms before it moves, announced", ahead: AHEAD, announced: true },
];

/// What happened in one move, in milliseconds after the resources said so, and what it cost.
type Samples = Vec<(&'static str, f64)>;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let Some(hosts) = Hosts::start(MESH) else { bail!("BIRD is not installed") };
    hosts.enforce(&[resources::felix("liveMigrationRouteConvergenceTime", "1s")]);
    let landing = Landing::prepare(&hosts.cluster.view, "w1", "host2")?;
    let mut rows: Vec<Vec<(String, Vec<f64>)>> = vec![Vec::new(); MANNERS.len()];
    let mut there = false;
    for round in 0..MOVES * MANNERS.len() {
        there = !there;
        let manner = round % MANNERS.len();
        let samples = one(&hosts, &landing, there, MANNERS[manner])?;
        println!("{}: {samples:.1?}", MANNERS[manner].name);
        for (index, (what, sample)) in samples.into_iter().enumerate() {
            match rows[manner].get_mut(index) {
                Some((_, all)) => all.push(sample),
                None => rows[manner].push((what.to_owned(), vec![sample])),
            }
        }
    }
    for (manner, rows) in MANNERS.iter().zip(rows) {
        report.section(&format!("a move: {} (ms from the renamed file, or as it says)", manner.name), "ms", rows);
    }
    Ok(())
}

fn one(hosts: &Hosts, landing: &Landing, there: bool, manner: Manner) -> anyhow::Result<Samples> {
    let (new, old, device) =
        if there { ("host2", "host1", landing.device) } else { ("host1", "host2", landing.leaves) };
    let view = &hosts.cluster.view;
    let w1 = hosts.addresses("w1");
    let IpAddr::V4(v4) = w1[0] else { bail!("IPv4 first") };
    let text = files::workloads(&view.plan, &view.options, |workload| {
        if workload.name == "w1" { new.to_owned() } else { workload.host.clone() }
    });
    let wire = Wire::open(&hosts.namespace("w1"), device);
    let announcement = gratuitous_arp(mac(&hosts.namespace("w1"), device), v4);
    let monitors: Vec<Monitor> =
        [new, old, "host3"].iter().map(|host| Monitor::start(&hosts.namespace(host))).collect::<Result<_, _>>()?;
    let logs = [new, old].map(|host| view.log(host, "calico-ebpf"));
    let lengths = [fs::metadata(&logs[0])?.len(), fs::metadata(&logs[1])?.len()];
    let beats: Vec<Beat> =
        w1.iter().map(|to| Beat::start(&hosts.namespace("w3"), SocketAddr::new(*to, 80), PACE)).collect();
    thread::sleep(Duration::from_millis(200));

    let next = view.config().join(".workloads.yaml.new");
    fs::write(&next, text)?;
    let (begin, begin_of_day) = (Instant::now(), SystemTime::now());
    fs::rename(&next, view.config().join("workloads.yaml"))?;
    thread::sleep(manner.ahead);
    let cut = begin.elapsed();
    if there {
        landing.cut_over()?;
    } else {
        landing.go_back()?;
    }
    if manner.announced {
        // The first time it may hear that the interface was down when the socket was opened.
        ensure!(wire.send(&announcement) || wire.send(&announcement), "cannot announce it");
    }
    let moved = begin.elapsed();
    thread::sleep(Duration::from_millis(1200));
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    let mut silences = Vec::new();
    for beat in beats {
        let Tally { sent, received, outage_began, outage } = beat.stop();
        let over = (outage_began + outage).saturating_duration_since(begin);
        silences.push((ms(over), ms(outage), (sent - received) as f64));
    }
    // Until it is as ever again.
    let end = Instant::now();
    while view.routes(new)?.iter().any(|route| route.contains("metric 512")) {
        ensure!(end.elapsed() < PATIENCE, "the routes do not become normal");
        thread::sleep(Duration::from_millis(20));
    }
    let since = |time: SystemTime| time.duration_since(begin_of_day).map(ms);
    let of_log = |index: usize, words: &str| -> anyhow::Result<f64> {
        let text = fs::read_to_string(&logs[index])?;
        let new = &text[usize::try_from(lengths[index])?..];
        let line = new.lines().find(|line| line.contains(words)).with_context(|| format!("no `{words}` in {new}"))?;
        Ok(since(time_of_day(begin_of_day, line).context("no time in the log")?)?)
    };
    let in_force = [of_log(0, "policy in force")?, of_log(1, "policy in force")?];
    let alive = of_log(0, "a sign of life: its routes")?;
    let [at_new, at_old, at_third] = &monitors[..] else { bail!("three hosts") };
    let first = |monitor: &Monitor, wanted: &dyn Fn(&str) -> bool| -> anyhow::Result<f64> {
        let seen = monitor.seen();
        let last = w1.iter().map(|address| {
            let found = seen.iter().find(|line| line.contains(&address.to_string()) && wanted(line));
            found.and_then(|line| time_of_day(begin_of_day, line.trim_start_matches('[')))
        });
        let all: Option<Vec<SystemTime>> = last.collect();
        Ok(since(all.and_then(|all| all.into_iter().max()).with_context(|| format!("not in {seen:#?}"))?)?)
    };
    let by_daemon = |line: &str| !line.contains("Deleted") && line.contains("proto bird");
    Ok(vec![
        ("policy in force on the old host", in_force[1]),
        ("policy in force on the new host", in_force[0]),
        ("the move begins", ms(cut)),
        ("the move ends", ms(moved)),
        ("the new host has seen a sign of life", alive),
        (
            "its routes are in its kernel",
            first(at_new, &|line| line.contains("metric 512") && !line.contains("Deleted"))?,
        ),
        ("they are in the third host's kernel", first(at_third, &by_daemon)?),
        ("they are in the old host's kernel", first(at_old, &by_daemon)?),
        (
            "the old host's own are withdrawn",
            first(at_old, &|line| line.contains("Deleted") && line.contains("proto 80"))?,
        ),
        ("silence ends, IPv4", silences[0].0),
        ("its length, IPv4", silences[0].1),
        ("datagrams lost, IPv4", silences[0].2),
        ("silence ends, IPv6", silences[1].0),
        ("its length, IPv6", silences[1].1),
        ("datagrams lost, IPv6", silences[1].2),
    ])
}

/// `ip monitor route` in a namespace, and what it said so far.
struct Monitor {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Monitor {
    fn start(namespace: &Namespace) -> anyhow::Result<Self> {
        let mut command = namespace.command("ip");
        let mut child = command.args(["-ts", "monitor", "route"]).stdout(Stdio::piped()).env("TZ", "UTC").spawn()?;
        let output = child.stdout.take().context("no output")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        let reader = thread::spawn({
            let lines = Arc::clone(&lines);
            move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        Ok(Self { child, lines, reader: Some(reader) })
    }

    fn seen(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
        let _failed = self.reader.take().map(JoinHandle::join);
    }
}

/// The time at the beginning of a line, `YYYY-MM-DDTHH:MM:SS.ffffff`, in UTC, on the day of `near` or the one after it.
fn time_of_day(near: SystemTime, line: &str) -> Option<SystemTime> {
    const DAY: f64 = 86400.0;
    let mut parts = line.get(11..26)?.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let seconds = next()? * 3600.0 + next()? * 60.0 + next()?;
    let since = near.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64();
    let midnight = since - since % DAY;
    let day = if since % DAY > seconds + DAY / 2.0 { midnight + DAY } else { midnight };
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(day + seconds))
}
