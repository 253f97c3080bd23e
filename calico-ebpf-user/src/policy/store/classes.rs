//! Numbers for the classes of addresses.

use std::collections::{BTreeMap, HashSet};

use super::{
    addresses::{Desired, common_stretches},
    planner::Planner,
};
use crate::policy::{compiled::Compiled, layout::ClassKey, write::LimitError};

/// Classes that stand for "no condition holds", IPv4 and IPv6.
pub(super) const PLAIN_CLASSES: u32 = 2;
/// Classes without an address that are kept in case their addresses come back; tests meet the end of that soon.
const SPARE_CLASSES: usize = if cfg!(test) { 4 } else { 256 };

/// What a class stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClassOf {
    pub(super) kind: AddressKind,
    /// Number of the set of conditions.
    pub(super) holding: u32,
}

/// What tells addresses apart besides conditions that resources settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AddressKind {
    /// It is one of the host's, and rules ask for that.
    pub(super) host: bool,
    pub(super) v6: bool,
}

impl AddressKind {
    pub(super) const ALL: [Self; 4] =
        [Self::V4, Self::V6, Self { host: true, v6: false }, Self { host: true, v6: true }];
    pub(super) const V4: Self = Self { host: false, v6: false };
    pub(super) const V6: Self = Self { host: false, v6: true };

    pub(super) fn index(self) -> usize {
        usize::from(self.v6) + 2 * usize::from(self.host)
    }
}

impl ClassOf {
    pub(super) fn key(&self, compiled: &Compiled) -> ClassKey {
        let AddressKind { host, v6 } = self.kind;
        let settled = &compiled.holdings[self.holding as usize];
        let conditions = match compiled.host_condition.filter(|_| host) {
            Some(host) => {
                let (before, behind) = settled.split_at(settled.partition_point(|condition| *condition < host));
                [before, &[host], behind].concat().into()
            }
            None => settled.clone(),
        };
        ClassKey { v6, conditions }
    }
}

/// Classes by what they stand for; the numbers of sets of conditions are dense.
#[derive(Clone, Debug, Default)]
pub(super) struct ClassNumbers([Vec<Option<u32>>; AddressKind::ALL.len()]);

impl ClassNumbers {
    pub(super) fn get(&self, of: ClassOf) -> Option<u32> {
        self.0[of.kind.index()].get(of.holding as usize).copied().flatten()
    }

    fn insert(&mut self, of: ClassOf, class: u32) {
        let classes = &mut self.0[of.kind.index()];
        let needed = classes.len().max(of.holding as usize + 1);
        classes.resize(needed, None);
        classes[of.holding as usize] = Some(class);
    }

    /// In order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ClassOf, u32)> {
        AddressKind::ALL.into_iter().flat_map(|kind| {
            let classes = (0..).zip(&self.0[kind.index()]);
            classes.filter_map(move |(holding, class)| Some((ClassOf { kind, holding }, (*class)?)))
        })
    }

    fn retain(&mut self, wanted: impl Fn(ClassOf) -> bool) {
        for (kind, classes) in AddressKind::ALL.into_iter().zip(&mut self.0) {
            for (holding, class) in (0..).zip(classes.iter_mut()) {
                *class = class.take_if(|_| wanted(ClassOf { kind, holding }));
            }
            let last = classes.iter().rposition(Option::is_some);
            classes.truncate(last.map_or(0, |last| last + 1));
        }
    }

    /// How many sets of conditions there have to be.
    pub(super) fn sets(&self) -> usize {
        self.0.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// What a class stands for, and the class.
pub(super) type NewClass = (ClassOf, u32);

impl Planner<'_> {
    /// Gives numbers to classes: those that are new, and whether some have gone.
    ///
    /// Any number will do for any class, used or not: an entry of an address says what holds from which generation on, and a
    /// table is read by one generation only unless it is right for both. So keeping numbers only saves writes.
    pub(super) fn classes(
        &mut self,
        compiled: &Compiled,
        desired: &Desired,
    ) -> Result<(Vec<NewClass>, bool), LimitError> {
        let classes = &mut self.next.classes;
        let mut missing: HashSet<ClassOf> =
            desired.used.iter().copied().filter(|of| classes.get(*of).is_none()).collect();
        let spare = classes.iter().count() + missing.len() - desired.used.len();
        let removed = spare > SPARE_CLASSES.max(desired.used.len() / 2);
        if removed {
            let wanted: HashSet<ClassOf> = desired.used.iter().copied().collect();
            classes.retain(|of| wanted.contains(&of));
        }
        let mut added: Vec<NewClass> = Vec::new();
        if missing.is_empty() {
            return Ok((added, removed));
        }
        let mut taken: HashSet<u32> = classes.iter().map(|(_, class)| class).chain(0..PLAIN_CLASSES).collect();
        let mut add = |of: ClassOf, class: u32, missing: &mut HashSet<ClassOf>| {
            if missing.remove(&of) {
                classes.insert(of, class);
                added.push((of, class));
            }
        };
        add(ClassOf { kind: AddressKind::V4, holding: 0 }, 0, &mut missing);
        add(ClassOf { kind: AddressKind::V6, holding: 0 }, 1, &mut missing);
        // The number that most of the addresses have already. That is how the numbers of an earlier process live on.
        let mut votes: BTreeMap<(ClassOf, u32), u64> = BTreeMap::new();
        common_stretches(&self.old.nets.runs, &compiled.addresses.v4, |class, holding, addresses| {
            let of = ClassOf { kind: AddressKind::V4, holding };
            if missing.contains(&of) {
                *votes.entry((of, class)).or_default() += addresses;
            }
        });
        // Where an address has an entry of its own, another number would be a write for each of them.
        const ENTRY: u64 = 1 << 32;
        for known in &desired.entries {
            let of = desired.of(known);
            if missing.contains(&of)
                && let Some(entry) = self.old.addresses.get(&known.prefix)
            {
                *votes.entry((of, entry.class(self.old.generation))).or_default() += ENTRY;
            }
        }
        let mut votes: Vec<_> = votes.into_iter().collect();
        votes.sort_by_key(|(_, addresses)| std::cmp::Reverse(*addresses));
        for ((of, class), _) in votes {
            if missing.contains(&of) && taken.insert(class) {
                add(of, class, &mut missing);
            }
        }
        let mut candidates = PLAIN_CLASSES..;
        for of in &desired.used {
            if !missing.contains(of) {
                continue;
            }
            let class = candidates.by_ref().find(|class| !taken.contains(class)).unwrap_or(u32::MAX);
            if class >= self.old.limits.classes.min(1 << 24) {
                let limit = self.old.limits.classes.min(1 << 24) as usize;
                let needed = desired.used.len().max(limit + 1);
                return Err(LimitError::Count { what: "classes of addresses", needed, limit });
            }
            add(*of, class, &mut missing);
        }
        Ok((added, removed))
    }
}
