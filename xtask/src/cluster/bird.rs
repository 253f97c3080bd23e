//! BIRD 2 or 3 in a network namespace.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    plan::{Peer, Role, Speaker},
    router::{Session, command},
};
use crate::{
    cargo,
    lab::Namespace,
    setup::{daemons::BIRD3, find_program},
};

/// How long one without a sign of life is believed to be there, in seconds.
pub const HOLD_TIME: u32 = 6;

/// How long it may take to be ready.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to ask a BIRD, also from another process.
#[derive(Clone, Debug)]
pub struct Control {
    third: bool,
    socket: PathBuf,
}

impl Control {
    /// Of the BIRD, 2 or (`third`) 3, of `name` among the files in `base`.
    #[must_use]
    pub fn new(third: bool, base: &Path, name: &str) -> Self {
        Self { third, socket: base.join(format!("{name}.ctl")) }
    }

    /// `birdc`, to which arguments may be added.
    ///
    /// # Errors
    /// BIRD is not installed.
    pub fn command(&self) -> anyhow::Result<Command> {
        let mut command = command(&program(self.third, "birdc")?)?;
        command.arg("-s").arg(&self.socket).stdin(Stdio::inherit());
        Ok(command)
    }

    /// What BIRD answers to `question`, words separated by blanks.
    ///
    /// # Errors
    /// No BIRD is there.
    pub fn ask(&self, question: &str) -> anyhow::Result<String> {
        cargo::output(self.command()?.args(question.split(' ')))
    }

    /// Its sessions: name, state, and what BIRD adds to it.
    ///
    /// # Errors
    /// No BIRD is there.
    pub fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        Ok(sessions(&self.ask("show protocols")?))
    }
}

fn sessions(protocols: &str) -> Vec<Session> {
    let sessions = protocols.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?.to_owned();
        let (kind, _table, _state, _since) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let info = words.collect::<Vec<_>>().join(" ");
        (kind == "BGP").then(|| Session { name, established: info.starts_with("Established"), info })
    });
    sessions.collect()
}

/// A running BIRD. Dropping it kills it: what it told the kernel stays, as after a crash.
#[derive(Debug)]
pub struct Bird {
    child: Option<Child>,
    namespace: String,
    config: PathBuf,
    /// To ask it.
    pub control: Control,
}

