//! What a cluster consists of, from what was asked for. Pure: the same options make the same cluster.
//!
//! ```text
//!   one segment (192.0.2.0/24)                 racks (198.18.1.0/24, 198.18.2.0/24, core 192.0.2.0/24)
//!
//!   host1 .11   host2 .12   host3 .13          host1 .11   host3 .13         host2 .12
//!     |           |           |                  |           |                 |
//!   --+-----------+-----------+--+---          --+----+------+--             --+----+--
//!                 |              |                  rack1 .1                     rack2 .1
//!           reflector .3     outside .2               | .101                       | .102
//!                                              -------+---------------+------------+----
//!                                                                 outside .2
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use super::router::Daemon;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Options {
    /// How many hosts.
    pub hosts: u8,
    /// How many workloads, dealt out to the hosts in turn.
    pub workloads: u8,
    /// Hosts speak BGP with a route reflector instead of with each other.
    pub route_reflector: bool,
    /// IPv6 besides IPv4.
    pub ipv6: bool,
    /// Hosts stand in two racks, each behind a router of its own and an autonomous system of its own.
    pub racks: bool,
    /// The routing daemon of the hosts.
    #[serde(default)]
    pub bgp: Daemon,
}

/// The most hosts.
pub const MOST_HOSTS: u8 = 100;
/// The most workloads of one host: what its block of addresses holds.
pub const MOST_OF_ONE_HOST: u8 = 60;
/// The port that every workload and the neighbour outside serve.
pub const PORT: u16 = 80;

const AS_NUMBER: u32 = 64512;
const REFLECTOR: u8 = 3;
const OUTSIDE: u8 = 2;
const RACKS: u8 = 2;

/// A network that several are connected to, as by a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// `lan`, `core`, `rack1`, `rack2`.
    pub name: String,
    v4: [u8; 3],
    v6: [u16; 4],
}

impl Segment {
    fn v4(&self, number: u8) -> Ipv4Addr {
        let [a, b, c] = self.v4;
        Ipv4Addr::new(a, b, c, number)
    }

    fn v6(&self, number: u8) -> Ipv6Addr {
        let [a, b, c, d] = self.v6;
        Ipv6Addr::new(a, b, c, d, 0, 0, 0, number.into())
    }
}

/// What somebody does in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Has workloads, runs `calico-ebpf` and a routing daemon.
    Host,
    /// Tells its clients what the others say.
    Reflector,
    /// The router of a rack.
    Router,
    /// Has no workloads, and knows the way to them from BGP.
    Outside,
}

/// A connection to a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The interface.
    pub interface: String,
    /// Which of [`Plan::segments`].
    pub segment: usize,
    /// Its address, in a /24.
    pub v4: Ipv4Addr,
    /// Its address, in a /64.
    pub v6: Ipv6Addr,
}

/// One with whom BGP is spoken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Its addresses, IPv4 first.
    pub addresses: [IpAddr; 2],
    /// Its autonomous system.
    pub as_number: u32,
    /// It is a client of this route reflector.
    pub client: bool,
}

/// One who speaks BGP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Its name.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Its connections: of a router the one to the core comes first.
    pub ports: Vec<Port>,
    /// Its autonomous system.
    pub as_number: u32,
    /// With whom it speaks BGP.
    pub peers: Vec<Peer>,
    /// The router for what is nowhere else.
    pub gateway: Option<[IpAddr; 2]>,
}

impl Speaker {
    /// Addresses on its first connection.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.ports.first().map_or([Ipv4Addr::UNSPECIFIED.into(); 2], |port| [port.v4.into(), port.v6.into()])
    }

    fn peer(&self, as_seen_over: usize, client: bool) -> Option<Peer> {
        let port = self.ports.iter().find(|port| port.segment == as_seen_over)?;
        let addresses = [port.v4.into(), port.v6.into()];
        Some(Peer { name: self.name.clone(), addresses, as_number: self.as_number, client })
    }
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedWorkload {
    /// `w1`, `w2`, ...
    pub name: String,
    /// The host that it begins on.
    pub host: String,
    /// Host side of its veth.
    pub interface: String,
    /// Its address, of the host's block `10.65.HOST.0/26`.
    pub v4: Ipv4Addr,
    /// Its address, of the host's block `fd00:65:0:HOST::/122`.
    pub v6: Ipv6Addr,
}

