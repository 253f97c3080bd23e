//! Which addresses of local workloads hosts on the uplink's own link may ask for. Pure.

use std::net::IpAddr;

use crate::{
    policy::compiled::Compiled,
    resources::model::{FelixConfiguration, L2Reachability, ResourceSet},
};

/// As Calico: with `localSubnetL2Reachability`, those inside of a pool that wraps nothing. Which of them lie inside of a network
/// of the uplink is for the host to say.
#[must_use]
pub(super) fn answered(set: &ResourceSet, compiled: &Compiled, felix: &FelixConfiguration) -> Vec<IpAddr> {
    if felix.local_subnet_l2_reachability.unwrap_or_default() == L2Reachability::Disabled {
        return Vec::new();
    }
    let plain = |address: &IpAddr| set.ip_pools.values().any(|pool| !pool.encapsulated && pool.cidr.contains(address));
    let addresses = compiled.workloads.values().flat_map(|workload| workload.addresses.iter().copied());
    addresses.filter(plain).collect()
}
