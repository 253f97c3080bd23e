//! `FelixConfiguration`: the parameters that mean something here, and the names of all others.

use calico_ebpf_common::packet::protocol;

use super::{
    annotations::deny_action,
    bgp::duration,
    decode::{Decoder, FieldPath, Fields, Table, Use},
    diagnostic::Severity,
    kinds::Document,
    model::{
        DenyAction, EndpointToHostAction, FailsafePort, FelixConfiguration, L2Reachability, NatOutgoingExclusions,
        PortMatch, ReversePath,
    },
    parsed::Body,
    rules, values,
    yaml::{Meaning, Node, Value},
};

/// The greatest metric that Calico's route priorities may have.
const MAX_PRIORITY: u32 = 2_147_483_646;

/// Reads a `FelixConfiguration`.
pub(super) fn configuration(decoder: &mut Decoder<'_>, document: &Document<'_>) -> Option<Body> {
    let root = FieldPath::ROOT;
    let path = root.field("spec");
    let name = document.metadata.name.as_deref()?;
    if name != "default" && name.strip_prefix("node.").is_none_or(str::is_empty) {
        let metadata = root.field("metadata");
        let field = metadata.field("name").to_string();
        let message = "no node reads a FelixConfiguration of this name: call it \"default\" or \"node.NODENAME\"";
        decoder.report(Severity::Warning, document.metadata.name_at, name.len(), Some(&field), message);
    }
    let spec = match document.fields.get("spec") {
        Some(spec) => decoder.fields(spec, &path, PARAMETERS)?,
        None => Fields::none(document.at),
    };
    let mut priority = |name: &str| {
        let node = spec.get(name)?;
        decoder.integer(node, &path.field(name), 1..=MAX_PRIORITY)
    };
    let ipv4_normal_route_priority = priority("ipv4NormalRoutePriority");
    let ipv6_normal_route_priority = priority("ipv6NormalRoutePriority");
    let ipv4_elevated_route_priority = priority("ipv4ElevatedRoutePriority");
    let ipv6_elevated_route_priority = priority("ipv6ElevatedRoutePriority");
    let mut failsafes = |name: &str| {
        let node = spec.get(name)?;
        failsafe_ports(decoder, node, &path.field(name))
    };
    let failsafe_inbound_host_ports = failsafes("failsafeInboundHostPorts");
    let failsafe_outbound_host_ports = failsafes("failsafeOutboundHostPorts");
    let live_migration_route_convergence_time = duration(decoder, &spec, &path, "liveMigrationRouteConvergenceTime");
    let get = |name| spec.get(name).map(|node| (node, path.field(name)));
    Some(Body::Felix(Box::new(FelixConfiguration {
        interface_prefixes: get("interfacePrefix").and_then(|(node, path)| prefixes(decoder, node, &path)),
        default_endpoint_to_host_action: get("defaultEndpointToHostAction")
            .and_then(|(node, path)| endpoint_to_host_action(decoder, node, &path)),
        disable_conntrack_invalid_check: get("disableConntrackInvalidCheck")
            .and_then(|(node, path)| decoder.boolean(node, &path)),
        failsafe_inbound_host_ports,
        failsafe_outbound_host_ports,
        xdp_enabled: get("xdpEnabled").and_then(|(node, path)| decoder.boolean(node, &path)),
        generic_xdp_enabled: get("genericXDPEnabled").and_then(|(node, path)| decoder.boolean(node, &path)),
        local_subnet_l2_reachability: get("localSubnetL2Reachability")
            .and_then(|(node, path)| l2_reachability(decoder, node, &path)),
        reverse_path: get("bpfEnforceRPF").and_then(|(node, path)| reverse_path(decoder, node, &path)),
        device_route_protocol: get("deviceRouteProtocol")
            .and_then(|(node, path)| decoder.integer(node, &path, 1..=255)),
        device_route_source_address: get("deviceRouteSourceAddress")
            .and_then(|(node, path)| address(decoder, node, &path, "IPv4")),
        device_route_source_address_v6: get("deviceRouteSourceAddressIPv6")
            .and_then(|(node, path)| address(decoder, node, &path, "IPv6")),
        ipv4_normal_route_priority,
        ipv6_normal_route_priority,
        ipv4_elevated_route_priority,
        ipv6_elevated_route_priority,
        live_migration_route_convergence_time,
        nat_outgoing_address: get("natOutgoingAddress").and_then(|(node, path)| address(decoder, node, &path, "IP")),
        nat_outgoing_exclusions: get("natOutgoingExclusions").and_then(|(node, path)| exclusions(decoder, node, &path)),
        nat_port_range: get("natPortRange").and_then(|(node, path)| port_range(decoder, node, &path)),
        nat_outgoing_interface_filter: get("iptablesNATOutgoingInterfaceFilter")
            .and_then(|(node, path)| interface_filter(decoder, node, &path)),
        drop_action_override: get("dropActionOverride")
            .and_then(|(node, path)| drop_action_override(decoder, node, &path)),
        iptables_filter_deny_action: get("iptablesFilterDenyAction")
            .and_then(|(node, path)| filter_deny_action(decoder, node, &path)),
        nftables_filter_deny_action: get("nftablesFilterDenyAction")
            .and_then(|(node, path)| filter_deny_action(decoder, node, &path)),
    })))
}

