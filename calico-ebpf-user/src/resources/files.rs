//! From the paths that the user gave to the bytes of the files.

use std::{
    collections::HashSet,
    fs, io,
    io::Read as _,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use super::diagnostic::{Diagnostic, Severity};

/// The largest file that is read.
const MAX_SIZE: u64 = 64 << 20;
/// How much is read in all.
const MAX_TOTAL: u64 = 256 << 20;
/// How often files are read again because they changed meanwhile.
const ATTEMPTS: u32 = 5;

/// How long a file must have been left alone for its stamp to tell whether it changed: more than the granularity of the
/// file system's clock.
const SETTLED: Duration = Duration::from_millis(100);

/// A file, or why it cannot be read.
pub(super) struct Raw {
    /// Which of the paths given led to it.
    pub(super) root: usize,
    pub(super) path: PathBuf,
    pub(super) content: Result<Content, Diagnostic>,
}

/// What is in a file.
pub(super) enum Content {
    /// What was in it when it had the stamp that it has still.
    Known,
    Bytes {
        bytes: Vec<u8>,
        /// Absent where the file was changed so lately that the next change might leave it as it is.
        stamp: Option<Stamp>,
    },
}

/// Reads all files of these paths: the files themselves; of directories the `*.yaml`, `*.yml` and `*.json` files directly
/// inside, in name order, without names that begin with a dot. Symbolic links are followed, a file that two paths lead to is
/// read once. If something changes while it is being read (a `ConfigMap` is switched, an editor saves), all is read again, so
/// that the contents belong together. What is `known`, given its stamp, is not read.
pub(super) fn read(paths: &[PathBuf], known: impl Fn(&Path, &Stamp) -> bool) -> Vec<Raw> {
    let mut attempt = 1;
    loop {
        let before = list(paths);
        let files: Vec<_> = before.iter().map(|entry| read_entry(entry, &known)).collect();
        let unchanged = list(paths).iter().map(Entry::stamp).eq(before.iter().map(Entry::stamp));
        if unchanged || attempt == ATTEMPTS {
            return files;
        }
        attempt += 1;
        thread::sleep(Duration::from_millis(5));
    }
}

/// A finding about a file as a whole.
pub(super) fn file_error(path: &Path, message: impl Into<String>) -> Diagnostic {
    Diagnostic {
        severity: Severity::Error,
        path: path.to_string_lossy().into_owned(),
        line: 1,
        column: 1,
        resource: None,
        field: None,
        message: message.into(),
        source_line: None,
    }
}

/// A file in question. Its stamp changes with its content.
struct Entry {
    root: usize,
    path: PathBuf,
    found: Result<Stamp, String>,
}

/// Device, inode, size, times of modification and of change. What is written into a file changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a change that comes after `now` gives another stamp.
    fn is_settled(&self, now: SystemTime) -> bool {
        let nanos = |(seconds, nanos): (i64, i64)| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i128);
        nanos(self.modified.max(self.changed)) + (SETTLED.as_nanos() as i128) < now
    }
}

impl Entry {
    fn stamp(&self) -> (&Path, Option<&Stamp>) {
        (&self.path, self.found.as_ref().ok())
    }
}

fn list(paths: &[PathBuf]) -> Vec<Entry> {
    let mut entries = Vec::new();
    let mut seen = HashSet::new();
    for (root, path) in paths.iter().enumerate() {
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => match inside(path) {
                Ok(files) if files.iter().all(|file| file.is_dir()) => entries.push(Entry {
                    root,
                    path: path.clone(),
                    found: Err(
                        "no *.yaml, *.yml or *.json file in this directory: an empty set has to be written down, \
                                as \"{apiVersion: v1, kind: List, items: []}\""
                            .to_owned(),
                    ),
                }),
                Ok(files) => {
                    for file in files {
                        let metadata = fs::metadata(&file);
                        if !metadata.as_ref().is_ok_and(fs::Metadata::is_dir) {
                            add(&mut entries, &mut seen, root, file, metadata);
                        }
                    }
                }
                Err(error) => entries.push(Entry { root, path: path.clone(), found: Err(describe(&error)) }),
            },
            metadata => add(&mut entries, &mut seen, root, path.clone(), metadata),
        }
    }
    let mut total = 0_u64;
    for entry in &mut entries {
        let size = entry.found.as_ref().map_or(0, |stamp| stamp.size);
        total = total.saturating_add(size);
        if size > MAX_SIZE {
            entry.found = Err(too_large());
        } else if total > MAX_TOTAL {
            entry.found = Err(format!("with this file, all together are larger than {} MiB", MAX_TOTAL >> 20));
        }
    }
    entries
}

fn too_large() -> String {
    format!("larger than {} MiB: split it", MAX_SIZE >> 20)
}

fn add(
    entries: &mut Vec<Entry>,
    seen: &mut HashSet<(u64, u64)>,
    root: usize,
    path: PathBuf,
    metadata: io::Result<fs::Metadata>,
) {
    let found = match metadata {
        Ok(m) if !m.is_file() => Err("not a regular file".to_owned()),
        Ok(m) => {
            if !seen.insert((m.dev(), m.ino())) {
                return;
            }
            Ok(Stamp::of(&m))
        }
        Err(error) => Err(describe(&error)),
    };
    entries.push(Entry { root, path, found });
}

fn inside(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        let extension = Path::new(&name).extension().and_then(|extension| extension.to_str());
        if !hidden && matches!(extension, Some("yaml" | "yml" | "json")) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}

fn read_entry(entry: &Entry, known: impl Fn(&Path, &Stamp) -> bool) -> Raw {
    let content = match &entry.found {
        Ok(stamp) if known(&entry.path, stamp) => Ok(Content::Known),
        Ok(stamp) => {
            let stamp = Some(stamp.clone()).filter(|stamp| stamp.is_settled(SystemTime::now()));
            read_file(&entry.path).map(|bytes| Content::Bytes { bytes, stamp })
        }
        Err(message) => Err(message.clone()),
    };
    let content = content.map_err(|message| file_error(&entry.path, message));
    Raw { root: entry.root, path: entry.path.clone(), content }
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    // Whatever has taken the place of the file that was looked at, and whatever the kernel shows as one: nothing is waited for.
    let file =
        fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(|error| describe(&error))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err("not a regular file".to_owned());
    }
    let mut content = Vec::new();
    file.take(MAX_SIZE + 1).read_to_end(&mut content).map_err(|error| describe(&error))?;
    if content.len() as u64 > MAX_SIZE {
        return Err(too_large());
    }
    Ok(content)
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}
