//! Routing daemons besides Debian 12's BIRD 2: out of Debian's packages, each in a tree of its own under the target directory
//! with the libraries it was built for. Nothing is installed, so none of the packages' services is started.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};

use super::{find_program, say, tools};
use crate::debian::{self, Suite};

/// A daemon's tree.
#[derive(Debug)]
pub struct Tree {
    /// What it is called, as a directory too.
    pub name: &'static str,
    /// Debian's suite.
    suite: &'static str,
    package: &'static str,
    /// What has to be in it.
    program: &'static str,
}

/// BIRD 3.
pub const BIRD3: Tree = Tree { name: "bird3", suite: "trixie", package: "bird3", program: "usr/sbin/bird" };
/// FRR 10.
pub const FRR: Tree = Tree { name: "frr", suite: "trixie", package: "frr", program: "usr/lib/frr/bgpd" };
/// FRR 8, whose zebra GoBGP 3 understands.
pub const FRR8: Tree = Tree { name: "frr8", suite: "bookworm", package: "frr", program: "usr/lib/frr/bgpd" };
/// GoBGP 3.
pub const GOBGP: Tree = Tree { name: "gobgp", suite: "trixie", package: "gobgpd", program: "usr/bin/gobgpd" };

/// All of them.
pub const TREES: &[Tree] = &[BIRD3, FRR, FRR8, GOBGP];

impl Tree {
    /// Where it is, if it is here.
    #[must_use]
    pub fn find(&self) -> Option<PathBuf> {
        let root = self.directory().join("root");
        root.join(self.program).is_file().then_some(root)
    }

    /// Fetches it if it is not here.
    ///
    /// # Errors
    /// Debian's packages cannot be had: the message says why.
    pub fn ensure(&self) -> anyhow::Result<PathBuf> {
        if let Some(root) = self.find() {
            return Ok(root);
        }
        if let Some(obstacle) = obstacle() {
            bail!("{} cannot be fetched: {obstacle}", self.name);
        }
        say(&format!("fetching {} of Debian's {}, to be run from the target directory", self.package, self.suite));
        self.fetch().with_context(|| format!("cannot fetch {} of Debian's {}", self.package, self.suite))?;
        self.find().with_context(|| format!("the package {} has no {}", self.package, self.program))
    }

    /// The words of a command that runs `program` of this tree, a path in it, with the tree's own libraries.
    ///
    /// # Errors
    /// The tree is not here, or not whole.
    pub fn command(&self, program: &str) -> anyhow::Result<Vec<OsString>> {
        let root = self.root()?;
        let loaders = fs::read_dir(root.join("usr/lib64")).into_iter().flatten().flatten();
        let loaders = loaders.chain(fs::read_dir(root.join("usr/lib")).into_iter().flatten().flatten());
        let mut loaders =
            loaders.map(|entry| entry.path()).filter(|path| names(path, |name| name.starts_with("ld-linux-")));
        let loader = loaders.next().with_context(|| format!("{} has no loader", root.display()))?;
        // The links between its directories are absolute, as in a root.
        let loader = inside(&root, &loader)?;
        let libraries = libraries(&root)?;
        Ok(vec![loader.into(), "--library-path".into(), libraries.into(), root.join(program).into()])
    }

    /// The words of a command that runs `program`, a path in the tree as its root, which finds the directories `etc`, `run` and
    /// `lib` in `base` as `/etc/frr`, `/run/frr` and `/var/lib/frr`. They have to follow what gives it mounts of its own:
    /// `ip netns exec` or `unshare --mount`.
    ///
    /// # Errors
    /// The tree is not here.
    pub fn rooted(&self, base: &Path, program: &str) -> anyhow::Result<Vec<OsString>> {
        const SCRIPT: &str = "root=$1; base=$2; shift 2; \
            mount --bind $base/etc $root/etc/frr && mount --bind $base/run $root/run/frr && \
            mount --bind $base/lib $root/var/lib/frr && mount --rbind /proc $root/proc && mount --rbind /sys $root/sys && \
            mount --rbind /dev $root/dev && exec chroot $root \"$@\"";
        let words: [OsString; 7] =
            ["sh".into(), "-c".into(), SCRIPT.into(), "sh".into(), self.root()?.into(), base.into(), program.into()];
        Ok(words.into())
    }

