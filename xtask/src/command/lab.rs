//! `cargo xtask lab`: laboratories to play with, of one host or of many.

use std::{
    collections::BTreeMap,
    os::unix::process::CommandExt as _,
    process::{Command, exit},
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    cluster::{
        keeper,
        migrate::migrate,
        plan::{Options, Role},
        router::Daemon,
        view::View,
    },
    lab, project, setup,
};

const USAGE: &str = "\
usage: cargo xtask lab                 one host, three workloads, nothing running, until Ctrl-C
       cargo xtask lab up [OPTIONS]    a cluster: hosts with calico-ebpf and BGP, one directory of resources
           --hosts N                   how many hosts (3)
           --workloads N               how many workloads, dealt out to the hosts in turn (4)
           --route-reflector           hosts speak BGP with a reflector instead of with each other
           --racks                     hosts in two racks, each behind a router with an AS number of its own
           --ipv6                      both address families
           --bgp DAEMON                the routing daemon of the hosts: bird2 (unless given), bird3, frr, frr8, gobgp
       cargo xtask lab status          sessions, routes, who reaches whom beside what the policy says
       cargo xtask lab exec WHO -- CMD run a command on a host or in a workload; `calico-ebpf` and `birdc`
                                       (`vtysh`, `gobgp`) are its own
       cargo xtask lab move WORKLOAD HOST  move a workload to another host while it runs
       cargo xtask lab down            remove it";

/// The command that `arguments` name.
pub(super) fn run(arguments: &[String]) -> anyhow::Result<()> {
    match arguments.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        None => one_host(),
        Some(("up", rest)) => up(rest),
        Some(("keep", rest)) => keeper::keep(options(rest)?),
        Some(("status", [])) => status(&keeper::current()?),
        Some(("exec", [who, separator, command @ ..])) if separator == "--" && !command.is_empty() => {
            execute(&keeper::current()?, who, command)
        }
        Some(("move", [workload, host])) => {
            super::need_root("`lab move`")?;
            migrate(&keeper::current()?, workload, host)
        }
        Some(("down", [])) => keeper::down(),
        Some(("help" | "-h" | "--help", _)) => {
            println!("{USAGE}");
            Ok(())
        }
        Some(_) => bail!("{USAGE}"),
    }
}

/// Makes a laboratory, says how to get into it, and removes it on Ctrl-C.
fn one_host() -> anyhow::Result<()> {
    super::need_root("the lab")?;
    setup::ensure(setup::Purpose::Lab)?;
    lab::reap();
    let lab = lab::Lab::new(&["a", "b", "c"])?;
    println!("host      ip netns exec {} bash     (uplink {})", lab.host.name(), lab::UPLINK);
    println!("outside   ip netns exec {} bash     {} {}", lab.outside.name(), lab::OUTSIDE4, lab::OUTSIDE6);
    for workload in &lab.workloads {
        println!(
            "{:9} ip netns exec {} bash     {} {} on {}",
            workload.name,
            workload.namespace.name(),
            workload.v4,
            workload.v6,
            workload.interface
        );
    }
    println!("\nCtrl-C removes it.");
    super::wait_for_interrupt()
}

fn up(arguments: &[String]) -> anyhow::Result<()> {
    super::need_root("the lab")?;
    let asked = options(arguments)?;
    // Said now and not by a process in the background.
    View::new(String::new(), asked)?;
    setup::ensure(setup::Purpose::Cluster)?;
    asked.bgp.trees().iter().try_for_each(|tree| tree.ensure().map(drop))?;
    if std::env::var_os("CALICO_EBPF_BIN").is_none() {
        super::build_program()?;
    }
    let view = keeper::up(arguments)?;
    status(&view)?;
    println!(
        "cargo xtask lab exec w1 -- bash      in a workload; `lab status` looks again, `lab down` removes everything"
    );
    Ok(())
}

