//! What can be checked only with all resources at hand, and the set that they make.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{
    diagnostic::{Diagnostic, Severity},
    model::{Profile, ResourceSet},
    parsed::{Body, Identity, ParsedWorkload},
    profile,
    reader::ParsedFile,
    source::{Position, SourceText},
};

/// How many names a finding lists.
const LISTED: usize = 20;

/// Puts the resources of all files together. `complete`: nothing was wrong so far, so that what is missing is missing.
pub(super) fn check(files: &[Arc<ParsedFile>], complete: bool) -> (ResourceSet, Vec<Diagnostic>) {
    let mut set = ResourceSet::default();
    let mut findings = Vec::new();
    let mut names: HashMap<(&str, Option<&str>, &str), Place<'_>> = HashMap::new();
    let mut workloads = Vec::new();
    let mut profiles: BTreeMap<String, Profile> = BTreeMap::new();
    let mut implied = Vec::new();
    for file in files {
        for parsed in &file.resources {
            let identity = &parsed.identity;
            let place = Place { source: &file.source, identity };
            let key = (identity.kind, identity.namespace.as_deref(), identity.base_name.as_str());
            if let Some(first) = names.get(&key) {
                let also =
                    if first.identity.name == identity.name { "" } else { ", with and without its tier in the name" };
                let message =
                    format!("the same resource stands at {first} already{also}: remove or rename one of them");
                findings.push(place.finding(Severity::Error, identity.metadata_at, "metadata.name", &message));
                continue;
            }
            names.insert(key, place);
            match &parsed.body {
                None => {}
                Some(Body::Workload(workload)) => workloads.push((place, &**workload)),
                Some(Body::Policy(policy)) => set.policies.push(policy.clone()),
                Some(Body::Profile(profile)) => {
                    profiles.insert(profile.name.clone(), profile.clone());
                }
                Some(Body::Namespace(namespace)) => {
                    implied.push(profile::implied_by(namespace));
                    set.namespaces.push(namespace.clone());
                }
                Some(Body::ServiceAccount(profile)) => implied.push(profile.clone()),
                Some(Body::Felix(configuration)) => {
                    set.felix.insert(identity.name.clone(), (**configuration).clone());
                }
            }
        }
    }
    implied.push(profile::default_allow());
    for profile in implied {
        profiles.entry(profile.name.clone()).or_insert(profile);
    }
    set.profiles = profiles.into_values().collect();
    check_workloads(&workloads, &mut findings);
    set.workloads = workloads.iter().map(|(_, workload)| workload.endpoint.clone()).collect();
    if complete && findings.iter().all(|finding| finding.severity != Severity::Error) {
        findings.extend(missing_profiles(&set, &workloads));
        findings.extend(endpoint_to_host_notice(&set, &workloads));
    }
    (set, findings)
}

/// A resource and the file it stands in.
#[derive(Clone, Copy)]
struct Place<'a> {
    source: &'a SourceText,
    identity: &'a Identity,
}

impl Place<'_> {
    fn finding(&self, severity: Severity, at: Position, field: &str, message: &str) -> Diagnostic {
        let width = self
            .source
            .rest_of_line(at)
            .map_or(1, |rest| rest.chars().take_while(|c| !c.is_whitespace() && !",{[]}".contains(*c)).count());
        let label = self.identity.label();
        self.source.diagnostic(severity, at, width, Some(&label), Some(field), message)
    }
}

/// `PATH:LINE`.
impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.source.path.display(), self.identity.name_at.line)
    }
}

