//! One path for start, reload, rollback, link event and resync: files -> compiled policy -> plan -> kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use calico_ebpf_common::abi::LOAD_BYTES;

use super::{
    desired::{self, desired},
    sources::Sources,
};
use crate::{
    dataplane::{
        Applied, Arrangement, Dataplane, Desired, LinkState, NatOutgoing, Uplinks, WorkloadStatus, alive::Awaited,
        contest,
    },
    observe::{
        clock,
        status::{LastLoad, Problem, mac_text},
    },
    policy::{
        compiled::Compiled,
        staged::Staged,
        store::Store,
        write::{Changes, Plan},
    },
    resources::{
        Shared,
        model::{FelixConfiguration, WorkloadEndpoint},
    },
    routes::{
        claim::{Change, Claim, Rival, Rivals, Yielded},
        departure::{Departing, Departure, departing, destination},
        migration::{Migrations, Move, Pace, Priority, moves, priority},
    },
};

/// Errors of a refused load that are logged; `status` and `validate` have them all.
pub(super) const LOGGED_ERRORS: usize = 20;

/// A configuration that was accepted.
#[derive(Clone, Debug)]
pub(super) struct Accepted {
    /// Identity of the files' contents.
    pub(super) content: u64,
    /// The policy.
    pub(super) compiled: Compiled,
    /// The parameters of this node.
    pub(super) felix: FelixConfiguration,
    /// Who is translated on the way out of all pools.
    pub(super) nat_outgoing: Option<NatOutgoing>,
    /// Addresses of local workloads that questions of the link are answered for.
    pub(super) answered: Vec<IpAddr>,
    /// The workloads of all nodes.
    pub(super) workloads: Shared<Vec<Shared<WorkloadEndpoint>>>,
    /// What is odd about it on this node.
    pub(super) warning: Option<Problem>,
    /// Of those, who was here and is treated as if it were still.
    pub(super) departing: Departing,
    /// Addresses of nodes, by name.
    pub(super) nodes: BTreeMap<String, Vec<IpAddr>>,
    /// Staged policies, where they would change something.
    pub(super) staged: Option<Arc<Staged>>,
}

/// What a load led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It is in force.
    InForce,
    /// It was in force already.
    Unchanged,
    /// It was refused, and what was in force still is: [`Engine::last_load`] says why.
    Refused,
}

/// What comes back where nobody confirms what is in force.
#[derive(Clone, Debug)]
pub(super) enum Before {
    /// What was read before.
    Accepted(Arc<Accepted>),
    /// What an earlier process put in force: the maps have it still. With what interfaces and routes were then.
    Generation(u32, Arc<Arrangement>),
}

/// Whether the maps hold more than what was accepted.
#[derive(Debug)]
enum Held {
    Nothing,
    /// The generation before, of this number, until the start is confirmed.
    Before(u32, Arc<Arrangement>, Box<Plan>),
    /// That is in force again, whatever was accepted, with this arrangement.
    TakenBack(Arc<Arrangement>),
}

/// Desired and actual state of one node.
pub(super) struct Engine {
    sources: Sources,
    node: String,
    uplinks: Uplinks,
    dataplane: Dataplane,
    store: Store,
    accepted: Arc<Accepted>,
    /// The host's addresses that the maps know.
    host_addresses: BTreeSet<IpAddr>,
    /// Workloads that come from other nodes.
    migrations: Migrations,
    /// Workloads that are left to other hosts.
    yielded: Yielded,
    /// Hosts that want workloads of ours.
    rivals: Rivals,
    /// Those of `accepted.departing` that have left.
    left: BTreeSet<String>,
    /// One more of them has left since the last apply.
    parted: bool,
    /// Better routes of other programs to addresses of our workloads.
    overruled: Vec<String>,
    /// The last apply did not get through: the next one has to do it again.
    unfinished: bool,
    held: Held,
    /// What is in force and whose predecessor is in the maps still, although nobody wants it any more.
    retiring: Option<Plan>,
    applied: Applied,
    /// What led to `applied`.
    desired: Desired,
    last_load: LastLoad,
    failed_loads: u64,
    loads: u64,
}

