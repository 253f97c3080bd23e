//! `explain`: judges flows offline, by tables compiled and judged as in the kernel.

mod untracked;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::ExitCode,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use calico_ebpf_common::packet::{
    Ip as _, V4, V6,
    protocol::{ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE},
};
use serde::{Deserialize, Serialize};

use super::{
    args::{self, Format},
    context::{Context, node_name},
    output,
};
use crate::{
    observe::{
        inventory::Who,
        live::{Live, LiveEnd},
    },
    policy::{
        compile::compile,
        compiled::{Direction, RuleName, forward_seat, from_workloads_seat, host_endpoint_of_seat},
        flow::{EndVerdict, Flow, Verdict, word},
        maps::Maps,
        staged,
    },
    resources::{
        self, Severity, host_endpoint_of,
        model::{EndpointToHostAction, HostInterface, ResourceSet, WorkloadEndpoint},
    },
};

/// What a client's port usually is: the first that is given out to clients.
const SOURCE_PORT: u16 = 49152;

/// A question, as a line of `--queries` or as options.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Query {
    from: String,
    to: String,
    protocol: serde_json::Value,
    port: Option<u16>,
    source_port: Option<u16>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    interface: Option<String>,
}

/// An answer, and where there are staged policies what it would be with them applied.
#[derive(Serialize)]
struct Answer {
    #[serde(flatten)]
    now: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    staged: Option<Outcome>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    live: Option<LivePart>,
}

/// What only the loaded program tells.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LivePart {
    /// The generation that judged.
    generation: u32,
    /// Why the packet is dropped.
    drop_reason: Option<&'static str>,
    /// What the files say, where they say something else.
    files: Option<Outcome>,
}

/// By protocol, the ICMP types of an echo request and of its reply.
const ECHO: [(u8, u8, u8); 2] = [(ICMP, 8, 0), (ICMPV6, 128, 129)];

/// What becomes of a flow.
#[derive(Default, PartialEq, Eq, Serialize)]
struct Outcome {
    verdict: &'static str,
    source: Option<End>,
    destination: Option<End>,
    /// What untracked policy makes of the first packet, where it is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    untracked: Option<End>,
    /// Likewise of the first one that comes back: it knows no connections.
    #[serde(rename = "untrackedAnswer", skip_serializing_if = "Option::is_none")]
    untracked_answer: Option<End>,
}

/// What decided at one end; what did not decide is null.
#[derive(PartialEq, Eq, Serialize)]
struct End {
    endpoint: String,
    verdict: &'static str,
    /// The sender of what is denied is told.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    reject: bool,
    reason: String,
    tier: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    policy: Option<String>,
    rule: Option<u32>,
    /// Not the workload's own policy decided, but that of the host endpoint of all interfaces, which its packets pass.
    #[serde(skip)]
    passed: bool,
}

pub(super) fn run(arguments: &args::Explain, given_node: Option<&str>, format: Format) -> anyhow::Result<ExitCode> {
    let loaded = load(arguments)?;
    if let Some(warning) = given_node.and_then(|node| loaded.set.unknown_node(node)) {
        output::complain(&format!("warning: {warning}"));
    }
    let node = &node_name(given_node);
    let applied = staged::matters(&loaded.set).then(|| loaded.set.with_staged_applied());
    let mut judge = Judges {
        now: Judge::new(&loaded.set, node),
        staged: applied.as_ref().map(|applied| Judge::new(applied, node)),
    };
    serve(arguments, format, &mut |question| judge.answer(question))
}

/// `explain --live`: what is loaded answers, and where there are files, they are held against it.
pub(super) fn run_live(context: &Context, arguments: &args::Explain) -> anyhow::Result<ExitCode> {
    let Some(live) = Live::open(&context.instance)? else {
        bail!("nothing that could be asked is installed at {}", context.instance.pin_dir().display());
    };
    let loaded = if arguments.config.is_empty() { None } else { Some(load(arguments)?) };
    let mut judge = loaded.as_ref().map(|loaded| Judge::new(&loaded.set, live.node()));
    if let Some(judge) = &mut judge {
        judge.own_addresses.extend(live.addresses(&Who::Host));
    }
    serve(arguments, context.format, &mut |question| answer_live(&live, judge.as_mut(), question))
}

