//! The small texts of Calico's API: networks, addresses, protocols, ports, names. Pure; an error says what would be right.

use std::net::IpAddr;

use ipnet::IpNet;

use super::model::PortMatch;

/// Protocols that rules and ports may name, with their numbers.
pub(super) const PROTOCOLS: [(&str, u8); 6] =
    [("TCP", 6), ("UDP", 17), ("ICMP", 1), ("ICMPv6", 58), ("SCTP", 132), ("UDPLite", 136)];

/// Whether rules may name ports of this protocol: TCP, UDP and SCTP (`Protocol.SupportsPorts` of Calico's API).
pub(super) const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132)
}

/// An address; the short forms and zones that some tools accept are refused.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    match text.parse() {
        Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(format!("{text} is an IPv4 address in IPv6 clothes: write {v4}")),
            None => Ok(IpAddr::V6(v6)),
        },
        Ok(v4) => Ok(v4),
        Err(_) => Err(format!("\"{text}\" is not an IP address")),
    }
}

/// A network in CIDR notation, or an address, which is a network of one: the address as written, and the network with it.
pub(super) fn any_network(text: &str) -> Result<(IpAddr, IpNet), String> {
    let Some((ip, length)) = text.split_once('/') else {
        let ip = address(text).map_err(|e| if e.contains("clothes") { e } else { format!("{e} or network") })?;
        return Ok((ip, IpNet::from(ip)));
    };
    let ip = address(ip)?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = Some(length)
        .filter(|length| !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|length| length.parse::<u8>().ok())
        .filter(|length| *length <= most)
        .ok_or_else(|| format!("\"/{length}\" is not a prefix length: 0 to {most} are possible"))?;
    let net = IpNet::new(ip, prefix).map_err(|e| e.to_string())?;
    Ok((ip, net))
}

/// A network of a rule: with a length, and the bits beyond it must be zero (`validateRule` of libcalico-go).
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    let (ip, net) = any_network(text)?;
    if !text.contains('/') {
        return Err(format!("{text} is an address where a network is needed: write {net}"));
    }
    let masked = net.trunc();
    if masked.addr() == ip {
        return Ok(masked);
    }
    let host = IpNet::from(ip);
    Err(format!("{text} has bits set beyond its prefix length: write {masked}, or {host} for the one address"))
}

/// An address of a workload: a /32 or /128, or without a length.
pub(super) fn workload_address(text: &str) -> Result<IpAddr, String> {
    let (ip, net) = any_network(text)?;
    if net.prefix_len() != net.max_prefix_len() {
        return Err(format!("a workload has single addresses, not a network: write {ip}/{}", net.max_prefix_len()));
    }
    let unusable = match ip {
        IpAddr::V4(v4) => v4.is_unspecified() || v4.is_multicast() || v4.is_broadcast() || v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_multicast() || v6.is_loopback(),
    };
    if unusable { Err(format!("{ip} cannot be the address of a workload")) } else { Ok(ip) }
}

/// A protocol by name or number, written as text.
///
/// # Errors
/// There is none of this name, or it is 0 or above 255; the text says what would be right.
pub fn protocol(text: &str) -> Result<u8, String> {
    if let Some((_, number)) = PROTOCOLS.iter().find(|(name, _)| *name == text) {
        return Ok(*number);
    }
    if let Ok(number @ 1..) = text.parse::<u8>() {
        return Ok(number);
    }
    if let Some((name, _)) = PROTOCOLS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)) {
        return Err(format!("unknown protocol \"{text}\": write {name}"));
    }
    let names: Vec<_> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
    Err(format!("unknown protocol \"{text}\": expected one of {}, or a number from 1 to 255", names.join(", ")))
}

/// A port of a rule, written as text: a number, a range `FIRST:LAST`, or a name.
pub(super) fn port(text: &str) -> Result<PortMatch, String> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if is_number(text) {
        return port_number(text).map(|port| PortMatch::Range(port, port));
    }
    if let Some((first, last)) = text.split_once(':') {
        if !is_number(first) || !is_number(last) {
            return Err(format!("\"{text}\" is not a range of ports: write FIRST:LAST"));
        }
        let (first, last) = (port_number(first)?, port_number(last)?);
        if first > last {
            return Err(format!("the range ends before it begins: write {last}:{first}"));
        }
        return Ok(PortMatch::Range(first, last));
    }
    if let Some((first, last)) = text.split_once('-')
        && is_number(first)
        && is_number(last)
    {
        return Err(format!("a range of ports is written with a colon: \"{first}:{last}\""));
    }
    let neither = |_| {
        format!(
            "\"{text}\" is neither a port, a range FIRST:LAST nor the name of a port (at most 15 lower case letters, digits and single \
             dashes inside, with a letter in it)"
        )
    };
    port_name(text).map(|()| PortMatch::Named(text.to_owned())).map_err(neither)
}

