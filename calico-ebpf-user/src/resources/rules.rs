//! Rules of policies and profiles.

use ipnet::IpNet;

use super::{
    annotations,
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    model::{DenyAction, EntityRule, PortMatch, Rule, RuleAction, SERVICE_ACCOUNT_LABEL, SERVICE_ACCOUNT_PREFIX},
    policy::workload_selector,
    selector::Selector,
    values,
    yaml::{Meaning, Node, Value},
};

const RULE: Table = &[
    ("action", Use::Read),
    ("ipVersion", Use::Read),
    ("protocol", Use::Read),
    ("notProtocol", Use::Read),
    ("icmp", Use::Read),
    ("notICMP", Use::Read),
    ("source", Use::Read),
    ("destination", Use::Read),
    ("http", Use::Refused("HTTP cannot be judged by packets: what this says would not be enforced; remove it")),
    ("metadata", Use::Read),
];
const METADATA: Table = &[("annotations", Use::Read)];
const ENTITY: Table = &[
    ("nets", Use::Read),
    ("notNets", Use::Read),
    ("selector", Use::Read),
    ("notSelector", Use::Read),
    ("namespaceSelector", Use::Read),
    ("ports", Use::Read),
    ("notPorts", Use::Read),
    ("serviceAccounts", Use::Read),
    (
        "services",
        Use::Refused("Kubernetes services are not known here: what this says would not be enforced; use a selector"),
    ),
    ("domains", Use::Refused("domain names are not resolved here: what this says would not be enforced; use nets")),
];
const ICMP: Table = &[("type", Use::Read), ("code", Use::Read)];
const SERVICE_ACCOUNTS: Table = &[("names", Use::Read), ("selector", Use::Read)];

const ACTIONS: [(&str, RuleAction); 4] =
    [("Allow", RuleAction::Allow), ("Deny", RuleAction::Deny), ("Log", RuleAction::Log), ("Pass", RuleAction::Pass)];
const ICMP_V4: u8 = 1;
const ICMP_V6: u8 = 58;

/// Reads a list of rules; no list is an empty one. Rules with errors are left out. `deny_action`: what becomes of what
/// they deny where they do not say so themselves.
pub(super) fn rules(
    decoder: &mut Decoder<'_>,
    node: Option<&Node>,
    path: &FieldPath<'_>,
    deny_action: Option<DenyAction>,
) -> Vec<Rule> {
    let Some(node) = node else {
        return Vec::new();
    };
    let items = decoder.list(node, path);
    items.iter().enumerate().filter_map(|(i, item)| rule(decoder, item, &path.index(i), deny_action)).collect()
}

fn rule(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>, deny_action: Option<DenyAction>) -> Option<Rule> {
    let fields = decoder.fields(node, path, RULE)?;
    let action = action(decoder, &fields, path);
    let ip_version = fields.get("ipVersion").and_then(|node| ip_version(decoder, node, &path.field("ipVersion")));
    let protocol = fields.get("protocol").and_then(|node| protocol(decoder, node, &path.field("protocol")));
    let not_protocol =
        fields.get("notProtocol").and_then(|node| self::protocol(decoder, node, &path.field("notProtocol")));
    let is_icmp = matches!(protocol, Some(ICMP_V4 | ICMP_V6));
    let icmp = icmp(decoder, &fields, path, "icmp", is_icmp);
    let not_icmp = self::icmp(decoder, &fields, path, "notICMP", is_icmp);
    // As Felix does; a family that contradicts is refused below.
    let implied_version = match protocol {
        Some(ICMP_V4) => Some(4),
        Some(ICMP_V6) => Some(6),
        _ => None,
    };
    let supported_ports = match protocol {
        Some(protocol) if values::has_ports(protocol) => Ports::Any,
        Some(_) => Ports::None,
        // A protocol that is wrong was told already.
        None if fields.get("protocol").is_some() => Ports::Any,
        None => Ports::Named,
    };
    let mut families = Families { seen: None, version: ip_version };
    let mut entity_of = |decoder: &mut Decoder<'_>, name: &str| {
        let path = path.field(name);
        match fields.get(name) {
            Some(node) => entity(decoder, node, &path, supported_ports, &mut families),
            None => Some(EntityRule::default()),
        }
    };
    let source = entity_of(decoder, "source");
    let destination = entity_of(decoder, "destination");
    // What is wrong with the action was told.
    let denies = action.is_none_or(|action| action == RuleAction::Deny);
    let mut own_deny_action = None;
    if let Some(node) = fields.get("metadata") {
        let path = path.field("metadata");
        if let Some(fields) = decoder.fields(node, &path, METADATA)
            && let Some(node) = fields.get("annotations")
        {
            own_deny_action = annotations::read(decoder, node, &path.field("annotations"), denies);
        }
    }
    if let (Some(version), Some(node)) = (ip_version, fields.get("ipVersion")) {
        let has = |number: u8| protocol == Some(number) || not_protocol == Some(number);
        let other = match version {
            6 if has(ICMP_V4) => Some(("ICMP", "ICMPv6")),
            4 if has(ICMP_V6) => Some(("ICMPv6", "ICMP")),
            _ => None,
        };
        if let Some((wrong, right)) = other {
            let message = format!("IPv{version} has no {wrong}: use the protocol {right}, or the other ipVersion");
            decoder.error(node, &path.field("ipVersion"), message);
        }
    }
    Some(Rule {
        action: action?,
        deny_action: own_deny_action.or(deny_action).filter(|_| denies),
        number: None,
        ip_version: ip_version.or(implied_version),
        protocol,
        not_protocol,
        icmp,
        not_icmp,
        source: source?,
        destination: destination?,
        origin: decoder.origin(node.at),
    })
}

