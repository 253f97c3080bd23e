//! `GlobalNetworkPolicy`, `NetworkPolicy` and their staged forms: everything but their rules.

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    kinds::Document,
    model::{
        NAMESPACE_LABEL, NAMESPACE_PREFIX, Policy, PolicyHook, PolicyKind, SERVICE_ACCOUNT_LABEL,
        SERVICE_ACCOUNT_PREFIX, StagedAction,
    },
    parsed::{Body, ParsedPolicy},
    rules,
    selector::{Expression, Selector},
    source::Position,
    yaml::{Node, Value},
};

const STAGED_GLOBAL: Table = &[
    ("stagedAction", Use::Read),
    ("tier", Use::Read),
    ("order", Use::Read),
    ("selector", Use::Read),
    ("serviceAccountSelector", Use::Read),
    ("namespaceSelector", Use::Read),
    ("types", Use::Read),
    ("ingress", Use::Read),
    ("egress", Use::Read),
    ("doNotTrack", Use::Read),
    ("preDNAT", Use::Read),
    ("applyOnForward", Use::Read),
    // A hint for Felix's calculation; every policy is compiled in advance here.
    ("performanceHints", Use::Read),
];
const STAGED_NAMESPACED: Table = &[
    ("stagedAction", Use::Read),
    ("tier", Use::Read),
    ("order", Use::Read),
    ("selector", Use::Read),
    ("serviceAccountSelector", Use::Read),
    ("types", Use::Read),
    ("ingress", Use::Read),
    ("egress", Use::Read),
    ("performanceHints", Use::Read),
];
const GLOBAL: Table = enforced(STAGED_GLOBAL);
const NAMESPACED: Table = enforced(STAGED_NAMESPACED);
const STAGED_ACTIONS: [(&str, StagedAction); 4] = [
    ("Set", StagedAction::Set),
    ("Delete", StagedAction::Delete),
    ("Learn", StagedAction::Learn),
    ("Ignore", StagedAction::Ignore),
];

/// The tier of policies that name none.
pub(super) const DEFAULT_TIER: &str = "default";
/// Why `global()` is refused outside of `namespaceSelector` of a rule.
const NO_GLOBAL: &str = "global() means something only in the namespaceSelector of a rule";

/// The fields of a policy in force: all of a staged one's but the first.
pub(super) const fn enforced(staged: Table) -> Table {
    staged.split_at(1).1
}

/// Reads a `GlobalNetworkPolicy`.
pub(super) fn global(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::Global, GLOBAL)
}

/// Reads a `NetworkPolicy` of Calico.
pub(super) fn namespaced(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::Namespaced, NAMESPACED)
}

/// Reads a `StagedGlobalNetworkPolicy`.
pub(super) fn staged_global(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::StagedGlobal, STAGED_GLOBAL)
}

/// Reads a `StagedNetworkPolicy`.
pub(super) fn staged_namespaced(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    read(decoder, document, PolicyKind::StagedNamespaced, STAGED_NAMESPACED)
}

fn read(decoder: &mut Decoder<'_>, document: &Document<'_>, kind: PolicyKind, table: Table) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, table)?,
        None => Fields::none(document.at),
    };
    let staged = (kind != kind.enforced()).then(|| staged_action(decoder, &spec, &path, &["tier"]));
    let (tier, tier_at) = tier(decoder, &spec, &path, document);
    let order = spec.get("order").and_then(|node| decoder.number(node, &path.field("order")));
    if let Some(node) = spec.get("performanceHints") {
        performance_hints(decoder, node, &path.field("performanceHints"));
    }
    let selector = selector(decoder, &spec, &path, kind.enforced());
    let types = spec.get("types").and_then(|node| types(decoder, node, &path.field("types")));
    let ingress = rules::rules(decoder, spec.get("ingress"), &path.field("ingress"), document.metadata.deny_action);
    let egress = rules::rules(decoder, spec.get("egress"), &path.field("egress"), document.metadata.deny_action);
    let (hook, hook_at) = match kind.enforced() {
        PolicyKind::Global => hook(decoder, &spec, &path, types),
        _ => (PolicyHook::Normal, None),
    };

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
        hook,
        origin: decoder.origin(document.metadata.name_at),
    };
    Some(Body::Policy(Box::new(ParsedPolicy { policy: policy.into(), staged, tier_at, hook_at })))
}

