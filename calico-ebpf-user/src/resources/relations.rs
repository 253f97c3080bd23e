//! What can be checked only with all resources at hand, and the set that they make.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::Entry},
    hash::{DefaultHasher, Hash, Hasher as _},
    net::IpAddr,
    sync::Arc,
};

use super::{
    decode::did_you_mean,
    diagnostic::{Diagnostic, Severity},
    model::{
        BUILT_IN_TIERS, HostEndpoint, HostInterface, PolicyHook, Profile, ResourceSet, StagedPolicy, WorkloadEndpoint,
    },
    parsed::{Body, Identity, Parsed, ParsedHostEndpoint, ParsedPolicy, ParsedWorkload},
    profile,
    reader::ParsedFile,
    shared::Shared,
    source::{Position, SourceText},
};

/// How many names a finding lists.
const LISTED: usize = 20;
/// `spec.orchestrator` of Kubernetes' workloads.
const KUBERNETES: &str = "k8s";

/// What a file has to say to the others, so that nobody has to look at each of its resources at every load.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// Hashes of what it claims for itself: names of resources, interfaces and addresses of workloads.
    claims: Vec<u64>,
    /// Its workloads.
    workloads: Vec<Shared<WorkloadEndpoint>>,
    /// Which resources are none.
    others: Vec<usize>,
    /// Profiles that workloads and host endpoints list.
    profiles: BTreeSet<String>,
    /// Nodes of Kubernetes' workloads.
    kubernetes_nodes: BTreeSet<String>,
}

impl Summary {
    pub(super) fn of(resources: &[Parsed]) -> Self {
        fn claim(of: impl Hash) -> u64 {
            let mut hasher = DefaultHasher::new();
            of.hash(&mut hasher);
            hasher.finish()
        }
        fn add(to: &mut BTreeSet<String>, text: &str) {
            if !to.contains(text) {
                to.insert(text.to_owned());
            }
        }
        let mut summary = Self::default();
        for (index, Parsed { identity, body }) in resources.iter().enumerate() {
            let claims = &mut summary.claims;
            let Identity { kind, api_version, namespace, name, in_tier, .. } = identity;
            claims.push(claim(("name", kind, api_version, namespace, name)));
            claims.extend(in_tier.as_ref().map(|in_tier| claim(("in tier", kind, namespace, in_tier))));
            if let Some(Body::HostEndpoint(host)) = body {
                host.endpoint.profiles.iter().for_each(|profile| add(&mut summary.profiles, profile));
            }
            let Some(Body::Workload(workload)) = body else {
                summary.others.push(index);
                continue;
            };
            let endpoint = &workload.endpoint;
            claims.push(claim(("interface", &endpoint.node, &endpoint.interface)));
            claims.extend(endpoint.addresses.iter().map(|address| claim(("address", address))));
            endpoint.profiles.iter().for_each(|profile| add(&mut summary.profiles, profile));
            if endpoint.orchestrator == KUBERNETES {
                add(&mut summary.kubernetes_nodes, &endpoint.node);
            }
            summary.workloads.push(endpoint.clone());
        }
        summary
    }
}

/// What all files claim, and which profiles they list. Where no two claims are alike, nothing is there twice, and nobody has
/// to look for it.
#[derive(Debug, Default)]
pub(super) struct Claims {
    made: HashMap<u64, u32>,
    /// How many are made more than once.
    repeated: usize,
    /// Profiles that are listed, and in how many files.
    profiles: HashMap<String, u32>,
}

impl Claims {
    pub(super) fn make(&mut self, of: &Summary) {
        for claim in &of.claims {
            let times = self.made.entry(*claim).or_default();
            *times += 1;
            self.repeated += usize::from(*times == 2);
        }
        for name in &of.profiles {
            match self.profiles.get_mut(name) {
                Some(files) => *files += 1,
                None => drop(self.profiles.insert(name.clone(), 1)),
            }
        }
    }

    pub(super) fn withdraw(&mut self, of: &Summary) {
        for claim in &of.claims {
            let Entry::Occupied(mut times) = self.made.entry(*claim) else { continue };
            *times.get_mut() -= 1;
            match times.get() {
                0 => drop(times.remove()),
                1 => self.repeated -= 1,
                _ => {}
            }
        }
        for name in &of.profiles {
            if let Some(files) = self.profiles.get_mut(name) {
                *files -= 1;
                if *files == 0 {
                    self.profiles.remove(name);
                }
            }
        }
    }

    fn all_differ(&self) -> bool {
        self.repeated == 0
    }
}