fn load(arguments: &args::Explain) -> anyhow::Result<resources::Loaded> {
    let loaded = resources::load(&arguments.config);
    for diagnostic in &loaded.diagnostics {
        if diagnostic.severity != Severity::Notice {
            output::complain(&diagnostic.render());
        }
    }
    ensure!(!loaded.has_errors(), "the files are refused");
    Ok(loaded)
}

/// Who answers a question.
type Answering<'a> = dyn FnMut(&Question) -> anyhow::Result<Answer> + 'a;

fn serve(arguments: &args::Explain, format: Format, judge: &mut Answering<'_>) -> anyhow::Result<ExitCode> {
    match (&arguments.queries, arguments.query()) {
        (Some(file), _) if file.as_os_str() == "-" => answer_lines(judge, std::io::stdin().lock()),
        (Some(file), _) => {
            let lines = std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
            answer_lines(judge, lines)
        }
        (None, Some((from, to, protocol))) => {
            let query = Query {
                from: from.to_owned(),
                to: to.to_owned(),
                protocol: protocol.into(),
                port: arguments.port,
                source_port: arguments.source_port,
                icmp_type: arguments.icmp_type,
                icmp_code: arguments.icmp_code,
                interface: arguments.interface.clone(),
            };
            let question = match Question::new(&query) {
                Ok(question) => question,
                Err(error) => {
                    output::complain(&format!("error: {error:#}"));
                    return Ok(ExitCode::from(2));
                }
            };
            output::result(format, &judge(&question)?, render)?;
            Ok(ExitCode::SUCCESS)
        }
        (None, None) => bail!("--from, --to and --protocol are needed, or --queries"),
    }
}

/// The loaded program's answer. `judge`: the files, to be held against it.
fn answer_live(live: &Live, judge: Option<&mut Judge<'_>>, question: &Question) -> anyhow::Result<Answer> {
    let addresses = |who: &Who| -> anyhow::Result<Vec<IpAddr>> {
        let known = live.addresses(who);
        match &judge {
            Some(judge) if known.is_empty() => {
                let party = judge.party(who)?;
                Ok([party.v4, party.v6].into_iter().flatten().collect())
            }
            _ => Ok(known),
        }
    };
    let (from, to) = (addresses(&question.from)?, addresses(&question.to)?);
    let pair = |v4: bool| {
        let of = |addresses: &[IpAddr]| addresses.iter().copied().find(|address| address.is_ipv4() == v4);
        of(&from).zip(of(&to))
    };
    let unknown =
        "not known here, or without an address family in common (with --config, workloads of other nodes are known)";
    let (source, destination) = question.of_family(pair(true), pair(false)).context(unknown)?;
    let verdict = live.ask(&question.flow(source, destination))?;
    let mut ends = [
        verdict.source.map(|end| End::of_live(end, Direction::Egress)),
        verdict.destination.map(|end| End::of_live(end, Direction::Ingress)),
    ];
    if live.is_host(&source) {
        ends[1] = live.owner(&destination).map(|name| End::bare(name.to_owned(), true, "host-to-own-workload"));
    } else if verdict.reason == Some("endpoint-to-host") {
        ends[0] = live.owner(&source).map(|name| End::bare(name.to_owned(), false, "endpoint-to-host"));
    }
    let [source, destination] = ends;
    let now = Outcome { verdict: word(verdict.reason.is_none()), source, destination, ..Outcome::default() };
    let files = judge.map(|judge| judge.answer_of_node(question)).transpose()?.filter(|files| *files != now);
    let live = LivePart { generation: verdict.generation, drop_reason: verdict.reason, files };
    Ok(Answer { now, staged: None, live: Some(live) })
}

