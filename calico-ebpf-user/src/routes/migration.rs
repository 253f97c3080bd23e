//! Workloads that come from other nodes, and what that means for their routes. Pure.
//!
//! As in Calico's live migration: no route until the workload has given a sign of life here; then the elevated priority, which
//! wins over what others still say about its addresses; and when everybody has heard, the normal one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use calico_ebpf_common::abi::{Workload, workload_flags};

use crate::resources::{Shared, changed_part, model::WorkloadEndpoint};

/// How long a route keeps the elevated priority: `liveMigrationRouteConvergenceTime` unless configured.
const CONVERGENCE: Duration = Duration::from_secs(30);
/// How long the programs take packets of a workload to belong to connections that its former node knew
/// (`TAKEOVER_SECONDS` there).
const TAKEOVER: Duration = Duration::from_secs(30);

/// How a workload comes from another node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Migration {
    /// The node that had it, where that is known still.
    pub from: Option<String>,
    /// How far it has come.
    pub stage: Stage,
}

/// How far it has come. When it is here for good there is no [`Migration`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// It has given no sign of life here: it has no routes.
    Withheld,
    /// It gave one at this time, in ticks: its routes have the elevated priority.
    Elevated {
        /// In ticks; never 0.
        since: u32,
    },
    /// Its routes are as ever, but connections of its may not have been seen here yet.
    Settling {
        /// When it gave the sign of life.
        since: u32,
    },
}

/// What migrations go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Ticks in a second.
    pub hz: u32,
    /// How long a route keeps the elevated priority.
    pub convergence: Duration,
}

impl Pace {
    /// With Calico's default.
    #[must_use]
    pub const fn new(hz: u32) -> Self {
        Self { hz, convergence: CONVERGENCE }
    }
}

/// What routes of a workload are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// There are none.
    Withheld,
    /// They win over those of others.
    Elevated,
    /// As ever.
    Normal,
}

impl Migration {
    /// What a slot of `cali_wl` and its name tell.
    #[must_use]
    pub fn of_slot(workload: &Workload, from: Option<&String>) -> Option<Self> {
        let stage = if workload.flags & workload_flags::ARRIVING != 0 {
            Stage::Withheld
        } else if workload.takeover != 0 {
            Stage::Elevated { since: workload.takeover }
        } else {
            return None;
        };
        Some(Self { from: from.cloned(), stage })
    }

    /// Until its next stage, at time `now` in ticks; `None` where it waits for a sign of life.
    fn left(&self, now: u32, pace: Pace) -> Option<Duration> {
        let (since, lasts) = match self.stage {
            Stage::Withheld => return None,
            Stage::Elevated { since } => (since, pace.convergence),
            Stage::Settling { since } => (since, TAKEOVER),
        };
        let gone = f64::from(now.wrapping_sub(since)) / f64::from(pace.hz.max(1));
        Some(lasts.saturating_sub(Duration::from_secs_f64(gone)))
    }
}

/// The priority that a migration, or none, leads to.
#[must_use]
pub const fn priority(migration: Option<&Migration>) -> Priority {
    match migration {
        None | Some(Migration { stage: Stage::Settling { .. }, .. }) => Priority::Normal,
        Some(Migration { stage: Stage::Withheld, .. }) => Priority::Withheld,
        Some(Migration { stage: Stage::Elevated { .. }, .. }) => Priority::Elevated,
    }
}

/// The migrations to this node, by `namespace/name` of the workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migrations {
    coming: BTreeMap<String, Migration>,
    /// Those whose routes keep the elevated priority for as long as they are here.
    held: BTreeSet<String>,
    /// Who has come, from where.
    came: BTreeMap<String, String>,
}

impl Migrations {
    /// A workload is on its way from node `from`.
    pub fn come(&mut self, name: String, from: String) {
        self.held.remove(&name);
        self.came.remove(&name);
        self.coming.insert(name, Migration { from: Some(from), stage: Stage::Withheld });
    }

    /// One that an earlier process left like this.
    pub fn resume(&mut self, name: String, migration: Migration) {
        if let Some(from) = migration.from.clone().filter(|_| migration.stage != Stage::Withheld) {
            self.came.insert(name.clone(), from);
        }
        self.coming.insert(name, migration);
    }

    /// It has given a sign of life, at time `now` in ticks. False where nobody waited for one.
    pub fn alive(&mut self, name: &str, now: u32) -> bool {
        match self.coming.get_mut(name) {
            Some(migration) if migration.stage == Stage::Withheld => {
                migration.stage = Stage::Elevated { since: now.max(1) };
                if let Some(from) = migration.from.clone() {
                    self.came.insert(name.to_owned(), from);
                }
                true
            }
            _ => false,
        }
    }

    /// The node that a workload has come from, where it gave a sign of life here since.
    #[must_use]
    pub fn origin(&self, name: &str) -> Option<&str> {
        self.came.get(name).map(String::as_str)
    }

