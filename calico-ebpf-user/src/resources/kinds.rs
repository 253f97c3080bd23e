//! Documents to resources: which kinds there are, who reads them, what all of them have in common.

use super::{
    bgp,
    decode::{Decoder, FieldPath, Fields, Table, Use, did_you_mean},
    felix, host_endpoint, kubernetes,
    metadata::{self, Metadata},
    network_set, node,
    parsed::{Body, Identity, Parsed},
    policy, pool, profile,
    source::Position,
    tier, values, workload,
    yaml::{Node, Value},
};

const CALICO: &str = "projectcalico.org/v3";
const KUBERNETES_POLICY: &str = "networking.k8s.io/v1";
const CORE: &str = "v1";

/// A kind of resource.
pub(super) struct Kind {
    pub(super) name: &'static str,
    api_version: &'static str,
    pub(super) namespaced: bool,
    reader: Reader,
}

/// Reads the rest of a resource, once metadata is known.
type ReadBody = fn(&mut Decoder<'_>, &Document<'_>) -> Option<Body>;

impl Kind {
    /// Whether rules of such a resource can deny.
    pub(super) fn has_deny_rules(&self) -> bool {
        const KINDS: [&str; 5] =
            ["GlobalNetworkPolicy", "NetworkPolicy", "StagedGlobalNetworkPolicy", "StagedNetworkPolicy", "Profile"];
        self.api_version == CALICO && KINDS.contains(&self.name)
    }
}

enum Reader {
    Reads(Table, ReadBody),
    /// Known, and refused for now.
    NotYet,
}

/// A resource at hand.
pub(super) struct Document<'n> {
    /// The fields of the whole resource.
    pub(super) fields: Fields<'n>,
    pub(super) metadata: Metadata,
    /// Where the resource begins.
    pub(super) at: Position,
}

/// The fields of most kinds.
const WITH_SPEC: Table = &[
    ("apiVersion", Use::Read),
    ("kind", Use::Read),
    ("metadata", Use::Read),
    ("spec", Use::Read),
    ("status", Use::Ignored),
];
const NAMESPACE: Table = &[
    ("apiVersion", Use::Read),
    ("kind", Use::Read),
    ("metadata", Use::Read),
    ("spec", Use::Ignored),
    ("status", Use::Ignored),
];
const SERVICE_ACCOUNT: Table = &[
    ("apiVersion", Use::Read),
    ("kind", Use::Read),
    ("metadata", Use::Read),
    ("secrets", Use::Ignored),
    ("imagePullSecrets", Use::Ignored),
    ("automountServiceAccountToken", Use::Ignored),
];

const fn calico(name: &'static str, namespaced: bool, reader: Reader) -> Kind {
    Kind { name, api_version: CALICO, namespaced, reader }
}

/// Every kind that users may have in their files.
static KINDS: [Kind; 26] = [
    calico("GlobalNetworkPolicy", false, Reader::Reads(WITH_SPEC, policy::global)),
    calico("NetworkPolicy", true, Reader::Reads(WITH_SPEC, policy::namespaced)),
    calico("Profile", false, Reader::Reads(WITH_SPEC, profile::profile)),
    calico("WorkloadEndpoint", true, Reader::Reads(WITH_SPEC, workload::workload)),
    calico("FelixConfiguration", false, Reader::Reads(WITH_SPEC, felix::configuration)),
    Kind {
        name: "Namespace",
        api_version: CORE,
        namespaced: false,
        reader: Reader::Reads(NAMESPACE, profile::namespace),
    },
    Kind {
        name: "ServiceAccount",
        api_version: CORE,
        namespaced: true,
        reader: Reader::Reads(SERVICE_ACCOUNT, profile::service_account),
    },
    Kind {
        name: "NetworkPolicy",
        api_version: KUBERNETES_POLICY,
        namespaced: true,
        reader: Reader::Reads(WITH_SPEC, kubernetes::network_policy),
    },
    calico("StagedGlobalNetworkPolicy", false, Reader::Reads(WITH_SPEC, policy::staged_global)),
    calico("StagedNetworkPolicy", true, Reader::Reads(WITH_SPEC, policy::staged_namespaced)),
    calico("StagedKubernetesNetworkPolicy", true, Reader::Reads(WITH_SPEC, kubernetes::staged)),
    calico("Tier", false, Reader::Reads(WITH_SPEC, tier::tier)),
    calico("GlobalNetworkSet", false, Reader::Reads(WITH_SPEC, network_set::network_set)),
    calico("NetworkSet", true, Reader::Reads(WITH_SPEC, network_set::network_set)),
    calico("IPPool", false, Reader::Reads(WITH_SPEC, pool::pool)),
    calico("Node", false, Reader::Reads(WITH_SPEC, node::node)),
    calico("HostEndpoint", false, Reader::Reads(WITH_SPEC, host_endpoint::host_endpoint)),
    calico("BGPConfiguration", false, Reader::Reads(WITH_SPEC, bgp::configuration)),
    calico("BGPPeer", false, Reader::Reads(WITH_SPEC, bgp::peer)),
    calico("BGPFilter", false, Reader::Reads(WITH_SPEC, bgp::filter)),
    calico("IPReservation", false, Reader::NotYet),
    calico("IPAMConfiguration", false, Reader::NotYet),
    calico("BlockAffinity", false, Reader::NotYet),
    calico("CalicoNodeStatus", false, Reader::NotYet),
    calico("ClusterInformation", false, Reader::NotYet),
    calico("KubeControllersConfiguration", false, Reader::NotYet),
];

