//! Which interfaces of the host are host endpoints. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    desired::{DesiredHostEndpoint, HostEndpointStatus},
    netlink::{Link, LinkTable},
};
use crate::resources::{host_endpoint_of, model::HostInterface};

/// Slots of what judges at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seats {
    pub(crate) host: u32,
    pub(crate) forward: Option<u32>,
}

/// What came of a look at the interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// By interface index.
    pub(crate) seats: BTreeMap<u32, Seats>,
    /// Other interfaces of the host by which something can leave, and where programs of ours could hang.
    pub(crate) others: BTreeSet<u32>,
    /// For people, in the order of what is desired.
    pub(crate) status: Vec<HostEndpointStatus>,
}

/// Finds the interfaces of host endpoints. `is_workload`: interfaces that are none of the host's. `addresses`: those of each
/// interface.
pub(crate) fn resolve(
    endpoints: &[DesiredHostEndpoint],
    links: &LinkTable,
    is_workload: impl Fn(&Link) -> bool,
    addresses: &BTreeSet<(u32, IpAddr)>,
) -> Resolved {
    let mut resolved = Resolved {
        status: endpoints
            .iter()
            .map(|endpoint| HostEndpointStatus { endpoint: endpoint.name.clone(), ..HostEndpointStatus::default() })
            .collect(),
        ..Resolved::default()
    };
    let by_name = endpoints.iter().map(|endpoint| (endpoint.name.as_str(), &endpoint.interface));
    for link in links.iter().filter(|link| !link.loopback && !is_workload(link)) {
        let own: Vec<IpAddr> =
            addresses.iter().filter(|(index, _)| *index == link.index).map(|(_, address)| *address).collect();
        let name = host_endpoint_of(by_name.clone(), &link.name, &own);
        let named = name.and_then(|name| endpoints.iter().position(|endpoint| endpoint.name == name));
        // What it is a part of is the interface: a bridge, a bond.
        let Some(index) = named.filter(|&index| endpoints[index].interface != HostInterface::All || !link.has_master)
        else {
            if link.ethernet && !link.has_master && !link.ifb {
                resolved.others.insert(link.index);
            }
            continue;
        };
        let (endpoint, status) = (&endpoints[index], &mut resolved.status[index]);
        if link.ethernet {
            resolved.seats.insert(link.index, Seats { host: endpoint.host, forward: endpoint.forward });
            status.interfaces.push(link.name.clone());
        } else {
            status.uncovered.push(link.name.clone());
        }
    }
    resolved
}
