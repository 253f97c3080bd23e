//! Loading: the embedded object, its maps under their pins, its programs verified.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError, ProgramFd, SchedClassifier, Xdp},
};
use calico_ebpf_common::abi::{LAYOUT_VERSION, names};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::{
    AttachMode, Options, bpffs,
    desired::Attachment,
    error::{DataplaneError, Result},
    info::Info,
    instance::{Instance, patiently},
    maps::TypedMap,
    netns, packet_log, sys,
};

pub(crate) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/calico-ebpf-kern"));

#[cfg(not(test))]
fn object() -> &'static [u8] {
    OBJECT
}

/// Tests may be built without the object and get it at run time.
#[cfg(test)]
fn object() -> Vec<u8> {
    match std::env::var_os("CALICO_EBPF_OBJECT") {
        Some(path) => fs::read(path).expect("the object is there"),
        None => OBJECT.to_vec(),
    }
}

/// Programs that are attached or pinned.
pub(crate) const PROGRAMS: [&str; 8] = [
    names::PROG_FROM_WORKLOAD,
    names::PROG_TO_WORKLOAD,
    names::PROG_FROM_UPLINK,
    names::PROG_TO_UPLINK,
    names::PROG_DROP,
    names::PROG_SWEEP,
    names::PROG_CLOCK,
    names::PROG_EXPLAIN,
];

/// The loaded programs; the maps are reached through their pins.
#[derive(Debug)]
pub(crate) struct Programs {
    ebpf: Ebpf,
    ids: BTreeMap<&'static str, u32>,
    /// Which of the XDP programs this kernel takes, once it is loaded.
    xdp: Option<&'static str>,
    /// The thread that reads the programs' messages ends when this is gone.
    _alive: Arc<()>,
}

impl Programs {
    /// Creates or reuses the maps and loads the programs. Attaches nothing.
    pub(crate) fn load(options: &Options) -> Result<Self> {
        let object = object();
        if object.is_empty() {
            return Err(DataplaneError::NoObject);
        }
        let directory = options.instance.layout_dir();
        fs::create_dir_all(&directory).map_err(DataplaneError::io(format!("make {}", directory.display())))?;
        let sizes = sizes(options, &directory);
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(&directory);
        for (name, entries) in &sizes {
            loader.map_max_entries(name, *entries);
        }
        loader.override_global("AYA_LOG_LEVEL", &options.log_level, false);
        let mut ebpf = loader.load(object.as_ref()).map_err(|error| DataplaneError::load("create the maps", &error))?;
        let mut ids = BTreeMap::new();
        for name in PROGRAMS {
            let program: &mut SchedClassifier = program_mut(&mut ebpf, name)?;
            load_program(program).map_err(|error| rejected(name, &error))?;
            let fd = program.fd().map_err(|error| DataplaneError::load(name, &error))?;
            let id = sys::program_id(fd.as_fd().as_raw_fd()).map_err(DataplaneError::io(name))?;
            ids.insert(name, id);
        }
        let alive = Arc::new(());
        if options.log_level > 0 {
            read_messages(&mut ebpf, Arc::downgrade(&alive));
        }
        packet_log::follow(&mut ebpf, &directory, &alive);
        let mut programs = Self { ebpf, ids, xdp: None, _alive: alive };
        // All of them: whoever looks into the data path runs them by these pins.
        for name in PROGRAMS {
            programs.pin(name, &program_path(&directory, name))?;
        }
        Ok(programs)
    }

    /// The kernel's id of a program.
    pub(crate) fn id(&self, name: &str) -> Option<u32> {
        self.ids.get(name).copied()
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        program_mut(&mut self.ebpf, name)
    }

    /// The XDP program of uplinks, loaded when it is first asked for: that of frames in several buffers, or on kernels that
    /// know none (before 5.18) the other one. With its id.
    pub(crate) fn xdp(&mut self) -> Result<(&ProgramFd, u32)> {
        let name = match self.xdp {
            Some(name) => name,
            None => self.load_xdp()?,
        };
        let program: &mut Xdp = program_mut(&mut self.ebpf, name)?;
        let fd = program.fd().map_err(|error| DataplaneError::load(name, &error))?;
        let id = sys::program_id(fd.as_fd().as_raw_fd()).map_err(DataplaneError::io(name))?;
        Ok((fd, id))
    }

