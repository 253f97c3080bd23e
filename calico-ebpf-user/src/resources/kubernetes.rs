//! `NetworkPolicy` of Kubernetes and its staged form, as the policy that Calico makes of them
//! (`K8sNetworkPolicyToCalico` of libcalico-go).
//!
//! Validation is that of the Kubernetes API server, with the defaults that it fills in.

use std::collections::BTreeMap;

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    kinds::Document,
    model::{EntityRule, ORCHESTRATOR_LABEL, Policy, PolicyHook, PolicyKind, PortMatch, Rule, RuleAction},
    parsed::{Body, ParsedPolicy},
    policy::{self, DEFAULT_TIER},
    selector::{Expression, Selector},
    values,
    yaml::{Meaning, Node, Value},
};

const STAGED_SPEC: Table = &[
    ("stagedAction", Use::Read),
    ("podSelector", Use::Read),
    ("policyTypes", Use::Read),
    ("ingress", Use::Read),
    ("egress", Use::Read),
];
const SPEC: Table = policy::enforced(STAGED_SPEC);
const INGRESS: Table = &[("from", Use::Read), ("ports", Use::Read)];
const EGRESS: Table = &[("to", Use::Read), ("ports", Use::Read)];
const PEER: Table = &[("podSelector", Use::Read), ("namespaceSelector", Use::Read), ("ipBlock", Use::Read)];
const IP_BLOCK: Table = &[("cidr", Use::Read), ("except", Use::Read)];
const PORT: Table = &[("protocol", Use::Read), ("port", Use::Read), ("endPort", Use::Read)];
const LABEL_SELECTOR: Table = &[("matchLabels", Use::Read), ("matchExpressions", Use::Read)];
const REQUIREMENT: Table = &[("key", Use::Read), ("operator", Use::Read), ("values", Use::Read)];
const OPERATORS: [&str; 4] = ["In", "NotIn", "Exists", "DoesNotExist"];
const PROTOCOLS: [(&str, u8); 3] = [("TCP", 6), ("UDP", 17), ("SCTP", 132)];
const TYPES: [&str; 2] = ["Ingress", "Egress"];

/// Where Calico puts the policies of Kubernetes among those of the tier `default`.
const ORDER: f64 = 1000.0;
const TCP: u8 = 6;

/// Reads a `NetworkPolicy` of Kubernetes.
pub(super) fn network_policy(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::Kubernetes, SPEC)
}

/// Reads a `StagedKubernetesNetworkPolicy`.
pub(super) fn staged(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::StagedKubernetes, STAGED_SPEC)
}

/// The name of the policy that Calico makes of one of Kubernetes.
pub(super) fn policy_name(name: &str) -> String {
    format!("knp.default.{name}")
}

fn read(decoder: &mut Decoder<'_>, document: &Document<'_>, kind: PolicyKind, table: Table) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, table)?,
        None => Fields::none(document.at),
    };
    let staged = (kind != kind.enforced()).then(|| policy::staged_action(decoder, &spec, &path, &[]));
    let pods = match spec.get("podSelector") {
        Some(node) => label_selector(decoder, node, &path.field("podSelector"))?,
        None => Vec::new(),
    };
    let types = types(decoder, &spec, &path);
    let ingress = rules(decoder, &spec, &path, "ingress");
    let egress = rules(decoder, &spec, &path, "egress");
    let (applies_ingress, applies_egress) = types.unwrap_or((true, !egress.is_empty()));
    let policy = Policy {
        kind,
        namespace: document.metadata.namespace.clone(),
        name: policy_name(document.metadata.name.as_deref()?),
        tier: DEFAULT_TIER.to_owned(),
        order: Some(ORDER),
        selector: of_pods(pods),
        applies_ingress,
        applies_egress,
        ingress,
        egress,
        hook: PolicyHook::Normal,
        origin: decoder.origin(document.metadata.name_at),
    };
    Some(Body::Policy(Box::new(ParsedPolicy {
        policy: policy.into(),
        staged,
        tier_at: document.metadata.name_at,
        hook_at: None,
    })))
}