/// All that there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Networks.
    pub segments: Vec<Segment>,
    /// Hosts, then the others.
    pub speakers: Vec<Speaker>,
    /// Workloads.
    pub workloads: Vec<PlannedWorkload>,
}

impl Plan {
    /// What `options` ask for.
    ///
    /// # Errors
    /// More than there is room for, or what excludes each other.
    pub fn new(options: &Options) -> anyhow::Result<Self> {
        let Options { hosts, workloads, route_reflector, racks, .. } = *options;
        ensure!((1..=MOST_HOSTS).contains(&hosts), "--hosts: 1 to {MOST_HOSTS}");
        let most = u32::from(MOST_OF_ONE_HOST) * u32::from(hosts);
        ensure!(u32::from(workloads) <= most, "--workloads: at most {most}, {MOST_OF_ONE_HOST} for each host");
        ensure!(!(racks && route_reflector), "--racks and --route-reflector: the routers of the racks are reflectors");
        let (segments, speakers) = if racks { in_racks(hosts) } else { on_one_segment(hosts, route_reflector) };
        let workloads = (0..workloads).map(|index| workload(index, hosts)).collect();
        Ok(Self { segments, speakers, workloads })
    }

    /// The hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Speaker> {
        self.speakers.iter().filter(|speaker| speaker.role == Role::Host)
    }
}

fn on_one_segment(hosts: u8, reflected: bool) -> (Vec<Segment>, Vec<Speaker>) {
    let segments = vec![Segment { name: "lan".to_owned(), v4: [192, 0, 2], v6: [0x2001, 0xdb8, 2, 0] }];
    let one = |name: String, role, interface, number| Speaker {
        name,
        role,
        ports: vec![port(&segments, 0, interface, number)],
        as_number: AS_NUMBER,
        peers: Vec::new(),
        gateway: None,
    };
    let mut speakers: Vec<Speaker> = (1..=hosts).map(|n| one(format!("host{n}"), Role::Host, "up0", 10 + n)).collect();
    speakers.push(one("outside".to_owned(), Role::Outside, "eth0", OUTSIDE));
    let members = speakers.len();
    if reflected {
        let reflector = one("reflector".to_owned(), Role::Reflector, "eth0", REFLECTOR);
        for member in &mut speakers {
            member.peers.extend(reflector.peer(0, false));
        }
        speakers.push(reflector);
        let clients = speakers[..members].iter().filter_map(|member| member.peer(0, true)).collect();
        speakers[members].peers = clients;
    } else {
        let all: Vec<Peer> = speakers.iter().filter_map(|speaker| speaker.peer(0, false)).collect();
        for speaker in &mut speakers {
            speaker.peers = all.iter().filter(|peer| peer.name != speaker.name).cloned().collect();
        }
    }
    (segments, speakers)
}

fn in_racks(hosts: u8) -> (Vec<Segment>, Vec<Speaker>) {
    let mut segments = vec![Segment { name: "core".to_owned(), v4: [192, 0, 2], v6: [0x2001, 0xdb8, 2, 0] }];
    segments.extend((1..=RACKS).map(|rack| Segment {
        name: format!("rack{rack}"),
        v4: [198, 18, rack],
        v6: [0x2001, 0xdb8, 0x18, rack.into()],
    }));
    let rack_of = |host: u8| (host - 1) % RACKS + 1;
    let mut speakers: Vec<Speaker> = (1..=hosts)
        .map(|n| {
            let segment = usize::from(rack_of(n));
            Speaker {
                name: format!("host{n}"),
                role: Role::Host,
                ports: vec![port(&segments, segment, "up0", 10 + n)],
                as_number: AS_NUMBER + u32::from(rack_of(n)),
                peers: Vec::new(),
                gateway: Some([segments[segment].v4(1).into(), segments[segment].v6(1).into()]),
            }
        })
        .collect();
    let mut others: Vec<Speaker> = (1..=RACKS)
        .map(|rack| Speaker {
            name: format!("rack{rack}"),
            role: Role::Router,
            ports: vec![port(&segments, 0, "up0", 100 + rack), port(&segments, rack.into(), "down0", 1)],
            as_number: AS_NUMBER + u32::from(rack),
            peers: Vec::new(),
            gateway: None,
        })
        .collect();
    others.push(Speaker {
        name: "outside".to_owned(),
        role: Role::Outside,
        ports: vec![port(&segments, 0, "eth0", OUTSIDE)],
        as_number: AS_NUMBER,
        peers: Vec::new(),
        gateway: None,
    });
    let in_core: Vec<Peer> = others.iter().filter_map(|speaker| speaker.peer(0, false)).collect();
    for speaker in &mut others {
        speaker.peers = in_core.iter().filter(|peer| peer.name != speaker.name).cloned().collect();
    }
    for host in &mut speakers {
        let segment = host.ports[0].segment;
        if let Some(router) = others.iter_mut().find(|other| other.ports.iter().any(|port| port.segment == segment)) {
            host.peers.extend(router.peer(segment, false));
            router.peers.extend(host.peer(segment, true));
        }
    }
    speakers.extend(others);
    (segments, speakers)
}