    /// Its routes get the elevated priority again, at time `now` in ticks, and keep it.
    pub fn hold(&mut self, name: &str, now: u32) {
        let from = self.came.get(name).cloned();
        self.coming.insert(name.to_owned(), Migration { from, stage: Stage::Elevated { since: now.max(1) } });
        self.held.insert(name.to_owned());
    }

    /// Goes on with those whose time is over; false where there are none.
    pub fn settle(&mut self, now: u32, pace: Pace) -> bool {
        let before = self.coming.clone();
        for (name, migration) in &mut self.coming {
            if !self.held.contains(name)
                && let Stage::Elevated { since } = migration.stage
                && migration.left(now, pace) == Some(Duration::ZERO)
            {
                migration.stage = Stage::Settling { since };
            }
        }
        let is_over = |migration: &Migration| {
            matches!(migration.stage, Stage::Settling { .. }) && migration.left(now, pace) == Some(Duration::ZERO)
        };
        self.coming.retain(|_, migration| !is_over(migration));
        self.coming != before
    }

    /// Until [`Migrations::settle`] has something to do.
    #[must_use]
    pub fn next(&self, now: u32, pace: Pace) -> Option<Duration> {
        let timed = self.coming.iter().filter(|(name, _)| !self.held.contains(*name));
        timed.filter_map(|(_, migration)| migration.left(now, pace)).min()
    }

    /// Forgets those of workloads that are no longer here.
    pub fn retain(&mut self, is_local: impl Fn(&str) -> bool) {
        self.coming.retain(|name, _| is_local(name));
        self.came.retain(|name, _| is_local(name));
        self.held.retain(|name| is_local(name));
    }

    /// That of a workload.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Migration> {
        self.coming.get(name)
    }

    /// Whether nobody comes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.coming.is_empty()
    }
}

/// A workload whose addresses went from one node to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// `namespace/name`, on the node that has it now.
    pub name: String,
    /// The node that had it.
    pub from: String,
    /// The node that has it now.
    pub to: String,
}

/// Which workloads moved to or from `node` between two sets of resources. A workload is known by its addresses: the name may
/// contain the node's. One that was on both nodes before moves nowhere. `ours` are at least the addresses of `node`'s workloads
/// before.
#[must_use]
pub fn moves(
    before: &[Shared<WorkloadEndpoint>],
    after: &[Shared<WorkloadEndpoint>],
    node: &str,
    mut ours: impl Iterator<Item = IpAddr>,
) -> Vec<Move> {
    let (gone_at, come_at) = changed_part(before, after);
    let (old, new) = (&before[gone_at], &after[come_at]);
    let mut known: HashSet<(IpAddr, &str)> = HashSet::new();
    for workload in old {
        known.extend(workload.addresses.iter().map(|address| (*address, workload.node.as_str())));
    }
    // Whoever was there already goes nowhere: most often it is labels that change, and nobody else has to be looked at.
    let comes = |workload: &&Shared<WorkloadEndpoint>| {
        workload.addresses.iter().any(|address| !known.contains(&(*address, workload.node.as_str())))
    };
    let come: Vec<&Shared<WorkloadEndpoint>> = new.iter().filter(comes).collect();
    let changed: HashSet<IpAddr> = come.iter().flat_map(|workload| &workload.addresses).copied().collect();
    // Neither to this node nor from it.
    if come.iter().all(|workload| workload.node != node) && !ours.any(|address| changed.contains(&address)) {
        return Vec::new();
    }
    let mut nodes: HashMap<IpAddr, &str> = HashMap::new();
    // All of them: an address may be claimed for a second time while its first owner stays.
    for workload in before {
        for address in workload.addresses.iter().filter(|address| changed.contains(address)) {
            nodes.insert(*address, &workload.node);
            known.insert((*address, &workload.node));
        }
    }
    let moved = come.iter().filter_map(|workload| {
        let from = workload.addresses.iter().find_map(|address| {
            let from = nodes.get(address).copied().filter(|from| *from != workload.node)?;
            (!known.contains(&(*address, workload.node.as_str()))).then_some(from)
        })?;
        (from == node || workload.node == node).then(|| Move {
            name: format!("{}/{}", workload.namespace, workload.name),
            from: from.to_owned(),
            to: workload.node.clone(),
        })
    });
    moved.collect()
}

#[cfg(test)]
mod tests {
    use super::{super::fixture, *};

    const HZ: u32 = 250;
    const PACE: Pace = Pace::new(HZ);

