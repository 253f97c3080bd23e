//! What the address maps shall hold, and whose class moves by that.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use calico_ebpf_common::abi::{AddressEntry, HOST, NO_SLOT, Stamped};
use ipnet::{IpNet, Ipv6Net};

use super::{
    Store,
    classes::{AddressKind, ClassOf, PLAIN_CLASSES},
    planner::Planner,
};
use crate::policy::{
    compiled::Compiled,
    nets::Run,
    prefixes::Prefixes,
    write::{LimitError, Limits, Write},
};

/// Where the IPv6 prefixes begin in an ordered map.
const FIRST_V6: IpNet = IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0));

/// What an entry of the address maps shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) prefix: IpNet,
    pub(super) class: u32,
    pub(super) slot: u32,
    pub(super) host: bool,
}

/// What the address maps shall hold, and what stands for a class in it.
#[derive(Default)]
pub(super) struct Desired {
    /// In order. [`Known::class`] is the set of conditions yet.
    pub(super) entries: Vec<Known>,
    /// What needs a class, in the order of the addresses, so that one input always gives one result.
    pub(super) used: Vec<ClassOf>,
    /// Whether rules ask for the host's addresses.
    pub(super) host_differs: bool,
}

impl Desired {
    pub(super) fn new(compiled: &Compiled, host_addresses: &BTreeSet<IpAddr>, next: &Store) -> Self {
        let mut own: BTreeMap<IpNet, (u32, bool)> = BTreeMap::new();
        for (name, workload) in &compiled.workloads {
            let slot = next.slot(name).map_or(NO_SLOT, |slot| slot.slot);
            own.extend(workload.addresses.iter().map(|&address| (address.into(), (slot, false))));
        }
        for &address in host_addresses {
            own.entry(address.into()).or_insert((NO_SLOT, false)).1 = true;
        }
        let runs = &*compiled.addresses.v4;
        let host_differs = compiled.host_condition.is_some();
        let entries = Vec::with_capacity(own.len() + compiled.addresses.v6.len());
        let mut desired = Self { entries, used: Vec::new(), host_differs };
        let mut is_used = AddressKind::ALL.map(|_| Vec::new());
        let mut take = |kind: AddressKind, holding: u32, used: &mut Vec<ClassOf>| {
            let is_used = &mut is_used[kind.index()];
            is_used.resize(compiled.holdings.len(), false);
            if !std::mem::replace(&mut is_used[holding as usize], true) {
                used.push(ClassOf { kind, holding });
            }
        };
        take(AddressKind::V4, 0, &mut desired.used);
        take(AddressKind::V6, 0, &mut desired.used);
        runs.iter().for_each(|&(_, holding)| take(AddressKind::V4, holding, &mut desired.used));
        for (&prefix, &(slot, host)) in own.range(..FIRST_V6) {
            let IpNet::V4(net) = prefix else { continue };
            let class = value_at(runs, net.addr().into());
            take(AddressKind { v6: false, host: host && host_differs }, class, &mut desired.used);
            desired.entries.push(Known { prefix, class, slot, host });
        }
        let mut own = own.range(FIRST_V6..).peekable();
        // The networks that the last one is in.
        let mut wider: Vec<(Ipv6Net, u32)> = Vec::new();
        let mut of_compiled = compiled.addresses.v6.iter().copied().peekable();
        loop {
            let next = match (of_compiled.peek(), own.peek()) {
                (None, None) => break,
                (Some((net, _)), None) => IpNet::V6(*net),
                (None, Some((prefix, _))) => **prefix,
                (Some((net, _)), Some((prefix, _))) => IpNet::V6(*net).min(**prefix),
            };
            let IpNet::V6(net) = next else { break };
            while wider.pop_if(|(wider, _)| !wider.contains(&net)).is_some() {}
            let said = of_compiled.next_if(|(said, _)| *said == net).map(|(_, holding)| holding);
            let class = said.or_else(|| wider.last().map(|wider| wider.1)).unwrap_or(0);
            let (slot, host) = own.next_if(|(prefix, _)| **prefix == next).map_or((NO_SLOT, false), |(_, own)| *own);
            wider.push((net, class));
            take(AddressKind { v6: true, host: host && host_differs }, class, &mut desired.used);
            desired.entries.push(Known { prefix: next, class, slot, host });
        }
        desired
    }