/// Where the engine begins: files that are good, and a data path that is open.
pub(super) struct Start {
    /// The files.
    pub(super) sources: Sources,
    /// What they say.
    pub(super) accepted: Accepted,
    /// What is odd about them.
    pub(super) warnings: Vec<Problem>,
    /// Whose workloads are local.
    pub(super) node: String,
    /// The ways to other hosts.
    pub(super) uplinks: Uplinks,
    /// The kernel.
    pub(super) dataplane: Dataplane,
    /// Whether it may be taken back: see [`Engine::before_the_start`].
    pub(super) unconfirmed: bool,
}

impl Engine {
    /// Makes the first full apply.
    ///
    /// # Errors
    /// The policy is not in force; whatever was in force before still is.
    pub(super) fn start(start: Start) -> anyhow::Result<Self> {
        let Start { sources, accepted, warnings, node, uplinks, dataplane, unconfirmed: start_unconfirmed } = start;
        let store = dataplane.store().context("cannot read what the maps hold")?;
        let migrations = dataplane.migrations().context("cannot read what the maps hold")?;
        let mut engine = Self {
            sources,
            node,
            uplinks,
            dataplane,
            store,
            accepted: Arc::new(accepted),
            host_addresses: BTreeSet::new(),
            migrations,
            yielded: Yielded::default(),
            rivals: Rivals::default(),
            left: BTreeSet::new(),
            parted: false,
            overruled: Vec::new(),
            unfinished: true,
            held: Held::Nothing,
            retiring: None,
            applied: Applied::default(),
            desired: Desired::default(),
            last_load: LastLoad::default(),
            failed_loads: 0,
            loads: 0,
        };
        // What an earlier process left may be long ago.
        let now = engine.dataplane.now().context("cannot read the clock")?;
        engine.migrations.settle(now, engine.pace());
        engine.heed_claims();
        if engine.store.generation() != 0 && start_unconfirmed {
            engine.put_in_force_unretired()?;
        } else {
            engine.put_in_force(Arc::clone(&engine.accepted))?;
        }
        engine.loaded(Vec::new(), warnings);
        Ok(engine)
    }

    /// What comes back if nobody confirms the start: what an earlier process put in force, or where there was nothing, the
    /// same with open host endpoints.
    #[must_use]
    pub(super) fn before_the_start(&self) -> Before {
        if let Held::Before(generation, arrangement, _) = &self.held {
            return Before::Generation(*generation, Arc::clone(arrangement));
        }
        let mut before = Accepted { staged: None, ..(*self.accepted).clone() };
        before.compiled = before.compiled.with_open_host_endpoints();
        // Not what the files say.
        before.content = !before.content;
        Before::Accepted(Arc::new(before))
    }

    /// What is in force may stay.
    pub(super) fn confirmed(&mut self) {
        if let Held::Before(_, _, plan) = std::mem::replace(&mut self.held, Held::Nothing)
            && let Err(error) = self.dataplane.retire(&plan)
        {
            self.unfinished = true;
            tracing::error!(%error, "cannot clear away what was in force before");
        }
    }

    /// Like the first [`Engine::put_in_force`], but what was in force before stays in the maps.
    fn put_in_force_unretired(&mut self) -> anyhow::Result<()> {
        let observed = self.dataplane.observe().context("cannot look at the host's links and addresses")?;
        let plan = self.store.plan(&self.accepted.compiled, &observed.host_addresses)?;
        let (migrations, _) = self.migrations_to(&self.accepted);
        let desired = desired(&self.accepted, &plan.next, &self.node, &self.uplinks, &migrations);
        let arrangement = self.dataplane.arrangement().context("cannot read what the maps hold")?;
        self.dataplane.hold();
        let applied = self.dataplane.apply_unretired(Some(&plan), &desired)?;
        self.migrations = migrations;
        let before = self.store.generation();
        self.store = plan.next.clone();
        self.host_addresses = observed.host_addresses;
        self.unfinished = false;
        self.report(desired, applied);
        self.held = Held::Before(before, Arc::new(arrangement), Box::new(plan));
        Ok(())
    }

