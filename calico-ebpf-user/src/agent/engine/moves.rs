//! Workloads that come from other nodes, and that go there.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::{Accepted, Engine};
use crate::{
    dataplane::{LinkState, WorkloadStatus, alive::Awaited},
    resources::{Shared, model::WorkloadEndpoint},
    routes::{
        departure::{Departing, Departure, departing, destination},
        migration::{Migrations, Move, Pace, Priority, moves, priority},
    },
};

impl Engine {
    /// Who comes from other nodes once `accepted` is in force, and who moves then.
    pub(super) fn migrations_to(&self, accepted: &Accepted) -> (Migrations, Vec<Move>) {
        let mut migrations = self.migrations.clone();
        let moved = moves(&self.accepted.workloads, &accepted.workloads, &self.node, self.addresses());
        for Move { name, from, .. } in moved.iter().filter(|moved| moved.to == self.node) {
            migrations.come(name.clone(), from.clone());
        }
        let stays =
            |name: &str| accepted.compiled.workloads.contains_key(name) && !accepted.departing.contains_key(name);
        migrations.retain(stays);
        (migrations, moved)
    }

    pub(super) fn tell_moves(&self, moved: Vec<Move>) {
        for moved in moved {
            if moved.to == self.node {
                tracing::info!(
                    endpoint = moved.name,
                    from = moved.from,
                    "a workload comes from another node: it has no routes before it gives a sign of life here"
                );
            } else {
                tracing::info!(endpoint = moved.name, to = moved.to, "a workload goes to another node");
            }
        }
    }

    /// The workloads that are to give a sign of life.
    pub(in crate::agent) fn awaited(&self) -> Vec<Awaited> {
        let departing: BTreeSet<&str> = self.departing().map(|(name, _)| name).collect();
        if self.migrations.is_empty() && departing.is_empty() {
            return Vec::new();
        }
        self.dataplane.awaited(&self.desired, &departing).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot wait for signs of life");
            Vec::new()
        })
    }

    /// A workload that was waited for has given a sign of life.
    pub(in crate::agent) fn alive(&mut self, name: &str) {
        if let Err(error) = self.try_alive(name) {
            tracing::error!(endpoint = name, error = %format!("{error:#}"), "cannot give it its routes: tried again soon");
        }
    }

    fn try_alive(&mut self, name: &str) -> anyhow::Result<()> {
        let now = self.dataplane.now().context("cannot read the clock")?;
        if !self.migrations.alive(name, now) {
            return Ok(());
        }
        let desired = self.desired();
        if let Some(workload) = desired.workloads.iter().find(|workload| workload.name == name) {
            self.dataplane.welcome(workload, &desired.routes)?;
        }
        tracing::info!(endpoint = name, "a sign of life: its routes have the elevated priority now");
        self.resync();
        Ok(())
    }

    /// Who is still here once the files say this, although they have it on another node.
    pub(super) fn departing_to(&self, after: &[Shared<WorkloadEndpoint>]) -> Departing {
        let before = &self.accepted;
        let is_here = |name: &str| {
            let up = |one: &WorkloadStatus| one.endpoint == name && one.state == LinkState::Up;
            self.applied.workloads.iter().any(up)
                && priority(self.migrations.get(name)) != Priority::Withheld
                && !self.yielded.has(name)
                && !self.left.contains(name)
        };
        let until = Instant::now() + self.pace().convergence;
        let moves = moves(&before.workloads, after, &self.node, self.addresses());
        let mut departing = departing(&moves, &before.workloads, after, &self.node, until);
        departing.retain(|name, _| is_here(name));
        for (name, departure) in self.still_here() {
            if let Some(to) = destination(&departure.before, after, &self.node) {
                departing.insert(name.clone(), Departure { to: to.node.clone(), ..departure.clone() });
            }
        }
        departing
    }

    /// Workloads that the files have on other nodes, and that are here still, with those nodes.
    pub(in crate::agent) fn departing(&self) -> impl Iterator<Item = (&str, &str)> {
        self.still_here().map(|(name, departure)| (&**name, &*departure.to))
    }

    pub(super) fn still_here(&self) -> impl Iterator<Item = (&String, &Departure)> {
        self.accepted.departing.iter().filter(|(name, _)| !self.left.contains(*name))
    }

    /// A workload that was to leave has not answered for some time.
    pub(in crate::agent) fn silent(&mut self, name: &str) {
        if self.part(name, "it is silent here") {
            self.parted = true;
            self.resync();
        }
    }

    /// Whose interface is gone or down has left.
    pub(super) fn part_from_the_absent(&mut self) -> bool {
        let up =
            |name: &str| self.applied.workloads.iter().any(|one| one.endpoint == name && one.state == LinkState::Up);
        let absent: Vec<_> = self.still_here().filter(|(name, _)| !up(name)).map(|(name, _)| name.clone()).collect();
        self.part_all(&absent, "its interface is gone or down")
    }

    /// Whether it is news of any of them that it has left.
    pub(super) fn part_all(&mut self, names: &[String], why: &str) -> bool {
        names.iter().filter(|name| self.part(name, why)).count() > 0
    }

    /// A workload that was to leave has left; false where that is known.
    fn part(&mut self, name: &str, why: &str) -> bool {
        let Some(Departure { to, .. }) = self.accepted.departing.get(name) else { return false };
        let is_news = self.left.insert(name.to_owned());
        if is_news {
            tracing::info!(endpoint = name, to, "it has left: {why}");
        }
        is_news
    }

    /// Ends migrations whose time is over.
    pub(in crate::agent) fn settle(&mut self) {
        let now = Instant::now();
        let late = self.still_here().filter(|(_, departure)| departure.until <= now);
        let late: Vec<_> = late.map(|(name, _)| name.clone()).collect();
        self.parted |= self.part_all(&late, "its time is over");
        if self.dataplane.now().is_ok_and(|now| self.migrations.settle(now, self.pace())) || self.parted {
            self.resync();
        }
    }

    /// Until [`Engine::settle`] has something to do.
    pub(in crate::agent) fn settles_in(&self) -> Option<Duration> {
        let leaves =
            self.still_here().map(|(_, departure)| departure.until.saturating_duration_since(Instant::now())).min();
        if self.migrations.is_empty() {
            return leaves;
        }
        let settles = self.dataplane.now().ok().and_then(|now| self.migrations.next(now, self.pace()));
        settles.into_iter().chain(leaves).min()
    }

    pub(super) fn pace(&self) -> Pace {
        let pace = Pace::new(self.dataplane.hz());
        let configured = self.accepted.felix.live_migration_route_convergence_time;
        configured.map_or(pace, |seconds| Pace { convergence: Duration::from_secs(seconds.into()), ..pace })
    }
}
