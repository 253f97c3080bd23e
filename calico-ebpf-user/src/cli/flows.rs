//! `flows`.

use std::{collections::HashMap, net::IpAddr, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};

use super::{
    args::{self, Format},
    context::Context,
    output,
    table::Table,
};
use crate::{
    agent::control::{MAX_FLOWS, Request},
    dataplane::{flows::FlowLog, preview, view::View},
    observe::{
        clock::short,
        flows::{End, Flow, Flows, Pending},
        inventory::{self, Who},
    },
    policy::flow::word,
};

/// Seconds that flows are recorded for after a look, so that the next look has numbers.
const RECORDED: u32 = 60;
/// How often `--follow` looks.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(context: &Context, arguments: &args::Flows) -> anyhow::Result<ExitCode> {
    let who = |text: &Option<String>| text.as_deref().map(str::parse::<Who>).transpose();
    let (from, to) = match (who(&arguments.from), who(&arguments.to)) {
        (Ok(from), Ok(to)) => (from, to),
        (Err(error), _) | (_, Err(error)) => {
            output::complain(&format!("error: {error}"));
            return Ok(ExitCode::from(2));
        }
    };
    let view = context.view()?;
    let mut filter = Filter { denied: arguments.denied, from: Side::new(from), to: Side::new(to) };
    filter.look(&view)?;
    if let Some(Side { who, .. }) =
        [&filter.from, &filter.to].into_iter().flatten().find(|side| side.addresses.is_empty())
    {
        bail!("{who}: no workload of this node; `workloads` lists them");
    }
    let log = FlowLog::open(&context.instance)?;
    let log = log.context("the data path that is installed records no flows: start this version of the program")?;
    let flows = Flows::new(view, log)?;
    let recorded = flows.watch(RECORDED)?;
    if arguments.follow {
        return follow(context, flows, filter);
    }
    let mut shown: Vec<Flow> = flows.all()?.into_iter().filter(|flow| filter.wants(flow)).collect();
    hold_against_staged(context, &mut shown);
    output::result(context.format, &shown, |shown| render(shown, true))?;
    if !recorded {
        output::complain(&format!(
            "nobody looked until now: these are the live connections. What is dropped, packets and bytes are recorded from \
             now on, for {RECORDED} seconds after each look"
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows each flow when it is new and whenever it has gone on, until somebody ends the program or nobody reads any more.
fn follow(context: &Context, mut flows: Flows, mut filter: Filter) -> anyhow::Result<ExitCode> {
    // What was recorded before is no news.
    let packets = |flow: &Flow| (flow.source.packets, flow.destination.packets);
    let mut seen: HashMap<_, _> = flows.recorded()?.into_iter().map(|(key, flow)| (key, packets(&flow))).collect();
    if context.format == Format::Table {
        output::print(&render(&[], true))?;
    }
    while !output::reader_leaves_within(INTERVAL) {
        flows.watch(RECORDED)?;
        flows.refresh()?;
        filter.look(flows.view())?;
        let recorded = flows.recorded()?;
        let mut now = HashMap::with_capacity(recorded.len());
        let mut news = Vec::new();
        for (key, flow) in recorded {
            let before = now.insert(key, packets(&flow)).or_else(|| seen.get(&key).copied());
            if before != Some(packets(&flow)) && filter.wants(&flow) {
                news.push(flow);
            }
        }
        seen = now;
        hold_against_staged(context, &mut news);
        match context.format {
            Format::Table if news.is_empty() => {}
            Format::Table => output::print(&render(&news, false))?,
            Format::Json => {
                for flow in &news {
                    output::print(&format!("{}\n", serde_json::to_string(flow)?))?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Adds what the staged policies would make of the flows. They are not in the maps: only a running process knows them.
fn hold_against_staged(context: &Context, flows: &mut [Flow]) {
    let mut judged: Vec<_> = flows.iter_mut().filter_map(|flow| Some((flow.judged()?, flow))).collect();
    for chunk in judged.chunks_mut(MAX_FLOWS) {
        let asked = Request::Pending { flows: chunk.iter().map(|(question, _)| *question).collect() };
        match context.ask(&asked) {
            Ok(Some(reply)) if reply.ok => {
                chunk.iter_mut().zip(reply.pending).for_each(|((_, flow), staged)| flow.hold_against(staged));
            }
            Ok(Some(reply)) => {
                return tracing::warn!("what staged policies would change is not known: {}", reply.message);
            }
            Ok(None) => return,
            Err(error) => return tracing::warn!("what staged policies would change is not known: {error:#}"),
        }
    }
}

/// What is shown.
struct Filter {
    denied: bool,
    from: Option<Side>,
    to: Option<Side>,
}

/// Whom a `WHO` means.
struct Side {
    who: Who,
    addresses: Vec<IpAddr>,
}

impl Side {
    fn new(who: Option<Who>) -> Option<Self> {
        who.map(|who| Self { who, addresses: Vec::new() })
    }
}

impl Filter {
    /// Finds out the addresses of whoever is meant: workloads come back with others.
    fn look(&mut self, view: &View) -> anyhow::Result<()> {
        for Side { who, addresses } in [&mut self.from, &mut self.to].into_iter().flatten() {
            *addresses = match who {
                Who::Address(address) => vec![*address],
                Who::Host => preview::host_addresses()?.into_iter().collect(),
                Who::Named { .. } => {
                    let locals = inventory::workloads(view)?;
                    who.among(&locals).into_iter().flat_map(|local| local.addresses.clone()).collect()
                }
            };
        }
        Ok(())
    }

    fn wants(&self, flow: &Flow) -> bool {
        let is =
            |side: &Option<Side>, end: &End| side.as_ref().is_none_or(|side| side.addresses.contains(&end.end.address));
        (!self.denied || flow.verdict == word(false)) && is(&self.from, &flow.source) && is(&self.to, &flow.destination)
    }
}

fn render(flows: &[Flow], heading: bool) -> String {
    let mut table = Table::new(&["VERDICT", "PROTO", "FROM", "TO", ">PACKETS", ">BYTES", ">IDLE", "DECIDED BY"]);
    for flow in flows {
        let sum = |of: fn(&End) -> Option<u64>| {
            let both = of(&flow.source).zip(of(&flow.destination));
            both.map_or_else(|| "-".to_owned(), |(a, b)| (a + b).to_string())
        };
        let rules = [&flow.source, &flow.destination].map(|end| end.end.rule.as_ref().map(ToString::to_string));
        let mut decided: Vec<String> = rules.into_iter().flatten().collect();
        if decided.is_empty() {
            decided.extend(flow.reason.map(str::to_owned));
        }
        let message = flow.icmp.map_or_else(String::new, |(kind, code)| format!(" {kind}/{code}"));
        table.row([
            flow.verdict.into(),
            format!("{}{message}", flow.protocol),
            flow.source.end.to_string(),
            flow.destination.end.to_string(),
            sum(|end| end.packets),
            sum(|end| end.bytes),
            short(Duration::try_from_secs_f64(flow.idle).unwrap_or_default()),
            format!("{}{}", decided.join(" + "), flow.pending.as_ref().map(pending).unwrap_or_default()),
        ]);
    }
    let text = table.render(0);
    if heading { text } else { text.split_once('\n').map_or_else(String::new, |(_, rows)| rows.to_owned()) }
}

/// What would decide with the staged policies applied.
fn pending(Pending { verdict, source, destination }: &Pending) -> String {
    let rules: Vec<_> = [source, destination].into_iter().flatten().map(|end| end.rule.to_string()).collect();
    format!("; pending: {verdict} by {}", rules.join(" + "))
}
