//! A small synchronous client of rtnetlink. Every look is a full dump; notifications are [`super::watch`]'s business.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    /// Zero where it has none.
    pub(crate) mac: [u8; 6],
    /// Administratively up.
    pub(crate) up: bool,
    /// Up, and so is the other end.
    pub(crate) carrier: bool,
    pub(crate) loopback: bool,
    /// Its packets have an Ethernet header.
    pub(crate) ethernet: bool,
    /// Part of a bridge, a bond or the like.
    pub(crate) has_master: bool,
    /// In a VRF: it is still an interface by itself.
    pub(crate) in_vrf: bool,
    /// A veth.
    pub(crate) veth: bool,
    /// A VLAN.
    pub(crate) vlan: bool,
    /// A bond.
    pub(crate) bond: bool,
    /// An intermediate functional block: no route leads there, but what comes in elsewhere.
    pub(crate) ifb: bool,
    /// Where the other end, or what it lies on, is in another network namespace: this namespace's id for that one.
    pub(crate) peer_netns: Option<i32>,
    /// Index of the other end, or of what it lies on, in its namespace.
    pub(crate) peer_index: Option<u32>,
}

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
    pub(crate) ifindex: u32,
    pub(crate) protocol: u8,
    pub(crate) metric: u32,
    pub(crate) source: Option<IpAddr>,
    /// Scope link (always so for IPv6, which has none), unicast, no gateway: of the form that ours have.
    pub(crate) plain: bool,
}

/// A route to one address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostRoute {
    pub(crate) route: Route,
    /// The next hop, where there is one.
    pub(crate) via: Option<IpAddr>,
}

/// A `cls_bpf` filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) priority: u16,
    pub(crate) handle: u32,
    pub(crate) program: Option<u32>,
    pub(crate) name: String,
}

/// A hook of the clsact qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Hook {
    Ingress,
    Egress,
}

const MAIN: u8 = RouteHeader::RT_TABLE_MAIN;
// include/uapi/linux/rtnetlink.h.
const LOCAL: u8 = 255;
/// `ETH_P_ALL` in network order, as `tcm_info` wants it.
const ETH_P_ALL: u32 = (0x0003_u16).to_be() as u32;

