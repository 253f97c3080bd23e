//! `--dry-run`: what `run` would do, found out without touching anything.

use anyhow::Context as _;
use calico_ebpf_common::abi::{MAX_UPLINKS, role};

use super::{Options, desired::desired, sources::Sources};
use crate::{
    dataplane::{
        DesiredWorkload, Uplinks,
        preview::{self, Table},
        view::View,
    },
    observe::{interfaces, inventory},
    policy::{maps::ROOM, store::Store},
    resources::model::HostInterface,
    routes::{self, migration::Migrations},
};

/// The steps, in order.
///
/// # Errors
/// The files are refused, or what is installed cannot be read.
pub fn steps(options: &Options) -> anyhow::Result<Vec<String>> {
    let mut sources = Sources::new(&options.config, &options.node);
    let (accepted, warnings) = sources.first()?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let instance = &options.dataplane.instance;
    let view = View::open(instance)?;
    let store = match &view {
        Some(_) => preview::stored(instance)?,
        None => Store::empty(ROOM),
    };
    let host_addresses = preview::host_addresses()?;
    let plan = store.plan(&accepted.compiled, &host_addresses).context("the maps have no room for this policy")?;
    let desired = desired(&accepted, &plan.next, &options.node, &options.uplinks, &Migrations::default());

    let known = view.as_ref().map_or_else(|| Ok(Vec::new()), inventory::workloads)?;
    let installed = view.as_ref().map_or_else(|| Ok(Vec::new()), routes::read)?;
    let attached = |workload: &DesiredWorkload, index: u32| {
        known.iter().any(|local| local.endpoint == workload.name && local.workload.ifindex == index)
    };
    let mut steps = Vec::new();
    if view.is_none() {
        steps.push(format!("{}: make the maps, load the programs", instance.pin_dir().display()));
    }
    for (path, value) in preview::sysctls(&desired.workloads)? {
        steps.push(format!("sysctl {}: set to {value}", path.replace('/', ".")));
    }
    // Without nft they are gone without, and a run says so.
    if let Ok((table, false)) = preview::table(instance, Table::Reassembly) {
        steps.push(format!("nftables table inet {table}: make, it has fragments put together"));
    }
    if let (Some(prefixes), Ok((table, false))) = (&desired.interface_prefixes, preview::table(instance, Table::Guard))
    {
        let prefixes = prefixes.join(", ");
        steps.push(format!("nftables table inet {table}: make, it stops interfaces {prefixes} while no process runs"));
    }
    if let Some(nat) = &desired.nat_outgoing {
        let (table, there) = preview::table(instance, Table::Nat)?;
        let verb = if there { "write again" } else { "make" };
        let sources: Vec<String> = nat.sources.iter().map(ToString::to_string).collect();
        steps.push(format!("nftables table inet {table}: {verb}, it translates {}", sources.join(", ")));
    }
    let there = view.as_ref().map_or_else(|| Ok(Vec::new()), View::interfaces)?;
    let is_uplink = |index| there.iter().any(|(known, entry)| *known == index && entry.role == role::UPLINK);
    let uplinks = match &desired.uplinks {
        Uplinks::Named(names) => names.clone(),
        Uplinks::DefaultRoutes => preview::default_uplinks()?.into_iter().filter_map(interfaces::name).collect(),
    };
    for (name, number) in uplinks.iter().zip(0..) {
        match interfaces::index(name) {
            _ if number >= MAX_UPLINKS => steps.push(format!("uplink {name}: none, there is room for {MAX_UPLINKS}")),
            None => steps.push(format!("uplink {name}: wait for the interface")),
            Some(index) if is_uplink(index) => {}
            Some(_) => steps.push(format!("uplink {name}: filters in both directions")),
        }
    }
    let is_known = |slot: u32| there.iter().any(|(_, entry)| entry.host == slot + 1);
    for endpoint in desired.host_endpoints.iter().filter(|endpoint| !is_known(endpoint.host)) {
        let interface = match &endpoint.interface {
            HostInterface::Named(name) => name.clone(),
            HostInterface::Carrying(addresses) => {
                let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                format!("what carries {}", addresses.join(", "))
            }
            HostInterface::All => "all other interfaces of the host".to_owned(),
        };
        steps.push(format!("host endpoint {}: filters in both directions on {interface}", endpoint.name));
    }
    for (name, ingress) in &desired.untracked {
        let by_xdp = if *ingress && desired.xdp.enabled { ", by XDP if the device can" } else { "" };
        steps.push(format!("uplink {name}: untracked policy{by_xdp}"));
    }
    for workload in &desired.workloads {
        let DesiredWorkload { name, interface, .. } = workload;
        match interfaces::index(interface) {
            None => steps.push(format!("workload {name}: wait for interface {interface}")),
            Some(index) if attached(workload, index) => {}
            Some(_) => steps.push(format!("workload {name}: filters on {interface} in both directions")),
        }
    }
    if !plan.is_empty() {
        steps.extend(plan.prepare.iter().map(ToString::to_string));
        steps.push(format!("generation {}: put in force", plan.generation));
    }
    for workload in &desired.workloads {
        for address in &workload.addresses {
            let there = installed
                .iter()
                .any(|route| route.address == *address && route.interface == workload.interface && route.installed);
            if !there && interfaces::index(&workload.interface).is_some() {
                steps.push(format!("route {address} dev {}", workload.interface));
            }
        }
    }
    for route in installed.iter().filter(|route| route.installed) {
        if !desired.workloads.iter().any(|workload| workload.addresses.contains(&route.address)) {
            steps.push(format!("route {} dev {}: remove", route.address, route.interface));
        }
    }
    for gone in known.iter().filter(|local| !desired.workloads.iter().any(|w| w.name == local.endpoint)) {
        if gone.workload.ifindex != 0 {
            steps.push(format!("workload {} is gone: {} drops everything", gone.endpoint, gone.interface));
        }
    }
    if let (None, Some(table)) = (&desired.nat_outgoing, view.as_ref().and_then(|view| view.info().ok()?.nat_table)) {
        steps.push(format!("nftables table inet {table}: remove, or keep without rules while connections need it"));
    }
    steps.extend(plan.retire.iter().map(ToString::to_string));
    Ok(steps)
}
