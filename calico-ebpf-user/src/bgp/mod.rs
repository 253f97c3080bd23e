//! How one node speaks BGP, as its resources say it, and the configuration of a routing daemon that does so. Pure.

mod bird;
mod frr;
mod gobgp;

use std::{
    collections::BTreeMap,
    iter,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, bail, ensure};
use ipnet::IpNet;

pub use self::{
    bird::bird,
    frr::{frr, zebra},
    gobgp::gobgp,
};
use crate::{
    resources::model::{
        BgpConfiguration, BgpFilter, BgpNextHop, BgpPeer, BgpPeerAt, Node, PrefixAdvertisement, ResourceSet,
    },
    routes::{DEFAULT_ELEVATED_PRIORITY, DEFAULT_PRIORITY},
};

/// Calico's AS number where none is given.
const DEFAULT_AS: u32 = 64512;
/// What BIRD waits for one that restarts, unless told otherwise: seconds.
const DEFAULT_RESTART_TIME: u16 = 120;
/// What metric and local preference of one route add up to, as in Calico's own configuration.
const SUM: u32 = 2_147_483_647;

/// An address family.
#[derive(Clone, Copy)]
struct Family {
    number: u8,
    whole: u8,
    index: usize,
}

const FAMILIES: [Family; 2] = [Family { number: 4, whole: 32, index: 0 }, Family { number: 6, whole: 128, index: 1 }];

impl Family {
    fn of(address: IpAddr) -> Self {
        FAMILIES[usize::from(address.is_ipv6())]
    }

    const fn has(self, net: &IpNet) -> bool {
        matches!(net, IpNet::V4(_)) == (self.number == 4)
    }
}

/// How one node speaks BGP.
#[derive(Clone, Debug)]
pub struct NodeBgp {
    /// The node.
    pub node: String,
    /// It is known by this number.
    pub router_id: Ipv4Addr,
    /// Its autonomous system.
    pub as_number: u32,
    /// Where it listens, if not at the usual port.
    pub port: Option<u16>,
    /// Its cluster, if it is a route reflector.
    pub cluster: Option<Ipv4Addr>,
    /// With whom it speaks.
    pub sessions: Vec<Session>,
    /// The blocks of addresses that are this node's: told as a whole, see [`blocks`].
    pub blocks: Vec<IpNet>,
    /// Pools, and whether their routes are told.
    pub pools: Vec<(IpNet, bool)>,
    /// Communities of routes.
    pub advertisements: Vec<PrefixAdvertisement>,
    /// What names of workloads' interfaces begin with.
    pub interface_prefixes: Vec<String>,
    /// Metric of a workload's route, IPv4 and IPv6: a lower one is that of a workload that is moving.
    pub priorities: [u32; 2],
    /// That of a workload that is moving.
    pub elevated_priorities: [u32; 2],
}

/// A session with one peer, over one address family.
#[derive(Clone, Debug)]
pub struct Session {
    /// What it is called.
    pub name: String,
    /// The peer.
    pub address: IpAddr,
    /// Its port, if not the usual one.
    pub port: Option<u16>,
    /// Its autonomous system.
    pub as_number: u32,
    /// Where it comes from.
    pub source: Option<IpAddr>,
    /// The peer connects.
    pub passive: bool,
    /// The peer is a client of this route reflector.
    pub client: bool,
    /// What next hop it is told.
    pub next_hop: BgpNextHop,
    /// How long it is waited for when it restarts, in seconds.
    pub restart_time: u16,
    /// How often the own AS number may be in a path.
    pub allowed_local_as: u8,
    /// How many hops away it may be, where that is checked.
    pub ttl_security: Option<u8>,
    /// What is told and taken.
    pub filters: Vec<BgpFilter>,
}

