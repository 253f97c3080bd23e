//! Who and what the numbers in the maps stand for.

use std::{collections::HashMap, fmt, net::IpAddr, str::FromStr};

use calico_ebpf_common::abi::{self, Interface, PolicyRef};

use super::interfaces;
use crate::{
    dataplane::{self, view::View},
    policy::compiled::{RuleName, host_endpoint_of_seat},
    routes::migration::Migration,
};

/// A local workload, as the maps have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Local {
    /// Slot.
    pub slot: u32,
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// Name of its pod.
    pub pod: Option<String>,
    /// Host side of its veth or tap, as configured.
    pub interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The value of the workload map.
    pub workload: abi::Workload,
    /// The tables in force.
    pub policy: PolicyRef,
    /// How it comes from another node, if it does.
    pub migration: Option<Migration>,
}

/// All local workloads, in the order of their names.
///
/// # Errors
/// If the maps cannot be read.
pub fn workloads(view: &View) -> dataplane::Result<Vec<Local>> {
    let mut all = seats(view)?;
    all.retain(|local| host_endpoint_of_seat(&local.endpoint).is_none());
    Ok(all)
}

/// What host endpoints judge, in the order of their names: what the host itself sends and receives under the name of the
/// endpoint, and what it forwards.
///
/// # Errors
/// If the maps cannot be read.
pub fn host_endpoints(view: &View) -> dataplane::Result<Vec<Local>> {
    let mut all = seats(view)?;
    all.retain(|local| host_endpoint_of_seat(&local.endpoint).is_some());
    let interfaces = view.interfaces()?;
    for seat in &mut all {
        let is_seat = |entry: &Interface| [entry.host, entry.forward].contains(&(seat.slot + 1));
        let of_seat = interfaces.iter().filter(|(_, entry)| is_seat(entry));
        let names: Vec<String> = of_seat.filter_map(|(index, _)| interfaces::name(*index)).collect();
        seat.interface = names.join(", ");
    }
    Ok(all)
}

/// Whoever has rules.
///
/// # Errors
/// If the maps cannot be read.
pub fn seats(view: &View) -> dataplane::Result<Vec<Local>> {
    let generation = view.root()?.generation;
    let mut addresses: HashMap<u32, Vec<IpAddr>> = HashMap::new();
    for (address, slot) in view.owned_addresses()? {
        addresses.entry(slot).or_default().push(address);
    }
    let mut workloads: Vec<Local> = view
        .workloads()?
        .into_iter()
        .map(|(slot, owner, workload)| {
            let mut addresses = addresses.remove(&slot).unwrap_or_default();
            addresses.sort_unstable();
            Local {
                slot,
                endpoint: owner.endpoint,
                pod: owner.pod,
                interface: owner.interface,
                addresses,
                workload,
                policy: *workload.policy(generation),
                migration: Migration::of_slot(&workload, owner.from.as_ref()),
            }
        })
        .collect();
    workloads.sort_unstable_by(|a, b| a.endpoint.cmp(&b.endpoint));
    Ok(workloads)
}

/// Rules by counter slot, with the packets that they decided.
///
/// # Errors
/// If the maps cannot be read.
pub fn rules(view: &View) -> dataplane::Result<HashMap<u32, (RuleName, u64)>> {
    Ok(view.rules()?.into_iter().map(|(counter, name, hits)| (counter, (name, hits))).collect())
}

/// What rules are called, by counter slot.
///
/// # Errors
/// If the maps cannot be read.
pub fn rule_names(view: &View) -> dataplane::Result<HashMap<u32, RuleName>> {
    Ok(view.rules()?.into_iter().map(|(counter, name, _)| (counter, name)).collect())
}

/// Somebody whom a user names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// This node.
    Host,
    /// Whoever has the address.
    Address(IpAddr),
    /// `NAMESPACE/NAME` of a workload, or `NAMESPACE/POD`.
    Named {
        /// The namespace.
        namespace: String,
        /// The workload's name, or its pod's.
        name: String,
    },
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Address(address) => address.fmt(f),
            Self::Named { namespace, name } => write!(f, "{namespace}/{name}"),
        }
    }
}

impl FromStr for Who {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "host" {
            return Ok(Self::Host);
        }
        match text.parse() {
            Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
                return Err(format!(
                    "{text} is an IPv4 address in IPv6 clothes: write {}",
                    IpAddr::V6(address).to_canonical()
                ));
            }
            Ok(address) => return Ok(Self::Address(address)),
            Err(_) => {}
        }
        match text.split_once('/') {
            Some((namespace, name)) if is_label(namespace) && !name.is_empty() && !name.contains('/') => {
                Ok(Self::Named { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!("{text}: not NAMESPACE/NAME of a workload, NAMESPACE/POD, an IP address, or `host`")),
        }
    }
}

/// Whether a namespace can be called so; a network cannot.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

impl Who {
    /// Which of the workloads are meant. A workload's own name goes before a pod's.
    #[must_use]
    pub fn among<'a>(&self, workloads: &'a [Local]) -> Vec<&'a Local> {
        match self {
            Self::Host => Vec::new(),
            Self::Address(address) => workloads.iter().filter(|w| w.addresses.contains(address)).collect(),
            Self::Named { namespace, name } => {
                let split = |w: &Local| w.endpoint.split_once('/').map(|(ns, name)| (ns.to_owned(), name.to_owned()));
                let own = |w: &&Local| split(w).is_some_and(|(ns, own)| ns == *namespace && own == *name);
                let pod = |w: &&Local| {
                    split(w).is_some_and(|(ns, _)| ns == *namespace) && w.pod.as_deref() == Some(name.as_str())
                };
                let found: Vec<_> = workloads.iter().filter(own).collect();
                if found.is_empty() { workloads.iter().filter(pod).collect() } else { found }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(endpoint: &str, pod: &str, address: &str) -> Local {
        Local {
            slot: 0,
            endpoint: endpoint.into(),
            pod: Some(pod.into()),
            interface: String::new(),
            addresses: vec![address.parse().expect("address")],
            workload: abi::Workload::default(),
            policy: PolicyRef::default(),
            migration: None,
        }
    }

    #[test]
    fn people_name_workloads_in_several_ways() {
        let all =
            [local("a/n-k8s-x-eth0", "x", "10.0.0.1"), local("a/x", "y", "fd00::2"), local("b/z", "y", "10.0.0.3")];
        let ask = |text: &str| {
            let who: Who = text.parse().expect("somebody");
            who.among(&all).iter().map(|w| w.endpoint.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(ask("a/n-k8s-x-eth0"), ["a/n-k8s-x-eth0"]);
        assert_eq!(ask("a/x"), ["a/x"], "a workload of that name goes before a pod");
        assert_eq!(ask("b/y"), ["b/z"]);
        assert_eq!(ask("fd00::2"), ["a/x"]);
        assert!(ask("10.0.0.9").is_empty());
        assert!(ask("host").is_empty());
    }

    #[test]
    fn nonsense_is_nobody() {
        for text in ["", "x", "/x", "x/", "a/b/c", "10.0.0.1/32"] {
            assert!(text.parse::<Who>().is_err(), "{text}");
        }
    }
}
