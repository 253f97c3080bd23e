//! How it is going: what `status` prints, and the running process says of itself.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::clock;
use crate::{
    dataplane::{self, Applied, Attachment, NatTable, UplinkXdp, view::View},
    routes::{
        RouteStatus,
        claim::{Claim, Rival},
        migration::{Migration, Priority, priority},
    },
};

/// Everything that `status` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Version of the program that runs, or that ran last.
    pub version: String,
    /// Whose workloads are local.
    pub node: String,
    /// The process; `null` when stopped.
    pub pid: Option<u32>,
    /// The pin directory: which instance.
    pub pin_dir: String,
    /// When the process started.
    pub started: Option<String>,
    /// The generation in force.
    pub generation: u32,
    /// The last attempt of the process to load the files, or of the one before it; `null` where that is not known.
    pub last_load: Option<LastLoad>,
    /// Seconds in which `confirm` must come for the set in force to stay.
    pub confirm_within: Option<u64>,
    /// The local workloads.
    pub workloads: Vec<WorkloadState>,
    /// The host endpoints.
    pub host_endpoints: Vec<HostEndpointState>,
    /// Workloads that the files have here and that are left to other hosts, which have the better route.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub yielded: Vec<YieldedState>,
    /// Workloads of this host that other hosts have in their files, too, and have stepped back from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contested: Vec<ContestedState>,
    /// The interfaces towards other hosts.
    pub uplinks: Vec<String>,
    /// How it is with XDP on the uplinks that have untracked policy.
    pub xdp: Vec<UplinkXdp>,
    /// Routes of the local workloads.
    pub routes: Vec<RouteState>,
    /// The nftables table that translates what leaves all pools; `null` where no pool asks for it.
    pub nat_outgoing: Option<NatState>,
    /// `reassembled`, where the kernel puts them together before they are forwarded, or `in order`, where later ones pass only
    /// behind the first.
    pub fragments: String,
    /// Packets dropped so far, by reason; reasons without any are left out.
    pub drops: BTreeMap<String, u64>,
    /// What else the programs count, by its name.
    pub events: BTreeMap<String, u64>,
    /// What could not be done and is tried again.
    pub faults: Vec<String>,
}

/// A host endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEndpointState {
    /// Its name.
    pub endpoint: String,
    /// The interfaces that it is.
    pub interfaces: Vec<String>,
    /// Interfaces that it should be, but whose packets cannot be judged.
    pub uncovered: Vec<String>,
}

/// An attempt to load the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastLoad {
    /// Whether what the files say is in force.
    pub ok: bool,
    /// When, in RFC 3339.
    pub time: String,
    /// Why not.
    pub errors: Vec<Problem>,
    /// What is odd about the files.
    pub warnings: Vec<Problem>,
}

/// Something wrong with the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The file as the user named it; empty for what concerns no file in particular.
    pub path: String,
    /// Line, from 1; 0 where there is none.
    pub line: u32,
    /// Column in characters, from 1; 0 where there is none.
    pub column: u32,
    /// `Kind/name`, as far as known.
    pub resource: Option<String>,
    /// Path of the field within it.
    pub field: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Problem {
    /// What concerns no file in particular.
    #[must_use]
    pub fn general(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}:{}:{}: ", self.path, self.line, self.column)?;
        }
        for part in [&self.resource, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// A workload and its interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadState {
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// Host side of its veth or tap; empty where it is not known.
    pub interface: String,
    /// `up`, `down`, `absent` or `failed`; of a stopped data path `present` or `absent`.
    pub state: String,
    /// `tcx` or `clsact`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachment: Option<String>,
    /// How packets are given to it: `peer`, straight into the other end of its veth, or `interface`, as a tap needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivery: Option<String>,
    /// Where it comes from another node: how far that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationState>,
    /// The node that the files have it on, where it is here still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaves_for: Option<String>,
}

/// A workload that is left to another host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct YieldedState {
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// The address that the other host has, too.
    pub address: IpAddr,
    /// The way to it.
    pub via: Option<IpAddr>,
}

impl From<(&String, &Claim)> for YieldedState {
    fn from((endpoint, claim): (&String, &Claim)) -> Self {
        Self { endpoint: endpoint.clone(), address: claim.address, via: claim.via }
    }
}

impl fmt::Display for YieldedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, address, via } = self;
        write!(f, "{endpoint}: another host has {address}, too, and the better route")?;
        via.map_or(Ok(()), |via| write!(f, " (via {via})"))
    }
}