    /// What the class of an entry stands for.
    pub(super) fn of(&self, known: &Known) -> ClassOf {
        let kind = AddressKind { v6: is_v6(&known.prefix), host: known.host && self.host_differs };
        ClassOf { kind, holding: known.class }
    }
}

/// The value of the stretch that an address is in.
fn value_at(runs: &[Run], address: u32) -> u32 {
    let after = runs.partition_point(|&(start, _)| start <= address);
    after.checked_sub(1).map_or(0, |index| runs[index].1)
}

/// Classes before and after: of which there are addresses, and which of those differ.
pub(super) struct Moves {
    pub(super) all: Vec<(u32, u32)>,
    /// Those that differ.
    pub(super) moved: Vec<(u32, u32)>,
    /// The same for single addresses that changed.
    pub(super) of_address: HashMap<IpAddr, (u32, u32)>,
    /// Slots that lose an address, or a source that they may spoof: their connections may be another's now.
    pub(super) bereft: HashSet<u32>,
}

impl Planner<'_> {
    /// Makes all addresses what they shall be.
    pub(super) fn addresses(&mut self, compiled: &Compiled, desired: &Desired) -> Result<Moves, LimitError> {
        let (now, generation) = (self.old.generation, self.generation);
        let class_of = |of: ClassOf| self.next.classes.get(of).unwrap_or_default();
        let stay = desired.used.iter().map(|&of| class_of(of)).chain(0..PLAIN_CLASSES);
        // Those that stay, and those that moved.
        let mut all: Vec<(u32, u32)> = stay.map(|class| (class, class)).collect();
        if !Arc::ptr_eq(&self.next.known_runs, &compiled.addresses.v4) {
            let mut runs = Vec::with_capacity(compiled.addresses.v4.len().max(1));
            let of = |holding| ClassOf { kind: AddressKind::V4, holding };
            runs.extend(compiled.addresses.v4.iter().map(|&(start, holding)| (start, class_of(of(holding)))));
            if runs.is_empty() {
                runs.push((0, 0));
            }
            runs.dedup_by_key(|run| run.1);
            self.changes.addresses += changed_runs(&self.old.nets.runs, &runs, &mut all);
            let (nets, uses) = self.old.nets.update(&mut self.next.arena, Arc::new(runs))?;
            self.begin.extend(uses.begin);
            self.end.extend(uses.end);
            self.next.nets = nets;
            self.next.known_runs = Arc::clone(&compiled.addresses.v4);
        }
        let entries: Vec<Known> =
            desired.entries.iter().map(|known| Known { class: class_of(desired.of(known)), ..*known }).collect();
        let mut count = [0; ROOMS];
        entries.iter().for_each(|known| count[room(&known.prefix)] += 1);

        // Of most of them nothing is to be looked at.
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        match &self.next.known {
            Some(known) => differences(known, &entries, &mut changed, &mut gone),
            None => {
                let wanted: HashSet<&IpNet> = entries.iter().map(|known| &known.prefix).collect();
                gone.extend(self.old.addresses.keys().filter(|prefix| !wanted.contains(prefix)));
                changed.extend(entries.iter().copied());
            }
        }
        let (mut of_address, mut bereft) = (HashMap::new(), HashSet::new());
        if !changed.is_empty() || !gone.is_empty() {
            let old = &*self.old.addresses;
            let lengths = Prefixes::new(old.keys().chain(entries.iter().map(|known| &known.prefix)));
            let plain = |prefix: &IpNet| u32::from(is_v6(prefix));
            let next = Arc::make_mut(&mut self.next.addresses);
            for Known { prefix, class, slot, host } in changed {
                let before = old.get(&prefix);
                let was = match (before, prefix) {
                    (Some(entry), _) => entry.class(now),
                    (None, IpNet::V4(net)) => self.old.nets.class(net.addr().into()),
                    (None, IpNet::V6(_)) => lengths.wider(old, &prefix).map_or(plain(&prefix), |e| e.class(now)),
                };
                let (owner, flags) = (before.map_or(NO_SLOT, |entry| entry.slot(now)), if host { HOST } else { 0 });
                all.push((was, class));
                if was != class && prefix.prefix_len() == prefix.max_prefix_len() {
                    of_address.insert(prefix.addr(), (was, class));
                }
                let stays = |entry: &&AddressEntry| {
                    was == class && owner == slot && entry.flags == flags && entry.side(now) == 1
                };
                if owner != slot {
                    bereft.insert(owner);
                }
                if before.filter(stays).is_none() {
                    let entry = AddressEntry {
                        class: Stamped { value: [was, class] },
                        slot: Stamped { value: [owner, slot] },
                        since: generation,
                        flags,
                    };
                    self.prepare.push(Write::Address { prefix, entry });
                    self.changes.addresses += 1;
                    next.insert(prefix, entry);
                }
            }
            for prefix in &gone {
                next.remove(prefix);
            }
            for prefix in gone {
                let Some(before) = old.get(&prefix) else { continue };
                let (was, owner) = (before.class(now), before.slot(now));
                let class = match prefix {
                    IpNet::V4(net) => self.next.nets.class(net.addr().into()),
                    IpNet::V6(_) => {
                        lengths.wider(next, &prefix).map_or(plain(&prefix), |entry| entry.class(generation))
                    }
                };
                all.push((was, class));
                bereft.insert(owner);
                let entry = AddressEntry {
                    class: Stamped { value: [was, class] },
                    slot: Stamped { value: [owner, NO_SLOT] },
                    since: generation,
                    flags: 0,
                };
                self.prepare.push(Write::Address { prefix, entry });
                self.retire.push(Write::RemoveAddress { prefix });
                self.changes.addresses += 1;
                // Until it is retired it takes room.
                count[room(&prefix)] += 1;
            }
        }
        for (needed, (what, limit)) in count.into_iter().zip(rooms(&self.old.limits)) {
            if needed > limit as usize {
                return Err(LimitError::Count { what, needed, limit: limit as usize });
            }
        }
        self.next.known = Some(Arc::new(entries));
        all.sort_unstable();
        all.dedup();
        let moved = all.iter().copied().filter(|(was, class)| was != class).collect();
        Ok(Moves { all, moved, of_address, bereft })
    }
}

