//! The loop.

use std::{
    future::pending,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use sd_notify::NotifyState;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until},
};

use super::{
    Options,
    confirmation::Confirmation,
    control::{Call, Reply, Request, done, refusal},
    engine::{Accepted, Before, Engine, Outcome},
    signals::{Asked, Signals},
    site::Shared,
    watch::FileWatch,
};
use crate::{
    dataplane::{
        Attachments, Dataplane, Instance,
        alive::{Sign, Signs},
        contest::Contest,
        watch::Watcher,
    },
    observe::{
        clock,
        metrics::Numbers,
        status::{ContestedState, Problem, Status, YieldedState},
    },
    policy::staged::Staged,
};

/// Everything is looked at again after about so long, whatever events say.
const RESYNC: Duration = Duration::from_secs(90);
/// Filters that vanish without a notification are missed for no longer; the hand over the connections turns as often.
const CHECK: Duration = Duration::from_secs(1);
/// What failed is tried again after so long.
const RETRY: Duration = Duration::from_secs(5);
/// Events about links within so long are looked at together: what makes or removes an interface causes several.
const GATHER: Duration = Duration::from_millis(2);
/// What a file event brought may be doubted for so long: see [`Live::replaced`].
const DOUBT: Duration = Duration::from_secs(60);
/// A roll-back that fails is tried again after so long.
const ROLL_BACK_RETRY: Duration = Duration::from_secs(1);
/// A look takes at most this part of the time, one in so many, however often routes or links change.
const SHARE: u32 = 4;

const ROLLED_BACK: &str =
    "taken back, because nobody confirmed it in time (`confirm`): it stays refused until the files change";

const NOTHING_WAITS: &str = "it is what was so before the unconfirmed set: nothing waits for a confirmation any more";

const OF_ANOTHER_PROCESS: &str = "what an earlier process put in force is so again, which cannot come back once more: `reload` without \
                                  --confirm, or start anew with `run --confirm`";

const NOTHING_TO_TAKE_BACK: &str = "in force already, and nothing else was within the last minute: there is nothing that could be taken back, \
                                    and nothing to confirm";

/// The running agent.
pub(super) struct Live {
    instance: Instance,
    config: Vec<PathBuf>,
    node: String,
    watching: bool,
    engine: Engine,
    confirmation: Confirmation<Before>,
    /// What waits for that is of a reload, not of the start.
    reloaded: bool,
    /// The set before those that the watch has put in force within [`DOUBT`], and when the first of them came: `reload --confirm` may
    /// come a moment later than the watch.
    replaced: Option<(Arc<Accepted>, Instant)>,
    files: Option<FileWatch>,
    links: Watcher,
    calls: mpsc::Receiver<Call>,
    shared: Arc<Shared>,
    started: SystemTime,
    /// Signs of life of workloads that come from other nodes, and of those that go.
    signs: Signs,
    /// What hosts that want the same workloads say on the uplinks.
    contest: Contest,
    /// The uplinks that it listens on.
    contested: Vec<u32>,
    /// The grace period behind this generation.
    grace: Option<(u32, JoinHandle<()>)>,
    /// The look at what hangs on interfaces that goes on.
    vigil: Option<JoinHandle<(Attachments, bool)>>,
    /// A workload that came is here for good then.
    settle: Option<Instant>,
    next_resync: Instant,
    retry: Option<Instant>,
    /// Something changed about links: when to look.
    look: Option<Instant>,
    /// No look before this.
    rest: Instant,
}

impl Live {
    /// After the first apply.
    pub(super) fn new(
        options: &Options,
        engine: Engine,
        files: Option<FileWatch>,
        links: Watcher,
        calls: mpsc::Receiver<Call>,
        shared: Arc<Shared>,
    ) -> Self {
        let mut confirmation = Confirmation::default();
        if let Some(seconds) = options.confirm {
            let within = Duration::from_secs(seconds.into());
            confirmation.start(engine.before_the_start(), Instant::now() + within);
            tracing::info!(within = clock::short(within), "waiting for a confirmation");
        }
        Self {
            instance: options.dataplane.instance.clone(),
            config: options.config.clone(),
            node: options.node.clone(),
            watching: options.watch,
            engine,
            confirmation,
            reloaded: false,
            replaced: None,
            files,
            links,
            calls,
            shared,
            started: SystemTime::now(),
            signs: Signs::default(),
            contest: Contest::default(),
            contested: Vec::new(),
            grace: None,
            vigil: None,
            settle: None,
            next_resync: Instant::now() + jittered(RESYNC),
            retry: None,
            look: None,
            rest: Instant::now(),
        }
    }

