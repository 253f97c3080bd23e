//! The kernel's side of things, as the loader sees it: loads and attaches the programs, pins everything, executes the
//! writes that the policy store plans, keeps links, routes and sysctls as they should be, and takes it all away again.
//!
//! Nothing here decides policy. Everything is synchronous (the calls take micro- to milliseconds); only [`watch`] waits.
//! All of it works in the network namespace of the calling thread: see [`netns::enter`].

pub mod alive;
pub(crate) mod alone;
mod apply;
mod attachments;
mod bpffs;
mod clock;
pub mod contest;
pub mod desired;
pub mod doctor;
pub mod error;
pub mod flows;
mod frame;
mod guard;
mod host_endpoints;
mod info;
pub mod instance;
mod links;
mod load;
mod maps;
mod nat_outgoing;
mod neighbours;
pub(crate) mod netlink;
pub mod netns;
mod nft;
mod packet_log;
pub mod preview;
pub mod probe;
pub mod purge;
mod reassembly;
mod sys;
mod sysctl;
mod tables;
mod tc;
mod translated;
mod translation;
pub mod view;
pub mod watch;
mod xdp;

#[cfg(test)]
mod differential;

pub use apply::{Arrangement, Dataplane};
pub use attachments::Attachments;
pub use desired::{
    Applied, Attachment, Desired, DesiredHostEndpoint, DesiredWorkload, HostEndpointStatus, LinkState, NatTable,
    Observed, Uplink, Uplinks, WorkloadStatus,
};
pub use error::{DataplaneError, Result};
pub(crate) use instance::patiently;
pub use instance::{Instance, Lock};
pub use load::load_program;
pub use nat_outgoing::NatOutgoing;
pub use tables::Snapshot;
pub use xdp::{UplinkXdp, XdpMode, XdpWish};

/// The object with the programs and the maps. Empty where this was built without it.
#[must_use]
pub fn object() -> &'static [u8] {
    load::OBJECT
}

/// Whether an nftables table of this name is there in family `inet`, as far as can be told.
#[must_use]
pub fn nft_table_exists(table: &str) -> bool {
    nft::exists("inet", table).unwrap_or(false)
}

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
    /// The defaults for an instance. Two things for those who look into the data path itself come from the environment:
    /// `CALICO_EBPF_ATTACH` (`auto`, `tcx`, `clsact`) and `CALICO_EBPF_PROGRAM_LOG` (`off`, `error` .. `trace`).
    #[must_use]
    pub fn new(instance: Instance) -> Self {
        let variable = |name: &str| std::env::var(name).unwrap_or_default().to_ascii_lowercase();
        let attach = match variable("CALICO_EBPF_ATTACH").as_str() {
            "tcx" => AttachMode::Tcx,
            "clsact" => AttachMode::Clsact,
            _ => AttachMode::Auto,
        };
        let levels = ["off", "error", "warn", "info", "debug", "trace"];
        let level = variable("CALICO_EBPF_PROGRAM_LOG");
        let log_level = (0..).zip(levels).find(|(_, name)| *name == level).map_or(0, |(number, _)| number);
        Self { instance, conns: 524_288, attach, log_level }
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
