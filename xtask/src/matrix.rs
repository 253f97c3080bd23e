//! Who reaches whom: by real connections, beside what the policy says.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::anyhow;
use serde_json::json;

use crate::{
    lab::{self, Namespace},
    program::Instance,
};

/// How long a connection may take before it counts as refused by policy.
const PATIENCE: Duration = Duration::from_millis(400);
/// How long one may take that policy allows and that did not come about in that time: enough for a SYN sent again after 1 s.
const SECOND_PATIENCE: Duration = Duration::from_secs(3);
/// How many are tried at once: more, and the machine is what refuses them.
const AT_ONCE: usize = 48;

/// One who opens connections, and maybe accepts them on a port.
#[derive(Debug)]
pub struct Party<'a> {
    /// How it is shown.
    pub name: &'a str,
    /// Where it lives.
    pub namespace: &'a Namespace,
    /// One for each family, the same ones for all parties.
    pub addresses: Vec<IpAddr>,
    /// Where it serves, if it does.
    pub port: Option<u16>,
    /// The instance of its node, whose files say what is allowed.
    pub node: &'a Instance,
    /// It is that node itself.
    pub is_host: bool,
}

impl Party<'_> {
    /// As `explain` takes it when it talks to `to`.
    fn who(&self, to: &Party<'_>, family: usize) -> String {
        if self.is_host && self.node.node == to.node.node {
            "host".to_owned()
        } else {
            self.addresses[family].to_string()
        }
    }
}

/// Rows of openers, columns of servers; each cell holds all families. `None` for oneself.
#[derive(Debug)]
pub struct Matrix {
    families: Vec<char>,
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    cells: Vec<Option<Vec<Cell>>>,
}

#[derive(Clone, Copy, Debug)]
struct Cell {
    real: bool,
    policy: bool,
}

impl Matrix {
    /// Tries all connections, many at once.
    ///
    /// # Errors
    /// The files are refused, or a namespace is gone.
    pub fn measure(parties: &[Party<'_>]) -> anyhow::Result<Self> {
        let servers: Vec<_> = parties.iter().filter_map(|party| party.port.map(|port| (party, port))).collect();
        let families = 0..parties.first().map_or(0, |party| party.addresses.len());
        let mut pairs = Vec::new();
        let mut policy = Vec::new();
        for from in parties {
            let mut queries = Vec::new();
            for (to, port) in servers.iter().filter(|(to, _)| to.name != from.name) {
                for family in families.clone() {
                    pairs.push((from.namespace, SocketAddr::new(to.addresses[family], *port)));
                    queries.push(json!({
                        "from": from.who(to, family), "to": to.addresses[family].to_string(), "protocol": "TCP", "port": port,
                    }));
                }
            }
            policy.extend(from.node.explain(&queries)?);
        }
        let mut real = probe(&pairs, PATIENCE)?;
        // A busy machine is late, too: what should have come about is tried once more.
        let late: Vec<usize> =
            (0..pairs.len()).filter(|&index| policy.get(index) == Some(&true) && !real[index]).collect();
        let again: Vec<_> = late.iter().map(|&index| pairs[index]).collect();
        for (index, came) in late.into_iter().zip(probe(&again, SECOND_PATIENCE)?) {
            real[index] = came;
        }
        let mut outcomes = real.into_iter().zip(policy);
        let mut next = || -> anyhow::Result<Cell> {
            let (real, policy) = outcomes.next().ok_or_else(|| anyhow!("explain left out an answer"))?;
            Ok(Cell { real, policy })
        };
        let mut rows = Vec::new();
        for from in parties {
            let mut cells = Vec::new();
            for (to, _) in &servers {
                let same = to.name == from.name;
                cells.push(if same { None } else { Some(families.clone().map(|_| next()).collect::<Result<_, _>>()?) });
            }
            rows.push(Row { name: from.name.to_owned(), cells });
        }
        let columns = servers.iter().map(|(to, port)| format!("{}:{port}", to.name)).collect();
        let family = |address: &IpAddr| if address.is_ipv4() { '4' } else { '6' };
        let families = parties.first().into_iter().flat_map(|party| &party.addresses).map(family).collect();
        Ok(Self { families, columns, rows })
    }

    /// How many connections were not as the policy says.
    #[must_use]
    pub fn differences(&self) -> usize {
        let cells = self.rows.iter().flat_map(|row| row.cells.iter().flatten().flatten());
        cells.filter(|cell| cell.real != cell.policy).count()
    }

    /// How many connections there were.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.rows.iter().flat_map(|row| row.cells.iter().flatten().flatten()).filter(|cell| cell.real).count()
    }
}

fn probe(pairs: &[(&Namespace, SocketAddr)], patience: Duration) -> anyhow::Result<Vec<bool>> {
    let mut came = Vec::new();
    for some in pairs.chunks(AT_ONCE) {
        let outcomes: anyhow::Result<Vec<bool>> = thread::scope(|scope| {
            let probe = |(namespace, to): (&Namespace, SocketAddr)| lab::tcp(namespace, to, patience);
            let threads: Vec<_> = some.iter().map(|pair| scope.spawn(move || probe(*pair))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a probe failed"))?).collect()
        });
        came.extend(outcomes?);
    }
    Ok(came)
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
                    let text = cell.as_ref().map_or_else(|| ".".to_owned(), |cells| self.text(cells, side));
                    write!(f, "{text:<12}")
                })
            };
            half(f, |cell| cell.real)?;
            write!(f, "| ")?;
            half(f, |cell| cell.policy)?;
            writeln!(f)?;
        }
        let legend = |family: &char| format!("{family}: over IPv{family}, ");
        let legend: String = self.families.iter().map(legend).collect();
        match self.differences() {
            0 => writeln!(f, "({legend}-: not; all as the policy says)"),
            count => writeln!(f, "({legend}-: not; {count} NOT as the policy says)"),
        }
    }
}

impl Matrix {
    fn text(&self, cells: &[Cell], side: fn(&Cell) -> bool) -> String {
        let each = self.families.iter().zip(cells).map(|(family, cell)| if side(cell) { *family } else { '-' });
        each.map(String::from).collect::<Vec<_>>().join(" ")
    }
}