/// A socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it the kernel ignores the filters of a route dump; kernels since 4.20 have it.
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// All interfaces.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(&request)?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(parse_link(link)),
                _ => None,
            })
            .collect())
    }

    /// Whether an interface is (still) there.
    pub(crate) fn exists(&mut self, index: u32) -> bool {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let answer = self.request(&RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST);
        !answer.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
    }

    /// The MAC address of an interface in another network namespace that has an id here.
    pub(crate) fn foreign_mac(&mut self, netns: i32, index: u32) -> io::Result<Option<[u8; 6]>> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes.push(LinkAttribute::IfNetnsId(netns));
        let answers = self.request(&RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)?;
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(parse_link(link).mac),
            _ => None,
        }))
    }

    /// What reaches this host itself: its addresses but loopback, and what else its networks have it receive.
    pub(crate) fn host_addresses(&mut self) -> io::Result<BTreeSet<IpAddr>> {
        let answers = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let mut addresses = BTreeSet::new();
        for answer in &answers {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            let mut network = None;
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(address) => drop(addresses.insert(*address)),
                    AddressAttribute::Broadcast(address) => drop(addresses.insert((*address).into())),
                    AddressAttribute::Address(address) => {
                        network = IpNet::new(*address, message.header.prefix_len).ok();
                    }
                    _ => {}
                }
            }
            let Some(network) = network else { continue };
            // `IFA_LOCAL` is the own address where `IFA_ADDRESS` is a peer's.
            if !message.attributes.iter().any(|attribute| matches!(attribute, AddressAttribute::Local(_))) {
                addresses.insert(network.addr());
            }
            addresses.extend(also_received(&network));
        }
        let routes = self.local_routes()?;
        addresses.extend(routes.iter().filter(|route| route.prefix_len() == route.max_prefix_len()).map(IpNet::addr));
        addresses.retain(|address| !address.is_loopback());
        Ok(addresses)
    }

    /// What this host receives by routes of table `local`: its addresses, and what somebody gave it as a whole network.
    pub(crate) fn local_routes(&mut self) -> io::Result<Vec<IpNet>> {
        let mut networks = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for message in self.dump_routes(family, LOCAL, RouteProtocol::Unspec, &|_| true)? {
                let route = parse_route(&message).filter(|_| message.header.kind == RouteType::Local);
                networks.extend(route.and_then(|route| IpNet::new(route.address, route.prefix_len).ok()));
            }
        }
        Ok(networks)
    }

    /// The networks of all interfaces: index, own address and prefix length.
    pub(crate) fn networks(&mut self) -> io::Result<Vec<(u32, IpNet)>> {
        let answers = self.dump(&RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
        let mut networks = Vec::new();
        for answer in &answers {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            let (mut local, mut address) = (None, None);
            for attribute in &message.attributes {
                match attribute {
                    AddressAttribute::Local(own) => local = Some(*own),
                    AddressAttribute::Address(own) => address = Some(*own),
                    _ => {}
                }
            }
            let own = local.or(address);
            let net = own.and_then(|own| IpNet::new(own, message.header.prefix_len).ok());
            networks.extend(net.map(|net| (message.header.index, net)));
        }
        Ok(networks)
    }

    /// Ids of the XDP programs on an interface, whoever they are.
    pub(crate) fn xdp_programs(&mut self, index: u32) -> io::Result<Vec<u32>> {
        let mut link = LinkMessage::default();
        link.header.index = index;
        let answers = self.request(&RouteNetlinkMessage::GetLink(link), NLM_F_REQUEST)?;
        let mut ids = Vec::new();
        for answer in &answers {
            let RouteNetlinkMessage::NewLink(link) = answer else { continue };
            for attribute in &link.attributes {
                let LinkAttribute::Xdp(xdp) = attribute else { continue };
                ids.extend(xdp.iter().filter_map(|one| match one {
                    LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) | LinkXdp::HwProgId(id) => {
                        Some(*id)
                    }
                    _ => None,
                }));
            }
        }
        ids.sort_unstable();
        ids.dedup();
        ids.retain(|id| *id != 0);
        Ok(ids)
    }

    /// The routes of the main table that carry one of these protocols.
    pub(crate) fn routes(&mut self, protocols: &[u8]) -> io::Result<Vec<Route>> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            for protocol in protocols {
                routes.extend(self.dump_routes(family, MAIN, RouteProtocol::from(*protocol), &|_| true)?);
            }
        }
        Ok(routes.iter().filter_map(parse_route).collect())
    }

    /// The route by which the kernel would send to an address, if it is one to that very address.
    pub(crate) fn host_route(&mut self, address: IpAddr) -> io::Result<Option<HostRoute>> {
        let mut message = RouteMessage::default();
        let whole = if address.is_ipv4() { 32 } else { 128 };
        message.header.address_family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.destination_prefix_length = whole;
        message.header.flags = RouteFlags::FibMatch;
        message.attributes.push(RouteAttribute::Destination(address.into()));
        let answers = match self.request(&RouteNetlinkMessage::GetRoute(message), NLM_F_REQUEST) {
            // There is none, or one that says so.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EINVAL | libc::EACCES | libc::ESRCH)
                ) =>
            {
                return Ok(None);
            }
            answers => answers?,
        };
        Ok(answers.iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message) => {
                let route = parse_route(message).filter(|route| route.prefix_len == whole)?;
                let via = message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(gateway) => ip(gateway),
                    _ => None,
                });
                Some(HostRoute { route, via })
            }
            _ => None,
        }))
    }

    /// Indices of the devices of the default routes of the main table, best metric first.
    pub(crate) fn default_route_devices(&mut self) -> io::Result<Vec<u32>> {
        let mut devices: Vec<(u32, u32)> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            // The kernel has no such filter, and to parse a hundred thousand routes would take long.
            for message in
                self.dump_routes(family, MAIN, RouteProtocol::Unspec, &|bytes| route_prefix_len(bytes) == Some(0))?
            {
                if message.header.kind != RouteType::Unicast {
                    continue;
                }
                let mut metric = 0;
                let mut indices = Vec::new();
                for attribute in &message.attributes {
                    match attribute {
                        RouteAttribute::Priority(value) => metric = *value,
                        RouteAttribute::Oif(index) => indices.push(*index),
                        RouteAttribute::MultiPath(hops) => indices.extend(hops.iter().map(|hop| hop.interface_index)),
                        _ => {}
                    }
                }
                devices.extend(indices.into_iter().map(|index| (metric, index)));
            }
        }
        devices.sort_unstable();
        let mut seen = Vec::new();
        for (_, index) in devices {
            if !seen.contains(&index) {
                seen.push(index);
            }
        }
        Ok(seen)
    }

    /// Adds a route; refused (`EEXIST`) where there is one with the same destination and metric.
    pub(crate) fn add_route(&mut self, route: &Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        self.request(&message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Puts a route in place of the one with the same destination and metric.
    pub(crate) fn replace_route(&mut self, route: &Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewRoute(route_message(route));
        self.request(&message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Deletes a route; that it is gone already is no error.
    pub(crate) fn delete_route(&mut self, route: &Route) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelRoute(route_message(route));
        match self.request(&message, NLM_F_REQUEST | NLM_F_ACK) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENODEV)) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Forgets what the kernel knows of a neighbour: it asks anew.
    pub(crate) fn delete_neighbour(&mut self, ifindex: u32, address: IpAddr) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        message.header.ifindex = ifindex;
        message.attributes.push(NeighbourAttribute::Destination(match address {
            IpAddr::V4(address) => NeighbourAddress::Inet(address),
            IpAddr::V6(address) => NeighbourAddress::Inet6(address),
        }));
        match self.request(&RouteNetlinkMessage::DelNeighbour(message), NLM_F_REQUEST | NLM_F_ACK) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Adds a clsact qdisc; false if the interface has one.
    pub(crate) fn add_clsact(&mut self, ifindex: u32) -> io::Result<bool> {
        let message = RouteNetlinkMessage::NewQueueDiscipline(clsact_message(ifindex));
        match self.request(&message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Deletes the clsact qdisc with all its filters.
    pub(crate) fn delete_clsact(&mut self, ifindex: u32) -> io::Result<()> {
        let message = RouteNetlinkMessage::DelQueueDiscipline(clsact_message(ifindex));
        absent_is_fine(self.request(&message, NLM_F_REQUEST | NLM_F_ACK))
    }

    /// The `cls_bpf` filters of a hook; none where there is no clsact qdisc.
    pub(crate) fn filters(&mut self, ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
        let mut message = TcMessage::with_index(ifindex.cast_signed());
        message.header.parent = parent(hook);
        let answers = match self.dump(&RouteNetlinkMessage::GetTrafficFilter(message)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => {
                return Ok(Vec::new());
            }
            answers => answers?,
        };
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(message) => parse_filter(message),
                _ => None,
            })
            .collect())
    }

    /// Adds a direct-action filter, or replaces the one with this priority and handle: then no packet is missed.
    pub(crate) fn set_filter(
        &mut self,
        ifindex: u32,
        hook: Hook,
        priority: u16,
        handle: u32,
        program: (i32, &str),
    ) -> io::Result<()> {
        let mut message = filter_message(ifindex, hook, priority, handle);
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(program.0.cast_unsigned())),
            TcOption::Bpf(TcFilterBpfOption::ProgName(program.1.to_owned())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        let message = RouteNetlinkMessage::NewTrafficFilter(message);
        self.request(&message, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE).map(drop)
    }

    /// Deletes a filter; that it is gone already is no error.
    pub(crate) fn delete_filter(&mut self, ifindex: u32, hook: Hook, priority: u16, handle: u32) -> io::Result<()> {
        let mut message = filter_message(ifindex, hook, priority, handle);
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        let message = RouteNetlinkMessage::DelTrafficFilter(message);
        absent_is_fine(self.request(&message, NLM_F_REQUEST | NLM_F_ACK))
    }

    /// `wanted`: which messages are worth parsing.
    fn dump_routes(
        &mut self,
        family: AddressFamily,
        table: u8,
        protocol: RouteProtocol,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<RouteMessage>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        message.header.table = table;
        message.header.protocol = protocol;
        let answers = match self.dump_wanted(&RouteNetlinkMessage::GetRoute(message), wanted) {
            // A table that was never used, or a family that is switched off.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => Vec::new(),
            answers => answers?,
        };
        let in_table = |route: &RouteMessage| {
            let mut tables = route.attributes.iter().filter_map(|attribute| match attribute {
                RouteAttribute::Table(table) => Some(*table),
                _ => None,
            });
            tables.next().unwrap_or(u32::from(route.header.table)) == u32::from(table)
        };
        let routes = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        Ok(routes
            .filter(in_table)
            .filter(|route| protocol == RouteProtocol::Unspec || route.header.protocol == protocol)
            .collect())
    }

    /// A dump, again if it was interrupted by a change.
    fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.dump_wanted(message, &|_| true)
    }

    fn dump_wanted(
        &mut self,
        message: &RouteNetlinkMessage,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut last = None;
        for _ in 0..5 {
            match self.request_wanted(message, NLM_F_REQUEST | NLM_F_DUMP, wanted) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("dump interrupted")))
    }

    /// Sends one request and collects the answers.
    fn request(&mut self, message: &RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request_wanted(message, flags, &|_| true)
    }

    fn request_wanted(
        &mut self,
        message: &RouteNetlinkMessage,
        flags: u16,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message.clone()));
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        self.answers(flags & NLM_F_DUMP == NLM_F_DUMP, flags & NLM_F_ACK != 0, wanted)
    }

    fn answers(
        &mut self,
        dump: bool,
        ack: bool,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some(length) = message_length(rest) {
                let (bytes, next) = rest.split_at(length);
                rest = next.get(length.next_multiple_of(4) - length..).unwrap_or_default();
                if !wanted(bytes) && is_route(bytes) {
                    interrupted |= flags(bytes) & NLM_F_DUMP_INTR != 0;
                    continue;
                }
                let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                    Ok(message) => message,
                    Err(error) => {
                        // One odd interface must not blind us for all others.
                        tracing::debug!("a netlink message that is not understood: {error}");
                        continue;
                    }
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) => return Ok(answers),
                    NetlinkPayload::Done(_) if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        if !dump && !ack {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Of a route in a dump.
fn route_prefix_len(message: &[u8]) -> Option<u8> {
    // struct nlmsghdr, then struct rtmsg: family, dst_len, ...
    message.get(17).copied().filter(|_| is_route(message))
}

fn is_route(message: &[u8]) -> bool {
    // include/uapi/linux/rtnetlink.h
    const RTM_NEWROUTE: u16 = 24;
    half(message, 4) == Some(RTM_NEWROUTE)
}

/// `nlmsg_flags`.
fn flags(message: &[u8]) -> u16 {
    half(message, 6).unwrap_or(0)
}

fn half(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*message.get(at..)?.first_chunk()?))
}

