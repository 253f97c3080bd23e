//! `cargo xtask run`: the data path at work in a laboratory, under `examples/demo/`.

mod matrix;
mod program;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::lab::{self, Lab, Server};
use matrix::Matrix;
use program::Program;

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
    let mut program = Program::start(&lab, config)?;
    show(&lab, &program)?;
    say(&format!("edit {}: the matrix follows. Ctrl-C removes everything.", config.join("policy.yaml").display()));
    let watched = watch(&lab, &mut program, &interrupted);
    say("removing everything");
    drop(servers);
    program.stop()?;
    watched
}

fn show(lab: &Lab, program: &Program) -> anyhow::Result<()> {
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
        if let Ok(load) = program.last_load()
            && seen.as_ref() != Some(&load)
        {
            if load.errors.is_empty() {
                let matrix = Matrix::measure(lab, program)?;
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

fn say(text: &str) {
    println!("\n== {text}");
}
