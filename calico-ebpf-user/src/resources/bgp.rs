//! `BGPConfiguration`, `BGPPeer` and `BGPFilter`: what `bgp config` makes a routing daemon's configuration of.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    diagnostic::Severity,
    kinds::Document,
    model::{
        BgpConfiguration, BgpFilter, BgpFilterRule, BgpNextHop, BgpOperation, BgpPeer, BgpPeerAt, Community,
        PrefixAdvertisement, PrefixMatch,
    },
    node::as_number,
    parsed::Body,
    policy::workload_selector,
    selector::Selector,
    values,
    yaml::{self, Node},
};

const PASSWORDS: &str =
    "passwords are in secrets, which cannot be read here: set it in the routing daemon's configuration";
const SERVICES: &str = "addresses of services are not announced here";
const CONFIGURATION: Table = &[
    ("asNumber", Use::Read),
    ("nodeToNodeMeshEnabled", Use::Read),
    ("listenPort", Use::Read),
    ("communities", Use::Read),
    ("prefixAdvertisements", Use::Read),
    ("nodeMeshMaxRestartTime", Use::Read),
    ("nodeMeshPassword", Use::Unsupported(PASSWORDS)),
    ("serviceLoadBalancerIPs", Use::Unsupported(SERVICES)),
    ("serviceExternalIPs", Use::Unsupported(SERVICES)),
    ("serviceClusterIPs", Use::Unsupported(SERVICES)),
    ("localWorkloadPeeringIPV4", Use::Unsupported("BGP with local workloads is not supported")),
    ("localWorkloadPeeringIPV6", Use::Unsupported("BGP with local workloads is not supported")),
    ("serviceLoadBalancerAggregation", Use::NoEffect),
    ("logSeverityScreen", Use::NoEffect),
    ("bindMode", Use::NoEffect),
    ("ignoredInterfaces", Use::NoEffect),
    ("programClusterRoutes", Use::NoEffect),
    ("ipv4NormalRoutePriority", Use::NoEffect),
    ("ipv6NormalRoutePriority", Use::NoEffect),
];
const COMMUNITY: Table = &[("name", Use::Read), ("value", Use::Read)];
const ADVERTISEMENT: Table = &[("cidr", Use::Read), ("communities", Use::Read)];
const PEER: Table = &[
    ("node", Use::Read),
    ("nodeSelector", Use::Read),
    ("peerIP", Use::Read),
    ("asNumber", Use::Read),
    ("peerSelector", Use::Read),
    ("keepOriginalNextHop", Use::Read),
    ("nextHopMode", Use::Read),
    ("sourceAddress", Use::Read),
    ("maxRestartTime", Use::Read),
    ("numAllowedLocalASNumbers", Use::Read),
    ("ttlSecurity", Use::Read),
    ("filters", Use::Read),
    ("password", Use::Unsupported(PASSWORDS)),
    ("localWorkloadSelector", Use::Unsupported("BGP with local workloads is not supported")),
    ("localASNumber", Use::Unsupported("another AS number towards one peer is not supported")),
    ("reachableBy", Use::Unsupported("no route to the peer is made: add one to this host")),
    ("reversePeering", Use::Read),
    ("keepaliveTime", Use::NoEffect),
];
const FILTER: Table =
    &[("exportV4", Use::Read), ("importV4", Use::Read), ("exportV6", Use::Read), ("importV6", Use::Read)];
const RULE: Table = &[
    ("cidr", Use::Read),
    ("prefixLength", Use::Read),
    ("matchOperator", Use::Read),
    ("source", Use::Read),
    ("interface", Use::Read),
    ("peerType", Use::Read),
    ("communities", Use::Read),
    ("asPathPrefix", Use::Read),
    ("priority", Use::Read),
    ("action", Use::Read),
    ("operations", Use::Read),
];
const PREFIX_LENGTH: Table = &[("min", Use::Read), ("max", Use::Read)];
const COMMUNITIES: Table = &[("values", Use::Read)];
const OPERATION: Table = &[("addCommunity", Use::Read), ("prependASPath", Use::Read), ("setPriority", Use::Read)];
const ADD_COMMUNITY: Table = &[("value", Use::Read)];
const PREPEND: Table = &[("prefix", Use::Read)];
const SET_PRIORITY: Table = &[("value", Use::Read)];
/// The greatest metric that Calico's route priorities may have.
const MAX_PRIORITY: u32 = 2_147_483_646;

