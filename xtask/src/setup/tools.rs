//! The programs besides Rust that the lab and the tests call.

use std::path::{Path, PathBuf};

use super::{Purpose, apt, bpftool};

/// A program that is needed.
pub(super) struct Tool {
    /// Its file name.
    pub(super) program: &'static str,
    /// Debian's and Ubuntu's package.
    package: &'static str,
    /// What for.
    why: &'static str,
    /// From where on it is needed.
    from: Purpose,
}

const TOOLS: &[Tool] = &[
    Tool { program: "cc", package: "gcc", why: "links the program", from: Purpose::Build },
    Tool { program: "ip", package: "iproute2", why: "makes the lab of network namespaces", from: Purpose::Lab },
    Tool { program: "ping", package: "iputils-ping", why: "sends ICMP echo requests", from: Purpose::Lab },
    Tool {
        program: "nft",
        package: "nftables",
        why: "fragments, the guard of interfacePrefix, NAT in tests",
        from: Purpose::Lab,
    },
    Tool { program: "bpftool", package: "bpftool", why: "shows the maps", from: Purpose::Lab },
    Tool { program: "nsenter", package: "util-linux", why: "runs commands in a lab", from: Purpose::Cluster },
    Tool { program: "sysctl", package: "procps", why: "reads and sets what tests look at", from: Purpose::Test },
    Tool { program: "tc", package: "iproute2", why: "looks at filters", from: Purpose::Test },
    Tool {
        program: "bird",
        package: "bird2",
        why: "takes our routes and tells others, in a lab of many hosts",
        from: Purpose::Cluster,
    },
    Tool { program: "qemu-system-x86_64", package: "qemu-system-x86", why: "boots other kernels", from: Purpose::Test },
    Tool {
        program: "busybox",
        package: "busybox-static",
        why: "user space of the virtual machines",
        from: Purpose::Test,
    },
    Tool { program: "trafgen", package: "netsniff-ng", why: "sends frames in pieces", from: Purpose::Test },
    Tool { program: "ethtool", package: "ethtool", why: "compares offloads", from: Purpose::Test },
    Tool { program: "socat", package: "socat", why: "is the other end of tap devices", from: Purpose::Test },
    Tool { program: "depmod", package: "kmod", why: "modules of the virtual machines", from: Purpose::Test },
    Tool { program: "cpio", package: "cpio", why: "packs the virtual machines' file systems", from: Purpose::Test },
    Tool { program: "unxz", package: "xz-utils", why: "unpacks kernel modules", from: Purpose::Test },
    Tool { program: "iptables-restore", package: "iptables", why: "rules to compare with", from: Purpose::Bench },
    Tool { program: "ipset", package: "ipset", why: "sets to compare with", from: Purpose::Bench },
];

pub(super) fn needed(purpose: Purpose) -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().filter(move |tool| tool.from <= purpose)
}

pub(super) fn ensure(purpose: Purpose) -> anyhow::Result<()> {
    let missing: Vec<_> = needed(purpose).filter(|tool| find_program(tool.program).is_none()).collect();
    if !missing.is_empty() {
        let why: Vec<_> = missing.iter().map(|tool| format!("{} ({})", tool.program, tool.why)).collect();
        apt::refresh(&missing.iter().map(|tool| tool.package).collect::<Vec<_>>())?;
        let mut packages: Vec<_> = missing.iter().map(|tool| package(tool)).collect();
        packages.sort_unstable();
        packages.dedup();
        apt::install(&packages, &why.join(", "))?;
    }
    if purpose >= Purpose::Lab {
        bpftool::ensure()?;
    }
    let absent: Vec<_> = missing.iter().filter(|tool| find_program(tool.program).is_none()).collect();
    anyhow::ensure!(
        absent.is_empty(),
        "still missing after the installation: {}",
        absent.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// Ubuntu 24.04 has bpftool in `linux-tools-common`.
fn package(tool: &Tool) -> &'static str {
    if tool.program == "bpftool" && !apt::knows("bpftool") { "linux-tools-common" } else { tool.package }
}

/// A program of ours, on the `PATH`, or where administrators' programs are (`su` does not put these on it).
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = super::cargo_home().join("bin");
    let more = [cargo.as_path(), Path::new("/usr/local/sbin"), Path::new("/usr/sbin"), Path::new("/sbin")];
    let directories = std::env::split_paths(&path).chain(more.iter().map(PathBuf::from));
    let directories = std::iter::once(super::tools().join("bin")).chain(directories);
    directories.map(|directory| directory.join(name)).find(|file| file.is_file())
}
