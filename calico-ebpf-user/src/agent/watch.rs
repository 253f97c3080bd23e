//! Following the files: which directories to watch, and what their events mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
    time::Instant,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind, RenameMode},
};
use tokio::sync::mpsc;

use super::quiet::Pending;

/// Symbolic links followed before a chain is taken for a loop, as the kernel does.
const MAX_LINKS: usize = 40;

/// Watches the files of a configuration.
pub(super) struct FileWatch {
    paths: Vec<PathBuf>,
    watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Result<Event>>,
    watched: BTreeMap<PathBuf, (u64, u64)>,
    interest: Interest,
    pending: Pending,
    /// What to watch may have changed since [`FileWatch::refresh`] looked.
    is_stale: bool,
}

impl FileWatch {
    /// Starts watching; call it before the first reading, so that nothing is missed in between.
    ///
    /// # Errors
    /// No inotify, or too many watches.
    pub(super) fn new(paths: &[PathBuf]) -> notify::Result<Self> {
        let (send, events) = mpsc::unbounded_channel();
        let watcher = notify::recommended_watcher(move |event| {
            // The receiver is gone only when the program ends.
            let _ = send.send(event);
        })?;
        let paths = paths.iter().map(std::path::absolute).collect::<io::Result<_>>()?;
        let mut watch = Self {
            paths,
            watcher,
            events,
            watched: BTreeMap::new(),
            interest: Interest::default(),
            pending: Pending::default(),
            is_stale: false,
        };
        watch.refresh();
        watch.pending.taken();
        Ok(watch)
    }

    /// Waits until the files are worth reading again. May be dropped and called again without losing anything.
    pub(super) async fn changed(&mut self) {
        // Not before the files were read, which is urgent: where a new watch is needed, they are read again.
        if std::mem::take(&mut self.is_stale) {
            self.refresh();
        }
        loop {
            let due = self.pending.due(Instant::now());
            let event = match due {
                Some(at) if at <= Instant::now() => match self.events.try_recv() {
                    Ok(event) => Some(event),
                    Err(_) => break,
                },
                Some(at) => tokio::select! {
                    event = self.events.recv() => event,
                    () = tokio::time::sleep_until(at.into()) => continue,
                },
                None => self.events.recv().await,
            };
            match event {
                Some(event) => self.note(event),
                // The watcher lives as long as `self`, so its end cannot happen; never spin if it does.
                None => std::future::pending().await,
            }
        }
        self.pending.taken();
        self.is_stale = true;
    }

    /// Directories may have appeared, vanished or been replaced, links may point elsewhere: looks again what to watch.
    pub(super) fn refresh(&mut self) {
        let interest = Interest::of(&self.paths);
        let mut wanted = BTreeMap::new();
        for directory in interest.directories() {
            if let Ok(meta) = fs::metadata(&directory)
                && meta.is_dir()
            {
                wanted.insert(directory, (meta.dev(), meta.ino()));
            }
        }
        for (gone, _) in self.watched.iter().filter(|(path, id)| wanted.get(*path) != Some(id)) {
            // A directory that was removed took its watch along.
            let _ = self.watcher.unwatch(gone);
        }
        let mut kept = BTreeMap::new();
        for (directory, id) in wanted {
            if self.watched.get(&directory) != Some(&id) {
                match self.watcher.watch(&directory, RecursiveMode::NonRecursive) {
                    // What happened there before the watch stood was not seen.
                    Ok(()) => self.pending.unknown(),
                    Err(error) => {
                        tracing::warn!(
                            directory = %directory.display(), %error,
                            "cannot watch a directory of the configuration: its changes are seen at the next resync or `reload` only"
                        );
                        continue;
                    }
                }
            }
            kept.insert(directory, id);
        }
        self.watched = kept;
        self.interest = interest;
    }