    #[test]
    fn a_route_is_withheld_then_elevated_then_normal() {
        let mut migrations = Migrations::default();
        assert_eq!(priority(migrations.get("a/b")), Priority::Normal);
        assert!(!migrations.alive("a/b", 7), "nobody waits for it");
        migrations.come("a/b".into(), "host1".into());
        assert_eq!(priority(migrations.get("a/b")), Priority::Withheld);
        assert_eq!(migrations.next(1_000_000, PACE), None, "it waits for as long as it takes");
        assert!(!migrations.settle(1_000_000, PACE));
        // Ticks wrap.
        let start = u32::MAX - 10;
        assert!(migrations.alive("a/b", start));
        assert!(!migrations.alive("a/b", start + 5), "the first sign counts");
        assert_eq!(priority(migrations.get("a/b")), Priority::Elevated);
        assert_eq!(migrations.next(start.wrapping_add(10 * HZ), PACE), Some(Duration::from_secs(20)));
        assert!(!migrations.settle(start.wrapping_add(30 * HZ - 1), PACE));
        assert!(migrations.settle(start.wrapping_add(30 * HZ), PACE));
        assert_eq!(priority(migrations.get("a/b")), Priority::Normal);
        assert!(migrations.is_empty());
    }

    #[test]
    fn connections_are_picked_up_for_as_long_as_ever_where_routes_become_normal_sooner() {
        let pace = Pace { convergence: Duration::from_secs(2), ..PACE };
        let mut migrations = Migrations::default();
        migrations.come("a/b".into(), "host1".into());
        migrations.alive("a/b", 1000);
        assert!(migrations.settle(1000 + 2 * HZ, pace));
        assert_eq!(priority(migrations.get("a/b")), Priority::Normal);
        assert_eq!(migrations.next(1000 + 2 * HZ, pace), Some(Duration::from_secs(28)));
        assert!(!migrations.settle(1000 + 29 * HZ, pace));
        assert!(migrations.settle(1000 + 30 * HZ, pace));
        assert!(migrations.is_empty());
    }

    #[test]
    fn one_that_comes_again_waits_again_and_one_that_goes_is_forgotten() {
        let mut migrations = Migrations::default();
        migrations.come("a/b".into(), "host1".into());
        migrations.alive("a/b", 0);
        assert_eq!(migrations.get("a/b").map(|migration| migration.stage), Some(Stage::Elevated { since: 1 }));
        migrations.come("a/b".into(), "host3".into());
        assert_eq!(priority(migrations.get("a/b")), Priority::Withheld);
        migrations.retain(|name| name != "a/b");
        assert!(migrations.is_empty());
    }

    #[test]
    fn one_that_its_former_node_still_claims_keeps_the_elevated_priority() {
        let mut migrations = Migrations::default();
        migrations.come("a/b".into(), "host1".into());
        assert_eq!(migrations.origin("a/b"), None, "it has not come");
        migrations.alive("a/b", 1000);
        migrations.settle(1000 + 30 * HZ, PACE);
        assert!(migrations.is_empty());
        assert_eq!(migrations.origin("a/b"), Some("host1"));
        migrations.hold("a/b", 9000);
        assert!(!migrations.settle(9000 + 60 * HZ, PACE));
        assert_eq!(migrations.next(9000, PACE), None);
        assert_eq!(priority(migrations.get("a/b")), Priority::Elevated);
        migrations.come("a/b".into(), "host3".into());
        assert_eq!((priority(migrations.get("a/b")), migrations.origin("a/b")), (Priority::Withheld, None));
        migrations.alive("a/b", 10_000);
        assert!(migrations.settle(10_000 + 60 * HZ, PACE));
    }

    fn workload(name: &str, node: &str, addresses: &[&str]) -> Shared<WorkloadEndpoint> {
        fixture::workload(name, node, "cali", addresses)
    }

    fn moved(name: &str, from: &str, to: &str) -> Move {
        Move { name: name.to_owned(), from: from.to_owned(), to: to.to_owned() }
    }

    #[test]
    fn workloads_are_known_by_their_addresses() {
        let stays = [workload("x", "host1", &["10.0.0.9"]), workload("y", "host2", &["10.0.0.8"])];
        let set = |middle: &[Shared<WorkloadEndpoint>]| [&stays[..1], middle, &stays[1..]].concat();
        let before = set(&[workload("host1-b", "host1", &["10.0.0.1", "fd00::1"])]);
        let after = set(&[workload("host2-b", "host2", &["fd00::1", "10.0.0.1"])]);
        let here = [moved("a/host2-b", "host1", "host2")];
        assert_eq!(fixture::moves(&before, &after, "host2"), here);
        assert_eq!(fixture::moves(&before, &after, "host1"), here);
        assert_eq!(fixture::moves(&before, &after, "host3"), [], "no business of this node");
        assert_eq!(fixture::moves(&before, &before, "host2"), []);
        assert_eq!(fixture::moves(&set(&[]), &after, "host2"), [], "new");
        assert_eq!(fixture::moves(&before, &set(&[]), "host1"), [], "gone");
    }

    #[test]
    fn who_was_here_already_does_not_come() {
        let both = [workload("b", "host1", &["10.0.0.1"]), workload("c", "host2", &["10.0.0.1"])];
        let one = [workload("d", "host2", &["10.0.0.1"])];
        assert_eq!(fixture::moves(&both, &one, "host2"), []);
        assert_eq!(fixture::moves(&both[..1], &both, "host2"), [moved("a/c", "host1", "host2")], "a second claim");
    }
}