fn port(segments: &[Segment], segment: usize, interface: &str, number: u8) -> Port {
    let (v4, v6) = (segments[segment].v4(number), segments[segment].v6(number));
    Port { interface: interface.to_owned(), segment, v4, v6 }
}

fn workload(index: u8, hosts: u8) -> PlannedWorkload {
    let (host, number) = (index % hosts + 1, index / hosts + 1);
    let name = format!("w{}", u16::from(index) + 1);
    PlannedWorkload {
        host: format!("host{host}"),
        interface: format!("cali{name}"),
        v4: Ipv4Addr::new(10, 65, host, number),
        v6: Ipv6Addr::new(0xfd00, 0x65, 0, host.into(), 0, 0, 0, number.into()),
        name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(route_reflector: bool, racks: bool) -> Plan {
        Plan::new(&Options { hosts: 3, workloads: 4, route_reflector, ipv6: true, racks, bgp: Daemon::Bird2 })
            .expect("a plan")
    }

    fn peers(plan: &Plan, name: &str) -> Vec<(String, bool)> {
        let speaker = plan.speakers.iter().find(|speaker| speaker.name == name).expect("a speaker");
        speaker.peers.iter().map(|peer| (peer.name.clone(), peer.client)).collect()
    }

    #[test]
    fn a_mesh_speaks_with_everybody_else() {
        let mesh = plan(false, false);
        let expected = ["host1", "host3", "outside"].map(|name| (name.to_owned(), false));
        assert_eq!(peers(&mesh, "host2"), expected);
        let workloads: Vec<_> = mesh.workloads.iter().map(|w| (&*w.name, &*w.host, w.v4.to_string())).collect();
        assert_eq!(
            workloads,
            [
                ("w1", "host1", "10.65.1.1".to_owned()),
                ("w2", "host2", "10.65.2.1".to_owned()),
                ("w3", "host3", "10.65.3.1".to_owned()),
                ("w4", "host1", "10.65.1.2".to_owned()),
            ]
        );
    }

    #[test]
    fn a_reflector_has_all_others_as_clients() {
        let reflected = plan(true, false);
        assert_eq!(peers(&reflected, "host2"), [("reflector".to_owned(), false)]);
        let clients = ["host1", "host2", "host3", "outside"].map(|name| (name.to_owned(), true));
        assert_eq!(peers(&reflected, "reflector"), clients);
    }

    #[test]
    fn hosts_in_racks_speak_with_their_router() {
        let racks = plan(false, true);
        assert_eq!(peers(&racks, "host3"), [("rack1".to_owned(), false)]);
        let all = [("rack2", false), ("outside", false), ("host1", true), ("host3", true)];
        assert_eq!(peers(&racks, "rack1"), all.map(|(name, client)| (name.to_owned(), client)));
    }

    #[test]
    fn too_much_is_refused() {
        let options =
            Options { hosts: 2, workloads: 121, route_reflector: false, ipv6: false, racks: false, bgp: Daemon::Bird2 };
        assert!(Plan::new(&options).is_err_and(|error| error.to_string().contains("at most 120")));
        assert!(Plan::new(&Options { hosts: 0, ..options }).is_err());
        assert!(Plan::new(&Options { workloads: 1, route_reflector: true, racks: true, ..options }).is_err());
    }
}
