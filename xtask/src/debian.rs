//! Packages of any Debian release, unpacked into a directory: without touching this system's packages, and without the
//! services that they would start.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::cargo;

/// What to do where no mirror is known.
pub const NO_MIRROR: &str =
    "no Debian mirror is known here: let DEBIAN_MIRROR name one, like http://HOST/debian (debian-security beside it)";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The Debian mirror of this system, or the one that `DEBIAN_MIRROR` names.
#[must_use]
pub fn mirror() -> Option<String> {
    if let Ok(mirror) = std::env::var("DEBIAN_MIRROR") {
        return Some(mirror.trim_end_matches('/').to_owned());
    }
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = parts.chain([PathBuf::from("/etc/apt/sources.list")]);
    let texts: Vec<_> = files.filter_map(|file| fs::read_to_string(file).ok()).collect();
    let words = texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim_start().starts_with('#'));
    let mut uris = words.flat_map(str::split_whitespace).map(|word| word.trim_end_matches('/'));
    uris.find(|word| word.starts_with("http") && word.ends_with("/debian")).map(str::to_owned)
}

/// What apt knows of one release, in a directory of its own.
pub struct Suite {
    directory: PathBuf,
}

impl Suite {
    /// Empties `directory` and reads the lists of `suite` into it.
    ///
    /// # Errors
    /// No mirror is known, or it does not have the suite.
    pub fn open(directory: &Path, suite: &str, security: bool) -> anyhow::Result<Self> {
        let _leftovers = fs::remove_dir_all(directory);
        for name in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(directory.join(name))?;
        }
        let mirror = mirror().context(NO_MIRROR)?;
        let archive = if security { format!("{mirror}-security") } else { mirror };
        let source = format!("deb [arch={} signed-by={KEYRING}] {archive} {suite} main\n", architecture());
        fs::write(directory.join("sources.list"), source)?;
        fs::write(directory.join("status"), "")?;
        let suite = Self { directory: directory.to_owned() };
        quiet(suite.apt("apt-get").args(["-q", "update"]))?;
        Ok(suite)
    }

    /// `package` and all that it needs, as far as apt knows: of alternatives all.
    ///
    /// # Errors
    /// apt fails.
    pub fn with_dependencies(&self, package: &str) -> anyhow::Result<Vec<String>> {
        let without = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"];
        let options = without.map(|relation| format!("--no-{relation}"));
        let mut command = self.apt("apt-cache");
        let listed = cargo::output(command.args(["depends", "--recurse"]).args(options).arg(package))?;
        let names = listed.lines().filter(|line| !line.starts_with([' ', '<', '|']));
        Ok(names.map(str::to_owned).collect())
    }

    /// Unpacks `packages` into `root`.
    ///
    /// # Errors
    /// The suite does not have one, or the disk is full.
    pub fn unpack(&self, packages: &[&str], root: &Path) -> anyhow::Result<()> {
        let debs = self.directory.join("debs");
        quiet(self.apt("apt-get").args(["-q", "download"]).args(packages).current_dir(&debs))?;
        fs::create_dir_all(root)?;
        for deb in fs::read_dir(&debs)?.flatten() {
            quiet(Command::new("dpkg-deb").arg("-x").arg(deb.path()).arg(root))?;
        }
        fs::remove_dir_all(debs).context("cannot remove the packages")
    }

    /// apt with its own lists, which knows nothing of this system's packages.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut set = |name: &str, value: PathBuf| {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        };
        set("Dir::Etc::SourceList", self.directory.join("sources.list"));
        set("Dir::Etc::SourceParts", "/dev/null".into());
        set("Dir::State::Lists", self.directory.join("lists"));
        set("Dir::State::Status", self.directory.join("status"));
        set("Dir::Cache", self.directory.join("cache"));
        // The lists may belong to root; nothing secret is in them.
        set("APT::Sandbox::User", "root".into());
        command
    }
}

/// Debian's name of this machine's architecture.
const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Runs a command whose output nobody wants to see.
fn quiet(command: &mut Command) -> anyhow::Result<()> {
    cargo::output(command).map(drop)
}