/// Answers each line with a line; one that cannot be judged, and be it empty, gets its error in its place.
fn answer_lines(judge: &mut Answering<'_>, lines: impl Read) -> anyhow::Result<ExitCode> {
    const BOM: &[u8] = "\u{feff}".as_bytes();
    let mut failed = false;
    for (number, line) in BufReader::new(lines).split(b'\n').enumerate() {
        let line = line.context("cannot read the queries")?;
        let line = line.strip_prefix(BOM).filter(|_| number == 0).unwrap_or(&line);
        // Which line it is, the place of the answer says.
        let said =
            |error: serde_json::Error| anyhow!(error.to_string().replacen(" at line 1 column ", " at column ", 1));
        let query = serde_json::from_slice(line).map_err(said);
        let answer = query.and_then(|query| Question::new(&query)).and_then(|question| judge(&question));
        let text = match answer {
            Ok(answer) => serde_json::to_string(&answer)?,
            Err(error) => {
                failed = true;
                serde_json::json!({"error": format!("{error:#}")}).to_string()
            }
        };
        output::print(&format!("{text}\n"))?;
    }
    Ok(ExitCode::from(u8::from(failed)))
}

/// A question that makes sense, whoever the names are.
struct Question {
    from: Who,
    to: Who,
    protocol: u8,
    port: Option<u16>,
    source_port: u16,
    icmp: (Option<u8>, u8),
    interface: Option<String>,
}

impl Question {
    fn new(query: &Query) -> anyhow::Result<Self> {
        let who = |text: &str| text.parse::<Who>().map_err(|error| anyhow!(error));
        let protocol = match &query.protocol {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let protocol = resources::protocol_number(&protocol).map_err(|error| anyhow!(error))?;
        let has_ports = [TCP, UDP, SCTP, UDP_LITE].contains(&protocol);
        // Rules cannot speak of ports of UDP-Lite.
        let is_needed = has_ports && protocol != UDP_LITE;
        ensure!(!is_needed || query.port.is_some(), "a port is needed: this protocol has ports");
        ensure!(has_ports || query.port.is_none(), "this protocol has no ports");
        Ok(Self {
            from: who(&query.from)?,
            to: who(&query.to)?,
            protocol,
            port: query.port,
            source_port: if has_ports { query.source_port.unwrap_or(SOURCE_PORT) } else { 0 },
            icmp: (query.icmp_type, query.icmp_code.unwrap_or(0)),
            interface: query.interface.clone(),
        })
    }

    /// Whether it is a message that IPv6 needs to work at all: multicast listeners', router solicitations and neighbour discovery, which
    /// nobody judges on its way from or to the host (as Calico's `cali-wl-to-host`).
    fn is_of_link(&self) -> bool {
        self.protocol == ICMPV6 && matches!(self.icmp.0, Some(130..=133 | 135 | 136))
    }

    /// IPv4 where there is a choice, but ICMPv6 means IPv6.
    fn of_family<T>(&self, v4: Option<T>, v6: Option<T>) -> Option<T> {
        if self.protocol == ICMPV6 { v6.or(v4) } else { v4.or(v6) }
    }

    /// The fields that rules look at, `type << 8 | code` for ICMP.
    fn flow(&self, source: IpAddr, destination: IpAddr) -> Flow {
        let echo = ECHO.into_iter().find(|(protocol, ..)| *protocol == self.protocol);
        let (kind, code) = self.icmp;
        let icmp = |(_, request, _)| u16::from_be_bytes([kind.unwrap_or(request), code]);
        let port = echo.map_or(self.port.unwrap_or(0), icmp);
        Flow { source, destination, protocol: self.protocol, source_port: self.source_port, destination_port: port }
    }
}

/// Whether the host takes in what others send there: what is for many, or never leaves a link or a host.
fn is_for_any_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => V4::is_multicast(&address.octets()) || V4::is_host_scope(&address.octets()),
        IpAddr::V6(address) => V6::is_multicast(&address.octets()) || V6::is_host_scope(&address.octets()),
    }
}

/// One end of a flow: its addresses by family, and the workload, if it is one.
struct Party<'a> {
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
    workload: Option<&'a WorkloadEndpoint>,
    host: bool,
}

