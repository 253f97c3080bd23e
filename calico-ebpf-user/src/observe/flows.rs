//! Who talks to whom.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
};

use calico_ebpf_common::{
    abi::{FlowKey, FlowRecord, NO_SLOT, explained},
    packet::protocol::{ICMP, ICMPV6},
};
use serde::Serialize;

use super::{
    connections,
    names::{self, Names, protocol},
};
use crate::{
    dataplane::{self, flows::FlowLog, probe, view::View},
    policy::{
        compiled::RuleName,
        flow::{self, EndVerdict, Verdict, word},
    },
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
    /// What would decide with the staged policies applied, where that is something else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Number of the protocol.
    #[serde(skip)]
    pub number: u8,
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Who it is, and what decided there.
    #[serde(flatten)]
    pub end: names::End,
    /// Packets that it sent since flows are recorded; `null` where they are not yet.
    pub packets: Option<u64>,
    /// Their bytes, from the IP header on.
    pub bytes: Option<u64>,
}

/// What the staged policies would make of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pending {
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// What would decide where it comes from; `null` where no policy is enforced.
    pub source: Option<PendingEnd>,
    /// What would decide where it goes to.
    pub destination: Option<PendingEnd>,
}

/// What would decide at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PendingEnd {
    /// `allow` or `deny`.
    pub verdict: &'static str,
    /// The rule.
    pub rule: RuleName,
}

impl Flow {
    /// What rules look at, of a flow that they decided: not of one that is dropped for another reason, nor of what no end
    /// was judged for, as the host's own.
    #[must_use]
    pub fn judged(&self) -> Option<flow::Flow> {
        let judged = self.reason.is_none_or(|reason| reason.starts_with("policy-"))
            && (self.source.end.rule.is_some() || self.destination.end.rule.is_some());
        let (source, destination) = (&self.source.end, &self.destination.end);
        judged.then(|| flow::Flow {
            source: source.address,
            destination: destination.address,
            protocol: self.number,
            source_port: source.port,
            destination_port: self.icmp.map_or(destination.port, |(kind, code)| u16::from_be_bytes([kind, code])),
        })
    }

    /// Remembers what the staged policies say about it, where that is something else than what is in force says.
    pub fn hold_against(&mut self, staged: Verdict) {
        let pending = |end: Option<EndVerdict>, now: &names::End| {
            let EndVerdict { endpoint: _, allow, reject: _, rule } = end.filter(|_| now.rule.is_some())?;
            Some(PendingEnd { verdict: word(allow), rule })
        };
        let source = pending(staged.source, &self.source.end);
        let destination = pending(staged.destination, &self.destination.end);
        let ends = [(&source, &self.source.end), (&destination, &self.destination.end)];
        let allow = ends.iter().all(|(end, _)| end.as_ref().is_none_or(|end| end.verdict == word(true)));
        let same_rules =
            ends.iter().all(|(end, now)| end.as_ref().is_none_or(|end| Some(&end.rule) == now.rule.as_ref()));
        if word(allow) != self.verdict || !same_rules {
            self.pending = Some(Pending { verdict: word(allow), source, destination });
        }
    }
}

/// The flows of a data path. Names are read once: [`Flows::refresh`].
#[derive(Debug)]
pub struct Flows {
    view: View,
    log: FlowLog,
    names: Names,
}