/// Whether ingress and egress are in `policyTypes`; `None` for an empty list, which is like none.
fn types(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> Option<(bool, bool)> {
    let node = spec.get("policyTypes")?;
    let path = path.field("policyTypes");
    let (mut ingress, mut egress) = (false, false);
    let items = decoder.list(node, &path);
    // `ValidateNetworkPolicySpec` of Kubernetes: twice the same one is two.
    if items.len() > TYPES.len() {
        decoder.error(node, &path, "more than two types: write each once at most");
    }
    for (i, item) in items.iter().enumerate() {
        let path = path.index(i);
        match decoder.text(item, &path) {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            Some(text) => {
                let right = did_you_mean(text, TYPES.into_iter());
                decoder.error(item, &path, format!("unknown type \"{text}\"{right}"));
            }
            None => {}
        }
    }
    (ingress || egress).then_some((ingress, egress))
}

/// The rules of one direction: for each of Kubernetes one for each protocol and peer.
fn rules(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>, name: &str) -> Vec<Rule> {
    let Some(node) = spec.get(name) else { return Vec::new() };
    let path = path.field(name);
    let (table, peers_name) = if name == "ingress" { (INGRESS, "from") } else { (EGRESS, "to") };
    let mut rules = Vec::new();
    for (number, item) in (0_u32..).zip(decoder.list(node, &path)) {
        let path = path.index(number as usize);
        let Some(fields) = decoder.fields(item, &path, table) else { continue };
        let ports = ports(decoder, &fields, &path);
        let peers = peers(decoder, &fields, &path, peers_name);
        let origin = decoder.origin(item.at);
        for (protocol, ports) in &ports {
            for peer in &peers {
                let (mut source, mut destination) = (EntityRule::default(), EntityRule::default());
                let end = if name == "ingress" { &mut source } else { &mut destination };
                *end = peer.clone();
                destination.ports.clone_from(ports);
                rules.push(Rule {
                    action: RuleAction::Allow,
                    deny_action: None,
                    number: Some(number),
                    ip_version: None,
                    protocol: *protocol,
                    not_protocol: None,
                    icmp: None,
                    not_icmp: None,
                    source,
                    destination,
                    origin: origin.clone(),
                });
            }
        }
    }
    rules
}

/// Ports by protocol; no port at all means all of them, of a protocol or (without one) of any.
fn ports(decoder: &mut Decoder<'_>, rule: &Fields<'_>, path: &FieldPath<'_>) -> BTreeMap<Option<u8>, Vec<PortMatch>> {
    let any = || BTreeMap::from([(None, Vec::new())]);
    let Some(node) = rule.get("ports") else { return any() };
    let path = path.field("ports");
    let items = decoder.list(node, &path);
    if items.is_empty() {
        return any();
    }
    // `None`: all ports.
    let mut ports: BTreeMap<u8, Option<Vec<PortMatch>>> = BTreeMap::new();
    for (i, item) in items.iter().enumerate() {
        let Some((protocol, port)) = port(decoder, item, &path.index(i)) else { continue };
        match (port, ports.entry(protocol).or_insert_with(|| Some(Vec::new()))) {
            (None, all) => *all = None,
            (Some(port), Some(list)) => list.push(port),
            (Some(_), None) => {}
        }
    }
    ports.into_iter().map(|(protocol, ports)| (Some(protocol), ports.unwrap_or_default())).collect()
}

fn port(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<(u8, Option<PortMatch>)> {
    let fields = decoder.fields(node, path, PORT)?;
    let protocol = match fields.get("protocol") {
        Some(node) => {
            let path = path.field("protocol");
            let text = decoder.text(node, &path)?;
            let Some((_, protocol)) = PROTOCOLS.into_iter().find(|(name, _)| *name == text) else {
                let right = did_you_mean(text, PROTOCOLS.iter().map(|(name, _)| *name));
                decoder.error(node, &path, format!("\"{text}\" is not possible in a policy of Kubernetes{right}"));
                return None;
            };
            protocol
        }
        None => TCP,
    };
    let first = match fields.get("port") {
        Some(node) => Some(port_number_or_name(decoder, node, &path.field("port"))?),
        None => None,
    };
    let Some(end_node) = fields.get("endPort") else { return Some((protocol, first)) };
    let path = path.field("endPort");
    let last = decoder.integer(end_node, &path, 1..=65535)?;
    let problem = match first {
        Some(PortMatch::Range(first, _)) if last >= first => {
            return Some((protocol, Some(PortMatch::Range(first, last))));
        }
        Some(PortMatch::Range(first, _)) => format!("the range ends before it begins: at least {first} is needed"),
        Some(PortMatch::Named(name)) => format!("\"{name}\" is a name: a range of ports begins with a number"),
        None => "needs a port that the range begins with".to_owned(),
    };
    decoder.error(end_node, &path, problem);
    None
}

/// A number, or a name: a number in quotes is a name, and not a good one.
fn port_number_or_name(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<PortMatch> {
    if let Value::Scalar(scalar) = &node.value
        && let Meaning::Integer(_) = scalar.meaning()
    {
        return decoder.integer(node, path, 1..=65535).map(|port| PortMatch::Range(port, port));
    }
    let text = decoder.text(node, path)?;
    match values::port_name(text) {
        Ok(()) => Some(PortMatch::Named(text.to_owned())),
        Err(message) => {
            let hint = match text.parse::<u16>() {
                Ok(1..) => format!(": write {text} without quotes"),
                _ => String::new(),
            };
            decoder.error(node, path, message + &hint);
            None
        }
    }
}

/// The peers; none at all means everybody.
fn peers(decoder: &mut Decoder<'_>, rule: &Fields<'_>, path: &FieldPath<'_>, name: &str) -> Vec<EntityRule> {
    let Some(node) = rule.get(name) else { return vec![EntityRule::default()] };
    let path = path.field(name);
    let items = decoder.list(node, &path);
    if items.is_empty() {
        return vec![EntityRule::default()];
    }
    items.iter().enumerate().filter_map(|(i, item)| peer(decoder, item, &path.index(i))).collect()
}

fn peer(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<EntityRule> {
    let fields = decoder.fields(node, path, PEER)?;
    let (pods, namespaces) = (fields.get("podSelector"), fields.get("namespaceSelector"));
    if let Some(block) = fields.get("ipBlock") {
        if pods.is_some() || namespaces.is_some() {
            decoder.missing(node.place(), path, "ipBlock excludes selectors: make two peers of them");
            return None;
        }
        return ip_block(decoder, block, &path.field("ipBlock"));
    }
    if pods.is_none() && namespaces.is_none() {
        decoder.missing(node.place(), path, "a peer is a podSelector, a namespaceSelector, both, or an ipBlock");
        return None;
    }
    let requirements = match pods {
        Some(node) => label_selector(decoder, node, &path.field("podSelector"))?,
        None => Vec::new(),
    };
    let namespace_selector = match namespaces {
        Some(node) => {
            let requirements = label_selector(decoder, node, &path.field("namespaceSelector"))?;
            Some(all_of(requirements).unwrap_or_else(Selector::all))
        }
        None => None,
    };
    Some(EntityRule { selector: Some(of_pods(requirements)), namespace_selector, ..EntityRule::default() })
}

fn ip_block(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<EntityRule> {
    let fields = decoder.fields(node, path, IP_BLOCK)?;
    let net = |decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>| {
        let text = decoder.text(node, path)?;
        match values::any_network(text) {
            Ok((_, net)) if text.contains('/') => Some(net.trunc()),
            Ok((ip, net)) => {
                decoder.error(node, path, format!("not a network: write {ip}/{}", net.max_prefix_len()));
                None
            }
            Err(message) => {
                decoder.error(node, path, message);
                None
            }
        }
    };
    let cidr_path = path.field("cidr");
    let Some(node) = fields.get("cidr") else {
        decoder.missing(fields.at, &cidr_path, "missing: the network, like 10.0.0.0/8");
        return None;
    };
    let cidr = net(decoder, node, &cidr_path);
    let mut not_nets = Vec::new();
    let except_path = path.field("except");
    for (i, item) in fields.get("except").map_or(&[][..], |node| decoder.list(node, &except_path)).iter().enumerate() {
        let path = except_path.index(i);
        let Some(except) = net(decoder, item, &path) else { continue };
        if let Some(cidr) = cidr
            && (!cidr.contains(&except) || cidr == except)
        {
            decoder.error(item, &path, format!("not a part of {cidr}: what is excepted lies within the network"));
        }
        not_nets.push(except);
    }
    Some(EntityRule { nets: vec![cidr?], not_nets, ..EntityRule::default() })
}

/// What a label selector demands; nothing for an empty one.
fn label_selector(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<Vec<Expression>> {
    let fields = decoder.fields(node, path, LABEL_SELECTOR)?;
    let mut requirements = Vec::new();
    if let Some(node) = fields.get("matchLabels") {
        let labels = decoder.labels(node, &path.field("matchLabels"));
        requirements.extend(labels.into_iter().map(|(key, value)| Expression::Equal(key, value)));
    }
    if let Some(node) = fields.get("matchExpressions") {
        let path = path.field("matchExpressions");
        for (i, item) in decoder.list(node, &path).iter().enumerate() {
            requirements.extend(requirement(decoder, item, &path.index(i)));
        }
    }
    Some(requirements)
}

fn requirement(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<Expression> {
    let fields = decoder.fields(node, path, REQUIREMENT)?;
    let mut required = |name: &str| {
        let path = path.field(name);
        let Some(node) = fields.get(name) else {
            decoder.missing(fields.at, &path, "missing: a requirement has a key and an operator");
            return None;
        };
        decoder.text(node, &path)
    };
    let (key, operator) = (required("key"), required("operator"));
    if let (Some(key), Some(node)) = (key, fields.get("key"))
        && let Err(message) = values::qualified_name(key)
    {
        decoder.error(node, &path.field("key"), format!("not the name of a label: {message}"));
    }
    let values_path = path.field("values");
    let mut wanted = Vec::new();
    for (i, item) in fields.get("values").map_or(&[][..], |node| decoder.list(node, &values_path)).iter().enumerate() {
        let path = values_path.index(i);
        let Some(text) = decoder.text(item, &path) else { continue };
        if let Err(message) = values::label_value(text) {
            decoder.error(item, &path, format!("not the value of a label: {message}"));
        }
        wanted.push(text.to_owned());
    }
    let (key, operator) = (key?.to_owned(), operator?);
    let operator_path = path.field("operator");
    let operator_node = fields.get("operator")?;
    let wants_values = match operator {
        "In" | "NotIn" => true,
        "Exists" | "DoesNotExist" => false,
        _ => {
            let right = did_you_mean(operator, OPERATORS.into_iter());
            decoder.error(operator_node, &operator_path, format!("unknown operator \"{operator}\"{right}"));
            return None;
        }
    };
    if wants_values == wanted.is_empty() {
        let at = fields.get("values").map_or(fields.at, Node::place);
        let message = if wants_values { "needs at least one value" } else { "allows no values: remove them" };
        decoder.missing(at, &values_path, format!("the operator {operator} {message}"));
        return None;
    }
    wanted.sort_unstable();
    wanted.dedup();
    Some(match operator {
        "In" => Expression::In(key, wanted),
        "NotIn" => Expression::NotIn(key, wanted),
        "Exists" => Expression::Has(key),
        _ => Expression::Not(Box::new(Expression::Has(key))),
    })
}

/// Pods of Kubernetes with such labels.
fn of_pods(requirements: Vec<Expression>) -> Selector {
    let pod = Expression::Equal(ORCHESTRATOR_LABEL.to_owned(), "k8s".to_owned());
    if requirements.is_empty() {
        return Selector::from(pod);
    }
    Selector::from(Expression::And([pod].into_iter().chain(requirements).collect()))
}

fn all_of(mut requirements: Vec<Expression>) -> Option<Selector> {
    if requirements.len() < 2 {
        return requirements.pop().map(Selector::from);
    }
    Some(Selector::from(Expression::And(requirements)))
}