impl NodeBgp {
    /// Of `node`, as `set` says.
    ///
    /// # Errors
    /// There is no `Node` of this name with an address, or something is wanted that a routing daemon cannot be told here.
    pub fn new(set: &ResourceSet, node: &str) -> anyhow::Result<Self> {
        let own = set.node_resources.get(node).with_context(|| {
            format!("no Node is called \"{node}\": BGP needs its spec.bgp.ipv4Address or ipv6Address (--node names another one)")
        })?;
        ensure!(own.ipv4.or(own.ipv6).is_some(), "Node/{node}: spec.bgp.ipv4Address or ipv6Address is needed for BGP");
        let settings = settings(set, node);
        let felix = set.felix_for(node);
        let speaker = Speaker { set, node, own, settings: &settings };
        speaker.can_be_told()?;
        Ok(Self {
            node: node.to_owned(),
            router_id: own.ipv4.map_or_else(|| router_id(node), |net| address4(net.addr())),
            as_number: speaker.as_number_of(own),
            port: settings.listen_port,
            cluster: own.route_reflector_cluster_id,
            sessions: speaker.sessions(),
            blocks: blocks(set).into_iter().filter(|(_, owner)| *owner == node).map(|(block, _)| block).collect(),
            pools: set.ip_pools.values().map(|pool| (pool.cidr, !pool.disable_bgp_export)).collect(),
            advertisements: settings.advertisements.clone(),
            interface_prefixes: felix.interface_prefixes.unwrap_or_else(|| vec!["cali".to_owned()]),
            priorities: [felix.ipv4_normal_route_priority, felix.ipv6_normal_route_priority]
                .map(|priority| priority.unwrap_or(DEFAULT_PRIORITY)),
            elevated_priorities: [felix.ipv4_elevated_route_priority, felix.ipv6_elevated_route_priority]
                .map(|priority| priority.unwrap_or(DEFAULT_ELEVATED_PRIORITY)),
        })
    }

    /// The pools of a family of which routes are told, or of which they are not.
    fn pools_of(&self, family: Family, told: bool) -> Vec<&IpNet> {
        self.pools.iter().filter(|(net, export)| family.has(net) && *export == told).map(|(net, _)| net).collect()
    }

    /// The normal and the elevated priority of a family.
    const fn priorities_of(&self, family: Family) -> [u32; 2] {
        [self.priorities[family.index], self.elevated_priorities[family.index]]
    }

    /// What only BIRD can be told here: filters of a peer, and that a route is a workload's because of its interface.
    fn needs_no_filters(&self, flavour: &str) -> anyhow::Result<()> {
        if let Some(session) = self.sessions.iter().find(|session| !session.filters.is_empty()) {
            bail!("{}: filters of a BGPPeer are made for the flavour bird only, not for {flavour}", session.name);
        }
        ensure!(
            self.pools.iter().any(|(_, told)| *told),
            "an IPPool is needed for the flavour {flavour}: its networks say which routes are told, because the names of \
             interfaces cannot be matched there"
        );
        Ok(())
    }
}

/// Which node each block belongs to: the one that most of its addresses' workloads are on; of equals the first by name.
///
/// So all nodes come to the same answer from the same files, a workload that moves alone leaves its block where it is,
/// and nobody has to write down what follows from the workloads. Blocks of a single address are none.
#[must_use]
pub fn blocks(set: &ResourceSet) -> BTreeMap<IpNet, &str> {
    let mut counts: BTreeMap<IpNet, BTreeMap<&str, usize>> = BTreeMap::new();
    for workload in set.workloads.iter() {
        for address in &workload.addresses {
            let pools = set.ip_pools.values().filter(|pool| pool.cidr.contains(address));
            let Some(pool) = pools.max_by_key(|pool| pool.cidr.prefix_len()) else { continue };
            if pool.block_size >= pool.cidr.max_prefix_len() {
                continue;
            }
            if let Ok(block) = IpNet::new(*address, pool.block_size) {
                *counts.entry(block.trunc()).or_default().entry(workload.node.as_str()).or_default() += 1;
            }
        }
    }
    // Of equals the last counts: so from behind.
    let owned = counts.into_iter().filter_map(|(block, nodes)| {
        nodes.into_iter().rev().max_by_key(|(_, count)| *count).map(|(node, _)| (block, node))
    });
    owned.collect()
}

