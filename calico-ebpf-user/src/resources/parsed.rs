//! What one file gives: resources that are right in themselves, with the places that checks across files point to.

use super::{
    model::{
        BgpConfiguration, BgpFilter, BgpPeer, FelixConfiguration, HostEndpoint, IpPool, Namespace, NetworkSet, Node,
        Policy, Profile, StagedAction, Tier, WorkloadEndpoint,
    },
    shared::Shared,
    source::Position,
};

/// A resource with its identity.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    pub(super) identity: Identity,
    /// Absent where something was wrong with it.
    pub(super) body: Option<Body>,
}

impl Parsed {
    /// Becomes one with what the file had in this place before, if that says the same: nothing is derived again then.
    pub(super) fn stay(&mut self, before: &Self) {
        fn stay<T: PartialEq>(is: &mut Shared<T>, was: &Shared<T>) {
            if !is.is(was) && **is == **was {
                *is = was.clone();
            }
        }
        match (&mut self.body, &before.body) {
            (Some(Body::Workload(is)), Some(Body::Workload(was))) => stay(&mut is.endpoint, &was.endpoint),
            (Some(Body::HostEndpoint(is)), Some(Body::HostEndpoint(was))) => stay(&mut is.endpoint, &was.endpoint),
            (Some(Body::Policy(is)), Some(Body::Policy(was))) => stay(&mut is.policy, &was.policy),
            (Some(Body::NetworkSet(is)), Some(Body::NetworkSet(was))) => stay(is, was),
            _ => {}
        }
    }
}

/// What makes two resources the same one.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) kind: &'static str,
    pub(super) api_version: &'static str,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    /// Of a policy: its tier, and its name without the prefix of that, since both forms are one name.
    pub(super) in_tier: Option<(String, String)>,
    /// Where the name stands, or the mapping that lacks it.
    pub(super) name_at: Position,
    /// Where the metadata begin, or the resource that has none.
    pub(super) metadata_at: Position,
}

impl Identity {
    /// `Kind/name` or `Kind/namespace/name`.
    pub(super) fn label(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{}/{namespace}/{}", self.kind, self.name),
            None => format!("{}/{}", self.kind, self.name),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    Workload(Box<ParsedWorkload>),
    HostEndpoint(Box<ParsedHostEndpoint>),
    Policy(Box<ParsedPolicy>),
    Tier(Tier),
    Profile(Profile),
    Namespace(Namespace),
    /// The profile that it implies.
    ServiceAccount(Profile),
    NetworkSet(Shared<NetworkSet>),
    Pool(Box<IpPool>),
    Node(Box<Node>),
    Felix(Box<FelixConfiguration>),
    BgpConfiguration(Box<BgpConfiguration>),
    /// And where its filters are named.
    BgpPeer(Box<BgpPeer>, Vec<Position>),
    BgpFilter(Box<BgpFilter>),
}

/// A policy and the place that checks across files point to.
#[derive(Clone, Debug)]
pub(super) struct ParsedPolicy {
    pub(super) policy: Shared<Policy>,
    /// Of a staged one.
    pub(super) staged: Option<StagedAction>,
    /// Where the tier is named.
    pub(super) tier_at: Position,
    /// Where it says what it judges: `doNotTrack` or `preDNAT`, and the name of that field.
    pub(super) hook_at: Option<(&'static str, Position)>,
}

/// A workload and the places that checks across files point to.
#[derive(Clone, Debug)]
pub(super) struct ParsedWorkload {
    pub(super) endpoint: Shared<WorkloadEndpoint>,
    pub(super) interface_at: Position,
    /// One for each address.
    pub(super) addresses_at: Vec<Position>,
    /// One for each profile.
    pub(super) profiles_at: Vec<Position>,
}

/// A host endpoint and the places that checks across files point to.
#[derive(Clone, Debug)]
pub(super) struct ParsedHostEndpoint {
    pub(super) endpoint: Shared<HostEndpoint>,
    /// One for each profile.
    pub(super) profiles_at: Vec<Position>,
}