/// A workload that another host wants, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContestedState {
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// The address that the other host has, too.
    pub address: IpAddr,
    /// The other host's address, where it is known.
    pub host: Option<IpAddr>,
    /// Its MAC address.
    pub mac: String,
    /// When it last said so, in RFC 3339.
    pub last_seen: String,
}

impl From<(&String, &Rival)> for ContestedState {
    fn from((endpoint, rival): (&String, &Rival)) -> Self {
        let Rival { address, mac, host, seen } = rival;
        Self {
            endpoint: endpoint.clone(),
            address: *address,
            host: *host,
            mac: mac_text(*mac),
            last_seen: clock::rfc3339(*seen),
        }
    }
}

impl fmt::Display for ContestedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, address, host, mac, last_seen } = self;
        let host = host.map_or_else(|| mac.clone(), |host| format!("{host} ({mac})"));
        write!(f, "{endpoint}: {host} has {address}, too, and has stepped back; last said at {last_seen}")
    }
}

/// A MAC address as everybody writes it.
#[must_use]
pub(crate) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A workload that comes from another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationState {
    /// The node that had it; `null` where that is not known any more.
    pub from: Option<String>,
    /// `withheld`: no routes before it gives a sign of life; `elevated`: its routes win over those of others.
    pub routes: String,
}

impl MigrationState {
    /// `None` where its routes are as ever.
    #[must_use]
    pub fn of(migration: Option<&Migration>) -> Option<Self> {
        let routes = match priority(migration) {
            Priority::Withheld => "withheld",
            Priority::Elevated => "elevated",
            Priority::Normal => return None,
        };
        Some(Self { from: migration.and_then(|migration| migration.from.clone()), routes: routes.to_owned() })
    }
}

impl fmt::Display for MigrationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, from {}", self.routes, self.from.as_deref().unwrap_or("another node"))
    }
}

/// A route of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteState {
    /// `ADDRESS/LENGTH`.
    pub destination: String,
    /// The workload's address.
    pub address: IpAddr,
    /// Its interface.
    pub interface: String,
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// Route protocol.
    pub protocol: u8,
    /// Metric.
    pub metric: u32,
    /// Whether the kernel has it.
    pub installed: bool,
}

/// The nftables table of `natOutgoing`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatState {
    /// Its name, in family `inet`.
    pub table: String,
    /// The networks that are translated; `null` where that is not known, of a stopped data path. None: the table is there
    /// for connections that were translated before.
    pub networks: Option<Vec<IpNet>>,
    /// Whether the kernel has it.
    pub installed: bool,
}

impl From<&NatTable> for NatState {
    fn from(nat: &NatTable) -> Self {
        let NatTable { table, sources, in_place } = nat;
        Self { table: table.clone(), networks: Some(sources.clone()), installed: *in_place }
    }
}

impl LastLoad {
    /// As text of at most so many bytes, which [`LastLoad::parse`] understands: the first of the problems, where all are too
    /// many.
    #[must_use]
    pub fn text(&self, room: usize) -> String {
        let first = |problems: &[Problem], most: usize| {
            let mut first: Vec<_> = problems.iter().take(most).cloned().collect();
            if problems.len() > most {
                first.push(Problem::general(format!("and {} more", problems.len() - most)));
            }
            first
        };
        let mut most = self.errors.len().max(self.warnings.len());
        loop {
            let (errors, warnings) = (first(&self.errors, most), first(&self.warnings, most));
            let load = Self { ok: self.ok, time: self.time.clone(), errors, warnings };
            let text = serde_json::to_string(&load).unwrap_or_default();
            if text.len() <= room || most == 0 {
                return text;
            }
            most /= 2;
        }
    }

    /// What was left as text; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

impl From<&RouteStatus> for RouteState {
    fn from(route: &RouteStatus) -> Self {
        let RouteStatus { address, interface, endpoint, protocol, metric, installed } = route;
        Self {
            destination: format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 }),
            address: *address,
            interface: interface.clone(),
            endpoint: endpoint.clone(),
            protocol: *protocol,
            metric: *metric,
            installed: *installed,
        }
    }
}