    /// Reads the files, and puts in force what they say if it is good and `refuse` has nothing against it.
    pub(super) fn load(&mut self, refuse: impl FnOnce(u64) -> Option<Problem>) -> Outcome {
        let begin = Instant::now();
        let mut read = self.sources.read();
        let was_read = begin.elapsed();
        if self.dataplane.rejected().is_some_and(|rejected| rejected != read.content) {
            self.note_rejected(None);
        }
        let mut errors = read.errors;
        errors.extend(refuse(read.content));
        if matches!(self.held, Held::Before(..)) && read.content != self.accepted.content {
            errors.push(Problem::general(
                "the start has not been confirmed yet (`confirm`): nothing else is loaded before",
            ));
        }
        let Some(set) = read.set.filter(|_| errors.is_empty()) else {
            return self.refused(errors, read.warnings);
        };
        if read.content == self.accepted.content && !self.unfinished {
            // The files are back to what is in force, after a bad state perhaps.
            if !self.last_load.ok {
                tracing::info!("the files are again as they are in force");
                read.warnings.extend(self.accepted.warning.clone());
                self.loaded(Vec::new(), read.warnings);
            }
            return Outcome::Unchanged;
        }
        let departing = self.departing_to(&set.workloads);
        let accepted = self.sources.accept(read.content, set, departing);
        read.warnings.extend(accepted.warning.clone());
        tracing::debug!(read = ?was_read, compile = ?begin.elapsed() - was_read, "the files are good");
        match self.put_policy_in_force(Arc::new(accepted)) {
            Ok(changes) => {
                self.loaded(Vec::new(), read.warnings);
                announce(self.store.generation(), &changes);
                Outcome::InForce
            }
            Err(error) => self.refused(vec![Problem::general(format!("{error:#}"))], read.warnings),
        }
    }

    /// Puts something in force that was so before.
    ///
    /// # Errors
    /// It is not in force.
    pub(super) fn take_back(&mut self, before: Before, why: &str) -> anyhow::Result<()> {
        match before {
            Before::Accepted(before) => {
                let changes = self.put_in_force(before)?;
                announce(self.store.generation(), &changes);
            }
            Before::Generation(generation, arrangement) => {
                self.retire()?;
                self.dataplane.take_back(generation)?;
                self.held = Held::TakenBack(Arc::clone(&arrangement));
                self.unfinished = true;
                self.rearrange(&arrangement);
                // What has come meanwhile is to stay, too.
                let now = self.dataplane.arrangement().context("cannot read what the maps hold")?;
                self.held = Held::TakenBack(Arc::new(Arrangement::clone(&arrangement).with(now)));
                self.store = self.dataplane.store()?.behind_a_spent_generation();
                tracing::info!(generation, "policy in force");
            }
        }
        self.failed_loads += 1;
        self.loaded(vec![Problem::general(why)], Vec::new());
        Ok(())
    }

    /// Whether what an earlier process put in force is so again, whatever was accepted.
    #[must_use]
    pub(super) fn is_taken_back(&self) -> bool {
        matches!(self.held, Held::TakenBack(_))
    }

    /// Brings links, filters and routes to what they were under what is in force again.
    fn rearrange(&mut self, arrangement: &Arrangement) {
        let faults = self.dataplane.rearrange(arrangement);
        for fault in faults.iter().filter(|fault| !self.applied.faults.contains(fault)) {
            tracing::error!("{fault}: tried again until files are accepted");
        }
        self.applied.faults = faults;
    }

    /// Leaves word to the processes to come of files that nobody confirmed.
    pub(super) fn note_rejected(&mut self, content: Option<u64>) {
        if let Err(error) = self.dataplane.note_rejected(content) {
            tracing::warn!("the next start will not know which files were taken back: {error}");
        }
    }

    /// Looks at links, addresses, routes and filters, and puts right what is not.
    pub(super) fn resync(&mut self) {
        if let Err(error) = self.try_resync() {
            self.unfinished = true;
            tracing::error!(
                error = %format!("{error:#}"),
                "cannot bring links, routes and addresses up to date: the policy in force stays so; tried again soon"
            );
        }
    }