/// Of what is in force, and of what would be with the staged policies applied.
struct Judges<'a> {
    now: Judge<'a>,
    staged: Option<Judge<'a>>,
}

impl Judges<'_> {
    fn answer(&mut self, question: &Question) -> anyhow::Result<Answer> {
        self.now.warn_of_interface(question);
        let now = self.now.answer(question)?;
        let staged = self.staged.as_mut().map(|judge| judge.answer(question)).transpose()?;
        Ok(Answer { now, staged, live: None })
    }
}

/// The resources, and the maps of the nodes that were asked about.
struct Judge<'a> {
    set: &'a ResourceSet,
    node: &'a str,
    own_addresses: BTreeSet<IpAddr>,
    maps: BTreeMap<&'a str, Maps>,
}

impl<'a> Judge<'a> {
    fn new(set: &'a ResourceSet, node: &'a str) -> Self {
        Self { set, node, own_addresses: Self::addresses_of(set, node), maps: BTreeMap::new() }
    }

    fn answer(&mut self, question: &Question) -> anyhow::Result<Outcome> {
        let mut outcome = self.outcome(question)?;
        for end in [&mut outcome.source, &mut outcome.destination].into_iter().flatten().filter(|end| end.passed) {
            let node = self.set.workloads.iter().find(|workload| name(workload) == end.endpoint).map(|w| &*w.node);
            if let Some(all) = node.and_then(|node| self.set.all_interfaces_of(node)) {
                end.endpoint.clone_from(&all.name);
            }
        }
        Ok(outcome)
    }

    /// With workloads as ends.
    fn outcome(&mut self, question: &Question) -> anyhow::Result<Outcome> {
        let (from, mut to) = (self.party(&question.from)?, self.party(&question.to)?);
        let ends = question.of_family(from.v4.zip(to.v4), from.v6.zip(to.v6));
        let (source, destination) = ends.context("they have no address family in common")?;
        to.host |= !from.host && is_for_any_host(destination);
        let flow = question.flow(source, destination);
        if (from.host || to.host) && question.is_of_link() {
            return Ok(Outcome { verdict: word(true), ..Outcome::default() });
        }
        let mut verdict = Verdict {
            source: self.judge(from.workload, &flow)?.source,
            destination: self.judge(to.workload, &flow)?.destination,
        };
        let mut untracked = self.untracked(question, &from, &to, &flow)?;
        if (from.host || to.host) && untracked[0].as_ref().is_some_and(|end| end.verdict == word(true)) {
            self.judge_answer(question, &from, &to, &flow, &mut untracked[1])?;
        }
        let answer = if from.host && to.workload.is_some_and(|workload| workload.node == self.node) {
            // Whatever policy says: the host always reaches its own workloads.
            let endpoint = to.workload.map(name).unwrap_or_default();
            Outcome {
                verdict: "allow",
                destination: Some(End::bare(endpoint, true, "host-to-own-workload")),
                ..Outcome::default()
            }
        } else {
            if to.host {
                verdict.destination = None;
            }
            // What untracked policy allows, nothing else is asked about at that host endpoint.
            if !untracked[0].as_ref().is_some_and(|end| end.verdict == word(true)) {
                self.judge_host(question, &from, &to, &flow, &mut verdict)?;
            }
            Outcome {
                verdict: word(verdict.allow()),
                source: verdict.source.take().map(|end| End::new(end, Direction::Egress)),
                destination: verdict.destination.take().map(|end| End::new(end, Direction::Ingress)),
                ..Outcome::default()
            }
            .with_untracked(untracked)
        };
        Ok(self.to_own_host(answer, &from, &to))
    }

    /// What becomes of the answer where a workload sends to its own host.
    fn to_own_host(&self, mut answer: Outcome, from: &Party<'_>, to: &Party<'_>) -> Outcome {
        let own = from.workload.filter(|workload| to.host && workload.node == self.node);
        if let Some(workload) = own.filter(|_| answer.verdict == "allow")
            && self.to_host() == EndpointToHostAction::Drop
        {
            answer.verdict = word(false);
            answer.source = Some(End::bare(name(workload), false, "endpoint-to-host"));
        }
        answer
    }