/// Length of the first message in a datagram.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    (16..=bytes.len()).contains(&length).then_some(length)
}

fn absent_is_fine(result: io::Result<Vec<RouteNetlinkMessage>>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(()),
        done => done.map(drop),
    }
}

/// What a host receives of a network that it has an address in: the broadcast address, the lowest address (a broadcast too
/// before Linux 5.14), and for IPv6 the anycast address of its routers.
fn also_received(network: &IpNet) -> Vec<IpAddr> {
    match network {
        IpNet::V4(network) if network.prefix_len() < 31 => {
            vec![network.network().into(), network.broadcast().into()]
        }
        IpNet::V6(network) if network.prefix_len() < 127 => vec![network.network().into()],
        _ => Vec::new(),
    }
}

fn parse_link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mtu: 0,
        mac: [0; 6],
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        loopback: flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        has_master: false,
        in_vrf: false,
        veth: false,
        vlan: false,
        bond: false,
        ifb: false,
        peer_netns: None,
        peer_index: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) => link.mac = address.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::Link(index) => link.peer_index = Some(*index),
            LinkAttribute::Controller(index) => link.has_master = *index != 0,
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                let is = |kind| infos.contains(&LinkInfo::Kind(kind));
                (link.veth, link.vlan, link.bond) = (is(InfoKind::Veth), is(InfoKind::Vlan), is(InfoKind::Bond));
                link.ifb = is(InfoKind::Ifb);
                link.in_vrf = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
            _ => {}
        }
    }
    link.has_master &= !link.in_vrf;
    link
}