    fn try_resync(&mut self) -> anyhow::Result<()> {
        if let Held::TakenBack(arrangement) = &self.held {
            // What that wants besides nobody knows any more.
            let arrangement = Arc::clone(arrangement);
            self.rearrange(&arrangement);
            return Ok(());
        }
        let observed = self.dataplane.observe().context("cannot look at the host's links and addresses")?;
        let claims = self.heed_claims() | std::mem::take(&mut self.parted);
        let may_plan = matches!(self.held, Held::Nothing);
        if may_plan && (claims || self.unfinished || observed.host_addresses != self.host_addresses) {
            self.put_in_force(Arc::clone(&self.accepted)).map(drop)
        } else {
            let desired = self.desired();
            let applied = self.dataplane.apply(None, &desired)?;
            self.report(desired, applied);
            if self.part_from_the_absent() { self.put_in_force(Arc::clone(&self.accepted)).map(drop) } else { Ok(()) }
        }
    }

    fn put_in_force(&mut self, accepted: Arc<Accepted>) -> anyhow::Result<Changes> {
        let observed = self.dataplane.observe().context("cannot look at the host's links and addresses")?;
        self.execute(accepted, observed.host_addresses, false)
    }

    /// The same without a look at the host, about whose changes notifications tell, where it needs none.
    fn put_policy_in_force(&mut self, accepted: Arc<Accepted>) -> anyhow::Result<Changes> {
        if self.unfinished {
            return self.put_in_force(accepted);
        }
        self.execute(accepted, self.host_addresses.clone(), true)
    }

    /// `may_spare`: links, routes and filters need no look where what they shall be does not change.
    fn execute(
        &mut self,
        accepted: Arc<Accepted>,
        host_addresses: BTreeSet<IpAddr>,
        may_spare: bool,
    ) -> anyhow::Result<Changes> {
        self.retire()?;
        let begin = Instant::now();
        let plan = self.plan(&accepted, &host_addresses)?;
        tracing::debug!(plan = ?begin.elapsed(), writes = plan.prepare.len(), "what to do is known");
        let (migrations, moved) = self.migrations_to(&accepted);
        let desired = desired(&accepted, &plan.next, &self.node, &self.uplinks, &migrations);
        let only_policy = may_spare && !self.is_unfinished() && desired == self.desired;
        // Who waits for a sign of life does not wait for a grace period, too.
        let waits = desired.workloads.iter().any(|one| priority(one.migration.as_ref()) == Priority::Withheld);
        let done = if only_policy {
            self.dataplane.apply_policy(&plan).map(|()| None)
        } else if waits {
            self.dataplane.apply_unretired(Some(&plan), &desired).map(Some)
        } else {
            self.dataplane.apply(Some(&plan), &desired).map(Some)
        };
        match done {
            Ok(applied) => {
                self.store = plan.next.clone();
                let changes = plan.changes.clone();
                self.retiring = (waits && !only_policy && !plan.is_empty()).then_some(plan);
                self.tell_moves(moved);
                self.accepted = accepted;
                self.migrations = migrations;
                self.left.retain(|name| self.accepted.departing.contains_key(name));
                self.parted = false;
                self.host_addresses = host_addresses;
                self.unfinished = false;
                self.held = Held::Nothing;
                if let Some(applied) = applied {
                    self.report(desired, applied);
                }
                Ok(changes)
            }
            Err(error) => {
                self.unfinished = true;
                // How far it came is for the maps to say.
                self.store = self.dataplane.store().context("cannot read what the maps hold")?;
                Err(error.into())
            }
        }
    }

    /// The generation whose predecessor is in the maps still, and can go after a grace period: see [`Engine::retired`].
    pub(super) fn retiring(&self) -> Option<u32> {
        self.retiring.as_ref().map(|plan| plan.generation)
    }

    /// A grace period has gone by since that generation was put in force.
    pub(super) fn retired(&mut self, generation: u32) {
        if let Some(plan) = self.retiring.take_if(|plan| plan.generation == generation)
            && let Err(error) = self.dataplane.retire_now(&plan)
        {
            self.unfinished = true;
            tracing::error!(%error, "cannot clear away what was in force before");
        }
    }

    /// Clears away what was in force before, where that is still to be done.
    fn retire(&mut self) -> anyhow::Result<()> {
        let Some(plan) = self.retiring.take() else { return Ok(()) };
        self.dataplane.retire(&plan).context("cannot clear away what was in force before")
    }

