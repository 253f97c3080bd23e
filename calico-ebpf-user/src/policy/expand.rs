//! One rule of a policy as rules of a table.
//!
//! A table knows conditions about addresses and ranges of ports, nothing that ties both together. A named port does:
//! it becomes one rule for each number that the name stands for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    compiled::{AddressMatch, Direction, RuleMatch},
    conditions::{Conditions, NamedPortCondition},
    endpoints::of_namespaces,
    ranges::Ranges,
};
use crate::resources::{
    model::{EntityRule, NAMESPACE_LABEL, PortMatch, ResourceSet, Rule},
    selector::{Expression, Selector},
};

/// IP protocol numbers of ICMP and ICMPv6.
const ICMP: [u8; 2] = [1, 58];
/// Protocols with ports: TCP, UDP, SCTP, UDP-Lite. A rule about ports without a protocol means all of them.
const WITH_PORTS: [u8; 4] = [6, 17, 132, 136];

/// Numbers that named ports stand for, by name and protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PortNames(HashMap<String, BTreeMap<u8, BTreeSet<u16>>>);

impl PortNames {
    pub(super) fn new(set: &ResourceSet) -> Self {
        let mut names = HashMap::<String, BTreeMap<u8, BTreeSet<u16>>>::new();
        let of_hosts = set.host_endpoints.values().flat_map(|endpoint| &endpoint.ports);
        for port in set.workloads.iter().flat_map(|workload| &workload.ports).chain(of_hosts) {
            let numbers = match names.get_mut(&port.name) {
                Some(numbers) => numbers,
                None => names.entry(port.name.clone()).or_default(),
            };
            numbers.entry(port.protocol).or_default().insert(port.port);
        }
        Self(names)
    }

    fn numbers(&self, protocol: u8, name: &str) -> impl Iterator<Item = u16> + '_ {
        self.0.get(name).and_then(|numbers| numbers.get(&protocol)).into_iter().flatten().copied()
    }
}

/// Expands `rule`, of a policy in `namespace`, into rules of a table of whoever sends (`Egress`) or receives: none if it can
/// never match. They come one after the other and do the same.
pub(super) fn expand(
    rule: &Rule,
    seat: Direction,
    namespace: Option<&str>,
    names: &PortNames,
    conditions: &mut Conditions,
) -> Vec<Arc<RuleMatch>> {
    let Ok(family) = family(rule) else { return Vec::new() };
    let protocols = protocols(rule);
    let source = End::new(&rule.source, namespace, family, conditions);
    let destination = End::new(&rule.destination, namespace, family, conditions);
    let source_choices = source.port_choices(&rule.source, &protocols, names, conditions);
    let destination_choices =
        destination.port_choices(&rule.destination, &protocols.and(&icmp(rule)), names, conditions);

    let mut rules = Vec::with_capacity(source_choices.len() * destination_choices.len());
    for (source_ports, source_match) in &source_choices {
        for (destination_ports, destination_match) in &destination_choices {
            // The protocol is in both; where only one looks at it, the other need not.
            let source_ports = if *source_ports == protocols { Ranges::all() } else { source_ports.clone() };
            let (own, peer) = match seat {
                Direction::Ingress => (destination_match.clone(), source_match.clone()),
                Direction::Egress => (source_match.clone(), destination_match.clone()),
            };
            rules.push(Arc::new(RuleMatch {
                // The peer's is enough: both addresses of a packet are of one family.
                own: AddressMatch { family: None, ..own },
                peer,
                destination_ports: destination_ports.clone().into_condition(),
                source_ports: source_ports.into_condition(),
            }));
        }
    }
    rules
}

/// The address family that the rule is limited to; an error if nothing is left of it.
///
/// As in Felix (`FilterRuleToIPVersion`), a rule is not rendered for a family of which none of the CIDRs in one of its
/// lists is, the negated lists included.
fn family(rule: &Rule) -> Result<Option<u8>, ()> {
    let mut family = rule.ip_version;
    let ends = [&rule.source, &rule.destination];
    for nets in ends.iter().flat_map(|end| [&end.nets, &end.not_nets]).filter(|nets| !nets.is_empty()) {
        let (v4, v6) = (nets.iter().any(is_v4), nets.iter().any(|net| !is_v4(net)));
        let only = match (v4, v6) {
            (true, true) => continue,
            (true, false) => 4,
            _ => 6,
        };
        if *family.get_or_insert(only) != only {
            return Err(());
        }
    }
    Ok(family)
}

fn is_v4(net: &IpNet) -> bool {
    matches!(net, IpNet::V4(_))
}

/// What `protocol` and `notProtocol` leave.
fn protocols(rule: &Rule) -> Ranges {
    let positive = rule.protocol.map_or_else(Ranges::all, Ranges::protocol);
    match rule.not_protocol {
        Some(not) => positive.without(&Ranges::protocol(not)),
        None => positive,
    }
}