fn port_number(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!("{text} is not a port: 1 to 65535 are possible")),
    }
}

/// The name of a port, of a workload or in a rule (Kubernetes' `IsValidPortName`, which Calico asks, too).
pub(super) fn port_name(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if (1..=15).contains(&text.len())
        && text.bytes().all(allowed)
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
    {
        return Ok(());
    }
    Err(format!(
        "\"{text}\" is not the name of a port: at most 15 lower case letters, digits and single dashes inside are allowed, \
         with a letter in it"
    ))
}

/// The identifier of a container: as the runtime gives it.
pub(super) fn container_id(text: &str) -> Result<(), String> {
    let alphanumeric = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
    {
        return Ok(());
    }
    Err("not the identifier of a container: letters, digits and - are allowed, a letter or digit at both ends"
        .to_owned())
}

/// A MAC address of one station, in the forms `ee:ee:ee:ee:ee:ee`, `ee-ee-...` or `eeee.eeee.eeee`.
pub(super) fn mac(text: &str) -> Result<[u8; 6], String> {
    let wrong = || format!("\"{text}\" is not a MAC address: write it like ee:ee:ee:ee:ee:ee");
    let (separator, width) = if text.contains(':') {
        (':', 2)
    } else if text.contains('-') {
        ('-', 2)
    } else {
        ('.', 4)
    };
    let groups: Vec<&str> = text.split(separator).collect();
    if groups.len() != 12 / width || groups.iter().any(|group| group.len() != width) {
        return Err(wrong());
    }
    let digits: Vec<u8> = groups
        .concat()
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    let mut mac = [0; 6];
    for (byte, pair) in mac.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = pair[0] << 4 | pair[1];
    }
    if mac[0] & 1 == 1 || mac == [0; 6] {
        return Err(format!("{text} is not the MAC address of one station"));
    }
    Ok(mac)
}

/// The name of a network interface: what the kernel takes, and Calico with it.
pub(super) fn interface(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if (1..=15).contains(&text.len()) && text.bytes().all(allowed) && !matches!(text, "." | "..") {
        return Ok(());
    }
    Err(format!("\"{text}\" is not the name of an interface: 1 to 15 letters, digits and _ . - are allowed"))
}

/// The name of a resource: RFC 1123 labels, joined by dots, at most 253 characters.
pub(super) fn resource_name(text: &str) -> Result<(), String> {
    let label = |label: &str| {
        let alphanumeric = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        alphanumeric(label.as_bytes().first())
            && alphanumeric(label.as_bytes().last())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if text.len() <= 253 && text.split('.').all(label) {
        return Ok(());
    }
    let lower = text.to_ascii_lowercase();
    let hint = if lower != text && resource_name(&lower).is_ok() { format!(": write {lower}") } else { String::new() };
    Err(format!(
        "not a name: lower case letters, digits, - and . are allowed, a letter or digit at both ends, at most 253{hint}"
    ))
}

/// The name of a policy: a label, or two with a dot between, tier and name. Before any name of a `NetworkPolicy` may stand what
/// Calico puts before those that it made of Kubernetes' or `OpenStack`'s (`networkPolicyNameRegex` of libcalico-go).
pub(super) fn policy_name(text: &str, namespaced: bool) -> Result<(), String> {
    let made = ["knp.default.", "ossg.default."].iter().find_map(|prefix| text.strip_prefix(prefix));
    if let Some(rest) = made.filter(|_| namespaced) {
        return resource_name(rest);
    }
    resource_name(text)?;
    if text.matches('.').count() > 1 {
        return Err("not the name of a policy: at most one dot is allowed, between tier and name".to_owned());
    }
    Ok(())
}

/// The key of a label or annotation (Kubernetes' `IsQualifiedName`): `NAME` or `PREFIX/NAME`.
pub(super) fn qualified_name(text: &str) -> Result<(), String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    if !name.is_empty() && label_value(name).is_ok() && prefix.is_none_or(|prefix| resource_name(prefix).is_ok()) {
        return Ok(());
    }
    Err("at most 63 letters, digits and - _ . are allowed, a letter or digit at both ends; \
         before them a domain in lower case and / may stand"
        .to_owned())
}

/// The value of a label (Kubernetes' `IsValidLabelValue`).
pub(super) fn label_value(text: &str) -> Result<(), String> {
    let alphanumeric = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bytes = text.as_bytes();
    if text.len() <= 63 && text.bytes().all(allowed) && alphanumeric(bytes.first()) && alphanumeric(bytes.last()) {
        return Ok(());
    }
    Err("at most 63 letters, digits and - _ . are allowed, a letter or digit at both ends".to_owned())
}

