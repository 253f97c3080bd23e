//! `calico-ebpf` in the laboratory.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    cargo,
    lab::{Lab, UPLINK},
    project,
};

/// The node that the files of the demo speak of.
const NODE: &str = "demo";

/// A running `calico-ebpf run`.
pub(super) struct Program {
    child: Child,
    config: PathBuf,
    pin_dir: PathBuf,
    netns: String,
}

/// What became of the last reading of the files.
#[derive(PartialEq)]
pub(super) struct Load {
    /// The policy in force.
    pub(super) generation: u64,
    /// When, as the program writes it.
    time: String,
    /// Why the files were refused: a line each.
    pub(super) errors: Vec<String>,
}

impl Program {
    /// Starts it on the files in `config` and waits until it is ready.
    pub(super) fn start(lab: &Lab, config: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(project::binary());
        command.arg("run").arg("--config").arg(config).args(["--node", NODE, "--uplink", UPLINK]);
        command.args(["--netns", lab.host.name()]).arg("--pin-dir").arg(lab.pin_dir());
        println!("  {}", cargo::describe(&command));
        // A process group of its own: Ctrl-C in the terminal is for us, we end it in our time.
        let mut child = command.stdout(Stdio::piped()).process_group(0).spawn().context("cannot start calico-ebpf")?;
        let output = child.stdout.take().context("standard output was asked for")?;
        let program = Self { child, config: config.into(), pin_dir: lab.pin_dir(), netns: lab.host.name().to_owned() };
        let mut lines = BufReader::new(output).lines();
        if !lines.by_ref().map_while(Result::ok).any(|line| line == "ready") {
            bail!("calico-ebpf did not get ready; what it says is above");
        }
        // Whatever it prints later must not block it.
        thread::spawn(move || lines.for_each(drop));
        Ok(program)
    }

    /// Fails when it has ended.
    pub(super) fn alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("calico-ebpf has ended: {status}"),
        }
    }

    /// What one of its other commands prints.
    pub(super) fn query(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(project::binary());
        command.args(arguments).args(["--netns", &self.netns]).arg("--pin-dir").arg(&self.pin_dir);
        cargo::output(&mut command)
    }

    /// The command line of another command, to be typed.
    pub(super) fn command_line(&self, command: &str) -> String {
        format!("{} {command} --netns {} --pin-dir {}", project::binary().display(), self.netns, self.pin_dir.display())
    }

    pub(super) fn last_load(&self) -> anyhow::Result<Load> {
        let status: Value = serde_json::from_str(&self.query(&["status", "--output", "json"])?)?;
        let load = &status["lastLoad"];
        let errors = load["errors"].as_array().into_iter().flatten();
        Ok(Load {
            generation: status["generation"].as_u64().context("status has no generation")?,
            time: load["time"].to_string(),
            errors: errors
                .map(|error| format!("{}:{}: {}", plain(&error["path"]), error["line"], plain(&error["message"])))
                .collect(),
        })
    }

    /// What the policy on disk says about each of `queries`: objects as `explain --queries` reads them.
    pub(super) fn explain(&self, queries: &[Value]) -> anyhow::Result<Vec<bool>> {
        let mut command = Command::new(project::binary());
        command.arg("explain").arg("--config").arg(&self.config).args(["--node", NODE, "--queries", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            for query in queries {
                writeln!(input, "{query}")?;
            }
        }
        let output = child.wait_with_output()?;
        let answers = String::from_utf8_lossy(&output.stdout).into_owned();
        let answers = answers.lines().map(|line| {
            let answer: Value = serde_json::from_str(line)?;
            Ok(answer["verdict"].as_str().with_context(|| line.to_owned())? == "allow")
        });
        answers.collect()
    }

    /// Ends it and removes what it installed.
    pub(super) fn stop(mut self) -> anyhow::Result<()> {
        self.end();
        self.query(&["purge"]).map(drop)
    }

    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ended_already = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _status = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
    }
}

/// A string without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
