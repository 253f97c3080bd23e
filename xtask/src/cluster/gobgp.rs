//! GoBGP in a network namespace, over the zebra of FRR 8.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;

use super::{
    frr::{self, Frr},
    router::{Session, command},
};
use crate::{
    cargo,
    lab::Namespace,
    setup::daemons::{FRR8, GOBGP},
};

/// Where zebra listens as the configuration has it, which is made for a host.
const ZEBRA: &str = "/var/run/frr/zserv.api";
/// Where GoBGP is asked.
const API: &str = "127.0.0.1:50051";

/// How to ask a GoBGP.
#[derive(Clone, Debug)]
pub struct Control {
    netns: String,
}

impl Control {
    pub(super) fn new(netns: &str) -> Self {
        Self { netns: netns.to_owned() }
    }

    /// `gobgp`, to which arguments may be added.
    ///
    /// # Errors
    /// GoBGP is not here.
    pub fn command(&self) -> anyhow::Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.netns]).args(GOBGP.command("usr/bin/gobgp")?);
        Ok(command)
    }

    /// What it answers to `question`, words separated by blanks.
    ///
    /// # Errors
    /// GoBGP is not there.
    pub fn ask(&self, question: &str) -> anyhow::Result<String> {
        cargo::output(self.command()?.args(question.split(' ')).stdin(Stdio::null()))
    }

    /// Its sessions.
    ///
    /// # Errors
    /// GoBGP is not there.
    pub fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        Ok(sessions(&self.ask("neighbor")?))
    }
}

/// Of the lines `PEER AS UP/DOWN STATE |...`.
fn sessions(neighbors: &str) -> Vec<Session> {
    let sessions = neighbors.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, _, _, info, ..] = words[..] else { return None };
        Some(Session { name: name.to_owned(), established: info == "Establ", info: info.to_owned() })
    });
    sessions.collect()
}

/// A running GoBGP. Dropping it kills it: what it told the kernel stays, as after a crash.
#[derive(Debug)]
pub struct Gobgp {
    child: Option<Child>,
    zebra: Frr,
    namespace: String,
    config: PathBuf,
    log: PathBuf,
    /// To ask it.
    pub control: Control,
}

impl Gobgp {
    pub(super) fn start(
        base: &Path,
        name: &str,
        namespace: &Namespace,
        config: &str,
        zebra: &str,
    ) -> anyhow::Result<Self> {
        let mut gobgp = Self {
            child: None,
            zebra: Frr::start(&FRR8, frr::ZEBRA, base, name, namespace, zebra)?,
            namespace: namespace.name().to_owned(),
            config: base.join(format!("{name}.gobgp.toml")),
            log: base.join(format!("{name}.gobgp.log")),
            control: Control::new(namespace.name()),
        };
        fs::write(&gobgp.config, config)?;
        gobgp.launch(false)?;
        Ok(gobgp)
    }

    /// What both do.
    ///
    /// # Errors
    /// A file is gone.
    pub fn configs(&self) -> anyhow::Result<[String; 2]> {
        let own = fs::read_to_string(&self.config).with_context(|| self.config.display().to_string())?;
        Ok([own, self.zebra.config()?])
    }

    /// Kills both, as a crash does.
    pub fn kill(&mut self) {
        self.end();
        self.zebra.kill();
    }

    /// Starts both again after [`Gobgp::kill`].
    ///
    /// # Errors
    /// They do not start.
    pub fn recover(&mut self) -> anyhow::Result<()> {
        self.zebra.recover()?;
        self.launch(true)
    }

    /// Starts both anew with other configurations.
    ///
    /// # Errors
    /// They refuse.
    pub fn configure(&mut self, config: &str, zebra: &str) -> anyhow::Result<()> {
        self.end();
        self.zebra.configure(zebra)?;
        fs::write(&self.config, config)?;
        self.launch(false)
    }

    fn end(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ended_already = child.kill();
            let _ = child.wait();
        }
    }

    fn launch(&mut self, recover: bool) -> anyhow::Result<()> {
        let log = fs::File::options().create(true).append(true).open(&self.log)?;
        // The lab has a zebra for each host; what is printed for a host knows only one.
        let here = self.config.with_extension("lab.toml");
        let text = fs::read_to_string(&self.config)?;
        fs::write(&here, text.replace(ZEBRA, &self.zebra.control.zebra().display().to_string()))?;
        let mut words = vec!["ip".into(), "netns".into(), "exec".into(), self.namespace.clone().into()];
        words.extend(GOBGP.command("usr/bin/gobgpd")?);
        let mut command = command(&words)?;
        command.arg("-f").arg(&here).args(["--log-plain", "--pprof-disable", "--config-strict", "--api-hosts", API]);
        if recover {
            command.arg("--graceful-restart");
        }
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child = Some(command.spawn().context("cannot start gobgpd")?);
        Ok(())
    }
}

impl Drop for Gobgp {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_what_gobgp_prints() {
        let text = "Peer             AS  Up/Down State       |#Received  Accepted\n\
                    192.0.2.12    64512 00:00:12 Establ      |        1         1\n\
                    2001:db8:2::c 64512    never Active      |        0         0\n";
        let found = sessions(text);
        let found: Vec<_> = found.iter().map(|session| (session.name.as_str(), session.established)).collect();
        assert_eq!(found, [("192.0.2.12", true), ("2001:db8:2::c", false)]);
    }
}