/// `BGPConfiguration` `default`, overridden field by field by `node.NAME` (which has none of the fields that are about all nodes).
fn settings(set: &ResourceSet, node: &str) -> BgpConfiguration {
    let default = set.bgp.get("default").cloned().unwrap_or_default();
    let Some(own) = set.bgp.get(&format!("node.{node}")).cloned() else { return default };
    BgpConfiguration {
        as_number: own.as_number.or(default.as_number),
        mesh: own.mesh.or(default.mesh),
        listen_port: own.listen_port.or(default.listen_port),
        mesh_restart_time: own.mesh_restart_time.or(default.mesh_restart_time),
        advertisements: if own.advertisements.is_empty() { default.advertisements } else { own.advertisements },
        unsupported: [default.unsupported, own.unsupported].concat(),
    }
}

/// One node among the others.
struct Speaker<'a> {
    set: &'a ResourceSet,
    node: &'a str,
    own: &'a Node,
    settings: &'a BgpConfiguration,
}

impl Speaker<'_> {
    fn as_number_of(&self, node: &Node) -> u32 {
        node.as_number.or(self.settings.as_number).unwrap_or(DEFAULT_AS)
    }

    /// That nothing is left out of what this node's resources say.
    fn can_be_told(&self) -> anyhow::Result<()> {
        let peers = self.set.bgp_peers.iter().filter(|(_, peer)| self.has(peer));
        let peers = peers.map(|(name, peer)| (format!("BGPPeer/{name}"), &peer.unsupported));
        for (resource, fields) in iter::once(("BGPConfiguration".to_owned(), &self.settings.unsupported)).chain(peers) {
            ensure!(fields.is_empty(), "{resource}: {}: not supported here", fields.join(", "));
        }
        Ok(())
    }

    /// Peers that are written down, then the other ends of those that other nodes have with this one, then the mesh; each
    /// address once.
    fn sessions(&self) -> Vec<Session> {
        let mut sessions: Vec<Session> = Vec::new();
        let peers = self.set.bgp_peers.iter().filter(|(_, peer)| self.has(peer));
        let written = peers.flat_map(|(name, peer)| self.written(name, peer));
        let reverse = self.set.bgp_peers.values().flat_map(|peer| self.reverse(peer));
        for mut session in written.chain(reverse).chain(self.mesh()) {
            if sessions.iter().any(|other| other.address == session.address) {
                continue;
            }
            let wanted = session.name.clone();
            for number in sessions.len().. {
                if sessions.iter().all(|other| other.name != session.name) {
                    break;
                }
                session.name = format!("{wanted}_{number}");
            }
            sessions.push(session);
        }
        sessions
    }

    fn has(&self, peer: &BgpPeer) -> bool {
        is_of(peer, self.node, self.own)
    }

    fn written(&self, name: &str, peer: &BgpPeer) -> Vec<Session> {
        let found = match &peer.at {
            BgpPeerAt::Address { address, port, as_number } => {
                let mut nodes = self.set.node_resources.iter();
                let node = nodes.find(|(_, node)| addresses(node).any(|known| known == *address));
                let cluster = node.and_then(|(_, node)| node.route_reflector_cluster_id);
                let of_node = node.filter(|(_, node)| self.as_number_of(node) == *as_number);
                let port = port.or_else(|| of_node.and_then(|(name, _)| settings(self.set, name).listen_port));
                let session = self.session(&format!("Peer_{name}"), *address, *as_number, cluster);
                session.map(|session| Session { port, ..session }).into_iter().collect()
            }
            BgpPeerAt::Nodes(selector) => self.with_nodes("Node", &|_, node| selector.matches(&node.labels)),
        };
        self.as_written(peer, found)
    }

    /// With the nodes that have this one as a peer, if the resource leaves the other end to be made (`reversePeering`).
    fn reverse(&self, peer: &BgpPeer) -> Vec<Session> {
        let is_own = match &peer.at {
            BgpPeerAt::Address { address, as_number, .. } => {
                addresses(self.own).any(|own| own == *address) && self.as_number_of(self.own) == *as_number
            }
            BgpPeerAt::Nodes(selector) => selector.matches(&self.own.labels),
        };
        if !is_own || !peer.reverse {
            return Vec::new();
        }
        self.as_written(peer, self.with_nodes("Node", &|name, node| is_of(peer, name, node)))
    }

    fn as_written(&self, peer: &BgpPeer, sessions: Vec<Session>) -> Vec<Session> {
        let filters: Vec<_> = peer.filters.iter().filter_map(|name| self.set.bgp_filters.get(name)).cloned().collect();
        let as_written = |session: Session| Session {
            next_hop: peer.next_hop,
            source: session.source.filter(|_| peer.from_node_address),
            restart_time: peer.restart_time.unwrap_or(DEFAULT_RESTART_TIME),
            allowed_local_as: peer.allowed_local_as,
            ttl_security: peer.ttl_security,
            filters: filters.clone(),
            ..session
        };
        sessions.into_iter().map(as_written).collect()
    }

    /// With every other node that is no route reflector.
    fn mesh(&self) -> Vec<Session> {
        if !self.settings.mesh.unwrap_or(true) || self.own.route_reflector_cluster_id.is_some() {
            return Vec::new();
        }
        let restart_time = self.settings.mesh_restart_time.unwrap_or(DEFAULT_RESTART_TIME);
        let sessions = self.with_nodes("Mesh", &|_, node| node.route_reflector_cluster_id.is_none());
        // Both ends connecting at once would be twice the work: the one with the lower address waits.
        let waits = |session: &Session| session.source.is_some_and(|own| own < session.address);
        sessions.into_iter().map(|session| Session { passive: waits(&session), restart_time, ..session }).collect()
    }

    fn with_nodes(&self, kind: &str, wanted: &dyn Fn(&str, &Node) -> bool) -> Vec<Session> {
        let others = self.set.node_resources.iter().filter(|(name, node)| *name != self.node && wanted(name, node));
        let sessions = others.flat_map(|(name, node)| {
            let port = settings(self.set, name).listen_port;
            addresses(node).filter_map(move |address| {
                let family = if address.is_ipv4() { 4 } else { 6 };
                let name = format!("{kind}_{name}_{family}");
                let session = self.session(&name, address, self.as_number_of(node), node.route_reflector_cluster_id)?;
                Some(Session { port, ..session })
            })
        });
        sessions.collect()
    }

    /// `None` where this node has no address of the peer's family, or is the peer.
    fn session(&self, name: &str, address: IpAddr, as_number: u32, cluster: Option<Ipv4Addr>) -> Option<Session> {
        let source = addresses(self.own).find(|own| own.is_ipv4() == address.is_ipv4())?;
        let own = self.own.route_reflector_cluster_id;
        let internal = as_number == self.as_number_of(self.own);
        (source != address).then(|| Session {
            name: symbol(name),
            address,
            port: None,
            as_number,
            source: Some(source),
            passive: false,
            client: internal && own.is_some() && own != cluster,
            next_hop: BgpNextHop::Auto,
            restart_time: DEFAULT_RESTART_TIME,
            allowed_local_as: 0,
            ttl_security: None,
            filters: Vec::new(),
        })
    }
}

