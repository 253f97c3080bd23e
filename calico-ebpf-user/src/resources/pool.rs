//! `IPPool`.

use ipnet::IpNet;

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    kinds::Document,
    model::IpPool,
    parsed::Body,
    policy::workload_selector,
    selector::Selector,
    values,
    yaml::Node,
};

const POOL: Table = &[
    ("cidr", Use::Read),
    ("blockSize", Use::Read),
    ("natOutgoing", Use::Read),
    ("disabled", Use::Read),
    ("disableBGPExport", Use::Read),
    ("nodeSelector", Use::Read),
    ("namespaceSelector", Use::Read),
    ("allowedUses", Use::Read),
    ("assignmentMode", Use::Read),
    ("ipipMode", Use::Read),
    ("vxlanMode", Use::Read),
];
const TUNNEL_MODES: [&str; 3] = ["Never", "Always", "CrossSubnet"];
const USES: [&str; 3] = ["Workload", "Tunnel", "LoadBalancer"];
const ASSIGNMENTS: [&str; 2] = ["Automatic", "Manual"];

/// Reads an `IPPool`.
pub(super) fn pool(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, POOL)?,
        None => Fields::none(document.at),
    };
    let cidr = cidr(decoder, &spec, &path);
    let block_size = block_size(decoder, &spec, &path, cidr);
    let disabled = flag(decoder, &spec, &path, "disabled");
    if let (Some(cidr), Some(block_size), Some(node)) = (cidr, block_size, spec.get("cidr"))
        && !disabled
        && cidr.prefix_len() > block_size
    {
        let message = format!("smaller than one block: a pool holds blocks of /{block_size}");
        decoder.error(node, &path.field("cidr"), message);
    }
    let tunnels = ["ipipMode", "vxlanMode"].map(|name| {
        let text = choice(decoder, &spec, &path, name, &TUNNEL_MODES).filter(|text| *text != "Never");
        text.and(spec.get(name)).map(|node| (name, node))
    });
    let encapsulated = tunnels.iter().any(Option::is_some);
    match tunnels {
        [Some(_), Some((name, node))] => {
            decoder.error(node, &path.field(name), "ipipMode and vxlanMode exclude each other: one has to be Never");
        }
        [Some((name, node)), None] if cidr.is_some_and(|cidr| matches!(cidr, IpNet::V6(_))) => {
            decoder.error(node, &path.field(name), "there is no IPIP for IPv6: write Never");
        }
        [Some((name, node)), None] | [None, Some((name, node))] => {
            decoder.note_without_effect(&path.field(name), node.named_at);
        }
        [None, None] => {}
    }
    let uses = spec.get("allowedUses").map_or(&[][..], |node| decoder.list(node, &path.field("allowedUses")));
    for (i, item) in uses.iter().enumerate() {
        let uses_path = path.field("allowedUses");
        one_of(decoder, item, &uses_path.index(i), &USES);
    }
    choice(decoder, &spec, &path, "assignmentMode", &ASSIGNMENTS);
    let node_selector = match spec.get("nodeSelector") {
        Some(node) => workload_selector(decoder, node, &path.field("nodeSelector")),
        None => Some(Selector::all()),
    };
    if let Some(node) = spec.get("namespaceSelector") {
        workload_selector(decoder, node, &path.field("namespaceSelector"));
    }
    Some(Body::Pool(Box::new(IpPool {
        cidr: cidr?,
        block_size: block_size?,
        nat_outgoing: flag(decoder, &spec, &path, "natOutgoing"),
        disabled,
        encapsulated,
        disable_bgp_export: flag(decoder, &spec, &path, "disableBGPExport"),
        node_selector: node_selector?,
        origin: decoder.origin(document.metadata.name_at),
    })))
}

fn cidr(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> Option<IpNet> {
    let path = path.field("cidr");
    let Some(node) = spec.get("cidr") else {
        decoder.missing(spec.at, &path, "missing: the addresses of the pool, like 10.65.0.0/16");
        return None;
    };
    let text = decoder.text(node, &path)?;
    let net = match values::network(text) {
        Ok(net) => net,
        Err(message) => {
            decoder.error(node, &path, message);
            return None;
        }
    };
    let link_local: IpNet = match net {
        IpNet::V4(_) => IpNet::new_assert([169, 254, 0, 0].into(), 16),
        IpNet::V6(_) => IpNet::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10),
    };
    if link_local.contains(&net) || net.contains(&link_local) {
        decoder.error(node, &path, format!("overlaps with the link-local addresses {link_local}"));
        return None;
    }
    Some(net)
}

/// Calico's default where it is absent or 0.
fn block_size(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>, cidr: Option<IpNet>) -> Option<u8> {
    let (default, range) = match cidr {
        Some(IpNet::V6(_)) => (122, 116..=128),
        _ => (26, 20..=32),
    };
    let Some(node) = spec.get("blockSize") else { return Some(default) };
    let path = path.field("blockSize");
    match decoder.integer(node, &path, 0..=128)? {
        0 => Some(default),
        size if range.contains(&size) || cidr.is_none() => Some(size),
        _ => {
            decoder.error(node, &path, format!("expected {} to {} for this pool", range.start(), range.end()));
            None
        }
    }
}

fn flag(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>, name: &str) -> bool {
    spec.get(name).and_then(|node| decoder.boolean(node, &path.field(name))).unwrap_or(false)
}

/// A field that is one of some words; `None` if it is absent, empty or wrong.
fn choice<'n>(
    decoder: &mut Decoder<'_>,
    spec: &Fields<'n>,
    path: &FieldPath<'_>,
    name: &str,
    words: &[&'static str],
) -> Option<&'n str> {
    let node = spec.get(name)?;
    one_of(decoder, node, &path.field(name), words).filter(|text| !text.is_empty())
}

fn one_of<'n>(
    decoder: &mut Decoder<'_>,
    node: &'n Node,
    path: &FieldPath<'_>,
    words: &[&'static str],
) -> Option<&'n str> {
    let text = decoder.text(node, path)?;
    if text.is_empty() || words.contains(&text) {
        return Some(text);
    }
    decoder.error(node, path, format!("\"{text}\" is not possible{}", did_you_mean(text, words.iter().copied())));
    None
}
