//! Address conditions: what rules ask about an address, and which addresses they hold for.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ipnet::{IpNet, Ipv6Net};

use super::{
    compiled::Addresses,
    endpoints::{Endpoints, Members, Memberships},
};
use crate::resources::{
    Shared,
    model::{NamedPort, NetworkSet, ResourceSet},
    selector::Selector,
};

/// A named port as a rule means it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedPortCondition {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Name.
    pub(super) name: String,
    /// The number that endpoints give it.
    pub(super) port: u16,
    /// The endpoints in question; all of them without it.
    pub(super) selector: Option<Selector>,
}

#[derive(Debug)]
enum Condition {
    Net(IpNet),
    Endpoints(Selector),
    NamedPort(NamedPortCondition),
    Host,
}

/// The conditions met so far, numbered. Numbers keep their meaning.
#[derive(Debug, Default)]
pub(super) struct Conditions {
    conditions: Vec<Condition>,
    numbers: HashMap<String, u32>,
    /// Those met since [`Conditions::take_met`].
    met: Vec<u32>,
}

impl Conditions {
    /// The address is in this network.
    pub(super) fn net(&mut self, net: IpNet) -> u32 {
        let net = net.trunc();
        self.intern(format!("net:{net}"), || Condition::Net(net))
    }

    /// The address is that of an endpoint with such labels, or in a network set with such.
    pub(super) fn endpoints(&mut self, selector: &Selector) -> u32 {
        self.intern(format!("sel:{}", selector.canonical()), || Condition::Endpoints(selector.clone()))
    }

    /// The address is that of an endpoint that has this number for this name.
    pub(super) fn named_port(&mut self, port: NamedPortCondition) -> u32 {
        let selector = port.selector.as_ref().map_or("", Selector::canonical);
        let text = format!("port:{}:{}:{}:{selector}", port.protocol, port.port, port.name);
        self.intern(text, || Condition::NamedPort(port))
    }

    /// The address is one of this host. Which those are is known where the maps are written.
    pub(super) fn host(&mut self) -> u32 {
        self.intern("host".to_owned(), || Condition::Host)
    }

    /// The number of [`Conditions::host`], if it was ever met.
    pub(super) fn known_host(&self) -> Option<u32> {
        self.numbers.get("host").copied()
    }

    fn intern(&mut self, text: String, condition: impl FnOnce() -> Condition) -> u32 {
        if let Some(&number) = self.numbers.get(&text) {
            self.met.push(number);
            return number;
        }
        let number = self.conditions.len() as u32;
        self.conditions.push(condition());
        self.numbers.insert(text, number);
        self.met.push(number);
        number
    }

    /// Those met since the last call, ascending.
    pub(super) fn take_met(&mut self) -> Vec<u32> {
        let mut met = std::mem::take(&mut self.met);
        met.sort_unstable();
        met.dedup();
        met
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.conditions.len()
    }
}

/// Sets of conditions, numbered. Number 0 is the empty one.
#[derive(Debug)]
pub(super) struct Holdings {
    sets: Arc<Vec<Arc<[u32]>>>,
    known: HashMap<Arc<[u32]>, u32>,
    unions: HashMap<(u32, u32), u32>,
}

impl Default for Holdings {
    fn default() -> Self {
        let nothing: Arc<[u32]> = Arc::default();
        Self { sets: Arc::new(vec![nothing.clone()]), known: HashMap::from([(nothing, 0)]), unions: HashMap::new() }
    }
}

impl Holdings {
    /// The number of a sorted set.
    fn number(&mut self, set: &[u32]) -> u32 {
        if let Some(&number) = self.known.get(set) {
            return number;
        }
        let (number, set) = (self.sets.len() as u32, Arc::from(set));
        Arc::make_mut(&mut self.sets).push(Arc::clone(&set));
        self.known.insert(set, number);
        number
    }

    fn union(&mut self, a: u32, b: u32) -> u32 {
        match (a, b) {
            (0, one) | (one, 0) => return one,
            (a, b) if a == b => return a,
            _ => {}
        }
        if let Some(&union) = self.unions.get(&(a, b)) {
            return union;
        }
        let mut set = [&*self.sets[a as usize], &*self.sets[b as usize]].concat();
        set.sort_unstable();
        set.dedup();
        let union = self.number(&set);
        self.unions.insert((a, b), union);
        union
    }

