//! A cluster under test: many hosts with `calico-ebpf` and a routing daemon, and one directory of resources.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use xtask::{
    cluster::{Cluster, plan::Options, router::Daemon},
    lab::{self, Namespace},
};

use crate::{Protocol, eventually, resources};

/// How long BGP may take on a loaded machine.
pub const CONVERGENCE: Duration = Duration::from_secs(40);
const PATIENCE: Duration = Duration::from_secs(5);
const DENIED: Duration = Duration::from_millis(400);

/// Three hosts on one segment, both address families.
pub const MESH: Options =
    Options { hosts: 3, workloads: 3, route_reflector: false, ipv6: true, racks: false, bgp: Daemon::Bird2 };

/// A cluster under test. Everything ends with it.
#[derive(Debug)]
pub struct Hosts {
    /// The cluster.
    pub cluster: Cluster,
}

impl Hosts {
    /// Starts a cluster without policy, and waits until everybody knows the ways. `None` where a routing daemon is missing (a
    /// virtual machine has none): then there is nothing to find out.
    #[must_use]
    pub fn start(options: Options) -> Option<Self> {
        if !options.bgp.is_here() {
            println!("\nfact: no {:?}", options.bgp);
            return None;
        }
        let mut hosts = Self { cluster: Cluster::new(options).expect("a cluster (as root?)") };
        hosts.cluster.start().expect("everything starts");
        hosts.converge();
        Some(hosts)
    }

    /// Waits until everybody knows the ways to all workloads.
    pub fn converge(&self) {
        let converged = self.cluster.converge(CONVERGENCE);
        converged.unwrap_or_else(|error| panic!("{error:#}\n{}", self.describe()));
    }

    /// Puts policies in force on all hosts.
    pub fn enforce(&self, policies: &[String]) {
        self.cluster.write("policy.yaml", &resources::documents(policies)).expect("writes");
        self.reload();
    }

    /// Has all hosts that run read the files, and returns when what they say is in force.
    pub fn reload(&self) {
        for host in self.cluster.view.plan.hosts() {
            if let Ok(program) = self.cluster.program(&host.name) {
                let reloaded = program.instance.query(&["reload"]);
                reloaded.unwrap_or_else(|error| panic!("{error:#}\n{}", self.describe()));
            }
        }
    }

    /// The namespace of a workload or speaker.
    #[must_use]
    pub fn namespace(&self, who: &str) -> Namespace {
        self.cluster.view.namespace(who).expect("there is one")
    }

    /// Its addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self, who: &str) -> Vec<IpAddr> {
        self.cluster.view.addresses(who).expect("there is one")
    }

    /// Whether `from` reaches one address.
    #[must_use]
    pub fn reaches(&self, from: &str, to: IpAddr, protocol: Protocol, patience: Duration) -> bool {
        let namespace = self.namespace(from);
        let reached = match protocol {
            Protocol::Tcp(port) => lab::tcp(&namespace, SocketAddr::new(to, port), patience),
            Protocol::Udp(port) => lab::udp(&namespace, SocketAddr::new(to, port), patience),
            Protocol::Icmp => lab::ping(&namespace, to, patience),
        };
        reached.expect("a probe")
    }

    /// `from` must reach `to` over all families.
    pub fn allowed(&self, from: &str, to: &str, protocol: Protocol) {
        for address in self.addresses(to) {
            let reached = self.reaches(from, address, protocol, PATIENCE);
            assert!(reached, "{from} must reach {to} ({address}) by {protocol:?}\n{}", self.describe());
        }
    }

    /// `from` must not reach `to` over any family.
    pub fn denied(&self, from: &str, to: &str, protocol: Protocol) {
        for address in self.addresses(to) {
            let reached = self.reaches(from, address, protocol, DENIED);
            assert!(!reached, "{from} must not reach {to} ({address}) by {protocol:?}\n{}", self.describe());
        }
    }

    /// Waits until `from` reaches `to` over all families.
    pub fn soon_allowed(&self, from: &str, to: &str, protocol: Protocol) {
        for address in self.addresses(to) {
            let what = format!("{from} must reach {to} ({address}) by {protocol:?}\n{}", self.describe());
            eventually(&what, CONVERGENCE, || self.reaches(from, address, protocol, DENIED));
        }
    }

    /// What helps to understand a failure.
    #[must_use]
    pub fn describe(&self) -> String {
        let view = &self.cluster.view;
        let mut text = String::new();
        for speaker in &view.plan.speakers {
            let routes = view.routes(&speaker.name).unwrap_or_default().join("\n");
            let router = view.router(speaker).describe().unwrap_or_else(|error| error.to_string());
            text.push_str(&format!("--- {}\n{routes}\n{router}\n", speaker.name));
        }
        for host in view.plan.hosts() {
            let instance = view.instance(host);
            let status = instance.query(&["status"]).unwrap_or_else(|error| error.to_string());
            let log = std::fs::read_to_string(view.log(&host.name, "calico-ebpf")).unwrap_or_default();
            text.push_str(&format!("--- {}\n{status}\n{log}\n", host.name));
        }
        text
    }
}
