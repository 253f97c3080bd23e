//! `workloads`.

use std::{net::IpAddr, process::ExitCode};

use calico_ebpf_common::abi::workload_flags;
use serde::Serialize;

use super::{context::Context, output, table::Table};
use crate::observe::{
    inventory::{self, Local},
    status::MigrationState,
};

/// A local workload, as printed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    endpoint: String,
    pod: Option<String>,
    interface: String,
    ifindex: Option<u32>,
    addresses: Vec<IpAddr>,
    mac: Option<String>,
    mtu: u32,
    slot: u32,
    /// Policy is in force and packets pass.
    active: bool,
    /// Packets go straight into the workload's namespace.
    fast_path: bool,
    /// Where it comes from another node: how far that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    migration: Option<MigrationState>,
}

impl From<Local> for Line {
    fn from(local: Local) -> Self {
        let Local { slot, endpoint, pod, interface, addresses, workload, policy: _, migration } = local;
        let flag = |flag| workload.flags & flag != 0;
        Self {
            endpoint,
            pod,
            interface,
            ifindex: Some(workload.ifindex).filter(|index| *index != 0),
            addresses,
            mac: Some(workload.mac).filter(|mac| *mac != [0; 6]).map(mac_text),
            mtu: workload.mtu,
            slot,
            active: flag(workload_flags::ACTIVE),
            fast_path: flag(workload_flags::PEER),
            migration: MigrationState::of(migration.as_ref()),
        }
    }
}

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let lines: Vec<Line> = inventory::workloads(&context.view()?)?.into_iter().map(Line::from).collect();
    output::result(context.format, &lines, |lines| render(lines))?;
    Ok(ExitCode::SUCCESS)
}

fn render(lines: &[Line]) -> String {
    let mut table = Table::new(&["WORKLOAD", "INTERFACE", "ADDRESSES", "MAC", ">MTU", "STATE"]);
    for line in lines {
        let addresses: Vec<String> = line.addresses.iter().map(ToString::to_string).collect();
        let state = match (line.ifindex, line.active, line.fast_path) {
            (None, ..) => "no interface yet",
            (_, false, _) => "drops everything",
            (_, _, true) => "active",
            (_, _, false) => "active, by way of the stack",
        };
        table.row([
            line.endpoint.clone(),
            line.interface.clone(),
            addresses.join(","),
            line.mac.clone().unwrap_or_else(|| "-".into()),
            if line.mtu == 0 { "-".into() } else { line.mtu.to_string() },
            match &line.migration {
                Some(migration) => format!("{state}, routes {migration}"),
                None => state.to_owned(),
            },
        ]);
    }
    table.render(0)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
