//! What all commands that look at a data path need.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{
    args::{Common, Format},
    output, paths,
};
use crate::{
    agent::control::{self, Reply, Request},
    dataplane::{Instance, Uplinks, netns, view::View},
};

/// The common options, acted upon.
#[derive(Debug)]
pub(super) struct Context {
    /// Which data path.
    pub(super) instance: Instance,
    /// How to print.
    pub(super) format: Format,
    /// `--uplink`.
    pub(super) uplinks: Uplinks,
    node: Option<String>,
}

impl Context {
    /// Enters the network namespace, which threads that start later inherit.
    pub(super) fn new(common: Common) -> anyhow::Result<Self> {
        if let Some(name) = &common.netns {
            netns::enter(name)?;
        }
        let pin_dir = paths::absolute(&common.pin_dir).context("--pin-dir")?;
        let uplinks = if common.uplinks.is_empty() { Uplinks::DefaultRoutes } else { Uplinks::Named(common.uplinks) };
        Ok(Self { instance: Instance::new(pin_dir), format: common.output, uplinks, node: common.node })
    }

    /// `--node`, or the host's name in lower case, as Calico does.
    pub(super) fn node(&self) -> String {
        node_name(self.node.as_deref())
    }

    /// Opens the maps.
    pub(super) fn view(&self) -> anyhow::Result<View> {
        let pin_dir = self.instance.pin_dir().display();
        match View::open(&self.instance)? {
            // Before the first generation nothing is in force yet, nor known.
            Some(view) if view.root()?.generation != 0 => Ok(view),
            _ => anyhow::bail!("nothing is installed at {pin_dir} (--pin-dir names another instance)"),
        }
    }

    /// Asks the running process, if there is one.
    pub(super) fn ask(&self, request: &Request) -> anyhow::Result<Option<Reply>> {
        control::call(&self.instance, request)
    }

    /// Has the running process do something, and says what came of it.
    pub(super) fn tell(&self, request: &Request) -> anyhow::Result<ExitCode> {
        let Some(reply) = self.ask(request)? else {
            anyhow::bail!("no process runs the data path at {}", self.instance.pin_dir().display());
        };
        if !reply.ok {
            anyhow::bail!(reply.message);
        }
        output::result(self.format, &serde_json::json!({"ok": true, "message": reply.message}), |_| {
            format!("{}\n", reply.message)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The name that was given, or the host's in lower case, as Calico does.
pub(super) fn node_name(given: Option<&str>) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    given.map_or_else(host, str::to_owned)
}