fn action(decoder: &mut Decoder<'_>, fields: &Fields<'_>, path: &FieldPath<'_>) -> Option<RuleAction> {
    let path = path.field("action");
    let Some(node) = fields.get("action") else {
        decoder.missing(fields.at, &path, "missing: a rule needs an action, Allow or Deny for example");
        return None;
    };
    let text = decoder.text(node, &path)?;
    let Some((_, action)) = ACTIONS.iter().find(|(name, _)| *name == text) else {
        let right = match text {
            "Accept" | "accept" | "ACCEPT" => ": did you mean \"Allow\"?".to_owned(),
            "Drop" | "drop" | "DROP" | "Reject" | "reject" | "REJECT" => ": did you mean \"Deny\"?".to_owned(),
            _ => did_you_mean(text, ACTIONS.iter().map(|(name, _)| *name)),
        };
        decoder.error(node, &path, format!("unknown action \"{text}\"{right}"));
        return None;
    };
    Some(*action)
}

fn ip_version(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<u8> {
    let before = decoder.errors();
    match decoder.integer(node, path, 4..=6) {
        Some(version @ (4 | 6)) => Some(version),
        _ => {
            if decoder.errors() == before {
                decoder.error(node, path, "expected 4 or 6");
            }
            None
        }
    }
}

/// A protocol by name or number.
pub(super) fn protocol(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<u8> {
    if let Value::Scalar(scalar) = &node.value
        && let Meaning::Integer(_) = scalar.meaning()
    {
        return decoder.integer(node, path, 1..=255);
    }
    let text = decoder.text(node, path)?;
    values::protocol(text).map_err(|message| decoder.error(node, path, message)).ok()
}

fn icmp(
    decoder: &mut Decoder<'_>,
    fields: &Fields<'_>,
    path: &FieldPath<'_>,
    name: &str,
    is_icmp: bool,
) -> Option<(u8, Option<u8>)> {
    let node = fields.get(name)?;
    let path = path.field(name);
    if !is_icmp {
        decoder.missing(node.place(), &path, "needs protocol: ICMP or ICMPv6");
    }
    let fields = decoder.fields(node, &path, ICMP)?;
    let code = fields.get("code").and_then(|node| decoder.integer(node, &path.field("code"), 0..=255));
    let Some(kind) = fields.get("type") else {
        if let Some(node) = fields.get("code") {
            decoder.error(node, &path.field("code"), "a code needs a type beside it");
        }
        return None;
    };
    // Calico allows no more than 254: 255 stood for "any" in its old data model.
    let kind = decoder.integer(kind, &path.field("type"), 0..=254)?;
    Some((kind, code))
}

/// Which IP versions the networks of a rule have: all the same, and that of `ipVersion`.
struct Families {
    seen: Option<bool>,
    version: Option<u8>,
}

impl Families {
    /// What is wrong with one more network.
    fn add(&mut self, net: IpNet) -> Option<String> {
        let is_v4 = matches!(net, IpNet::V4(_));
        if *self.seen.get_or_insert(is_v4) != is_v4 {
            return Some("IPv4 and IPv6 networks in one rule: make two rules of it".to_owned());
        }
        match self.version {
            Some(version) if (version == 4) != is_v4 => Some(format!("{net} is not of ipVersion {version}")),
            _ => None,
        }
    }
}

/// Which ports a rule may speak of, by its protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ports {
    /// Without a protocol: the port of a name has its own.
    Named,
    Any,
    None,
}

fn entity(
    decoder: &mut Decoder<'_>,
    node: &Node,
    path: &FieldPath<'_>,
    supported_ports: Ports,
    families: &mut Families,
) -> Option<EntityRule> {
    let fields = decoder.fields(node, path, ENTITY)?;
    let rule = EntityRule {
        nets: nets(decoder, &fields, path, "nets", families),
        not_nets: nets(decoder, &fields, path, "notNets", families),
        selector: selector_of_peers(decoder, &fields, path),
        not_selector: optional_selector(decoder, &fields, path, "notSelector"),
        namespace_selector: namespace_selector(decoder, &fields, path),
        ports: ports(decoder, &fields, path, "ports", supported_ports),
        not_ports: ports(decoder, &fields, path, "notPorts", supported_ports),
    };
    Some(rule)
}

fn nets(
    decoder: &mut Decoder<'_>,
    fields: &Fields<'_>,
    path: &FieldPath<'_>,
    name: &str,
    families: &mut Families,
) -> Vec<IpNet> {
    let Some(node) = fields.get(name) else {
        return Vec::new();
    };
    let path = path.field(name);
    let mut nets = Vec::new();
    let mut told = false;
    for (i, item) in decoder.list(node, &path).iter().enumerate() {
        let path_of_item = path.index(i);
        let Some(text) = decoder.text(item, &path_of_item) else { continue };
        match values::network(text) {
            Ok(net) => {
                if name == "notNets" && net.prefix_len() == 0 {
                    let message = format!("{net} is everything: a rule that excepts it matches nothing");
                    decoder.error(item, &path_of_item, message);
                }
                if let Some(message) = families.add(net)
                    && !std::mem::replace(&mut told, true)
                {
                    decoder.error(item, &path, message);
                }
                nets.push(net);
            }
            Err(message) => decoder.error(item, &path_of_item, message),
        }
    }
    nets
}

/// `selector` and `serviceAccounts` in one (`getEndpointSelector` of libcalico-go).
fn selector_of_peers(decoder: &mut Decoder<'_>, fields: &Fields<'_>, path: &FieldPath<'_>) -> Option<Selector> {
    let own = optional_selector(decoder, fields, path, "selector");
    let accounts =
        fields.get("serviceAccounts").and_then(|node| service_accounts(decoder, node, &path.field("serviceAccounts")));
    Selector::all_of(accounts.into_iter().chain(own))
}

/// An empty selector is like none: any peer, not any known endpoint (`EntityRule.Selector` of Calico's API).
fn optional_selector(
    decoder: &mut Decoder<'_>,
    fields: &Fields<'_>,
    path: &FieldPath<'_>,
    name: &str,
) -> Option<Selector> {
    let node = fields.get(name)?;
    let path = path.field(name);
    if is_empty_text(node) {
        return None;
    }
    workload_selector(decoder, node, &path)
}

fn namespace_selector(decoder: &mut Decoder<'_>, fields: &Fields<'_>, path: &FieldPath<'_>) -> Option<Selector> {
    let node = fields.get("namespaceSelector")?;
    let path = path.field("namespaceSelector");
    if is_empty_text(node) {
        return None;
    }
    let selector = decoder.selector(node, &path)?;
    // Calico counts the words: not even parentheses may be around it.
    let is_alone = decoder.text(node, &path).is_some_and(|text| text.split_whitespace().eq(["global()"]));
    if selector.mentions_global() && !is_alone {
        decoder.error(node, &path, "global() cannot be combined with anything: it means what has no namespace");
        return None;
    }
    Some(selector)
}

pub(super) fn is_empty_text(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar(scalar) if scalar.meaning() == Meaning::Text(""))
}

