//! FRR in a network namespace, or only its zebra for somebody else.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};

use super::router::{Session, command};
use crate::{cargo, lab::Namespace, setup::daemons::Tree};

/// The daemons of a BGP speaker, in the order in which they start. FRR 8 has no mgmtd.
pub(super) const ALL: &[&str] = &["zebra", "mgmtd", "staticd", "bgpd"];
/// What somebody else needs who speaks BGP.
pub(super) const ZEBRA: &[&str] = &["zebra", "mgmtd", "staticd"];

/// How long a daemon may take until it listens.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to ask an FRR.
#[derive(Clone, Debug)]
pub struct Control {
    tree: &'static Tree,
    base: PathBuf,
}

impl Control {
    pub(super) fn new(tree: &'static Tree, base: &Path, name: &str) -> Self {
        Self { tree, base: base.join(format!("{name}.frr")) }
    }

    /// `vtysh`, to which arguments may be added.
    ///
    /// # Errors
    /// FRR is not here.
    pub fn command(&self) -> anyhow::Result<Command> {
        let words = self.tree.rooted(&self.base, "/usr/bin/vtysh")?;
        let mut command = Command::new("unshare");
        command.arg("--mount").args(words);
        Ok(command)
    }

    /// What vtysh prints for these commands.
    ///
    /// # Errors
    /// FRR is not there.
    pub fn ask(&self, questions: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command()?;
        for question in questions {
            command.args(["-c", question]);
        }
        cargo::output(command.stdin(Stdio::null()))
    }

    /// Its sessions.
    ///
    /// # Errors
    /// FRR is not there.
    pub fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        let text = self.ask(&["show bgp summary json"])?;
        sessions(&text).with_context(|| format!("no sessions in {text}"))
    }

    /// Where zebra listens.
    pub(super) fn zebra(&self) -> PathBuf {
        self.base.join("run/zserv.api")
    }
}

/// Of `show bgp summary json`: `{"ipv4Unicast": {"peers": {"192.0.2.12": {"state": "Established", ...}}}, ...}`.
fn sessions(text: &str) -> anyhow::Result<Vec<Session>> {
    let summary: serde_json::Value = serde_json::from_str(text)?;
    let families = summary.as_object().context("no object")?.values();
    let peers = families.filter_map(|family| family["peers"].as_object()).flatten();
    let found = peers.map(|(name, peer)| {
        let info = peer["state"].as_str().unwrap_or_default().to_owned();
        Session { name: name.clone(), established: info == "Established", info }
    });
    Ok(found.collect())
}

/// A running FRR. Dropping it kills it: what it told the kernel stays, as after a crash.
#[derive(Debug)]
pub struct Frr {
    children: Vec<Child>,
    namespace: String,
    daemons: Vec<&'static str>,
    log: PathBuf,
    /// To ask it.
    pub control: Control,
}

impl Frr {
    pub(super) fn start(
        tree: &'static Tree,
        daemons: &[&'static str],
        base: &Path,
        name: &str,
        namespace: &Namespace,
        config: &str,
    ) -> anyhow::Result<Self> {
        let control = Control::new(tree, base, name);
        for directory in ["etc", "run", "lib"] {
            fs::create_dir_all(control.base.join(directory))?;
        }
        fs::write(control.base.join("etc/vtysh.conf"), "")?;
        let daemons = daemons.iter().copied().filter(|daemon| tree.has(&program(daemon)[1..])).collect();
        let (namespace, log) = (namespace.name().to_owned(), base.join(format!("{name}.frr.log")));
        let mut frr = Self { children: Vec::new(), namespace, daemons, log, control };
        frr.configure(config)?;
        Ok(frr)
    }

    /// What it does.
    ///
    /// # Errors
    /// The file is gone.
    pub fn config(&self) -> anyhow::Result<String> {
        fs::read_to_string(self.file()).with_context(|| self.file().display().to_string())
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        // The one that speaks first: nobody is to be told of the end of the others.
        for child in self.children.iter_mut().rev() {
            let _ended_already = child.kill();
            let _ = child.wait();
        }
        self.children.clear();
    }

    /// Starts it again after [`Frr::kill`].
    ///
    /// # Errors
    /// It does not start.
    pub fn recover(&mut self) -> anyhow::Result<()> {
        self.launch()
    }

    /// Starts it anew with another configuration.
    ///
    /// # Errors
    /// It refuses.
    pub fn configure(&mut self, config: &str) -> anyhow::Result<()> {
        self.kill();
        fs::write(self.file(), config)?;
        self.launch()
    }

    fn file(&self) -> PathBuf {
        self.control.base.join("etc/frr.conf")
    }

    fn launch(&mut self) -> anyhow::Result<()> {
        let run = self.control.base.join("run");
        for left in fs::read_dir(&run)?.flatten() {
            fs::remove_file(left.path())?;
        }
        for daemon in self.daemons.clone() {
            let child = self.spawn(daemon)?;
            self.children.push(child);
            let begin = Instant::now();
            while !run.join(format!("{daemon}.vty")).exists() {
                ensure!(begin.elapsed() < PATIENCE, "{daemon} does not listen; see {}", self.log.display());
                thread::sleep(Duration::from_millis(10));
            }
        }
        let begin = Instant::now();
        loop {
            let loaded =
                self.control.command()?.arg("-b").stdin(Stdio::null()).output().context("cannot start vtysh")?;
            let text = [loaded.stdout, loaded.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
            // It ends well whatever was wrong.
            if loaded.status.success() && !text.contains('%') && !text.contains("line ") {
                return Ok(());
            }
            // A daemon that has just come still holds the lock of mgmtd.
            if !text.contains("locked by another session") || begin.elapsed() > PATIENCE {
                bail!("FRR refuses {}: {text}", self.file().display());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn spawn(&self, daemon: &str) -> anyhow::Result<Child> {
        let log = fs::File::options().create(true).append(true).open(&self.log)?;
        let mut words = vec!["ip".into(), "netns".into(), "exec".into(), self.namespace.clone().into()];
        words.extend(self.control.tree.rooted(&self.control.base, &program(daemon))?);
        let mut command = command(&words)?;
        // No port for people, and routes of an earlier life are kept until they are known to be old.
        command.args(["-P", "0", "--log", "stdout"]);
        if daemon == "zebra" {
            command.args(["-K", "60"]);
        }
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        command.spawn().with_context(|| format!("cannot start {daemon}"))
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program(daemon: &str) -> String {
    format!("/usr/lib/frr/{daemon}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_read_from_what_vtysh_prints() {
        let text = r#"{"ipv4Unicast": {"as": 64512, "peers": {"192.0.2.12": {"state": "Established"}}},
                       "ipv6Unicast": {"peers": {"2001:db8::c": {"state": "Active"}}}}"#;
        let found = sessions(text).expect("sessions");
        let found: Vec<_> = found.iter().map(|session| (session.name.as_str(), session.established)).collect();
        assert_eq!(found, [("192.0.2.12", true), ("2001:db8::c", false)]);
    }
}
