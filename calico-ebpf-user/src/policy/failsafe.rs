//! Failsafe ports as rules of tables that know no connections: both directions of each.

use std::path::Path;

use ipnet::IpNet;

use super::compiled::{Direction, Reason, RuleName};
use crate::resources::model::{EntityRule, FailsafePort, Origin, PortMatch, Rule, RuleAction};

/// The parameters of `FelixConfiguration` that list them: inbound and outbound.
pub(super) const LISTS: [&str; 2] = ["failsafeInboundHostPorts", "failsafeOutboundHostPorts"];

/// What the rules of a list are called in tables of one direction.
pub(super) fn name(list: &str, direction: Direction) -> RuleName {
    RuleName {
        direction,
        reason: Reason::Failsafe,
        tier: None,
        kind: Some("FelixConfiguration".to_owned()),
        namespace: None,
        policy: Some(list.to_owned()),
        rule: None,
    }
}

/// Rules that match the ports of a list, for one direction: what asks, or where the list is about the other direction, what
/// answers. (Felix has both in the raw table, where nothing knows what belongs to what.)
pub(super) fn rules(list: &str, ports: &[FailsafePort], direction: Direction) -> Vec<Rule> {
    let asks = (list == LISTS[0]) == (direction == Direction::Ingress);
    ports
        .iter()
        .map(|FailsafePort { protocol, net, port }| {
            let nets: Vec<_> = net.iter().copied().collect();
            let ports = vec![PortMatch::Range(*port, *port)];
            // The peer is where the packet comes from, or goes to; an answer comes from the port that was asked.
            let (source, destination) = match direction {
                Direction::Ingress => {
                    if asks {
                        (of_nets(nets), of_ports(ports))
                    } else {
                        (EntityRule { ports, ..of_nets(nets) }, any())
                    }
                }
                Direction::Egress => {
                    if asks {
                        (any(), EntityRule { ports, ..of_nets(nets) })
                    } else {
                        (of_ports(ports), of_nets(nets))
                    }
                }
            };
            Rule {
                action: RuleAction::Allow,
                deny_action: None,
                number: None,
                ip_version: None,
                protocol: Some(*protocol),
                not_protocol: None,
                icmp: None,
                not_icmp: None,
                source,
                destination,
                origin: Origin { path: Path::new("").into(), line: 0, column: 0 },
            }
        })
        .collect()
}

fn any() -> EntityRule {
    EntityRule::default()
}

fn of_nets(nets: Vec<IpNet>) -> EntityRule {
    EntityRule { nets, ..any() }
}

fn of_ports(ports: Vec<PortMatch>) -> EntityRule {
    EntityRule { ports, ..any() }
}