    /// The part of the answer that this node has a say in.
    fn answer_of_node(&mut self, question: &Question) -> anyhow::Result<Outcome> {
        let mut outcome = self.outcome(question)?;
        let (node, workloads) = (self.node, &self.set.workloads);
        let local =
            |end: &End| workloads.iter().any(|workload| workload.node == node && name(workload) == end.endpoint);
        (outcome.untracked, outcome.untracked_answer) = (None, None);
        outcome.source = outcome.source.filter(&local);
        outcome.destination = outcome.destination.filter(&local);
        let denied =
            [&outcome.source, &outcome.destination].into_iter().flatten().any(|end| end.verdict == word(false));
        outcome.verdict = word(!denied);
        Ok(outcome)
    }

    /// What host endpoints of this node say of a flow that passes one. Where it denies, it stands in place of a workload
    /// elsewhere.
    fn judge_host(
        &mut self,
        question: &Question,
        from: &Party<'a>,
        to: &Party<'a>,
        flow: &Flow,
        verdict: &mut Verdict,
    ) -> anyhow::Result<()> {
        if self.set.host_endpoints_of(self.node).next().is_none() {
            return Ok(());
        }
        let (from_outside, to_outside) = (self.is_outside(from), self.is_outside(to));
        let (from_local, to_local) = (self.is_local(from), self.is_local(to));
        // Whose, of which seat, and at which end.
        let asked: Vec<(String, Direction)> = if from.host && to_outside {
            vec![(self.host_endpoint(question, flow.source)?, Direction::Egress)]
        } else if to.host && from_outside {
            vec![(self.host_endpoint(question, flow.destination)?, Direction::Ingress)]
        } else if to.host && from_local {
            self.set
                .all_interfaces_of(self.node)
                .map(|host| (from_workloads_seat(&host.name), Direction::Ingress))
                .into_iter()
                .collect()
        } else if from_outside && to_local {
            vec![(forward_seat(&self.host_endpoint(question, flow.destination)?), Direction::Egress)]
        } else if from_local && to_outside {
            vec![(forward_seat(&self.host_endpoint(question, flow.source)?), Direction::Ingress)]
        } else {
            Vec::new()
        };
        let Some(maps) = self.maps_of(self.node)? else { return Ok(()) };
        for (seat, side) in asked {
            let Some(judged) = maps.judge_seat(&seat, side, flow) else { continue };
            let end = match side {
                Direction::Egress => &mut verdict.source,
                Direction::Ingress => &mut verdict.destination,
            };
            if end.is_none() || !judged.allow {
                *end = Some(judged);
            }
        }
        Ok(())
    }

    fn is_local(&self, party: &Party<'_>) -> bool {
        party.workload.is_some_and(|workload| workload.node == self.node)
    }

    fn is_outside(&self, party: &Party<'_>) -> bool {
        !party.host && !self.is_local(party)
    }

    /// The host endpoint that a flow passes, of those of this node; `address` is the one of its ends that is inside.
    fn host_endpoint(&self, question: &Question, address: IpAddr) -> anyhow::Result<String> {
        let endpoints = || self.set.host_endpoints_of(self.node);
        let by_name = endpoints().map(|host| (host.name.as_str(), &host.interface));
        if let Some(interface) = &question.interface {
            let addresses = match endpoints().find(|host| host.expected_ips.contains(&address)) {
                Some(host) => &host.expected_ips[..],
                None => &[],
            };
            return Ok(host_endpoint_of(by_name, interface, addresses).map(str::to_owned).unwrap_or_default());
        }
        if let Some(host) = endpoints().find(|host| host.expected_ips.contains(&address)) {
            return Ok(host.name.clone());
        }
        let mut endpoints = endpoints();
        match (endpoints.next(), endpoints.next()) {
            (Some(only), None) => Ok(only.name.clone()),
            _ => {
                bail!("the host has several host endpoints: say which interface it passes (--interface, \"interface\")")
            }
        }
    }

