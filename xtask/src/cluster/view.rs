//! A cluster as any process sees it that knows its name: where everything is, and how to ask it.

use std::{net::IpAddr, path::PathBuf};

use anyhow::Context as _;

use super::{
    bird,
    plan::{Options, PORT, Plan, Role, Speaker},
    router::{Control, Daemon},
};
use crate::{
    lab::{self, Namespace},
    matrix::{Matrix, Party},
    program::Instance,
};

/// Whose routes are looked at, as `ip` says it: ours, BIRD's, those of FRR's bgpd and staticd.
const PROTOCOLS: [&str; 6] = ["80", "bird", "bgp", "186", "196", "static"];

/// Names and places of a cluster.
#[derive(Clone, Debug)]
pub struct View {
    name: String,
    /// What was asked for.
    pub options: Options,
    /// What it consists of.
    pub plan: Plan,
}

impl View {
    /// Of the cluster called `name`.
    ///
    /// # Errors
    /// See [`Plan::new`].
    pub fn new(name: String, options: Options) -> anyhow::Result<Self> {
        Ok(Self { name, options, plan: Plan::new(&options)? })
    }

    /// The prefix of all that belongs to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are: configuration, logs, sockets.
    #[must_use]
    pub fn base(&self) -> PathBuf {
        std::env::temp_dir().join(&self.name)
    }

    /// The resources of all hosts.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.base().join("config")
    }

    /// Where a program of `who` logs.
    #[must_use]
    pub fn log(&self, who: &str, program: &str) -> PathBuf {
        self.base().join(format!("{who}.{program}.log"))
    }

    /// The speaker of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn speaker(&self, name: &str) -> anyhow::Result<&Speaker> {
        let found = self.plan.speakers.iter().find(|speaker| speaker.name == name);
        found.with_context(|| format!("the cluster has no {name}"))
    }

    /// The name of the namespace of a speaker or workload.
    ///
    /// # Errors
    /// There is none.
    pub fn netns(&self, who: &str) -> anyhow::Result<String> {
        if self.plan.workloads.iter().any(|workload| workload.name == who) {
            return Ok(format!("{}-w-{who}", self.name));
        }
        self.speaker(who).map(|speaker| format!("{}-{}", self.name, speaker.name))
    }

    /// The namespace of a speaker or workload.
    ///
    /// # Errors
    /// There is none.
    pub fn namespace(&self, who: &str) -> anyhow::Result<Namespace> {
        self.netns(who).map(Namespace::of_others)
    }

    /// The addresses of a speaker or workload, IPv4 first; without IPv6 where the cluster has none.
    ///
    /// # Errors
    /// There is none.
    pub fn addresses(&self, who: &str) -> anyhow::Result<Vec<IpAddr>> {
        let workload = self.plan.workloads.iter().find(|workload| workload.name == who);
        let both = match workload {
            Some(workload) => [workload.v4.into(), workload.v6.into()],
            None => self.speaker(who)?.addresses(),
        };
        Ok(both.into_iter().filter(|address| address.is_ipv4() || self.options.ipv6).collect())
    }

    /// `calico-ebpf` of a host.
    #[must_use]
    pub fn instance(&self, host: &Speaker) -> Instance {
        Instance {
            node: host.name.clone(),
            netns: format!("{}-{}", self.name, host.name),
            pin_dir: lab::pin_dir(&format!("{}-{}", self.name, host.name)),
            config: self.config(),
            uplink: host.ports.first().map(|port| port.interface.clone()).unwrap_or_default(),
        }
    }

    /// The routing daemon that a speaker has.
    #[must_use]
    pub fn daemon(&self, speaker: &Speaker) -> Daemon {
        if speaker.role == Role::Host { self.options.bgp } else { Daemon::Bird2 }
    }

    /// The routing daemon of a speaker, to be asked.
    #[must_use]
    pub fn router(&self, speaker: &Speaker) -> Control {
        let netns = format!("{}-{}", self.name, speaker.name);
        self.daemon(speaker).control(&self.base(), &speaker.name, &netns)
    }

    /// BIRD of a speaker that has one.
    #[must_use]
    pub fn bird(&self, speaker: &str) -> bird::Control {
        bird::Control::new(self.options.bgp == Daemon::Bird3 && speaker.starts_with("host"), &self.base(), speaker)
    }

    /// What is missing until all sessions are up and BGP has told everybody the ways to all workloads; nothing: it has
    /// converged.
    ///
    /// # Errors
    /// A namespace is gone.
    pub fn not_converged(&self) -> anyhow::Result<Vec<String>> {
        let mut missing = Vec::new();
        for speaker in &self.plan.speakers {
            match self.router(speaker).sessions() {
                Ok(sessions) => {
                    let down = sessions.iter().filter(|session| !session.established);
                    missing.extend(down.map(|session| {
                        format!("{}: session {} is not up: {}", speaker.name, session.name, session.info)
                    }));
                }
                Err(error) => missing.push(format!("{}: no routing daemon: {error:#}", speaker.name)),
            }
        }
        for speaker in self.plan.speakers.iter().filter(|speaker| speaker.role != Role::Reflector) {
            let known = self.destinations(&speaker.name)?;
            for workload in &self.plan.workloads {
                let absent = |address: &IpAddr| !known.iter().any(|(net, length)| covers(*net, *length, *address));
                let absent = self.addresses(&workload.name)?.into_iter().filter(absent);
                missing.extend(
                    absent.map(|address| format!("{}: no route to {address} ({})", speaker.name, workload.name)),
                );
            }
        }
        Ok(missing)
    }

    /// The routes of a speaker to workloads, its own or its routing daemon's, as `ip` prints them.
    ///
    /// # Errors
    /// The namespace is gone.
    pub fn routes(&self, speaker: &str) -> anyhow::Result<Vec<String>> {
        let namespace = self.namespace(speaker)?;
        let families: &[&str] = if self.options.ipv6 { &["-4", "-6"] } else { &["-4"] };
        let mut routes = Vec::new();
        for family in families {
            let text = namespace.ip(&format!("{family} -d route show"))?;
            let mut ours = false;
            for line in text.lines() {
                // The lines of a route with several next hops are indented.
                if !line.starts_with(char::is_whitespace) {
                    ours = PROTOCOLS.iter().any(|protocol| line.contains(&format!("proto {protocol} ")));
                }
                if ours {
                    routes.push(line.trim_end().to_owned());
                }
            }
        }
        Ok(routes)
    }

    /// Destinations of [`View::routes`].
    fn destinations(&self, speaker: &str) -> anyhow::Result<Vec<(IpAddr, u8)>> {
        let routes = self.routes(speaker)?;
        Ok(routes.iter().filter(|route| !route.contains("blackhole")).filter_map(|route| destination(route)).collect())
    }

    /// Tries all connections between workloads, and to them from the hosts and from outside.
    ///
    /// # Errors
    /// See [`Matrix::measure`].
    pub fn matrix(&self) -> anyhow::Result<Matrix> {
        let instances: Vec<(&Speaker, Instance)> = self.plan.hosts().map(|host| (host, self.instance(host))).collect();
        let instance =
            |host: &str| instances.iter().find(|(speaker, _)| speaker.name == host).map(|(_, instance)| instance);
        let any = instances.first().map(|(_, instance)| instance).context("no host")?;
        let names = self.plan.workloads.iter().map(|workload| (&*workload.name, Some(&*workload.host)));
        let outside = [("outside", None)].into_iter();
        let hosts = self.plan.hosts().map(|host| (&*host.name, Some(&*host.name)));
        let everybody: Vec<(&str, Option<&str>, Namespace)> = names
            .chain(outside)
            .chain(hosts)
            .map(|(name, host)| Ok((name, host, self.namespace(name)?)))
            .collect::<anyhow::Result<_>>()?;
        let mut parties = Vec::new();
        for (name, host, namespace) in &everybody {
            let is_host = *host == Some(*name);
            parties.push(Party {
                name,
                namespace,
                addresses: self.addresses(name)?,
                port: (!is_host).then_some(PORT),
                node: host.and_then(instance).unwrap_or(any),
                is_host,
            });
        }
        Matrix::measure(&parties)
    }
}

