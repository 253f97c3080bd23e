//! A laboratory, a directory of resources, and the program between them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use xtask::{
    lab::{self, HOST4, HOST6, Lab, Namespace, OUTSIDE4, OUTSIDE6, Server, UPLINK},
    project,
};

use crate::resources::{self, NODE};

/// How long to wait for an answer before it counts as none. Long enough for a loaded machine, where it must come.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait where none is expected: all of it passes in each such test.
const DENIED: Duration = Duration::from_millis(400);
/// How long the program may take to get ready.
const READY: Duration = Duration::from_secs(120);

/// What to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A connection to this port.
    Tcp(u16),
    /// A datagram to this port.
    Udp(u16),
    /// An echo request.
    Icmp,
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Answer {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Answer {
    /// Its standard output as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }
}

/// All that a test needs. Everything ends with it.
#[derive(Debug)]
pub struct World {
    running: Option<Child>,
    servers: Vec<Server>,
    config: PathBuf,
    log: PathBuf,
    /// The network.
    pub lab: Lab,
}

impl World {
    /// A laboratory with the named workloads, and files that describe them and their namespace but no policy.
    #[must_use]
    pub fn new(workloads: &[&str]) -> Self {
        let lab = Lab::new(workloads).expect("a lab (as root?)");
        let base = std::env::temp_dir().join(lab.name());
        let config = base.join("config");
        fs::create_dir_all(&config).expect("a directory for the configuration");
        let world = Self { running: None, servers: Vec::new(), config, log: base.join("log"), lab };
        let mut documents = vec![resources::NAMESPACE.to_owned()];
        documents.extend(world.lab.workloads.iter().map(resources::workload));
        world.write("workloads.yaml", &resources::documents(&documents));
        world
    }

    /// A server on `port` everywhere: in the workloads, outside and on the host.
    pub fn serve(&mut self, port: u16) {
        let workloads = self.lab.workloads.iter().map(|workload| &workload.namespace);
        let servers =
            workloads.chain([&self.lab.outside, &self.lab.host]).map(|namespace| Server::start(namespace, port));
        self.servers.extend(servers.map(|server| server.expect("a server")));
    }

    /// The directory of the files.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Puts a file into place as an editor does: by renaming.
    pub fn write(&self, name: &str, text: &str) {
        let temporary = self.config.join(format!(".{name}.new"));
        fs::write(&temporary, text).expect("writes a file");
        fs::rename(&temporary, self.config.join(name)).expect("renames a file");
    }

    /// Removes a file.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.config.join(name)).expect("removes a file");
    }

    /// Writes `policy.yaml` and waits until it is in force.
    pub fn enforce(&self, policies: &[String]) {
        self.write("policy.yaml", &resources::documents(policies));
        let answer = self.command(&["reload"]);
        assert_eq!(answer.code, 0, "{answer:?}\n{}", self.log());
    }

    /// `calico-ebpf` with the options that name this world's instance behind `arguments`.
    #[must_use]
    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(project::binary());
        command.args(arguments).args(["--netns", self.lab.host.name()]).arg("--pin-dir").arg(self.lab.pin_dir());
        command
    }

    /// Runs a command to its end.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Answer {
        let output = self.program(arguments).output().expect("starts calico-ebpf");
        Answer {
            code: output.status.code().expect("not killed by a signal"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// `calico-ebpf run` on this world's files, not started yet.
    #[must_use]
    pub fn run_command(&self, more: &[&str]) -> Command {
        let mut command = self.program(&["run"]);
        command
            .arg("--config")
            .arg(&self.config)
            .args(["--node", NODE, "--uplink", UPLINK, "--listen", "off"])
            .args(more);
        command
    }

    /// Starts the program and waits until it is ready.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts it with more options.
    pub fn start_with(&mut self, more: &[&str]) {
        let command = self.run_command(more);
        self.start_command(command);
    }

    /// Starts what [`World::run_command`] made, and the test may have changed.
    pub fn start_command(&mut self, mut command: Command) {
        assert!(self.running.is_none(), "it runs");
        let log = fs::File::options().create(true).append(true).open(&self.log).expect("opens the log");
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().expect("starts calico-ebpf");
        let output = child.stdout.take().expect("was piped");
        self.running = Some(child);
        let (ready, waits) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line == "ready" {
                    let _test_is_over = ready.send(());
                }
            }
        });
        assert!(waits.recv_timeout(READY).is_ok(), "not ready:\n{}{}", self.log(), self.whereabouts());
    }

    /// Kills it with SIGKILL, at once.
    pub fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// Ends it with SIGTERM.
    pub fn terminate(&mut self) {
        self.end(Signal::SIGTERM);
    }

    /// The process id of the program.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.as_ref().expect("it runs").id()
    }

    /// What the program logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = fs::File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// `status --output json`.
    #[must_use]
    pub fn status(&self) -> Value {
        let answer = self.command(&["status", "--output", "json"]);
        assert_eq!(answer.code, 0, "{answer:?}");
        answer.json()
    }

    /// The generation in force.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().expect("a number")
    }

    /// The namespace of a workload, of `outside` or of `host`.
    #[must_use]
    pub fn namespace(&self, name: &str) -> &Namespace {
        match name {
            "outside" => &self.lab.outside,
            "host" => &self.lab.host,
            workload => &self.lab.workload(workload).namespace,
        }
    }

    /// The addresses of a workload, of `outside` or of `host`: IPv4 first.
    #[must_use]
    pub fn addresses(&self, name: &str) -> [IpAddr; 2] {
        match name {
            "outside" => [OUTSIDE4.into(), OUTSIDE6.into()],
            "host" => [HOST4.into(), HOST6.into()],
            workload => self.lab.workload(workload).addresses(),
        }
    }

    /// Whether `from` reaches one address.
    #[must_use]
    pub fn reaches(&self, from: &str, to: IpAddr, protocol: Protocol, patience: Duration) -> bool {
        let namespace = self.namespace(from);
        let reached = match protocol {
            Protocol::Tcp(port) => lab::tcp(namespace, SocketAddr::new(to, port), patience),
            Protocol::Udp(port) => lab::udp(namespace, SocketAddr::new(to, port), patience),
            Protocol::Icmp => lab::ping(namespace, to, patience),
        };
        reached.expect("a probe")
    }

    /// `from` must reach `to` over both families.
    pub fn allowed(&self, from: &str, to: &str, protocol: Protocol) {
        for address in self.addresses(to) {
            assert!(
                self.reaches(from, address, protocol, PATIENCE),
                "{from} must reach {to} ({address}) by {protocol:?}\n{}",
                self.describe()
            );
        }
    }

    /// `from` must not reach `to` over any family.
    pub fn denied(&self, from: &str, to: &str, protocol: Protocol) {
        for address in self.addresses(to) {
            assert!(
                !self.reaches(from, address, protocol, DENIED),
                "{from} must not reach {to} ({address}) by {protocol:?}\n{}",
                self.describe()
            );
        }
    }

    /// What helps to understand a failure.
    #[must_use]
    pub fn describe(&self) -> String {
        let part = |arguments: &[&str]| {
            let answer = self.command(arguments);
            format!("--- {arguments:?}: {}\n{}{}", answer.code, answer.stdout, answer.stderr)
        };
        format!("{}{}--- log\n{}", part(&["status"]), part(&["conntrack"]), self.log())
    }

    /// Where the program is in the kernel, for one that does not go on.
    fn whereabouts(&self) -> String {
        let pid = self.pid();
        let part = |name: &str| {
            let text = fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_else(|error| error.to_string());
            format!("--- {name}\n{text}\n")
        };
        ["wchan", "stack", "syscall"].map(part).concat()
    }

    fn end(&mut self, signal: Signal) {
        let mut child = self.running.take().expect("it runs");
        let pid = i32::try_from(child.id()).expect("a pid");
        let _ended_already = kill(Pid::from_raw(pid), signal);
        child.wait().expect("waits");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut child) = self.running.take() {
            let _ended_already = child.kill();
            let _ = child.wait();
        }
        // Socket, lock and whatever else it keeps outside the laboratory.
        let _nothing_installed = self.program(&["purge"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if let Some(base) = self.config.parent() {
            let _ = fs::remove_dir_all(base);
        }
    }
}

/// Waits until `condition` holds; panics when it does not within `patience`, and not at this many looks either: a machine that
/// stands still for a moment takes no time off.
pub fn eventually(what: &str, patience: Duration, mut condition: impl FnMut() -> bool) {
    const LOOKS: u32 = 25;
    let (end, mut looks) = (Instant::now() + patience, 0);
    while !condition() {
        looks += 1;
        assert!(Instant::now() < end || looks < LOOKS, "not within {patience:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
