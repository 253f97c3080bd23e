//! A program that runs on files, and when what they say is in force.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use aya::maps::{Array, MapData};
use calico_ebpf_common::abi::{Root, names};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::lab::Lab;

use crate::{
    cpu,
    policy::{Process, map, pinned, running, status},
};

/// The program has one processor, who looks on the other one.
pub(crate) const PROGRAM: usize = 1;
pub(crate) const ONLOOKER: usize = 0;
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A directory of files; removed when it is dropped.
pub(crate) struct Directory {
    path: PathBuf,
    files: BTreeMap<String, String>,
}

impl Directory {
    pub(crate) fn new(files: Vec<(String, String)>) -> anyhow::Result<Self> {
        let directory = Self::empty(files)?;
        directory.fill()?;
        Ok(directory)
    }

    /// Without its files yet, but with one that says so.
    pub(crate) fn empty(files: Vec<(String, String)>) -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("calico-ebpf-bench-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::write(path.join("nothing.yaml"), "{apiVersion: v1, kind: List, items: []}\n")?;
        Ok(Self { path, files: files.into_iter().collect() })
    }

    fn fill(&self) -> anyhow::Result<()> {
        for (name, text) in &self.files {
            fs::write(self.path.join(name), text)?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many files there are, and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.files.len(), self.files.values().map(String::len).sum())
    }

    pub(crate) fn file(&self, name: &str) -> anyhow::Result<&str> {
        Ok(self.files.get(name).with_context(|| format!("there is no {name}"))?)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone_already = fs::remove_dir_all(&self.path);
    }
}

/// The running program.
pub(crate) struct Watched {
    process: Process,
    root: Array<MapData, [u32; size_of::<Root>() / 4]>,
    /// From its start to its policy in force.
    pub(crate) in_force: Duration,
    /// From its start to `ready`: filters on all interfaces, and routes.
    pub(crate) ready: Duration,
}

impl Watched {
    /// Starts it, with these options besides, on a processor of its own.
    pub(crate) fn start(lab: &Lab, directory: &Directory, options: &[&str]) -> anyhow::Result<Self> {
        cpu::pin(PROGRAM)?;
        let start = Instant::now();
        let mut process = Process(running(lab, directory.path())?.args(options).stdout(Stdio::piped()).spawn()?);
        cpu::pin(ONLOOKER)?;
        let output = process.0.stdout.take().context("no standard output")?;
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            // Read to the end: the program is not to wait for us.
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _nobody_waits = tell.send((line, start.elapsed()));
            }
        });
        let pinned = pinned(lab, names::ROOT);
        let (root, in_force) = loop {
            ensure!(start.elapsed() < PATIENCE && process.0.try_wait()?.is_none(), "the policy is not in force");
            if pinned.exists()
                && let Ok(root) = map(&pinned)
            {
                let root = Array::try_from(aya::maps::Map::Array(root))?;
                if generation(&root)? != 0 {
                    break (root, start.elapsed());
                }
            }
            thread::sleep(Duration::from_micros(500));
        };
        let (line, ready) = told.recv_timeout(PATIENCE).context("the program does not get ready")?;
        ensure!(line == "ready", "the program says {line}");
        Ok(Self { process, root, in_force, ready })
    }

    /// Its peak and its present memory, in bytes.
    pub(crate) fn memory(&self) -> anyhow::Result<[u64; 2]> {
        let pid = self.process.0.id();
        Ok([status(pid, "VmHWM")? * 1024, status(pid, "VmRSS")? * 1024])
    }

    /// Processor time that it has taken.
    pub(crate) fn processor(&self) -> anyhow::Result<Duration> {
        cpu::taken(self.process.0.id())
    }

    /// Puts all files into an empty directory, and takes the time until they are in force: from the moment that the program,
    /// which is stopped meanwhile, may look.
    pub(crate) fn fill(&self, directory: &Directory) -> anyhow::Result<Duration> {
        let before = generation(&self.root)?;
        let process = Pid::from_raw(i32::try_from(self.process.0.id())?);
        kill(process, Signal::SIGSTOP)?;
        directory.fill()?;
        let start = Instant::now();
        kill(process, Signal::SIGCONT)?;
        while generation(&self.root)? == before {
            ensure!(start.elapsed() < PATIENCE, "the files are not in force");
            thread::sleep(Duration::from_micros(500));
        }
        let taken = start.elapsed();
        let first = generation(&self.root)?;
        thread::sleep(Duration::from_secs(2));
        ensure!(generation(&self.root)? == first, "the files came into force in more than one step");
        Ok(taken)
    }

    /// Renames a changed file and the file as it was into place, in turn, and takes the time until that is in force, in
    /// milliseconds: of changes, and of changes back.
    pub(crate) fn change(
        &self,
        directory: &Directory,
        name: &str,
        changed: &str,
        rounds: usize,
    ) -> anyhow::Result<[Vec<f64>; 2]> {
        let original = directory.file(name)?;
        ensure!(original != changed, "{name} does not change");
        let mut samples = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (text, samples) in [changed, original].into_iter().zip(&mut samples) {
                let before = generation(&self.root)?;
                let next = directory.path.join(".next");
                fs::write(&next, text)?;
                let start = Instant::now();
                fs::rename(&next, directory.path.join(name))?;
                while generation(&self.root)? == before {
                    ensure!(start.elapsed() < PATIENCE, "the change of {name} is not in force");
                }
                samples.push(start.elapsed().as_secs_f64() * 1e3);
                // What comes behind the commit is not to be in the way of the next change.
                thread::sleep(Duration::from_millis(200));
            }
        }
        Ok(samples)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It takes its socket along.
        if let Ok(pid) = i32::try_from(self.process.0.id()) {
            let _ended_already = kill(Pid::from_raw(pid), Signal::SIGTERM);
            let _ended_already = self.process.0.wait();
        }
    }
}

fn generation(root: &Array<MapData, [u32; size_of::<Root>() / 4]>) -> anyhow::Result<u32> {
    Ok(root.get(&0, 0)?[0])
}