/// The destination of a line of `ip -d route`, which begins with the route's type.
fn destination(route: &str) -> Option<(IpAddr, u8)> {
    route.split_whitespace().nth(1).and_then(|word| {
        let (address, length) = word.split_once('/').map_or((word, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().ok()?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        Some((address, length.map_or(Some(whole), |length| length.parse().ok())?))
    })
}

fn covers(net: IpAddr, length: u8, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((net, width), (address, other)) = (bits(net), bits(address));
    width == other && (length == 0 || (net ^ address) >> (128 - u32::from(length)) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_of_routes() {
        let of = |text: &str| destination(text).map(|(net, length)| format!("{net}/{length}"));
        assert_eq!(of("unicast 10.65.2.0/26 via 192.0.2.12 dev up0 proto bird"), Some("10.65.2.0/26".to_owned()));
        assert_eq!(of("unicast 10.65.1.1 dev caliw1 proto 80 scope link"), Some("10.65.1.1/32".to_owned()));
        assert_eq!(of("unicast default via 192.0.2.1"), None);
        assert_eq!(of("\tnexthop dev up0"), None);
    }

    #[test]
    fn networks_cover_addresses() {
        let holds = |net: &str, length, address: &str| {
            covers(net.parse().expect("a net"), length, address.parse().expect("an address"))
        };
        assert!(holds("10.65.2.0", 26, "10.65.2.63") && !holds("10.65.2.0", 26, "10.65.2.64"));
        assert!(holds("fd00:65:0:2::", 122, "fd00:65:0:2::1") && !holds("fd00:65:0:2::", 122, "fd00:65:0:3::1"));
        assert!(holds("10.0.0.1", 32, "10.0.0.1") && !holds("10.0.0.1", 32, "10.0.0.2"));
        assert!(!holds("::", 1, "10.0.0.1"));
    }
}
