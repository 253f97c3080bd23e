//! What came of it, for people.

use std::collections::BTreeSet;

use super::Dataplane;
use crate::{
    dataplane::{
        desired::{Applied, Attachment, Desired, LinkState, Uplink, Uplinks, WorkloadStatus},
        host_endpoints::Resolved,
        links::{Found, has_peer},
    },
    resources::model::HostInterface,
};

impl Dataplane {
    pub(super) fn report(
        &self,
        desired: &Desired,
        uplinks: &[u32],
        found: &Found,
        failed: &BTreeSet<u32>,
        applied: &mut Applied,
    ) {
        let attachment = |index: u32| (!failed.contains(&index)).then_some(self.hooks.attachment);
        for workload in &desired.workloads {
            let link = found.links.by_name(&workload.interface);
            applied.workloads.push(WorkloadStatus {
                endpoint: workload.name.clone(),
                interface: workload.interface.clone(),
                state: match link {
                    None => LinkState::Absent,
                    Some(link) if failed.contains(&link.index) => LinkState::Failed,
                    Some(link) if link.carrier => LinkState::Up,
                    Some(_) => LinkState::Down,
                },
                ifindex: link.map(|link| link.index),
                attachment: link.and_then(|link| attachment(link.index)),
                peer: link.is_some_and(has_peer),
                migration: workload.migration.clone(),
            });
        }
        let present = uplinks.iter().filter_map(|index| found.links.by_index(*index));
        applied.uplinks.extend(present.map(|link| Uplink {
            interface: link.name.clone(),
            ifindex: Some(link.index),
            mtu: link.mtu,
            attachment: attachment(link.index),
        }));
        if let Uplinks::Named(interfaces) = &desired.uplinks {
            let absent = interfaces.iter().filter(|name| found.links.by_name(name).is_none());
            applied.uplinks.extend(absent.map(|name| Uplink {
                interface: name.clone(),
                ifindex: None,
                mtu: 0,
                attachment: None::<Attachment>,
            }));
        }
    }
}

/// Tells which interfaces host endpoints are, and where one is none.
pub(super) fn report_host_endpoints(
    desired: &Desired,
    hosts: Resolved,
    found: &Found,
    failed: &BTreeSet<u32>,
    applied: &mut Applied,
) {
    applied.host_endpoints = hosts.status;
    let is_open = |name: &String| found.links.by_name(name).is_some_and(|link| failed.contains(&link.index));
    for (endpoint, status) in desired.host_endpoints.iter().zip(&mut applied.host_endpoints) {
        status.interfaces.retain(|name| !is_open(name));
        if endpoint.interface != HostInterface::All {
            applied.faults.extend(status.uncovered.iter().map(|name| {
                format!(
                    "host endpoint {}: packets of interface {name} have no Ethernet header: nothing is judged there",
                    endpoint.name
                )
            }));
        }
    }
}