/// The name of a tier: one RFC 1123 label, at most 63 characters.
pub(super) fn tier_name(text: &str) -> Result<(), String> {
    if text.contains('.') || text.len() > 63 {
        return Err("not the name of a tier: at most 63 lower case letters, digits and - are allowed".to_owned());
    }
    resource_name(text)
}

/// The name of a namespace: one RFC 1123 label, at most 63 characters.
pub(super) fn namespace_name(text: &str) -> Result<(), String> {
    if text.contains('.') || text.len() > 63 {
        return Err("not the name of a namespace: at most 63 lower case letters, digits and - are allowed".to_owned());
    }
    resource_name(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks() {
        for (text, expected) in [
            ("10.0.0.0/8", Ok("10.0.0.0/8")),
            ("10.0.0.1/32", Ok("10.0.0.1/32")),
            ("10.0.0.1", Err("write 10.0.0.1/32")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("fd00::/8", Ok("fd00::/8")),
            ("FD00::1/128", Ok("fd00::1/128")),
            ("FD00::1", Err("write fd00::1/128")),
            ("10.1.2.3/8", Err("write 10.0.0.0/8, or 10.1.2.3/32")),
            ("10.0.0.0/33", Err("0 to 32")),
            ("fd00::/129", Err("0 to 128")),
            ("10.0.0.0/", Err("prefix length")),
            ("10.0.0.0/+8", Err("prefix length")),
            ("10.0.0.0/255.0.0.0", Err("prefix length")),
            ("10.0.0/8", Err("not an IP address")),
            ("010.0.0.1", Err("not an IP address")),
            ("::ffff:10.0.0.1", Err("write 10.0.0.1")),
            ("fe80::1%eth0", Err("not an IP address")),
            ("", Err("not an IP address or network")),
        ] {
            match (network(text), expected) {
                (Ok(net), Ok(expected)) => assert_eq!(net.to_string(), expected, "{text}"),
                (Err(message), Err(part)) => assert!(message.contains(part), "{text}: {message}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn ports() {
        use PortMatch::{Named, Range};
        for (text, expected) in [
            ("80", Ok(Range(80, 80))),
            ("1:65535", Ok(Range(1, 65535))),
            ("443:443", Ok(Range(443, 443))),
            ("http", Ok(Named("http".to_owned()))),
            ("80-http", Ok(Named("80-http".to_owned()))),
            ("0", Err("1 to 65535")),
            ("65536", Err("1 to 65535")),
            ("0:10", Err("1 to 65535")),
            ("200:100", Err("100:200")),
            ("80-443", Err("\"80:443\"")),
            (":80", Err("FIRST:LAST")),
            ("1:2:3", Err("FIRST:LAST")),
            ("8 0", Err("neither")),
            ("", Err("neither")),
            ("http_alt", Err("neither")),
            ("Http", Err("neither")),
            ("abcdefghijklmnop", Err("at most 15")),
        ] {
            match (port(text), expected) {
                (Ok(port), Ok(expected)) => assert_eq!(port, expected, "{text}"),
                (Err(message), Err(part)) => assert!(message.contains(part), "{text}: {message}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn names_protocols_macs_and_addresses() {
        assert!(resource_name("a-b.c9").is_ok());
        for name in ["", "a.", "-a", "a_b", "a..b", &"a".repeat(254)] {
            assert!(resource_name(name).is_err(), "{name}");
        }
        assert!(resource_name("tHiNg").is_err_and(|e| e.ends_with("write thing")));
        assert_eq!(protocol("TCP"), Ok(6));
        assert_eq!(protocol("132"), Ok(132));
        assert!(protocol("tcp").is_err_and(|e| e.ends_with("write TCP")));
        assert!(protocol("0").is_err());
        assert!(protocol("256").is_err());
        assert_eq!(mac("0a:1B:00:00:00:ff"), Ok([10, 27, 0, 0, 0, 255]));
        assert_eq!(mac("0a1b.0000.00ff"), Ok([10, 27, 0, 0, 0, 255]));
        for text in ["", "0a:1b:00:00:00", "01:00:5e:00:00:01", "00:00:00:00:00:00", "0g:00:00:00:00:00"] {
            assert!(mac(text).is_err(), "{text}");
        }
        assert!(workload_address("10.0.0.1/32").is_ok());
        assert!(workload_address("10.65.1.0/26").is_err_and(|e| e.ends_with("write 10.65.1.0/32")));
        assert!(workload_address("ff02::1").is_err());
        assert!(interface("cali0123456789a").is_ok());
        assert!(interface("cali0123456789ab").is_err());
    }
}