    /// What to do for a set to be in force, but for workloads that are left to others.
    fn plan(&self, accepted: &Accepted, host_addresses: &BTreeSet<IpAddr>) -> anyhow::Result<Plan> {
        let has_left = |name: &String| self.left.contains(name) && accepted.departing.contains_key(name);
        if self.yielded.is_empty() && self.left.is_empty() {
            return Ok(self.store.plan(&accepted.compiled, host_addresses)?);
        }
        let mut compiled = accepted.compiled.clone();
        compiled.workloads.retain(|name, _| !self.yielded.has(name) && !has_left(name));
        Ok(self.store.plan(&compiled, host_addresses)?)
    }

    /// Looks at what other hosts say about our workloads' addresses; whether that changes which of them are ours.
    fn heed_claims(&mut self) -> bool {
        let Self { dataplane, accepted, migrations, .. } = self;
        // Who is moving here goes before the others, or has not come.
        let settled =
            accepted.compiled.workloads.iter().filter(|(name, _)| priority(migrations.get(name)) == Priority::Normal);
        let settled = settled.map(|(name, local)| (name, &*local.addresses));
        let (mut claims, overruled) = match dataplane.claims(settled, desired::routes(&accepted.felix).protocol) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("what other hosts say is not known: {error}");
                return false;
            }
        };
        for line in overruled.iter().filter(|line| !self.overruled.contains(line)) {
            tracing::warn!("{line}");
        }
        self.overruled = overruled;
        let workloads = &self.accepted.compiled.workloads;
        self.yielded.retain(|name| workloads.contains_key(name));
        let arrived: Vec<_> =
            claims.keys().filter(|name| self.accepted.departing.contains_key(*name)).cloned().collect();
        let parted = self.part_all(&arrived, "the other node tells a route to it");
        claims.retain(|name, _| !self.accepted.departing.contains_key(name));
        self.hold_against_the_former(&mut claims);
        let changes = self.yielded.update(&claims, &self.node, Instant::now());
        for change in &changes {
            match change {
                Change::Yield(endpoint, Claim { address, via }) => tracing::warn!(
                    endpoint, %address, via = via.map(|via| via.to_string()),
                    "another host has this workload, too, and the better route: it is left to that one"
                ),
                Change::TakeBack(endpoint) => {
                    tracing::info!(endpoint, "no other host has this workload any more: it is ours again");
                }
            }
        }
        parted || !changes.is_empty()
    }

    /// A workload came and was alive here, and the node that it came from still tells a route to it: it has not read the files,
    /// or nothing runs there that could. That is no reason to step back.
    fn hold_against_the_former(&mut self, claims: &mut BTreeMap<String, Claim>) {
        let Ok(now) = self.dataplane.now() else { return };
        claims.retain(|name, claim| {
            let origin = self.migrations.origin(name).filter(|_| !self.yielded.has(name));
            let of_origin = origin.and_then(|node| self.accepted.nodes.get(node));
            if !claim.via.is_some_and(|via| of_origin.is_some_and(|addresses| addresses.contains(&via))) {
                return true;
            }
            tracing::warn!(
                endpoint = name, from = origin, address = %claim.address,
                "the node that it came from still tells a route to it: its routes keep the elevated priority"
            );
            self.migrations.hold(name, now);
            false
        });
    }

    /// Who is still here once the files say this, although they have it on another node.
    fn departing_to(&self, after: &[Shared<WorkloadEndpoint>]) -> Departing {
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

    /// A workload that was to leave has left; false where that is known.
    fn part(&mut self, name: &str, why: &str) -> bool {
        let Some(Departure { to, .. }) = self.accepted.departing.get(name) else { return false };
        let is_news = self.left.insert(name.to_owned());
        if is_news {
            tracing::info!(endpoint = name, to, "it has left: {why}");
        }
        is_news
    }

    /// Whose interface is gone or down has left.
    fn part_from_the_absent(&mut self) -> bool {
        let up =
            |name: &str| self.applied.workloads.iter().any(|one| one.endpoint == name && one.state == LinkState::Up);
        let absent: Vec<_> = self.still_here().filter(|(name, _)| !up(name)).map(|(name, _)| name.clone()).collect();
        self.part_all(&absent, "its interface is gone or down")
    }

    /// Whether it is news of any of them that it has left.
    fn part_all(&mut self, names: &[String], why: &str) -> bool {
        names.iter().filter(|name| self.part(name, why)).count() > 0
    }

    /// A workload that was to leave has not answered for some time.
    pub(super) fn silent(&mut self, name: &str) {
        if self.part(name, "it is silent here") {
            self.parted = true;
            self.resync();
        }
    }

    /// Workloads that the files have on other nodes, and that are here still, with those nodes.
    pub(super) fn departing(&self) -> impl Iterator<Item = (&str, &str)> {
        self.still_here().map(|(name, departure)| (&**name, &*departure.to))
    }

    fn still_here(&self) -> impl Iterator<Item = (&String, &Departure)> {
        self.accepted.departing.iter().filter(|(name, _)| !self.left.contains(*name))
    }

    /// Workloads that are left to other hosts.
    pub(super) fn yielded(&self) -> &Yielded {
        &self.yielded
    }

    /// Hosts that want workloads of ours.
    pub(super) fn rivals(&self) -> &Rivals {
        &self.rivals
    }

    /// Addresses of workloads that are left to other hosts, but that this one wants.
    pub(super) fn wanted(&self) -> Vec<Ipv4Addr> {
        let workloads = self.yielded.iter().filter_map(|(name, _)| self.accepted.compiled.workloads.get(name));
        let v4 = |address: &IpAddr| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        };
        workloads.flat_map(|workload| workload.addresses.iter().filter_map(v4)).collect()
    }

    /// Somebody on the link wants an address.
    pub(super) fn contested(&mut self, by: &contest::Rival) {
        let address = IpAddr::V4(by.address);
        // One that is moving is wanted by the host that had it, for a moment.
        let ours = self.accepted.compiled.workloads.iter().find(|(_, workload)| workload.addresses.contains(&address));
        let Some((name, _)) = ours.filter(|(name, _)| !self.yielded.has(name) && !self.left.contains(*name)) else {
            return;
        };
        let host = contest::host_of(by.mac);
        let rival = Rival { address, mac: by.mac, host, seen: SystemTime::now() };
        if self.rivals.note(name, rival, Instant::now()) {
            tracing::warn!(
                endpoint = name, %address, host = host.map(|host| host.to_string()), mac = mac_text(by.mac),
                "another host has this workload, too, and has stepped back: it is ours"
            );
        }
    }

    /// Forgets hosts that want nothing of ours any more.
    pub(super) fn forget_rivals(&mut self) {
        for endpoint in self.rivals.forget(Instant::now()) {
            tracing::info!(endpoint, "no other host wants this workload any more");
        }
    }

    /// Better routes of other programs to addresses of our workloads.
    pub(super) fn overruled(&self) -> &[String] {
        &self.overruled
    }

    /// All but policy, as it is to be now.
    fn desired(&self) -> Desired {
        desired(&self.accepted, &self.store, &self.node, &self.uplinks, &self.migrations)
    }

    /// Who comes from other nodes once `accepted` is in force, and who moves then.
    fn migrations_to(&self, accepted: &Accepted) -> (Migrations, Vec<Move>) {
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

    fn tell_moves(&self, moved: Vec<Move>) {
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
    pub(super) fn awaited(&self) -> Vec<Awaited> {
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
    pub(super) fn alive(&mut self, name: &str) {
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

    /// Ends migrations whose time is over.
    pub(super) fn settle(&mut self) {
        let now = Instant::now();
        let late = self.still_here().filter(|(_, departure)| departure.until <= now);
        let late: Vec<_> = late.map(|(name, _)| name.clone()).collect();
        self.parted |= self.part_all(&late, "its time is over");
        if self.dataplane.now().is_ok_and(|now| self.migrations.settle(now, self.pace())) || self.parted {
            self.resync();
        }
    }

    /// Until [`Engine::settle`] has something to do.
    pub(super) fn settles_in(&self) -> Option<Duration> {
        let leaves =
            self.still_here().map(|(_, departure)| departure.until.saturating_duration_since(Instant::now())).min();
        if self.migrations.is_empty() {
            return leaves;
        }
        let settles = self.dataplane.now().ok().and_then(|now| self.migrations.next(now, self.pace()));
        settles.into_iter().chain(leaves).min()
    }

    fn pace(&self) -> Pace {
        let pace = Pace::new(self.dataplane.hz());
        let configured = self.accepted.felix.live_migration_route_convergence_time;
        configured.map_or(pace, |seconds| Pace { convergence: Duration::from_secs(seconds.into()), ..pace })
    }

    fn report(&mut self, desired: Desired, applied: Applied) {
        let applied =
            if applied.partial { Applied { faults: applied.faults, ..self.applied.clone() } } else { applied };
        for fault in applied.faults.iter().filter(|fault| !self.applied.faults.contains(fault)) {
            tracing::warn!("{fault}");
        }
        for fault in self.applied.faults.iter().filter(|fault| !applied.faults.contains(fault)) {
            tracing::info!("no longer: {fault}");
        }
        for now in &applied.workloads {
            let before = self.applied.workloads.iter().find(|before| before.endpoint == now.endpoint);
            if before.is_none_or(|before| before.state != now.state) {
                tracing::info!(endpoint = now.endpoint, interface = now.interface, state = %now.state, "workload");
            }
        }
        for now in applied.xdp.iter().filter(|now| !self.applied.xdp.contains(now)) {
            if now.hindered {
                tracing::warn!(interface = now.interface, "XDP {now}");
            } else {
                tracing::info!(interface = now.interface, "XDP {now}");
            }
        }
        self.applied = applied;
        self.desired = desired;
    }

    fn refused(&mut self, errors: Vec<Problem>, warnings: Vec<Problem>) -> Outcome {
        if self.last_load.ok || self.last_load.errors != errors {
            for error in errors.iter().take(LOGGED_ERRORS) {
                tracing::error!("{error}");
            }
            let (all, logged) = (errors.len(), errors.len().min(LOGGED_ERRORS));
            tracing::error!(
                "the files were refused, what was in force stays in force: {all} errors, {logged} of them above"
            );
        }
        self.failed_loads += 1;
        self.loaded(errors, warnings);
        Outcome::Refused
    }

    fn loaded(&mut self, errors: Vec<Problem>, warnings: Vec<Problem>) {
        for warning in warnings.iter().filter(|warning| !self.last_load.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.loads += 1;
        let time = clock::rfc3339(SystemTime::now());
        self.last_load = LastLoad { ok: errors.is_empty(), time, errors, warnings };
        if let Err(error) = self.dataplane.note_load(&self.last_load.text(LOAD_BYTES)) {
            tracing::warn!("`status` will not tell of this load when the process has ended: {error}");
        }
    }

    /// Whether something has to be tried again soon.
    #[must_use]
    pub(super) fn is_unfinished(&self) -> bool {
        self.unfinished || !self.applied.faults.is_empty()
    }

    /// What is in force.
    #[must_use]
    pub(super) fn accepted(&self) -> Arc<Accepted> {
        Arc::clone(&self.accepted)
    }

    /// The host's addresses that the maps know.
    pub(super) fn host_addresses(&self) -> &BTreeSet<IpAddr> {
        &self.host_addresses
    }

    /// The staged policies among what is in force, if they would change anything.
    #[must_use]
    pub(super) fn staged(&self) -> Option<Arc<Staged>> {
        self.accepted.staged.clone()
    }

    /// The addresses of this node's workloads.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.accepted.compiled.workloads.values().flat_map(|workload| workload.addresses.iter().copied())
    }

    /// What the last apply led to.
    #[must_use]
    pub(super) fn applied(&self) -> &Applied {
        &self.applied
    }

    /// The last attempt to load the files.
    #[must_use]
    pub(super) fn last_load(&self) -> &LastLoad {
        &self.last_load
    }

    /// Attempts to load, and how many of them were refused. One that is repeated counts once.
    #[must_use]
    pub(super) fn loads(&self) -> (u64, u64) {
        (self.loads, self.failed_loads)
    }

    /// The kernel.
    #[must_use]
    pub(super) fn dataplane(&mut self) -> &mut Dataplane {
        &mut self.dataplane
    }
}

fn announce(generation: u32, changes: &Changes) {
    let Changes { added, removed, egress, ingress, addresses, tables, blocks } = changes;
    let judged_again: BTreeSet<_> = egress.iter().chain(ingress).collect();
    tracing::info!(
        generation,
        added = added.len(),
        removed = removed.len(),
        judged_again = judged_again.len(),
        addresses,
        tables,
        blocks,
        "policy in force"
    );
}
