//! Every argument of every command.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

use crate::dataplane::instance::DEFAULT_PIN_DIR;

/// The Calico data path in eBPF: policy and routes for the workloads of this host, from YAML files.
#[derive(Debug, Parser)]
#[command(name = "calico-ebpf", version, propagate_version = true, args_override_self = true, max_term_width = 100)]
pub(super) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
    /// What every command takes.
    #[command(flatten)]
    pub(super) common: Common,
}

/// Options that every command takes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Common options")]
pub(super) struct Common {
    /// Whose workloads are local: the name in their `spec.node` [default: the host name in lower case]
    #[arg(long, value_name = "NAME", global = true, value_parser = non_empty)]
    pub(super) node: Option<String>,
    /// Work in this network namespace (and enter nothing else): a name under /run/netns, or a path
    #[arg(long, value_name = "NAME|PATH", global = true, value_parser = non_empty)]
    pub(super) netns: Option<String>,
    /// An interface towards other hosts; repeatable, at most 8 [default: the devices of the default routes]
    #[arg(long = "uplink", value_name = "IFACE", global = true, value_parser = interface_name)]
    pub(super) uplinks: Vec<String>,
    /// Where the data path is pinned in bpffs; it names the instance
    #[arg(long, value_name = "DIR", global = true, default_value = DEFAULT_PIN_DIR)]
    pub(super) pin_dir: PathBuf,
    /// How to print results
    #[arg(long, value_name = "FORMAT", global = true, value_enum, default_value_t)]
    pub(super) output: Format,
    /// What to log: error, warn, info, debug, trace, or filters like `info,calico_ebpf_user::agent=debug`
    #[arg(long, value_name = "LEVEL", global = true, default_value = "info", value_parser = log_filter)]
    pub(super) log_level: String,
    /// How to log
    #[arg(long, value_name = "FORMAT", global = true, value_enum, default_value_t)]
    pub(super) log_format: LogFormat,
}

/// The form of results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// The form of logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One object a line
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Load, attach, program routes, then stay: follow file changes, link and route events
    Run(Run),
    /// Check the files offline, without root
    Validate(Validate),
    /// Judge a flow offline, without root: what decides at both ends
    Explain(Explain),
    /// What a routing daemon needs to know
    Bgp(Bgp),
    /// What is in force, and whether the last files were accepted
    Status,
    /// The local workloads, their interfaces and addresses
    Workloads,
    /// The rules that judge each local workload, in order, with hit counts
    Rules(Rules),
    /// The routes of the local workloads
    Routes,
    /// The live connections
    Conntrack,
    /// Who talks to whom: both ends, the verdict and what decided, packets and bytes
    Flows(Flows),
    /// What a reload would change: policy, workloads, routes, connections
    Diff(Diff),
    /// Read the files again now, and return when what was on disk at the call is in force
    Reload(Reload),
    /// Keep what `reload --confirm` or `run --confirm` put in force
    Confirm,
    /// Remove everything that this program ever installed on this host, and nothing else
    Purge,
    /// Say what on this host stops or slows the data path, and what to do about it
    Doctor,
}

/// `run`.
#[derive(Args, Clone, Debug)]
pub(super) struct Run {
    /// Files, or directories with files
    #[arg(long, value_name = "PATH", required = true, num_args = 1.., action = ArgAction::Append)]
    pub(super) config: Vec<PathBuf>,
    /// Where to serve /metrics, /liveness and /readiness, or `off` [default: 127.0.0.1:9091, if it is free]
    #[arg(long, value_name = "ADDR:PORT|off")]
    pub(super) listen: Option<Listen>,
    /// Apply, and leave the data path working without the process
    #[arg(long)]
    pub(super) once: bool,
    /// Follow changes of the files
    #[arg(long, value_name = "on|off", value_enum, default_value_t)]
    pub(super) watch: Switch,
    /// Take back what the start puts in force unless `confirm` follows within so many seconds: what was in force before
    /// comes back, or if that was nothing, host endpoints are open again
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["once", "dry_run"], value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(super) confirm: Option<u32>,
    /// Print what would be done, and touch nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Connections to keep track of, for each address family; an existing table keeps its size until `purge`
    #[arg(long, value_name = "N", default_value_t = 524_288, value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    pub(super) connections: u32,
}

