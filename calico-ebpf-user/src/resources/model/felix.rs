//! The settings of a node.

use std::net::IpAddr;

use calico_ebpf_common::packet::protocol::{TCP, UDP};
use ipnet::IpNet;

use super::DenyAction;

/// The parameters of `FelixConfiguration` that mean something here; absent: not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FelixConfiguration {
    /// `interfacePrefix`: interfaces of ours begin with one of these.
    pub interface_prefixes: Option<Vec<String>>,
    /// `defaultEndpointToHostAction`.
    pub default_endpoint_to_host_action: Option<EndpointToHostAction>,
    /// `disableConntrackInvalidCheck`.
    pub disable_conntrack_invalid_check: Option<bool>,
    /// `failsafeInboundHostPorts`: see [`FelixConfiguration::failsafes`].
    pub failsafe_inbound_host_ports: Option<Vec<FailsafePort>>,
    /// `failsafeOutboundHostPorts`, likewise.
    pub failsafe_outbound_host_ports: Option<Vec<FailsafePort>>,
    /// `xdpEnabled`: whether untracked policy may be in force before packets are the kernel's; it is, unless given.
    pub xdp_enabled: Option<bool>,
    /// `genericXDPEnabled`: whether that may be so also where the device has no support for it.
    pub generic_xdp_enabled: Option<bool>,
    /// `localSubnetL2Reachability`.
    pub local_subnet_l2_reachability: Option<L2Reachability>,
    /// `bpfEnforceRPF`.
    pub reverse_path: Option<ReversePath>,
    /// `deviceRouteProtocol`.
    pub device_route_protocol: Option<u8>,
    /// `deviceRouteSourceAddress` and `deviceRouteSourceAddressIPv6`.
    pub device_route_source_address: Option<std::net::Ipv4Addr>,
    /// See above.
    pub device_route_source_address_v6: Option<std::net::Ipv6Addr>,
    /// `ipv4NormalRoutePriority`.
    pub ipv4_normal_route_priority: Option<u32>,
    /// `ipv6NormalRoutePriority`.
    pub ipv6_normal_route_priority: Option<u32>,
    /// `ipv4ElevatedRoutePriority`.
    pub ipv4_elevated_route_priority: Option<u32>,
    /// `ipv6ElevatedRoutePriority`.
    pub ipv6_elevated_route_priority: Option<u32>,
    /// `liveMigrationRouteConvergenceTime`, in seconds.
    pub live_migration_route_convergence_time: Option<u16>,
    /// `natOutgoingAddress`.
    pub nat_outgoing_address: Option<IpAddr>,
    /// `natOutgoingExclusions`.
    pub nat_outgoing_exclusions: Option<NatOutgoingExclusions>,
    /// `natPortRange`, first and last.
    pub nat_port_range: Option<(u16, u16)>,
    /// `iptablesNATOutgoingInterfaceFilter`, as in the file: with `+` at its end the beginning of a name.
    pub nat_outgoing_interface_filter: Option<String>,
    /// `dropActionOverride`.
    pub drop_action_override: Option<DenyAction>,
    /// `iptablesFilterDenyAction`.
    pub iptables_filter_deny_action: Option<DenyAction>,
    /// `nftablesFilterDenyAction`.
    pub nftables_filter_deny_action: Option<DenyAction>,
}

impl FelixConfiguration {
    /// The ports that host endpoints always let pass, inbound and outbound: Calico's unless given.
    #[must_use]
    pub fn failsafes(&self) -> [Vec<FailsafePort>; 2] {
        let port = |protocol: u8| move |port: u16| FailsafePort { protocol, net: None, port };
        let (tcp, udp) = (port(TCP), port(UDP));
        // BGP, etcd, Typha, the API server of Kubernetes.
        let both = [179, 2379, 2380, 5473, 6443, 6666, 6667].map(tcp);
        let given = |given: &Option<Vec<FailsafePort>>, first: [FailsafePort; 2]| {
            given.clone().unwrap_or_else(|| first.into_iter().chain(both).collect())
        };
        [
            given(&self.failsafe_inbound_host_ports, [tcp(22), udp(68)]),
            given(&self.failsafe_outbound_host_ports, [udp(53), udp(67)]),
        ]
    }

    /// What becomes of denied packets where neither rule nor policy says anything: `dropActionOverride` is about all data
    /// paths; of the others, that one is meant which is not the default.
    #[must_use]
    pub fn deny_action(&self) -> DenyAction {
        let filter = [self.iptables_filter_deny_action, self.nftables_filter_deny_action];
        let rejects = filter.contains(&Some(DenyAction::Reject));
        self.drop_action_override.unwrap_or(if rejects { DenyAction::Reject } else { DenyAction::Drop })
    }

    /// The same with what `default` says where this says nothing.
    #[must_use]
    pub fn or(self, default: Self) -> Self {
        macro_rules! whoever_says {
            ($($field:ident),* $(,)?) => {
                Self { $($field: self.$field.or(default.$field)),* }
            };
        }
        whoever_says! {
            interface_prefixes,
            default_endpoint_to_host_action,
            disable_conntrack_invalid_check,
            failsafe_inbound_host_ports,
            failsafe_outbound_host_ports,
            xdp_enabled,
            generic_xdp_enabled,
            local_subnet_l2_reachability,
            reverse_path,
            device_route_protocol,
            device_route_source_address,
            device_route_source_address_v6,
            ipv4_normal_route_priority,
            ipv6_normal_route_priority,
            ipv4_elevated_route_priority,
            ipv6_elevated_route_priority,
            live_migration_route_convergence_time,
            nat_outgoing_address,
            nat_outgoing_exclusions,
            nat_port_range,
            nat_outgoing_interface_filter,
            drop_action_override,
            iptables_filter_deny_action,
            nftables_filter_deny_action,
        }
    }
}

/// What a host endpoint always lets pass to or from the host itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FailsafePort {
    /// IP protocol number.
    pub protocol: u8,
    /// Addresses at the other end; all without it.
    pub net: Option<IpNet>,
    /// Destination port.
    pub port: u16,
}

/// `localSubnetL2Reachability`: whether questions of the link for addresses of local workloads are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum L2Reachability {
    /// They are not.
    #[default]
    Disabled,
    /// They are, inside the networks of uplinks. (There are no load balancers here.)
    PodsAndLoadBalancers,
}

/// `natOutgoingExclusions`: what workloads of pools with `natOutgoing` reach untranslated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NatOutgoingExclusions {
    /// All pools.
    #[default]
    IpPoolsOnly,
    /// All pools, and the addresses of all nodes.
    IpPoolsAndHostIps,
}

/// `defaultEndpointToHostAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointToHostAction {
    /// Drop: the default of Calico's binary.
    #[default]
    Drop,
    /// Allow.
    Accept,
    /// Leave it to the host's own rules.
    Return,
}

/// `bpfEnforceRPF`: what is asked of the way back to who opens a connection from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReversePath {
    /// Nothing.
    Disabled,
    /// It is the one that the packet came by.
    Strict,
    /// There is one: Calico's default.
    #[default]
    Loose,
}