/// What `icmp` and `notICMP` leave: type and code stand in for the destination port.
fn icmp(rule: &Rule) -> Ranges {
    let of = |(kind, code): (u8, Option<u8>)| {
        let kind = u16::from(kind) << 8;
        let (first, last) = code.map_or((kind, kind | 0xff), |code| (kind | u16::from(code), kind | u16::from(code)));
        Ranges::union(ICMP.map(|protocol| Ranges::ports(protocol, first, last)))
    };
    let positive = rule.icmp.map_or_else(Ranges::all, of);
    match rule.not_icmp {
        // Without a protocol of its own, only ICMP packets are "not this ICMP type".
        Some(not) => positive.and(&Ranges::union(ICMP.map(Ranges::protocol))).without(&of(not)),
        None => positive,
    }
}

/// One end of a rule, without its ports.
struct End {
    address: AddressMatch,
    selector: Option<Selector>,
}

impl End {
    fn new(entity: &EntityRule, namespace: Option<&str>, family: Option<u8>, conditions: &mut Conditions) -> Self {
        let selector = effective_selector(entity, namespace);
        let mut address = AddressMatch { family, ..AddressMatch::default() };
        if !entity.nets.is_empty() {
            address.all_of.push(entity.nets.iter().map(|net| conditions.net(*net)).collect());
        }
        if let Some(selector) = &selector {
            address.all_of.push(vec![conditions.endpoints(selector)]);
        }
        address.none_of.extend(entity.not_nets.iter().map(|net| conditions.net(*net)));
        address.none_of.extend(entity.not_selector.as_ref().map(|selector| conditions.endpoints(selector)));
        Self { address, selector }
    }

    /// The ways to satisfy the ports of this end: ranges, with what the address must be for them.
    fn port_choices(
        &self,
        entity: &EntityRule,
        protocols: &Ranges,
        names: &PortNames,
        conditions: &mut Conditions,
    ) -> Vec<(Ranges, AddressMatch)> {
        let with_ports = protocols.and(&Ranges::union(WITH_PORTS.map(Ranges::protocol)));
        let numeric = |ports: &[PortMatch]| {
            Ranges::union(ports.iter().flat_map(|port| match *port {
                PortMatch::Range(first, last) => WITH_PORTS.map(|protocol| Ranges::ports(protocol, first, last)).into(),
                PortMatch::Named(_) => Vec::new(),
            }))
        };
        let named = |ports: &[PortMatch], conditions: &mut Conditions| {
            let mut found = Vec::new();
            for port in ports {
                let PortMatch::Named(name) = port else { continue };
                for protocol in WITH_PORTS {
                    for port in names.numbers(protocol, name) {
                        let ranges = Ranges::ports(protocol, port, port).and(protocols);
                        if !ranges.is_empty() {
                            let selector = self.selector.clone();
                            let condition = NamedPortCondition { protocol, name: name.clone(), port, selector };
                            found.push((ranges, conditions.named_port(condition)));
                        }
                    }
                }
            }
            found
        };

        let mut choices = Vec::new();
        if entity.ports.is_empty() {
            choices.push((protocols.clone(), self.address.clone()));
        } else {
            choices.push((numeric(&entity.ports).and(&with_ports), self.address.clone()));
            for (ranges, condition) in named(&entity.ports, conditions) {
                let mut address = self.address.clone();
                address.all_of.push(vec![condition]);
                choices.push((ranges, address));
            }
        }
        if !entity.not_ports.is_empty() {
            // As in Felix, a negated port match is one about the protocol too.
            let not = numeric(&entity.not_ports);
            for choice in &mut choices {
                choice.0 = choice.0.and(&with_ports).without(&not);
            }
            for (ranges, condition) in named(&entity.not_ports, conditions) {
                // Split what is left: on that port, the address must not be one that the name means there.
                let mut split = Vec::new();
                for (have, address) in choices {
                    let mut limited = address.clone();
                    limited.none_of.push(condition);
                    split.push((have.without(&ranges), address));
                    split.push((have.and(&ranges), limited));
                }
                choices = split;
                choices.retain(|(ranges, _)| !ranges.is_empty());
            }
        }
        choices.retain(|(ranges, _)| !ranges.is_empty());
        choices
    }
}

/// The one selector that `selector` and `namespaceSelector` make.
///
/// As in Calico (`getEndpointSelector`), a rule of a namespaced policy means endpoints of its own namespace as soon as it
/// has any selector, the negated one included; that one itself is not limited.
pub(super) fn effective_selector(entity: &EntityRule, namespace: Option<&str>) -> Option<Selector> {
    if entity.selector.is_none() && entity.not_selector.is_none() && entity.namespace_selector.is_none() {
        return None;
    }
    let mut parts = Vec::new();
    match (&entity.namespace_selector, namespace) {
        (Some(selector), _) => parts.push(of_namespaces(selector)),
        (None, Some(namespace)) => parts.push(Expression::Equal(NAMESPACE_LABEL.to_owned(), namespace.to_owned())),
        (None, None) => {}
    }
    parts.extend(entity.selector.as_ref().map(|selector| selector.expression().clone()));
    match parts.len() {
        0 => None,
        1 => parts.pop().map(Selector::from),
        _ => Some(Selector::from(Expression::And(parts))),
    }
}
