//! What `validate` says about a set of files.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Serialize;

use super::{
    diagnostic::{Diagnostic, Severity},
    reader::Loaded,
};

/// The verdict about a set of files, with everything that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the files would be accepted (with `strict`, without warnings).
    pub ok: bool,
    /// How many files were read.
    pub files: usize,
    /// How many resources there are of each kind; those that others imply are left out. Empty if there are errors.
    pub resources: BTreeMap<&'static str, usize>,
    /// Errors.
    pub errors: Vec<Diagnostic>,
    /// Warnings.
    pub warnings: Vec<Diagnostic>,
    /// Notices.
    pub notices: Vec<Diagnostic>,
    /// What is odd about the node that was named: a warning, too, of no file.
    #[serde(rename = "nodeWarning", skip_serializing_if = "Option::is_none")]
    pub node_warning: Option<String>,
}

impl Report {
    /// `strict`: warnings fail, too. `node`: whose workloads are local.
    #[must_use]
    pub fn new(loaded: &Loaded, strict: bool, node: Option<&str>) -> Self {
        let of = |severity| loaded.of(severity).cloned().collect::<Vec<_>>();
        let (errors, warnings, notices) = (of(Severity::Error), of(Severity::Warning), of(Severity::Notice));
        let node_warning = node.filter(|_| errors.is_empty()).and_then(|node| loaded.set.unknown_node(node));
        let ok = errors.is_empty() && !(strict && (!warnings.is_empty() || node_warning.is_some()));
        let resources = if errors.is_empty() { count(loaded) } else { BTreeMap::new() };
        Self { ok, files: loaded.files.len(), resources, errors, warnings, notices, node_warning }
    }

    /// The findings for people, each with its source line; empty if there are none. Ends with a line break.
    #[must_use]
    pub fn findings(&self) -> String {
        let mut text = String::new();
        for finding in self.errors.iter().chain(&self.warnings).chain(&self.notices) {
            text.push_str(&finding.render());
            text.push('\n');
        }
        text
    }

    /// The verdict in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut text = match (self.ok, self.errors.len()) {
            (true, _) => "valid: ".to_owned(),
            (false, 0) => "refused, since warnings count (--strict): ".to_owned(),
            (false, errors) => format!("refused: {}, ", plural(errors, "error")),
        };
        let warnings = self.warnings.len() + usize::from(self.node_warning.is_some());
        if warnings > 0 {
            let _ = write!(text, "{}, ", plural(warnings, "warning"));
        }
        text.push_str(&plural(self.files, "file"));
        for (kind, count) in &self.resources {
            let _ = write!(text, ", {count} {kind}");
        }
        text
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn count(loaded: &Loaded) -> BTreeMap<&'static str, usize> {
    let set = &loaded.set;
    let mut counts = BTreeMap::new();
    for policy in set.policies.iter().chain(set.staged.iter().map(|staged| &staged.policy)) {
        *counts.entry(policy.kind.as_str()).or_default() += 1;
    }
    // Implied ones stand where their namespace or service account stands, or nowhere.
    let written = set.profiles.iter().filter(|profile| {
        profile.origin.is_some() && !profile.name.starts_with("kns.") && !profile.name.starts_with("ksa.")
    });
    for (kind, count) in [
        ("WorkloadEndpoint", set.workloads.len()),
        ("HostEndpoint", set.host_endpoints.len()),
        ("Namespace", set.namespaces.len()),
        ("Tier", set.tiers.len()),
        ("GlobalNetworkSet", set.network_sets.iter().filter(|set| set.namespace.is_none()).count()),
        ("NetworkSet", set.network_sets.iter().filter(|set| set.namespace.is_some()).count()),
        ("IPPool", set.ip_pools.len()),
        ("Node", set.node_resources.len()),
        ("FelixConfiguration", set.felix.len()),
        ("BGPConfiguration", set.bgp.len()),
        ("BGPPeer", set.bgp_peers.len()),
        ("BGPFilter", set.bgp_filters.len()),
        ("Profile", written.count()),
    ] {
        if count > 0 {
            counts.insert(kind, count);
        }
    }
    counts
}
