//! What the loaded program would do with a flow, with names instead of numbers.

use std::{collections::HashMap, net::IpAddr};

use calico_ebpf_common::abi::{ExplainedEnd, NO_SLOT, explained};

use super::inventory::{self, Local, Who};
use crate::{
    dataplane::{
        self, Instance, preview,
        probe::{self, Probe},
        view::View,
    },
    policy::{compiled::RuleName, flow::Flow},
};

/// A data path that can be asked.
#[derive(Debug)]
pub struct Live {
    probe: Probe,
    node: String,
    locals: Vec<Local>,
    rules: HashMap<u32, RuleName>,
    hosts: Vec<IpAddr>,
}

/// What it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveVerdict {
    /// The generation that judged.
    pub generation: u32,
    /// Why the packet is dropped; `None` if it passes.
    pub reason: Option<&'static str>,
    /// What the source's egress says; `None` where no policy is enforced here.
    pub source: Option<LiveEnd>,
    /// What the destination's ingress says.
    pub destination: Option<LiveEnd>,
}

/// What decides at one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveEnd {
    /// `namespace/name` of the workload.
    pub endpoint: String,
    /// Whether it may pass this end.
    pub allow: bool,
    /// Whether the sender is told that it may not.
    pub reject: bool,
    /// What decided; `None` without a rule table.
    pub rule: Option<RuleName>,
}

impl Live {
    /// Opens what is installed; `None` if nothing is, or it is of a version that cannot be asked.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn open(instance: &Instance) -> dataplane::Result<Option<Self>> {
        let (Some(view), Some(probe)) = (View::open(instance)?, Probe::open(instance)?) else { return Ok(None) };
        Ok(Some(Self {
            probe,
            node: view.info()?.node,
            locals: inventory::workloads(&view)?,
            rules: inventory::rule_names(&view)?,
            hosts: preview::host_addresses()?.into_iter().filter(|address| !is_link_local(address)).collect(),
        }))
    }

    /// The node whose workloads are local.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether it is an address of this host.
    #[must_use]
    pub fn is_host(&self, address: &IpAddr) -> bool {
        self.hosts.contains(address)
    }

    /// The addresses of somebody whom this data path knows; none for a stranger.
    #[must_use]
    pub fn addresses(&self, who: &Who) -> Vec<IpAddr> {
        match who {
            Who::Host => self.hosts.clone(),
            Who::Address(address) => vec![*address],
            Who::Named { .. } => {
                who.among(&self.locals).into_iter().flat_map(|local| local.addresses.iter().copied()).collect()
            }
        }
    }

    /// The local workload that has the address.
    #[must_use]
    pub fn owner(&self, address: &IpAddr) -> Option<&str> {
        self.locals.iter().find(|local| local.addresses.contains(address)).map(|local| local.endpoint.as_str())
    }

    /// Sends the first packet of the flow through the loaded program.
    ///
    /// # Errors
    /// If the kernel does not run it.
    pub fn ask(&self, flow: &Flow) -> dataplane::Result<LiveVerdict> {
        let answer = self.probe.ask(flow)?;
        let [source, destination] = answer.ends.map(|end| self.end(&end));
        let reason = (answer.reason != explained::PASSES)
            .then(|| probe::reason(answer.reason).map_or("unknown", |(_, name)| name));
        Ok(LiveVerdict { generation: answer.generation, reason, source, destination })
    }

    fn end(&self, end: &ExplainedEnd) -> Option<LiveEnd> {
        if end.slot == NO_SLOT {
            return None;
        }
        let owner = self.locals.iter().find(|local| local.slot == end.slot);
        Some(LiveEnd {
            endpoint: owner.map_or_else(|| format!("slot {}", end.slot), |local| local.endpoint.clone()),
            allow: end.verdict == explained::ALLOW,
            reject: end.verdict == explained::REJECT,
            rule: self.rules.get(&end.rule).cloned(),
        })
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}
