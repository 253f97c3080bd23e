//! What BGP is told.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::resources::selector::Selector;

/// A `BGPConfiguration`; absent: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BgpConfiguration {
    /// `asNumber`, of nodes that have none of their own.
    pub as_number: Option<u32>,
    /// `nodeToNodeMeshEnabled`.
    pub mesh: Option<bool>,
    /// `listenPort`.
    pub listen_port: Option<u16>,
    /// `nodeMeshMaxRestartTime`, in seconds.
    pub mesh_restart_time: Option<u16>,
    /// `prefixAdvertisements`, with the values of named communities.
    pub advertisements: Vec<PrefixAdvertisement>,
    /// Fields that say something a routing daemon cannot be told here.
    pub unsupported: Vec<&'static str>,
}

/// An entry of `prefixAdvertisements`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixAdvertisement {
    /// Routes in here.
    pub cidr: IpNet,
    /// What they are told with.
    pub communities: Vec<Community>,
}

/// A community of BGP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Community {
    /// `aa:nn`.
    Standard(u16, u16),
    /// `aa:nn:mm`.
    Large(u32, u32, u32),
}

/// A `BGPPeer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpPeer {
    /// `node`: which node has this peer. Without this and the next: all.
    pub node: Option<String>,
    /// `nodeSelector`: which nodes have this peer.
    pub node_selector: Option<Selector>,
    /// Who it is.
    pub at: BgpPeerAt,
    /// `nextHopMode` and `keepOriginalNextHop`.
    pub next_hop: BgpNextHop,
    /// `sourceAddress`: sessions come from the node's address.
    pub from_node_address: bool,
    /// `reversePeering`: nodes that are the peer have the other end without a resource of their own.
    pub reverse: bool,
    /// `maxRestartTime`, in seconds.
    pub restart_time: Option<u16>,
    /// `numAllowedLocalASNumbers`.
    pub allowed_local_as: u8,
    /// `ttlSecurity`: how many hops away it may be.
    pub ttl_security: Option<u8>,
    /// Names of `BGPFilter`s.
    pub filters: Vec<String>,
    /// Fields that say something a routing daemon cannot be told here.
    pub unsupported: Vec<&'static str>,
}

/// Who a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BgpPeerAt {
    /// `peerIP` and `asNumber`.
    Address {
        /// Address.
        address: IpAddr,
        /// Port, if it is not the usual one.
        port: Option<u16>,
        /// Its autonomous system.
        as_number: u32,
    },
    /// `peerSelector`: nodes.
    Nodes(Selector),
}

/// What next hop a peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BgpNextHop {
    /// This node towards another autonomous system, the original one else.
    Auto,
    /// This node.
    Own,
    /// The original one.
    Keep,
}

/// A `BGPFilter`: rules in order, IPv4's first. What no rule decides goes on as without the filter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BgpFilter {
    /// About routes that are told to the peer.
    pub export: [Vec<BgpFilterRule>; 2],
    /// About routes that the peer tells.
    pub import: [Vec<BgpFilterRule>; 2],
}

/// A rule of a `BGPFilter`. All conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpFilterRule {
    /// `cidr`, `matchOperator` and `prefixLength`.
    pub prefix: Option<PrefixMatch>,
    /// `source: RemotePeers`: learnt by BGP.
    pub remote_peers: bool,
    /// `interface`, in which `*` stands for anything.
    pub interface: Option<String>,
    /// `peerType`: of another autonomous system, or of the own one.
    pub external: Option<bool>,
    /// `communities`.
    pub community: Option<Community>,
    /// `asPathPrefix`.
    pub as_path_prefix: Vec<u32>,
    /// `priority`.
    pub priority: Option<u32>,
    /// `action`.
    pub accept: bool,
    /// `operations`, in order.
    pub operations: Vec<BgpOperation>,
}

/// Which destinations a rule of a `BGPFilter` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixMatch {
    /// In here.
    pub net: IpNet,
    /// And at least so long.
    pub min: u8,
    /// And at most so long.
    pub max: u8,
    /// All others.
    pub negated: bool,
}

/// What a rule of a `BGPFilter` changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BgpOperation {
    /// `addCommunity`.
    AddCommunity(Community),
    /// `prependASPath`.
    PrependAsPath(Vec<u32>),
    /// `setPriority`.
    SetPriority(u32),
}
