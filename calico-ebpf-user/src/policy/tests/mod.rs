//! The compiled tables against the plain evaluator.

mod all_interfaces;
pub(super) mod cases;
pub(crate) mod generate;
mod limits;
mod lints;
mod properties;
mod scale;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use super::{
    compile::compile,
    evaluate::evaluate_through,
    flow::{Flow, Verdict},
    maps::Maps,
    store::Store,
    write::Limits,
};
use crate::resources::model::{Origin, ResourceSet};

/// The node that tests compile for.
pub(crate) const NODE: &str = "n1";

const LIMITS: Limits = Limits {
    blocks: 1 << 18,
    slots: 1024,
    counters: 1 << 16,
    addresses4: 1 << 16,
    addresses6: 1 << 16,
    nets: 1 << 14,
    spoof: 1 << 12,
    classes: 1 << 16,
};

fn origin() -> Origin {
    Origin { path: Arc::from(std::path::Path::new("test.yaml")), line: 1, column: 1 }
}

/// The maps that a new process makes of `set`.
fn fresh(set: &ResourceSet) -> (Store, Maps) {
    let plan = Store::empty(LIMITS).plan(&compile(set, NODE), &host()).unwrap();
    let mut maps = Maps::default();
    maps.execute(&plan);
    (plan.next, maps)
}

pub(crate) fn host() -> BTreeSet<IpAddr> {
    ["10.0.0.254", "192.168.7.1", "fd00::254"].map(|address| address.parse().unwrap()).into()
}

/// What the evaluator says, of what happens on [`NODE`].
pub(crate) fn expected(set: &ResourceSet, flow: &Flow) -> Verdict {
    let mut verdict = evaluate_through(set, flow, &host());
    let local = |address: IpAddr| {
        set.workloads.iter().any(|workload| workload.node == NODE && workload.addresses.contains(&address))
    };
    verdict.source = verdict.source.filter(|_| local(flow.source));
    verdict.destination = verdict.destination.filter(|_| local(flow.destination));
    verdict
}
