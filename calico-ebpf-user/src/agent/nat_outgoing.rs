//! Who is to be translated on the way out of all pools. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    dataplane::NatOutgoing,
    policy::compiled::Compiled,
    resources::model::{FelixConfiguration, NatOutgoingExclusions, ResourceSet},
};

/// What the pools ask for; `None` where none has `natOutgoing`.
///
/// Disabled pools count: that is how Calico's users name networks that are reached untranslated. So do the addresses of
/// local workloads outside of all pools: between workloads of one host nothing is translated, whichever way a packet goes.
#[must_use]
pub(super) fn nat_outgoing(set: &ResourceSet, compiled: &Compiled, felix: &FelixConfiguration) -> Option<NatOutgoing> {
    let sources: Vec<IpNet> = set.ip_pools.values().filter(|pool| pool.nat_outgoing).map(|pool| pool.cidr).collect();
    if sources.is_empty() {
        return None;
    }
    let mut inside: Vec<IpNet> = set.ip_pools.values().map(|pool| pool.cidr).collect();
    let pools = inside.clone();
    let mut add = |address: IpAddr| {
        if !pools.iter().any(|pool| pool.contains(&address)) {
            inside.push(address.into());
        }
    };
    compiled.workloads.values().flat_map(|workload| workload.addresses.iter().copied()).for_each(&mut add);
    if felix.nat_outgoing_exclusions == Some(NatOutgoingExclusions::IpPoolsAndHostIps) {
        for node in set.node_resources.values() {
            let own = [node.ipv4, node.ipv6].into_iter().flatten().map(|net| net.addr());
            own.chain(node.addresses.iter().copied()).for_each(&mut add);
        }
    }
    Some(NatOutgoing {
        sources: IpNet::aggregate(&sources),
        inside: IpNet::aggregate(&inside),
        address: felix.nat_outgoing_address,
        ports: felix.nat_port_range,
        interface: felix.nat_outgoing_interface_filter.as_ref().map(|filter| match filter.strip_suffix('+') {
            Some(beginning) => format!("{beginning}*"),
            None => filter.clone(),
        }),
    })
}
