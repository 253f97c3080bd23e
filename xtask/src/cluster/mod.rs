//! A laboratory of many hosts: network namespaces on common segments, `calico-ebpf` and a routing daemon on each host, one
//! directory of resources for all of them.
//!
//! [`plan`] says what there is, [`view`] where it is; here it is made, and removed when it is dropped.

pub mod bird;
pub mod files;
pub mod frr;
pub mod gobgp;
pub mod keeper;
pub mod migrate;
pub mod plan;
pub mod router;
pub mod view;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use self::{
    bird::Bird,
    plan::{Options, PORT, Role, Speaker},
    router::{Daemon, Router},
    view::View,
};
use crate::{
    cargo,
    lab::{self, Namespace, Server, Workload},
    program::Program,
    project,
};

/// The namespace that joins all others.
const FABRIC: &str = "net";

/// A cluster. It ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// Names and places.
    pub view: View,
    // In the order in which they are to end.
    servers: Vec<Server>,
    programs: BTreeMap<String, Program>,
    routers: BTreeMap<String, Router>,
    /// In the order of the plan.
    pub workloads: Vec<Workload>,
    speakers: BTreeMap<String, Namespace>,
    fabric: Namespace,
}

impl Cluster {
    /// Makes the network and the files of the resources, without policy; nothing runs yet.
    ///
    /// # Errors
    /// Not root, or there is no room for what `options` ask for.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let name = lab::unique_name()?;
        let view = View::new(name.clone(), options)?;
        let mut cluster = Self {
            servers: Vec::new(),
            programs: BTreeMap::new(),
            routers: BTreeMap::new(),
            workloads: Vec::new(),
            speakers: BTreeMap::new(),
            fabric: Namespace::create(format!("{name}-{FABRIC}"))?,
            view,
        };
        fs::create_dir_all(cluster.view.config())?;
        cluster.connect_speakers()?;
        cluster.connect_workloads()?;
        let plan = &cluster.view.plan;
        cluster.write("nodes.yaml", &files::nodes(plan, &options))?;
        cluster.write("bgp.yaml", &files::bgp(plan, &options))?;
        cluster.write("workloads.yaml", &files::workloads(plan, &options, |workload| workload.host.clone()))?;
        Ok(cluster)
    }

    /// Starts everything: the programs of all hosts, routing daemons everywhere, and servers in the workloads and outside.
    ///
    /// # Errors
    /// The files are refused, or a daemon is not installed.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.start_programs()?;
        for speaker in self.view.plan.speakers.clone() {
            self.start_router(&speaker)?;
        }
        let everybody = self.workloads.iter().map(|workload| &workload.namespace).chain(self.speakers.get("outside"));
        self.servers = everybody.map(|namespace| Server::start(namespace, PORT)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Starts `calico-ebpf` on all hosts at once.
    ///
    /// # Errors
    /// One does not get ready.
    pub fn start_programs(&mut self) -> anyhow::Result<()> {
        let started: Vec<anyhow::Result<Program>> = thread::scope(|scope| {
            let view = &self.view;
            let threads: Vec<_> = view.plan.hosts().map(|host| scope.spawn(move || program(view, host))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread failed"))).collect()
        });
        for program in started {
            let program = program?;
            self.programs.insert(program.instance.node.clone(), program);
        }
        Ok(())
    }

    /// Starts `calico-ebpf` on one host.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start_program(&mut self, host: &str) -> anyhow::Result<()> {
        let program = program(&self.view, self.view.speaker(host)?)?;
        self.programs.insert(host.to_owned(), program);
        Ok(())
    }

    /// The program of a host.
    ///
    /// # Errors
    /// It does not run.
    pub fn program(&self, host: &str) -> anyhow::Result<&Program> {
        self.programs.get(host).with_context(|| format!("calico-ebpf of {host} does not run"))
    }

    /// Takes the program of a host out, to be ended in some way.
    ///
    /// # Errors
    /// It does not run.
    pub fn take_program(&mut self, host: &str) -> anyhow::Result<Program> {
        self.programs.remove(host).with_context(|| format!("calico-ebpf of {host} does not run"))
    }

    /// The routing daemon of a speaker.
    ///
    /// # Errors
    /// It does not run.
    pub fn router(&mut self, speaker: &str) -> anyhow::Result<&mut Router> {
        self.routers.get_mut(speaker).with_context(|| format!("{speaker} has no routing daemon"))
    }

    /// BIRD of a speaker that has one.
    ///
    /// # Errors
    /// It does not run.
    pub fn bird(&mut self, speaker: &str) -> anyhow::Result<&mut Bird> {
        match self.router(speaker)? {
            Router::Bird(bird) => Ok(bird),
            _ => bail!("{speaker} has another routing daemon than BIRD"),
        }
    }

    /// Puts a file into the directory of the resources as an editor does: by renaming.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let temporary = self.view.config().join(format!(".{name}.new"));
        fs::write(&temporary, text)?;
        fs::rename(&temporary, self.view.config().join(name)).with_context(|| name.to_owned())
    }

    /// Waits until all sessions are up and BGP has told everybody the ways to all workloads.
    ///
    /// # Errors
    /// It has not within `patience`: what is missing.
    pub fn converge(&self, patience: Duration) -> anyhow::Result<Duration> {
        let begin = Instant::now();
        loop {
            let missing = self.view.not_converged()?;
            if missing.is_empty() {
                return Ok(begin.elapsed());
            }
            if begin.elapsed() > patience {
                bail!("not converged within {patience:?}:\n{}", missing.join("\n"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Fails when a program has ended.
    ///
    /// # Errors
    /// See there.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        self.programs.values_mut().try_for_each(Program::alive)
    }

    /// Takes a speaker's cable out of the switch, or puts it in again. Its own end does not notice, as with a switch that fails.
    ///
    /// # Errors
    /// There is no such speaker.
    pub fn connect(&self, speaker: &str, connected: bool) -> anyhow::Result<()> {
        for port in &self.view.speaker(speaker)?.ports {
            let segment = &self.view.plan.segments[port.segment].name;
            let cable = cable(speaker, segment);
            let master = if connected { format!("master {segment}") } else { "nomaster".to_owned() };
            self.fabric.ip(&format!("link set {cable} {master}"))?;
        }
        Ok(())
    }

    /// Has the routing daemons of the hosts do what the resources say now; how many had to change.
    ///
    /// # Errors
    /// The files are refused, or a daemon refuses what is made of them.
    pub fn configure_routers(&mut self) -> anyhow::Result<usize> {
        let mut changed = 0;
        for host in self.view.plan.hosts() {
            let configs = configs(&self.view, host)?;
            if let Some(router) = self.routers.get_mut(&host.name)
                && router.configs()? != configs
            {
                router.configure(&configs)?;
                changed += 1;
            }
        }
        Ok(changed)
    }

    fn start_router(&mut self, speaker: &Speaker) -> anyhow::Result<()> {
        let configs = configs(&self.view, speaker)?;
        let namespace = self.speakers.get(&speaker.name).context("no such speaker")?;
        let router = self.view.daemon(speaker).start(&self.view.base(), &speaker.name, namespace, &configs)?;
        self.routers.insert(speaker.name.clone(), router);
        Ok(())
    }

    fn connect_speakers(&mut self) -> anyhow::Result<()> {
        let plan = self.view.plan.clone();
        for segment in &plan.segments {
            let name = &segment.name;
            // A port that was just connected has to hear neighbour solicitations at once.
            self.fabric.ip(&format!("link add {name} type bridge mcast_snooping 0"))?;
            self.fabric.ip(&format!("link set {name} up"))?;
        }
        for speaker in &plan.speakers {
            let namespace = Namespace::create(self.view.netns(&speaker.name)?)?;
            for port in &speaker.ports {
                let segment = &plan.segments[port.segment].name;
                let (cable, interface) = (cable(&speaker.name, segment), &port.interface);
                self.fabric.ip_batch(&format!(
                    "link add {cable} type veth peer name {interface} netns {}\n\
                     link set {cable} master {segment}\n\
                     link set {cable} up",
                    namespace.name()
                ))?;
                // It has been there for long.
                namespace.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
                namespace.ip_batch(&format!(
                    "addr add {}/24 dev {interface}\n\
                     addr add {}/64 dev {interface} nodad\n\
                     link set {interface} up",
                    port.v4, port.v6
                ))?;
            }
            if let Some([v4, v6]) = speaker.gateway {
                namespace.ip_batch(&format!("route add default via {v4}\nroute add default via {v6}"))?;
            }
            if speaker.role == Role::Router {
                namespace.sysctl("net/ipv4/ip_forward", "1")?;
                namespace.sysctl("net/ipv6/conf/all/forwarding", "1")?;
            }
            self.speakers.insert(speaker.name.clone(), namespace);
        }
        Ok(())
    }

    fn connect_workloads(&mut self) -> anyhow::Result<()> {
        for planned in &self.view.plan.workloads {
            let host = self.speakers.get(&planned.host).context("no such host")?;
            let namespace = Namespace::create(self.view.netns(&planned.name)?)?;
            let workload = Workload::new(&planned.name, namespace, &planned.interface, planned.v4, planned.v6, host);
            workload.connect()?;
            self.workloads.push(workload);
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.servers.clear();
        self.routers.clear();
        self.programs.clear();
        for host in self.view.plan.hosts() {
            // Socket, lock and whatever else it keeps outside its namespace.
            let _nothing_installed = self.view.instance(host).query(&["purge"]);
        }
        // Sockets that still live would keep their namespaces, and the veths with them.
        let workloads = self.workloads.iter().map(|workload| &workload.namespace);
        workloads.chain(self.speakers.values()).for_each(Namespace::kill_processes);
        for speaker in &self.view.plan.speakers {
            for port in &speaker.ports {
                let cable = cable(&speaker.name, &self.view.plan.segments[port.segment].name);
                let _gone_already = self.fabric.ip(&format!("link del {cable}"));
            }
        }
        for workload in &self.workloads {
            let _gone_already = workload.disconnect();
        }
        for host in self.view.plan.hosts() {
            let _nothing_pinned = fs::remove_dir_all(self.view.instance(host).pin_dir);
        }
        let _gone_already = fs::remove_dir_all(self.view.base());
    }
}

/// The switch's side of a cable.
fn cable(speaker: &str, segment: &str) -> String {
    format!("{speaker}-{segment}")
}

fn program(view: &View, host: &Speaker) -> anyhow::Result<Program> {
    let log = view.log(&host.name, "calico-ebpf");
    Program::start(view.instance(host), &["--listen", "off", "--connections", "65536"], Some(&log))
}

/// The configurations of a speaker's routing daemon.
fn configs(view: &View, speaker: &Speaker) -> anyhow::Result<Vec<String>> {
    let log = view.log(&speaker.name, "bird");
    if speaker.role != Role::Host {
        return Ok(vec![bird::config(speaker, view.options.ipv6, &log)]);
    }
    let daemon = view.daemon(speaker);
    let config = |flavour: &&str| -> anyhow::Result<String> {
        let mut command = Command::new(project::binary());
        command.args(["bgp", "config", "--flavour", flavour, "--node", &speaker.name]);
        command.args(["--hold-time", &bird::HOLD_TIME.to_string()]).arg("--config").arg(view.config());
        let text = cargo::output(&mut command)?;
        Ok(match daemon {
            Daemon::Bird2 | Daemon::Bird3 => format!("log \"{}\" all;\n{text}", log.display()),
            Daemon::Frr | Daemon::Frr8 | Daemon::Gobgp => text,
        })
    };
    daemon.flavours().iter().map(config).collect()
}

/// The files of `examples/cluster` for a cluster that is to be looked at.
///
/// # Errors
/// They cannot be copied.
pub fn copy_examples(cluster: &Cluster, examples: &Path) -> anyhow::Result<()> {
    for name in ["policy.yaml", "felix.yaml"] {
        let text = fs::read_to_string(examples.join(name)).with_context(|| name.to_owned())?;
        cluster.write(name, &text)?;
    }
    Ok(())
}
