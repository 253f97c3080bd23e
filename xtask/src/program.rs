//! A running `calico-ebpf run` in a network namespace of a laboratory.

use std::{
    fs::File,
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
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{cargo, project};

/// Which instance, and what of: enough to ask it, also from another process.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Instance {
    /// `--node`.
    pub node: String,
    /// `--netns`.
    pub netns: String,
    /// `--pin-dir`.
    pub pin_dir: PathBuf,
    /// `--config`.
    pub config: PathBuf,
    /// `--uplink`.
    pub uplink: String,
}

impl Instance {
    /// `calico-ebpf ARGUMENTS` with the options that name this instance.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(project::binary());
        command.args(arguments).args(["--netns", &self.netns]).arg("--pin-dir").arg(&self.pin_dir);
        command
    }

    /// The same as text, to be typed.
    #[must_use]
    pub fn command_line(&self, command: &str) -> String {
        format!("{} {command} --netns {} --pin-dir {}", project::binary().display(), self.netns, self.pin_dir.display())
    }

    /// What a command prints.
    ///
    /// # Errors
    /// It fails; the error carries what it said.
    pub fn query(&self, arguments: &[&str]) -> anyhow::Result<String> {
        cargo::output(&mut self.command(arguments))
    }

    /// `status --output json`.
    ///
    /// # Errors
    /// Nothing is installed.
    pub fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.query(&["status", "--output", "json"])?)?)
    }

    /// What became of the last reading of the files.
    ///
    /// # Errors
    /// Nothing is installed.
    pub fn last_load(&self) -> anyhow::Result<Load> {
        let status = self.status()?;
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
    ///
    /// # Errors
    /// The files are refused, or a query is.
    pub fn explain(&self, queries: &[Value]) -> anyhow::Result<Vec<bool>> {
        let mut command = Command::new(project::binary());
        command.arg("explain").arg("--config").arg(&self.config).args(["--node", &self.node, "--queries", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("standard input was asked for")?;
        let lines: String = queries.iter().map(|query| format!("{query}\n")).collect();
        // It answers each line at once: both pipes may be full.
        let writer = thread::spawn(move || input.write_all(lines.as_bytes()));
        let output = child.wait_with_output()?;
        // A broken pipe: it has failed, and there are answers missing.
        let _ = writer.join();
        let answers = String::from_utf8_lossy(&output.stdout).into_owned();
        let answers = answers.lines().map(|line| {
            let answer: Value = serde_json::from_str(line)?;
            Ok(answer["verdict"].as_str().with_context(|| line.to_owned())? == "allow")
        });
        answers.collect()
    }
}

/// What became of the last reading of the files.
#[derive(Debug, PartialEq, Eq)]
pub struct Load {
    /// The policy in force.
    pub generation: u64,
    /// When, as the program writes it.
    time: String,
    /// Why the files were refused: a line each.
    pub errors: Vec<String>,
}

/// A running `calico-ebpf run`. Dropping it ends the process and leaves the data path.
#[derive(Debug)]
pub struct Program {
    child: Child,
    /// Which one it is.
    pub instance: Instance,
}

impl Program {
    /// The command that [`Program::start`] runs.
    #[must_use]
    pub fn command(instance: &Instance) -> Command {
        let mut command = instance.command(&["run"]);
        command.arg("--config").arg(&instance.config).args(["--node", &instance.node, "--uplink", &instance.uplink]);
        command
    }

    /// Starts it and waits until it is ready. What it logs goes to `log`, or to where our own messages go.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start(instance: Instance, more: &[&str], log: Option<&Path>) -> anyhow::Result<Self> {
        let mut command = Self::command(&instance);
        if let Some(log) = log {
            command.stderr(File::options().create(true).append(true).open(log)?);
        }
        // A process group of its own: Ctrl-C in the terminal is for us, we end it in our time.
        command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().context("cannot start calico-ebpf")?;
        let output = child.stdout.take().context("standard output was asked for")?;
        let program = Self { child, instance };
        let mut lines = BufReader::new(output).lines();
        if !lines.by_ref().map_while(Result::ok).any(|line| line == "ready") {
            let said = log.and_then(|log| std::fs::read_to_string(log).ok());
            bail!("calico-ebpf did not get ready:\n{}", said.as_deref().unwrap_or("what it says is above"));
        }
        // Whatever it prints later must not block it.
        thread::spawn(move || lines.for_each(drop));
        Ok(program)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// See there.
    pub fn alive(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("calico-ebpf of {} has ended: {status}", self.instance.node),
        }
    }

    /// Ends it and removes what it installed.
    ///
    /// # Errors
    /// `purge` fails.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.end(Signal::SIGTERM);
        self.instance.query(&["purge"]).map(drop)
    }

    /// Kills it; the data path stays.
    pub fn kill(mut self) {
        self.end(Signal::SIGKILL);
    }

    fn end(&mut self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ended_already = kill(Pid::from_raw(pid), signal);
        }
        let _status = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end(Signal::SIGTERM);
        }
    }
}

/// A string without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
