//! A plain evaluator: straight from the resources, rule by rule, no tables. What the compiled tables are held against.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    compiled::{Direction, Reason, RuleName},
    failsafe,
    flow::{EndVerdict, Flow, Verdict},
};
use crate::resources::model::{
    DenyAction, EntityRule, FailsafePort, HostEndpoint, Labels, NAMESPACE_LABEL, NamedPort, Policy, PolicyHook,
    PolicyKind, PortMatch, Profile, ResourceSet, Rule, RuleAction, TierAction, WorkloadEndpoint,
};

/// Judges a flow at both ends, wherever their workloads are. Where several have one address, the first is meant.
#[must_use]
pub fn evaluate(set: &ResourceSet, flow: &Flow) -> Verdict {
    let end = |address: IpAddr, direction| {
        let workload = set.workloads.iter().find(|workload| workload.addresses.contains(&address))?;
        let (action, rule) = judge(set, workload, direction, flow);
        let allow = action.is_none();
        let reject = action.is_some_and(|own| {
            let own = own.unwrap_or_else(|| set.felix_for(&workload.node).deny_action());
            own == DenyAction::Reject
        });
        Some(EndVerdict { endpoint: format!("{}/{}", workload.namespace, workload.name), allow, reject, rule })
    };
    Verdict { source: end(flow.source, Direction::Egress), destination: end(flow.destination, Direction::Ingress) }
}

/// Likewise on a host with these addresses, where the host endpoint of all interfaces has a say about what workloads send
/// and receive, but not about what they send to the host itself.
#[must_use]
pub fn evaluate_through(set: &ResourceSet, flow: &Flow, host: &BTreeSet<IpAddr>) -> Verdict {
    let through = |end: &mut EndVerdict, address: IpAddr, way| {
        let workload = set.workloads.iter().find(|workload| workload.addresses.contains(&address));
        let all = workload.and_then(|workload| set.all_interfaces_of(&workload.node));
        if let Some(said) = all.map(|all| evaluate_host(set, all, way, flow)).filter(|said| !said.allow) {
            *end = EndVerdict { endpoint: std::mem::take(&mut end.endpoint), ..said };
        }
    };
    let mut verdict = evaluate(set, flow);
    let is_for_everybody = match flow.destination {
        IpAddr::V4(address) => address.is_loopback() || address.is_multicast() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_loopback() || address.is_multicast() || address.is_unicast_link_local(),
    };
    if let Some(end) = &mut verdict.source
        && !host.contains(&flow.destination)
        && !is_for_everybody
    {
        through(end, flow.source, HostWay::Arriving);
    }
    if let Some(end) = &mut verdict.destination {
        through(end, flow.destination, HostWay::Leaving);
    }
    verdict
}

/// How it is denied, if it is: as the rule says, or as the node does; and what decides.
type Judged = (Option<Option<DenyAction>>, RuleName);

fn judge(set: &ResourceSet, workload: &WorkloadEndpoint, direction: Direction, flow: &Flow) -> Judged {
    let labels = labels(set, workload);
    let policies = policies(set, direction, |policy| {
        !matches!(policy.hook, PolicyHook::PreDnat | PolicyHook::Untracked)
            && policy.namespace.as_ref().is_none_or(|namespace| *namespace == workload.namespace)
            && policy.selector.matches(&labels)
    });
    if let Some(judged) = by_policies(set, &policies, true, direction, flow) {
        return judged;
    }
    by_profiles(set, &workload.profiles, direction, flow)
}

/// What a host endpoint is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostWay {
    /// What the host itself sends.
    Sent,
    /// What it receives.
    Received,
    /// What comes in by the interface, to be forwarded.
    Arriving,
    /// What leaves by the interface, forwarded.
    Leaving,
    /// What workloads send to the host: of that of all interfaces.
    FromWorkloads,
}

/// Judges a flow at a host endpoint.
#[must_use]
pub fn evaluate_host(set: &ResourceSet, endpoint: &HostEndpoint, way: HostWay, flow: &Flow) -> EndVerdict {
    let (action, rule) = judge_host(set, endpoint, way, flow);
    let reject = action
        .is_some_and(|own| own.unwrap_or_else(|| set.felix_for(&endpoint.node).deny_action()) == DenyAction::Reject);
    EndVerdict { endpoint: endpoint.name.clone(), allow: action.is_none(), reject, rule }
}

