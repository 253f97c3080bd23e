//! `cargo xtask run`: the data path at work in a laboratory, under `examples/demo/`.

use std::{
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{
    cargo,
    lab::{self, HOST4, HOST6, Lab, OUTSIDE4, OUTSIDE6, Server, UPLINK},
    matrix::{Matrix, Party},
    program::{Instance, Program},
};

/// The node that the files of the demo speak of.
const NODE: &str = "demo";

/// The workloads of `examples/demo/workloads.yaml`, with the port that each serves.
const WORKLOADS: [(&str, u16); 3] = [("web", 80), ("api", 8080), ("db", 5432)];
/// What the neighbour outside serves.
const OUTSIDE_PORT: u16 = 80;
/// How often to look for a new policy.
const PERIOD: Duration = Duration::from_millis(100);

/// Runs the demo on the files in `config` until Ctrl-C.
///
/// # Errors
/// The lab cannot be made, or the program fails.
pub fn run(config: &Path) -> anyhow::Result<()> {
    // Noted, not obeyed at once: everything has to be removed first.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    lab::reap();
    say("making a host, three workloads and a neighbour outside, each a network namespace");
    let lab = Lab::new(&WORKLOADS.map(|(name, _)| name))?;
    let mut servers = vec![Server::start(&lab.outside, OUTSIDE_PORT)?];
    for (workload, (_, port)) in lab.workloads.iter().zip(WORKLOADS) {
        servers.push(Server::start(&workload.namespace, port)?);
    }
    say("starting the data path:");
    let instance = Instance {
        node: NODE.to_owned(),
        netns: lab.host.name().to_owned(),
        pin_dir: lab.pin_dir(),
        config: config.to_owned(),
        uplink: UPLINK.to_owned(),
    };
    println!("  {}", cargo::describe(&Program::command(&instance)));
    let mut program = Program::start(instance, &[], None)?;
    show(&lab, &program.instance)?;
    say(&format!("edit {}: the matrix follows. Ctrl-C removes everything.", config.join("policy.yaml").display()));
    let watched = watch(&lab, &mut program, &interrupted);
    say("removing everything");
    drop(servers);
    program.stop()?;
    watched
}

fn show(lab: &Lab, program: &Instance) -> anyhow::Result<()> {
    say("the workloads:");
    print!("{}", program.query(&["workloads"])?);
    say("the routes in the host's main table, for BIRD and the like to export:");
    for family in ["-4", "-6"] {
        // With `proto 80` as a filter, `ip` would leave it out of what it prints.
        let routes = lab.host.ip(&format!("{family} route show"))?;
        routes.lines().filter(|route| route.contains("proto 80")).for_each(|route| println!("{route}"));
    }
    say("look inside, in another terminal:");
    let pins = lab.pin_dir();
    println!("  bpftool map dump pinned {}/v*/cali_iface     # interfaces and what is behind them", pins.display());
    println!("  bpftool map dump pinned {}/v*/cali_ct4       # connections", pins.display());
    println!("  ip netns exec {} bash                       # the host", lab.host.name());
    println!("  ip netns exec {} bash                      # a workload", lab.workload("web").namespace.name());
    println!("  {}", program.command_line("status"));
    println!("  {}", program.command_line("rules shop/web"));
    println!("  {}", program.command_line("conntrack"));
    Ok(())
}

/// Shows the matrix whenever another policy is in force, until interrupted.
fn watch(lab: &Lab, program: &mut Program, interrupted: &AtomicBool) -> anyhow::Result<()> {
    let mut seen = None;
    while !interrupted.load(Ordering::Relaxed) {
        program.alive()?;
        // While it reads the files it may be busy for a moment.
        if let Ok(load) = program.instance.last_load()
            && seen.as_ref() != Some(&load)
        {
            if load.errors.is_empty() {
                let matrix = Matrix::measure(&parties(lab, &program.instance))?;
                say(&format!("generation {}: who reaches whom, and what the policy says", load.generation));
                print!("{matrix}");
            } else {
                say(&format!("the files are refused, generation {} stays in force:", load.generation));
                load.errors.iter().for_each(|error| println!("  {error}"));
            }
            seen = Some(load);
        }
        thread::sleep(PERIOD);
    }
    Ok(())
}

fn parties<'a>(lab: &'a Lab, node: &'a Instance) -> Vec<Party<'a>> {
    let party = |name, namespace, addresses: [IpAddr; 2], port, is_host| Party {
        name,
        namespace,
        addresses: addresses.to_vec(),
        port,
        node,
        is_host,
    };
    let mut all: Vec<Party<'a>> = lab
        .workloads
        .iter()
        .zip(WORKLOADS)
        .map(|(workload, (_, port))| {
            party(&*workload.name, &workload.namespace, workload.addresses(), Some(port), false)
        })
        .collect();
    let outside = [OUTSIDE4.into(), OUTSIDE6.into()];
    all.push(party("outside", &lab.outside, outside, Some(OUTSIDE_PORT), false));
    all.push(party("host", &lab.host, [HOST4.into(), HOST6.into()], None, true));
    all
}

fn say(text: &str) {
    println!("\n== {text}");
}
