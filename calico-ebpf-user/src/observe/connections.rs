//! The live connections, with names instead of numbers.

use std::net::SocketAddr;

use calico_ebpf_common::{
    abi::{Conn, ConnKey4, ConnKey6, conn_flags, tcp_state},
    packet::protocol::{ICMP, ICMPV6, TCP},
};
use serde::Serialize;

use super::names::{End, Names, protocol};
use crate::{
    dataplane::{self, view::View},
    policy::flow::Flow,
};

/// A connection.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// `tcp`, `udp`, `icmp`, `icmpv6`, or the number.
    pub protocol: String,
    /// Who opened it.
    pub source: End,
    /// Who answers.
    pub destination: End,
    /// How far it is.
    pub state: &'static str,
    /// Seconds since the first packet.
    pub age: f64,
    /// Seconds since the last packet from either side.
    pub idle: f64,
    /// Whether both directions take the host's stack.
    pub via_stack: bool,
    /// Number of the protocol.
    #[serde(skip)]
    pub number: u8,
    /// ICMP: type and code of the first packet.
    #[serde(skip)]
    pub icmp: Option<[u8; 2]>,
}

impl Connection {
    /// What rules look at.
    #[must_use]
    pub fn flow(&self) -> Flow {
        let icmp = self.icmp;
        Flow {
            source: self.source.address,
            destination: self.destination.address,
            protocol: self.number,
            source_port: if icmp.is_some() { 0 } else { self.source.port },
            destination_port: icmp.map_or(self.destination.port, u16::from_be_bytes),
        }
    }
}

/// All connections that the maps hold, IPv4 first, the oldest first. Ones that nobody has swept out since they expired
/// are among them.
///
/// # Errors
/// If the maps cannot be read.
pub fn read(view: &View) -> dataplane::Result<Vec<Connection>> {
    let names = Names::read(view)?;
    let now = view.now()?;
    let v4 = view.connections4()?;
    let v6 = view.connections6()?;
    let mut all: Vec<_> = v4.iter().map(|(key, conn)| describe(&names, &Ends::from(key), conn, now)).collect();
    let mut v6: Vec<_> = v6.iter().map(|(key, conn)| describe(&names, &Ends::from(key), conn, now)).collect();
    for part in [&mut all, &mut v6] {
        part.sort_by(|a, b| b.age.total_cmp(&a.age));
    }
    all.append(&mut v6);
    Ok(all)
}

/// What the key of either family says.
struct Ends {
    a: SocketAddr,
    b: SocketAddr,
    protocol: u8,
}

impl From<&ConnKey4> for Ends {
    fn from(key: &ConnKey4) -> Self {
        Self {
            a: (key.addr_a, u16::from_be_bytes(key.port_a)).into(),
            b: (key.addr_b, u16::from_be_bytes(key.port_b)).into(),
            protocol: key.protocol,
        }
    }
}

impl From<&ConnKey6> for Ends {
    fn from(key: &ConnKey6) -> Self {
        Self {
            a: (key.addr_a, u16::from_be_bytes(key.port_a)).into(),
            b: (key.addr_b, u16::from_be_bytes(key.port_b)).into(),
            protocol: key.protocol,
        }
    }
}

fn describe(names: &Names, ends: &Ends, conn: &Conn, now: u32) -> Connection {
    let opener_is_a = conn.flags & conn_flags::OPENER_IS_A != 0;
    let (source, destination) = if opener_is_a { (ends.a, ends.b) } else { (ends.b, ends.a) };
    let end = |address: SocketAddr, end: usize| {
        names.end(address.ip(), address.port(), conn.ends[end].slot, conn.ends[end].rule)
    };
    Connection {
        protocol: protocol(ends.protocol),
        source: end(source, 0),
        destination: end(destination, 1),
        state: state(ends.protocol, conn),
        age: names.seconds(conn.created, now),
        idle: names.seconds(conn.seen[0], now).min(names.seconds(conn.seen[1], now)),
        via_stack: conn.flags & conn_flags::VIA_STACK != 0,
        number: ends.protocol,
        icmp: matches!(ends.protocol, ICMP | ICMPV6).then_some([conn.icmp_type, conn.icmp_code]),
    }
}

/// How far a connection is.
const fn state(protocol: u8, conn: &Conn) -> &'static str {
    let answered = conn.flags & conn_flags::ANSWERED != 0;
    let assured = conn.flags & conn_flags::ASSURED != 0;
    if protocol != TCP {
        return match (answered, assured) {
            (false, _) => "unanswered",
            (true, false) => "answered",
            (true, true) => "assured",
        };
    }
    let fins = tcp_state::FIN_OPENER | tcp_state::FIN_RESPONDER;
    if conn.tcp & tcp_state::RST != 0 {
        "reset"
    } else if conn.tcp & fins == fins {
        "closed"
    } else if conn.tcp & fins != 0 {
        "closing"
    } else if assured || conn.tcp & tcp_state::MIDSTREAM != 0 && answered {
        "established"
    } else if conn.tcp & tcp_state::SYN_ACK != 0 {
        "syn-received"
    } else if conn.tcp & tcp_state::MIDSTREAM != 0 {
        "picked-up"
    } else {
        "syn-sent"
    }
}

#[cfg(test)]
mod tests {
    use calico_ebpf_common::abi::{ConnEnd, NO_SLOT};

    use super::*;

    #[test]
    fn ends_are_in_the_opener_s_order() {
        let names = Names { endpoints: [(4, "a/x".to_owned())].into(), hz: 250, ..Names::default() };
        let key = ConnKey4 {
            addr_a: [10, 0, 0, 1],
            addr_b: [10, 0, 0, 2],
            port_a: 80_u16.to_be_bytes(),
            port_b: 4000_u16.to_be_bytes(),
            protocol: 6,
            ..ConnKey4::default()
        };
        let conn = Conn {
            flags: conn_flags::ANSWERED | conn_flags::ASSURED,
            tcp: tcp_state::SYN | tcp_state::SYN_ACK,
            created: 500,
            // The second was touched after the clock was read.
            seen: [750, 1001],
            ends: [ConnEnd { slot: 4, ..ConnEnd::default() }, ConnEnd { slot: NO_SLOT, ..ConnEnd::default() }],
            ..Conn::default()
        };
        let shown = describe(&names, &Ends::from(&key), &conn, 1000);
        assert_eq!((shown.source.port, shown.destination.port), (4000, 80));
        assert_eq!(shown.source.endpoint.as_deref(), Some("a/x"));
        assert_eq!(shown.destination.endpoint, None);
        assert_eq!((shown.age, shown.idle, shown.state), (2.0, 0.0, "established"));
    }

    #[test]
    fn states_of_tcp() {
        let at = |tcp, flags| state(6, &Conn { tcp, flags, ..Conn::default() });
        assert_eq!(at(tcp_state::SYN, 0), "syn-sent");
        assert_eq!(at(tcp_state::SYN | tcp_state::SYN_ACK, conn_flags::ANSWERED), "syn-received");
        assert_eq!(at(tcp_state::FIN_OPENER, conn_flags::ASSURED), "closing");
        assert_eq!(at(tcp_state::FIN_OPENER | tcp_state::FIN_RESPONDER, conn_flags::ASSURED), "closed");
        assert_eq!(at(tcp_state::RST | tcp_state::FIN_OPENER, 0), "reset");
    }
}
