//! `HostEndpoint`.

use std::net::IpAddr;

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use},
    kinds::Document,
    model::{HostEndpoint, HostInterface},
    parsed::{Body, ParsedHostEndpoint},
    rules, values, workload,
};

const HOST_ENDPOINT: Table = &[
    ("node", Use::Read),
    ("interfaceName", Use::Read),
    ("expectedIPs", Use::Read),
    ("profiles", Use::Read),
    ("ports", Use::Read),
];
/// A host's ports are mapped nowhere.
const PORT: Table = &[("name", Use::Read), ("protocol", Use::Read), ("port", Use::Read)];

/// `interfaceName` of a host endpoint that is all interfaces.
const ALL: &str = "*";

/// Reads a `HostEndpoint`.
pub(super) fn host_endpoint(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = &root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, path, HOST_ENDPOINT)?,
        None => Fields::none(document.at),
    };
    let mut text = |name: &str, check: fn(&str) -> Result<(), String>| {
        let node = spec.get(name)?;
        let path = path.field(name);
        let text = decoder.text(node, &path).filter(|text| !text.is_empty())?;
        check(text).map_err(|message| decoder.error(node, &path, message)).ok()?;
        Some(text.to_owned())
    };
    let node = text("node", values::resource_name);
    let any_or_one = |text: &str| if text == ALL { Ok(()) } else { values::interface(text) };
    let interface = text("interfaceName", any_or_one);
    let is_absent = |name: &str| spec.get(name).is_none_or(rules::is_empty_text);
    if is_absent("node") {
        decoder.missing(spec.at, &path.field("node"), "missing: the node whose interface it is");
    }
    let expected_ips = expected_ips(decoder, &spec, path);
    if is_absent("interfaceName") && expected_ips.as_ref().is_some_and(Vec::is_empty) {
        let message = "missing: write it, or expectedIPs, which find the interface";
        decoder.missing(spec.at, &path.field("interfaceName"), message);
    }
    let (profiles, profiles_at) = workload::profiles(decoder, &spec, path);
    let ports = workload::ports(decoder, &spec, path, PORT);
    let expected_ips = expected_ips?;
    let endpoint = HostEndpoint {
        name: document.metadata.name.clone()?,
        node: node?,
        interface: match interface.as_deref() {
            None => HostInterface::Carrying(expected_ips.clone()),
            Some(ALL) => HostInterface::All,
            Some(name) => HostInterface::Named(name.to_owned()),
        },
        expected_ips,
        profiles,
        ports,
        labels: document.metadata.labels.clone(),
        origin: decoder.origin(document.metadata.name_at),
    };
    Some(Body::HostEndpoint(Box::new(ParsedHostEndpoint { endpoint: endpoint.into(), profiles_at })))
}

/// `None` where one is none.
fn expected_ips(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> Option<Vec<IpAddr>> {
    let path = path.field("expectedIPs");
    let items = spec.get("expectedIPs").map_or(&[][..], |node| decoder.list(node, &path));
    let mut addresses = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let path = path.index(i);
        let text = decoder.text(item, &path)?;
        match values::address(text) {
            Ok(address) => addresses.push(address),
            Err(message) => decoder.error(item, &path, message),
        }
    }
    (addresses.len() == items.len()).then_some(addresses)
}