/// Reads a `BGPConfiguration`.
pub(super) fn configuration(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let name = document.metadata.name.as_deref()?;
    if name != "default" && name.strip_prefix("node.").is_none_or(str::is_empty) {
        let metadata = root.field("metadata");
        let field = metadata.field("name").to_string();
        let message = "no node reads a BGPConfiguration of this name: call it \"default\" or \"node.NODENAME\"";
        decoder.report(Severity::Warning, document.metadata.name_at, name.len(), Some(&field), message);
    }
    let spec = spec(decoder, document, CONFIGURATION)?;
    // `ValidateDefaultOnlyFields` of libcalico-go.
    for field in ["asNumber", "nodeToNodeMeshEnabled", "nodeMeshMaxRestartTime"] {
        if let Some(node) = spec.get(field).filter(|_| name != "default") {
            decoder.error(node, &path.field(field), "about all nodes: only the BGPConfiguration \"default\" has it");
        }
    }
    let named = named_communities(decoder, &spec, &path);
    Some(Body::BgpConfiguration(Box::new(BgpConfiguration {
        as_number: spec.get("asNumber").and_then(|node| as_number(decoder, node, &path.field("asNumber"))),
        mesh: spec
            .get("nodeToNodeMeshEnabled")
            .and_then(|node| decoder.boolean(node, &path.field("nodeToNodeMeshEnabled"))),
        listen_port: spec
            .get("listenPort")
            .and_then(|node| decoder.integer(node, &path.field("listenPort"), 1..=u16::MAX)),
        mesh_restart_time: duration(decoder, &spec, &path, "nodeMeshMaxRestartTime"),
        advertisements: advertisements(decoder, &spec, &path, &named),
        unsupported: spec.unsupported(CONFIGURATION),
    })))
}

