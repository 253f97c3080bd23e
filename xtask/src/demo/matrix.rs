//! Who reaches whom: by real connections, beside what the policy says.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use serde_json::json;

use super::{OUTSIDE_PORT, WORKLOADS, program::Program};
use crate::lab::{self, HOST4, HOST6, Lab, Namespace, OUTSIDE4, OUTSIDE6};

/// How long a connection may take before it counts as refused by policy.
const PATIENCE: Duration = Duration::from_millis(400);

/// One who opens connections, and maybe accepts them on a port.
struct Party<'a> {
    name: &'a str,
    /// As `explain` takes it.
    who: [String; 2],
    namespace: &'a Namespace,
    addresses: [IpAddr; 2],
    port: Option<u16>,
}

/// Rows of openers, columns of servers; each cell holds both families, IPv4 first. `None` for oneself.
pub(super) struct Matrix {
    columns: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    cells: Vec<Option<[Cell; 2]>>,
}

#[derive(Clone, Copy)]
struct Cell {
    real: bool,
    policy: bool,
}

impl Matrix {
    /// Tries all connections at once.
    pub(super) fn measure(lab: &Lab, program: &Program) -> anyhow::Result<Self> {
        let parties = parties(lab);
        let servers: Vec<_> = parties.iter().filter_map(|party| party.port.map(|port| (party, port))).collect();
        let mut pairs = Vec::new();
        let mut queries = Vec::new();
        for from in &parties {
            for (to, port) in servers.iter().filter(|(to, _)| to.name != from.name) {
                for family in 0..2 {
                    pairs.push((from.namespace, SocketAddr::new(to.addresses[family], *port)));
                    queries.push(json!({
                        "from": from.who[family], "to": to.addresses[family].to_string(), "protocol": "TCP", "port": port,
                    }));
                }
            }
        }
        let policy = program.explain(&queries)?;
        let real: Vec<anyhow::Result<bool>> = thread::scope(|scope| {
            let probe = |(namespace, to): (&Namespace, SocketAddr)| lab::tcp(namespace, to, PATIENCE);
            let threads: Vec<_> = pairs.iter().map(|pair| scope.spawn(move || probe(*pair))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a probe failed"))?).collect()
        });
        let mut outcomes = real.into_iter().zip(policy);
        let mut next = || -> anyhow::Result<Cell> {
            let (real, policy) = outcomes.next().ok_or_else(|| anyhow!("explain left out an answer"))?;
            Ok(Cell { real: real?, policy })
        };
        let mut rows = Vec::new();
        for from in &parties {
            let mut cells = Vec::new();
            for (to, _) in &servers {
                cells.push(if to.name == from.name { None } else { Some([next()?, next()?]) });
            }
            rows.push(Row { name: from.name.to_owned(), cells });
        }
        let columns = servers.iter().map(|(to, port)| format!("{}:{port}", to.name)).collect();
        Ok(Self { columns, rows })
    }

    fn differences(&self) -> usize {
        let cells = self.rows.iter().flat_map(|row| row.cells.iter().flatten().flatten());
        cells.filter(|cell| cell.real != cell.policy).count()
    }
}

fn parties(lab: &Lab) -> Vec<Party<'_>> {
    let mut all = Vec::new();
    for (workload, (_, port)) in lab.workloads.iter().zip(WORKLOADS) {
        let addresses = workload.addresses();
        let who = addresses.map(|address| address.to_string());
        all.push(Party { name: &workload.name, who, namespace: &workload.namespace, addresses, port: Some(port) });
    }
    let outside: [IpAddr; 2] = [OUTSIDE4.into(), OUTSIDE6.into()];
    let who = outside.map(|address| address.to_string());
    all.push(Party { name: "outside", who, namespace: &lab.outside, addresses: outside, port: Some(OUTSIDE_PORT) });
    let host: [IpAddr; 2] = [HOST4.into(), HOST6.into()];
    let who = ["host".to_owned(), "host".to_owned()];
    all.push(Party { name: "host", who, namespace: &lab.host, addresses: host, port: None });
    all
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = |f: &mut fmt::Formatter<'_>, first: &str| {
            write!(f, "{first:<12}")?;
            self.columns.iter().try_for_each(|column| write!(f, "{column:<12}"))
        };
        header(f, "connections")?;
        write!(f, "| ")?;
        header(f, "policy")?;
        writeln!(f)?;
        for row in &self.rows {
            let half = |f: &mut fmt::Formatter<'_>, side: fn(&Cell) -> bool| {
                write!(f, "{:<12}", row.name)?;
                row.cells.iter().try_for_each(|cell| {
                    write!(f, "{:<12}", cell.as_ref().map_or_else(|| ".".into(), |both| text(both, side)))
                })
            };
            half(f, |cell| cell.real)?;
            write!(f, "| ")?;
            half(f, |cell| cell.policy)?;
            writeln!(f)?;
        }
        match self.differences() {
            0 => writeln!(f, "(4: over IPv4, 6: over IPv6, -: not; all as the policy says)"),
            count => writeln!(f, "(4: over IPv4, 6: over IPv6, -: not; {count} NOT as the policy says)"),
        }
    }
}

fn text(both: &[Cell; 2], side: fn(&Cell) -> bool) -> String {
    let [v4, v6] = both;
    format!("{} {}", if side(v4) { '4' } else { '-' }, if side(v6) { '6' } else { '-' })
}
