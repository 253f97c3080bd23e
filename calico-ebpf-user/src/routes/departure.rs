//! Workloads that go to other nodes, and are delivered to here for as long as they are here still. Pure.
//!
//! The files say that a workload is elsewhere, most often before it is. Whoever went by that alone would cut it off until it
//! arrives. So the node that it leaves has it as before (as in Calico, where the source of a migration has its routes until it
//! ends), until another node tells a route to it, it is silent here, or a time is over.

use std::{collections::BTreeMap, time::Instant};

use super::migration::Move;
use crate::resources::{Shared, model::WorkloadEndpoint};

/// Workloads that the files have on other nodes, by the `namespace/name` that they have here.
pub type Departing = BTreeMap<String, Departure>;

/// A workload that goes.
#[derive(Clone, Debug)]
pub struct Departure {
    /// As the files had it here.
    pub before: Shared<WorkloadEndpoint>,
    /// The node that has it now.
    pub to: String,
    /// When it is no longer waited for.
    pub until: Instant,
}

/// The workloads of `node` that go by one of `moves` between two sets of resources, by name.
#[must_use]
pub fn departing(
    moves: &[Move],
    before: &[Shared<WorkloadEndpoint>],
    after: &[Shared<WorkloadEndpoint>],
    node: &str,
    until: Instant,
) -> Departing {
    let mut departing = Departing::new();
    for moved in moves.iter().filter(|moved| moved.from == node) {
        let Some(now) = after.iter().find(|one| one.node == moved.to && name(one) == moved.name) else { continue };
        let shares = |one: &&Shared<WorkloadEndpoint>| {
            one.node == node && one.addresses.iter().any(|address| now.addresses.contains(address))
        };
        let Some(before) = before.iter().find(shares) else { continue };
        if destination(before, after, node).is_some() {
            departing.insert(name(before), Departure { before: before.clone(), to: moved.to.clone(), until });
        }
    }
    departing
}

/// The workloads of `after`, with those that are here still as if they were of this node: what else is said of them counts.
#[must_use]
pub fn with_departing(
    departing: &Departing,
    after: &[Shared<WorkloadEndpoint>],
    node: &str,
) -> Vec<Shared<WorkloadEndpoint>> {
    let mut all = after.to_vec();
    for Departure { before, .. } in departing.values() {
        if let Some(now) = destination(before, after, node)
            && let Some(place) = all.iter_mut().find(|one| one.is(now))
        {
            let WorkloadEndpoint { name, node, interface, mac, addresses, .. } = (**before).clone();
            *place = WorkloadEndpoint { name, node, interface, mac, addresses, ..(**now).clone() }.into();
        }
    }
    all
}

/// The workload on another node that has the addresses of one that was here, where this node has nothing of it any more.
#[must_use]
pub fn destination<'a>(
    before: &WorkloadEndpoint,
    after: &'a [Shared<WorkloadEndpoint>],
    node: &str,
) -> Option<&'a Shared<WorkloadEndpoint>> {
    let shares =
        |one: &&Shared<WorkloadEndpoint>| one.addresses.iter().any(|address| before.addresses.contains(address));
    let here = |one: &Shared<WorkloadEndpoint>| one.node == node && (shares(&one) || one.interface == before.interface);
    if after.iter().any(here) { None } else { after.iter().find(shares) }
}

fn name(workload: &WorkloadEndpoint) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    fn workload(name: &str, node: &str, interface: &str, address: &str) -> Shared<WorkloadEndpoint> {
        fixture::workload(name, node, interface, &[address])
    }

    #[test]
    fn who_goes_is_as_before_but_for_what_else_changed() {
        let stays = workload("x", "host1", "cali1", "10.0.0.9");
        let before = [stays.clone(), workload("b1", "host1", "cali2", "10.0.0.1")];
        let mut there = (*workload("b2", "host2", "cali7", "10.0.0.1")).clone();
        there.labels.insert("role".to_owned(), "db".to_owned());
        let after = [stays.clone(), there.into()];
        let until = Instant::now();
        let go = |after: &[Shared<WorkloadEndpoint>], node: &str| {
            departing(&fixture::moves(&before, after, node), &before, after, node, until)
        };
        let going = go(&after, "host1");
        assert_eq!(going.iter().map(|(name, one)| (&**name, &*one.to)).collect::<Vec<_>>(), [("a/b1", "host2")]);
        let [first, second] = &with_departing(&going, &after, "host1")[..] else { panic!("as many") };
        assert!(first.is(&stays));
        assert_eq!((&*second.name, &*second.node, &*second.interface), ("b1", "host1", "cali2"));
        assert_eq!(second.labels["role"], "db");
        assert!(go(&after, "host2").is_empty(), "it comes there");
        assert!(go(&before, "host1").is_empty());
        assert!(go(&[stays], "host1").is_empty(), "gone for good");
    }

    #[test]
    fn who_has_made_room_for_another_one_does_not_stay() {
        let before = [workload("b1", "host1", "cali2", "10.0.0.1")];
        let there = workload("b2", "host2", "cali7", "10.0.0.1");
        for (interface, address, stays) in
            [("cali2", "10.0.0.5", 0), ("cali3", "10.0.0.1", 0), ("cali3", "10.0.0.5", 1)]
        {
            let after = [there.clone(), workload("c", "host1", interface, address)];
            let going = departing(&fixture::moves(&before, &after, "host1"), &before, &after, "host1", Instant::now());
            assert_eq!(going.len(), stays, "{interface} {address}");
        }
    }
}
