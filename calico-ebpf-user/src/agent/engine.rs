//! One path for start, reload, rollback, link event and resync: files -> compiled policy -> plan -> kernel.

mod claims;
mod moves;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::Context as _;
use calico_ebpf_common::abi::LOAD_BYTES;

use super::{desired::desired, sources::Sources};
use crate::{
    dataplane::{Applied, Arrangement, Dataplane, Desired, NatOutgoing, Uplinks},
    observe::{
        clock,
        status::{LastLoad, Problem},
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
        claim::{Rivals, Yielded},
        departure::Departing,
        migration::{Migrations, Priority, priority},
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

    /// All but policy, as it is to be now.
    fn desired(&self) -> Desired {
        desired(&self.accepted, &self.store, &self.node, &self.uplinks, &self.migrations)
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