/// Reads a document: one resource, or a list of them.
pub(super) fn document(decoder: &mut Decoder<'_>, node: &Node, into: &mut Vec<Parsed>) {
    resource(decoder, node, None, into);
}

/// `expected`: the kind of the items of a `<Kind>List`, which may leave out what the list says.
fn resource(decoder: &mut Decoder<'_>, node: &Node, expected: Option<&'static Kind>, into: &mut Vec<Parsed>) {
    decoder.resource = None;
    let root = FieldPath::ROOT;
    let Value::Mapping(entries) = &node.value else {
        decoder.error(
            node,
            &root,
            format!("{} where a resource (apiVersion, kind, metadata, spec) is needed", node.describe()),
        );
        return;
    };
    let get = |name: &str| entries.iter().find(|e| e.key == name).map(|e| &e.value).filter(|value| !value.is_null());
    let api_version = match get("apiVersion") {
        Some(value) => decoder.text(value, &root.field("apiVersion")).map(|text| (text, value)),
        None => None,
    };
    let kind_name = match get("kind") {
        Some(value) => decoder.text(value, &root.field("kind")).map(|text| (text, value)),
        None => None,
    };
    if expected.is_none() && get("apiVersion").is_none() {
        let message = format!("missing: write \"apiVersion: {CALICO}\" for Calico's resources");
        decoder.missing(node.at, &root.field("apiVersion"), message);
    }
    if expected.is_none() && get("kind").is_none() {
        // Where it would stand: behind apiVersion.
        let after = entries.iter().skip_while(|e| e.key != "apiVersion").nth(1);
        let at = after.map_or(node.at, |entry| entry.key_at);
        decoder.missing(
            at,
            &root.field("kind"),
            "missing: it says what this resource is, like \"kind: GlobalNetworkPolicy\"",
        );
    }
    let kind = match (kind_name, api_version, expected) {
        (None, _, Some(kind)) => kind,
        (Some((name, at)), Some((version, version_at)), _) => {
            if list(decoder, node, name, version, into) {
                return;
            }
            match find(decoder, node, (name, at), (version, version_at)) {
                Some(kind) => kind,
                None => return,
            }
        }
        (Some((name, at)), None, _) => {
            let candidate = KINDS.iter().find(|kind| kind.name == name);
            if candidate.is_none() {
                decoder.error(at, &root.field("kind"), format!("unknown kind{}", suggest_kind(name)));
            }
            match (candidate, expected) {
                (Some(_), Some(kind)) if kind.name == name => kind,
                (Some(_), Some(kind)) => {
                    let message = format!("a {0}List holds {0} and nothing else", kind.name);
                    decoder.error(at, &root.field("kind"), message);
                    return;
                }
                _ => return,
            }
        }
        (None, _, None) => return,
    };
    read(decoder, node, kind, into);
}

/// The kind of this name and version.
fn find(
    decoder: &mut Decoder<'_>,
    node: &Node,
    (name, name_at): (&str, &Node),
    (version, version_at): (&str, &Node),
) -> Option<&'static Kind> {
    let root = FieldPath::ROOT;
    let mut named = KINDS.iter().filter(|kind| kind.name == name).peekable();
    if named.peek().is_none() {
        decoder.error(name_at, &root.field("kind"), format!("unknown kind{}", suggest_kind(name)));
        return None;
    }
    let versions: Vec<_> = KINDS.iter().filter(|kind| kind.name == name).map(|kind| kind.api_version).collect();
    if let Some(kind) = named.find(|kind| kind.api_version == version) {
        return Some(kind);
    }
    let message = if version.starts_with("crd.projectcalico.org/") {
        format!(
            "{version} is the form that Calico stores, not its API: export the resource as {CALICO} \
             (\"calicoctl get {} -o yaml\")",
            name.to_lowercase()
        )
    } else {
        format!("\"{version}\" is not a version of {name}: write {}", versions.join(" or "))
    };
    decoder.resource = KINDS.iter().find(|kind| kind.name == name).map(|kind| name_of(node, kind));
    decoder.error(version_at, &root.field("apiVersion"), message);
    decoder.resource = None;
    None
}