/// No interface and no address twice on one node; one address on two nodes is for the time of a migration.
fn check_workloads(workloads: &[(Place<'_>, &ParsedWorkload)], findings: &mut Vec<Diagnostic>) {
    let mut interfaces: HashMap<(&str, &str), Place<'_>> = HashMap::new();
    let mut addresses: HashMap<IpAddr, Vec<(&str, Place<'_>)>> = HashMap::new();
    for (place, workload) in workloads {
        let endpoint = &workload.endpoint;
        let node = endpoint.node.as_str();
        match interfaces.get(&(node, endpoint.interface.as_str())) {
            Some(owner) => {
                let message = format!(
                    "{} of node {node} is the interface of {} already ({owner}): each workload has its own",
                    endpoint.interface,
                    owner.identity.label(),
                );
                findings.push(place.finding(Severity::Error, workload.interface_at, "spec.interfaceName", &message));
            }
            None => {
                interfaces.insert((node, &endpoint.interface), *place);
            }
        }
        let mut elsewhere = None;
        for (address, at) in endpoint.addresses.iter().zip(&workload.addresses_at) {
            let owners = addresses.entry(*address).or_default();
            if let Some((_, owner)) = owners.iter().find(|(other, _)| *other == node) {
                let message = format!(
                    "{address} is an address of {} on node {node} already ({owner}): each workload has its own",
                    owner.identity.label(),
                );
                findings.push(place.finding(Severity::Error, *at, "spec.ipNetworks", &message));
                continue;
            }
            if let Some((other, owner)) = owners.first() {
                elsewhere.get_or_insert_with(|| {
                    let message = format!(
                        "{address} is also an address of {} on node {other} ({owner}): where both run, one gets the traffic",
                        owner.identity.label(),
                    );
                    place.finding(Severity::Warning, *at, "spec.ipNetworks", &message)
                });
            }
            owners.push((node, *place));
        }
        findings.extend(elsewhere);
    }
}

/// One warning that names all profiles which workloads list and nobody brings.
fn missing_profiles(set: &ResourceSet, workloads: &[(Place<'_>, &ParsedWorkload)]) -> Option<Diagnostic> {
    let known: HashSet<&str> = set.profiles.iter().map(|profile| profile.name.as_str()).collect();
    let mut missing = BTreeSet::new();
    let mut first = None;
    for (place, workload) in workloads {
        for (name, at) in workload.endpoint.profiles.iter().zip(&workload.profiles_at) {
            if !known.contains(name.as_str()) {
                missing.insert(name.as_str());
                first.get_or_insert((place, *at));
            }
        }
    }
    let (place, at) = first?;
    let mut listed: Vec<_> = missing.iter().copied().take(LISTED).collect();
    let more = format!("and {} more", missing.len() - listed.len());
    if missing.len() > listed.len() {
        listed.push(&more);
    }
    let (noun, verb) = if missing.len() == 1 { ("profile", "does") } else { ("profiles", "do") };
    let message = format!(
        "the {noun} {} {verb} not exist: a workload that lists a missing profile is denied what no policy decides",
        listed.join(", ")
    );
    Some(place.finding(Severity::Warning, at, "spec.profiles", &message))
}

/// Calico's manifests for Kubernetes allow workloads to reach their host by an environment variable; files do not show it.
fn endpoint_to_host_notice(set: &ResourceSet, workloads: &[(Place<'_>, &ParsedWorkload)]) -> Option<Diagnostic> {
    let mut undecided: HashMap<&str, bool> = HashMap::new();
    let (place, _) = workloads.iter().find(|(_, workload)| {
        let endpoint = &workload.endpoint;
        endpoint.orchestrator == "k8s"
            && *undecided
                .entry(&endpoint.node)
                .or_insert_with(|| set.felix_for(&endpoint.node).default_endpoint_to_host_action.is_none())
    })?;
    let message = "workloads cannot reach their own host (Drop), since no FelixConfiguration sets \
                   defaultEndpointToHostAction; Calico's manifests for Kubernetes set ACCEPT by environment: \
                   set \"defaultEndpointToHostAction: Accept\" in FelixConfiguration \"default\" to have the same here";
    Some(place.finding(Severity::Notice, place.identity.name_at, "spec.orchestrator", message))
}
