//! Who talks to whom.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use calico_ebpf_common::abi::{FlowKey, FlowRecord, NO_SLOT, explained};
use serde::Serialize;

use super::{
    connections::{self, protocol},
    inventory,
};
use crate::{
    dataplane::{self, flows::FlowLog, probe, view::View},
    policy::compiled::RuleName,
};

/// A flow: what has its ends, ports and protocol in common, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// Why it is dropped.
    pub reason: Option<&'static str>,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the number.
    pub protocol: String,
    /// Who opened it.
    pub source: End,
    /// To whom.
    pub destination: End,
    /// ICMP: type and code of the first packet.
    pub icmp: Option<(u8, u8)>,
    /// Seconds since the last packet.
    pub idle: f64,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port; 0 where the protocol has none.
    pub port: u16,
    /// `NAMESPACE/NAME` of a local workload.
    pub endpoint: Option<String>,
    /// The rule that decided at this end; `null` where no policy is enforced.
    pub rule: Option<RuleName>,
    /// Packets that it sent since flows are recorded; `null` where they are not yet.
    pub packets: Option<u64>,
    /// Their bytes, from the IP header on.
    pub bytes: Option<u64>,
}

/// The flows of a data path. Names are read once: [`Flows::refresh`].
#[derive(Debug)]
pub struct Flows {
    view: View,
    log: FlowLog,
    endpoints: HashMap<u32, String>,
    owners: HashMap<IpAddr, String>,
    rules: HashMap<u32, RuleName>,
    hz: u32,
}

impl Flows {
    /// Opens them.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn new(view: View, log: FlowLog) -> dataplane::Result<Self> {
        let hz = view.info()?.hz.max(1);
        let (endpoints, owners, rules) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut flows = Self { view, log, endpoints, owners, rules, hz };
        flows.refresh()?;
        Ok(flows)
    }

    /// Reads the names anew.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn refresh(&mut self) -> dataplane::Result<()> {
        let locals = inventory::workloads(&self.view)?;
        self.endpoints = locals.iter().map(|local| (local.slot, local.endpoint.clone())).collect();
        let addresses = |local: &inventory::Local| local.addresses.clone();
        self.owners = locals
            .iter()
            .flat_map(|local| addresses(local).into_iter().map(|address| (address, local.endpoint.clone())))
            .collect();
        self.rules = inventory::rules(&self.view)?.into_iter().map(|(counter, (name, _))| (counter, name)).collect();
        Ok(())
    }

    /// Has flows recorded for so many seconds.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn watch(&self, seconds: u32) -> dataplane::Result<()> {
        self.log.watch(seconds)
    }

    /// What was recorded, with its key and the packets of both sides; the oldest first.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn recorded(&self) -> dataplane::Result<Vec<(FlowKey, Flow)>> {
        let now = self.view.now()?;
        let mut records = self.log.read()?;
        records.sort_by_key(|(_, record)| std::cmp::Reverse(now.wrapping_sub(record.first)));
        Ok(records.iter().map(|(key, record)| (*key, self.describe(key, record, now))).collect())
    }

    /// What was recorded, and behind it the connections that no record is of.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn all(&self) -> dataplane::Result<Vec<Flow>> {
        let mut flows: Vec<Flow> = self.recorded()?.into_iter().map(|(_, flow)| flow).collect();
        let identity = |flow: &Flow| {
            // A record of ICMP is of all echoes between two addresses.
            let end = |end: &End| (end.address, if flow.icmp.is_some() { 0 } else { end.port });
            (flow.protocol.clone(), end(&flow.source), end(&flow.destination))
        };
        let known: HashSet<_> = flows.iter().filter(|flow| flow.verdict == "allow").map(identity).collect();
        for connection in connections::read(&self.view)? {
            let icmp = connection.protocol.starts_with("icmp");
            let end = |end: connections::End| End {
                address: end.address,
                port: if icmp { 0 } else { end.port },
                endpoint: end.endpoint,
                rule: end.rule,
                packets: None,
                bytes: None,
            };
            let flow = Flow {
                verdict: "allow",
                reason: None,
                icmp: icmp.then_some((if connection.source.address.is_ipv4() { 8 } else { 128 }, 0)),
                protocol: connection.protocol,
                source: end(connection.source),
                destination: end(connection.destination),
                idle: connection.idle,
            };
            if !known.contains(&identity(&flow)) {
                flows.push(flow);
            }
        }
        Ok(flows)
    }

    fn describe(&self, key: &FlowKey, record: &FlowRecord, now: u32) -> Flow {
        let [source_port, destination_port] = [key.source_port, key.destination_port].map(u16::from_be_bytes);
        let is_icmp = key.protocol == 1 || key.protocol == 58;
        let [kind, code] = key.destination_port;
        let end = |bytes: [u8; 16], port: u16, side: usize| {
            let address = Ipv6Addr::from(bytes);
            let address = if key.version == 4 { address.to_canonical() } else { address.into() };
            let endpoint = match record.slots[side] {
                NO_SLOT => self.owners.get(&address),
                slot => self.endpoints.get(&slot),
            };
            End {
                address,
                port: if is_icmp { 0 } else { port },
                endpoint: endpoint.cloned(),
                rule: self.rules.get(&record.rules[side]).cloned(),
                packets: Some(record.packets[side]),
                bytes: Some(record.bytes[side]),
            }
        };
        let passes = key.reason == explained::PASSES;
        let ticks = (now.wrapping_sub(record.last) as i32).max(0);
        Flow {
            verdict: if passes { "allow" } else { "deny" },
            reason: (!passes).then(|| probe::reason(key.reason).map_or("unknown", |(_, name)| name)),
            protocol: protocol(key.protocol),
            source: end(key.source, source_port, 0),
            destination: end(key.destination, destination_port, 1),
            icmp: is_icmp.then_some((kind, code)),
            idle: (Duration::from_secs(ticks.unsigned_abs().into()) / self.hz).as_secs_f64(),
        }
    }
}
