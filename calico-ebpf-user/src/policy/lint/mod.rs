//! What is legal and surely not meant, found with what the compiler knows about the resources of all nodes.
//!
//! "Never" and "nothing" are about the files at hand: a selector that matches nothing may be meant for workloads to come.
//! Where there are no workloads at all, nothing is said.

mod bits;
mod reach;

use std::collections::{BTreeSet, HashMap, HashSet};

use self::reach::{Reach, Unreachable};
use super::{
    compile::compile,
    compiled::{Direction, Reason, RuleName},
    endpoints::Endpoints,
    expand::effective_selector,
    staged,
};
use crate::resources::{
    Remark,
    model::{
        EntityRule, NamedPort, Origin, Policy, PolicyHook, PolicyKind, PortMatch, Profile, ResourceSet, Rule,
        RuleAction,
    },
    selector::Selector,
};

/// How many deciding rules a remark names.
const LISTED: usize = 3;

/// What is worth a warning.
#[must_use]
pub fn lint(set: &ResourceSet) -> Vec<Remark> {
    if set.workloads.is_empty() {
        return Vec::new();
    }
    let mut remarks = remarks(set, |kind| kind.enforced() == kind);
    if staged::matters(set) {
        // Each among the others that would then be in force.
        remarks.extend(self::remarks(&set.with_staged_applied(), |kind| kind.enforced() != kind));
    }
    remarks
}

/// About the policies of certain kinds, and about profiles if enforced policies are among them.
fn remarks(set: &ResourceSet, wanted: fn(PolicyKind) -> bool) -> Vec<Remark> {
    let everywhere = on_one_node(set);
    let profiles: HashMap<_, _> = set.profiles.iter().map(|profile| (profile.name.as_str(), profile)).collect();
    let endpoints = Endpoints::new(set, &profiles);
    let mut linter = Linter {
        known: Known::new(set, &endpoints),
        endpoints,
        reach: reach::reach(&compile(&everywhere, "")),
        remarks: Vec::new(),
    };
    for policy in set.policies.iter().filter(|policy| policy.judges_workloads() && wanted(policy.kind)) {
        linter.policy(policy);
    }
    if !wanted(PolicyKind::Global) {
        return linter.remarks;
    }
    let used: HashSet<&str> =
        set.workloads.iter().flat_map(|workload| &workload.profiles).map(String::as_str).collect();
    for profile in set.profiles.iter().filter(|profile| used.contains(profile.name.as_str())) {
        linter.profile(profile);
    }
    linter.remarks
}

/// The set as if all workloads ran on the node without a name.
fn on_one_node(set: &ResourceSet) -> ResourceSet {
    let mut set = set.clone();
    set.workloads.iter_mut().for_each(|workload| workload.node.clear());
    set
}

/// What there is for selectors and names of ports to match.
struct Known {
    /// Groups of labels that a workload of a namespace has.
    workloads: HashMap<u32, BTreeSet<String>>,
    /// Groups of labels that a host endpoint has.
    hosts: HashSet<u32>,
    /// Groups of labels of whatever has an address.
    with_address: HashSet<u32>,
    /// Named ports: protocols by name.
    ports: HashMap<String, BTreeSet<u8>>,
}

impl Known {
    fn new(set: &ResourceSet, endpoints: &Endpoints) -> Self {
        let mut known = Self {
            workloads: HashMap::new(),
            hosts: HashSet::new(),
            with_address: HashSet::new(),
            ports: HashMap::new(),
        };
        for (index, workload) in set.workloads.iter().enumerate() {
            let group = endpoints.of_workload(index);
            let namespaces = known.workloads.entry(group).or_default();
            if !namespaces.contains(&workload.namespace) {
                namespaces.insert(workload.namespace.clone());
            }
            if !workload.addresses.is_empty() {
                known.with_address.insert(group);
            }
            known.add_ports(&workload.ports);
        }
        for (host, group) in endpoints.host_endpoints() {
            known.hosts.insert(*group);
            if !host.expected_ips.is_empty() {
                known.with_address.insert(*group);
            }
            known.add_ports(&host.ports);
        }
        for (index, set) in set.network_sets.iter().enumerate() {
            if !set.nets.is_empty() {
                known.with_address.insert(endpoints.of_network_set(index));
            }
        }
        known
    }

    fn add_ports(&mut self, ports: &[NamedPort]) {
        for port in ports {
            match self.ports.get_mut(&port.name) {
                Some(protocols) => drop(protocols.insert(port.protocol)),
                None => drop(self.ports.insert(port.name.clone(), [port.protocol].into())),
            }
        }
    }
}

/// The list of rules that a rule stands in.
struct List<'a> {
    direction: Direction,
    /// `Kind/name` or `Kind/namespace/name`.
    resource: String,
    origin: &'a Origin,
    namespace: Option<&'a str>,
    /// What the rules are called where they decide, but for the number.
    name: RuleName,
    /// Whether Kubernetes' fields are in the file.
    is_kubernetes: bool,
}

