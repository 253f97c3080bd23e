//! Addresses of the host, and what it knows of its neighbours'.

use std::{collections::BTreeSet, io, net::IpAddr};

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
};

use super::Netlink;

impl Netlink {
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