    /// The sets by number.
    pub(super) fn sets(&self) -> &Arc<Vec<Arc<[u32]>>> {
        &self.sets
    }
}

/// What holds for each group of endpoints, kept from one set of resources to the next.
#[derive(Debug, Default)]
struct OfGroups {
    /// Conditions about labels that were asked last, ascending.
    live: Vec<u32>,
    /// The groups that they hold for, by number.
    members: Vec<Members>,
    conditions: Vec<Vec<u32>>,
    holdings: Vec<u32>,
}

impl OfGroups {
    /// Asks these conditions (ascending) of all groups; of most of them, most have been asked before.
    fn update(&mut self, live: Vec<u32>, all: &Conditions, endpoints: &Endpoints, holdings: &mut Holdings) {
        let known = self.conditions.len();
        let groups_are_known = known == endpoints.groups();
        if groups_are_known && self.live == live {
            return;
        }
        self.members.resize_with(all.len(), Members::default);
        self.conditions.resize(endpoints.groups(), Vec::new());
        self.holdings.resize(endpoints.groups(), 0);
        let mut touched: Vec<u32> = (known as u32..endpoints.groups() as u32).collect();
        for number in missing(&self.live, &live) {
            for &group in &std::mem::take(&mut self.members[number as usize]).groups {
                self.conditions[group as usize].retain(|have| *have != number);
                touched.push(group);
            }
        }
        let to_ask = if groups_are_known { missing(&live, &self.live) } else { live.clone() };
        for number in to_ask {
            let Condition::Endpoints(selector) = &all.conditions[number as usize] else { continue };
            let members = &mut self.members[number as usize];
            let asked = members.groups.len();
            members.ask(endpoints, selector);
            for &group in &members.groups[asked..] {
                let have = &mut self.conditions[group as usize];
                let place = have.partition_point(|have| *have < number);
                have.insert(place, number);
                touched.push(group);
            }
        }
        for group in touched {
            self.holdings[group as usize] = holdings.number(&self.conditions[group as usize]);
        }
        self.live = live;
    }
}

/// What is in `these` and not in `those`; all of them ascending.
fn missing(these: &[u32], those: &[u32]) -> Vec<u32> {
    let mut those = those.iter().peekable();
    let is_missing = |number: &u32| {
        while those.next_if(|other| *other < number).is_some() {}
        those.peek() != Some(&number)
    };
    these.iter().copied().filter(is_missing).collect()
}

/// A prefix that something holds for: first address, length, number of the set of conditions.
type Entry<A> = (A, u8, u32);

/// Networks of sets and of rules, in order. They are many, and change seldom.
#[derive(Debug, Default)]
struct Networks {
    /// What they were made of.
    sets: Vec<(Shared<NetworkSet>, u32)>,
    single: Vec<(IpNet, u32)>,
    v4: Vec<Entry<u32>>,
    v6: Vec<Entry<u128>>,
}

impl Networks {
    fn update(&mut self, sets: Vec<(Shared<NetworkSet>, u32)>, single: Vec<(IpNet, u32)>, holdings: &mut Holdings) {
        let same_sets =
            self.sets.len() == sets.len() && self.sets.iter().zip(&sets).all(|(a, b)| a.0.is(&b.0) && a.1 == b.1);
        if same_sets && self.single == single {
            return;
        }
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let of_sets = sets.iter().flat_map(|(set, holding)| set.nets.iter().map(|net| (*net, *holding)));
        for (net, holding) in of_sets.chain(single.iter().copied()) {
            match net {
                IpNet::V4(net) => v4.push((u32::from(net.network()), net.prefix_len(), holding)),
                IpNet::V6(net) => v6.push((u128::from(net.network()), net.prefix_len(), holding)),
            }
        }
        sort(&mut v4, holdings);
        sort(&mut v6, holdings);
        *self = Self { sets, single, v4, v6 };
    }
}