struct Linter {
    known: Known,
    endpoints: Endpoints,
    reach: Reach,
    remarks: Vec<Remark>,
}

impl Linter {
    fn policy(&mut self, policy: &Policy) {
        let kind = policy.kind.as_str();
        // Kubernetes' are known to users by their own names.
        let name = match policy.kind.enforced() {
            PolicyKind::Kubernetes => policy.name.strip_prefix("knp.default.").unwrap_or(&policy.name),
            _ => &policy.name,
        };
        let resource = match &policy.namespace {
            Some(namespace) => format!("{kind}/{namespace}/{name}"),
            None => format!("{kind}/{name}"),
        };
        if !self.selects_workloads(policy) {
            // One of host endpoints has an effect, and one that also judges what hosts forward may be for some to come.
            if policy.hook == PolicyHook::Normal && !self.selects_host_endpoints(policy) {
                let message = match &policy.namespace {
                    Some(namespace) => format!("selects no workload: none of namespace {namespace} has such labels"),
                    None => "selects no workload: none in these files has such labels".to_owned(),
                };
                let fields = ["selector", "podSelector", "namespaceSelector", "serviceAccountSelector"];
                self.remark(&resource, &policy.origin, fields.map(|field| format!("spec.{field}")), message);
            }
            return;
        }
        for (direction, rules, applies, missing) in [
            (Direction::Ingress, &policy.ingress, policy.applies_ingress, "Ingress"),
            (Direction::Egress, &policy.egress, policy.applies_egress, "Egress"),
        ] {
            if !applies && !rules.is_empty() {
                let field = format!("spec.{}", direction.as_str());
                let message = format!("these rules are not in force: {missing} is not among the policy's types");
                self.remark(&resource, &policy.origin, [field], message);
            }
            if applies {
                let name = RuleName {
                    direction,
                    reason: Reason::Rule,
                    tier: Some(policy.tier.clone()),
                    kind: Some(kind.to_owned()),
                    namespace: policy.namespace.clone(),
                    policy: Some(policy.name.clone()),
                    rule: None,
                };
                let list = List {
                    direction,
                    resource: resource.clone(),
                    origin: &policy.origin,
                    namespace: policy.namespace.as_deref(),
                    name,
                    is_kubernetes: policy.kind.enforced() == PolicyKind::Kubernetes,
                };
                self.rules(&list, rules);
            }
        }
    }

    fn selects_workloads(&self, policy: &Policy) -> bool {
        self.endpoints
            .select(&policy.selector)
            .iter()
            .filter_map(|group| self.known.workloads.get(group))
            .any(|namespaces| policy.namespace.as_ref().is_none_or(|namespace| namespaces.contains(namespace)))
    }

    fn selects_host_endpoints(&self, policy: &Policy) -> bool {
        policy.namespace.is_none()
            && self.endpoints.select(&policy.selector).iter().any(|group| self.known.hosts.contains(group))
    }

    fn profile(&mut self, profile: &Profile) {
        let Some(origin) = &profile.origin else { return };
        for (direction, rules) in [(Direction::Ingress, &profile.ingress), (Direction::Egress, &profile.egress)] {
            let name = RuleName::of_profile(&profile.name, direction);
            let resource = format!("Profile/{}", profile.name);
            let list = List { direction, resource, origin, namespace: None, name, is_kubernetes: false };
            self.rules(&list, rules);
        }
    }

    fn rules(&mut self, list: &List<'_>, rules: &[Rule]) {
        // Of one rule of Kubernetes' there may be several.
        let mut last = None;
        for (index, rule) in (0..).zip(rules) {
            let number = rule.number.unwrap_or(index);
            let explained = !list.is_kubernetes && self.conditions(list, number, rule);
            if !explained && last.replace(number) != Some(number) {
                self.reachability(list, number, rule);
            }
        }
    }

