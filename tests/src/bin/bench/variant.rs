//! What is compared: the same laboratory, with different things between its workloads.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use etherparse::PacketBuilder;
use xtask::lab::{Lab, Namespace, OUTSIDE4, UPLINK};

use crate::kernel::{Kernel, mac};

/// Ports of the measured UDP flow.
pub(crate) const PORTS: (u16, u16) = (40_000, 9_000);

/// What connects the workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `bpf_redirect_peer` and nothing else: the limit P.
    Redirect,
    /// The kernel's routing: K0.
    Routing,
    /// The kernel's routing with connection tracking and rules laid out as Felix does: KC.
    Felix,
    /// This project.
    Ours,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Redirect => "bare redirect_peer (P)",
            Self::Routing => "kernel routing (K0)",
            Self::Felix => "routing + conntrack + iptables as Felix (KC)",
            Self::Ours => "calico-ebpf",
        }
    }
}

/// A laboratory with workloads `a` and `b`, ready for traffic between them and to the outside.
pub(crate) struct Variant {
    pub(crate) kind: Kind,
    pub(crate) lab: Lab,
    pub(crate) kernel: Kernel,
    config: Option<PathBuf>,
    process: Option<Child>,
}

impl Variant {
    pub(crate) fn new(kind: Kind) -> anyhow::Result<Self> {
        let lab = Lab::new(&["a", "b"])?;
        let mut variant = Self { kind, lab, kernel: Kernel::load()?, config: None, process: None };
        match kind {
            Kind::Redirect => {}
            Kind::Routing => variant.route()?,
            Kind::Felix => {
                variant.route()?;
                variant.felix()?;
            }
            Kind::Ours => variant.start()?,
        }
        Ok(variant)
    }

    /// From now on packets of the measured kind end, counted, at `b` and outside.
    pub(crate) fn add_sinks(&mut self) -> anyhow::Result<()> {
        self.establish(self.lab.workload("b").v4.into(), &self.lab.workload("b").namespace)?;
        self.establish(OUTSIDE4.into(), &self.lab.outside)?;
        let (from, to) = (&self.lab.workload("a").interface, &self.lab.workload("b").interface);
        if self.kind == Kind::Redirect {
            self.kernel.redirect(&self.lab.host, from, to)?;
        }
        self.kernel.sink(&self.lab.workload("b").namespace, "eth0")?;
        self.kernel.sink(&self.lab.outside, "eth0")
    }

    /// A 64-byte UDP frame of the flow from `a`, as it leaves the workload.
    pub(crate) fn frame(&self, to: IpAddr, source_port: u16) -> anyhow::Result<Vec<u8>> {
        let a = self.lab.workload("a");
        let IpAddr::V4(to) = to else { anyhow::bail!("IPv4 only") };
        let builder = PacketBuilder::ethernet2(mac(&a.namespace, "eth0")?, mac(&self.lab.host, &a.interface)?)
            .ipv4(a.v4.octets(), to.octets(), 64)
            .udp(source_port, PORTS.1);
        let mut frame = Vec::new();
        builder.write(&mut frame, &[0; 22])?;
        ensure!(frame.len() == 64, "a frame of {} bytes", frame.len());
        Ok(frame)
    }

    /// Nanoseconds a packet of the flow from `a` to `to`; every one has to arrive.
    pub(crate) fn nanoseconds(&mut self, to: IpAddr, source_port: u16, count: u32) -> anyhow::Result<f64> {
        let frame = self.frame(to, source_port)?;
        let before = self.kernel.sunk()?;
        let elapsed = self.kernel.generate(&self.lab.host, &self.lab.workload("a").interface, &frame, count)?;
        // What sits in the receive queue of a virtual device arrives a moment later.
        std::thread::sleep(Duration::from_millis(2));
        let sunk = self.kernel.sunk()? - before;
        ensure!(
            sunk as f64 >= 0.999 * f64::from(count),
            "{}: only {sunk} of {count} packets arrived",
            self.kind.name()
        );
        Ok(elapsed.as_nanos() as f64 / f64::from(count))
    }

    /// Makes the flow one that both ends have answered, over real sockets.
    fn establish(&self, to: IpAddr, namespace: &Namespace) -> anyhow::Result<()> {
        if self.kind == Kind::Redirect {
            return Ok(());
        }
        for port in [PORTS.0, PORTS.0 + 1] {
            let server = namespace.enter(|| UdpSocket::bind((to, PORTS.1)))??;
            let a = self.lab.workload("a");
            let client = a.namespace.enter(|| UdpSocket::bind((a.v4, port)))??;
            server.set_read_timeout(Some(Duration::from_secs(3)))?;
            client.set_read_timeout(Some(Duration::from_secs(3)))?;
            let mut buffer = [0; 8];
            for _ in 0..3 {
                client.send_to(b"ask", SocketAddr::new(to, PORTS.1))?;
                let (_, from) =
                    server.recv_from(&mut buffer).with_context(|| format!("{}: a to {to}", self.kind.name()))?;
                server.send_to(b"answer", from)?;
                client.recv_from(&mut buffer).with_context(|| format!("{}: {to} to a", self.kind.name()))?;
            }
        }
        Ok(())
    }

    /// The host routes and answers ARP, as Felix configures it.
    fn route(&self) -> anyhow::Result<()> {
        let mut batch = String::new();
        for workload in &self.lab.workloads {
            batch += &format!("route add {}/32 dev {} scope link\n", workload.v4, workload.interface);
        }
        batch += &format!("route add default via {OUTSIDE4}\n");
        self.lab.host.ip_batch(&batch)?;
        self.sysctl("net/ipv4/ip_forward", "1")?;
        for workload in &self.lab.workloads {
            self.sysctl(&format!("net/ipv4/conf/{}/proxy_arp", workload.interface), "1")?;
            self.sysctl(&format!("net/ipv4/neigh/{}/proxy_delay", workload.interface), "0")?;
        }
        Ok(())
    }

