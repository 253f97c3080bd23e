//! Debian's kernels, out of its packages, without touching this system's packages.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use crate::{debian::Suite, project};

/// A series of kernels, and what is true under it: so that a silent fallback fails.
pub(super) struct Kernel {
    /// Its name here.
    pub(super) series: &'static str,
    /// Debian's suite that has it.
    suite: &'static str,
    /// Whether it comes from the security archive.
    security: bool,
    /// Whether the suite may be gone.
    pub(super) optional: bool,
    /// What the guest has to say.
    pub(super) facts: &'static [&'static str],
}

/// From the oldest to the newest. TCX came with 6.6: 6.1 and 6.12 are on either side.
pub(super) const KERNELS: &[Kernel] = &[
    Kernel { series: "5.10", suite: "bullseye-security", security: true, optional: true, facts: &["attach clsact"] },
    Kernel { series: "6.1", suite: "bookworm-security", security: true, optional: false, facts: &["attach clsact"] },
    Kernel { series: "6.12", suite: "trixie-security", security: true, optional: false, facts: &["attach tcx"] },
    Kernel { series: "newest", suite: "trixie-backports", security: false, optional: false, facts: &["attach tcx"] },
];

/// A kernel on disk.
pub(super) struct Files {
    /// The image to boot.
    pub(super) kernel: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(super) modules: PathBuf,
    /// RELEASE.
    pub(super) release: String,
}

/// It could not be fetched.
#[derive(Debug)]
pub(super) struct Unavailable(String);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the kernel cannot be fetched: {}", self.0)
    }
}

impl std::error::Error for Unavailable {}

/// Fetches and unpacks a kernel, once.
pub(super) fn fetch(kernel: &Kernel) -> anyhow::Result<Files> {
    let directory = project::target().join("vm/kernels").join(kernel.series);
    let root = directory.join("root");
    if let Ok(files) = files(&root) {
        return Ok(files);
    }
    let fetched = download(kernel, &directory, &root);
    fetched.map_err(|error| Unavailable(format!("{error:#}")))?;
    files(&root)
}

fn download(kernel: &Kernel, directory: &Path, root: &Path) -> anyhow::Result<()> {
    eprintln!("vm: fetching Linux {} of Debian's {}", kernel.series, kernel.suite);
    let suite = Suite::open(directory, kernel.suite, kernel.security)?;
    let all = suite.with_dependencies("linux-image-cloud-amd64")?;
    let packages: Vec<_> = all.iter().map(String::as_str).filter(|name| has_files(name)).collect();
    anyhow::ensure!(!packages.is_empty(), "{} has no kernel: {all:?}", kernel.suite);
    suite.unpack(&packages, root)?;
    let modules = files(root)?.modules;
    let packed = Command::new("find").arg(&modules).args(["-name", "*.ko.xz", "-exec", "unxz", "{}", "+"]).status()?;
    anyhow::ensure!(packed.success(), "cannot unpack the modules");
    Ok(())
}

/// The packages that hold an image or modules; up to 6.12 one, later two of another name.
fn has_files(name: &str) -> bool {
    ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|prefix| {
        let rest = name.strip_prefix(prefix);
        rest.is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()) && rest.ends_with("cloud-amd64"))
    })
}

/// Up to 6.12 the image is in `/boot`, later with its modules; these are in `/lib` or in `/usr/lib`.
fn files(root: &Path) -> anyhow::Result<Files> {
    let places = ["lib/modules", "usr/lib/modules"].map(|place| root.join(place));
    let releases = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let modules = releases.map(|entry| entry.path()).find(|path| path.join("kernel").is_dir()).context("no modules")?;
    let release = modules.file_name().map(|name| name.to_string_lossy().into_owned()).context("no modules")?;
    let images = [root.join("boot").join(format!("vmlinuz-{release}")), modules.join("vmlinuz")];
    let kernel = images.into_iter().find(|image| image.exists()).context("no kernel image")?;
    Ok(Files { kernel, modules, release })
}

#[cfg(test)]
mod tests {
    use super::has_files;

    #[test]
    fn packages_with_files() {
        assert!(has_files("linux-image-5.10.0-46-cloud-amd64"));
        assert!(has_files("linux-modules-7.2.13+deb14-cloud-amd64"));
        assert!(!has_files("linux-image-cloud-amd64"));
        assert!(!has_files("  Depends: linux-image-6.1.0-56-cloud-amd64"));
        assert!(!has_files("linux-base"));
    }
}
