//! What the process is told by signals.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that are heeded. From the first moment on in which something may be in force that only a running process can
/// take back; before that, they end the process as any other.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

/// What one asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM, or Ctrl-C.
    End,
    /// SIGHUP.
    Reload,
}

/// SIGHUP from now on.
pub(super) fn hang_up() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("cannot handle SIGHUP")
}

impl Signals {
    /// Whatever comes from now on is kept until [`Signals::next`].
    pub(super) fn heed(hang_up: Signal) -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot handle SIGINT")?,
            hang_up,
        })
    }

    /// The next one. Nothing is lost where this is given up.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }
}