fn judge_host(set: &ResourceSet, endpoint: &HostEndpoint, way: HostWay, flow: &Flow) -> Judged {
    let direction = match way {
        HostWay::Sent | HostWay::Leaving => Direction::Egress,
        HostWay::Received | HostWay::Arriving | HostWay::FromWorkloads => Direction::Ingress,
    };
    let is_own = matches!(way, HostWay::Sent | HostWay::Received | HostWay::FromWorkloads);
    if let Some(number) = failsafe_port(set, endpoint, direction, flow).filter(|_| is_own) {
        return (
            None,
            RuleName { rule: Some(number), ..failsafe::name(failsafe::LISTS[direction as usize], direction) },
        );
    }
    let labels = inherit(set, &endpoint.labels, &endpoint.profiles);
    let with = |hooks: &[PolicyHook]| {
        policies(set, direction, |policy| {
            hooks.contains(&policy.hook) && policy.namespace.is_none() && policy.selector.matches(&labels)
        })
    };
    if direction == Direction::Ingress
        && let Some(judged) = by_policies(set, &with(&[PolicyHook::PreDnat]), false, direction, flow)
    {
        return judged;
    }
    let hooks = match way {
        HostWay::Sent | HostWay::Received => &[PolicyHook::Normal, PolicyHook::Forward][..],
        HostWay::Arriving | HostWay::Leaving => &[PolicyHook::Forward],
        HostWay::FromWorkloads => &[],
    };
    if let Some(judged) = by_policies(set, &with(hooks), true, direction, flow) {
        return judged;
    }
    match way {
        HostWay::Sent | HostWay::Received => by_profiles(set, &endpoint.profiles, direction, flow),
        _ => (None, nameless(direction, Reason::NoPolicy)),
    }
}

/// What untracked policy of a host endpoint says of a packet: whether it allows or denies it, or leaves it; and what says so.
/// `None` where none is about that direction.
#[must_use]
pub fn evaluate_untracked(
    set: &ResourceSet,
    endpoint: &HostEndpoint,
    direction: Direction,
    packet: &Flow,
) -> Option<(Option<bool>, RuleName)> {
    let policies = policies(set, direction, |policy| {
        policy.hook == PolicyHook::Untracked && policy.selects_host_endpoint(set, endpoint)
    });
    if policies.is_empty() {
        return None;
    }
    let ports = set.felix_for(&endpoint.node).failsafes();
    // What the list of this direction is about asks, what the other one is about answers.
    for (list, ports) in failsafe::LISTS.into_iter().zip(&ports) {
        let rules = failsafe::rules(list, ports, direction);
        if let Some((number, _)) = first_match(set, &rules, packet, None) {
            return Some((None, RuleName { rule: Some(number), ..failsafe::name(list, direction) }));
        }
    }
    Some(match by_policies(set, &policies, false, direction, packet) {
        Some((denied, rule)) => (Some(denied.is_none()), rule),
        None => (None, nameless(direction, Reason::Undecided)),
    })
}

/// The number of the failsafe port that a flow goes to.
fn failsafe_port(set: &ResourceSet, endpoint: &HostEndpoint, direction: Direction, flow: &Flow) -> Option<u32> {
    let [inbound, outbound] = set.felix_for(&endpoint.node).failsafes();
    let (ports, other) = match direction {
        Direction::Ingress => (inbound, flow.source),
        Direction::Egress => (outbound, flow.destination),
    };
    let is = |port: &FailsafePort| {
        port.protocol == flow.protocol
            && port.port == flow.destination_port
            && port.net.is_none_or(|net| net.contains(&other))
    };
    (0..).zip(&ports).find(|(_, port)| is(port)).map(|(number, _)| number)
}

fn nameless(direction: Direction, reason: Reason) -> RuleName {
    RuleName { direction, reason, tier: None, kind: None, namespace: None, policy: None, rule: None }
}

/// Policies of one direction in the order of evaluation.
fn policies(set: &ResourceSet, direction: Direction, applies: impl Fn(&Policy) -> bool) -> Vec<&Policy> {
    let mut policies: Vec<&Policy> = set
        .policies
        .iter()
        .map(|policy| &**policy)
        .filter(|policy| match direction {
            Direction::Ingress => policy.applies_ingress,
            Direction::Egress => policy.applies_egress,
        })
        .filter(|policy| applies(policy))
        .collect();
    let key = |policy| sort_key(set, policy);
    policies.sort_by(|a, b| key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal));
    policies
}