/// What holds for addresses of workloads, which are in order.
fn of_addresses<A: Copy + Ord>(
    addresses: &[(A, u32)],
    length: u8,
    of_workload: &mut impl FnMut(u32, &mut Holdings) -> u32,
    holdings: &mut Holdings,
) -> Vec<Entry<A>> {
    let mut entries = Vec::with_capacity(addresses.len());
    for &(address, workload) in addresses {
        let holding = of_workload(workload, holdings);
        if holding != 0 {
            entries.push((address, length, holding));
        }
    }
    join(&mut entries, holdings);
    entries
}

/// Sorts; what is said of one prefix at several places holds together.
fn sort<A: Copy + Ord>(entries: &mut Vec<Entry<A>>, holdings: &mut Holdings) {
    entries.sort_unstable();
    join(entries, holdings);
}

fn join<A: Copy + Ord>(entries: &mut Vec<Entry<A>>, holdings: &mut Holdings) {
    entries.dedup_by(|next, kept| {
        let same = (next.0, next.1) == (kept.0, kept.1);
        if same {
            kept.2 = holdings.union(kept.2, next.2);
        }
        same
    });
}

/// What holds for which addresses, kept from one set of resources to the next.
#[derive(Debug, Default)]
pub(super) struct AddressConditions {
    pub(super) holdings: Holdings,
    of_groups: OfGroups,
    networks: Networks,
    last: Addresses,
}

impl AddressConditions {
    /// Which of the conditions `live` (ascending) hold for each prefix that any of them tells apart, and for each IPv6
    /// address in `always`.
    pub(super) fn update(
        &mut self,
        set: &ResourceSet,
        live: &[u32],
        all: &Conditions,
        endpoints: &Endpoints,
        memberships: &mut Memberships,
        always: impl IntoIterator<Item = IpAddr>,
    ) -> Addresses {
        let Self { holdings, of_groups, networks, last } = self;
        let mut about_labels = Vec::new();
        let mut single = Vec::new();
        let mut by_port = ByPort::new();
        for &number in live {
            match &all.conditions[number as usize] {
                Condition::Net(net) => single.push((*net, holdings.number(&[number]))),
                Condition::Endpoints(_) => about_labels.push(number),
                Condition::Host => {}
                Condition::NamedPort(p) => {
                    by_port.entry((p.protocol, p.port, &p.name)).or_default().push((number, p.selector.as_ref()));
                }
            }
        }
        of_groups.update(about_labels, all, endpoints, holdings);
        let of_sets = set.network_sets.iter().enumerate().filter_map(|(index, network_set)| {
            let holding = of_groups.holdings[endpoints.of_network_set(index) as usize];
            (holding != 0).then(|| (network_set.clone(), holding))
        });
        let of_sets = of_sets.collect();
        // Rules find host endpoints by their expected addresses.
        for (host, group) in endpoints.host_endpoints() {
            let ports = named_ports(&host.ports, *group, &by_port, endpoints, memberships);
            let of_ports = holdings.number(&ports);
            let holding = holdings.union(of_groups.holdings[*group as usize], of_ports);
            if holding != 0 {
                single.extend(host.expected_ips.iter().map(|address| (IpNet::from(*address), holding)));
            }
        }
        networks.update(of_sets, single, holdings);

        let mut of_ports = HashMap::new();
        for (index, workload) in endpoints.with_ports().filter(|_| !by_port.is_empty()) {
            let group = endpoints.of_workload(index as usize);
            let ports = named_ports(&workload.ports, group, &by_port, endpoints, memberships);
            of_ports.insert(index, holdings.number(&ports));
        }
        let mut of_workload = |index: u32, holdings: &mut Holdings| {
            let holding = of_groups.holdings[endpoints.of_workload(index as usize) as usize];
            of_ports.get(&index).map_or(holding, |ports| holdings.union(holding, *ports))
        };
        let v4 = of_addresses(endpoints.v4(), 32, &mut of_workload, holdings);
        let v6 = of_addresses(endpoints.v6(), 128, &mut of_workload, holdings);
        let mut always: Vec<Entry<u128>> = always
            .into_iter()
            .filter_map(|address| match address {
                IpAddr::V4(_) => None,
                IpAddr::V6(address) => Some((u128::from(address), 128, 0)),
            })
            .collect();
        sort(&mut always, holdings);
        let v6 = merge(&always, &v6, holdings);
        let v4 = runs(merge(&networks.v4, &v4, holdings), holdings);
        let v6 = inherit(merge(&networks.v6, &v6, holdings), holdings);
        // What is the same is the same one.
        if *last.v4 != v4 {
            last.v4 = Arc::new(v4);
        }
        if *last.v6 != v6 {
            last.v6 = Arc::new(v6);
        }
        last.clone()
    }
}