fn named_communities(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> Vec<(String, Community)> {
    let path = path.field("communities");
    let mut named = Vec::new();
    for (i, item) in spec.get("communities").map_or(&[][..], |node| decoder.list(node, &path)).iter().enumerate() {
        let path = path.index(i);
        let Some(fields) = decoder.fields(item, &path, COMMUNITY) else { continue };
        let name = required(decoder, &fields, &path, "name", "the name of the community");
        let Some(value) = required(decoder, &fields, &path, "value", "a community like 64512:100") else { continue };
        if let (Some(name), Some(value)) = (name, read_community(decoder, value, &path.field("value"))) {
            named.extend(decoder.text(name, &path.field("name")).map(|name| (name.to_owned(), value)));
        }
    }
    named
}

fn advertisements(
    decoder: &mut Decoder<'_>,
    spec: &Fields<'_>,
    path: &FieldPath<'_>,
    named: &[(String, Community)],
) -> Vec<PrefixAdvertisement> {
    let path = path.field("prefixAdvertisements");
    let mut advertisements = Vec::new();
    let items = spec.get("prefixAdvertisements").map_or(&[][..], |node| decoder.list(node, &path));
    for (i, item) in items.iter().enumerate() {
        let path = path.index(i);
        let Some(fields) = decoder.fields(item, &path, ADVERTISEMENT) else { continue };
        let cidr = required(decoder, &fields, &path, "cidr", "the network whose routes get the communities")
            .and_then(|node| network(decoder, node, &path.field("cidr")));
        let list_path = path.field("communities");
        let mut communities = Vec::new();
        let list = fields.get("communities").map_or(&[][..], |node| decoder.list(node, &list_path));
        for (i, node) in list.iter().enumerate() {
            let path = list_path.index(i);
            let Some(text) = decoder.text(node, &path) else { continue };
            match named.iter().find(|(name, _)| name == text) {
                Some((_, known)) => communities.push(*known),
                None if text.contains(':') => communities.extend(read_community(decoder, node, &path)),
                None => {
                    let known = did_you_mean(text, named.iter().map(|(name, _)| name.as_str()));
                    decoder.error(
                        node,
                        &path,
                        format!("neither a community like 64512:100 nor the name of one{known}"),
                    );
                }
            }
        }
        advertisements.extend(cidr.map(|cidr| PrefixAdvertisement { cidr, communities }));
    }
    advertisements
}

/// Reads a `BGPPeer`.
pub(super) fn peer(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = spec(decoder, document, PEER)?;
    let node_path = path.field("node");
    let node = spec.get("node").and_then(|node| decoder.text(node, &node_path)).filter(|text| !text.is_empty());
    let node_selector = selector(decoder, &spec, &path, "nodeSelector");
    if let (Some(_), Some(_), Some(at)) = (node, &node_selector, spec.get("nodeSelector")) {
        decoder.error(at, &path.field("nodeSelector"), "node and nodeSelector exclude each other");
    }
    let at = peer_at(decoder, &spec, &path);
    let keep = spec.get("keepOriginalNextHop").map(|node| (node, path.field("keepOriginalNextHop")));
    let keep = keep.and_then(|(node, path)| decoder.boolean(node, &path)).unwrap_or(false);
    let modes = [("Auto", BgpNextHop::Auto), ("Self", BgpNextHop::Own), ("Keep", BgpNextHop::Keep)];
    let mode = word(decoder, &spec, &path, "nextHopMode", &modes);
    if let (true, Some(_), Some(node)) = (keep, mode, spec.get("nextHopMode")) {
        decoder.error(node, &path.field("nextHopMode"), "keepOriginalNextHop and nextHopMode exclude each other");
    }
    let filters_path = path.field("filters");
    let mut filters = Vec::new();
    let mut filters_at = Vec::new();
    for (i, item) in spec.get("filters").map_or(&[][..], |node| decoder.list(node, &filters_path)).iter().enumerate() {
        if let Some(name) = decoder.text(item, &filters_path.index(i)) {
            filters.push(name.to_owned());
            filters_at.push(item.place());
        }
    }
    let sources = [("UseNodeIP", true), ("None", false)];
    let peer = BgpPeer {
        node: node.map(str::to_owned),
        node_selector,
        next_hop: mode.unwrap_or(if keep { BgpNextHop::Keep } else { BgpNextHop::Auto }),
        from_node_address: word(decoder, &spec, &path, "sourceAddress", &sources).unwrap_or(true),
        reverse: word(decoder, &spec, &path, "reversePeering", &[("Auto", true), ("Manual", false)]).unwrap_or(true),
        restart_time: duration(decoder, &spec, &path, "maxRestartTime"),
        allowed_local_as: spec
            .get("numAllowedLocalASNumbers")
            .and_then(|node| decoder.integer(node, &path.field("numAllowedLocalASNumbers"), 0..=u8::MAX))
            .unwrap_or(0),
        ttl_security: spec
            .get("ttlSecurity")
            .and_then(|node| decoder.integer(node, &path.field("ttlSecurity"), 1..=u8::MAX)),
        filters,
        unsupported: spec.unsupported(PEER),
        // Last, so that all that is wrong is told.
        at: at?,
    };
    Some(Body::BgpPeer(Box::new(peer), filters_at))
}

fn peer_at(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> Option<BgpPeerAt> {
    let peers = selector(decoder, spec, path, "peerSelector");
    let number = spec.get("asNumber").and_then(|node| as_number(decoder, node, &path.field("asNumber")));
    let ip_path = path.field("peerIP");
    let ip = match spec.get("peerIP") {
        Some(node) => decoder.text(node, &ip_path).filter(|text| !text.is_empty()).map(|text| (node, text)),
        None => None,
    };
    if let Some(selector) = peers {
        for (name, wrong) in [("peerIP", ip.is_some()), ("asNumber", number.is_some())] {
            if let Some(node) = spec.get(name).filter(|_| wrong) {
                decoder.error(node, &path.field(name), "peerSelector says already with whom: remove one of them");
            }
        }
        return Some(BgpPeerAt::Nodes(selector));
    }
    let Some((node, text)) = ip else {
        if spec.get("peerSelector").is_none() {
            decoder.missing(spec.at, &ip_path, "missing: the address of the peer, or peerSelector for nodes");
        }
        return None;
    };
    let Some((address, port)) = address_and_port(text) else {
        let message = format!("\"{text}\" is not an IP address, with a port like 192.0.2.1:179 or [2001:db8::1]:179");
        decoder.error(node, &ip_path, message);
        return None;
    };
    if matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        decoder.error(node, &ip_path, "an address of a link does not say which link: write one that all know");
        return None;
    }
    if number.is_none() && spec.get("asNumber").is_none() {
        decoder.missing(spec.at, &path.field("asNumber"), "missing: the autonomous system of the peer");
    }
    Some(BgpPeerAt::Address { address, port, as_number: number? })
}

fn address_and_port(text: &str) -> Option<(IpAddr, Option<u16>)> {
    if let Ok(address) = text.parse() {
        return Some((address, None));
    }
    let socket: std::net::SocketAddr = text.parse().ok()?;
    Some((socket.ip(), Some(socket.port()).filter(|port| *port != 0)))
}

/// Reads a `BGPFilter`.
pub(super) fn filter(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = spec(decoder, document, FILTER)?;
    let mut rules = |name: &str| {
        let path = path.field(name);
        let items = spec.get(name).map_or(&[][..], |node| decoder.list(node, &path));
        let mut rules = Vec::new();
        for (i, item) in items.iter().enumerate() {
            rules.extend(rule(decoder, item, &path.index(i), name.ends_with("V4")));
        }
        rules
    };
    let (export_v4, export_v6) = (rules("exportV4"), rules("exportV6"));
    let (import_v4, import_v6) = (rules("importV4"), rules("importV6"));
    Some(Body::BgpFilter(Box::new(BgpFilter { export: [export_v4, export_v6], import: [import_v4, import_v6] })))
}

fn rule(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>, v4: bool) -> Option<BgpFilterRule> {
    let fields = decoder.fields(node, path, RULE)?;
    let actions = [("Accept", true), ("Reject", false)];
    if fields.get("action").is_none() {
        decoder.missing(fields.at, &path.field("action"), "missing: Accept or Reject");
    }
    let accept = word(decoder, &fields, path, "action", &actions)?;
    let communities_path = path.field("communities");
    let community = match fields.get("communities") {
        Some(node) => {
            let fields = decoder.fields(node, &communities_path, COMMUNITIES)?;
            let path = communities_path.field("values");
            let values = fields.get("values").map_or(&[][..], |node| decoder.list(node, &path));
            if values.len() != 1 {
                decoder.missing(fields.at, &path, "exactly one community can be compared");
            }
            values.first().and_then(|value| read_community(decoder, value, &path.index(0)))
        }
        None => None,
    };
    let operations = operations(decoder, &fields, path);
    if let (false, false, Some(node)) = (accept, operations.is_empty(), fields.get("operations")) {
        decoder.error(node, &path.field("operations"), "routes that are rejected are not changed: remove this");
    }
    let interface_path = path.field("interface");
    let interface = match fields.get("interface") {
        Some(node) => {
            let text = decoder.text(node, &interface_path)?;
            let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-*".contains(c);
            if text.is_empty() || text.len() > 15 || !text.chars().all(allowed) {
                decoder.error(node, &interface_path, "not the name of an interface, in which * may stand for anything");
                return None;
            }
            Some(text.to_owned())
        }
        None => None,
    };
    Some(BgpFilterRule {
        prefix: prefix(decoder, &fields, path, v4),
        remote_peers: word(decoder, &fields, path, "source", &[("RemotePeers", true)]).unwrap_or(false),
        interface,
        external: word(decoder, &fields, path, "peerType", &[("eBGP", true), ("iBGP", false)]),
        community,
        as_path_prefix: as_path(decoder, &fields, path, "asPathPrefix"),
        priority: priority(decoder, &fields, path, "priority"),
        accept,
        operations,
    })
}

fn prefix(decoder: &mut Decoder<'_>, fields: &Fields<'_>, path: &FieldPath<'_>, v4: bool) -> Option<PrefixMatch> {
    // Whether within, whether negated.
    let operators =
        [("Equal", (false, false)), ("NotEqual", (false, true)), ("In", (true, false)), ("NotIn", (true, true))];
    let operator = word(decoder, fields, path, "matchOperator", &operators);
    let cidr_path = path.field("cidr");
    let Some(node) = fields.get("cidr") else {
        for name in ["matchOperator", "prefixLength"] {
            if let Some(node) = fields.get(name) {
                decoder.error(node, &path.field(name), "means something only with cidr");
            }
        }
        return None;
    };
    if fields.get("matchOperator").is_none() {
        let message = "missing: with cidr, one of Equal, NotEqual, In and NotIn is needed";
        decoder.missing(fields.at, &path.field("matchOperator"), message);
    }
    let net = network(decoder, node, &cidr_path)?;
    if matches!(net, IpNet::V4(_)) != v4 {
        let family = if v4 { "IPv4" } else { "IPv6" };
        decoder.error(node, &cidr_path, format!("{net} is not an {family} network, as this list is about"));
        return None;
    }
    let (within, negated) = operator?;
    let own = net.prefix_len();
    let (mut min, mut max) = (own, if within { net.max_prefix_len() } else { own });
    let length_path = path.field("prefixLength");
    if let Some(node) = fields.get("prefixLength") {
        let lengths = decoder.fields(node, &length_path, PREFIX_LENGTH)?;
        let mut bound = |name: &str| {
            let node = lengths.get(name)?;
            decoder.integer(node, &length_path.field(name), 0..=net.max_prefix_len())
        };
        (min, max) = (bound("min").unwrap_or(min), bound("max").unwrap_or(max));
        if min.max(own) > max {
            let min = min.max(own);
            decoder.error(
                node,
                &length_path,
                format!("no prefix in {net} is at least {min} and at most {max} bits long"),
            );
            return None;
        }
    }
    Some(PrefixMatch { net, min: min.max(own), max, negated })
}

fn operations(decoder: &mut Decoder<'_>, fields: &Fields<'_>, path: &FieldPath<'_>) -> Vec<BgpOperation> {
    let path = path.field("operations");
    let mut operations = Vec::new();
    for (i, item) in fields.get("operations").map_or(&[][..], |node| decoder.list(node, &path)).iter().enumerate() {
        let path = path.index(i);
        let Some(fields) = decoder.fields(item, &path, OPERATION) else { continue };
        if fields.names_with_content().count() != 1 {
            decoder.missing(item.at, &path, "exactly one of addCommunity, prependASPath and setPriority is needed");
            continue;
        }
        if let Some(node) = fields.get("addCommunity") {
            let path = path.field("addCommunity");
            let value = decoder.fields(node, &path, ADD_COMMUNITY);
            let value = value.and_then(|fields| required(decoder, &fields, &path, "value", "a community"));
            let value = value.and_then(|node| read_community(decoder, node, &path.field("value")));
            operations.extend(value.map(BgpOperation::AddCommunity));
        } else if let Some(node) = fields.get("prependASPath") {
            let path = path.field("prependASPath");
            if let Some(fields) = decoder.fields(node, &path, PREPEND) {
                operations.push(BgpOperation::PrependAsPath(as_path(decoder, &fields, &path, "prefix")));
            }
        } else if let Some(node) = fields.get("setPriority") {
            let path = path.field("setPriority");
            let value = decoder.fields(node, &path, SET_PRIORITY);
            let value = value.and_then(|fields| priority(decoder, &fields, &path, "value"));
            operations.extend(value.map(BgpOperation::SetPriority));
        }
    }
    operations
}

fn spec<'n>(decoder: &mut Decoder<'_>, document: &Document<'n>, table: Table) -> Option<Fields<'n>> {
    let root = FieldPath::ROOT;
    match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &root.field("spec"), table),
        None => Some(Fields::none(document.at)),
    }
}