fn suggest_kind(name: &str) -> String {
    did_you_mean(name, KINDS.iter().map(|kind| kind.name).chain(["List"]))
}

/// Reads a `List` or `<Kind>List`; false if it is none.
fn list(decoder: &mut Decoder<'_>, node: &Node, name: &str, version: &str, into: &mut Vec<Parsed>) -> bool {
    const TABLE: Table =
        &[("apiVersion", Use::Read), ("kind", Use::Read), ("metadata", Use::Ignored), ("items", Use::Read)];
    let expected = match name.strip_suffix("List") {
        Some("") if version == CORE => None,
        Some(item) => match KINDS.iter().find(|kind| kind.name == item && kind.api_version == version) {
            Some(kind) => Some(kind),
            None => return false,
        },
        _ => return false,
    };
    let root = FieldPath::ROOT;
    decoder.resource = Some(name.to_owned());
    decoder.check_own_duplicate_keys(node.entries(), &root);
    let Some(fields) = decoder.fields(node, &root, TABLE) else {
        return true;
    };
    let path = root.field("items");
    if let Some(items) = fields.get("items") {
        for item in decoder.list(items, &path) {
            if decoder.is_full() {
                break;
            }
            resource(decoder, item, expected, into);
        }
    }
    decoder.resource = None;
    true
}

/// `Kind/name` of a resource, as far as it says.
fn name_of(node: &Node, kind: &Kind) -> String {
    match (metadata::peek_name(node), kind.namespaced) {
        ((Some(name), namespace), true) => format!("{}/{}/{name}", kind.name, namespace.unwrap_or("default")),
        ((Some(name), _), false) => format!("{}/{name}", kind.name),
        ((None, _), _) => kind.name.to_owned(),
    }
}

fn read(decoder: &mut Decoder<'_>, node: &Node, kind: &'static Kind, into: &mut Vec<Parsed>) {
    let root = FieldPath::ROOT;
    let before = decoder.errors();
    decoder.resource = Some(name_of(node, kind));
    let Reader::Reads(table, body) = &kind.reader else {
        let at = node.entries().iter().find(|entry| entry.key == "kind").map_or(node.at, |entry| entry.value.at);
        let message = format!("{} is not supported yet: what it says would not be enforced", kind.name);
        decoder.error_at(at, kind.name.len(), &root.field("kind"), message);
        return;
    };
    decoder.check_duplicate_keys(node, &root);
    let Some(fields) = decoder.fields(node, &root, table) else {
        return;
    };
    let metadata = metadata::read(decoder, fields.get("metadata"), node.at, kind);
    let mut document = Document { fields, metadata, at: node.at };
    if document.metadata.name.is_none() && kind.name == "WorkloadEndpoint" {
        document.metadata.name = workload::computed_name(decoder, &document);
    }
    if let Some(name) = &document.metadata.name {
        decoder.resource = Some(match &document.metadata.namespace {
            Some(namespace) => format!("{}/{namespace}/{name}", kind.name),
            None => format!("{}/{name}", kind.name),
        });
    }
    let body = body(decoder, &document);
    decoder.warn_without_effect();
    if let Some(name) = document.metadata.name {
        let in_tier = match &body {
            Some(Body::Policy(policy)) => Some((policy.policy.tier.clone(), policy.policy.base_name().to_owned())),
            _ => None,
        };
        let identity = Identity {
            kind: kind.name,
            api_version: kind.api_version,
            namespace: document.metadata.namespace,
            name,
            in_tier,
            name_at: document.metadata.name_at,
            metadata_at: document.metadata.at,
        };
        let body = body.filter(|_| decoder.errors() == before);
        into.push(Parsed { identity, body });
    }
    decoder.resource = None;
}

fn is_calico_policy(kind: &str) -> bool {
    kind.ends_with("NetworkPolicy") && kind != "StagedKubernetesNetworkPolicy"
}

/// Checks the name of a resource.
pub(super) fn check_name(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>, name: &str, kind: &Kind) {
    let checked = match kind.name {
        "Namespace" => values::namespace_name(name),
        "Tier" => values::tier_name(name),
        // The names of Kubernetes have as many dots as they like.
        _ if kind.api_version == CALICO && is_calico_policy(kind.name) => values::policy_name(name, kind.namespaced),
        _ => values::resource_name(name),
    };
    if let Err(message) = checked {
        decoder.error(node, path, message);
    }
}
