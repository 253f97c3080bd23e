//! `Node`.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    kinds::Document,
    model::Node,
    parsed::Body,
    values, yaml,
};

const NODE: Table = &[
    ("bgp", Use::Read),
    ("addresses", Use::Read),
    ("orchRefs", Use::Ignored),
    ("interfaces", Use::Ignored),
    ("ipv4VXLANTunnelAddr", Use::NoEffect),
    ("ipv6VXLANTunnelAddr", Use::NoEffect),
    ("vxlanTunnelMACAddr", Use::NoEffect),
    ("vxlanTunnelMACAddrV6", Use::NoEffect),
    ("wireguard", Use::NoEffect),
];
const BGP: Table = &[
    ("asNumber", Use::Read),
    ("ipv4Address", Use::Read),
    ("ipv6Address", Use::Read),
    ("routeReflectorClusterID", Use::Read),
    ("ipv4IPIPTunnelAddr", Use::NoEffect),
];
const ADDRESS: Table = &[("address", Use::Read), ("type", Use::Read)];
const ADDRESS_TYPES: [&str; 3] = ["CalicoNodeIP", "InternalIP", "ExternalIP"];

/// Reads a `Node` of Calico.
pub(super) fn node(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, NODE)?,
        None => Fields::none(document.at),
    };
    let bgp_path = path.field("bgp");
    let bgp = match spec.get("bgp") {
        Some(bgp) => decoder.fields(bgp, &bgp_path, BGP)?,
        None => Fields::none(spec.at),
    };
    Some(Body::Node(Box::new(Node {
        labels: document.metadata.labels.clone(),
        ipv4: address_in_network(decoder, &bgp, &bgp_path, "ipv4Address"),
        ipv6: address_in_network(decoder, &bgp, &bgp_path, "ipv6Address"),
        as_number: bgp.get("asNumber").and_then(|node| as_number(decoder, node, &bgp_path.field("asNumber"))),
        route_reflector_cluster_id: cluster_id(decoder, &bgp, &bgp_path),
        addresses: addresses(decoder, &spec, &path),
        origin: decoder.origin(document.metadata.name_at),
    })))
}

/// A number, or a text of one, or of two 16-bit halves like `64.512`.
pub(super) fn as_number(decoder: &mut Decoder<'_>, node: &yaml::Node, path: &FieldPath<'_>) -> Option<u32> {
    if let yaml::Value::Scalar(scalar) = &node.value {
        let halves = scalar.text.split_once('.').and_then(|(high, low)| {
            Some(u32::from(high.parse::<u16>().ok()?) << 16 | u32::from(low.parse::<u16>().ok()?))
        });
        // 0 is nobody's (RFC 7607).
        if let Some(number) = scalar.text.parse().ok().or(halves).filter(|number| *number != 0) {
            return Some(number);
        }
    }
    decoder.error(node, path, "not the number of an autonomous system: 1 to 4294967295, or like 64.512");
    None
}

/// An address with the prefix length of the network that it is in.
fn address_in_network(decoder: &mut Decoder<'_>, bgp: &Fields<'_>, path: &FieldPath<'_>, name: &str) -> Option<IpNet> {
    let node = bgp.get(name)?;
    let path = path.field(name);
    let text = decoder.text(node, &path).filter(|text| !text.is_empty())?;
    let wanted = if name == "ipv4Address" { "IPv4" } else { "IPv6" };
    match values::any_network(text) {
        Ok((_, net)) if matches!(net, IpNet::V4(_)) == (wanted == "IPv4") => Some(net),
        Ok(_) => {
            decoder.error(node, &path, format!("{text} is not an {wanted} address"));
            None
        }
        Err(message) => {
            decoder.error(node, &path, message);
            None
        }
    }
}

fn cluster_id(decoder: &mut Decoder<'_>, bgp: &Fields<'_>, path: &FieldPath<'_>) -> Option<Ipv4Addr> {
    let node = bgp.get("routeReflectorClusterID")?;
    let path = path.field("routeReflectorClusterID");
    let text = decoder.text(node, &path).filter(|text| !text.is_empty())?;
    let parsed = text.parse();
    if parsed.is_err() {
        decoder.error(node, &path, format!("\"{text}\" is not an IPv4 address, in whose form a cluster ID is written"));
    }
    parsed.ok()
}

fn addresses(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> Vec<IpAddr> {
    let Some(node) = spec.get("addresses") else { return Vec::new() };
    let path = path.field("addresses");
    let mut addresses = Vec::new();
    for (i, item) in decoder.list(node, &path).iter().enumerate() {
        let path = path.index(i);
        let Some(fields) = decoder.fields(item, &path, ADDRESS) else { continue };
        if let Some(node) = fields.get("type")
            && let path = path.field("type")
            && let Some(text) = decoder.text(node, &path)
            && !text.is_empty()
            && !ADDRESS_TYPES.contains(&text)
        {
            let right = did_you_mean(text, ADDRESS_TYPES.into_iter());
            decoder.error(node, &path, format!("unknown type \"{text}\"{right}"));
        }
        let path = path.field("address");
        let Some(node) = fields.get("address") else {
            decoder.missing(fields.at, &path, "missing: an IP address");
            continue;
        };
        match decoder.text(node, &path).map(values::any_network) {
            Some(Ok((address, _))) => addresses.push(address),
            Some(Err(message)) => decoder.error(node, &path, message),
            None => {}
        }
    }
    addresses
}