    /// Until SIGTERM or Ctrl-C. The data path stays as it is.
    pub(super) async fn run(mut self, mut signals: Signals) {
        let mut check = interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tracing::info!(
            node = self.node,
            pin_dir = %self.instance.pin_dir().display(),
            config = ?self.config,
            workloads = self.engine.accepted().compiled.workloads.len(),
            "running"
        );
        loop {
            self.publish();
            self.await_arrivals();
            self.links.heed(self.engine.addresses());
            let wake = self.wake();
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::End => break,
                    Asked::Reload => self.reload_for_systemd(),
                },
                Some(call) = self.calls.recv() => self.answer(call),
                () = changed(&mut self.files) => {
                    tracing::debug!("the files may have changed");
                    self.load_watched();
                }
                sign = self.signs.next() => match sign {
                    Sign::Alive(endpoint) => self.engine.alive(&endpoint),
                    Sign::Silent(endpoint) => self.engine.silent(&endpoint),
                },
                event = self.links.changed() => self.links_changed(event).await,
                rival = self.contest.next() => self.engine.contested(&rival),
                generation = ended(&mut self.grace) => self.engine.retired(generation),
                (attachments, intact) = looked(&mut self.vigil) => self.looked(&attachments, intact),
                () = sleep_until(wake.into()) => self.timers(),
                _ = check.tick() => self.check(),
            }
        }
        self.end();
    }

    /// The next thing to do without being told.
    fn wake(&self) -> Instant {
        [
            Some(self.next_resync),
            self.retry,
            self.look,
            self.settle,
            self.engine.yielded().next(),
            self.confirmation.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(self.next_resync)
    }

    fn timers(&mut self) {
        let now = Instant::now();
        if self.confirmation.deadline().is_some_and(|deadline| deadline <= now) {
            self.roll_back();
        }
        if self.settle.is_some_and(|at| at <= now) {
            self.engine.settle();
        }
        if self.next_resync <= now {
            self.next_resync = now + jittered(RESYNC);
            // A directory that could not be watched is read now at the latest.
            if self.watching {
                if let Some(files) = &mut self.files {
                    files.refresh();
                }
                self.load_watched();
            }
            self.look = Some(now);
        }
        if [self.retry, self.look, self.engine.yielded().next()].into_iter().flatten().any(|at| at <= now) {
            self.resync();
        }
    }

    fn resync(&mut self) {
        self.retry = None;
        self.look = None;
        // Of the processor: that others had it is no reason to let events wait longer.
        let before = processor_time();
        self.engine.resync();
        let took = processor_time().saturating_sub(before);
        self.rest = Instant::now() + took * SHARE;
    }

    fn await_arrivals(&mut self) {
        let retiring = self.engine.retiring();
        if retiring != self.grace.as_ref().map(|(generation, _)| *generation) {
            self.grace = retiring.map(|generation| (generation, tokio::task::spawn_blocking(Dataplane::grace_period)));
        }
        self.settle = self.engine.settles_in().map(|left| Instant::now() + left);
        self.signs.listen(self.engine.awaited());
    }

    fn check(&mut self) {
        self.tell_rivals();
        if self.vigil.is_none() {
            let attachments = self.engine.dataplane().attachments();
            // It may wait for others, and nothing waits for it.
            self.vigil = Some(tokio::task::spawn_blocking(move || {
                let intact = attachments.are_intact().unwrap_or_else(|error| {
                    tracing::warn!(%error, "cannot tell whether all filters of ours are in place");
                    true
                });
                (attachments, intact)
            }));
        }
        if !self.engine.dataplane().tables_intact() {
            tracing::warn!("an nftables table of ours was removed or changed by somebody else: putting it back");
            self.resync();
        }
        if self.engine.dataplane().translation_changed() {
            tracing::debug!("the host has begun or ended to translate destinations");
            self.resync();
        }
        if let Err(error) = self.engine.dataplane().sweep() {
            tracing::warn!(%error, "cannot forget expired connections: they are forgotten as new ones come");
        }
    }

    /// Not where something else should hang there by now.
    fn looked(&mut self, attachments: &Attachments, intact: bool) {
        if !intact && *attachments == self.engine.dataplane().attachments() {
            tracing::warn!("a filter of ours was removed or replaced by somebody else: putting it back");
            self.resync();
        }
    }

    /// Hosts that want the same workload say so to each other.
    fn tell_rivals(&mut self) {
        let uplinks: Vec<u32> = self.engine.applied().uplinks.iter().filter_map(|uplink| uplink.ifindex).collect();
        if uplinks != self.contested
            && let Ok(with_macs) = self.engine.dataplane().with_macs(&uplinks)
        {
            self.contest.listen(&with_macs);
            self.contested = uplinks;
        }
        self.contest.want(&self.engine.wanted());
        self.engine.forget_rivals();
    }

    async fn links_changed(&mut self, event: std::io::Result<()>) {
        if let Err(error) = event {
            tracing::warn!(%error, "notifications about links are lost: they are looked at every few seconds instead");
            match Watcher::new() {
                Ok(links) => self.links = links,
                // Not in a tight loop.
                Err(_) => tokio::time::sleep(CHECK).await,
            }
        }
        self.look.get_or_insert((Instant::now() + GATHER).max(self.rest));
    }

    /// What came of it, and whether what waited for a confirmation waits no more.
    fn load(&mut self) -> (Outcome, bool) {
        let waited = self.confirmation.deadline().is_some();
        let confirmation = &mut self.confirmation;
        let outcome = self.engine.load(|content| confirmation.refuses(content).then(|| Problem::general(ROLLED_BACK)));
        if outcome == Outcome::InForce {
            self.replaced = None;
            let content = self.engine.accepted().content;
            if matches!(self.confirmation.before(), Some(Before::Accepted(before)) if before.content == content) {
                self.confirmation.confirm();
                tracing::info!("{NOTHING_WAITS}");
            }
        }
        (outcome, waited && self.confirmation.deadline().is_none())
    }

    /// The same where nobody has asked for it.
    fn load_watched(&mut self) {
        let replaced = self.doubted().unwrap_or_else(|| (self.engine.accepted(), Instant::now()));
        // What puts an end to doubts is not doubted itself.
        if self.load() == (Outcome::InForce, false) {
            self.replaced = Some(replaced);
        }
    }

    /// What was in force before the watch brought something new, where that was a moment ago.
    fn doubted(&mut self) -> Option<(Arc<Accepted>, Instant)> {
        self.replaced.take_if(|(_, since)| since.elapsed() > DOUBT);
        self.replaced.clone()
    }

    fn reload_for_systemd(&mut self) {
        // Without systemd there is nobody to tell.
        if let Ok(time) = NotifyState::monotonic_usec_now() {
            let _ = sd_notify::notify(&[NotifyState::Reloading, time]);
        }
        self.load();
        let _ = sd_notify::notify(&[NotifyState::Ready]);
    }

    fn roll_back(&mut self) {
        let content = self.engine.accepted().content;
        let Some(before) = self.confirmation.take_back(content) else { return };
        self.replaced = None;
        match self.engine.take_back(before.clone(), ROLLED_BACK) {
            Ok(()) => {
                tracing::warn!("nobody confirmed what was put in force: what was before it is in force again");
                // A start can be tried again: it has its own time to be confirmed.
                self.engine.note_rejected(self.reloaded.then_some(content));
            }
            Err(error) => {
                tracing::error!(
                    error = %format!("{error:#}"),
                    "nobody confirmed what was put in force, but what was before it cannot come back now: tried again"
                );
                self.confirmation.start(before, Instant::now() + ROLL_BACK_RETRY);
            }
        }
    }

    fn answer(&mut self, call: Call) {
        let Call { request, reply } = call;
        let answer = match request {
            Request::Status => Reply { status: Some(self.status()), ..done("") },
            Request::Staged => {
                return self.ask_staged(reply, |staged| Reply { staged: staged.changes(), ..done("") });
            }
            Request::Pending { flows } => {
                let host = self.engine.host_addresses().clone();
                return self.ask_staged(reply, move |staged| match staged.judge(&host, &flows) {
                    Ok(pending) => Reply { pending, ..done("") },
                    Err(error) => refusal(format!("with the staged policies applied: {error}")),
                });
            }
            Request::Reload { confirm } => self.reload(confirm),
            Request::Confirm if self.confirmation.confirm() => {
                self.replaced = None;
                self.engine.confirmed();
                tracing::info!("what is in force is confirmed");
                done("confirmed")
            }
            Request::Confirm => refusal("nothing waits for a confirmation"),
        };
        // Who asked may be gone.
        let _ = reply.send(answer);
    }

    /// Compiling everything once more may take long, and nothing else waits for that.
    fn ask_staged(&self, reply: oneshot::Sender<Reply>, ask: impl FnOnce(&Staged) -> Reply + Send + 'static) {
        let Some(staged) = self.engine.staged() else {
            let _ = reply.send(done(""));
            return;
        };
        tokio::task::spawn_blocking(move || drop(reply.send(ask(&staged))));
    }

    fn reload(&mut self, confirm: Option<u32>) -> Reply {
        if confirm.is_some() && self.engine.is_taken_back() {
            return refusal(OF_ANOTHER_PROCESS);
        }
        let before = self.doubted().map_or_else(|| self.engine.accepted(), |(before, _)| before);
        let (outcome, ends_doubt) = self.load();
        let message = match outcome {
            Outcome::Refused => {
                let errors = &self.engine.last_load().errors;
                let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
                return refusal(format!("refused, what was in force stays in force:\n{}", lines.join("\n")));
            }
            Outcome::InForce => "in force",
            Outcome::Unchanged => "in force already",
        };
        let Some(seconds) = confirm else {
            return done(message);
        };
        if ends_doubt {
            return done(format!("{message}: {NOTHING_WAITS}"));
        }
        let within = Duration::from_secs(seconds.into());
        let deadline = Instant::now() + within;
        if before.content != self.engine.accepted().content {
            self.confirmation.start(Before::Accepted(before), deadline);
        } else if !self.confirmation.postpone(deadline) {
            return refusal(NOTHING_TO_TAKE_BACK);
        }
        self.reloaded = true;
        let within = clock::short(within);
        tracing::info!(within, "waiting for a confirmation");
        done(format!("{message}; the set before comes back unless `confirm` follows within {within}"))
    }

    fn status(&mut self) -> Status {
        let mut status = Status {
            version: env!("CARGO_PKG_VERSION").into(),
            node: self.node.clone(),
            pid: Some(std::process::id()),
            pin_dir: self.instance.pin_dir().display().to_string(),
            started: Some(clock::rfc3339(self.started)),
            last_load: Some(self.engine.last_load().clone()),
            confirm_within: self.confirmation.left(Instant::now()).map(|left| left.as_secs()),
            ..Status::default()
        };
        status.applied(self.engine.applied());
        for (name, to) in self.engine.departing() {
            let leaving = status.workloads.iter_mut().filter(|workload| workload.endpoint == name);
            leaving.for_each(|workload| workload.leaves_for = Some(to.to_owned()));
        }
        status.yielded = self.engine.yielded().iter().map(YieldedState::from).collect();
        status.contested = self.engine.rivals().iter().map(ContestedState::from).collect();
        status.faults.extend_from_slice(self.engine.overruled());
        let counted = self.engine.dataplane().view().and_then(|view| status.counted(&view));
        if let Err(error) = counted {
            status.faults.push(format!("the counters cannot be read: {error}"));
        }
        status
    }

    fn publish(&mut self) {
        if self.engine.is_unfinished() {
            self.retry.get_or_insert_with(|| Instant::now() + RETRY);
        }
        let (loads, failed_loads) = self.engine.loads();
        let applied = self.engine.applied();
        let mut numbers = Numbers {
            loads,
            failed_loads,
            last_load_ok: self.engine.last_load().ok,
            routes: applied.routes.iter().filter(|route| route.installed).count() as u64,
            faults: applied.faults.len() as u64,
            ..Numbers::default()
        };
        for workload in &applied.workloads {
            *numbers.workloads.entry(workload.state.to_string()).or_default() += 1;
        }
        self.shared.publish(numbers);
    }

    fn end(&mut self) {
        let _ = sd_notify::notify(&[NotifyState::Stopping]);
        // Nobody could take it back later.
        if self.confirmation.deadline().is_some() {
            self.roll_back();
        }
        tracing::info!("ending; the data path stays in force (`purge` removes it)");
    }
}

async fn changed(files: &mut Option<FileWatch>) {
    match files {
        Some(files) => files.changed().await,
        None => pending().await,
    }
}

/// Waits until a grace period is over, and says behind which generation.
async fn ended(grace: &mut Option<(u32, JoinHandle<()>)>) -> u32 {
    let Some((generation, period)) = grace else { return pending().await };
    let generation = *generation;
    // It neither panics nor is it aborted.
    let _over = period.await;
    *grace = None;
    generation
}

/// Waits until a look at what hangs on interfaces is over, and says what it was about and whether all was right.
async fn looked(vigil: &mut Option<JoinHandle<(Attachments, bool)>>) -> (Attachments, bool) {
    loop {
        let Some(look) = vigil else { return pending().await };
        let outcome = look.await;
        *vigil = None;
        // It neither panics nor is it aborted.
        if let Ok(outcome) = outcome {
            return outcome;
        }
    }
}

/// Within a tenth of `period`, so that many hosts do not do the same at the same time.
fn jittered(period: Duration) -> Duration {
    let nanos = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    let chance = f64::from(nanos % 1000) / 1000.0;
    period.mul_f64(0.9 + 0.2 * chance)
}

/// Time of the processor that this thread has had.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.try_into().unwrap_or_default()
}