/// Whether it is a peer of this node.
fn is_of(peer: &BgpPeer, name: &str, node: &Node) -> bool {
    peer.node.as_deref().is_none_or(|wanted| wanted == name)
        && peer.node_selector.as_ref().is_none_or(|selector| selector.matches(&node.labels))
}

/// A name as BIRD takes it: at most 64 letters, digits and underscores (`conf/cf-lex.l`), with some room for a number behind. Of a
/// longer one a hash stands for the rest.
fn symbol(name: &str) -> String {
    const LONGEST: usize = 58;
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let symbol: String = name.chars().map(allowed).collect();
    if symbol.len() <= LONGEST {
        return symbol;
    }
    format!("{}_{:08x}", &symbol[..LONGEST - 9], fnv(name))
}

fn addresses(node: &Node) -> impl Iterator<Item = IpAddr> {
    [node.ipv4, node.ipv6].into_iter().flatten().map(|net| net.addr())
}

fn address4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// Of a node without an IPv4 address: any number that no other node has ([`fnv`] of its name).
fn router_id(node: &str) -> Ipv4Addr {
    Ipv4Addr::from_bits(fnv(node).max(1))
}

fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources;

    const NODES: &str = "
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: four}
spec: {cidr: 10.65.0.0/16, blockSize: 26}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: a, labels: {rack: one}}
spec: {bgp: {ipv4Address: 192.0.2.11/24, ipv6Address: '2001:db8::11/64'}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: b}
spec: {bgp: {ipv4Address: 192.0.2.12/24}}
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: c}
spec: {bgp: {ipv4Address: 192.0.2.13/24, ipv6Address: '2001:db8::13/64'}}
";

    fn set(more: &str) -> ResourceSet {
        let loaded = resources::load_content("bgp.yaml".as_ref(), format!("{NODES}{more}").into_bytes());
        let findings: Vec<_> = loaded.diagnostics.iter().map(resources::Diagnostic::render).collect();
        assert!(!loaded.has_errors(), "{findings:?}");
        loaded.set
    }

    fn workload(name: &str, node: &str, address: &str) -> String {
        format!(
            "---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {{namespace: t}}
spec: {{node: {node}, orchestrator: k8s, pod: {name}, endpoint: eth0, interfaceName: cali{name}, ipNetworks: [{address}]}}
"
        )
    }

    fn peers(set: &ResourceSet, node: &str) -> Vec<(String, bool)> {
        let bgp = NodeBgp::new(set, node).expect("a node");
        bgp.sessions.iter().map(|session| (session.name.clone(), session.passive)).collect()
    }

    #[test]
    fn a_block_is_where_most_of_its_workloads_are() {
        let text = [
            workload("w1", "b", "10.65.0.1/32"),
            workload("w2", "b", "10.65.0.2/32"),
            workload("w3", "a", "10.65.0.3/32"),
            // As many on each: the first by name.
            workload("w4", "c", "10.65.0.65/32"),
            workload("w5", "b", "10.65.0.66/32"),
            // Of no pool.
            workload("w6", "a", "10.66.0.1/32"),
        ];
        let set = set(&text.concat());
        let owners: Vec<_> = blocks(&set).into_iter().map(|(block, node)| (block.to_string(), node)).collect();
        assert_eq!(owners, [("10.65.0.0/26".to_owned(), "b"), ("10.65.0.64/26".to_owned(), "b")]);
    }

    #[test]
    fn what_cannot_be_told_is_refused_where_it_is_needed() {
        let set = set("---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: node.b}
spec: {serviceClusterIPs: [{cidr: 10.96.0.0/12}]}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: secret}
spec: {node: c, peerIP: 192.0.2.1, asNumber: 65000, password: {secretKeyRef: {name: a, key: b}}}
");
        let refused = |node: &str| NodeBgp::new(&set, node).err().map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(refused("a"), "");
        assert!(refused("b").contains("serviceClusterIPs") && refused("c").contains("BGPPeer/secret: password"));
    }

    /// Calico's own recipe for a route reflector: one resource, of which the reflector has the other ends.
    #[test]
    fn the_other_end_of_a_peer_is_made() {
        let off = "---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: p}
spec: ";
        let of = |spec: &str, node: &str| -> Vec<String> {
            peers(&set(&format!("{off}{spec}")), node).into_iter().map(|(name, _)| name).collect()
        };
        let by_label = "{node: b, peerSelector: rack == 'one'}";
        assert_eq!(of(by_label, "b"), ["Node_a_4"]);
        assert_eq!(of(by_label, "a"), ["Node_b_4"]);
        assert!(of(by_label, "c").is_empty());
        let by_address = "{node: b, peerIP: 192.0.2.13, asNumber: 64512}";
        assert_eq!(of(by_address, "b"), ["Peer_p"]);
        assert_eq!(of(by_address, "c"), ["Node_b_4"]);
        // Another autonomous system is not that node's.
        assert!(of("{node: b, peerIP: 192.0.2.13, asNumber: 65000}", "c").is_empty());
        assert!(of("{node: b, peerSelector: rack == 'one', reversePeering: Manual}", "a").is_empty());
    }

    #[test]
    fn peers_listen_where_their_node_does() {
        let set = set("---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {listenPort: 1790}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: node.c}
spec: {listenPort: 1791}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: p}
spec: {node: a, peerIP: 192.0.2.12, asNumber: 64512}
");
        let bgp = NodeBgp::new(&set, "a").expect("a node");
        let ports: Vec<_> = bgp.sessions.iter().map(|session| (&*session.name, session.port)).collect();
        assert_eq!(ports, [("Peer_p", Some(1790)), ("Mesh_c_4", Some(1791)), ("Mesh_c_6", Some(1791))]);
    }

    #[test]
    fn long_names_are_cut_to_what_bird_takes() {
        let [one, other] = ["x", "y"].map(|end| symbol(&format!("Mesh_ip-10-0-0-1.{}{end}_4", "a".repeat(60))));
        assert!(one.len() <= 60 && other.len() <= 60 && one != other, "{one} {other}");
        assert_eq!(symbol("Mesh_a-b.c_4"), "Mesh_a_b_c_4");
    }

    #[test]
    fn nodes_are_a_mesh_in_which_one_end_waits() {
        let set = set("");
        let names = |node: &str| peers(&set, node);
        assert_eq!(
            names("a"),
            [("Mesh_b_4".to_owned(), true), ("Mesh_c_4".to_owned(), true), ("Mesh_c_6".to_owned(), true)]
        );
        // No IPv6 with one that has none.
        assert_eq!(names("b"), [("Mesh_a_4".to_owned(), false), ("Mesh_c_4".to_owned(), true)]);
        assert!(NodeBgp::new(&set, "d").is_err_and(|error| error.to_string().contains("no Node")));
    }

    #[test]
    fn peers_are_those_of_the_node() {
        let more = "
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: default}
spec: {nodeToNodeMeshEnabled: false, asNumber: 64600}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: rack-one}
spec: {nodeSelector: rack == 'one', peerIP: '192.0.2.1:1179', asNumber: 65001}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: of-b}
spec: {node: b, peerSelector: rack == 'one'}
";
        let set = set(more);
        let a = NodeBgp::new(&set, "a").expect("a node");
        let names: Vec<_> = a.sessions.iter().map(|session| session.name.as_str()).collect();
        assert_eq!((a.as_number, names), (64600, vec!["Peer_rack_one", "Node_b_4"]));
        let session = &a.sessions[0];
        assert_eq!((session.name.as_str(), session.port, session.as_number), ("Peer_rack_one", Some(1179), 65001));
        assert_eq!(peers(&set, "b"), [("Node_a_4".to_owned(), false)]);
        assert_eq!(peers(&set, "c"), []);
    }

    #[test]
    fn a_reflector_has_the_others_as_clients() {
        let more = "
---
apiVersion: projectcalico.org/v3
kind: Node
metadata: {name: r, labels: {role: reflector}}
spec: {bgp: {ipv4Address: 192.0.2.3/24, routeReflectorClusterID: 192.0.2.3}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: nodes-to-reflectors}
spec: {nodeSelector: '!has(role)', peerSelector: role == 'reflector'}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: reflectors-to-nodes}
spec: {nodeSelector: role == 'reflector', peerSelector: '!has(role)'}
";
        let set = set(more);
        let reflector = NodeBgp::new(&set, "r").expect("a node");
        assert_eq!(reflector.sessions.len(), 3);
        assert!(reflector.sessions.iter().all(|session| session.client), "{reflector:?}");
        let b = NodeBgp::new(&set, "b").expect("a node");
        let to_reflector: Vec<_> = b.sessions.iter().filter(|session| session.name == "Node_r_4").collect();
        assert_eq!(to_reflector.len(), 1);
        assert!(!to_reflector[0].client);
    }
}