fn parse_route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    let v4 = header.address_family == AddressFamily::Inet;
    let unspecified = if v4 { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let mut route = Route {
        address: unspecified,
        prefix_len: header.destination_prefix_length,
        ifindex: 0,
        protocol: header.protocol.into(),
        metric: 0,
        source: None,
        plain: header.kind == RouteType::Unicast && (!v4 || header.scope == RouteScope::Link),
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => route.address = ip(address)?,
            RouteAttribute::Oif(index) => route.ifindex = *index,
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Gateway(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::MultiPath(_)
            | RouteAttribute::NhId(_)
            | RouteAttribute::Encap(_) => route.plain = false,
            _ => {}
        }
    }
    Some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn route_message(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    (header.address_family, header.scope) = match route.address {
        IpAddr::V4(_) => (AddressFamily::Inet, RouteScope::Link),
        // IPv6 routes have no scope.
        IpAddr::V6(_) => (AddressFamily::Inet6, RouteScope::Universe),
    };
    header.destination_prefix_length = route.prefix_len;
    header.table = RouteHeader::RT_TABLE_MAIN;
    header.protocol = RouteProtocol::from(route.protocol);
    header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(route.address.into()));
    message.attributes.push(RouteAttribute::Oif(route.ifindex));
    message.attributes.push(RouteAttribute::Priority(route.metric));
    message.attributes.extend(route.source.map(|source| RouteAttribute::PrefSource(source.into())));
    message
}