/// `validate`.
#[derive(Args, Clone, Debug)]
pub(super) struct Validate {
    /// Files, or directories with files
    #[arg(value_name = "PATH", required = true)]
    pub(super) paths: Vec<PathBuf>,
    /// Fail on warnings too
    #[arg(long)]
    pub(super) strict: bool,
}

/// `bgp`.
#[derive(Args, Clone, Debug)]
pub(super) struct Bgp {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: BgpCommand,
}

/// The commands of `bgp`.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum BgpCommand {
    /// Print a routing daemon's configuration for this node, from BGPConfiguration, BGPPeer, BGPFilter, IPPool and Node
    Config(BgpConfig),
}

/// `bgp config`.
#[derive(Args, Clone, Debug)]
pub(super) struct BgpConfig {
    /// Files, or directories with files
    #[arg(long, value_name = "PATH", required = true, num_args = 1.., action = ArgAction::Append)]
    pub(super) config: Vec<PathBuf>,
    /// The routing daemon
    #[arg(long, value_name = "DAEMON", value_enum, default_value_t)]
    pub(super) flavour: Flavour,
    /// After how many seconds without a sign of life a peer is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 90, value_parser = clap::value_parser!(u16).range(3..))]
    pub(super) hold_time: u16,
}

/// A routing daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Flavour {
    /// BIRD 2 and 3
    #[default]
    Bird,
    /// FRR
    Frr,
    /// GoBGP, over FRR's zebra
    Gobgp,
    /// FRR's zebra and staticd under GoBGP
    GobgpZebra,
}

/// `flows`.
#[derive(Args, Clone, Debug)]
pub(super) struct Flows {
    /// Go on showing what is new, until Ctrl-C
    #[arg(long)]
    pub(super) follow: bool,
    /// Only what is dropped
    #[arg(long)]
    pub(super) denied: bool,
    /// Only what was opened by: NAMESPACE/NAME of a workload, NAMESPACE/POD, an IP address, or `host`
    #[arg(long, value_name = "WHO")]
    pub(super) from: Option<String>,
    /// Only what was opened to
    #[arg(long, value_name = "WHO")]
    pub(super) to: Option<String>,
}

/// `diff`.
#[derive(Args, Clone, Debug)]
pub(super) struct Diff {
    /// Files, or directories with files
    #[arg(long, value_name = "PATH", required = true, num_args = 1.., action = ArgAction::Append)]
    pub(super) config: Vec<PathBuf>,
}

/// `explain`.
#[derive(Args, Clone, Debug)]
pub(super) struct Explain {
    /// Files, or directories with files
    #[arg(long, value_name = "PATH", required_unless_present = "live", num_args = 1.., action = ArgAction::Append)]
    pub config: Vec<PathBuf>,
    /// Ask the data path that is loaded: a packet goes through its program and leaves no trace. With --config, say where
    /// the files differ
    #[arg(long)]
    pub live: bool,
    /// Who opens the connection: NAMESPACE/NAME of a workload, NAMESPACE/POD, an IP address, or `host`
    #[arg(long, value_name = "WHO", required_unless_present = "queries", conflicts_with = "queries")]
    from: Option<String>,
    /// To whom
    #[arg(long, value_name = "WHO", required_unless_present = "queries", conflicts_with = "queries")]
    to: Option<String>,
    /// A name as in policies, or a number
    #[arg(long, value_name = "P", required_unless_present = "queries", conflicts_with = "queries")]
    protocol: Option<String>,
    /// The port it is opened to
    #[arg(long, value_name = "N", conflicts_with = "queries")]
    pub port: Option<u16>,
    /// The port it is opened from [default: 49152]
    #[arg(long, value_name = "N", conflicts_with = "queries")]
    pub source_port: Option<u16>,
    /// [default: echo request]
    #[arg(long, value_name = "T", conflicts_with = "queries")]
    pub icmp_type: Option<u8>,
    /// [default: 0]
    #[arg(long, value_name = "C", conflicts_with = "queries", requires = "icmp_type")]
    pub icmp_code: Option<u8>,
    /// The interface of the host that it passes, where that is not the only host endpoint
    #[arg(long, value_name = "NAME", conflicts_with = "queries")]
    pub interface: Option<String>,
    /// Many flows: a file with one JSON object a line, `-` for standard input; one answer a line comes back
    #[arg(long, value_name = "FILE")]
    pub queries: Option<PathBuf>,
}

