//! The nftables table that gives workloads of pools with `natOutgoing` the host's address where they leave all pools.

use std::{fmt::Write as _, net::IpAddr};

use calico_ebpf_common::abi::MARK_UNTRANSLATED;
use ipnet::IpNet;

use super::nft;

/// Name of the default instance's table.
pub(crate) const TABLE: &str = "calico_nat";
/// What it is for.
pub(crate) const PURPOSE: &str = "the translation that natOutgoing of an IPPool asks for";

/// Just before `srcnat`: what is asked for in particular goes before what the host does to all. The first one that
/// translates a connection decides.
const PRIORITY: u8 = 99;

/// Who is translated, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NatOutgoing {
    /// The pools with `natOutgoing`. None contains another one.
    pub sources: Vec<IpNet>,
    /// What is reached untranslated: all pools, and whatever else. Likewise.
    pub inside: Vec<IpNet>,
    /// `natOutgoingAddress`, for the pools of its IP version; otherwise the address is that of the device that the packet leaves by.
    pub address: Option<IpAddr>,
    /// `natPortRange`, first and last, for TCP and UDP.
    pub ports: Option<(u16, u16)>,
    /// `iptablesNATOutgoingInterfaceFilter`: only what leaves by this device is translated. Ends with `*` where it is the
    /// beginning of a name.
    pub interface: Option<String>,
}

/// The table.
pub(crate) fn ruleset(table: &str, nat: &NatOutgoing) -> String {
    let versions = [("4", "ip", "ipv4_addr"), ("6", "ip6", "ipv6_addr")];
    let mut sets = String::new();
    let mut rules = String::new();
    for (version, protocol, kind) in versions {
        let elements = |nets: &[IpNet]| {
            let nets = nets.iter().filter(|net| matches!(net, IpNet::V4(_)) == (version == "4"));
            nets.map(IpNet::to_string).collect::<Vec<_>>().join(", ")
        };
        let sources = elements(&nat.sources);
        if sources.is_empty() {
            continue;
        }
        for (name, elements) in [("nat_outgoing", sources), ("inside", elements(&nat.inside))] {
            let _ = writeln!(
                sets,
                "  set {name}{version} {{\n    type {kind}; flags interval;\n    elements = {{ {elements} }}\n  }}"
            );
        }
        let device = nat.interface.as_ref().map(|name| format!("oifname \"{name}\" ")).unwrap_or_default();
        let matched = format!("{device}{protocol} saddr @nat_outgoing{version} {protocol} daddr != @inside{version}");
        let address = nat.address.filter(|address| address.is_ipv4() == (version == "4"));
        if let Some((first, last)) = nat.ports {
            let action = match address {
                None => format!("masquerade to :{first}-{last}"),
                Some(IpAddr::V4(address)) => format!("snat ip to {address}:{first}-{last}"),
                Some(IpAddr::V6(address)) => format!("snat ip6 to [{address}]:{first}-{last}"),
            };
            let _ = writeln!(
                rules,
                "    {matched} meta l4proto {{ tcp, udp }} counter {action} fully-random \
                 comment \"natOutgoing, with ports of natPortRange\""
            );
        }
        let action = match address {
            None => "masquerade".to_owned(),
            Some(address) => format!("snat {protocol} to {address}"),
        };
        let comment = "natOutgoing: from such a pool to outside of all pools";
        let _ = writeln!(rules, "    {matched} counter {action} fully-random comment \"{comment}\"");
    }
    let untranslated = format!(
        "    meta mark & {MARK_UNTRANSLATED:#010x} == {MARK_UNTRANSLATED:#010x} return \
         comment \"connections that were opened untranslated stay so\"\n"
    );
    nft::whole("inet", table, &format!("{sets}{}", chain(&format!("{untranslated}{rules}"))))
}

/// The table where nobody new is translated. With the last chain of this kind the kernel stops translating at all, also
/// the connections that it has translated so far, and with the last rule that asks for them it stops tracking connections.
pub(crate) fn only_running_connections(table: &str) -> String {
    let rule = "    ct state new return comment \"natOutgoing is off: connections translated before stay so\"\n";
    nft::whole("inet", table, &chain(rule))
}

fn chain(rules: &str) -> String {
    format!("  chain postrouting {{\n    type nat hook postrouting priority {PRIORITY}; policy accept;\n{rules}  }}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat(sources: &[&str]) -> NatOutgoing {
        let sources: Vec<IpNet> = sources.iter().map(|net| net.parse().expect("a network")).collect();
        NatOutgoing { inside: sources.clone(), sources, ..NatOutgoing::default() }
    }

    #[test]
    fn each_version_has_its_own_rules() {
        let text = ruleset("t", &nat(&["10.65.0.0/16"]));
        assert!(
            text.contains("ip saddr @nat_outgoing4 ip daddr != @inside4 counter masquerade fully-random"),
            "{text}"
        );
        assert!(!text.contains("ip6"), "{text}");
        let both = ruleset("t", &nat(&["10.65.0.0/16", "fd00:65::/64"]));
        assert!(both.contains("elements = { fd00:65::/64 }"), "{both}");
        assert!(both.contains("ip6 saddr @nat_outgoing6 ip6 daddr != @inside6 counter masquerade"), "{both}");
    }

    #[test]
    fn the_address_is_for_its_own_version() {
        let with = NatOutgoing {
            address: Some("192.0.2.9".parse().expect("an address")),
            ports: Some((20_000, 30_000)),
            interface: Some("eth*".into()),
            ..nat(&["10.65.0.0/16", "fd00:65::/64"])
        };
        let text = ruleset("t", &with);
        assert!(text.contains("oifname \"eth*\" ip saddr"), "{text}");
        assert!(text.contains("{ tcp, udp } counter snat ip to 192.0.2.9:20000-30000"), "{text}");
        assert!(text.contains("counter snat ip to 192.0.2.9 fully-random"), "{text}");
        assert!(text.contains("{ tcp, udp } counter masquerade to :20000-30000"), "{text}");
        let v6 = NatOutgoing { address: Some("fd00::9".parse().expect("an address")), ..with };
        let text = ruleset("t", &v6);
        assert!(text.contains("snat ip6 to [fd00::9]:20000-30000"), "{text}");
    }
}
