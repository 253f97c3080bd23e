//! The ends of connections and flows, with names instead of numbers.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use calico_ebpf_common::{
    abi::NO_SLOT,
    packet::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE},
};
use serde::Serialize;

use super::inventory;
use crate::{
    dataplane::{self, view::View},
    policy::compiled::RuleName,
};

/// One end of a connection or flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port; of a connection the identifier of an ICMP echo; 0 where the protocol has none.
    pub port: u16,
    /// `NAMESPACE/NAME` of a local workload.
    pub endpoint: Option<String>,
    /// The rule that decided at this end; `null` where no policy is enforced.
    pub rule: Option<RuleName>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(name) = &self.endpoint {
            write!(f, "{name} ")?;
        }
        match self.port {
            0 => self.address.fmt(f),
            port => SocketAddr::new(self.address, port).fmt(f),
        }
    }
}

/// What the numbers in the maps are called.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// Workloads, and what host endpoints judge, by slot.
    pub(super) endpoints: HashMap<u32, String>,
    /// Workloads by address.
    pub(super) owners: HashMap<IpAddr, String>,
    /// Rules by counter slot.
    pub(super) rules: HashMap<u32, RuleName>,
    /// Ticks in a second.
    pub(super) hz: u32,
}

impl Names {
    pub(super) fn read(view: &View) -> dataplane::Result<Self> {
        let mut names = Self { rules: inventory::rule_names(view)?, hz: view.info()?.hz.max(1), ..Self::default() };
        for local in inventory::seats(view)? {
            names.owners.extend(local.addresses.into_iter().map(|address| (address, local.endpoint.clone())));
            names.endpoints.insert(local.slot, local.endpoint);
        }
        Ok(names)
    }

    /// An end of which the maps tell slot and rule.
    pub(super) fn end(&self, address: IpAddr, port: u16, slot: u32, rule: u32) -> End {
        let local = slot != NO_SLOT;
        End {
            address,
            port,
            endpoint: self.endpoints.get(&slot).filter(|_| local).cloned(),
            rule: self.rules.get(&rule).filter(|_| local).cloned(),
        }
    }

    /// Seconds from then to now. What was touched since the clock was read is no 49 days old.
    pub(super) fn seconds(&self, then: u32, now: u32) -> f64 {
        let ticks = (now.wrapping_sub(then) as i32).max(0);
        (Duration::from_secs(ticks.unsigned_abs().into()) / self.hz).as_secs_f64()
    }
}

/// The name of an IP protocol.
#[must_use]
pub fn protocol(number: u8) -> String {
    match number {
        ICMP => "icmp".into(),
        TCP => "tcp".into(),
        UDP => "udp".into(),
        ICMPV6 => "icmpv6".into(),
        SCTP => "sctp".into(),
        UDP_LITE => "udplite".into(),
        other => other.to_string(),
    }
}
