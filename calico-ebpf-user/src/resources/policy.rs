//! `GlobalNetworkPolicy` and `NetworkPolicy`: everything but their rules.

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use},
    kinds::Document,
    model::{Policy, PolicyKind},
    parsed::Body,
    rules,
    selector::Selector,
    yaml::Node,
};

const GLOBAL: Table = &[
    ("tier", Use::Read),
    ("order", Use::Read),
    ("selector", Use::Read),
    ("serviceAccountSelector", Use::NotYet),
    ("namespaceSelector", Use::NotYet),
    ("types", Use::Read),
    ("ingress", Use::Read),
    ("egress", Use::Read),
    ("doNotTrack", Use::NotYet),
    ("preDNAT", Use::NotYet),
    ("applyOnForward", Use::NotYet),
    // A hint for Felix's calculation; every policy is compiled in advance here.
    ("performanceHints", Use::Read),
];
const NAMESPACED: Table = &[
    ("tier", Use::Read),
    ("order", Use::Read),
    ("selector", Use::Read),
    ("serviceAccountSelector", Use::NotYet),
    ("types", Use::Read),
    ("ingress", Use::Read),
    ("egress", Use::Read),
    ("performanceHints", Use::Read),
];

/// Why `global()` is refused outside of `namespaceSelector` of a rule.
const NO_GLOBAL: &str = "global() means something only in the namespaceSelector of a rule";

/// Reads a `GlobalNetworkPolicy`.
pub(super) fn global(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::Global, GLOBAL)
}

/// Reads a `NetworkPolicy` of Calico.
pub(super) fn namespaced(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::Namespaced, NAMESPACED)
}

fn read(decoder: &mut Decoder<'_>, document: &Document<'_>, kind: PolicyKind, table: Table) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, table)?,
        None => Fields::none(document.at),
    };
    let tier = tier(decoder, &spec, &path);
    let order = spec.get("order").and_then(|node| decoder.number(node, &path.field("order")));
    let selector = match spec.get("selector") {
        Some(node) => workload_selector(decoder, node, &path.field("selector")),
        None => Some(Selector::all()),
    };
    for name in ["serviceAccountSelector", "namespaceSelector"] {
        if let Some(node) = spec.get(name) {
            workload_selector(decoder, node, &path.field(name));
        }
    }
    for name in ["doNotTrack", "preDNAT", "applyOnForward"] {
        if let Some(node) = spec.get(name) {
            decoder.boolean(node, &path.field(name));
        }
    }
    if let Some(node) = spec.get("performanceHints") {
        performance_hints(decoder, node, &path.field("performanceHints"));
    }
    let types = spec.get("types").and_then(|node| types(decoder, node, &path.field("types")));
    let ingress = rules::rules(decoder, spec.get("ingress"), &path.field("ingress"));
    let egress = rules::rules(decoder, spec.get("egress"), &path.field("egress"));
    decoder.refuse_not_yet(&spec, &path, table);

    // Without `types`: what there are rules for, and ingress where there are none at all.
    let (applies_ingress, applies_egress) =
        types.unwrap_or((!ingress.is_empty() || egress.is_empty(), !egress.is_empty()));
    let policy = Policy {
        kind,
        namespace: document.metadata.namespace.clone(),
        name: document.metadata.name.clone()?,
        tier,
        order,
        selector: selector?,
        applies_ingress,
        applies_egress,
        ingress,
        egress,
        origin: decoder.origin(document.metadata.name_at),
    };
    Some(Body::Policy(policy.into()))
}

fn tier(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>) -> String {
    let path = path.field("tier");
    if let Some(node) = spec.get("tier")
        && let Some(tier) = decoder.text(node, &path)
        && !matches!(tier, "" | "default")
    {
        decoder.error(
            node,
            &path,
            format!("the tier \"{tier}\" does not exist: tiers but \"default\" are not supported yet"),
        );
    }
    "default".to_owned()
}

/// They have to be right, and change nothing.
fn performance_hints(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) {
    const HINT: &str = "AssumeNeededOnEveryNode";
    let mut seen = false;
    for (i, item) in decoder.list(node, path).iter().enumerate() {
        let path_of_item = path.index(i);
        match decoder.text(item, &path_of_item) {
            Some(HINT) if std::mem::replace(&mut seen, true) => {
                decoder.error(item, path, format!("{HINT} stands twice in the list"));
            }
            Some(HINT) | None => {}
            Some(text) => decoder.error(item, &path_of_item, format!("unknown hint \"{text}\": write {HINT}")),
        }
    }
}

/// A selector of workloads: `global()` has no place in it.
pub(super) fn workload_selector(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<Selector> {
    let selector = decoder.selector(node, path)?;
    if selector.mentions_global() {
        decoder.error(node, path, NO_GLOBAL);
        return None;
    }
    Some(selector)
}

/// Whether ingress and egress are in `types`; `None` for an empty list, which is like none.
fn types(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<(bool, bool)> {
    let (mut ingress, mut egress) = (false, false);
    for (i, item) in decoder.list(node, path).iter().enumerate() {
        let path_of_item = path.index(i);
        let Some(text) = decoder.text(item, &path_of_item) else { continue };
        let seen = match text {
            "Ingress" => &mut ingress,
            "Egress" => &mut egress,
            _ => {
                let right = if text.eq_ignore_ascii_case("egress") { "Egress" } else { "Ingress" };
                let message = if text.eq_ignore_ascii_case(right) {
                    format!("unknown type \"{text}\": write {right}")
                } else {
                    format!("unknown type \"{text}\": expected Ingress or Egress")
                };
                decoder.error(item, &path_of_item, message);
                continue;
            }
        };
        if std::mem::replace(seen, true) {
            decoder.error(item, path, format!("{text} stands twice in the list"));
        }
    }
    (ingress || egress).then_some((ingress, egress))
}
