//! Which host endpoint an interface of the host is.

use std::net::IpAddr;

use super::model::HostInterface;

/// The host endpoint that an interface of this name and with these addresses is, of those of its node.
///
/// As in Felix (`resolveHostEndpoints`): of those that name the interface or expect one of its addresses the first by name;
/// where there is none, the first of those of all interfaces. Interfaces of workloads and loopback are nobody's: the caller
/// leaves them out.
#[must_use]
pub fn host_endpoint_of<'a>(
    endpoints: impl Iterator<Item = (&'a str, &'a HostInterface)> + Clone,
    interface: &str,
    addresses: &[IpAddr],
) -> Option<&'a str> {
    let named = endpoints.clone().filter(|(_, of)| match of {
        HostInterface::Named(name) => name == interface,
        HostInterface::Carrying(expected) => expected.iter().any(|address| addresses.contains(address)),
        HostInterface::All => false,
    });
    let all = endpoints.filter(|(_, of)| matches!(of, HostInterface::All));
    named.map(|(name, _)| name).min().or_else(|| all.map(|(name, _)| name).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> HostInterface {
        HostInterface::Named(name.to_owned())
    }

    #[test]
    fn the_first_by_name_is_the_interface_and_the_others_have_what_is_left() {
        let address = IpAddr::from([192, 0, 2, 1]);
        let (eth0, eth1) = (named("eth0"), named("eth1"));
        let (carrying, all) = (HostInterface::Carrying(vec![address]), HostInterface::All);
        let endpoints = [("a-all", &all), ("c", &eth0), ("b", &eth1), ("b-carrying", &carrying), ("z-all", &all)];
        let of = |interface, addresses: &[IpAddr]| host_endpoint_of(endpoints.into_iter(), interface, addresses);
        assert_eq!(of("eth0", &[]), Some("c"));
        assert_eq!(of("eth0", &[address]), Some("b-carrying"), "its address is as good as its name");
        assert_eq!(of("eth1", &[address]), Some("b"));
        assert_eq!(of("eth2", &[]), Some("a-all"));
        assert_eq!(host_endpoint_of([("c", &eth0)].into_iter(), "eth2", &[]), None);
    }
}