/// Conditions about named ports, each with its selector, by protocol, port and name.
type ByPort<'a> = HashMap<(u8, u16, &'a str), Vec<(u32, Option<&'a Selector>)>>;

/// The conditions about named ports that hold for an endpoint of this group, ascending.
fn named_ports(
    ports: &[NamedPort],
    group: u32,
    by_port: &ByPort<'_>,
    endpoints: &Endpoints,
    memberships: &mut Memberships,
) -> Vec<u32> {
    let mut holding = Vec::new();
    for port in ports {
        for (number, selector) in by_port.get(&(port.protocol, port.port, &port.name)).into_iter().flatten() {
            if selector.is_none_or(|selector| memberships.of(endpoints, selector).contains(group)) {
                holding.push(*number);
            }
        }
    }
    holding.sort_unstable();
    holding.dedup();
    holding
}

/// Both lists in one, in order.
fn merge<A: Copy + Ord>(a: &[Entry<A>], b: &[Entry<A>], holdings: &mut Holdings) -> Vec<Entry<A>> {
    let mut merged = Vec::with_capacity(a.len() + b.len());
    let (mut a, mut b) = (a, b);
    loop {
        match (a, b) {
            ([], rest) | (rest, []) => {
                merged.extend_from_slice(rest);
                return merged;
            }
            ([x, after_x @ ..], [y, after_y @ ..]) => {
                let order = (x.0, x.1).cmp(&(y.0, y.1));
                merged.push(match order {
                    std::cmp::Ordering::Less => *x,
                    std::cmp::Ordering::Greater => *y,
                    std::cmp::Ordering::Equal => (x.0, x.1, holdings.union(x.2, y.2)),
                });
                if order.is_le() {
                    a = after_x;
                }
                if order.is_ge() {
                    b = after_y;
                }
            }
        }
    }
}

/// From prefixes in order to stretches of addresses: first address, and what holds from there on.
fn runs(entries: Vec<Entry<u32>>, holdings: &mut Holdings) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::with_capacity(2 * entries.len() + 1);
    runs.push((0, 0));
    let mut begin = |start: u32, holding: u32| {
        if let Some(last) = runs.last_mut()
            && last.0 == start
        {
            last.1 = holding;
        } else {
            runs.push((start, holding));
        }
        // What is the same as before it is no stretch of its own.
        if let [.., before, last] = runs[..]
            && before.1 == last.1
        {
            runs.pop();
        }
    };
    // The prefixes that the last one is in: last address of each, and what holds there.
    let mut wider: Vec<(u32, u32)> = Vec::new();
    let holds_in = |wider: &[(u32, u32)]| wider.last().map_or(0, |wider| wider.1);
    for (start, length, own) in entries {
        let last = start | u32::MAX.checked_shr(length.into()).unwrap_or(0);
        while let Some((end, _)) = wider.pop_if(|wider| wider.0 < start) {
            begin(end + 1, holds_in(&wider));
        }
        let holding = holdings.union(own, holds_in(&wider));
        begin(start, holding);
        wider.push((last, holding));
    }
    while let Some((end, _)) = wider.pop() {
        if let Some(next) = end.checked_add(1) {
            begin(next, holds_in(&wider));
        }
    }
    runs
}

/// Adds to each prefix what holds for the wider ones, which come before it.
fn inherit(entries: Vec<Entry<u128>>, holdings: &mut Holdings) -> Vec<(Ipv6Net, u32)> {
    let mut wider: Vec<(u128, u32)> = Vec::new();
    let inherit = |(start, length, own): Entry<u128>| {
        while wider.pop_if(|wider| wider.0 < start).is_some() {}
        let holding = holdings.union(own, wider.last().map_or(0, |wider| wider.1));
        wider.push((start | u128::MAX.checked_shr(length.into()).unwrap_or(0), holding));
        Some((Ipv6Net::new(Ipv6Addr::from(start), length).ok()?, holding))
    };
    entries.into_iter().filter_map(inherit).collect()
}