    fn sysctl(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/{name}");
        self.lab.host.enter(|| fs::write(&path, value))?.with_context(|| path.clone())
    }

    /// Chains laid out as Felix's: dispatch by interface, connection state first, then tier and policy at both ends.
    fn felix(&self) -> anyhow::Result<()> {
        let mut rules = String::from(
            "*filter\n:cali-FORWARD -\n:cali-from-wl-dispatch -\n:cali-to-wl-dispatch -\n:cali-pi-all -\n:cali-po-all -\n",
        );
        for workload in &self.lab.workloads {
            rules += &format!(":cali-fw-{0} -\n:cali-tw-{0} -\n", workload.interface);
        }
        rules += "-A FORWARD -j cali-FORWARD\n\
                  -A cali-FORWARD -j MARK --set-xmark 0x0/0xe0000\n\
                  -A cali-FORWARD -i cali+ -j cali-from-wl-dispatch\n\
                  -A cali-FORWARD -o cali+ -j cali-to-wl-dispatch\n\
                  -A cali-FORWARD -m mark --mark 0x10000/0x10000 -j ACCEPT\n\
                  -A cali-pi-all -p udp -j MARK --set-xmark 0x10000/0x10000\n\
                  -A cali-pi-all -p tcp -j MARK --set-xmark 0x10000/0x10000\n\
                  -A cali-po-all -p udp -j MARK --set-xmark 0x10000/0x10000\n\
                  -A cali-po-all -p tcp -j MARK --set-xmark 0x10000/0x10000\n";
        for workload in &self.lab.workloads {
            let interface = &workload.interface;
            for (dispatch, flag, chain, policy) in [
                ("from", "-i", format!("cali-fw-{interface}"), "cali-po-all"),
                ("to", "-o", format!("cali-tw-{interface}"), "cali-pi-all"),
            ] {
                rules += &format!(
                    "-A cali-{dispatch}-wl-dispatch {flag} {interface} -g {chain}\n\
                     -A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j MARK --set-xmark 0x10000/0x10000\n\
                     -A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN\n\
                     -A {chain} -m conntrack --ctstate INVALID -j DROP\n\
                     -A {chain} -j MARK --set-xmark 0x0/0x10000\n\
                     -A {chain} -j MARK --set-xmark 0x0/0x20000\n\
                     -A {chain} -m mark --mark 0x0/0x20000 -j {policy}\n\
                     -A {chain} -m mark --mark 0x10000/0x10000 -j RETURN\n\
                     -A {chain} -j DROP\n"
                );
            }
        }
        for dispatch in ["from", "to"] {
            rules += &format!("-A cali-{dispatch}-wl-dispatch -j DROP\n");
        }
        rules += "COMMIT\n";
        let mut command = self.lab.host.command("iptables-restore");
        let mut child = command.stdin(Stdio::piped()).spawn().context("iptables-restore")?;
        std::io::Write::write_all(&mut child.stdin.take().context("no stdin")?, rules.as_bytes())?;
        ensure!(child.wait()?.success(), "iptables-restore refused:\n{rules}");
        Ok(())
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let config = std::env::temp_dir().join(format!("{}.yaml", self.lab.name()));
        fs::write(&config, self.resources("Allow"))?;
        self.lab.host.ip(&format!("route add default via {OUTSIDE4}"))?;
        let mut process = Command::new(binary()?)
            .args(["run", "--node", "bench", "--listen", "off", "--netns", self.lab.host.name(), "--uplink", UPLINK])
            .arg("--pin-dir")
            .arg(self.lab.pin_dir())
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()?;
        self.config = Some(config);
        let output = BufReader::new(process.stdout.take().context("no output")?);
        self.process = Some(process);
        let mut lines = output.lines();
        ensure!(lines.any(|line| line.is_ok_and(|line| line == "ready")), "calico-ebpf did not get ready");
        Ok(())
    }

    /// The file that the running program watches.
    pub(crate) fn config(&self) -> anyhow::Result<&PathBuf> {
        self.config.as_ref().context("nothing runs here")
    }

    /// Both workloads, and a policy that applies `action` to what they send and receive.
    pub(crate) fn resources(&self, action: &str) -> String {
        let mut text = format!(
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: all}}\nspec:\n  \
             selector: all()\n  types: [Ingress, Egress]\n  ingress:\n  - {{action: {action}, protocol: UDP}}\n  \
             - {{action: Allow}}\n  egress:\n  - {{action: {action}, protocol: UDP}}\n  - {{action: Allow}}\n"
        );
        for workload in &self.lab.workloads {
            text += &format!(
                "---\napiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: {{name: bench-k8s-{0}-eth0, namespace: bench}}\n\
                 spec:\n  node: bench\n  orchestrator: k8s\n  pod: {0}\n  endpoint: eth0\n  interfaceName: {1}\n  ipNetworks: [{2}/32, \"{3}/128\"]\n",
                workload.name, workload.interface, workload.v4, workload.v6
            );
        }
        text
    }
}

impl Drop for Variant {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _gone = process.kill();
            let _gone = process.wait();
        }
        if let Some(config) = self.config.take() {
            let _gone = fs::remove_file(config);
        }
    }
}

/// The program under test.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("CALICO_EBPF_BIN")
        .map_or_else(|| xtask::project::root().join("target/release/calico-ebpf"), PathBuf::from);
    ensure!(path.exists(), "{} is missing: cargo xtask build", path.display());
    Ok(path)
}
