//! What host endpoints add.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Compiler,
    expansions::{Expansion, Side},
    layout::nameless,
    tables::{Outline, Tables},
};
use crate::{
    policy::{
        compiled::{AddressMatch, Direction, LocalHostEndpoint, Reason, RuleMatch, TablePair, UntrackedInterface},
        failsafe,
    },
    resources::model::{
        FailsafePort, HostEndpoint, HostInterface, Policy, PolicyHook, Profile, ResourceSet, RuleAction,
    },
};

/// What the host endpoint of all interfaces says of what the host forwards. The interfaces of workloads are among them.
#[derive(Default)]
pub(super) struct AllInterfaces {
    /// Policies before DNAT, in the order of evaluation.
    pub(super) before: Vec<usize>,
    /// Policies with `applyOnForward`, likewise.
    pub(super) forward: Vec<usize>,
}

/// Besides its own addresses, what is for the host if it is not for everybody: loopback, the link, multicast and broadcast.
const TO_HOST: [&str; 6] = ["127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8"];

impl Compiler {
    /// The host endpoints of the node with their tables.
    pub(super) fn host_endpoints<'a>(
        &mut self,
        set: &ResourceSet,
        profiles: &HashMap<&'a str, &Profile>,
        node: &str,
        failsafes: &[Vec<FailsafePort>; 2],
        tables: &mut Tables<'a>,
    ) -> BTreeMap<String, LocalHostEndpoint> {
        let local: Vec<_> =
            self.endpoints.host_endpoints().iter().filter(|(host, _)| host.node == node).cloned().collect();
        let mut compiled = BTreeMap::new();
        if !local.is_empty() {
            for direction in [Direction::Ingress, Direction::Egress] {
                self.failsafes(failsafes, direction, tables);
            }
        }
        for (host, group) in local {
            let selecting = self.selecting(set, group);
            let with = |hooks: &[PolicyHook]| with_hooks(set, &selecting, hooks);
            let before = with(&[PolicyHook::PreDnat]);
            let (policies, forward) = (with(&[PolicyHook::Normal, PolicyHook::Forward]), with(&[PolicyHook::Forward]));
            let mut table = |side: Side, failsafes, policies: &[usize], profiles_of: Option<&[String]>| {
                // Policies before DNAT are about what comes in.
                let before = if side.direction == Direction::Ingress { &before[..] } else { &[] };
                let outline = Outline { side, failsafes, before, policies, profiles: profiles_of, through: None };
                self.table(set, profiles, &outline, tables)
            };
            let endpoint = LocalHostEndpoint {
                interface: host.interface.clone(),
                host: TablePair {
                    egress: table(Side::of(Direction::Egress), true, &policies, Some(&host.profiles)),
                    ingress: table(Side::of(Direction::Ingress), true, &policies, Some(&host.profiles)),
                },
                forward: (!forward.is_empty() || !before.is_empty()).then(|| TablePair {
                    egress: table(Side::outside(Direction::Ingress), false, &forward, None),
                    ingress: table(Side::outside(Direction::Egress), false, &forward, None),
                }),
                from_workloads: (host.interface == HostInterface::All && !before.is_empty())
                    .then(|| table(Side::of(Direction::Ingress), true, &[], None)),
            };
            compiled.insert(host.name.clone(), endpoint);
        }
        compiled
    }

    /// The interfaces that policy before connection tracking judges: those of host endpoints that name one.
    pub(super) fn untracked<'a>(
        &mut self,
        set: &'a ResourceSet,
        node: &str,
        failsafes: &[Vec<FailsafePort>; 2],
        tables: &mut Tables<'a>,
    ) -> BTreeMap<String, UntrackedInterface> {
        let mut interfaces = BTreeMap::new();
        let mut claimed = BTreeSet::new();
        for endpoint in set.host_endpoints_of(node) {
            let HostInterface::Named(interface) = &endpoint.interface else { continue };
            // The first by name is the interface.
            if !claimed.insert(interface) {
                continue;
            }
            let is_about =
                |policy: &Policy| policy.hook == PolicyHook::Untracked && policy.selects_host_endpoint(set, endpoint);
            let order = self.order.iter().copied();
            let selecting: Vec<usize> = order.filter(|&index| is_about(&set.policies[index])).collect();
            let mut table = |direction| self.untracked_table(set, &selecting, failsafes, direction, tables);
            let untracked = UntrackedInterface { ingress: table(Direction::Ingress), egress: table(Direction::Egress) };
            if untracked != UntrackedInterface::default() {
                interfaces.insert(interface.clone(), untracked);
            }
        }
        interfaces
    }

    /// The node's host endpoint of all interfaces, if it has one that judges what the host forwards.
    pub(super) fn all_interfaces(&mut self, set: &ResourceSet, node: &str) -> Option<AllInterfaces> {
        let is_it = |host: &HostEndpoint| host.node == node && host.interface == HostInterface::All;
        let group = self.endpoints.host_endpoints().iter().find(|(host, _)| is_it(host))?.1;
        let selecting = self.selecting(set, group);
        let with = |hook| with_hooks(set, &selecting, &[hook]);
        let all = AllInterfaces { before: with(PolicyHook::PreDnat), forward: with(PolicyHook::Forward) };
        (!all.before.is_empty() || !all.forward.is_empty()).then_some(all)
    }

    /// What lets pass what is for the host itself.
    pub(super) fn passing_to_host(&mut self, tables: &mut Tables<'_>) -> Arc<Expansion> {
        let make = || {
            let conditions = &mut self.conditions;
            let nets = TO_HOST.iter().filter_map(|net| net.parse().ok());
            let mut any: Vec<u32> = nets.map(|net| conditions.net(net)).collect();
            any.push(conditions.host());
            let peer = AddressMatch { all_of: vec![any], ..AddressMatch::default() };
            let matches = RuleMatch { peer, ..RuleMatch::default() };
            let name = nameless(Direction::Egress, Reason::ToHost, None);
            let rules = vec![((RuleAction::Pass, None), Arc::new(name), Arc::new(matches))];
            self.keep((None, Some("to-host".to_owned()), String::new(), Side::of(Direction::Egress)), None, rules)
        };
        tables.to_host.get_or_insert_with(make).clone()
    }

    /// The ports that host endpoints never shut, as rules for one direction: of the inbound and of the outbound list, the one of
    /// that direction about what asks, the other about what answers.
    pub(super) fn failsafes(
        &mut self,
        ports: &[Vec<FailsafePort>; 2],
        direction: Direction,
        tables: &mut Tables<'_>,
    ) -> [Arc<Expansion>; 2] {
        let known = &mut tables.of_failsafes[direction as usize];
        let make = || {
            [0, 1].map(|list| {
                let (name, rules) = (failsafe::LISTS[list], &ports[list]);
                let of = (None, Some(name.to_owned()), String::new(), Side::of(direction));
                self.expand(of, None, &failsafe::rules(name, rules, direction), &failsafe::name(name, direction))
            })
        };
        known.get_or_insert_with(make).clone()
    }

    /// Global policies that select a host endpoint of this group, in the order of evaluation.
    fn selecting(&mut self, set: &ResourceSet, group: u32) -> Vec<usize> {
        let mut selecting = Vec::new();
        for &index in &self.order {
            let policy = &set.policies[index];
            if policy.namespace.is_none() && self.memberships.of(&self.endpoints, &policy.selector).contains(group) {
                selecting.push(index);
            }
        }
        selecting
    }
}

/// Those of these policies that have one of these hooks.
fn with_hooks(set: &ResourceSet, policies: &[usize], hooks: &[PolicyHook]) -> Vec<usize> {
    policies.iter().copied().filter(|&index| hooks.contains(&set.policies[index].hook)).collect()
}