/// `None` where no policy decides. `ends`: whether the ends of tiers do.
fn by_policies(
    set: &ResourceSet,
    policies: &[&Policy],
    ends: bool,
    direction: Direction,
    flow: &Flow,
) -> Option<Judged> {
    let mut passed: Option<&str> = None;
    for (index, policy) in policies.iter().enumerate() {
        if passed == Some(policy.tier.as_str()) {
            continue;
        }
        let rules = if direction == Direction::Ingress { &policy.ingress } else { &policy.egress };
        let tier = Some(policy.tier.clone());
        if let Some((number, decider)) = first_match(set, rules, flow, policy.namespace.as_deref()) {
            if decider.action == RuleAction::Pass {
                passed = Some(&policy.tier);
                continue;
            }
            let rule = RuleName {
                tier,
                kind: Some(policy.kind.as_str().to_owned()),
                namespace: policy.namespace.clone(),
                policy: Some(policy.name.clone()),
                rule: Some(number),
                ..nameless(direction, Reason::Rule)
            };
            return Some((denial(decider), rule));
        }
        let last_of_tier = policies.get(index + 1).is_none_or(|next| next.tier != policy.tier);
        if ends && last_of_tier && set.tier(&policy.tier).is_none_or(|tier| tier.default_action == TierAction::Deny) {
            return Some((Some(None), RuleName { tier, ..nameless(direction, Reason::TierDefault) }));
        }
    }
    None
}

fn by_profiles(set: &ResourceSet, names: &[String], direction: Direction, flow: &Flow) -> Judged {
    for name in names {
        // One that does not exist denies.
        let Some(profile) = profile(set, name) else { break };
        let rules = if direction == Direction::Ingress { &profile.ingress } else { &profile.egress };
        if let Some((number, decider)) = first_match(set, rules, flow, None) {
            let rule = RuleName {
                kind: Some("Profile".to_owned()),
                policy: Some(profile.name.clone()),
                rule: Some(number),
                ..nameless(direction, Reason::Profile)
            };
            return (denial(decider), rule);
        }
    }
    (Some(None), nameless(direction, Reason::NoProfile))
}

/// Tier's order and name, policy's order and name in the tier, then namespace and kind.
fn sort_key<'p>(set: &ResourceSet, policy: &'p Policy) -> (f64, &'p str, f64, &'p str, Option<&'p str>, PolicyKind) {
    let tier_order = set.tier(&policy.tier).and_then(|tier| tier.order).unwrap_or(f64::INFINITY);
    let prefix = format!("{}.", policy.tier);
    let name = policy.name.strip_prefix(&prefix).unwrap_or(&policy.name);
    let order = policy.order.unwrap_or(f64::INFINITY);
    (tier_order, &policy.tier, order, name, policy.namespace.as_deref(), policy.kind)
}

/// `None`: it allows.
fn denial(decider: &Rule) -> Option<Option<DenyAction>> {
    (decider.action != RuleAction::Allow).then_some(decider.deny_action)
}

/// Number of the first rule that decides, and the rule; `Log` is none.
fn first_match<'r>(
    set: &ResourceSet,
    rules: &'r [Rule],
    flow: &Flow,
    namespace: Option<&str>,
) -> Option<(u32, &'r Rule)> {
    (0..)
        .zip(rules)
        .find(|(_, rule)| rule.action != RuleAction::Log && matches(set, rule, flow, namespace))
        .map(|(index, rule)| (rule.number.unwrap_or(index), rule))
}

fn matches(set: &ResourceSet, rule: &Rule, flow: &Flow, namespace: Option<&str>) -> bool {
    let version = if flow.source.is_ipv4() { 4 } else { 6 };
    let lists = [&rule.source.nets, &rule.source.not_nets, &rule.destination.nets, &rule.destination.not_nets];
    let other_family =
        |nets: &[IpNet]| !nets.is_empty() && nets.iter().all(|net| net.addr().is_ipv4() != (version == 4));
    let is_icmp = flow.protocol == 1 || flow.protocol == 58;
    let icmp_is = |(kind, code): (u8, Option<u8>)| {
        let [packet_kind, packet_code] = flow.destination_port.to_be_bytes();
        is_icmp && packet_kind == kind && code.is_none_or(|code| code == packet_code)
    };
    rule.ip_version.is_none_or(|wanted| wanted == version)
        && !lists.into_iter().any(|nets| other_family(nets))
        && rule.protocol.is_none_or(|protocol| protocol == flow.protocol)
        && rule.not_protocol.is_none_or(|protocol| protocol != flow.protocol)
        && rule.icmp.is_none_or(icmp_is)
        && rule.not_icmp.is_none_or(|icmp| is_icmp && !icmp_is(icmp))
        && end_matches(set, &rule.source, flow.source, flow.protocol, flow.source_port, namespace)
        && end_matches(set, &rule.destination, flow.destination, flow.protocol, flow.destination_port, namespace)
}

