//! Which rules can decide anything at all, by what the compiler knows.
//!
//! What a rule of a table matches is a box: a set of classes of own addresses, one of peers' addresses, and ranges of
//! destination and source ports. A rule is unreachable if the boxes of the rules before it that decide cover its own. Not
//! every point of a box is a packet that can be (the protocol is in both ports, some classes may have no address left to
//! more specific prefixes): so a rule that is called unreachable is, and some that are may not be found.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use super::bits::Bits;
use crate::policy::{
    compiled::{AddressMatch, Compiled, Direction, Reason, RuleMatch, RuleName, Table, TableRule},
    ranges::Ranges,
};
use calico_ebpf_common::abi::Action;

/// How many parts a box may be cut into before a rule passes for reachable.
const MAX_PARTS: usize = 512;
/// How often a rule may be held against a point, in all; about a second.
const MAX_STEPS: usize = 100_000_000;
/// How many steps it takes to cut a box.
const PART_STEPS: usize = 100;
/// How many bits the classes of all conditions may have.
const MAX_BITS: usize = 1 << 29;

/// Why a rule never decides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unreachable {
    /// What decides all that it matches; empty where it matches nothing.
    pub(super) by: BTreeSet<Arc<RuleName>>,
    /// Whether it matches nothing since no own address fits.
    pub(super) no_own: bool,
}

/// What is known about the rules of all tables.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Rules that never decide, wherever they stand.
    pub(super) unreachable: HashMap<Arc<RuleName>, Unreachable>,
    /// All rules that stand in a table, and therefore match something as far as their ports go.
    pub(super) standing: HashSet<Arc<RuleName>>,
    /// Whether there was too much to look at everything.
    pub(super) gave_up: bool,
}

/// Looks at the rules of policies and profiles in all tables.
pub(super) fn reach(compiled: &Compiled) -> Reach {
    let mut reach = Reach::default();
    for table in &compiled.tables {
        reach.standing.extend(table.rules.iter().map(|rule| rule.name.clone()));
    }
    let Some(classes) = Classes::new(compiled) else {
        reach.gave_up = true;
        return reach;
    };
    let mut search = Search { classes: &classes, boxes: HashMap::new(), reachable: HashSet::new(), steps: 0 };
    for (table, own) in classes.own_addresses(compiled) {
        search.table(&compiled.tables[table], &own, &mut reach.unreachable);
    }
    reach.unreachable.retain(|name, _| !search.reachable.contains(name));
    reach.gave_up = search.steps > MAX_STEPS;
    reach
}

/// Which addresses there are: those of which the same conditions hold are one class.
struct Classes {
    /// By IP version (whether it is IPv6) and number of the set of conditions.
    of_holding: HashMap<(bool, u32), usize>,
    /// IPv4 and IPv6.
    families: [Bits; 2],
    /// The classes of which a condition holds.
    of_condition: Vec<Bits>,
    count: usize,
}

impl Classes {
    fn new(compiled: &Compiled) -> Option<Self> {
        let mut of_holding: HashMap<(bool, u32), usize> = HashMap::new();
        let mut number = |v6: bool, holding| {
            let next = of_holding.len();
            of_holding.entry((v6, holding)).or_insert(next);
        };
        compiled.addresses.v4.iter().for_each(|&(_, holding)| number(false, holding));
        compiled.addresses.v6.iter().for_each(|&(_, holding)| number(true, holding));
        // Addresses of which nothing is said.
        if compiled.addresses.v6.first().is_none_or(|(net, _)| net.prefix_len() != 0) {
            number(true, 0);
        }
        let count = of_holding.len();
        let asked = compiled.tables.iter().flat_map(|table| &table.rules).flat_map(|rule| {
            let ends = [&rule.matches.own, &rule.matches.peer];
            ends.into_iter().flat_map(|end| end.all_of.iter().flatten().chain(&end.none_of))
        });
        let held = compiled.holdings.iter().flat_map(|set| set.iter());
        let conditions = asked.chain(held).max().map_or(0, |last| *last as usize + 1);
        if count.checked_mul(conditions)? > MAX_BITS {
            return None;
        }
        let mut families = [Bits::none(count), Bits::none(count)];
        let mut of_condition = vec![Bits::none(count); conditions];
        for (&(v6, holding), &class) in &of_holding {
            families[usize::from(v6)].insert(class);
            for &condition in compiled.holdings.get(holding as usize)?.iter() {
                of_condition.get_mut(condition as usize)?.insert(class);
            }
        }
        Some(Self { of_holding, families, of_condition, count })
    }

