//! `WorkloadEndpoint`.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    kinds::Document,
    model::{
        NAMESPACE_LABEL, NAMESPACE_PREFIX, NamedPort, ORCHESTRATOR_LABEL, SERVICE_ACCOUNT_LABEL,
        SERVICE_ACCOUNT_PREFIX, WorkloadEndpoint,
    },
    parsed::{Body, ParsedWorkload},
    rules,
    source::Position,
    values,
    yaml::Node,
};

const WORKLOAD: Table = &[
    ("orchestrator", Use::Read),
    ("node", Use::Read),
    ("pod", Use::Read),
    // Only parts of the computed name.
    ("workload", Use::Read),
    ("containerID", Use::Read),
    ("endpoint", Use::Read),
    ("serviceAccountName", Use::Read),
    ("interfaceName", Use::Read),
    ("ipNetworks", Use::Read),
    ("mac", Use::Read),
    ("profiles", Use::Read),
    ("ports", Use::Read),
    ("allowSpoofedSourcePrefixes", Use::Read),
    ("ipNATs", Use::NoEffect),
    ("ipv4Gateway", Use::NoEffect),
    ("ipv6Gateway", Use::NoEffect),
    ("qosControls", Use::NoEffect),
];
const PORT: Table = &[
    ("name", Use::Read),
    ("protocol", Use::Read),
    ("port", Use::Read),
    // Where the port is reached on the host is the business of whoever translates it.
    ("hostPort", Use::Read),
    ("hostIP", Use::Read),
];
const NAMED_PORT_PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];

/// Reads a `WorkloadEndpoint`.
pub(super) fn workload(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = spec(decoder, document)?;
    let optional = |decoder: &mut Decoder<'_>, name: &str| {
        let (node, path) = (spec.get(name)?, path.field(name));
        let text = decoder.text(node, &path).filter(|text| !text.is_empty())?;
        let checked = if name == "containerID" { values::container_id(text) } else { values::resource_name(text) };
        if let Err(message) = checked {
            decoder.error(node, &path, message);
        }
        Some(text.to_owned())
    };
    let node = match spec.get("node") {
        Some(node) => {
            let path = path.field("node");
            let text = decoder.text(node, &path);
            if let Some(Err(message)) = text.map(values::resource_name) {
                decoder.error(node, &path, message);
            }
            text.map(str::to_owned)
        }
        None => {
            decoder.missing(spec.at, &path.field("node"), "missing: the node that the workload runs on");
            None
        }
    };
    let interface = match spec.get("interfaceName") {
        Some(node) => {
            let path = path.field("interfaceName");
            let text = decoder.text(node, &path);
            if let Some(Err(message)) = text.map(values::interface) {
                decoder.error(node, &path, message);
            }
            text.map(|text| (text.to_owned(), node.at))
        }
        None => {
            decoder.missing(
                spec.at,
                &path.field("interfaceName"),
                "missing: the host side of the workload's veth or tap",
            );
            None
        }
    };
    let orchestrator = optional(decoder, "orchestrator");
    let pod = optional(decoder, "pod");
    for name in ["workload", "containerID", "endpoint"] {
        optional(decoder, name);
    }
    let service_account = optional(decoder, "serviceAccountName");
    let (addresses, addresses_at) = addresses(decoder, &spec, &path);
    let mac = spec.get("mac").and_then(|node| {
        let path = path.field("mac");
        let text = decoder.text(node, &path).filter(|text| !text.is_empty())?;
        values::mac(text).map_err(|message| decoder.error(node, &path, message)).ok()
    });
    let (profiles, profiles_at) = profiles(decoder, &spec, &path);
    let ports = ports(decoder, &spec, &path, PORT);
    let allow_spoofed_source_prefixes = spoofed_prefixes(decoder, &spec, &path);

    let namespace = document.metadata.namespace.clone()?;
    let mut labels = document.metadata.labels.clone();
    // No workload pretends to be in another namespace (`convertWorkloadEndpointV2ToV1Value` of libcalico-go).
    labels.retain(|key, _| !key.starts_with(NAMESPACE_PREFIX) && !key.starts_with(SERVICE_ACCOUNT_PREFIX));
    labels.insert(NAMESPACE_LABEL.to_owned(), namespace.clone());
    if let Some(orchestrator) = &orchestrator {
        labels.insert(ORCHESTRATOR_LABEL.to_owned(), orchestrator.clone());
    }
    if let Some(account) = service_account {
        labels.insert(SERVICE_ACCOUNT_LABEL.to_owned(), account);
    }
    let (interface, interface_at) = interface?;
    let endpoint = WorkloadEndpoint {
        namespace,
        name: document.metadata.name.clone()?,
        node: node?,
        orchestrator: orchestrator.unwrap_or_default(),
        pod,
        interface,
        addresses,
        mac,
        profiles,
        ports,
        allow_spoofed_source_prefixes,
        labels,
        origin: decoder.origin(document.metadata.name_at),
    };
    Some(Body::Workload(Box::new(ParsedWorkload {
        endpoint: endpoint.into(),
        interface_at,
        addresses_at,
        profiles_at,
    })))
}

fn spec<'n>(decoder: &mut Decoder<'_>, document: &Document<'n>) -> Option<Fields<'n>> {
    let root = FieldPath::ROOT;
    match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &root.field("spec"), WORKLOAD),
        None => Some(Fields::none(document.at)),
    }
}