    /// Debian's package.
    #[must_use]
    pub const fn package(&self) -> &'static str {
        self.package
    }

    /// Whether it has `program`, a path in it.
    #[must_use]
    pub fn has(&self, program: &str) -> bool {
        self.find().is_some_and(|root| root.join(program).is_file())
    }

    fn root(&self) -> anyhow::Result<PathBuf> {
        self.find()
            .with_context(|| format!("{} is not here: `cargo xtask test` and `lab up --bgp` fetch it", self.name))
    }

    fn directory(&self) -> PathBuf {
        tools().join("daemons").join(self.name)
    }

    fn fetch(&self) -> anyhow::Result<()> {
        let (directory, root) = (self.directory(), self.directory().join("new"));
        let suite = Suite::open(&directory.join("apt"), self.suite, false)?;
        let _leftovers = fs::remove_dir_all(&root);
        let all = suite.with_dependencies(self.package)?;
        let wanted = |name: &&str| *name == self.package || name.starts_with("lib") || name.starts_with("zlib");
        let packages: Vec<_> = all.iter().map(String::as_str).filter(wanted).collect();
        suite.unpack(&packages, &root)?;
        complete(&root)?;
        fs::remove_dir_all(directory.join("apt"))?;
        let place = directory.join("root");
        let _leftovers = fs::remove_dir_all(&place);
        fs::rename(&root, &place).context("cannot put it into its place")
    }
}

/// Fetches all that are not here. Where that cannot be, it is said, and tests of them find nothing out.
///
/// # Errors
/// There is a mirror, but it fails.
pub(super) fn ensure_all() -> anyhow::Result<()> {
    if TREES.iter().all(|tree| tree.find().is_some()) {
        return Ok(());
    }
    if let Some(obstacle) = obstacle() {
        say(&format!("BIRD 3, FRR and GoBGP are not tried: {obstacle}"));
        return Ok(());
    }
    TREES.iter().try_for_each(|tree| tree.ensure().map(drop))
}

/// Why they cannot be fetched, if so.
pub(super) fn obstacle() -> Option<String> {
    let missing = ["apt-get", "apt-cache", "dpkg-deb", "unshare", "chroot"];
    let missing: Vec<_> = missing.into_iter().filter(|name| find_program(name).is_none()).collect();
    if !missing.is_empty() {
        return Some(format!("{} missing", missing.join(", ")));
    }
    debian::mirror().is_none().then(|| debian::NO_MIRROR.to_owned())
}

/// Makes a root of unpacked packages: the links and accounts that others would bring, and places to mount at.
fn complete(root: &Path) -> anyhow::Result<()> {
    // Before all of Debian was merged into /usr, some packages were not.
    for name in ["lib", "lib64", "bin", "sbin"] {
        let (old, new) = (root.join(name), root.join("usr").join(name));
        fs::create_dir_all(&new)?;
        if old.is_dir() && !old.is_symlink() {
            let copied = std::process::Command::new("cp").arg("-a").arg(old.join(".")).arg(&new).status()?;
            ensure!(copied.success(), "cannot copy {}", old.display());
            fs::remove_dir_all(&old)?;
        }
        if !old.is_symlink() {
            symlink(Path::new("usr").join(name), &old)?;
        }
    }
    for name in ["proc", "sys", "dev", "tmp", "run/frr", "etc/frr", "etc/pam.d", "var/lib/frr", "var/tmp/frr"] {
        fs::create_dir_all(root.join(name))?;
    }
    if !root.join("var/run").exists() {
        symlink("../run", root.join("var/run"))?;
    }
    // FRR takes the rights of these, and lets in who is in the group.
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nfrr:x:0:0::/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nfrr:x:0:\nfrrvty:x:0:\n")?;
    for name in ["frr", "other"] {
        let all = "auth sufficient pam_permit.so\naccount sufficient pam_permit.so\n";
        fs::write(root.join("etc/pam.d").join(name), all)?;
    }
    Ok(())
}

/// The directories with libraries, as the loader takes them.
fn libraries(root: &Path) -> anyhow::Result<String> {
    let entries = fs::read_dir(root.join("usr/lib"))?.flatten().map(|entry| entry.path());
    let found: Vec<_> = entries.filter(|path| names(path, |name| name.ends_with("-linux-gnu"))).collect();
    ensure!(!found.is_empty(), "{} has no libraries", root.display());
    Ok(found.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":"))
}

fn names(path: &Path, wanted: impl Fn(&str) -> bool) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(wanted)
}

/// A file of the tree, where its link leads inside of it.
fn inside(root: &Path, file: &Path) -> anyhow::Result<PathBuf> {
    let Ok(target) = fs::read_link(file) else { return Ok(file.to_owned()) };
    let directory = file.parent().context("a file is in a directory")?;
    Ok(match target.strip_prefix("/") {
        Ok(relative) => root.join(relative),
        Err(_) => directory.join(target),
    })
}