    fn note(&mut self, event: notify::Result<Event>) {
        match event {
            Ok(event) => {
                // A directory takes its watch along, and one that is made anew may have its number.
                if matches!(event.kind, EventKind::Remove(_)) {
                    self.watched.retain(|directory, _| !event.paths.contains(directory));
                }
                note(&mut self.pending, &self.interest, &event, Instant::now());
            }
            Err(error) => {
                tracing::warn!(%error, "an event about the files was lost: reading them all");
                self.pending.unknown();
            }
        }
    }
}

/// What an event means. Pure.
fn note(pending: &mut Pending, interest: &Interest, event: &Event, now: Instant) {
    if event.need_rescan() {
        pending.unknown();
        return;
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Create(_) | EventKind::Remove(_) => {}
        EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
            for path in event.paths.iter().filter(|path| interest.covers(path)) {
                pending.whole(path);
            }
            return;
        }
        EventKind::Modify(ModifyKind::Name(RenameMode::Both)) => {
            // That it has come is told before this, and may have been acted on already.
            if let Some(from) = event.paths.first() {
                pending.moved_away(from);
            }
            return;
        }
        EventKind::Modify(_) => {}
        // Reading is no change.
        EventKind::Access(_) | EventKind::Any | EventKind::Other => return,
    }
    for path in event.paths.iter().filter(|path| interest.covers(path)) {
        pending.unfinished(path, now);
    }
}

/// Which paths matter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Interest {
    /// The files, directories and links that a configured path leads over.
    exact: BTreeSet<PathBuf>,
    /// Directories whose configuration files matter.
    directories: BTreeSet<PathBuf>,
}

impl Interest {
    fn of(paths: &[PathBuf]) -> Self {
        let mut interest = Self::default();
        for path in paths {
            interest.follow(path);
            let Ok(entries) = fs::read_dir(path) else { continue };
            interest.directories.insert(path.clone());
            for entry in entries.flatten() {
                let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
                if is_link && is_configuration(&entry.file_name()) {
                    interest.follow(&entry.path());
                }
            }
        }
        interest
    }

    /// Adds `path`, and each link on the way to what it stands for. What does not exist is waited for where it would be.
    fn follow(&mut self, path: &Path) {
        let mut todo: Vec<PathBuf> = components(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == Path::new("..") {
                at.pop();
                continue;
            }
            at.push(&part);
            match fs::read_link(&at) {
                Ok(target) if links < MAX_LINKS => {
                    links += 1;
                    self.exact.insert(at.clone());
                    if target.is_absolute() {
                        at = PathBuf::from("/");
                    } else {
                        at.pop();
                    }
                    todo.extend(components(&target));
                }
                _ => {}
            }
        }
        self.exact.insert(at);
    }

    /// What to watch.
    fn directories(&self) -> BTreeSet<PathBuf> {
        let parents = self.exact.iter().filter_map(|path| path.parent()).map(Path::to_owned);
        parents.chain(self.directories.iter().cloned()).collect()
    }

    fn covers(&self, path: &Path) -> bool {
        self.exact.contains(path)
            || path.parent().is_some_and(|parent| self.directories.contains(parent))
                && path.file_name().is_some_and(is_configuration)
    }
}

/// The parts of a path, last first, without the root and `.`.
fn components(path: &Path) -> Vec<PathBuf> {
    let parts = path.components().rev();
    parts
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(|part| part.as_os_str().into())
        .collect()
}

