//! Whom uplinks answer for, by ARP and neighbour discovery: addresses of local workloads inside their own networks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use calico_ebpf_common::abi::{Neighbour, NeighbourKey};
use ipnet::IpNet;

/// An uplink, as far as answers go.
#[derive(Clone, Debug)]
pub(crate) struct Answerer {
    pub(crate) ifindex: u32,
    pub(crate) mac: [u8; 6],
    /// Whether what its XDP program sends arrives.
    pub(crate) by_xdp: bool,
}

/// What the map is to hold. `networks` are those of all interfaces; an address of the host itself is answered by the stack.
pub(crate) fn wanted(
    addresses: &[IpAddr],
    uplinks: &[Answerer],
    networks: &[(u32, IpNet)],
) -> BTreeMap<NeighbourKey, Neighbour> {
    let own: BTreeSet<IpAddr> = networks.iter().map(|(_, net)| net.addr()).collect();
    let mut wanted = BTreeMap::new();
    for uplink in uplinks.iter().filter(|uplink| uplink.mac != [0; 6]) {
        let nets = || networks.iter().filter(|(ifindex, net)| *ifindex == uplink.ifindex && !is_link_local(net));
        for address in addresses.iter().filter(|address| !own.contains(address)) {
            if nets().any(|(_, net)| net.contains(address)) {
                let key = NeighbourKey { address: wide(*address), ifindex: uplink.ifindex };
                wanted.insert(key, Neighbour { mac: uplink.mac, by_xdp: uplink.by_xdp.into() });
            }
        }
    }
    wanted
}

fn is_link_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr().is_link_local(),
        IpNet::V6(net) => net.addr().is_unicast_link_local(),
    }
}

fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The link's multicast address that solicitations for an address are sent to (RFC 4291, section 2.7.1; RFC 2464, section
/// 7): a device receives it only if it is told to. `None` for IPv4, which asks by broadcast.
pub(crate) fn solicited_mac(key: &NeighbourKey) -> Option<[u8; 6]> {
    let address = Ipv6Addr::from(key.address);
    if address.to_ipv4_mapped().is_some() {
        return None;
    }
    let [.., a, b, c] = key.address;
    Some([0x33, 0x33, 0xff, a, b, c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_inside_an_uplinks_own_network_is_answered_for() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let net = |text: &str| text.parse::<IpNet>().expect("a network");
        let addresses = ["192.0.2.10", "10.65.0.1", "192.0.2.1", "2001:db8:2::10", "fe80::10"].map(address);
        let uplinks = [
            Answerer { ifindex: 2, mac: [2; 6], by_xdp: true },
            Answerer { ifindex: 3, mac: [3; 6], by_xdp: false },
            Answerer { ifindex: 4, mac: [0; 6], by_xdp: false },
        ];
        let networks =
            [(2, net("192.0.2.1/24")), (2, net("2001:db8:2::1/64")), (2, net("fe80::1/64")), (4, net("10.65.0.9/16"))];
        let wanted = wanted(&addresses, &uplinks, &networks);
        let expected = ["192.0.2.10", "2001:db8:2::10"].map(|text| {
            let key = NeighbourKey { address: wide(address(text)), ifindex: 2 };
            (key, Neighbour { mac: [2; 6], by_xdp: 1 })
        });
        assert_eq!(wanted, expected.into_iter().collect());
        let macs: Vec<_> = wanted.keys().filter_map(solicited_mac).collect();
        assert_eq!(macs, [[0x33, 0x33, 0xff, 0, 0, 0x10]]);
    }
}