    /// That of an interface that is no host endpoint nobody is asked about may be a matter of spelling.
    fn warn_of_interface(&self, question: &Question) {
        let Some(asked) = &question.interface else { return };
        let mut endpoints = self.set.host_endpoints_of(self.node).peekable();
        let may_be = |interface: &HostInterface| match interface {
            HostInterface::Named(name) => name == asked,
            _ => true,
        };
        if endpoints.peek().is_some() && !endpoints.any(|host| may_be(&host.interface)) {
            let node = self.node;
            output::complain(&format!(
                "warning: no host endpoint of {node} is the interface \"{asked}\": none is asked there"
            ));
        }
    }

    fn to_host(&self) -> EndpointToHostAction {
        self.set.felix_for(self.node).default_endpoint_to_host_action.unwrap_or_default()
    }

    /// Whether this node has the address, as far as is known.
    fn is_own(&self, address: IpAddr) -> bool {
        self.own_addresses.contains(&address)
    }

    /// The addresses of a node, as far as its `Node` and its host endpoints say.
    fn addresses_of(set: &ResourceSet, node: &str) -> BTreeSet<IpAddr> {
        let expected = set.host_endpoints_of(node).flat_map(|host| host.expected_ips.iter().copied());
        let node = set.node_resources.get(node);
        let of_node = node.into_iter().flat_map(|node| {
            let nets = [node.ipv4, node.ipv6].into_iter().flatten().map(|net| net.addr());
            nets.chain(node.addresses.iter().copied())
        });
        expected.chain(of_node).collect()
    }

    /// Both ends, as far as they live on the workload's node.
    fn judge(&mut self, workload: Option<&'a WorkloadEndpoint>, flow: &Flow) -> anyhow::Result<Verdict> {
        let Some(workload) = workload else { return Ok(Verdict::default()) };
        Ok(self.maps_of(&workload.node)?.map(|maps| maps.judge(flow)).unwrap_or_default())
    }

    fn maps_of(&mut self, node: &'a str) -> anyhow::Result<Option<&Maps>> {
        if !self.maps.contains_key(node) {
            let mut host = Self::addresses_of(self.set, node);
            if node == self.node {
                host.extend(&self.own_addresses);
                // Of a host of which no address is known.
                host.extend([IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()]);
            }
            let maps = Maps::of(&compile(self.set, node), &host)?;
            self.maps.insert(node, maps);
        }
        Ok(self.maps.get(node))
    }

    /// An address that a host endpoint of this node expects.
    fn expected(&self, is_family: fn(&IpAddr) -> bool) -> Option<IpAddr> {
        let mut all = self.set.host_endpoints_of(self.node).flat_map(|host| &host.expected_ips);
        all.find(|address| is_family(address)).copied()
    }

    fn party(&self, who: &Who) -> anyhow::Result<Party<'a>> {
        let workloads = &self.set.workloads;
        match who {
            // Which of its addresses it would use cannot be known offline.
            Who::Host => Ok(Party {
                v4: self.expected(IpAddr::is_ipv4).or(Some(Ipv4Addr::UNSPECIFIED.into())),
                v6: self.expected(IpAddr::is_ipv6).or(Some(Ipv6Addr::UNSPECIFIED.into())),
                workload: None,
                host: true,
            }),
            Who::Address(address) if self.is_own(*address) => Ok(Party {
                v4: Some(*address).filter(IpAddr::is_ipv4),
                v6: Some(*address).filter(IpAddr::is_ipv6),
                workload: None,
                host: true,
            }),
            Who::Address(address) => Ok(Party {
                v4: Some(*address).filter(IpAddr::is_ipv4),
                v6: Some(*address).filter(IpAddr::is_ipv6),
                workload: workloads
                    .iter()
                    .map(|workload| &**workload)
                    .find(|workload| workload.addresses.contains(address)),
                host: false,
            }),
            Who::Named { namespace, name } => {
                let mut of_namespace = workloads.iter().filter(|workload| workload.namespace == *namespace);
                let found = of_namespace.clone().find(|workload| workload.name == *name);
                let found = found.or_else(|| of_namespace.find(|workload| workload.pod.as_deref() == Some(name)));
                let workload = found.with_context(|| format!("no workload {namespace}/{name}"))?;
                let mut addresses = workload.addresses.iter().copied();
                Ok(Party {
                    v4: addresses.clone().find(IpAddr::is_ipv4),
                    v6: addresses.find(IpAddr::is_ipv6),
                    workload: Some(workload),
                    host: false,
                })
            }
        }
    }
}