    fn load_xdp(&mut self) -> Result<&'static str> {
        let mut result = Err(DataplaneError::NoObject);
        for name in [names::PROG_XDP, names::PROG_XDP_LINEAR] {
            let program: &mut Xdp = program_mut(&mut self.ebpf, name)?;
            match undisturbed(|| program.load()) {
                Ok(()) => {
                    self.xdp = Some(name);
                    return Ok(name);
                }
                Err(error) => {
                    result = Err(rejected(name, &error));
                    tracing::debug!("this kernel refuses {name}: {error}");
                }
            }
        }
        result
    }

    /// Pins a program over whatever is pinned there.
    fn pin(&mut self, name: &str, path: &Path) -> Result<()> {
        let what = || format!("pin {}", path.display());
        let fresh = path.with_file_name(format!("{}_new", path.file_name().unwrap_or_default().to_string_lossy()));
        remove_if_there(&fresh).map_err(DataplaneError::io(what()))?;
        let program = self.get_mut(name)?;
        let fd = program.fd().map_err(|error| DataplaneError::load(what(), &error))?.as_fd().as_raw_fd();
        sys::object_pin(fd, &fresh).map_err(DataplaneError::io(what()))?;
        fs::rename(&fresh, path).map_err(DataplaneError::io(what()))
    }
}

/// Hands the messages of the programs to the log, from a thread of its own.
fn read_messages(ebpf: &mut Ebpf, alive: Weak<()>) {
    let mut logger = match aya_log::EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!("no messages of the programs: {error}");
            return;
        }
    };
    let reader = move || {
        while alive.strong_count() > 0 {
            logger.flush();
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("program-log".to_owned()).spawn(reader) {
        tracing::warn!("no messages of the programs: {error}");
    }
}

/// Where a program that user space runs is pinned.
pub(crate) fn program_path(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("prog_{name}"))
}

fn program_mut<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let missing =
        || DataplaneError::Load { what: name.to_owned(), message: "the object lacks this program".to_owned() };
    ebpf.program_mut(name).ok_or_else(missing)?.try_into().map_err(|error| DataplaneError::load(name, &error))
}

/// Sizes of maps that differ from the object's: what exists keeps its size, so that a takeover never fails for it.
fn sizes(options: &Options, directory: &Path) -> BTreeMap<String, u32> {
    let mut sizes = BTreeMap::new();
    for name in [names::CONNS4, names::CONNS6, names::RING4, names::RING6] {
        sizes.insert(name.to_owned(), options.conns.max(1024));
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if !name.starts_with("cali_") {
            continue;
        }
        match sys::Map::open(&entry.path(), true) {
            Ok(map) => {
                let entries = map.info().max_entries;
                if name == names::CONNS4 && entries != options.conns.max(1024) {
                    tracing::warn!(
                        "the connection table holds {entries} connections and keeps that size until `purge`; {} asked",
                        options.conns
                    );
                }
                sizes.insert(name, entries);
            }
            Err(error) => tracing::warn!("{}: {error}", entry.path().display()),
        }
    }
    sizes
}

/// Loads a program. A signal that arrives while the verifier is at work ends it with EAGAIN (`do_check` in
/// kernel/bpf/verifier.c): it is asked again, as libbpf does.
///
/// # Errors
/// The kernel refuses it.
pub fn load_program(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    undisturbed(|| program.load())
}

fn undisturbed(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    const ATTEMPTS: u32 = 5;
    for _ in 1..ATTEMPTS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    load()
}

/// The telling lines of a verifier's log.
fn rejected(name: &str, error: &ProgramError) -> DataplaneError {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return DataplaneError::load(format!("load {name}"), error);
    };
    let log = verifier_log.to_string();
    if log.trim().is_empty() && matches!(io_error.raw_os_error(), Some(libc::EPERM)) {
        return DataplaneError::NotRoot;
    }
    tracing::debug!("verifier log of {name}:\n{log}");
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    // The statistics come last; what was wrong stands before them.
    let statistics =
        |line: &&str| ["processed ", "verification time ", "stack depth "].iter().any(|start| line.starts_with(start));
    let end = lines.iter().position(statistics).unwrap_or(lines.len());
    let telling = &lines[end.saturating_sub(2)..end];
    let omitted = lines.len().saturating_sub(telling.len());
    DataplaneError::Rejected {
        name: name.to_owned(),
        summary: format!("{io_error}: {} ({omitted} lines omitted; --log-level debug shows them)", telling.join(" | ")),
    }
}

