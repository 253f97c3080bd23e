//! `status`: from the running process, or from the maps of a stopped one.

use std::{fmt::Write as _, process::ExitCode};

use super::{context::Context, output, table::Table};
use crate::{
    agent::control::Request,
    dataplane::{self, view::View},
    observe::{
        inventory,
        status::{HostEndpointState, LastLoad, MigrationState, NatState, RouteState, Status, WorkloadState},
    },
    policy::compiled::host_endpoint_of_seat,
    routes,
};

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let running = context.ask(&Request::Status)?.and_then(|reply| reply.status);
    let status = match running {
        Some(status) => status,
        None => stopped(context)?,
    };
    output::result(context.format, &status, render)?;
    Ok(ExitCode::SUCCESS)
}

/// What the maps and the kernel say.
fn stopped(context: &Context) -> anyhow::Result<Status> {
    let view = context.view()?;
    let info = view.info()?;
    let workloads = inventory::workloads(&view)?;
    let state = |present: bool| if present { "present" } else { "absent" };
    let mut status = Status {
        version: info.version,
        node: info.node,
        pin_dir: context.instance.pin_dir().display().to_string(),
        workloads: workloads
            .iter()
            .map(|local| WorkloadState {
                endpoint: local.endpoint.clone(),
                interface: local.interface.clone(),
                state: state(local.workload.ifindex != 0).into(),
                attachment: None,
                delivery: None,
                migration: MigrationState::of(local.migration.as_ref()),
                leaves_for: None,
            })
            .collect(),
        host_endpoints: host_endpoints(&view)?,
        last_load: LastLoad::parse(&view.load()?),
        uplinks: info.uplinks,
        xdp: info.xdp,
        nat_outgoing: info.nat_table.map(|table| NatState {
            installed: dataplane::nft_table_exists(&table),
            table,
            networks: None,
        }),
        routes: routes::read(&view)?.iter().map(RouteState::from).collect(),
        ..Status::default()
    };
    status.counted(&view)?;
    Ok(status)
}

/// As the maps tell: which have no interface of their own now.
fn host_endpoints(view: &View) -> anyhow::Result<Vec<HostEndpointState>> {
    let seats = inventory::host_endpoints(view)?.into_iter();
    let own = seats.filter(|seat| host_endpoint_of_seat(&seat.endpoint) == Some(&*seat.endpoint));
    Ok(own
        .map(|seat| HostEndpointState {
            interfaces: seat.interface.split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            endpoint: seat.endpoint,
            uncovered: Vec::new(),
        })
        .collect())
}

fn render(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("version", &status.version);
    line("node", &status.node);
    match (status.pid, &status.started) {
        (Some(pid), Some(started)) => line("process", &format!("{pid}, since {started}")),
        (Some(pid), None) => line("process", &pid.to_string()),
        (None, _) => line("process", "stopped: the data path works on under the last policy"),
    }
    line("pinned at", &status.pin_dir);
    line("generation", &status.generation.to_string());
    if let Some(load) = &status.last_load {
        line("last load", &load_line(load));
    }
    if let Some(seconds) = status.confirm_within {
        line("unconfirmed", &format!("the set before comes back in {seconds}s unless `confirm` comes"));
    }
    let uplinks = if status.uplinks.is_empty() { "none".to_owned() } else { status.uplinks.join(", ") };
    line("uplinks", &uplinks);
    for xdp in &status.xdp {
        line("XDP", &format!("{}, {xdp}", xdp.interface));
    }
    line("fragments", &status.fragments);
    let missing = status.routes.iter().filter(|route| !route.installed).count();
    let routes = status.routes.len() - missing;
    line("routes", &if missing == 0 { routes.to_string() } else { format!("{routes}, {missing} missing") });
    if let Some(nat) = &status.nat_outgoing {
        line("natOutgoing", &nat_line(nat));
    }
    let problems = status.last_load.iter().flat_map(|load| {
        let errors = load.errors.iter().map(|problem| format!("error: {problem}"));
        errors.chain(load.warnings.iter().map(|problem| format!("warning: {problem}")))
    });
    let problems = problems.chain(status.yielded.iter().map(|yielded| format!("left to others: {yielded}")));
    let problems = problems.chain(status.contested.iter().map(|contested| format!("claimed twice: {contested}")));
    for line in problems.chain(status.faults.iter().map(|fault| format!("fault: {fault}"))) {
        text.push_str(&line);
        text.push('\n');
    }
    if !status.workloads.is_empty() {
        let mut table = Table::new(&["WORKLOAD", "INTERFACE", "STATE", "ATTACHED", "DELIVERY"]);
        for WorkloadState { endpoint, interface, state, attachment, delivery, migration, leaves_for } in
            &status.workloads
        {
            let migration = migration.as_ref().map(|migration| format!(", routes {migration}")).unwrap_or_default();
            let leaves = leaves_for.as_ref().map(|node| format!(", leaves for {node}")).unwrap_or_default();
            let state = format!("{state}{migration}{leaves}");
            let [attachment, delivery] = [attachment, delivery].map(|text| text.as_deref().unwrap_or("-"));
            table.row([endpoint.as_str(), interface, &state, attachment, delivery]);
        }
        text.push('\n');
        text.push_str(&table.render(0));
    }
    if !status.host_endpoints.is_empty() {
        let mut table = Table::new(&["HOST ENDPOINT", "INTERFACES"]);
        for HostEndpointState { endpoint, interfaces, uncovered } in &status.host_endpoints {
            let uncovered = uncovered.iter().map(|name| format!("{name} (not covered: no Ethernet)"));
            let all: Vec<String> = interfaces.iter().cloned().chain(uncovered).collect();
            table.row([endpoint.clone(), if all.is_empty() { "-".to_owned() } else { all.join(", ") }]);
        }
        text.push('\n');
        text.push_str(&table.render(0));
    }
    for (title, counts) in [("COUNTED", &status.events), ("DROPPED BECAUSE", &status.drops)] {
        if counts.is_empty() {
            continue;
        }
        let mut table = Table::new(&[title, ">PACKETS"]);
        for (name, packets) in counts {
            table.row([name.clone(), packets.to_string()]);
        }
        text.push('\n');
        text.push_str(&table.render(0));
    }
    text
}

fn nat_line(nat: &NatState) -> String {
    let NatState { table, networks, installed } = nat;
    let missing = if *installed { "" } else { ", MISSING" };
    match networks.as_deref() {
        None => format!("table inet {table}{missing}"),
        Some([]) => format!("off; table inet {table} stays for connections translated before{missing}"),
        Some(networks) => {
            let networks: Vec<String> = networks.iter().map(ToString::to_string).collect();
            format!("{}, table inet {table}{missing}", networks.join(", "))
        }
    }
}

fn load_line(load: &LastLoad) -> String {
    let LastLoad { ok, time, errors, warnings } = load;
    if *ok {
        format!("accepted {time}, {} warnings", warnings.len())
    } else {
        format!("REFUSED {time}, {} errors: what was in force before still is", errors.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::status::Problem;

    #[test]
    fn a_refused_load_is_seen_at_once() {
        let text = render(&Status {
            pid: Some(7),
            last_load: Some(LastLoad { errors: vec![Problem::general("bad")], ..LastLoad::default() }),
            workloads: vec![WorkloadState { endpoint: "a/b".into(), state: "up".into(), ..WorkloadState::default() }],
            ..Status::default()
        });
        assert!(text.contains("last load   REFUSED"), "{text}");
        assert!(text.contains("\nerror: bad\n"), "{text}");
        assert!(text.contains("a/b"), "{text}");
    }
}
