//! What can go wrong between the loader and the kernel.

use std::{io, path::PathBuf};

/// Result of a data path operation.
pub type Result<T, E = DataplaneError> = std::result::Result<T, E>;

/// A failure, with what was being done. Each text names the object; what the kernel said is the source.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// Not root, or without the capabilities.
    #[error("loading BPF programs needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN): run as root")]
    NotRoot,
    /// The pin directory is on no bpffs, and none may be mounted.
    #[error("{path}: no bpffs here{why}; mount one (mount -t bpf bpf {mount_at}) and start again")]
    NoBpffs {
        /// The pin directory.
        path: PathBuf,
        /// Why it was not mounted; begins with a colon, or is empty.
        why: String,
        /// Where to mount it.
        mount_at: PathBuf,
    },
    /// Another process holds the instance.
    #[error("{path}: another calico-ebpf process runs this instance")]
    Busy {
        /// The pin directory.
        path: PathBuf,
    },
    /// Another process runs another instance in this network namespace.
    #[error(
        "process {pid} runs another data path in this network namespace, and two of them have interfaces, routes and sysctls in common: \
         end it first, or name its --pin-dir if it is the one that is meant"
    )]
    NotAlone {
        /// The process.
        pid: i32,
    },
    /// Pinned by a newer version that this one does not understand.
    #[error(
        "{path}: the data path was installed by version {theirs}, newer than this one ({ours}); nothing was touched"
    )]
    Newer {
        /// The pin directory.
        path: PathBuf,
        /// Version that installed it.
        theirs: String,
        /// This program's.
        ours: String,
    },
    /// It was installed in another network namespace, which is still there.
    #[error(
        "{path}: this data path is that of another network namespace, {theirs}: name it with --netns, or another --pin-dir"
    )]
    Elsewhere {
        /// The pin directory.
        path: PathBuf,
        /// A way to the namespace.
        theirs: PathBuf,
    },
    /// The network namespace cannot be entered.
    #[error("network namespace {name}: {source}")]
    Netns {
        /// As given.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The binary was built without the BPF object.
    #[error("this binary was built without its BPF object (AYA_BUILD_SKIP): build it with `cargo xtask build`")]
    NoObject,
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The verifier refused a program.
    #[error("the kernel refused program {name}: {summary}")]
    Rejected {
        /// Program.
        name: String,
        /// The telling lines of the verifier's log.
        summary: String,
    },
    /// Loading failed otherwise.
    #[error("{what}: {message}")]
    Load {
        /// What was being done.
        what: String,
        /// The chain of causes.
        message: String,
    },
    /// What is in the maps cannot be understood.
    #[error("{what}: {message}")]
    Corrupt {
        /// Which map.
        what: String,
        /// What is wrong.
        message: String,
    },
}

impl DataplaneError {
    /// Wraps an [`io::Error`] with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Wraps an error of aya, whose texts repeat their sources, keeping each text once.
    pub(crate) fn load(what: impl Into<String>, error: &dyn std::error::Error) -> Self {
        Self::Load { what: what.into(), message: chain(error) }
    }
}

/// The chain of causes as one line, leaving out texts that the one before already contains.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