/// Puts the resources of all files together. `complete`: nothing was wrong so far, so that what is missing is missing.
pub(super) fn check(files: &[Arc<ParsedFile>], claims: &Claims, complete: bool) -> (ResourceSet, Vec<Diagnostic>) {
    let mut set = ResourceSet::default();
    let mut findings = Vec::new();
    let all_differ = claims.all_differ();
    let mut names = Names::default();
    // Where something is there twice, each resource has to be looked at.
    let mut workloads = Vec::new();
    let mut host_endpoints = Vec::new();
    let mut policies = Vec::new();
    let mut bgp_peers = Vec::new();
    let mut profiles: BTreeMap<String, Profile> = BTreeMap::new();
    let mut implied = Vec::new();
    for file in files {
        let all = 0..file.resources.len();
        let (all, others) = if all_differ { (0..0, &file.summary.others[..]) } else { (all, &[][..]) };
        for parsed in others.iter().copied().chain(all).map(|index| &file.resources[index]) {
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
                Some(Body::HostEndpoint(host)) => {
                    host_endpoints.push((place, &**host));
                    set.host_endpoints.insert(name(), host.endpoint.clone());
                }
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
                Some(Body::BgpConfiguration(configuration)) => {
                    set.bgp.insert(name(), (**configuration).clone());
                }
                Some(Body::BgpPeer(peer, filters_at)) => {
                    bgp_peers.push((place, &**peer, filters_at));
                    set.bgp_peers.insert(name(), (**peer).clone());
                }
                Some(Body::BgpFilter(filter)) => {
                    set.bgp_filters.insert(name(), (**filter).clone());
                }
                Some(Body::Felix(configuration)) => {
                    set.felix.insert(name(), (**configuration).clone());
                }
            }
        }
    }
    for (place, ParsedPolicy { policy, staged, tier_at, .. }) in &policies {
        // A tier with an error in it is there all the same.
        if set.tier(&policy.tier).is_none() && !is_written(files, "Tier", &policy.tier) {
            findings.push(place.finding(Severity::Error, *tier_at, "spec.tier", &missing_tier(&set, &policy.tier)));
        }
        match staged {
            None => set.policies.push(policy.clone()),
            Some(action) => set.staged.push(StagedPolicy { action: *action, policy: policy.clone() }),
        }
    }
    for (place, peer, filters_at) in bgp_peers {
        for (name, at) in peer.filters.iter().zip(filters_at) {
            if !is_written(files, "BGPFilter", name) {
                let known = did_you_mean(name, set.bgp_filters.keys().map(String::as_str));
                let message = format!("the BGPFilter \"{name}\" does not exist{known}");
                findings.push(place.finding(Severity::Error, *at, "spec.filters", &message));
            }
        }
    }
    implied.push(profile::default_allow());
    for profile in implied {
        profiles.entry(profile.name.clone()).or_insert(profile);
    }
    set.profiles = profiles.into_values().collect();
    set.workloads = if all_differ {
        files.iter().flat_map(|file| &file.summary.workloads).cloned().collect()
    } else {
        check_workloads(&workloads, &mut findings);
        workloads.iter().map(|(_, workload)| workload.endpoint.clone()).collect()
    };
    findings.extend(check_host_endpoints(&set, &host_endpoints));
    if complete && findings.iter().all(|finding| finding.severity != Severity::Error) {
        findings.extend(check_host_policies(&set, &policies));
        findings.extend(missing_profiles(&set, files, claims));
        findings.extend(endpoint_to_host_notice(&set, files));
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

/// Whether there is such a resource, even if something is wrong with it.
fn is_written(files: &[Arc<ParsedFile>], kind: &str, name: &str) -> bool {
    let mut identities = files.iter().flat_map(|file| &file.resources).map(|parsed| &parsed.identity);
    identities.any(|identity| identity.kind == kind && identity.name == name)
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

/// No host endpoint is the interface of a workload. Where several are one interface, the first by name is it
/// (`resolveHostEndpoints` of Felix).
fn check_host_endpoints(set: &ResourceSet, endpoints: &[(Place<'_>, &ParsedHostEndpoint)]) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for (place, host) in endpoints {
        let HostEndpoint { name, node, interface, .. } = &*host.endpoint;
        let finding =
            |severity, message: &str| place.finding(severity, place.identity.name_at, "spec.interfaceName", message);
        if let HostInterface::Named(interface) = interface
            && let Some(owner) = set.workloads.iter().find(|w| w.node == *node && w.interface == *interface)
        {
            let message = format!(
                "{interface} of node {node} is the interface of WorkloadEndpoint/{}/{}: a host endpoint has one of the host's",
                owner.namespace, owner.name
            );
            findings.push(finding(Severity::Error, &message));
        }
        let first = set.host_endpoints_of(node).find(|other| other.interface == *interface);
        if let Some(first) = first.filter(|first| first.name != *name) {
            let message = format!(
                "the same interface of node {node} is HostEndpoint/{}, which comes first by name: this one has no effect",
                first.name
            );
            findings.push(finding(Severity::Warning, &message));
        }
    }
    findings
}

/// Policies that judge host endpoints only: those that select none, and those that cannot be enforced.
fn check_host_policies(set: &ResourceSet, policies: &[(Place<'_>, &ParsedPolicy)]) -> Vec<Diagnostic> {
    let mut findings = Vec::new();
    for (place, ParsedPolicy { policy, staged, hook_at, .. }) in policies {
        let Some((name, at)) = hook_at else { continue };
        let field = format!("spec.{name}");
        let mut selected =
            set.host_endpoints.values().filter(|host| policy.selects_host_endpoint(set, host)).peekable();
        if selected.peek().is_none() {
            let message = "such a policy judges host endpoints only, and it selects none: it has no effect";
            findings.push(place.finding(Severity::Warning, *at, &field, message));
        }
        if policy.hook == PolicyHook::Untracked && staged.is_none() {
            findings.extend(selected.find_map(|host| {
                let (severity, why) = match host.interface {
                    HostInterface::Named(_) => return None,
                    // As in Felix, which renders none for it.
                    HostInterface::All => {
                        (Severity::Warning, "is all interfaces: policy before connection tracking has no effect there")
                    }
                    HostInterface::Carrying(_) => (
                        Severity::Error,
                        "has no interfaceName: policy before connection tracking would not be enforced there",
                    ),
                };
                let message = format!("it selects HostEndpoint/{}, which {why}", host.name);
                Some(place.finding(severity, *at, &field, &message))
            }));
        }
    }
    findings
}

fn workloads_of(files: &[Arc<ParsedFile>]) -> impl Iterator<Item = (Place<'_>, &ParsedWorkload)> {
    files.iter().flat_map(|file| {
        file.resources.iter().filter_map(|Parsed { identity, body }| match body {
            Some(Body::Workload(workload)) => Some((Place { source: &file.source, identity }, &**workload)),
            _ => None,
        })
    })
}

/// The profiles that workloads and host endpoints list, and where.
fn profiles_of(files: &[Arc<ParsedFile>]) -> impl Iterator<Item = (Place<'_>, &[String], &[Position])> {
    files.iter().flat_map(|file| {
        file.resources.iter().filter_map(|Parsed { identity, body }| {
            let place = Place { source: &file.source, identity };
            match body {
                Some(Body::Workload(workload)) => {
                    Some((place, &workload.endpoint.profiles[..], &workload.profiles_at[..]))
                }
                Some(Body::HostEndpoint(host)) => Some((place, &host.endpoint.profiles[..], &host.profiles_at[..])),
                _ => None,
            }
        })
    })
}

/// One warning that names all profiles which endpoints list and nobody brings.
fn missing_profiles(set: &ResourceSet, files: &[Arc<ParsedFile>], claims: &Claims) -> Option<Diagnostic> {
    let known: HashSet<&str> = set.profiles.iter().map(|profile| profile.name.as_str()).collect();
    if claims.profiles.keys().all(|name| known.contains(name.as_str())) {
        return None;
    }
    let mut missing = BTreeSet::new();
    let mut first = None;
    for (place, profiles, profiles_at) in profiles_of(files) {
        for (name, at) in profiles.iter().zip(profiles_at) {
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
        "the {noun} {} {verb} not exist: an endpoint that lists a missing profile is denied what no policy decides",
        listed.join(", ")
    );
    Some(place.finding(Severity::Warning, at, "spec.profiles", &message))
}

/// Calico's manifests for Kubernetes allow workloads to reach their host by an environment variable; files do not show it.
fn endpoint_to_host_notice(set: &ResourceSet, files: &[Arc<ParsedFile>]) -> Option<Diagnostic> {
    let is_undecided = |node: &str| set.felix_for(node).default_endpoint_to_host_action.is_none();
    let file = files.iter().find(|file| file.summary.kubernetes_nodes.iter().any(|node| is_undecided(node)))?;
    let (place, _) = workloads_of(std::slice::from_ref(file))
        .find(|(_, workload)| workload.endpoint.orchestrator == KUBERNETES && is_undecided(&workload.endpoint.node))?;
    let message = "workloads cannot reach their own host (Drop), since no FelixConfiguration sets \
                   defaultEndpointToHostAction; Calico's manifests for Kubernetes set ACCEPT by environment: \
                   set \"defaultEndpointToHostAction: Accept\" in FelixConfiguration \"default\" to have the same here";
    Some(place.finding(Severity::Notice, place.identity.name_at, "spec.orchestrator", message))
}