impl End {
    fn of_live(LiveEnd { endpoint, allow, reject, rule }: LiveEnd, side: Direction) -> Self {
        match rule {
            Some(rule) => Self::new(EndVerdict { endpoint, allow, reject, rule }, side),
            None => Self::bare(endpoint, allow, "no-table"),
        }
    }

    fn new(end: EndVerdict, side: Direction) -> Self {
        let is_workload = host_endpoint_of_seat(&end.endpoint).is_none();
        let RuleName { direction, reason, tier, kind, namespace, policy, rule } = end.rule;
        let reason = serde_json::to_value(reason).ok().and_then(|text| text.as_str().map(str::to_owned));
        Self {
            endpoint: end.endpoint,
            verdict: word(end.allow),
            reject: end.reject,
            reason: reason.unwrap_or_default(),
            tier,
            kind,
            namespace,
            policy,
            rule,
            passed: is_workload && direction != side,
        }
    }

    fn bare(endpoint: String, allow: bool, reason: &str) -> Self {
        let reason = reason.to_owned();
        let verdict = word(allow);
        Self {
            endpoint,
            verdict,
            reject: false,
            reason,
            tier: None,
            kind: None,
            namespace: None,
            policy: None,
            rule: None,
            passed: false,
        }
    }
}

fn name(workload: &WorkloadEndpoint) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn render(answer: &Answer) -> String {
    let mut text = render_outcome(&answer.now);
    if let Some(staged) = &answer.staged {
        text.push_str("\nwith the staged policies applied:\n");
        text.push_str(&render_outcome(staged));
    }
    if let Some(LivePart { generation, drop_reason, files }) = &answer.live {
        text.push_str(&format!("loaded       generation {generation}"));
        if let Some(reason) = drop_reason {
            text.push_str(&format!(", dropped: {reason}"));
        }
        text.push('\n');
        if let Some(files) = files {
            text.push_str("\nthe files say something else:\n");
            text.push_str(&render_outcome(files));
        }
    }
    text
}

fn render_outcome(outcome: &Outcome) -> String {
    let end = |which: &str, end: &Option<End>| {
        let Some(End { endpoint, verdict, reject, reason, tier, kind, namespace, policy, rule, passed }) = end else {
            return format!("{which:<12} no policy is enforced\n");
        };
        let how = if *reject { " (reject)" } else { "" };
        let mut text = format!("{which:<12} {verdict}{how}: {endpoint}: {reason}");
        if let Some(tier) = tier {
            text.push_str(&format!(", tier {tier}"));
        }
        if let (Some(kind), Some(policy)) = (kind, policy) {
            let namespace = namespace.as_ref().map(|namespace| format!("{namespace}/")).unwrap_or_default();
            text.push_str(&format!(", {kind} {namespace}{policy}"));
        }
        if let Some(rule) = rule {
            text.push_str(&format!(", rule {rule}"));
        }
        if *passed {
            text.push_str(", of the host endpoint '*'");
        }
        text.push('\n');
        text
    };
    let (source, destination) = (end("source", &outcome.source), end("destination", &outcome.destination));
    let mut text = format!("{}\n{source}{destination}", outcome.verdict);
    for (which, said) in [("untracked", &outcome.untracked), ("its answer", &outcome.untracked_answer)] {
        if said.is_some() {
            text.push_str(&end(which, said));
        }
    }
    text
}