fn required<'n>(
    decoder: &mut Decoder<'_>,
    fields: &Fields<'n>,
    path: &FieldPath<'_>,
    name: &str,
    what: &str,
) -> Option<&'n Node> {
    let node = fields.get(name);
    if node.is_none() {
        decoder.missing(fields.at, &path.field(name), format!("missing: {what}"));
    }
    node
}

fn selector(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>, name: &str) -> Option<Selector> {
    let node = spec.get(name)?;
    if matches!(&node.value, yaml::Value::Scalar(scalar) if scalar.text.is_empty()) {
        return None;
    }
    workload_selector(decoder, node, &path.field(name))
}

/// One of some words; `None` if it is absent, empty or wrong.
fn word<T: Copy>(
    decoder: &mut Decoder<'_>,
    fields: &Fields<'_>,
    path: &FieldPath<'_>,
    name: &str,
    words: &[(&str, T)],
) -> Option<T> {
    let (node, path) = (fields.get(name)?, path.field(name));
    let text = decoder.text(node, &path).filter(|text| !text.is_empty())?;
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    if found.is_none() {
        let right = did_you_mean(text, words.iter().map(|(word, _)| *word));
        decoder.error(node, &path, format!("\"{text}\" is not possible{right}"));
    }
    found
}

fn network(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<IpNet> {
    match values::network(decoder.text(node, path)?) {
        Ok(net) => Some(net),
        Err(message) => {
            decoder.error(node, path, message);
            None
        }
    }
}

fn priority(decoder: &mut Decoder<'_>, fields: &Fields<'_>, path: &FieldPath<'_>, name: &str) -> Option<u32> {
    decoder.integer(fields.get(name)?, &path.field(name), 1..=MAX_PRIORITY)
}

fn as_path(decoder: &mut Decoder<'_>, fields: &Fields<'_>, path: &FieldPath<'_>, name: &str) -> Vec<u32> {
    let path = path.field(name);
    let items = fields.get(name).map_or(&[][..], |node| decoder.list(node, &path));
    items.iter().enumerate().filter_map(|(i, node)| as_number(decoder, node, &path.index(i))).collect()
}

/// Two numbers of 16 bits, or three of 32.
fn read_community(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<Community> {
    let text = decoder.text(node, path)?;
    let parts: Vec<&str> = text.split(':').collect();
    let parsed = match parts[..] {
        [a, b] => a.parse().ok().zip(b.parse().ok()).map(|(a, b)| Community::Standard(a, b)),
        [a, b, c] => match (a.parse(), b.parse(), c.parse()) {
            (Ok(a), Ok(b), Ok(c)) => Some(Community::Large(a, b, c)),
            _ => None,
        },
        _ => None,
    };
    if parsed.is_none() {
        let message =
            format!("\"{text}\" is not a community: two numbers to 65535 like 64512:100, or three to 4294967295");
        decoder.error(node, path, message);
    }
    parsed
}

/// Whole seconds of a duration as Kubernetes writes it, like `2m30s`.
pub(super) fn duration(
    decoder: &mut Decoder<'_>,
    fields: &Fields<'_>,
    path: &FieldPath<'_>,
    name: &str,
) -> Option<u16> {
    let (node, path) = (fields.get(name)?, path.field(name));
    let text = decoder.text(node, &path).filter(|text| !text.is_empty())?;
    let seconds = seconds(text);
    if seconds.is_none() {
        decoder.error(node, &path, format!("\"{text}\" is not a time of 1 second to 1 hour: write it like 2m or 90s"));
    }
    seconds
}

fn seconds(text: &str) -> Option<u16> {
    let mut total = 0_u32;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = rest.split_at(digits);
        let factor = match unit.as_bytes().first()? {
            b'h' => 3600,
            b'm' if !unit.starts_with("ms") => 60,
            b's' => 1,
            _ => return None,
        };
        total = total.checked_add(number.parse::<u32>().ok()?.checked_mul(factor)?)?;
        rest = unit.get(1..)?;
    }
    // BGP has 12 bits for it.
    u16::try_from(total).ok().filter(|seconds| (1..=3600).contains(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("90s", Some(90)),
            ("2m30s", Some(150)),
            ("1h0m0s", Some(3600)),
            ("2h", None),
            ("0s", None),
            ("10", None),
            ("5ms", None),
            ("", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn addresses_with_and_without_ports() {
        let at = |text: &str| address_and_port(text).map(|(address, port)| (address.to_string(), port));
        assert_eq!(at("192.0.2.1"), Some(("192.0.2.1".to_owned(), None)));
        assert_eq!(at("192.0.2.1:1790"), Some(("192.0.2.1".to_owned(), Some(1790))));
        assert_eq!(at("[2001:db8::1]:179"), Some(("2001:db8::1".to_owned(), Some(179))));
        assert_eq!(at("2001:db8::1"), Some(("2001:db8::1".to_owned(), None)));
        assert_eq!(at("rack1"), None);
    }
}
