//! Workloads for tests.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::migration;
use crate::resources::{
    Shared,
    model::{Origin, WorkloadEndpoint},
};

/// One of namespace `a` with nothing but this.
pub(super) fn workload(name: &str, node: &str, interface: &str, addresses: &[&str]) -> Shared<WorkloadEndpoint> {
    WorkloadEndpoint {
        namespace: "a".to_owned(),
        name: name.to_owned(),
        node: node.to_owned(),
        orchestrator: "k8s".to_owned(),
        pod: None,
        interface: interface.to_owned(),
        addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        mac: None,
        profiles: Vec::new(),
        ports: Vec::new(),
        allow_spoofed_source_prefixes: Vec::new(),
        labels: BTreeMap::new(),
        origin: Origin { path: Arc::from(Path::new("a.yaml")), line: 1, column: 1 },
    }
    .into()
}

/// [`migration::moves`] as the program asks for it.
pub(super) fn moves(
    before: &[Shared<WorkloadEndpoint>],
    after: &[Shared<WorkloadEndpoint>],
    node: &str,
) -> Vec<migration::Move> {
    let own = before.iter().filter(|workload| workload.node == node);
    migration::moves(before, after, node, own.flat_map(|workload| &workload.addresses).copied())
}
