//! Address conditions: what rules ask about an address, and which addresses they hold for.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::endpoints::Endpoints;
use crate::resources::{model::ResourceSet, selector::Selector};

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

enum Condition {
    Net(IpNet),
    Endpoints(Selector),
    NamedPort(NamedPortCondition),
}

/// The conditions met so far, numbered.
#[derive(Default)]
pub(super) struct Conditions {
    conditions: Vec<Condition>,
    texts: Vec<String>,
    numbers: HashMap<String, u32>,
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

    fn intern(&mut self, text: String, condition: impl FnOnce() -> Condition) -> u32 {
        if let Some(&number) = self.numbers.get(&text) {
            return number;
        }
        let number = self.texts.len() as u32;
        self.conditions.push(condition());
        self.numbers.insert(text.clone(), number);
        self.texts.push(text);
        number
    }

    /// The texts, by number.
    pub(super) fn into_texts(self) -> Vec<String> {
        self.texts
    }

    /// Which conditions hold for each prefix that any of them tells apart, and for each address in `always`.
    pub(super) fn addresses(
        &self,
        set: &ResourceSet,
        endpoints: &Endpoints,
        always: impl IntoIterator<Item = IpAddr>,
    ) -> BTreeMap<IpNet, Arc<[u32]>> {
        // What holds for the prefix itself, without what it has from wider networks.
        let mut direct: BTreeMap<IpNet, Vec<u32>> = always.into_iter().map(|ip| (ip.into(), Vec::new())).collect();
        let mut of_group: Vec<Vec<u32>> = vec![Vec::new(); endpoints.groups()];
        let mut by_port = HashMap::<(u8, u16, &str), Vec<(u32, Option<&Selector>)>>::new();
        for (number, condition) in (0..).zip(&self.conditions) {
            match condition {
                Condition::Net(net) => direct.entry(*net).or_default().push(number),
                Condition::Endpoints(selector) => {
                    for group in endpoints.select(selector) {
                        of_group[group as usize].push(number);
                    }
                }
                Condition::NamedPort(p) => {
                    by_port.entry((p.protocol, p.port, &p.name)).or_default().push((number, p.selector.as_ref()));
                }
            }
        }
        for (index, workload) in set.workloads.iter().enumerate() {
            let group = endpoints.of_workload(index);
            let mut holding = of_group[group as usize].clone();
            for port in &workload.ports {
                let conditions = by_port.get(&(port.protocol, port.port, &port.name)).into_iter().flatten();
                holding.extend(
                    conditions
                        .filter(|(_, selector)| selector.is_none_or(|selector| endpoints.holds(selector, group)))
                        .map(|(number, _)| *number),
                );
            }
            if !holding.is_empty() {
                for &address in &workload.addresses {
                    direct.entry(address.into()).or_default().extend_from_slice(&holding);
                }
            }
        }
        for (index, network_set) in set.network_sets.iter().enumerate() {
            let holding = &of_group[endpoints.of_network_set(index) as usize];
            if !holding.is_empty() {
                for net in &network_set.nets {
                    direct.entry(*net).or_default().extend_from_slice(holding);
                }
            }
        }
        inherit(direct)
    }
}

/// Adds to each prefix what holds for the wider ones. They come before it in the order of the map.
fn inherit(direct: BTreeMap<IpNet, Vec<u32>>) -> BTreeMap<IpNet, Arc<[u32]>> {
    let mut shared: HashMap<Vec<u32>, Arc<[u32]>> = HashMap::new();
    let mut wider: Vec<(IpNet, Arc<[u32]>)> = Vec::new();
    let add = |(prefix, mut own): (IpNet, Vec<u32>)| {
        while wider.pop_if(|(net, _)| !net.contains(&prefix)).is_some() {}
        if let Some((_, inherited)) = wider.last() {
            own.extend_from_slice(inherited);
        }
        own.sort_unstable();
        own.dedup();
        let conditions = shared.entry(own).or_insert_with_key(|own| own.as_slice().into()).clone();
        wider.push((prefix, conditions.clone()));
        (prefix, conditions)
    };
    direct.into_iter().map(add).collect()
}