fn options(arguments: &[String]) -> anyhow::Result<Options> {
    let mut options =
        Options { hosts: 3, workloads: 4, route_reflector: false, ipv6: false, racks: false, bgp: Daemon::default() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--bgp" {
            options.bgp = daemon(arguments.next())?;
            continue;
        }
        let mut number = || -> anyhow::Result<u8> {
            let value = arguments.next().with_context(|| format!("{argument} needs a number"))?;
            value.parse().with_context(|| format!("{argument} {value}: not a number from 0 to 255"))
        };
        match argument.as_str() {
            "--hosts" => options.hosts = number()?,
            "--workloads" => options.workloads = number()?,
            "--route-reflector" => options.route_reflector = true,
            "--ipv6" => options.ipv6 = true,
            "--racks" => options.racks = true,
            other => bail!("unknown option {other}\n\n{USAGE}"),
        }
    }
    Ok(options)
}

fn daemon(name: Option<&String>) -> anyhow::Result<Daemon> {
    let found = Daemon::ALL.into_iter().find(|(known, _)| name.is_some_and(|name| name == known));
    let names = || Daemon::ALL.map(|(known, _)| known).join(", ");
    found.map(|(_, daemon)| daemon).with_context(|| format!("--bgp needs a daemon: {}", names()))
}

fn status(view: &View) -> anyhow::Result<()> {
    println!("the resources of all hosts, to be edited: {}", view.config().display());
    println!("logs: {}", view.base().display());
    println!("\n== hosts");
    for host in view.plan.hosts() {
        let instance = view.instance(host);
        match instance.status() {
            Ok(status) => {
                let state = |name: &str| status[name].as_array().map_or(0, Vec::len);
                let process = if status["pid"].is_null() { "stopped" } else { "running" };
                println!(
                    "{:<10} calico-ebpf {process}, generation {}, {} workloads, {} faults",
                    host.name,
                    status["generation"],
                    state("workloads"),
                    state("faults")
                );
                for error in instance.last_load().map(|load| load.errors).unwrap_or_default() {
                    println!("{:<10} refused: {error}", "");
                }
            }
            Err(error) => println!("{:<10} {error:#}", host.name),
        }
    }
    println!("\n== BGP sessions");
    for speaker in &view.plan.speakers {
        match view.router(speaker).sessions() {
            Ok(sessions) => {
                let mut by_state: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for session in sessions {
                    let state = if session.established { "established".to_owned() } else { session.info };
                    by_state.entry(state).or_default().push(session.name);
                }
                let states = by_state.iter().map(|(state, names)| format!("{state}: {}", names.join(" ")));
                println!("{:<10} {}", speaker.name, states.collect::<Vec<_>>().join("; "));
            }
            Err(error) => println!("{:<10} no routing daemon: {error:#}", speaker.name),
        }
    }
    println!("\n== routes to workloads");
    for speaker in view.plan.speakers.iter().filter(|speaker| speaker.role != Role::Reflector) {
        println!("{}", speaker.name);
        view.routes(&speaker.name)?.iter().for_each(|route| println!("    {route}"));
    }
    println!("\n== who reaches whom, and what the policy says");
    let matrix = view.matrix()?;
    print!("{matrix}");
    let missing = view.not_converged()?;
    missing.iter().for_each(|line| println!("{line}"));
    ensure!(matrix.differences() == 0 && missing.is_empty(), "the lab is not as it should be");
    Ok(())
}

/// Becomes the command, inside the namespace and nothing else: pins stay in sight.
fn execute(view: &View, who: &str, words: &[String]) -> anyhow::Result<()> {
    super::need_root("`lab exec`")?;
    let netns = format!("--net=/run/netns/{}", view.netns(who)?);
    let mut command = Command::new("nsenter");
    command.arg(netns).arg("--");
    let speaker = view.speaker(who).ok();
    match (words.split_first(), speaker) {
        (Some((first, rest)), Some(host)) if first == "calico-ebpf" && host.role == Role::Host => {
            command.arg(project::binary()).args(rest).arg("--pin-dir").arg(view.instance(host).pin_dir);
            if !rest.iter().any(|word| word == "--node" || word.starts_with("--node=")) {
                command.args(["--node", &host.name]);
            }
        }
        (Some((first, rest)), Some(speaker)) if first == view.router(speaker).name() => {
            let asked = view.router(speaker).command()?;
            command.arg(asked.get_program()).args(asked.get_args()).args(rest);
        }
        _ => drop(command.args(words)),
    }
    let error = command.exec();
    eprintln!("error: cannot run {}: {error}", words.join(" "));
    exit(127)
}
