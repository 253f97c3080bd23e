//! What putting other resources in force would change.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use calico_ebpf_common::abi::{explained, host_action};
use serde::Serialize;

use super::{
    connections::{self, Connection},
    names::End,
};
use crate::{
    dataplane::{Instance, preview, probe::Probe, view::View},
    policy::{
        compile::compile,
        compiled::{Compiled, RuleName},
        maps::Maps,
    },
    resources::model::ResourceSet,
    routes,
};

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Workloads that come, by `NAMESPACE/NAME`.
    pub workloads_added: Vec<String>,
    /// Workloads that go.
    pub workloads_removed: Vec<String>,
    /// Workloads whose rules for what they send change, or the addresses behind them.
    pub egress: Vec<String>,
    /// Likewise for what they receive.
    pub ingress: Vec<String>,
    /// Routes that come.
    pub routes_added: Vec<String>,
    /// Routes that go.
    pub routes_removed: Vec<String>,
    /// Connections that would end.
    pub cut: Vec<Cut>,
}

/// A connection that would end.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cut {
    /// It.
    #[serde(flatten)]
    pub connection: Connection,
    /// What would deny it; `null` where its workload goes.
    pub by: Option<RuleName>,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { protocol, source, destination, .. } = &self.connection;
        write!(f, "{protocol} {source} -> {destination}: ")?;
        match &self.by {
            Some(rule) => rule.fmt(f),
            None => f.write_str("its workload goes, or the host does not want it"),
        }
    }
}

/// Holds `set` against what is installed. Nothing is touched.
///
/// # Errors
/// What is installed cannot be read, or there is no room for the policy.
pub fn of(instance: &Instance, view: &View, set: &ResourceSet, node: &str) -> anyhow::Result<Changes> {
    let compiled = compile(set, node);
    let hosts = preview::host_addresses()?;
    let plan = preview::stored(instance)?.plan(&compiled, &hosts)?;
    let crate::policy::write::Changes { added, removed, egress, ingress, .. } = plan.changes;

    let wanted: BTreeSet<String> = compiled
        .workloads
        .values()
        .flat_map(|workload| workload.addresses.iter().map(|address| route(*address, &workload.interface)))
        .collect();
    let there: BTreeSet<String> =
        routes::read(view)?.into_iter().map(|known| route(known.address, &known.interface)).collect();
    Ok(Changes {
        workloads_added: added,
        workloads_removed: removed,
        egress,
        ingress,
        routes_added: wanted.difference(&there).cloned().collect(),
        routes_removed: there.difference(&wanted).cloned().collect(),
        cut: cut(instance, view, &compiled, &hosts)?,
    })
}

fn route(address: IpAddr, interface: &str) -> String {
    format!("{address} dev {interface}")
}

/// Judges every connection anew, as its opener.
fn cut(instance: &Instance, view: &View, compiled: &Compiled, hosts: &BTreeSet<IpAddr>) -> anyhow::Result<Vec<Cut>> {
    let maps = Maps::of(compiled, hosts)?;
    let owner = |address: IpAddr| {
        compiled.workloads.iter().find(|(_, workload)| workload.addresses.contains(&address)).map(|(name, _)| name)
    };
    let probe = Probe::open(instance)?;
    let mut cut = Vec::new();
    for connection in connections::read(view)? {
        let (source, destination) = (connection.source.address, connection.destination.address);
        // Nobody judges what the host opens.
        if hosts.contains(&source) {
            continue;
        }
        let flow = connection.flow();
        // What is cut already keeps its entry for a while.
        if let Some(probe) = &probe
            && probe.ask(&flow)?.reason != explained::PASSES
        {
            continue;
        }
        let stays = |end: &End| end.endpoint.is_none() || end.endpoint.as_ref() == owner(end.address);
        if !stays(&connection.source) || !stays(&connection.destination) {
            cut.push(Cut { connection, by: None });
            continue;
        }
        let verdict = maps.judge(&flow);
        let denies = [&verdict.source, &verdict.destination].into_iter().flatten().find(|end| !end.allow);
        if let Some(end) = denies {
            cut.push(Cut { by: Some(end.rule.clone()), connection });
        } else if verdict.source.is_some() && hosts.contains(&destination) && compiled.host_action == host_action::DROP
        {
            cut.push(Cut { by: None, connection });
        }
    }
    Ok(cut)
}