impl Status {
    /// Adds what an apply led to.
    pub fn applied(&mut self, applied: &Applied) {
        self.workloads = applied
            .workloads
            .iter()
            .map(|workload| WorkloadState {
                endpoint: workload.endpoint.clone(),
                interface: workload.interface.clone(),
                state: workload.state.to_string(),
                attachment: workload.attachment.map(attachment),
                delivery: workload.ifindex.map(|_| if workload.peer { "peer" } else { "interface" }.to_owned()),
                migration: MigrationState::of(workload.migration.as_ref()),
                leaves_for: None,
            })
            .collect();
        self.host_endpoints = applied
            .host_endpoints
            .iter()
            .map(|host| HostEndpointState {
                endpoint: host.endpoint.clone(),
                interfaces: host.interfaces.clone(),
                uncovered: host.uncovered.clone(),
            })
            .collect();
        self.uplinks = applied.uplinks.iter().map(|uplink| uplink.interface.clone()).collect();
        self.xdp.clone_from(&applied.xdp);
        self.routes = applied.routes.iter().map(RouteState::from).collect();
        self.nat_outgoing = applied.nat_table.as_ref().map(NatState::from);
        self.faults.clone_from(&applied.faults);
    }

    /// Adds what the maps count.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn counted(&mut self, view: &View) -> dataplane::Result<()> {
        let root = view.root()?;
        self.generation = root.generation;
        self.fragments = if root.reassembles == 0 { "in order" } else { "reassembled" }.to_owned();
        self.drops = drops(view)?.into_iter().filter(|(_, packets)| *packets > 0).collect();
        self.events = events(view)?.into_iter().filter(|(_, times)| *times > 0).collect();
        Ok(())
    }
}

fn attachment(attachment: Attachment) -> String {
    match attachment {
        Attachment::Tcx => "tcx".into(),
        Attachment::Clsact => "clsact".into(),
    }
}

/// Packets dropped, by the name of the reason.
///
/// # Errors
/// If the map cannot be read.
pub fn drops(view: &View) -> dataplane::Result<BTreeMap<String, u64>> {
    let names = calico_ebpf_common::abi::DROP_REASONS;
    let name = |reason| names.iter().find(|(known, _)| *known == reason).map_or("unknown", |(_, name)| name);
    Ok(view.drops()?.into_iter().map(|(reason, packets)| (name(reason).to_owned(), packets)).collect())
}

/// What else the programs count, by its name.
///
/// # Errors
/// If the map cannot be read.
pub fn events(view: &View) -> dataplane::Result<BTreeMap<String, u64>> {
    let names = calico_ebpf_common::abi::EVENTS;
    let name = |event| names.iter().find(|(known, _)| *known == event).map_or("unknown", |(_, name)| name);
    Ok(view.events()?.into_iter().map(|(event, times)| (name(event).to_owned(), times)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_the_promised_fields() {
        let json = serde_json::to_value(Status {
            last_load: Some(LastLoad { errors: vec![Problem::general("x")], ..LastLoad::default() }),
            workloads: vec![WorkloadState::default()],
            ..Status::default()
        })
        .expect("JSON");
        for field in ["version", "node", "pid", "generation", "lastLoad", "workloads", "uplinks", "routes"] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert!(json["pid"].is_null());
        for field in ["ok", "time", "errors", "warnings"] {
            assert!(json["lastLoad"].get(field).is_some(), "{field}");
        }
        for field in ["path", "line", "column", "resource", "field", "message"] {
            assert!(json["lastLoad"]["errors"][0].get(field).is_some(), "{field}");
        }
        for field in ["endpoint", "interface", "state"] {
            assert!(json["workloads"][0].get(field).is_some(), "{field}");
        }
    }

    #[test]
    fn a_load_is_kept_as_far_as_there_is_room() {
        let problem = |number: u32| Problem { line: number, ..Problem::general("x".repeat(90)) };
        let load =
            LastLoad { ok: false, time: "now".into(), errors: (1..=100).map(problem).collect(), warnings: vec![] };
        assert_eq!(LastLoad::parse(&load.text(1 << 20)), Some(load.clone()));
        let text = load.text(4096);
        assert!(text.len() <= 4096);
        let kept = LastLoad::parse(&text).expect("a load");
        let (last, errors) = kept.errors.split_last().expect("errors");
        assert_eq!(errors, &load.errors[..errors.len()]);
        assert_eq!(last.message, format!("and {} more", 100 - errors.len()));
        assert_eq!(LastLoad::parse(""), None);
    }

    #[test]
    fn problems_read_as_compilers_have_them() {
        let problem = Problem {
            path: "a.yaml".into(),
            line: 3,
            column: 7,
            resource: Some("NetworkPolicy/x".into()),
            field: Some("spec.order".into()),
            message: "not a number".into(),
        };
        assert_eq!(problem.to_string(), "a.yaml:3:7: NetworkPolicy/x: spec.order: not a number");
        assert_eq!(Problem::general("too many").to_string(), "too many");
    }
}