impl Explain {
    /// `--from`, `--to` and `--protocol`, unless `--queries` brings them.
    #[must_use]
    pub(super) fn query(&self) -> Option<(&str, &str, &str)> {
        Some((self.from.as_deref()?, self.to.as_deref()?, self.protocol.as_deref()?))
    }
}

/// `rules`.
#[derive(Args, Clone, Debug)]
pub(super) struct Rules {
    /// Only this one: NAMESPACE/NAME of a workload, NAMESPACE/POD, an IP address, or `host`
    #[arg(value_name = "WHO")]
    pub(super) who: Option<String>,
}

/// `reload`.
#[derive(Args, Clone, Debug)]
pub(super) struct Reload {
    /// Bring the old set back unless `confirm` follows within so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(super) confirm: Option<u32>,
}

/// `on` or `off`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Switch {
    /// Yes
    #[default]
    On,
    /// No
    Off,
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listen {
    /// There.
    At(SocketAddr),
    /// Nowhere.
    Off,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse()
            .map(Self::At)
            .map_err(|_| "an IP address with a port is wanted, like 127.0.0.1:9091 or [::1]:9091, or `off`".into())
    }
}

fn non_empty(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.into()) }
}

/// The kernel's rule for names of devices (`dev_valid_name`).
fn interface_name(text: &str) -> Result<String, String> {
    let wrong = text.is_empty()
        || text.len() > 15
        || text == "."
        || text == ".."
        || text.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if wrong { Err("not a name that an interface can have".into()) } else { Ok(text.into()) }
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::filter::Builder::default().parse(text) {
        Ok(_) if text.is_empty() => Err("must not be empty".into()),
        // A misspelt level is a target to the parser, of which nothing is ever logged.
        Ok(_) => match text.split(',').find(|part| !part.contains('=') && part.parse::<LevelFilter>().is_err()) {
            Some(part) => Err(format!("\"{part}\" is no level: error, warn, info, debug, trace, off, or TARGET=LEVEL")),
            None => Ok(text.into()),
        },
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn common_options_go_before_and_after_the_command() {
        for line in [["x", "--pin-dir", "/p", "status"], ["x", "status", "--pin-dir", "/p"]] {
            let cli = Cli::try_parse_from(line).expect("valid");
            assert_eq!(cli.common.pin_dir, PathBuf::from("/p"));
        }
    }

    #[test]
    fn config_takes_several_paths_and_repeats() {
        let cli = Cli::try_parse_from(["x", "run", "--config", "a", "b", "--config", "c", "--once"]).expect("valid");
        let Command::Run(run) = cli.command else { panic!("not run") };
        assert_eq!(run.config, ["a", "b", "c"].map(PathBuf::from));
        assert!(run.once);
    }

    #[test]
    fn wrong_usage_is_exit_code_2() {
        for line in [
            &["x"][..],
            &["x", "run"],
            &["x", "status", "--uplink", "a/b"],
            &["x", "run", "--config", "a", "--listen", "localhost:9091"],
            &["x", "reload", "--confirm", "0"],
            &["x", "--log-level", "=", "status"],
            &["x", "--log-level", "warning", "status"],
            &["x", "--log-level", "info,aya=loud", "status"],
        ] {
            let error = Cli::try_parse_from(line).expect_err("must be refused");
            assert_eq!(error.exit_code(), 2, "{line:?}");
        }
    }
}