fn ports(
    decoder: &mut Decoder<'_>,
    fields: &Fields<'_>,
    path: &FieldPath<'_>,
    name: &str,
    supported: Ports,
) -> Vec<PortMatch> {
    let Some(node) = fields.get(name) else {
        return Vec::new();
    };
    let path = path.field(name);
    let items = decoder.list(node, &path);
    let ports: Vec<_> = items.iter().enumerate().filter_map(|(i, item)| port(decoder, item, &path.index(i))).collect();
    let has_number = ports.iter().any(|port| matches!(port, PortMatch::Range(..)));
    if supported == Ports::None && !items.is_empty() || supported == Ports::Named && has_number {
        decoder.missing(node.place(), &path, "ports need protocol: TCP, UDP or SCTP in the same rule");
    }
    ports
}

fn port(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<PortMatch> {
    if let Value::Scalar(scalar) = &node.value
        && let Meaning::Integer(_) | Meaning::Float(_) | Meaning::Bool(_) = scalar.meaning()
    {
        return decoder.integer(node, path, 1..=65535).map(|port| PortMatch::Range(port, port));
    }
    let text = decoder.text(node, path)?;
    match values::port(text) {
        Ok(port) => Some(port),
        Err(message) => {
            decoder.error(node, path, message);
            None
        }
    }
}

/// What `serviceAccounts` demands of the labels of a peer; `None` if it demands nothing.
fn service_accounts(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<Selector> {
    let fields = decoder.fields(node, path, SERVICE_ACCOUNTS)?;
    let selector = optional_selector(decoder, &fields, path, "selector");
    let mut names = Vec::new();
    if let Some(node) = fields.get("names") {
        let path = path.field("names");
        for (i, item) in decoder.list(node, &path).iter().enumerate() {
            let path = path.index(i);
            let Some(name) = decoder.text(item, &path) else { continue };
            match values::resource_name(name) {
                Ok(()) => names.push(name.to_owned()),
                Err(message) => decoder.error(item, &path, message),
            }
        }
    }
    let of_labels = selector.map(|selector| selector.with_prefix(SERVICE_ACCOUNT_PREFIX));
    let by_name = (!names.is_empty()).then(|| Selector::one_of(SERVICE_ACCOUNT_LABEL, names));
    Selector::all_of(of_labels.into_iter().chain(by_name))
}
