//! What a dry run asks: nothing here takes the instance or changes anything.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    desired::DesiredWorkload,
    error::{DataplaneError, Result},
    guard,
    instance::Instance,
    nat_outgoing,
    netlink::Netlink,
    nft, reassembly, sysctl,
    tables::Tables,
};
use crate::policy::store::Store;

/// The policy store of what an installed data path holds. Beside a running process it may be half of one generation and
/// half of the next: good for looking at, not for going on from.
///
/// # Errors
/// If the maps cannot be read.
pub fn stored(instance: &Instance) -> Result<Store> {
    let tables = Tables::open(&instance.layout_dir())?;
    Ok(Store::adopt(tables.limits(), &tables.snapshot()?.state()))
}

/// An nftables table of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Of `natOutgoing`.
    Nat,
    /// For interfaces of workloads that come while no process runs.
    Guard,
    /// Has fragments put together.
    Reassembly,
}

/// The name that a table has or will have, and whether it is there.
///
/// # Errors
/// If nft is missing.
pub fn table(instance: &Instance, table: Table) -> Result<(String, bool)> {
    let base = match table {
        Table::Nat => nat_outgoing::TABLE,
        Table::Guard => guard::TABLE,
        Table::Reassembly => reassembly::TABLE,
    };
    let name = nft::table_name(base, instance);
    let there = nft::exists("inet", &name)?;
    Ok((name, there))
}

/// The sysctls that would be set, each with its value: those of forwarding and of the workloads' interfaces.
///
/// # Errors
/// If one cannot be read.
pub fn sysctls(workloads: &[DesiredWorkload]) -> Result<Vec<(String, &'static str)>> {
    let of_workload = |workload: &DesiredWorkload| {
        sysctl::workload(&workload.interface, workload.spoof, workload.addresses.iter().any(IpAddr::is_ipv6))
    };
    let mut other = Vec::new();
    for setting in sysctl::forwarding().into_iter().chain(workloads.iter().flat_map(of_workload)) {
        if sysctl::read(&setting.path)?.is_some_and(|now| now != setting.value) {
            other.push((setting.path, setting.value));
        }
    }
    Ok(other)
}

/// The devices of the default routes, by index.
///
/// # Errors
/// If netlink fails.
pub fn default_uplinks() -> Result<Vec<u32>> {
    let mut netlink = Netlink::open().map_err(DataplaneError::io("open a netlink socket"))?;
    netlink.default_route_devices().map_err(DataplaneError::io("list the default routes"))
}

/// What reaches this host itself: its addresses but loopback, and broadcasts of its networks.
///
/// # Errors
/// If netlink fails.
pub fn host_addresses() -> Result<BTreeSet<IpAddr>> {
    let mut netlink = Netlink::open().map_err(DataplaneError::io("open a netlink socket"))?;
    netlink.host_addresses().map_err(DataplaneError::io("list the addresses of this host"))
}