pub(super) fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

/// Visits the stretches of addresses in which nothing changes, with the values in both and the number of addresses.
pub(super) fn common_stretches(a: &[Run], b: &[Run], mut visit: impl FnMut(u32, u32, u64)) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let (mut of_a, mut of_b, mut start) = (0, 0, 0);
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(a), Some(b)) => u64::from(a.0.min(b.0)),
            (Some(run), None) | (None, Some(run)) => run.0.into(),
            (None, None) => 1 << 32,
        };
        if next > start {
            visit(of_a, of_b, next - start);
        }
        if next == 1 << 32 {
            return;
        }
        start = next;
        if let Some(run) = a.next_if(|run| u64::from(run.0) == next) {
            of_a = run.1;
        }
        if let Some(run) = b.next_if(|run| u64::from(run.0) == next) {
            of_b = run.1;
        }
    }
}

/// Notes which classes became which, and returns how many stretches of addresses have another class.
fn changed_runs(old: &[Run], new: &[Run], pairs: &mut Vec<(u32, u32)>) -> usize {
    let mut changed = 0;
    common_stretches(old, new, |was, is, _| {
        if was != is {
            changed += 1;
            pairs.push((was, is));
        }
    });
    changed
}

/// Maps of prefixes that have their own room.
const ROOMS: usize = 4;

/// Which of them a prefix is in.
fn room(prefix: &IpNet) -> usize {
    let single = prefix.prefix_len() == prefix.max_prefix_len();
    usize::from(is_v6(prefix)) + if single { 0 } else { 2 }
}

/// What they are for, and how much there is.
fn rooms(limits: &Limits) -> [(&'static str, u32); ROOMS] {
    [
        ("IPv4 addresses of this host and its workloads, old and new ones", limits.addresses4),
        ("single IPv6 addresses, old and new ones", limits.addresses6),
        ("IPv4 networks, old and new ones", limits.nets),
        ("IPv6 networks, old and new ones", limits.nets),
    ]
}

/// What is new or other in `new`, and what is not there any more; both in the order of the map.
fn differences(old: &[Known], new: &[Known], changed: &mut Vec<Known>, gone: &mut Vec<IpNet>) {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(was), Some(is)) if was.prefix == is.prefix => {
                if was != is {
                    changed.push(**is);
                }
                old.next();
                new.next();
            }
            (Some(was), is) if is.is_none_or(|is| was.prefix < is.prefix) => {
                gone.push(was.prefix);
                old.next();
            }
            (_, Some(is)) => {
                changed.push(**is);
                new.next();
            }
            (Some(_), None) => return,
        }
    }
}
