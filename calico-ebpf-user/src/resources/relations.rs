//! What can be checked only with all resources at hand, and the set that they make.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher as _},
    net::IpAddr,
    sync::Arc,
};

use super::{
    decode::did_you_mean,
    diagnostic::{Diagnostic, Severity},
    model::{BUILT_IN_TIERS, Profile, ResourceSet, StagedPolicy},
    parsed::{Body, Identity, Parsed, ParsedPolicy, ParsedWorkload},
    profile,
    reader::ParsedFile,
    source::{Position, SourceText},
};

/// How many names a finding lists.
const LISTED: usize = 20;

/// Hashes of what a file claims for itself: names of resources, interfaces and addresses of workloads. Where no two claims
/// of all files are alike, nothing is there twice, and nobody has to look at each of them again at every load.
pub(super) fn claims(resources: &[Parsed]) -> Vec<u64> {
    fn claim(of: impl Hash) -> u64 {
        let mut hasher = DefaultHasher::new();
        of.hash(&mut hasher);
        hasher.finish()
    }
    let mut claims = Vec::new();
    for Parsed { identity, body } in resources {
        let Identity { kind, api_version, namespace, name, in_tier, .. } = identity;
        claims.push(claim(("name", kind, api_version, namespace, name)));
        claims.extend(in_tier.as_ref().map(|in_tier| claim(("in tier", kind, namespace, in_tier))));
        if let Some(Body::Workload(workload)) = body {
            let endpoint = &workload.endpoint;
            claims.push(claim(("interface", &endpoint.node, &endpoint.interface)));
            claims.extend(endpoint.addresses.iter().map(|address| claim(("address", address))));
        }
    }
    claims
}

fn all_differ(files: &[Arc<ParsedFile>]) -> bool {
    let mut claims: Vec<u64> = files.iter().flat_map(|file| &file.claims).copied().collect();
    claims.sort_unstable();
    claims.windows(2).all(|two| two[0] != two[1])
}

/// Puts the resources of all files together. `complete`: nothing was wrong so far, so that what is missing is missing.
pub(super) fn check(files: &[Arc<ParsedFile>], complete: bool) -> (ResourceSet, Vec<Diagnostic>) {
    let mut set = ResourceSet::default();
    let mut findings = Vec::new();
    let all_differ = all_differ(files);
    let mut names = Names::default();
    let mut workloads = Vec::new();
    let mut policies = Vec::new();
    let mut profiles: BTreeMap<String, Profile> = BTreeMap::new();
    let mut implied = Vec::new();
    for file in files {
        for parsed in &file.resources {
            let identity = &parsed.identity;
            let place = Place { source: &file.source, identity };
            if !all_differ && let Some(message) = names.add(place) {
                findings.push(place.finding(Severity::Error, identity.metadata_at, "metadata.name", &message));
                continue;
            }
            let name = || identity.name.clone();
            match &parsed.body {
                None => {}
                Some(Body::Workload(workload)) => workloads.push((place, &**workload)),
                Some(Body::Policy(policy)) => policies.push((place, &**policy)),
                Some(Body::Tier(tier)) => {
                    set.tiers.insert(name(), tier.clone());
                }
                Some(Body::Profile(profile)) => {
                    profiles.insert(profile.name.clone(), profile.clone());
                }
                Some(Body::Namespace(namespace)) => {
                    implied.push(profile::implied_by(namespace));
                    set.namespaces.push(namespace.clone());
                }
                Some(Body::ServiceAccount(profile)) => implied.push(profile.clone()),
                Some(Body::NetworkSet(network_set)) => set.network_sets.push(network_set.clone()),
                Some(Body::Pool(pool)) => {
                    set.ip_pools.insert(name(), (**pool).clone());
                }
                Some(Body::Node(node)) => {
                    set.node_resources.insert(name(), (**node).clone());
                }
                Some(Body::Felix(configuration)) => {
                    set.felix.insert(name(), (**configuration).clone());
                }
            }
        }
    }
    for (place, ParsedPolicy { policy, staged, tier_at }) in policies {
        // A tier with an error in it is there all the same.
        if set.tier(&policy.tier).is_none() && !has_tier(files, &policy.tier) {
            findings.push(place.finding(Severity::Error, *tier_at, "spec.tier", &missing_tier(&set, &policy.tier)));
        }
        match staged {
            None => set.policies.push(policy.clone()),
            Some(action) => set.staged.push(StagedPolicy { action: *action, policy: policy.clone() }),
        }
    }
    implied.push(profile::default_allow());
    for profile in implied {
        profiles.entry(profile.name.clone()).or_insert(profile);
    }
    set.profiles = profiles.into_values().collect();
    if !all_differ {
        check_workloads(&workloads, &mut findings);
    }
    set.workloads = workloads.iter().map(|(_, workload)| workload.endpoint.clone()).collect();
    if complete && findings.iter().all(|finding| finding.severity != Severity::Error) {
        findings.extend(missing_profiles(&set, &workloads));
        findings.extend(endpoint_to_host_notice(&set, &workloads));
    }
    (set, findings)
}

/// The resources met so far, by what may not be twice.
#[derive(Default)]
struct Names<'a> {
    by_name: HashMap<(&'a str, &'a str, Option<&'a str>, &'a str), Place<'a>>,
    /// Policies by tier and name without it.
    in_tier: HashMap<(&'a str, Option<&'a str>, &'a str, &'a str), Place<'a>>,
}

impl<'a> Names<'a> {
    /// Adds a resource, or says where it stands already.
    fn add(&mut self, place: Place<'a>) -> Option<String> {
        let Identity { kind, api_version, namespace, name, in_tier, .. } = place.identity;
        let namespace = namespace.as_deref();
        if let Some(first) = self.by_name.get(&(*kind, *api_version, namespace, name.as_str())) {
            return Some(format!("the same resource stands at {first} already: remove or rename one of them"));
        }
        self.by_name.insert((kind, api_version, namespace, name), place);
        let (tier, base_name) = in_tier.as_ref()?;
        if let Some(first) = self.in_tier.get(&(*kind, namespace, tier.as_str(), base_name.as_str())) {
            return Some(format!(
                "the same resource stands at {first} already, with and without its tier in the name: \
                 remove or rename one of them"
            ));
        }
        self.in_tier.insert((kind, namespace, tier, base_name), place);
        None
    }
}

fn has_tier(files: &[Arc<ParsedFile>], name: &str) -> bool {
    let mut identities = files.iter().flat_map(|file| &file.resources).map(|parsed| &parsed.identity);
    identities.any(|identity| identity.kind == "Tier" && identity.name == name)
}

fn missing_tier(set: &ResourceSet, name: &str) -> String {
    let built_in = BUILT_IN_TIERS.iter().map(|(name, ..)| *name);
    let known: Vec<&str> = built_in.chain(set.tiers.keys().map(String::as_str)).collect();
    format!("the tier \"{name}\" does not exist{}", did_you_mean(name, known.into_iter()))
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