    /// The tables with the classes that own addresses can have there.
    fn own_addresses(&self, compiled: &Compiled) -> Vec<(usize, Bits)> {
        let mut own: HashMap<usize, Bits> = HashMap::new();
        for workload in compiled.workloads.values() {
            for (table, direction) in [(workload.egress, Direction::Egress), (workload.ingress, Direction::Ingress)] {
                let own = own.entry(table).or_insert_with(|| Bits::none(self.count));
                for address in &workload.addresses {
                    if let Some(&class) =
                        self.of_holding.get(&(address.is_ipv6(), compiled.addresses.holding(*address)))
                    {
                        own.insert(class);
                    }
                }
                if direction == Direction::Egress && !workload.spoof.is_empty() {
                    self.families.iter().for_each(|family| own.add(family));
                }
            }
        }
        // Without an address there is nothing to judge, and nothing to say.
        let mut own: Vec<_> = own.into_iter().filter(|(_, own)| !own.is_empty()).collect();
        own.sort_by_key(|(table, _)| *table);
        own
    }

    fn content_with(&self, matches: &AddressMatch) -> Bits {
        let mut content = match matches.family {
            Some(family) => self.families[usize::from(family == 6)].clone(),
            None => {
                let mut all = self.families[0].clone();
                all.add(&self.families[1]);
                all
            }
        };
        for any in &matches.all_of {
            let mut one_of = Bits::none(self.count);
            any.iter().for_each(|&condition| one_of.add(&self.of_condition[condition as usize]));
            content = content.and(&one_of);
        }
        for &condition in &matches.none_of {
            content = content.without(&self.of_condition[condition as usize]);
        }
        content
    }
}

/// What a rule matches.
#[derive(Clone)]
struct Part {
    own: Bits,
    peer: Bits,
    destination: Ranges,
    source: Ranges,
}

/// One of the things that a rule may match.
struct Point {
    own: usize,
    peer: usize,
    destination: u32,
    source: u32,
}

impl Part {
    /// `None` if it is empty.
    fn point(&self) -> Option<Point> {
        Some(Point {
            own: self.own.first()?,
            peer: self.peer.first()?,
            destination: self.destination.first()?,
            source: self.source.first()?,
        })
    }

    fn contains(&self, point: &Point) -> bool {
        self.destination.contains(point.destination)
            && self.peer.contains(point.peer)
            && self.own.contains(point.own)
            && self.source.contains(point.source)
    }

    /// What is in both.
    fn and(&self, other: &Self) -> Self {
        Self {
            own: self.own.and(&other.own),
            peer: self.peer.and(&other.peer),
            destination: self.destination.and(&other.destination),
            source: self.source.and(&other.source),
        }
    }

    /// What is left without another one, in parts that do not overlap.
    fn without(&self, other: &Self) -> [Self; 4] {
        let own = Self { own: self.own.without(&other.own), ..self.clone() };
        let inside = Self { own: self.own.and(&other.own), ..self.clone() };
        let peer = Self { peer: inside.peer.without(&other.peer), ..inside.clone() };
        let inside = Self { peer: inside.peer.and(&other.peer), ..inside };
        let destination = Self { destination: inside.destination.without(&other.destination), ..inside.clone() };
        let inside = Self { destination: inside.destination.and(&other.destination), ..inside };
        let source = Self { source: inside.source.without(&other.source), ..inside };
        [own, peer, destination, source]
    }
}

