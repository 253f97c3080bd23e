//! `GlobalNetworkSet` and `NetworkSet`.

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use},
    kinds::Document,
    model::{NAMESPACE_LABEL, NetworkSet},
    parsed::Body,
    profile, values,
};

const NETWORK_SET: Table = &[
    ("nets", Use::Read),
    (
        "allowedEgressDomains",
        Use::Refused("domain names are not resolved here: what this says would not be enforced; use nets"),
    ),
];

/// Reads either kind: one in a namespace has its label, and inherits those of the namespace.
pub(super) fn network_set(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, NETWORK_SET)?,
        None => Fields::none(document.at),
    };
    let path = path.field("nets");
    let mut nets = Vec::new();
    for (i, item) in spec.get("nets").map_or(&[][..], |node| decoder.list(node, &path)).iter().enumerate() {
        let path = path.index(i);
        let Some(text) = decoder.text(item, &path) else { continue };
        // Unlike a rule, a set may have bits beyond the prefix length, addresses, and both IP versions.
        match values::any_network(text) {
            Ok((_, net)) => nets.push(net.trunc()),
            Err(message) => decoder.error(item, &path, message),
        }
    }
    nets.sort_unstable();
    nets.dedup();
    let metadata = &document.metadata;
    let mut labels = metadata.labels.clone();
    if let Some(at) = document.metadata.namespace_label_at {
        let path = root.field("metadata");
        let path = path.field("labels");
        let message = "set by the namespace of the resource: remove it";
        decoder.missing(at, &path.field(NAMESPACE_LABEL), message);
    }
    let namespace = metadata.namespace.clone();
    labels.extend(namespace.iter().map(|namespace| (NAMESPACE_LABEL.to_owned(), namespace.clone())));
    let network_set = NetworkSet {
        profiles: namespace.iter().map(|namespace| profile::of_namespace(namespace)).collect(),
        namespace,
        name: metadata.name.clone()?,
        nets,
        labels,
        origin: decoder.origin(metadata.name_at),
    };
    Some(Body::NetworkSet(network_set.into()))
}
