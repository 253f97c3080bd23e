//! `flows`.

use std::{collections::HashMap, net::SocketAddr, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, anyhow};

use super::{
    args::{self, Format},
    context::Context,
    output,
    table::Table,
};
use crate::{
    dataplane::{flows::FlowLog, preview},
    observe::{
        clock::short,
        flows::{End, Flow, Flows},
        inventory::{self, Who},
    },
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
    let filter = Filter { denied: arguments.denied, from: ends(&view, from)?, to: ends(&view, to)? };
    let log = FlowLog::open(&context.instance)?;
    let log = log.context("the data path that is installed records no flows: start this version of the program")?;
    let flows = Flows::new(view, log)?;
    flows.watch(RECORDED)?;
    if arguments.follow {
        return follow(flows, &filter, context.format);
    }
    let shown: Vec<Flow> = flows.all()?.into_iter().filter(|flow| filter.wants(flow)).collect();
    output::result(context.format, &shown, |shown| render(shown, true))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows each flow when it is new and whenever it has gone on, until somebody ends the program.
fn follow(mut flows: Flows, filter: &Filter, format: Format) -> anyhow::Result<ExitCode> {
    // What was recorded before is no news.
    let packets = |flow: &Flow| (flow.source.packets, flow.destination.packets);
    let mut seen: HashMap<_, _> = flows.recorded()?.into_iter().map(|(key, flow)| (key, packets(&flow))).collect();
    if format == Format::Table {
        output::print(&render(&[], true))?;
    }
    loop {
        thread::sleep(INTERVAL);
        flows.watch(RECORDED)?;
        flows.refresh()?;
        let recorded = flows.recorded()?;
        let mut now = HashMap::with_capacity(recorded.len());
        let mut news = Vec::new();
        for (key, flow) in recorded {
            if seen.get(&key) != Some(&packets(&flow)) && filter.wants(&flow) {
                news.push(flow.clone());
            }
            now.insert(key, packets(&flow));
        }
        seen = now;
        match format {
            Format::Table if news.is_empty() => {}
            Format::Table => output::print(&render(&news, false))?,
            Format::Json => {
                for flow in &news {
                    output::print(&format!("{}\n", serde_json::to_string(flow)?))?;
                }
            }
        }
    }
}

/// What is shown.
struct Filter {
    denied: bool,
    from: Option<Side>,
    to: Option<Side>,
}

/// Whom a `WHO` means: addresses, or a workload by its name.
struct Side {
    addresses: Vec<std::net::IpAddr>,
}

impl Filter {
    fn wants(&self, flow: &Flow) -> bool {
        let is =
            |side: &Option<Side>, end: &End| side.as_ref().is_none_or(|side| side.addresses.contains(&end.address));
        (!self.denied || flow.verdict == "deny") && is(&self.from, &flow.source) && is(&self.to, &flow.destination)
    }
}

fn ends(view: &crate::dataplane::view::View, who: Option<Who>) -> anyhow::Result<Option<Side>> {
    let addresses = match who {
        None => return Ok(None),
        Some(Who::Address(address)) => vec![address],
        Some(Who::Host) => preview::host_addresses()?.into_iter().collect(),
        Some(who) => {
            let locals = inventory::workloads(view)?;
            let found = who.among(&locals);
            if found.is_empty() {
                return Err(anyhow!("no such workload of this node; `workloads` lists them"));
            }
            found.into_iter().flat_map(|local| local.addresses.clone()).collect()
        }
    };
    Ok(Some(Side { addresses }))
}

fn render(flows: &[Flow], heading: bool) -> String {
    let mut table = Table::new(&["VERDICT", "PROTO", "FROM", "TO", ">PACKETS", ">BYTES", ">IDLE", "DECIDED BY"]);
    for flow in flows {
        let sum = |of: fn(&End) -> Option<u64>| {
            let both = of(&flow.source).zip(of(&flow.destination));
            both.map_or_else(|| "-".to_owned(), |(a, b)| (a + b).to_string())
        };
        let rules = [&flow.source, &flow.destination].map(|end| end.rule.as_ref().map(ToString::to_string));
        let mut decided: Vec<String> = rules.into_iter().flatten().collect();
        if decided.is_empty() {
            decided.extend(flow.reason.map(str::to_owned));
        }
        let message = flow.icmp.map_or_else(String::new, |(kind, code)| format!(" {kind}/{code}"));
        table.row([
            flow.verdict.into(),
            format!("{}{message}", flow.protocol),
            end(&flow.source),
            end(&flow.destination),
            sum(|end| end.packets),
            sum(|end| end.bytes),
            short(Duration::try_from_secs_f64(flow.idle).unwrap_or_default()),
            decided.join(" + "),
        ]);
    }
    let text = table.render(0);
    if heading { text } else { text.split_once('\n').map_or_else(String::new, |(_, rows)| rows.to_owned()) }
}

fn end(end: &End) -> String {
    let address = match end.port {
        0 => end.address.to_string(),
        port => SocketAddr::new(end.address, port).to_string(),
    };
    match &end.endpoint {
        Some(name) => format!("{name} {address}"),
        None => address,
    }
}