impl Bird {
    /// Starts BIRD 2 or (`third`) 3 in `namespace` on a configuration, and waits until it is ready.
    ///
    /// # Errors
    /// It is not installed, or refuses the configuration.
    pub fn start(third: bool, base: &Path, name: &str, namespace: &Namespace, config: &str) -> anyhow::Result<Self> {
        let mut bird = Self {
            child: None,
            namespace: namespace.name().to_owned(),
            config: base.join(format!("{name}.conf")),
            control: Control::new(third, base, name),
        };
        fs::write(&bird.config, config)?;
        bird.launch(false)?;
        Ok(bird)
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ended_already = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _status = child.wait();
        }
    }

    /// Its process, while it runs.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Starts it again after [`Bird::kill`], in graceful restart, and waits until it is ready.
    ///
    /// # Errors
    /// It is not installed, or does not get ready.
    pub fn recover(&mut self) -> anyhow::Result<()> {
        self.launch(true)
    }

    /// What it does.
    ///
    /// # Errors
    /// The file is gone.
    pub fn config(&self) -> anyhow::Result<String> {
        fs::read_to_string(&self.config).with_context(|| self.config.display().to_string())
    }

    /// Gives it another configuration.
    ///
    /// # Errors
    /// It refuses.
    pub fn configure(&self, config: &str) -> anyhow::Result<()> {
        fs::write(&self.config, config)?;
        let answer = self.control.ask("configure")?;
        ensure!(answer.contains("Reconfigur"), "bird refuses {}: {answer}", self.config.display());
        Ok(())
    }

    fn launch(&mut self, recover: bool) -> anyhow::Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace]).args(program(self.control.third, "bird")?).arg("-f");
        command.arg("-c").arg(&self.config).arg("-s").arg(&self.control.socket);
        if recover {
            command.arg("-R");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let child = self.child.insert(command.spawn().context("cannot start bird")?);
        // Before it says so, it does not listen, or hangs up on whoever asks.
        let begin = Instant::now();
        loop {
            if self.control.ask("show status").is_ok_and(|status| status.contains("up and running")) {
                return Ok(());
            }
            if let Some(status) = child.try_wait()? {
                bail!("bird has ended ({status}); its configuration is {}", self.config.display());
            }
            ensure!(begin.elapsed() < PATIENCE, "bird does not get ready");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The words of a command that runs a program of BIRD.
fn program(third: bool, name: &str) -> anyhow::Result<Vec<OsString>> {
    if third {
        return BIRD3.command(&format!("usr/sbin/{name}"));
    }
    let program = find_program(name).with_context(|| format!("{name} is not installed (Debian's package bird2)"))?;
    Ok(vec![program.into()])
}

/// The configuration of a speaker that has no workloads. That of a host `calico-ebpf bgp config` makes.
///
/// Timers are as short as they go, so that nobody waits for long.
#[must_use]
pub fn config(speaker: &Speaker, ipv6: bool, log: &Path) -> String {
    let families: &[u8] = if ipv6 { &[4, 6] } else { &[4] };
    let [id, _] = speaker.addresses();
    let mut text = format!(
        "router id {id};\n\
         log \"{}\" all;\n\
         protocol device {{ scan time 1; }}\n\
         protocol direct {{ ipv4; ipv6; }}\n",
        log.display()
    );
    for family in families {
        let _infallible = write!(
            text,
            "protocol kernel kernel{family} {{ persist; scan time 1; merge paths on; graceful restart;\n  \
             ipv{family} {{ import none; export where source = RTS_BGP; }}; }}\n"
        );
    }
    for peer in &speaker.peers {
        for family in families {
            text.push_str(&session(speaker, peer, *family));
        }
    }
    text
}

fn session(speaker: &Speaker, peer: &Peer, family: u8) -> String {
    let Peer { name, addresses, as_number, client } = peer;
    let address = addresses[usize::from(family == 6)];
    let external = *as_number != speaker.as_number;
    let exported = match speaker.role {
        // Its own networks: hosts of one rack are reached from the other.
        Role::Router => "source = RTS_BGP || source = RTS_DEVICE",
        Role::Reflector => "source = RTS_BGP",
        Role::Outside | Role::Host => "false",
    };
    // Hosts do not know the networks behind their router.
    let next_hop = if speaker.role == Role::Router && !external { " next hop self ebgp;" } else { "" };
    let reflector = if *client { " rr client;" } else { "" };
    let kind = if external { "direct" } else { "multihop" };
    format!(
        "protocol bgp {name}_{family} {{ local as {}; neighbor {address} as {as_number}; {kind};{reflector}\n  \
         connect delay time 1; connect retry time 1; error wait time 1, 2; hold time {HOLD_TIME}; keepalive time 2;\n  \
         graceful restart on; graceful restart time 30;\n  \
         ipv{family} {{ import all; export where {exported};{next_hop} }}; }}\n",
        speaker.as_number
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_what_bird_prints() {
        let text = "BIRD 2.0.12 ready.\n\
                    Name       Proto      Table      State  Since         Info\n\
                    device1    Device     ---        up     20:47:34.100  \n\
                    host2_4    BGP        ---        up     20:47:36.242  Established   \n\
                    host3_4    BGP        ---        start  20:47:34.100  Active        Socket: Connection refused\n";
        let found = sessions(text);
        assert_eq!(found.len(), 2);
        assert!(found[0].established && found[0].name == "host2_4");
        assert!(!found[1].established);
        assert_eq!(found[1].info, "Active Socket: Connection refused");
    }
}