/// The name that Calico gives to a workload whose metadata has none: NODE-ORCHESTRATOR-POD-ENDPOINT, dashes within the parts
/// doubled (`WorkloadEndpointIdentifiers.CalculateWorkloadEndpointName` of libcalico-go).
pub(super) fn computed_name(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<String> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let fields = document.fields.get("spec").map(Node::entries).unwrap_or_default();
    let get = |name: &str| fields.iter().find(|entry| entry.key == name).map(|entry| &entry.value);
    let at = document.fields.get("spec").map_or(document.at, |spec| spec.named_at);
    let mut part = |name: &str| match get(name).filter(|node| !node.is_null()) {
        Some(node) => decoder.text(node, &path.field(name)).map(|text| text.replace('-', "--")),
        None => {
            let message = "missing: the name of the workload is made of it where metadata.name is not given";
            decoder.missing(at, &path.field(name), message);
            None
        }
    };
    let (node, orchestrator) = (part("node"), part("orchestrator"));
    let third = match orchestrator.as_deref() {
        Some("cni") => part("containerID"),
        Some("libnetwork") => Some("libnetwork".to_owned()),
        Some("k8s") | None => part("pod"),
        Some(_) => part("workload"),
    };
    let endpoint = part("endpoint");
    let name = [node?, orchestrator?, third?, endpoint?].join("-");
    if let Err(message) = values::resource_name(&name) {
        let field = root.field("metadata");
        decoder.missing(at, &field.field("name"), format!("the name made of the parts, \"{name}\", is {message}"));
        return None;
    }
    Some(name)
}

fn addresses(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> (Vec<IpAddr>, Vec<Position>) {
    let Some(node) = spec.get("ipNetworks") else {
        return Default::default();
    };
    let path = path.field("ipNetworks");
    let mut addresses = Vec::new();
    let mut places = Vec::new();
    let mut seen = HashSet::new();
    for (i, item) in decoder.list(node, &path).iter().enumerate() {
        let path = path.index(i);
        let Some(text) = decoder.text(item, &path) else { continue };
        match values::workload_address(text) {
            Ok(address) if !seen.insert(address) => {
                decoder.error(item, &path, format!("{address} stands twice in the list"));
            }
            Ok(address) => {
                addresses.push(address);
                places.push(item.at);
            }
            Err(message) => decoder.error(item, &path, message),
        }
    }
    (addresses, places)
}

pub(super) fn profiles(
    decoder: &mut Decoder<'_>,
    spec: &Fields<'_>,
    path: &FieldPath<'_>,
) -> (Vec<String>, Vec<Position>) {
    let Some(node) = spec.get("profiles") else {
        return Default::default();
    };
    let path = path.field("profiles");
    let mut names = Vec::new();
    let mut places = Vec::new();
    for (i, item) in decoder.list(node, &path).iter().enumerate() {
        let path = path.index(i);
        let Some(text) = decoder.text(item, &path) else { continue };
        if let Err(message) = values::resource_name(text) {
            decoder.error(item, &path, message);
        }
        names.push(text.to_owned());
        places.push(item.at);
    }
    (names, places)
}

/// The named ports of an endpoint; `table`: what may be said of one.
pub(super) fn ports(
    decoder: &mut Decoder<'_>,
    spec: &Fields<'_>,
    path: &FieldPath<'_>,
    table: Table,
) -> Vec<NamedPort> {
    let Some(node) = spec.get("ports") else {
        return Vec::new();
    };
    let path = path.field("ports");
    let items = decoder.list(node, &path);
    items.iter().enumerate().filter_map(|(i, item)| named_port(decoder, item, &path.index(i), table)).collect()
}

fn named_port(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>, table: Table) -> Option<NamedPort> {
    let fields = decoder.fields(node, path, table)?;
    let host_port = fields.get("hostPort").and_then(|node| decoder.integer(node, &path.field("hostPort"), 0..=65535));
    if let Some(node) = fields.get("hostIP") {
        let path = path.field("hostIP");
        if let Some(Err(message)) = decoder.text(node, &path).filter(|text| !text.is_empty()).map(values::any_network) {
            decoder.error(node, &path, message);
        }
    }
    let mut required = |name: &str| {
        let node = fields.get(name);
        if node.is_none() {
            decoder.missing(fields.at, &path.field(name), "missing: a named port has a name, a protocol and a port");
        }
        node
    };
    // One that is only mapped to a port of the host needs no name; nobody can mean it.
    let is_named = host_port.is_none_or(|port: u16| port == 0) || fields.get("name").is_some();
    let name = if is_named { required("name") } else { None };
    let (protocol, port) = (required("protocol"), required("port"));
    let name = name.and_then(|node| {
        let path = path.field("name");
        let text = decoder.text(node, &path)?;
        values::port_name(text).map_err(|message| decoder.error(node, &path, message)).ok()?;
        Some(text.to_owned())
    });
    let protocol = protocol.and_then(|node| {
        let path = path.field("protocol");
        let number = rules::protocol(decoder, node, &path)?;
        if values::has_ports(number) {
            return Some(number);
        }
        let expected = did_you_mean("", NAMED_PORT_PROTOCOLS.into_iter());
        decoder.error(node, &path, format!("this protocol has no ports{expected}"));
        None
    });
    let port = port.and_then(|node| decoder.integer(node, &path.field("port"), 1..=65535));
    Some(NamedPort { name: name?, protocol: protocol?, port: port? })
}

fn spoofed_prefixes(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> Vec<IpNet> {
    let Some(node) = spec.get("allowSpoofedSourcePrefixes") else {
        return Vec::new();
    };
    let path = path.field("allowSpoofedSourcePrefixes");
    let mut nets = Vec::new();
    for (i, item) in decoder.list(node, &path).iter().enumerate() {
        let path = path.index(i);
        let Some(text) = decoder.text(item, &path) else { continue };
        match values::any_network(text) {
            Ok((_, net)) => nets.push(net.trunc()),
            Err(message) => decoder.error(item, &path, message),
        }
    }
    nets
}
