//! A cluster that outlives the command that made it: a process in the background keeps it until it is told to end.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{Cluster, copy_examples, plan::Options, view::View};
use crate::{lab, project};

/// How long a cluster may take to be made, and to be removed.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long BGP may take to tell everybody everything.
const CONVERGENCE: Duration = Duration::from_secs(60);

/// What is kept of a cluster in the target directory.
#[derive(Deserialize, Serialize)]
struct State {
    name: String,
    options: Options,
    keeper: u32,
    /// It is up, and not still being made.
    ready: bool,
}

/// Makes a cluster and leaves it to a process in the background, of which `arguments` are those of [`keep`].
///
/// # Errors
/// There is one, or it cannot be made.
pub fn up(arguments: &[String]) -> anyhow::Result<View> {
    if let Ok((state, _)) = state() {
        bail!("there is a lab already ({}): `cargo xtask lab down` removes it", state.name);
    }
    lab::reap();
    let log = log_file();
    let file = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["lab", "keep"]).args(arguments).process_group(0);
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut keeper = command.spawn().context("cannot start the keeper of the lab")?;
    let begin = Instant::now();
    loop {
        if let Ok(view) = current() {
            return Ok(view);
        }
        if let Some(status) = keeper.try_wait()? {
            bail!("the lab was not made ({status}):\n{}", fs::read_to_string(&log).unwrap_or_default());
        }
        ensure!(begin.elapsed() < PATIENCE, "the lab is not there yet; {} says why", log.display());
        thread::sleep(Duration::from_millis(50));
    }
}

/// What runs in the background: makes the cluster, and removes it when told to end.
///
/// # Errors
/// It cannot be made.
pub fn keep(options: Options) -> anyhow::Result<()> {
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    // Of two that are made at once one would be forgotten.
    let lock = fs::File::create(directory().join("lab.lock")).context("cannot write where labs are noted")?;
    ensure!(lock.try_lock().is_ok(), "another lab is up, or being made");
    let mut cluster = Cluster::new(options)?;
    let mut state = State { name: cluster.view.name().to_owned(), options, keeper: std::process::id(), ready: false };
    note(&state)?;
    copy_examples(&cluster, &project::root().join("examples/cluster"))?;
    cluster.start()?;
    match cluster.converge(CONVERGENCE) {
        Ok(took) => println!("converged after {took:.1?}"),
        // To be looked at with `lab status`.
        Err(error) => println!("{error:#}"),
    }
    state.ready = true;
    note(&state)?;
    let mut said = None;
    let mut seen = stamps(&cluster.view);
    while !ended.load(Ordering::Relaxed) {
        let now = stamps(&cluster.view);
        let configured = if now == seen { Ok(0) } else { cluster.configure_routers() };
        seen = now;
        if let Err(error) = cluster.alive().and(configured)
            && said.as_ref() != Some(&error.to_string())
        {
            println!("{error:#}");
            said = Some(error.to_string());
        }
        thread::sleep(Duration::from_millis(100));
    }
    drop(cluster);
    fs::remove_file(state_file()).context("cannot forget the lab")
}

fn note(state: &State) -> anyhow::Result<()> {
    fs::write(state_file(), serde_json::to_string_pretty(state)?).context("cannot note the lab")
}

/// When the files of the resources were written.
fn stamps(view: &View) -> BTreeMap<PathBuf, SystemTime> {
    let entries = fs::read_dir(view.config()).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.modified().ok()?))).collect()
}

/// The cluster that is up.
///
/// # Errors
/// There is none.
pub fn current() -> anyhow::Result<View> {
    let (state, _) = state()?;
    ensure!(state.ready, "the lab is still being made");
    View::new(state.name, state.options)
}

/// Removes the cluster that is up, or being made, or what is left of one whose keeper has died.
///
/// # Errors
/// There is none.
pub fn down() -> anyhow::Result<()> {
    let (state, keeper) = match state() {
        Ok(found) => found,
        Err(_) if state_file().exists() => {
            lab::reap();
            return fs::remove_file(state_file()).context("cannot forget the lab");
        }
        Err(none) => return Err(none),
    };
    kill(keeper, Signal::SIGTERM).context("cannot tell the keeper of the lab to end")?;
    let begin = Instant::now();
    while lab::is_kept(&state.name) {
        ensure!(begin.elapsed() < PATIENCE, "the keeper of the lab (process {keeper}) does not end");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// What is kept, and the process that keeps it, if that lives.
fn state() -> anyhow::Result<(State, Pid)> {
    let state = fs::read_to_string(state_file()).ok().and_then(|text| serde_json::from_str::<State>(&text).ok());
    let state = state.filter(|state| lab::is_kept(&state.name));
    let state = state.context("there is no lab: `cargo xtask lab up` makes one")?;
    let keeper = Pid::from_raw(i32::try_from(state.keeper)?);
    Ok((state, keeper))
}

/// One lab for each checkout; `CALICO_EBPF_LAB` names a directory for another one.
fn directory() -> PathBuf {
    std::env::var_os("CALICO_EBPF_LAB").map_or_else(project::target, PathBuf::from)
}

fn state_file() -> PathBuf {
    directory().join("lab.json")
}

fn log_file() -> PathBuf {
    directory().join("lab.log")
}