/// Whether a directory's entry of this name is read.
fn is_configuration(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    !name.starts_with(b".") && [&b".yaml"[..], b".yml", b".json"].iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, time::Duration};

    use notify::event::{DataChange, RemoveKind};

    use super::*;

    /// A directory of its own for each test, removed at the end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("calico-ebpf-watch-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).expect("directory");
            Self(path.canonicalize().expect("canonical"))
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn config_map(scratch: &Scratch, version: &str) {
        fs::create_dir_all(scratch.0.join(version)).expect("directory");
        fs::write(scratch.0.join(version).join("a.yaml"), version).expect("file");
        symlink(version, scratch.0.join("..data_tmp")).expect("link");
        fs::rename(scratch.0.join("..data_tmp"), scratch.0.join("..data")).expect("rename");
    }

    #[test]
    fn links_are_followed_to_every_place_that_can_change() {
        let scratch = Scratch::new("links");
        config_map(&scratch, "..v1");
        symlink("..data/a.yaml", scratch.0.join("a.yaml")).expect("link");
        let interest = Interest::of(std::slice::from_ref(&scratch.0));
        let at = |name: &str| scratch.0.join(name);
        assert!(interest.covers(&at("..data")));
        assert!(interest.covers(&at("..v1/a.yaml")));
        assert!(interest.covers(&at("new.yml")));
        assert!(!interest.covers(&at(".new.yml.swp")));
        assert!(!interest.covers(&at("..v1/other")));
        assert!(interest.directories().contains(&at("..v1")));
        assert!(interest.directories().contains(scratch.0.parent().expect("parent")));
    }

    #[test]
    fn a_loop_of_links_ends() {
        let scratch = Scratch::new("loop");
        symlink("b", scratch.0.join("a")).expect("link");
        symlink("a", scratch.0.join("b")).expect("link");
        assert!(Interest::of(&[scratch.0.join("a")]).covers(&scratch.0.join("b")));
    }

    #[test]
    fn only_a_rename_into_place_is_taken_at_once() {
        let now = Instant::now();
        let interest = Interest { exact: BTreeSet::from([PathBuf::from("/c/a.yaml")]), directories: BTreeSet::new() };
        let due = |kind, path: &str| {
            let mut pending = Pending::default();
            note(&mut pending, &interest, &Event::new(kind).add_path(path.into()), now);
            pending.due(now).map(|at| at - now)
        };
        let quiet = Some(Duration::from_millis(100));
        assert_eq!(due(EventKind::Modify(ModifyKind::Name(RenameMode::To)), "/c/a.yaml"), Some(Duration::ZERO));
        assert_eq!(due(EventKind::Modify(ModifyKind::Name(RenameMode::From)), "/c/a.yaml"), quiet);
        assert_eq!(due(EventKind::Modify(ModifyKind::Data(DataChange::Any)), "/c/a.yaml"), quiet);
        assert_eq!(due(EventKind::Remove(RemoveKind::File), "/c/a.yaml"), quiet);
        assert_eq!(due(EventKind::Modify(ModifyKind::Data(DataChange::Any)), "/c/other"), None);
        assert_eq!(due(EventKind::Access(AccessKind::Read), "/c/a.yaml"), None);
    }

    #[tokio::test]
    async fn changes_on_disk_are_seen() {
        let scratch = Scratch::new("disk");
        config_map(&scratch, "..v1");
        symlink("..data/a.yaml", scratch.0.join("a.yaml")).expect("link");
        let mut watch = FileWatch::new(std::slice::from_ref(&scratch.0)).expect("watch");
        let mut seen = async |what: &str| {
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap_or_else(|_| panic!("{what}"));
        };
        config_map(&scratch, "..v2");
        seen("a switched link").await;
        fs::write(scratch.0.join("..v2/a.yaml"), "x").expect("file");
        seen("a file behind the new link").await;
        // A directory that is watched anew counts as a change too: it may have come before that of the file.
        while tokio::time::timeout(Duration::from_millis(300), watch.changed()).await.is_ok() {}
        let mut seen = async |what: &str| {
            tokio::time::timeout(Duration::from_secs(5), watch.changed()).await.unwrap_or_else(|_| panic!("{what}"));
        };
        // A machine that stands still for a moment does not do so each time.
        let mut took = Vec::new();
        while took.len() < 5 && took.iter().all(|took| *took >= Duration::from_millis(90)) {
            fs::write(scratch.0.join(".b.tmp"), "x").expect("file");
            fs::rename(scratch.0.join(".b.tmp"), scratch.0.join("b.yaml")).expect("rename");
            let started = Instant::now();
            seen("a file renamed into place").await;
            took.push(started.elapsed());
        }
        assert!(took.iter().any(|took| *took < Duration::from_millis(90)), "{took:?}");
        fs::remove_file(scratch.0.join("b.yaml")).expect("remove");
        seen("a removed file").await;
    }
}
