//! `HostEndpoint`: checked to the last field, and refused, since nothing enforces it yet.

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use},
    kinds::Document,
    parsed::Body,
    rules, values, workload,
};

const HOST_ENDPOINT: Table = &[
    ("node", Use::Read),
    ("interfaceName", Use::Read),
    ("expectedIPs", Use::Read),
    ("profiles", Use::Read),
    ("ports", Use::Read),
];

/// Reads a `HostEndpoint`: its mistakes are told before the rest of it is refused.
pub(super) fn host_endpoint(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let before = decoder.errors();
    let root = FieldPath::ROOT;
    check(decoder, document, &root.field("spec"));
    if decoder.errors() == before
        && let Some(kind) = document.fields.get("kind")
    {
        let message = "HostEndpoint is not supported yet: what it says would not be enforced";
        decoder.error(kind, &root.field("kind"), message);
    }
    None
}

fn check(decoder: &mut Decoder<'_>, document: &Document<'_>, path: &FieldPath<'_>) {
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, path, HOST_ENDPOINT),
        None => Some(Fields::none(document.at)),
    };
    let Some(spec) = spec else { return };
    let mut text = |name: &str, check: fn(&str) -> Result<(), String>| {
        let Some(node) = spec.get(name) else { return };
        let path = path.field(name);
        if let Some(Err(message)) = decoder.text(node, &path).filter(|text| !text.is_empty()).map(check) {
            decoder.error(node, &path, message);
        }
    };
    text("node", values::resource_name);
    let any_or_one = |text: &str| if text == "*" { Ok(()) } else { values::interface(text) };
    text("interfaceName", any_or_one);
    let is_absent = |name: &str| spec.get(name).is_none_or(rules::is_empty_text);
    if is_absent("node") {
        decoder.missing(spec.at, &path.field("node"), "missing: the node whose interface it is");
    }
    let ips_path = path.field("expectedIPs");
    let expected = spec.get("expectedIPs").map_or(&[][..], |node| decoder.list(node, &ips_path));
    for (i, item) in expected.iter().enumerate() {
        let path = ips_path.index(i);
        if let Some(Err(message)) = decoder.text(item, &path).map(values::address) {
            decoder.error(item, &path, message);
        }
    }
    if is_absent("interfaceName") && expected.is_empty() {
        let message = "missing: write it, or expectedIPs, which find the interface";
        decoder.missing(spec.at, &path.field("interfaceName"), message);
    }
    workload::profiles(decoder, &spec, path);
    workload::ports(decoder, &spec, path);
}