/// Checks and prepares what loading needs: privilege, memory limit, bpffs, and that no newer version is there.
pub(crate) fn prerequisites(instance: &Instance) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(DataplaneError::NotRoot);
    }
    // Kernels before 5.11 charge maps to this limit; on newer ones it does not matter.
    let unlimited = Rlimit { current: None, maximum: None };
    if let Err(error) = setrlimit(Resource::Memlock, unlimited) {
        tracing::debug!("RLIMIT_MEMLOCK stays as it is: {error}");
    }
    bpffs::prepare(instance.pin_dir())
}

/// Refuses where a newer layout is installed: what it holds cannot be understood.
pub(crate) fn refuse_newer(instance: &Instance) -> Result<()> {
    let newest = layouts(instance).into_iter().max().unwrap_or(0);
    if newest > LAYOUT_VERSION {
        let directory = instance.pin_dir().join(format!("v{newest}"));
        let theirs =
            Info::read(&directory).ok().flatten().map_or_else(|| format!("(layout {newest})"), |info| info.version);
        return Err(DataplaneError::Newer {
            path: instance.pin_dir().to_owned(),
            theirs,
            ours: env!("CARGO_PKG_VERSION").to_owned(),
        });
    }
    Ok(())
}

/// Refuses what lives in another network namespace: there are its filters, routes and nftables tables. `true`: that is gone, and nothing
/// is left but the pins, which may be taken over.
pub(crate) fn refuse_elsewhere(instance: &Instance) -> Result<bool> {
    // What cannot be read is told where it is needed.
    let theirs = Info::read(&instance.layout_dir()).ok().flatten().map_or(0, |info| info.namespace);
    if theirs == 0 || netns::cookie().is_none_or(|ours| theirs == ours) {
        return Ok(false);
    }
    match netns::find(theirs) {
        Some(theirs) => Err(DataplaneError::Elsewhere { path: instance.pin_dir().to_owned(), theirs }),
        None if patiently(|| let_go(&instance.layout_dir()), |()| true).is_err() => {
            let theirs = PathBuf::from("which cannot be seen from here");
            Err(DataplaneError::Elsewhere { path: instance.pin_dir().to_owned(), theirs })
        }
        None => Ok(true),
    }
}

/// Whether no pinned link hangs on an interface any more, as when their network namespace is gone.
fn let_go(directory: &Path) -> std::result::Result<(), ()> {
    let hangs = |path: &PathBuf| {
        let link = sys::object_open(path, false);
        link.and_then(|link| sys::link_target(link.as_raw_fd())).is_ok_and(|(ifindex, _)| ifindex != 0)
    };
    if link_pins(directory).iter().any(hangs) { Err(()) } else { Ok(()) }
}

fn link_pins(directory: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_link =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("link_"));
    paths.filter(is_link).collect()
}

/// Removes the pins of links that hang nowhere any more.
pub(crate) fn remove_link_pins(directory: &Path) -> Result<()> {
    link_pins(directory)
        .iter()
        .try_for_each(|path| remove_if_there(path).map_err(DataplaneError::io(format!("remove {}", path.display()))))
}

/// The layout versions that have something pinned.
pub(crate) fn layouts(instance: &Instance) -> Vec<u32> {
    let entries = fs::read_dir(instance.pin_dir()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix('v')?.parse().ok()).collect()
}

/// Which kind of attachment this kernel gets: asks the kernel, not its version.
pub(crate) fn attachment(mode: AttachMode) -> Attachment {
    match mode {
        AttachMode::Tcx => Attachment::Tcx,
        AttachMode::Clsact => Attachment::Clsact,
        // Querying a hook that the kernel lacks is EINVAL; loopback always exists and has index 1.
        AttachMode::Auto => match SchedClassifier::query_tcx(1_u32, aya::programs::TcAttachType::Ingress) {
            Ok(_) => Attachment::Tcx,
            Err(_) => Attachment::Clsact,
        },
    }
}

/// Removes a file; that it was not there is no error.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How many connections the pinned tables hold.
pub(crate) fn conn_limit(directory: &Path) -> Result<u32> {
    use calico_ebpf_common::abi::{Conn, ConnKey4};
    Ok(TypedMap::<ConnKey4, Conn>::open(directory, names::CONNS4, true)?.capacity())
}
