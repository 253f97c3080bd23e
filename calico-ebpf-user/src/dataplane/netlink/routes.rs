//! Routes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
    },
};

use super::{Netlink, is_route};

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

const MAIN: u8 = RouteHeader::RT_TABLE_MAIN;
// include/uapi/linux/rtnetlink.h.
const LOCAL: u8 = 255;

impl Netlink {
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
}

/// Of a route in a dump.
fn route_prefix_len(message: &[u8]) -> Option<u8> {
    // struct nlmsghdr, then struct rtmsg: family, dst_len, ...
    message.get(17).copied().filter(|_| is_route(message))
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
