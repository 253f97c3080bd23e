//! Profiles: written, and implied by namespaces and service accounts.

use std::{path::Path, sync::Arc};

use super::{
    decode::{Decoder, FieldPath, Fields, Table, Use},
    kinds::Document,
    model::{
        EntityRule, Labels, NAMESPACE_PREFIX, Namespace, Origin, Profile, Rule, RuleAction, SERVICE_ACCOUNT_PREFIX,
    },
    parsed::Body,
    rules,
};

const PROFILE: Table = &[("ingress", Use::Read), ("egress", Use::Read), ("labelsToApply", Use::Read)];

/// The profile that Calico makes for host endpoints: allow everything. It exists always.
const DEFAULT_ALLOW: &str = "projectcalico-default-allow";

/// Reads a `Profile`.
pub(super) fn profile(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, PROFILE)?,
        None => Fields::none(document.at),
    };
    let labels = spec.get("labelsToApply").map(|node| decoder.labels(node, &path.field("labelsToApply")));
    let profile = Profile {
        name: document.metadata.name.clone()?,
        ingress: rules::rules(decoder, spec.get("ingress"), &path.field("ingress"), document.metadata.deny_action),
        egress: rules::rules(decoder, spec.get("egress"), &path.field("egress"), document.metadata.deny_action),
        labels_to_apply: labels.unwrap_or_default(),
        origin: Some(decoder.origin(document.metadata.name_at)),
    };
    Some(Body::Profile(profile))
}

/// Reads a `Namespace`.
pub(super) fn namespace(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    Some(Body::Namespace(Namespace {
        name: document.metadata.name.clone()?,
        labels: document.metadata.labels.clone(),
        origin: decoder.origin(document.metadata.name_at),
    }))
}

/// Reads a `ServiceAccount`, of which only the implied profile matters.
pub(super) fn service_account(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let name = document.metadata.name.as_deref()?;
    let namespace = document.metadata.namespace.as_deref()?;
    Some(Body::ServiceAccount(Profile {
        name: format!("ksa.{namespace}.{name}"),
        // It brings labels only, as in Calico: whether traffic is allowed is the business of the namespace's profile.
        ingress: Vec::new(),
        egress: Vec::new(),
        labels_to_apply: prefixed_labels(SERVICE_ACCOUNT_PREFIX, name, &document.metadata.labels),
        origin: Some(decoder.origin(document.metadata.name_at)),
    }))
}

/// The name of the profile that a namespace implies.
pub(super) fn of_namespace(namespace: &str) -> String {
    format!("kns.{namespace}")
}

/// The profile that a namespace implies, as Calico makes it on Kubernetes: allow all, and hand the labels on.
pub(super) fn implied_by(namespace: &Namespace) -> Profile {
    let allow = vec![allow_all(namespace.origin.clone())];
    Profile {
        name: of_namespace(&namespace.name),
        ingress: allow.clone(),
        egress: allow,
        labels_to_apply: prefixed_labels(NAMESPACE_PREFIX, &namespace.name, &namespace.labels),
        origin: Some(namespace.origin.clone()),
    }
}

/// `projectcalico-default-allow`.
pub(super) fn default_allow() -> Profile {
    let allow = vec![allow_all(Origin { path: Arc::from(Path::new("(built in)")), line: 1, column: 1 })];
    Profile {
        name: DEFAULT_ALLOW.to_owned(),
        ingress: allow.clone(),
        egress: allow,
        labels_to_apply: Labels::new(),
        origin: None,
    }
}

fn prefixed_labels(prefix: &str, name: &str, labels: &Labels) -> Labels {
    let own = labels.iter().map(|(key, value)| (format!("{prefix}{key}"), value.clone()));
    own.chain([(format!("{prefix}projectcalico.org/name"), name.to_owned())]).collect()
}

fn allow_all(origin: Origin) -> Rule {
    Rule {
        action: RuleAction::Allow,
        deny_action: None,
        number: None,
        ip_version: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: EntityRule::default(),
        destination: EntityRule::default(),
        origin,
    }
}