fn clsact_message(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    message
}

fn filter_message(ifindex: u32, hook: Hook, priority: u16, handle: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex.cast_signed());
    message.header.parent = parent(hook);
    message.header.handle = TcHandle::from(handle);
    message.header.info = u32::from(priority) << 16 | ETH_P_ALL;
    message
}

fn parent(hook: Hook) -> TcHandle {
    let minor = match hook {
        Hook::Ingress => TcHandle::MIN_INGRESS,
        Hook::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: TcHandle::CLSACT.major, minor }
}

fn parse_filter(message: &TcMessage) -> Option<Filter> {
    let handle = u32::from(message.header.handle);
    if handle == 0 {
        // The chain's head, which the kernel lists too.
        return None;
    }
    let priority = (message.header.info >> 16) as u16;
    let mut filter = Filter { priority, handle, program: None, name: String::new() };
    let mut bpf = false;
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => bpf = kind == TcFilterBpf::KIND,
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => filter.name.clone_from(name),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    bpf.then_some(filter)
}

/// Interfaces by name and by index.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkTable {
    by_index: HashMap<u32, Link>,
    by_name: HashMap<String, u32>,
}

impl LinkTable {
    pub(crate) fn new(links: Vec<Link>) -> Self {
        let by_name = links.iter().map(|link| (link.name.clone(), link.index)).collect();
        Self { by_index: links.into_iter().map(|link| (link.index, link)).collect(), by_name }
    }

    pub(crate) fn by_index(&self, index: u32) -> Option<&Link> {
        self.by_index.get(&index)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Link> {
        self.by_name.get(name).and_then(|index| self.by_index.get(index))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Link> {
        self.by_index.values()
    }
}
