//! `run`: desired state from the files, actual state from the kernel, and the loop that makes the second match the first.

mod answered;
mod confirmation;
pub mod control;
mod desired;
pub mod dry_run;
mod engine;
pub mod http;
mod live;
mod nat_outgoing;
mod quiet;
mod signals;
mod site;
mod sources;
mod watch;

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, bail};

use self::{
    control::{Call, Server},
    engine::{Engine, Start},
    live::Live,
    signals::Signals,
    site::Shared,
    sources::Sources,
    watch::FileWatch,
};
use crate::dataplane::{self, Dataplane, Uplinks, doctor, watch::Watcher};

/// Commands that wait for the loop.
const WAITING_CALLS: usize = 16;

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The files and directories.
    pub config: Vec<PathBuf>,
    /// Whose workloads are local.
    pub node: String,
    /// The ways to other hosts.
    pub uplinks: Uplinks,
    /// Which data path.
    pub dataplane: dataplane::Options,
    /// Where to serve metrics.
    pub listen: Listen,
    /// Apply and end.
    pub once: bool,
    /// Follow changes of the files.
    pub watch: bool,
    /// Seconds after which what the start put in force is taken back unless it was confirmed.
    pub confirm: Option<u32>,
}

/// Where to serve metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// There; anything in the way is an error.
    Exactly(SocketAddr),
    /// There if possible: the address is our choice, not the user's, so something in the way is only a warning.
    IfFree(SocketAddr),
}

/// Runs until told to end, in the network namespace of the calling thread.
///
/// # Errors
/// The start is refused: nothing of what was in force has changed. Later faults are logged and tried again.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no tokio runtime")?;
    runtime.block_on(start(options))
}

async fn start(options: &Options) -> anyhow::Result<()> {
    // First of all: one that comes during the start asks for a reload behind it, and must not end the process.
    let hang_up = if options.once { None } else { Some(signals::hang_up()?) };
    let instance = &options.dataplane.instance;
    if let Some((pid, name)) = doctor::live_felix() {
        bail!(
            "{name} (process {pid}) runs in this network namespace: two programs that set up the same interfaces and \
             routes undo each other's work; stop Felix first"
        );
    }
    if instance.is_running() {
        return Err(dataplane::DataplaneError::Busy { path: instance.pin_dir().to_owned() }.into());
    }
    let _alone = dataplane::alone::claim()?;
    // Before the first reading, so that no change is missed in between.
    let files = if options.watch && !options.once {
        Some(FileWatch::new(&options.config).context("cannot watch the files (--watch off does without)")?)
    } else {
        None
    };
    let mut sources = Sources::new(&options.config, &options.node);
    let (accepted, warnings) = sources.first()?;
    let mut dataplane = Dataplane::open(&options.dataplane)?;
    if dataplane.rejected() == Some(accepted.content) {
        bail!(
            "the files are those that were taken back because nobody confirmed them: they stay refused until they change, \
             and what is in force stays so"
        );
    }
    dataplane.note_rejected(None)?;
    // Likewise before the first look.
    let links = Watcher::new().context("cannot listen to the kernel's notifications about links")?;
    let shared = Arc::new(Shared::new(instance.clone()));
    if !options.once {
        serve(options.listen, &shared).await?;
    }
    let signals = hang_up.map(Signals::heed).transpose()?;
    // What could keep the process from running goes before what it puts in force.
    let (send, calls) = tokio::sync::mpsc::channel::<Call>(WAITING_CALLS);
    let server = if options.once { None } else { Some(Server::start(instance, send)?) };
    let engine = Engine::start(Start {
        sources,
        accepted,
        warnings,
        node: options.node.clone(),
        uplinks: options.uplinks.clone(),
        dataplane,
        unconfirmed: options.confirm.is_some(),
    })?;
    shared.ready();
    announce_ready();
    let Some(signals) = signals else { return Ok(()) };
    Live::new(options, engine, files, links, calls, shared).run(signals).await;
    drop(server);
    Ok(())
}

async fn serve(listen: Listen, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let (address, must) = match listen {
        Listen::Off => return Ok(()),
        Listen::Exactly(address) => (address, true),
        Listen::IfFree(address) => (address, false),
    };
    match http::start(address, Arc::clone(shared) as Arc<dyn http::Site>).await {
        Ok(()) => tracing::debug!(%address, "serving /metrics, /liveness and /readiness"),
        Err(error) if must => return Err(error).with_context(|| format!("cannot listen on {address} (--listen)")),
        Err(error) => tracing::warn!(
            %address, %error,
            "no metrics: cannot listen there; --listen names another address, or `off`"
        ),
    }
    Ok(())
}

/// Tells whoever waits on standard output, and systemd.
fn announce_ready() {
    let mut out = io::stdout().lock();
    match writeln!(out, "ready").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            tracing::warn!("cannot say `ready` on standard output: {error}");
        }
        _ => {}
    }
    // Without systemd there is nobody to tell, and that is no fault.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}
