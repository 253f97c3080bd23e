//! Takes away everything that was ever installed, and nothing else.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

use calico_ebpf_common::abi::names;

use super::{
    alone, bpffs,
    desired::Attachment,
    error::{DataplaneError, Result},
    guard,
    info::SavedSysctl,
    instance::Instance,
    load, nat_outgoing,
    neighbours::solicited_mac,
    netlink::{Hook, LinkTable, Netlink},
    nft, reassembly, sys, sysctl,
    tables::Tables,
    tc::{HANDLE, Hooks, PRIORITY},
    translation,
    view::View,
    xdp::XdpLinks,
};

/// What a purge did, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Purged {
    /// What was removed.
    pub removed: Vec<String>,
    /// Sysctls that were put back to what they had been.
    pub restored: Vec<String>,
    /// Sysctls that were once set and are left: somebody else has changed them since.
    pub left: Vec<String>,
    /// What could not be removed, and why.
    pub faults: Vec<String>,
}

/// Removes everything of an instance. Nothing installed is no error: then nothing is listed.
///
/// Routes go before filters, so that nothing is forwarded without policy meanwhile.
///
/// # Errors
/// [`DataplaneError::Busy`] while a process runs it; [`DataplaneError::Elsewhere`]; [`DataplaneError::NotAlone`]: what is installed twice
/// is the other's; without the privilege. What fails on the way is in [`Purged::faults`], and the rest is done nevertheless.
pub fn purge(instance: &Instance) -> Result<Purged> {
    if !rustix::process::geteuid().is_root() {
        return Err(DataplaneError::NotRoot);
    }
    let mut purged = Purged::default();
    if !instance.pin_dir().exists() || !bpffs::is_bpffs(instance.pin_dir()) {
        purge_strays(instance, &mut purged);
        return Ok(purged);
    }
    let lock = instance.lock()?;
    let is_orphaned = load::refuse_elsewhere(instance)?;
    match View::open(instance)? {
        _ if is_orphaned => {}
        Some(view) => {
            let _alone = alone::claim()?;
            purge_installed(instance, &view, &mut purged)?;
        }
        None => purge_strays(instance, &mut purged),
    }
    for layout in load::layouts(instance) {
        remove_pins(&instance.pin_dir().join(format!("v{layout}")), &mut purged);
    }
    match fs::remove_dir(instance.pin_dir()) {
        Ok(()) => purged.removed.push(instance.pin_dir().display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => purged.faults.push(format!("{}: {error}", instance.pin_dir().display())),
    }
    drop(lock);
    Ok(purged)
}

fn purge_installed(instance: &Instance, view: &View, purged: &mut Purged) -> Result<()> {
    let directory = instance.layout_dir();
    let info = view.info().unwrap_or_else(|error| {
        purged.faults.push(format!("{error}: what was changed besides cannot be told"));
        super::info::Info::default()
    });
    let mut netlink = Netlink::open().map_err(DataplaneError::io("open a netlink socket"))?;
    let links = netlink.links().map_err(DataplaneError::io("list the interfaces"))?;
    let links = LinkTable::new(links);
    let name = |index: u32| links.by_index(index).map_or_else(|| index.to_string(), |link| link.name.clone());

    // One that was ended in its very first start has not all the maps, and no routes.
    let started = view.root().map_or(true, |root| root.generation != 0);
    let routes = netlink.routes(&info.route_protocols).map_err(DataplaneError::io("list the routes"))?;
    let owned = Tables::open(&directory).and_then(|tables| tables.owned(&routes));
    let owned = owned.unwrap_or_else(|error| {
        if started {
            purged.faults.push(format!("{error}: which routes are ours cannot be told"));
        }
        BTreeSet::new()
    });
    for route in routes {
        let host = matches!((route.address.is_ipv4(), route.prefix_len), (true, 32) | (false, 128));
        if !host || !route.plain || !owned.contains(&(route.address, route.ifindex)) {
            continue;
        }
        let text = format!("route {}/{} dev {}", route.address, route.prefix_len, name(route.ifindex));
        done(purged, text, netlink.delete_route(&route).map_err(|error| error.to_string()));
    }

    let hooks = Hooks { directory: directory.clone(), attachment: Attachment::Tcx };
    let mut indices: BTreeSet<u32> = hooks.pins()?.into_iter().map(|(index, _)| index).collect();
    indices.extend(links.iter().map(|link| link.index));
    for index in indices {
        for hook in [Hook::Ingress, Hook::Egress] {
            match hooks.hanging(&mut netlink, index, hook) {
                Ok(None) => {}
                Ok(Some(_)) => {
                    let detached = hooks.detach(&mut netlink, index, hook).map_err(|error| error.to_string());
                    done(purged, format!("filter of {} ({hook})", name(index)), detached);
                }
                Err(error) => purged.faults.push(error.to_string()),
            }
        }
    }
    let xdp = XdpLinks { directory: directory.clone() };
    for (index, mode) in xdp.pins()? {
        let detached = xdp.detach(index).map(drop).map_err(|error| error.to_string());
        done(purged, format!("XDP program of {} ({mode})", name(index)), detached);
    }
    for (index, mac) in view.neighbours()?.iter().filter_map(|key| Some((key.ifindex, solicited_mac(key)?))) {
        let Some(link) = links.by_index(index) else { continue };
        let removed = sys::receive_multicast(&link.name, mac, false).map_err(|error| error.to_string());
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        done(purged, format!("multicast address {text} of {}", link.name), removed);
    }
    for index in info.qdiscs.iter().copied().filter(|index| links.by_index(*index).is_some()) {
        // Others may have put filters on it since.
        let mut filters = Vec::new();
        for hook in [Hook::Ingress, Hook::Egress] {
            filters.extend(netlink.filters(index, hook).unwrap_or_default());
        }
        filters.retain(|filter| (filter.priority, filter.handle) != (PRIORITY, HANDLE));
        if filters.is_empty() {
            let deleted = netlink.delete_clsact(index).map_err(|error| error.to_string());
            done(purged, format!("clsact qdisc of {}", name(index)), deleted);
        }
    }

    let reassembles = view.root().is_ok_and(|root| root.reassembles != 0);
    let reassembly = reassembles.then(|| nft::table_name(reassembly::TABLE, instance));
    let noted: Vec<&str> = info.nft_tables().map(|(_, table)| table).chain(reassembly.as_deref()).collect();
    purge_tables(instance, &noted, purged);

    let mut sysctls: Vec<SavedSysctl> = info.sysctls;
    for (_, owner, _) in view.workloads().unwrap_or_default() {
        sysctls.extend(owner.sysctls);
    }
    // In reverse: forwarding was switched on after an uplink was told to go on listening.
    for saved in sysctls.iter().rev() {
        match sysctl::restore(saved) {
            Ok(true) => purged.restored.push(format!("{} = {} (was set to {})", saved.path, saved.old, saved.new)),
            Ok(false) => purged.left.push(format!("{} (was {}, set to {})", saved.path, saved.old, saved.new)),
            Err(error) => purged.faults.push(error.to_string()),
        }
    }
    Ok(())
}

/// Bases of the names of our nftables tables, with their families.
const TABLES: [(&[&str], &str); 4] = [
    (nft::INET, guard::TABLE),
    (nft::INET, nat_outgoing::TABLE),
    (nft::INET, reassembly::TABLE),
    (translation::FAMILIES, translation::TABLE),
];

/// Removes the tables that have this instance's names. Of those that are not `noted` nothing may be known: a process that was killed
/// in its first moments could not note them any more, and what notes them may have been removed.
fn purge_tables(instance: &Instance, noted: &[&str], purged: &mut Purged) {
    if noted.is_empty() && nft::generation().is_ok_and(|generation| generation == nft::UNTOUCHED) {
        return;
    }
    for (families, base) in TABLES {
        let table = nft::table_name(base, instance);
        match nft::remove(families, &table) {
            Ok(true) => purged.removed.push(format!("nftables table {} {table}", families.join(" and "))),
            Ok(false) => {}
            Err(error) if noted.contains(&table.as_str()) => purged.faults.push(error.to_string()),
            Err(error) => tracing::debug!("whether there is a table {table} cannot be told: {error}"),
        }
    }
}

/// What can be told to be ours without pins, where no other process runs in this network namespace.
fn purge_strays(instance: &Instance, purged: &mut Purged) {
    if let Ok(_alone) = alone::claim() {
        purge_tables(instance, &[], purged);
    }
}

/// Removes the pins of one layout version, and the directory if nothing else is in it.
fn remove_pins(directory: &Path, purged: &mut Purged) {
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ["cali_", "link_", "prog_"].iter().any(|prefix| name.starts_with(prefix))
    };
    let mut paths: Vec<PathBuf> =
        fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).filter(ours).collect();
    // What says what was installed goes last: a purge that is interrupted can be repeated.
    paths.sort_by_key(|path| path.ends_with(names::ROOT));
    let count = paths.len();
    for path in paths {
        if let Err(error) = load::remove_if_there(&path) {
            purged.faults.push(format!("{}: {error}", path.display()));
        }
    }
    let removed = fs::remove_dir(directory).map_err(|error| error.to_string());
    done(purged, format!("{count} pins in {}", directory.display()), removed);
}

fn done(purged: &mut Purged, what: String, result: Result<(), String>) {
    match result {
        Ok(()) => purged.removed.push(what),
        Err(error) => purged.faults.push(format!("{what}: {error}")),
    }
}