    /// Looks at selectors and named ports; tells whether one of them is why the rule matches nothing.
    fn conditions(&mut self, list: &List<'_>, number: u32, rule: &Rule) -> bool {
        let mut explained = false;
        for (end, entity) in [("source", &rule.source), ("destination", &rule.destination)] {
            let path = format!("spec.{}[{number}].{end}", list.direction.as_str());
            let is_asked = entity.selector.is_some() || entity.namespace_selector.is_some();
            if is_asked && effective_selector(entity, list.namespace).is_some_and(|s| !self.matches(&s)) {
                explained = true;
                let message = format!("matches nothing: {}", nobody(entity, list.namespace));
                let fields = ["selector", "serviceAccounts", "namespaceSelector"];
                self.remark(&list.resource, list.origin, fields.map(|field| format!("{path}.{field}")), message);
            }
            if entity.not_selector.as_ref().is_some_and(|selector| !self.matches(selector)) {
                let message = "excepts nothing: no workload with an address and no network set has such labels";
                self.remark(&list.resource, list.origin, [format!("{path}.notSelector")], message.to_owned());
            }
            let not_known = |port: &PortMatch| match port {
                PortMatch::Named(name) => self.unknown_port(name, rule.protocol),
                PortMatch::Range(..) => None,
            };
            let mut remarks = Vec::new();
            for (field, ports) in [("ports", &entity.ports), ("notPorts", &entity.not_ports)] {
                let found = ports.iter().map(not_known).enumerate().filter_map(|(i, m)| Some((i, m?)));
                let found: Vec<_> = found.collect();
                explained |= field == "ports" && !ports.is_empty() && found.len() == ports.len();
                remarks.extend(found.into_iter().map(|(i, message)| (format!("{path}.{field}[{i}]"), message)));
            }
            for (field, message) in remarks {
                self.remark(&list.resource, list.origin, [field], message);
            }
        }
        explained
    }

    /// Whether any address belongs to what the selector means.
    fn matches(&self, selector: &Selector) -> bool {
        self.endpoints.select(selector).iter().any(|group| self.known.with_address.contains(group))
    }

    /// What to say about a named port that nobody has.
    fn unknown_port(&self, name: &str, protocol: Option<u8>) -> Option<String> {
        match (self.known.ports.get(name), protocol) {
            (None, _) => Some(format!("no workload has a port named \"{name}\"")),
            (Some(protocols), Some(protocol)) if !protocols.contains(&protocol) => {
                Some(format!("no workload has a port named \"{name}\" of this protocol, only of another one"))
            }
            _ => None,
        }
    }

    fn reachability(&mut self, list: &List<'_>, number: u32, rule: &Rule) {
        let name = RuleName { rule: Some(number), ..list.name.clone() };
        let message = match self.reach.unreachable.get(&name) {
            Some(Unreachable { by, .. }) if !by.is_empty() => {
                let what = if rule.action == RuleAction::Log { "logs" } else { "decides" };
                format!("never {what} anything: all that it matches is decided before it, by {}", listed(by, list))
            }
            Some(Unreachable { no_own: true, .. }) => {
                let (end, policy) = match list.direction {
                    Direction::Ingress => ("destination", list.name.reason == Reason::Rule),
                    Direction::Egress => ("source", list.name.reason == Reason::Rule),
                };
                let whose = if policy { "that the policy selects" } else { "with this profile" };
                format!("never matches: its {end} is none of the workloads {whose}")
            }
            Some(_) => "never matches: no address is all that is asked of it".to_owned(),
            // What stands in no table although its list does was found to contradict itself.
            None if !self.reach.standing.contains(&name) => {
                "never matches: its conditions exclude each other".to_owned()
            }
            None => return,
        };
        let field = format!("spec.{}[{number}]", list.direction.as_str());
        self.remark(&list.resource, list.origin, [field], message);
    }

    /// `fields`: the first of them that is in the file is meant.
    fn remark<const N: usize>(&mut self, resource: &str, origin: &Origin, fields: [String; N], message: String) {
        let (resource, origin, fields) = (resource.to_owned(), origin.clone(), fields.into());
        self.remarks.push(Remark { resource, origin, fields, message });
    }
}

/// Who a selector could have meant.
fn nobody(entity: &EntityRule, namespace: Option<&str>) -> String {
    let of = match (&entity.namespace_selector, namespace) {
        (Some(_), _) => " of the namespaces meant",
        (None, Some(_)) => " of the policy's namespace",
        (None, None) => "",
    };
    format!("no workload with an address and no network set{of} has such labels")
}

/// What decides, in words.
fn listed(by: &BTreeSet<std::sync::Arc<RuleName>>, list: &List<'_>) -> String {
    let show = |name: &RuleName| {
        let (Some(kind), Some(policy), Some(rule)) = (&name.kind, &name.policy, name.rule) else {
            return format!("the end of tier {}", name.tier.as_deref().unwrap_or_default());
        };
        let field = format!("spec.{}[{rule}]", name.direction.as_str());
        if (name.policy.as_ref(), name.namespace.as_deref(), name.kind.as_ref())
            == (list.name.policy.as_ref(), list.namespace, list.name.kind.as_ref())
        {
            return field;
        }
        match &name.namespace {
            Some(namespace) => format!("{field} of {kind}/{namespace}/{policy}"),
            None => format!("{field} of {kind}/{policy}"),
        }
    };
    let mut texts: Vec<_> = by.iter().take(LISTED).map(|name| show(name)).collect();
    if by.len() > LISTED {
        texts.push(format!("{} more", by.len() - LISTED));
    }
    match texts.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}
