//! What a dry run asks: nothing here takes the instance or changes anything.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    error::{DataplaneError, Result},
    instance::Instance,
    nat_outgoing,
    netlink::Netlink,
    nft,
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

/// The name that the nftables table of `natOutgoing` has or will have, and whether it is there.
///
/// # Errors
/// If nft is missing, which a run would need, too.
pub fn nat_table(instance: &Instance) -> Result<(String, bool)> {
    let table = nft::table_name(nat_outgoing::TABLE, instance);
    let there = nft::exists("inet", &table)?;
    Ok((table, there))
}

/// What reaches this host itself: its addresses but loopback, and broadcasts of its networks.
///
/// # Errors
/// If netlink fails.
pub fn host_addresses() -> Result<BTreeSet<IpAddr>> {
    let mut netlink = Netlink::open().map_err(DataplaneError::io("open a netlink socket"))?;
    netlink.host_addresses().map_err(DataplaneError::io("list the addresses of this host"))
}