impl Flows {
    /// Opens them.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn new(view: View, log: FlowLog) -> dataplane::Result<Self> {
        let names = Names::read(&view)?;
        Ok(Self { view, log, names })
    }

    /// Reads the names anew.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn refresh(&mut self) -> dataplane::Result<()> {
        self.names = Names::read(&self.view)?;
        Ok(())
    }

    /// The data path.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.view
    }

    /// Has flows recorded for so many seconds. Tells whether they were already.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn watch(&self, seconds: u32) -> dataplane::Result<bool> {
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
            let end = |end: &End| (end.end.address, if flow.icmp.is_some() { 0 } else { end.end.port });
            (flow.protocol.clone(), end(&flow.source), end(&flow.destination))
        };
        let known: HashSet<_> = flows.iter().filter(|flow| flow.verdict == "allow").map(identity).collect();
        for connection in connections::read(&self.view)? {
            let icmp = connection.icmp.map(|[kind, code]| (kind, code));
            let end = |end: names::End| End {
                end: names::End { port: if icmp.is_some() { 0 } else { end.port }, ..end },
                packets: None,
                bytes: None,
            };
            let flow = Flow {
                verdict: word(true),
                reason: None,
                protocol: connection.protocol,
                source: end(connection.source),
                destination: end(connection.destination),
                icmp,
                idle: connection.idle,
                pending: None,
                number: connection.number,
            };
            if !known.contains(&identity(&flow)) {
                flows.push(flow);
            }
        }
        Ok(flows)
    }

    fn describe(&self, key: &FlowKey, record: &FlowRecord, now: u32) -> Flow {
        let is_icmp = matches!(key.protocol, ICMP | ICMPV6);
        let [kind, code] = key.destination_port;
        let end = |bytes: [u8; 16], port: [u8; 2], side: usize| {
            let address = Ipv6Addr::from(bytes);
            let address = if key.version == 4 { address.to_canonical() } else { IpAddr::from(address) };
            let port = if is_icmp { 0 } else { u16::from_be_bytes(port) };
            let mut end = self.names.end(address, port, record.slots[side], record.rules[side]);
            if record.slots[side] == NO_SLOT {
                end.endpoint = self.names.owners.get(&address).cloned();
            }
            End { end, packets: Some(record.packets[side]), bytes: Some(record.bytes[side]) }
        };
        let passes = key.reason == explained::PASSES;
        Flow {
            verdict: word(passes),
            reason: (!passes).then(|| probe::reason(key.reason).map_or("unknown", |(_, name)| name)),
            protocol: protocol(key.protocol),
            source: end(key.source, key.source_port, 0),
            destination: end(key.destination, key.destination_port, 1),
            icmp: is_icmp.then_some((kind, code)),
            idle: self.names.seconds(record.last, now),
            pending: None,
            number: key.protocol,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::compiled::{Direction, Reason};

    fn rule(direction: Direction, number: u32) -> RuleName {
        RuleName {
            direction,
            reason: Reason::Rule,
            tier: Some("default".into()),
            kind: Some("NetworkPolicy".into()),
            namespace: Some("t".into()),
            policy: Some("p".into()),
            rule: Some(number),
        }
    }

    fn flow(reason: Option<&'static str>) -> Flow {
        let end = |address: &str, rule| End {
            end: names::End { address: address.parse().expect("address"), port: 0, endpoint: None, rule },
            packets: Some(1),
            bytes: Some(84),
        };
        Flow {
            verdict: word(reason.is_none()),
            reason,
            protocol: "icmp".into(),
            source: end("192.0.2.1", None),
            destination: end("10.0.0.1", Some(rule(Direction::Ingress, 0))),
            icmp: Some((8, 0)),
            idle: 0.0,
            pending: None,
            number: 1,
        }
    }

    #[test]
    fn only_what_policy_decided_is_judged_again() {
        let asked = flow(None).judged().expect("judged");
        assert_eq!((asked.protocol, asked.destination_port), (1, 8 << 8));
        assert!(flow(Some("policy-ingress")).judged().is_some());
        assert!(flow(Some("spoofed-source")).judged().is_none());
        let mut of_host = flow(None);
        of_host.destination.end.rule = None;
        assert!(of_host.judged().is_none());
    }

    #[test]
    fn what_stays_the_same_is_not_pending() {
        let verdict = |allow, number| Verdict {
            source: None,
            destination: Some(EndVerdict {
                endpoint: "t/a".into(),
                allow,
                reject: false,
                rule: rule(Direction::Ingress, number),
            }),
        };
        let held = |staged| {
            let mut flow = flow(None);
            flow.hold_against(staged);
            flow.pending
        };
        assert_eq!(held(verdict(true, 0)), None);
        assert_eq!(held(verdict(true, 1)).map(|pending| pending.verdict), Some("allow"), "by another rule");
        let denied = held(verdict(false, 1)).expect("pending");
        assert_eq!(denied.verdict, "deny");
        assert_eq!(denied.source, None);
        assert_eq!(denied.destination.map(|end| end.verdict), Some("deny"));
    }
}
