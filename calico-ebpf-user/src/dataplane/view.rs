//! Read-only looks at the pinned maps, of a running or a stopped data path.

use std::net::IpAddr;

use calico_ebpf_common::abi::{Conn, ConnKey4, ConnKey6, DropReason, Root, RuleEntry, Workload};

use super::{
    error::{DataplaneError, Result},
    instance::Instance,
};
use crate::policy::compiled::RuleName;

/// The pinned maps of an instance, opened for reading.
#[derive(Debug)]
pub struct View {}

/// What the writer of the maps left about itself (`cali_info`).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Info {
    /// Version of the program that wrote last.
    pub version: String,
    /// `--node` of that process.
    pub node: String,
    /// Process that wrote last; it may be gone.
    pub pid: u32,
    /// Kernel ticks (jiffies) in a second.
    pub hz: u32,
    /// Uplinks in use, by name.
    pub uplinks: Vec<String>,
    /// Route protocols that our routes have carried.
    pub route_protocols: Vec<u8>,
    /// Sysctls that were set: path below `/proc/sys`, value before, value set.
    pub sysctls: Vec<SavedSysctl>,
    /// Interfaces that got a `clsact` qdisc from us.
    pub qdiscs: Vec<u32>,
    /// Name of our nftables table, if one was made.
    pub nft_table: Option<String>,
}

/// Who owns a slot (`cali_wl_name`, as JSON).
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Owner {
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// Name of its pod, where it has one.
    pub pod: Option<String>,
    /// Host side of its veth or tap, as configured.
    pub interface: String,
}

/// A sysctl that was set.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedSysctl {
    /// Path below `/proc/sys`.
    pub path: String,
    /// Value before.
    pub old: String,
    /// Value that was set.
    pub new: String,
}

impl View {
    /// Opens what is pinned; `None` if nothing is installed.
    ///
    /// # Errors
    /// Without the privilege, or if the pins are incomplete.
    pub fn open(instance: &Instance) -> Result<Option<Self>> {
        let _ = instance;
        Ok(None)
    }

    /// The root: generation, settings, timeouts, uplinks.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn root(&self) -> Result<Root> {
        Err(DataplaneError::NoObject)
    }

    /// Who wrote the maps.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn info(&self) -> Result<Info> {
        Err(DataplaneError::NoObject)
    }

    /// Every slot in use, with its owner (`cali_wl_name`).
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn workloads(&self) -> Result<Vec<(u32, Owner, Workload)>> {
        Err(DataplaneError::NoObject)
    }

    /// Every single address that belongs to a local workload in the generation in force, with the workload's slot.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn owned_addresses(&self) -> Result<Vec<(IpAddr, u32)>> {
        Err(DataplaneError::NoObject)
    }

    /// Every named rule: counter slot, name, packets that it decided (all CPUs together).
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn rules(&self) -> Result<Vec<(u32, RuleName, u64)>> {
        Err(DataplaneError::NoObject)
    }

    /// The entries of the rule table whose header is this block, in order; none for "no table" (block 0, or no chunks).
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn table(&self, header: u32) -> Result<Vec<RuleEntry>> {
        let _ = header;
        Err(DataplaneError::NoObject)
    }

    /// Drops by reason, all CPUs together.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>> {
        Err(DataplaneError::NoObject)
    }

    /// The IPv4 connections. Entries that come or go meanwhile may or may not be among them.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn connections4(&self) -> Result<Vec<(ConnKey4, Conn)>> {
        Err(DataplaneError::NoObject)
    }

    /// The IPv6 connections, likewise.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn connections6(&self) -> Result<Vec<(ConnKey6, Conn)>> {
        Err(DataplaneError::NoObject)
    }

    /// Now, in the ticks that connections are stamped with.
    ///
    /// # Errors
    /// If the clock program is not pinned or cannot be run.
    pub fn now(&self) -> Result<u32> {
        Err(DataplaneError::NoObject)
    }
}