/// Prefixes of interface names, separated by commas.
fn prefixes(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<Vec<String>> {
    let text = decoder.text(node, path).filter(|text| !text.is_empty())?;
    let mut prefixes = Vec::new();
    for prefix in text.split(',') {
        if let Err(message) = values::interface(prefix) {
            decoder.error(node, path, format!("{message}; several prefixes are separated by commas, without blanks"));
            return None;
        }
        prefixes.push(prefix.to_owned());
    }
    Some(prefixes)
}

const FAILSAFE_PORT: Table = &[("protocol", Use::Read), ("port", Use::Read), ("net", Use::Read)];
/// What may stand before the port, in Felix's parameter as in the API.
const FAILSAFE_PROTOCOLS: [(&str, u8); 3] = [("tcp", protocol::TCP), ("udp", protocol::UDP), ("sctp", protocol::SCTP)];

/// A list of ports as the API has it (`ProtoPort`), each of them possibly in the short form of Felix's parameter, or all of
/// them in one text of that form: `tcp:22,udp:10.0.0.0/8:53`, `none`.
fn failsafe_ports(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<Vec<FailsafePort>> {
    let short = |decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>, text: &str| {
        failsafe_port(text).map_err(|message| decoder.error(node, path, message)).ok()
    };
    if let Value::Scalar(_) = &node.value {
        let text = decoder.text(node, path).filter(|text| !text.is_empty())?;
        let items = text.split(',').filter(|_| text != "none");
        return items.map(|item| short(decoder, node, path, item)).collect();
    }
    let items = decoder.list(node, path).iter().enumerate();
    let ports: Vec<_> = items
        .map(|(i, item)| {
            let path = path.index(i);
            match &item.value {
                Value::Scalar(_) => {
                    let text = decoder.text(item, &path)?;
                    short(decoder, item, &path, text)
                }
                _ => failsafe_item(decoder, item, &path),
            }
        })
        .collect();
    ports.into_iter().collect()
}

fn failsafe_item(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<FailsafePort> {
    let fields = decoder.fields(node, path, FAILSAFE_PORT)?;
    let mut required = |name: &str| {
        let node = fields.get(name);
        if node.is_none() {
            decoder.missing(fields.at, &path.field(name), "missing: a failsafe port has a protocol and a port");
        }
        node
    };
    let (protocol, port) = (required("protocol"), required("port"));
    let protocol = protocol.and_then(|node| {
        let path = path.field("protocol");
        let text = decoder.text(node, &path)?;
        failsafe_protocol(text).map_err(|message| decoder.error(node, &path, message)).ok()
    });
    let port = port.and_then(|node| decoder.integer(node, &path.field("port"), 0..=65535));
    let net = match fields.get("net").filter(|node| !rules::is_empty_text(node)) {
        None => None,
        Some(node) => {
            let path = path.field("net");
            let text = decoder.text(node, &path)?;
            Some(values::any_network(text).map_err(|message| decoder.error(node, &path, message)).ok()?.1.trunc())
        }
    };
    Some(FailsafePort { protocol: protocol?, net, port: port? })
}

fn failsafe_protocol(text: &str) -> Result<u8, String> {
    let known = FAILSAFE_PROTOCOLS.into_iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
    known.map(|(_, number)| number).ok_or_else(|| format!("\"{text}\" is not possible: expected tcp, udp or sctp"))
}

/// `PROTOCOL:NET:PORT`, `PROTOCOL:PORT`, or for TCP `PORT`; IPv6 networks in brackets: `tcp:[fd00::]/64:22`.
fn failsafe_port(text: &str) -> Result<FailsafePort, String> {
    let (rest, port) = text.trim().rsplit_once(':').unwrap_or(("tcp", text.trim()));
    let (protocol, net) = rest.split_once(':').map_or((rest, None), |(protocol, net)| (protocol, Some(net)));
    let net = net.map(|net| values::any_network(&net.replace(['[', ']'], ""))).transpose()?;
    let port = port.parse().map_err(|_| {
        format!("\"{text}\" is not a failsafe port: write PROTOCOL:PORT or PROTOCOL:NET:PORT, like tcp:22 or tcp:10.0.0.0/8:22")
    })?;
    Ok(FailsafePort { protocol: failsafe_protocol(protocol)?, net: net.map(|(_, net)| net.trunc()), port })
}

/// In any case of letters: the API writes `Drop`, Calico's manifests `ACCEPT`.
fn endpoint_to_host_action(
    decoder: &mut Decoder<'_>,
    node: &Node,
    path: &FieldPath<'_>,
) -> Option<EndpointToHostAction> {
    let text = decoder.text(node, path).filter(|text| !text.is_empty())?;
    match text.to_ascii_lowercase().as_str() {
        "drop" => Some(EndpointToHostAction::Drop),
        "accept" => Some(EndpointToHostAction::Accept),
        "return" => Some(EndpointToHostAction::Return),
        _ => {
            decoder.error(node, path, format!("unknown action \"{text}\": expected Drop, Accept or Return"));
            None
        }
    }
}

/// One of two or three texts and what it stands for.
fn choice<T: Copy>(
    decoder: &mut Decoder<'_>,
    node: &Node,
    path: &FieldPath<'_>,
    choices: &[(&str, T)],
    is: impl Fn(&str, &str) -> bool,
) -> Option<T> {
    let text = decoder.text(node, path).filter(|text| !text.is_empty())?;
    let chosen = choices.iter().find(|(name, _)| is(name, text)).map(|(_, chosen)| *chosen);
    if chosen.is_none() {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let (last, others) = names.split_last().unwrap_or((&"", &[]));
        decoder.error(node, path, format!("\"{text}\" is not possible: expected {} or {last}", others.join(", ")));
    }
    chosen
}

fn l2_reachability(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<L2Reachability> {
    let choices =
        [("Disabled", L2Reachability::Disabled), ("PodsAndLoadBalancers", L2Reachability::PodsAndLoadBalancers)];
    choice(decoder, node, path, &choices, |name, text| name == text)
}

/// In any case of letters, as Calico's API takes it.
fn reverse_path(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<ReversePath> {
    let choices = [("Disabled", ReversePath::Disabled), ("Strict", ReversePath::Strict), ("Loose", ReversePath::Loose)];
    choice(decoder, node, path, &choices, |name, text| name.eq_ignore_ascii_case(text))
}

fn exclusions(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<NatOutgoingExclusions> {
    let choices = [
        ("IPPoolsOnly", NatOutgoingExclusions::IpPoolsOnly),
        ("IPPoolsAndHostIPs", NatOutgoingExclusions::IpPoolsAndHostIps),
    ];
    choice(decoder, node, path, &choices, |name, text| name == text)
}

/// A port, or `FIRST:LAST`. A bare 0 is Calico's "not given".
fn port_range(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<(u16, u16)> {
    if let Value::Scalar(scalar) = &node.value
        && let Meaning::Integer(_) = scalar.meaning()
    {
        return decoder.integer(node, path, 0..=u16::MAX).filter(|port| *port != 0).map(|port| (port, port));
    }
    let text = decoder.text(node, path).filter(|text| !text.is_empty())?;
    match values::port(text) {
        Ok(PortMatch::Range(first, last)) => return Some((first, last)),
        Ok(PortMatch::Named(_)) => {
            decoder.error(node, path, "expected a port or a range of ports, like \"20000:40000\"");
        }
        Err(message) => decoder.error(node, path, message),
    }
    None
}

fn interface_filter(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<String> {
    let text = decoder.text(node, path).filter(|text| !text.is_empty())?;
    match values::interface(text.strip_suffix('+').unwrap_or(text)) {
        Ok(()) => return Some(text.to_owned()),
        Err(message) => decoder.error(node, path, format!("{message}; behind the beginning of a name stands +")),
    }
    None
}

/// The parameter of Calico Enterprise, which has no `Reject`; its other values cannot be enforced here.
fn drop_action_override(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<DenyAction> {
    let text = decoder.text(node, path)?;
    let message = match text.to_ascii_lowercase().as_str() {
        "loganddrop" => "denied packets are not logged by this: write Drop, and Log rules where they are to be logged",
        "accept" | "logandaccept" => {
            "what policy denies does not pass here: write Drop or Reject, or stage the policies"
        }
        _ => return filter_deny_action(decoder, node, path),
    };
    decoder.error(node, path, format!("\"{text}\" is not possible: {message}"));
    None
}

fn filter_deny_action(decoder: &mut Decoder<'_>, node: &Node, path: &FieldPath<'_>) -> Option<DenyAction> {
    decoder.text(node, path).filter(|text| !text.is_empty())?;
    deny_action(decoder, node, path)
}

fn address<T: std::str::FromStr>(
    decoder: &mut Decoder<'_>,
    node: &Node,
    path: &FieldPath<'_>,
    family: &str,
) -> Option<T> {
    let text = decoder.text(node, path).filter(|text| !text.is_empty())?;
    let message = match (text.parse(), values::address(text)) {
        (Ok(address), Ok(_)) => return Some(address),
        (Ok(_), Err(message)) => message,
        (Err(_), _) => format!("\"{text}\" is not an {family} address"),
    };
    decoder.error(node, path, message);
    None
}

/// The parameters of Calico's API (`FelixConfigurationSpec`): first those that are read here, then all others.
const PARAMETERS: Table = &[
    ("interfacePrefix", Use::Read),
    ("defaultEndpointToHostAction", Use::Read),
    ("disableConntrackInvalidCheck", Use::Read),
    ("failsafeInboundHostPorts", Use::Read),
    ("failsafeOutboundHostPorts", Use::Read),
    ("xdpEnabled", Use::Read),
    ("genericXDPEnabled", Use::Read),
    ("localSubnetL2Reachability", Use::Read),
    ("deviceRouteProtocol", Use::Read),
    ("deviceRouteSourceAddress", Use::Read),
    ("deviceRouteSourceAddressIPv6", Use::Read),
    ("ipv4NormalRoutePriority", Use::Read),
    ("ipv6NormalRoutePriority", Use::Read),
    ("ipv4ElevatedRoutePriority", Use::Read),
    ("ipv6ElevatedRoutePriority", Use::Read),
    ("liveMigrationRouteConvergenceTime", Use::Read),
    ("natOutgoingAddress", Use::Read),
    ("natOutgoingExclusions", Use::Read),
    ("natPortRange", Use::Read),
    ("iptablesNATOutgoingInterfaceFilter", Use::Read),
    ("dropActionOverride", Use::Read),
    ("iptablesFilterDenyAction", Use::Read),
    ("nftablesFilterDenyAction", Use::Read),
    ("allowIPIPPacketsFromWorkloads", Use::NoEffect),
    ("allowVXLANPacketsFromWorkloads", Use::NoEffect),
    ("awsSrcDstCheck", Use::NoEffect),
    ("bpfAttachType", Use::NoEffect),
    ("bpfCTLBLogFilter", Use::NoEffect),
    ("bpfConnectTimeLoadBalancing", Use::NoEffect),
    ("bpfConnectTimeLoadBalancingEnabled", Use::NoEffect),
    ("bpfConntrackLogLevel", Use::NoEffect),
    ("bpfConntrackMode", Use::NoEffect),
    ("bpfConntrackTimeouts", Use::NoEffect),
    ("bpfDSROptoutCIDRs", Use::NoEffect),
    ("bpfDataIfacePattern", Use::NoEffect),
    ("bpfDisableGROForIfaces", Use::NoEffect),
    ("bpfDisableUnprivileged", Use::NoEffect),
    ("bpfEnabled", Use::NoEffect),
    ("bpfEnforceRPF", Use::Read),
    ("bpfExcludeCIDRsFromNAT", Use::NoEffect),
    ("bpfExportBufferSizeMB", Use::NoEffect),
    ("bpfExtToServiceConnmark", Use::NoEffect),
    ("bpfExternalServiceMode", Use::NoEffect),
    ("bpfForceTrackPacketsFromIfaces", Use::NoEffect),
    ("bpfHostConntrackBypass", Use::NoEffect),
    ("bpfHostNetworkedNATWithoutCTLB", Use::NoEffect),
    ("bpfJITHardening", Use::NoEffect),
    ("bpfKubeProxyEndpointSlicesEnabled", Use::NoEffect),
    ("bpfKubeProxyIptablesCleanupEnabled", Use::NoEffect),
    ("bpfKubeProxyMinSyncPeriod", Use::NoEffect),
    ("bpfL3IfacePattern", Use::NoEffect),
    ("bpfLogFilters", Use::NoEffect),
    ("bpfLogLevel", Use::NoEffect),
    ("bpfMaglevMaxEndpointsPerService", Use::NoEffect),
    ("bpfMaglevMaxServices", Use::NoEffect),
    ("bpfMapSizeConntrack", Use::NoEffect),
    ("bpfMapSizeConntrackCleanupQueue", Use::NoEffect),
    ("bpfMapSizeConntrackScaling", Use::NoEffect),
    ("bpfMapSizeIPSets", Use::NoEffect),
    ("bpfMapSizeIfState", Use::NoEffect),
    ("bpfMapSizeNATAffinity", Use::NoEffect),
    ("bpfMapSizeNATBackend", Use::NoEffect),
    ("bpfMapSizeNATFrontend", Use::NoEffect),
    ("bpfMapSizePerCpuConntrack", Use::NoEffect),
    ("bpfMapSizeRoute", Use::NoEffect),
    ("bpfPSNATPorts", Use::NoEffect),
    ("bpfPolicyDebugEnabled", Use::NoEffect),
    ("bpfProfiling", Use::NoEffect),
    ("bpfRedirectToPeer", Use::NoEffect),
    ("cgroupV2Path", Use::NoEffect),
    ("chainInsertMode", Use::NoEffect),
    ("dataplaneDriver", Use::NoEffect),
    ("dataplaneWatchdogTimeout", Use::NoEffect),
    ("debugDisableLogDropping", Use::NoEffect),
    ("debugHost", Use::NoEffect),
    ("debugMemoryProfilePath", Use::NoEffect),
    ("debugPort", Use::NoEffect),
    ("debugSimulateCalcGraphHangAfter", Use::NoEffect),
    ("debugSimulateDataplaneApplyDelay", Use::NoEffect),
    ("debugSimulateDataplaneHangAfter", Use::NoEffect),
    ("endpointReportingDelay", Use::NoEffect),
    ("endpointReportingEnabled", Use::NoEffect),
    ("endpointStatusPathPrefix", Use::NoEffect),
    ("externalNodesList", Use::NoEffect),
    ("featureDetectOverride", Use::NoEffect),
    ("featureGates", Use::NoEffect),
    ("floatingIPs", Use::NoEffect),
    ("flowLogsCollectorDebugTrace", Use::NoEffect),
    ("flowLogsFlushInterval", Use::NoEffect),
    ("flowLogsGoldmaneServer", Use::NoEffect),
    ("flowLogsLocalReporter", Use::NoEffect),
    ("flowLogsPolicyEvaluationMode", Use::NoEffect),
    ("goGCThreshold", Use::NoEffect),
    ("goMaxProcs", Use::NoEffect),
    ("goMemoryLimitMB", Use::NoEffect),
    ("healthEnabled", Use::NoEffect),
    ("healthHost", Use::NoEffect),
    ("healthPort", Use::NoEffect),
    ("healthTimeoutOverrides", Use::NoEffect),
    ("interfaceExclude", Use::NoEffect),
    ("interfaceRefreshInterval", Use::NoEffect),
    ("ipForwarding", Use::NoEffect),
    ("ipipEnabled", Use::NoEffect),
    ("ipipMTU", Use::NoEffect),
    ("ipsetsRefreshInterval", Use::NoEffect),
    ("iptablesBackend", Use::NoEffect),
    ("iptablesFilterAllowAction", Use::NoEffect),
    ("iptablesLockFilePath", Use::NoEffect),
    ("iptablesLockProbeInterval", Use::NoEffect),
    ("iptablesLockTimeout", Use::NoEffect),
    ("iptablesMangleAllowAction", Use::NoEffect),
    ("iptablesMarkMask", Use::NoEffect),
    ("iptablesPostWriteCheckInterval", Use::NoEffect),
    ("iptablesRefreshInterval", Use::NoEffect),
    ("ipv6Support", Use::NoEffect),
    ("istioAmbientMode", Use::NoEffect),
    ("istioDSCPMark", Use::NoEffect),
    ("kubeNodePortRanges", Use::NoEffect),
    ("logActionRateLimit", Use::NoEffect),
    ("logActionRateLimitBurst", Use::NoEffect),
    ("logDebugFilenameRegex", Use::NoEffect),
    ("logFilePath", Use::NoEffect),
    ("logPrefix", Use::NoEffect),
    ("logSeverityFile", Use::NoEffect),
    ("logSeverityScreen", Use::NoEffect),
    ("logSeveritySys", Use::NoEffect),
    ("maxIpsetSize", Use::NoEffect),
    ("metadataAddr", Use::NoEffect),
    ("metadataPort", Use::NoEffect),
    ("mtuIfacePattern", Use::NoEffect),
    ("netlinkTimeout", Use::NoEffect),
    ("nftablesFilterAllowAction", Use::NoEffect),
    ("nftablesMangleAllowAction", Use::NoEffect),
    ("nftablesMarkMask", Use::NoEffect),
    ("nftablesMode", Use::NoEffect),
    ("nftablesRefreshInterval", Use::NoEffect),
    ("openstackRegion", Use::NoEffect),
    ("policySyncPathPrefix", Use::NoEffect),
    ("programClusterRoutes", Use::NoEffect),
    ("prometheusGoMetricsEnabled", Use::NoEffect),
    ("prometheusMetricsEnabled", Use::NoEffect),
    ("prometheusMetricsHost", Use::NoEffect),
    ("prometheusMetricsPort", Use::NoEffect),
    ("prometheusProcessMetricsEnabled", Use::NoEffect),
    ("prometheusWireGuardMetricsEnabled", Use::NoEffect),
    ("removeExternalRoutes", Use::NoEffect),
    ("reportingInterval", Use::NoEffect),
    ("reportingTTL", Use::NoEffect),
    ("requireMTUFile", Use::NoEffect),
    ("routeRefreshInterval", Use::NoEffect),
    ("routeSource", Use::NoEffect),
    ("routeSyncDisabled", Use::NoEffect),
    ("routeTableRange", Use::NoEffect),
    ("routeTableRanges", Use::NoEffect),
    ("serviceLoopPrevention", Use::NoEffect),
    ("sidecarAccelerationEnabled", Use::NoEffect),
    ("usageReportingEnabled", Use::NoEffect),
    ("usageReportingInitialDelay", Use::NoEffect),
    ("usageReportingInterval", Use::NoEffect),
    ("useInternalDataplaneDriver", Use::NoEffect),
    ("vxlanEnabled", Use::NoEffect),
    ("vxlanMTU", Use::NoEffect),
    ("vxlanMTUV6", Use::NoEffect),
    ("vxlanPort", Use::NoEffect),
    ("vxlanVNI", Use::NoEffect),
    ("windowsManageFirewallRules", Use::NoEffect),
    ("wireguardEnabled", Use::NoEffect),
    ("wireguardEnabledV6", Use::NoEffect),
    ("wireguardHostEncryptionEnabled", Use::NoEffect),
    ("wireguardInterfaceName", Use::NoEffect),
    ("wireguardInterfaceNameV6", Use::NoEffect),
    ("wireguardKeepAlive", Use::NoEffect),
    ("wireguardListeningPort", Use::NoEffect),
    ("wireguardListeningPortV6", Use::NoEffect),
    ("wireguardMTU", Use::NoEffect),
    ("wireguardMTUV6", Use::NoEffect),
    ("wireguardRoutingRulePriority", Use::NoEffect),
    ("wireguardThreadingEnabled", Use::NoEffect),
    ("workloadSourceSpoofing", Use::NoEffect),
    ("xdpRefreshInterval", Use::NoEffect),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failsafe_ports_in_their_short_form() {
        let port = |protocol, net: Option<&str>, port| {
            Ok(FailsafePort { protocol, net: net.map(|net| net.parse().unwrap()), port })
        };
        assert_eq!(failsafe_port("tcp:22"), port(6, None, 22));
        assert_eq!(failsafe_port("22"), port(6, None, 22));
        assert_eq!(failsafe_port("udp:10.1.2.3/8:53"), port(17, Some("10.0.0.0/8"), 53));
        assert_eq!(failsafe_port("tcp:[fd00::1]/64:22"), port(6, Some("fd00::/64"), 22));
        assert_eq!(failsafe_port("tcp:192.0.2.1:22"), port(6, Some("192.0.2.1/32"), 22));
        for text in ["", "tcp", "tcp:", "icmp:1", "tcp:10.0.0.0/8", "tcp:22:22", "tcp:65536"] {
            assert!(failsafe_port(text).is_err(), "{text}");
        }
    }
}