struct Search<'a> {
    classes: &'a Classes,
    /// By the place of the match: tables share them.
    boxes: HashMap<*const RuleMatch, Arc<Part>>,
    reachable: HashSet<Arc<RuleName>>,
    steps: usize,
}

impl Search<'_> {
    fn table(&mut self, table: &Table, own: &Bits, unreachable: &mut HashMap<Arc<RuleName>, Unreachable>) {
        let boxes: Vec<Arc<Part>> = table.rules.iter().map(|rule| self.part(&rule.matches)).collect();
        for (number, rule) in table.rules.iter().enumerate() {
            let is_default = !matches!(rule.name.reason, Reason::Rule | Reason::Profile);
            if is_default || self.reachable.contains(&rule.name) {
                continue;
            }
            let mut found = Unreachable::default();
            let covered = self.classes.families.iter().all(|family| {
                let mut part = Part::clone(&boxes[number]);
                part.own = part.own.and(own).and(family);
                part.peer = part.peer.and(family);
                found.no_own |= part.own.is_empty() && !part.peer.is_empty();
                cover(table, &boxes, number, part, &mut found.by, &mut self.steps)
            });
            if covered {
                let known = unreachable.entry(rule.name.clone()).or_default();
                known.by.extend(found.by);
                known.no_own |= found.no_own;
            } else {
                self.reachable.insert(rule.name.clone());
            }
        }
    }

    fn part(&mut self, matches: &Arc<RuleMatch>) -> Arc<Part> {
        let classes = self.classes;
        let make = || {
            Arc::new(Part {
                own: classes.content_with(&matches.own),
                peer: classes.content_with(&matches.peer),
                destination: Ranges::from_condition(&matches.destination_ports),
                source: Ranges::from_condition(&matches.source_ports),
            })
        };
        self.boxes.entry(Arc::as_ptr(matches)).or_insert_with(make).clone()
    }
}

/// Whether rules before `number` decide all of `part`; `by` gets those that do.
fn cover(
    table: &Table,
    boxes: &[Arc<Part>],
    number: usize,
    part: Part,
    by: &mut BTreeSet<Arc<RuleName>>,
    steps: &mut usize,
) -> bool {
    let start = first_that_counts(table, number);
    let mut left = vec![part];
    let mut parts = 0;
    while let Some(part) = left.pop() {
        let Some(point) = part.point() else { continue };
        parts += 1;
        *steps += number - start + PART_STEPS;
        if parts > MAX_PARTS || *steps > MAX_STEPS {
            return false;
        }
        let Some(earlier) = decider(table, boxes, start..number, &point) else { return false };
        by.insert(table.rules[earlier].name.clone());
        left.extend(part.without(&boxes[earlier]));
        // What jumps over the decider is not decided by it.
        let jumps = |rule: usize| {
            let TableRule { action, next, .. } = table.rules[rule];
            action == Action::Pass && (earlier + 1..=number).contains(&usize::from(next))
        };
        for jump in (start..earlier).filter(|&rule| jumps(rule)) {
            left.push(part.and(&boxes[earlier]).and(&boxes[jump]));
        }
    }
    true
}

/// Where to begin: that policies leave a profile nothing to do is what they are for.
fn first_that_counts(table: &Table, number: usize) -> usize {
    let name = &table.rules[number].name;
    let is_same = |rule: &TableRule| rule.name.reason == Reason::Profile && rule.name.policy == name.policy;
    if name.reason != Reason::Profile {
        return 0;
    }
    table.rules.iter().position(is_same).unwrap_or(number)
}

/// The rule of these because of which a packet does not come to those behind them.
fn decider(table: &Table, boxes: &[Arc<Part>], rules: std::ops::Range<usize>, point: &Point) -> Option<usize> {
    let mut rule = rules.start;
    while rule < rules.end {
        let TableRule { action, next, .. } = table.rules[rule];
        let next = usize::from(next).max(rule + 1);
        rule = match action {
            _ if !boxes[rule].contains(point) => rule + 1,
            Action::Log => rule + 1,
            Action::Pass if next <= rules.end => next,
            _ => return Some(rule),
        };
    }
    None
}