/// Reads `stagedAction`. A policy that is to be deleted says nothing but which one: `which` are the fields for that.
pub(super) fn staged_action(
    decoder: &mut Decoder<'_>,
    spec: &Fields<'_>,
    path: &FieldPath<'_>,
    which: &[&str],
) -> StagedAction {
    let Some(node) = spec.get("stagedAction") else { return StagedAction::default() };
    let path_of_action = path.field("stagedAction");
    let Some(text) = decoder.text(node, &path_of_action).filter(|text| !text.is_empty()) else {
        return StagedAction::default();
    };
    let Some((_, action)) = STAGED_ACTIONS.into_iter().find(|(name, _)| *name == text) else {
        let right = did_you_mean(text, STAGED_ACTIONS.iter().map(|(name, _)| *name));
        decoder.error(node, &path_of_action, format!("unknown action \"{text}\"{right}"));
        return StagedAction::default();
    };
    if action == StagedAction::Delete {
        let others = spec.names_with_content().filter(|name| *name != "stagedAction" && !which.contains(name));
        for name in others.map(str::to_owned).collect::<Vec<_>>() {
            if let Some(node) = spec.get(&name) {
                let message = "a policy that is to be deleted has no content: remove this, or the stagedAction";
                decoder.missing(node.place(), &path.field(&name), message);
            }
        }
    }
    action
}

/// The tier, and where it is named.
fn tier(
    decoder: &mut Decoder<'_>,
    spec: &Fields<'_>,
    path: &FieldPath<'_>,
    document: &Document<'_>,
) -> (String, Position) {
    let path = path.field("tier");
    let Some(node) = spec.get("tier") else { return (DEFAULT_TIER.to_owned(), document.metadata.name_at) };
    let name = decoder.text(node, &path).filter(|text| !text.is_empty()).unwrap_or(DEFAULT_TIER);
    (name.to_owned(), node.at)
}

/// `selector`, `namespaceSelector` and `serviceAccountSelector` in one, as Calico makes it: of a global policy, with the second
/// `all()` is what has a namespace, with the last what has a service account (`convertGlobalNetworkPolicyV2ToV1Value`); of one of
/// a namespace it stays what it is (`convertNetworkPolicyV2ToV1Value`).
fn selector(decoder: &mut Decoder<'_>, spec: &Fields<'_>, path: &FieldPath<'_>, kind: PolicyKind) -> Option<Selector> {
    let mut read = |name: &str| match spec.get(name) {
        Some(node) if rules::is_empty_text(node) => Some(None),
        Some(node) => workload_selector(decoder, node, &path.field(name)).map(Some),
        None => Some(None),
    };
    let (own, namespaces, accounts) = (read("selector"), read("namespaceSelector"), read("serviceAccountSelector"));
    let mut selector = own?;
    for (other, prefix, label) in
        [(namespaces?, NAMESPACE_PREFIX, NAMESPACE_LABEL), (accounts?, SERVICE_ACCOUNT_PREFIX, SERVICE_ACCOUNT_LABEL)]
    {
        if let Some(other) = other {
            let both = Selector::all_of(selector.into_iter().chain([other.with_prefix(prefix)]));
            let all = Expression::Has(label.to_owned());
            selector = if kind == PolicyKind::Global { both.map(|both| both.with_all_as(&all)) } else { both };
        }
    }
    Some(selector.unwrap_or_else(Selector::all))
}

/// A field that says what a policy judges, and where it stands.
type HookAt = Option<(&'static str, Position)>;

/// What the policy judges.
fn hook(
    decoder: &mut Decoder<'_>,
    spec: &Fields<'_>,
    path: &FieldPath<'_>,
    types: Option<(bool, bool)>,
) -> (PolicyHook, HookAt) {
    let mut set = |name: &'static str| {
        let node = spec.get(name)?;
        decoder.boolean(node, &path.field(name)).filter(|set| *set).map(|_| (name, node))
    };
    let (untracked, pre_dnat, forward) = (set("doNotTrack"), set("preDNAT"), set("applyOnForward"));
    let Some((name, node)) = pre_dnat.or(untracked) else {
        return (if forward.is_some() { PolicyHook::Forward } else { PolicyHook::Normal }, None);
    };
    if pre_dnat.is_some() && untracked.is_some() {
        decoder.error(node, &path.field(name), "doNotTrack and preDNAT exclude each other: remove one of them");
    } else if forward.is_none() {
        decoder.error(node, &path.field(name), "needs \"applyOnForward: true\" beside it");
    }
    if pre_dnat.is_some() {
        if let Some(node) = spec.get("types").filter(|_| types.is_some_and(|(_, egress)| egress)) {
            decoder.missing(node.place(), &path.field("types"), "a preDNAT policy judges ingress only: remove Egress");
        }
        let has_items = |node: &&Node| matches!(&node.value, Value::Sequence(items) if !items.is_empty());
        if let Some(node) = spec.get("egress").filter(has_items) {
            decoder.missing(node.place(), &path.field("egress"), "a preDNAT policy has no egress rules");
        }
    }
    (if pre_dnat.is_some() { PolicyHook::PreDnat } else { PolicyHook::Untracked }, Some((name, node.at)))
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
