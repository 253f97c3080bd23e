//! `metadata`: what all resources carry.

use super::{
    annotations,
    decode::{Decoder, FieldPath, Table, Use},
    kinds::{self, Kind},
    model::{DenyAction, Labels, NAMESPACE_LABEL},
    source::Position,
    values,
    yaml::{Node, Value},
};

/// What of the metadata matters here.
pub(super) struct Metadata {
    /// Absent for a `WorkloadEndpoint` whose name is still to be computed, or after an error.
    pub(super) name: Option<String>,
    pub(super) name_at: Position,
    /// Where the metadata begin.
    pub(super) at: Position,
    /// Set for namespaced kinds; `default` where the file says nothing, as for Calico's tools.
    pub(super) namespace: Option<String>,
    pub(super) labels: Labels,
    /// Where among the labels the one of the namespace stands, which some kinds may not have.
    pub(super) namespace_label_at: Option<Position>,
    /// What becomes of what the rules of the resource deny.
    pub(super) deny_action: Option<DenyAction>,
}

/// What servers write is accepted and ignored, so that what `kubectl get -o yaml` prints can be fed back.
const TABLE: Table = &[
    ("name", Use::Read),
    ("namespace", Use::Read),
    ("labels", Use::Read),
    ("annotations", Use::Read),
    ("uid", Use::Ignored),
    ("resourceVersion", Use::Ignored),
    ("generation", Use::Ignored),
    ("creationTimestamp", Use::Ignored),
    ("deletionTimestamp", Use::Ignored),
    ("deletionGracePeriodSeconds", Use::Ignored),
    ("managedFields", Use::Ignored),
    ("ownerReferences", Use::Ignored),
    ("finalizers", Use::Ignored),
    ("selfLink", Use::Ignored),
    ("generateName", Use::Ignored),
];

/// Name and namespace as far as they are there, before anything is checked: findings shall name the resource.
pub(super) fn peek_name(node: &Node) -> (Option<&str>, Option<&str>) {
    let field = |node: &Node, name: &str| node.entries().iter().position(|entry| entry.key == name);
    let Some(metadata) = field(node, "metadata").map(|i| &node.entries()[i].value) else {
        return (None, None);
    };
    let text = |name: &str| match field(metadata, name).map(|i| &metadata.entries()[i].value.value) {
        Some(Value::Scalar(scalar)) if (1..=300).contains(&scalar.text.len()) => Some(scalar.text.as_str()),
        _ => None,
    };
    (text("name"), text("namespace"))
}

/// Reads the metadata of a resource that begins at `at`.
pub(super) fn read(decoder: &mut Decoder<'_>, node: Option<&Node>, at: Position, kind: &Kind) -> Metadata {
    let root = FieldPath::ROOT;
    let path = root.field("metadata");
    let is_workload = kind.name == "WorkloadEndpoint";
    let mut metadata = Metadata {
        name: None,
        name_at: node.map_or(at, |node| node.named_at),
        at: node.map_or(at, |node| node.named_at),
        namespace: kind.namespaced.then(|| "default".to_owned()),
        labels: Labels::new(),
        namespace_label_at: None,
        deny_action: None,
    };
    let Some(fields) = node.and_then(|node| decoder.fields(node, &path, TABLE)) else {
        if node.is_none() && !is_workload {
            decoder.missing(at, &path.field("name"), "missing: every resource has a name");
        }
        return metadata;
    };
    match fields.get("name") {
        Some(name) => {
            metadata.name_at = name.at;
            let path = path.field("name");
            if let Some(text) = decoder.text(name, &path) {
                kinds::check_name(decoder, name, &path, text, kind);
                metadata.name = Some(text.to_owned());
            }
        }
        None if is_workload => {}
        None => decoder.missing(fields.at, &path.field("name"), "missing: every resource has a name"),
    }
    if let Some(namespace) = fields.get("namespace") {
        let path = path.field("namespace");
        match decoder.text(namespace, &path) {
            Some("") | None => {}
            Some(_) if !kind.namespaced => {
                decoder.error(namespace, &path, format!("a {} has no namespace: remove it", kind.name));
            }
            Some(text) => {
                if let Err(message) = values::namespace_name(text) {
                    decoder.error(namespace, &path, message);
                }
                metadata.namespace = Some(text.to_owned());
            }
        }
    }
    if let Some(labels) = fields.get("labels") {
        let path = path.field("labels");
        let of_namespace = labels.entries().iter().find(|entry| entry.key == NAMESPACE_LABEL);
        metadata.namespace_label_at = of_namespace.map(|entry| entry.key_at);
        metadata.labels =
            if is_workload { decoder.labels_of_workload(labels, &path) } else { decoder.labels(labels, &path) };
    }
    if let Some(node) = fields.get("annotations") {
        let path = path.field("annotations");
        metadata.deny_action = annotations::read(decoder, node, &path, kind.has_deny_rules());
    }
    metadata
}