fn end_matches(
    set: &ResourceSet,
    entity: &EntityRule,
    address: IpAddr,
    protocol: u8,
    port: u16,
    namespace: Option<&str>,
) -> bool {
    let inside = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
    let known = known(set, address);
    let any_selector =
        entity.selector.is_some() || entity.not_selector.is_some() || entity.namespace_selector.is_some();
    let selected = |Known { labels, .. }: &&Known<'_>| {
        let own_namespace = labels.get(NAMESPACE_LABEL);
        let of_namespace = match (&entity.namespace_selector, namespace) {
            (Some(selector), _) if selector.is_global() => own_namespace.is_none(),
            (Some(selector), _) if selector.is_all() => own_namespace.is_some(),
            (Some(selector), _) => selector.matches_with(&|key| labels.get(&format!("pcns.{key}")).map(String::as_str)),
            (None, Some(namespace)) => !any_selector || own_namespace.is_some_and(|own| own == namespace),
            (None, None) => true,
        };
        of_namespace && entity.selector.as_ref().is_none_or(|selector| selector.matches(labels))
    };
    let excluded =
        entity.not_selector.as_ref().is_some_and(|selector| known.iter().any(|known| selector.matches(&known.labels)));
    let needs_endpoint =
        entity.selector.is_some() || entity.namespace_selector.is_some() || (any_selector && namespace.is_some());
    let is_port = |wanted: &PortMatch| match wanted {
        PortMatch::Range(first, last) => (*first..=*last).contains(&port),
        PortMatch::Named(name) => known.iter().filter(selected).any(|known| {
            known.ports.iter().any(|named| named.name == *name && named.protocol == protocol && named.port == port)
        }),
    };
    let has_ports = [6, 17, 132, 136].contains(&protocol);
    (entity.nets.is_empty() || inside(&entity.nets))
        && !inside(&entity.not_nets)
        && (!needs_endpoint || known.iter().any(|known| selected(&known)))
        && !excluded
        && (entity.ports.is_empty() || has_ports && entity.ports.iter().any(is_port))
        && (entity.not_ports.is_empty() || has_ports && !entity.not_ports.iter().any(is_port))
}

/// An endpoint or network set that has an address.
struct Known<'a> {
    labels: Labels,
    ports: &'a [NamedPort],
}

fn known(set: &ResourceSet, address: IpAddr) -> Vec<Known<'_>> {
    let workloads = set.workloads.iter().filter(|workload| workload.addresses.contains(&address));
    let workloads = workloads.map(|workload| Known { labels: labels(set, workload), ports: &workload.ports });
    let hosts = set.host_endpoints.values().filter(|host| host.expected_ips.contains(&address));
    let hosts = hosts.map(|host| Known { labels: inherit(set, &host.labels, &host.profiles), ports: &host.ports });
    let network_sets = set.network_sets.iter().filter(|set| set.nets.iter().any(|net| net.contains(&address)));
    let network_sets = network_sets
        .map(|network_set| Known { labels: inherit(set, &network_set.labels, &network_set.profiles), ports: &[] });
    workloads.chain(hosts).chain(network_sets).collect()
}

fn profile<'a>(set: &'a ResourceSet, name: &str) -> Option<&'a Profile> {
    set.profiles.iter().find(|profile| profile.name == *name)
}

fn labels(set: &ResourceSet, workload: &WorkloadEndpoint) -> Labels {
    inherit(set, &workload.labels, &workload.profiles)
}

/// The own labels, and what the profiles add; the earlier one wins.
fn inherit(set: &ResourceSet, own: &Labels, names: &[String]) -> Labels {
    let mut labels = Labels::new();
    for profile in names.iter().rev().filter_map(|name| profile(set, name)) {
        labels.extend(profile.labels_to_apply.clone());
    }
    labels.extend(own.clone());
    labels
}
