//! One flow, and what policy says about it at both ends.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::compiled::RuleName;

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// Who opens it.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// 0 where the protocol has none.
    pub source_port: u16,
    /// ICMP: `type << 8 | code`; 0 where the protocol has none.
    pub destination_port: u16,
}

/// What decided at one end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndVerdict {
    /// `namespace/name` of the workload.
    pub endpoint: String,
    /// Whether it may pass this end.
    pub allow: bool,
    /// Whether the sender is told that it may not.
    pub reject: bool,
    /// What decided.
    pub rule: RuleName,
}

/// What policy says at the ends of a flow; `None` where no workload is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Egress of the source.
    pub source: Option<EndVerdict>,
    /// Ingress of the destination.
    pub destination: Option<EndVerdict>,
}

impl Verdict {
    /// Whether all that have a say agree to it.
    #[must_use]
    pub fn allow(&self) -> bool {
        [&self.source, &self.destination].into_iter().flatten().all(|end| end.allow)
    }
}

/// What a verdict is called.
#[must_use]
pub const fn word(allow: bool) -> &'static str {
    if allow { "allow" } else { "deny" }
}
