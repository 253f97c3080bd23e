//! When to read the files after something happened to them. Pure.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// How long a file must not have been written to before it is taken as complete.
pub(super) const QUIET: Duration = Duration::from_millis(100);

/// What happened and has not been looked at.
#[derive(Debug, Default)]
pub(super) struct Pending {
    whole: bool,
    unfinished: BTreeMap<PathBuf, Instant>,
}

impl Pending {
    /// A file came into place as a whole: it was complete before.
    pub(super) fn whole(&mut self, path: &Path) {
        self.unfinished.remove(path);
        self.whole = true;
    }

    /// A file is being written, or went away (as some editors do just before they write it anew).
    pub(super) fn unfinished(&mut self, path: &Path, now: Instant) {
        self.unfinished.insert(path.to_owned(), now);
    }

    /// The file at `path` was only moved to another name that was reported by itself.
    pub(super) fn moved_away(&mut self, path: &Path) {
        self.unfinished.remove(path);
    }

    /// Something happened, and it is not known what.
    pub(super) fn unknown(&mut self) {
        self.whole = true;
    }

    /// When to read; `None`: nothing happened. While any file is unfinished nothing is read, because half of it would be
    /// read too.
    #[must_use]
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        match self.unfinished.values().max() {
            Some(last) => Some(*last + QUIET),
            None => self.whole.then_some(now),
        }
    }

    /// The files are being read now.
    pub(super) fn taken(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> PathBuf {
        name.into()
    }

    #[test]
    fn a_renamed_file_is_due_at_once() {
        let now = Instant::now();
        let mut pending = Pending::default();
        assert_eq!(pending.due(now), None);
        pending.whole(&path("a"));
        assert_eq!(pending.due(now), Some(now));
        pending.taken();
        assert_eq!(pending.due(now), None);
    }

    #[test]
    fn a_written_file_is_due_when_it_has_been_quiet() {
        let start = Instant::now();
        let later = start + Duration::from_millis(70);
        let mut pending = Pending::default();
        pending.unfinished(&path("a"), start);
        pending.unfinished(&path("b"), start);
        pending.unfinished(&path("a"), later);
        assert_eq!(pending.due(later), Some(later + QUIET));
    }

    #[test]
    fn no_half_written_file_is_read_with_a_whole_one() {
        let now = Instant::now();
        let mut pending = Pending::default();
        pending.unfinished(&path("a"), now);
        pending.whole(&path("b"));
        assert_eq!(pending.due(now), Some(now + QUIET));
        pending.whole(&path("a"));
        assert_eq!(pending.due(now), Some(now));
    }

    #[test]
    fn renaming_within_the_directory_does_not_wait_for_the_old_name() {
        let now = Instant::now();
        let mut pending = Pending::default();
        pending.unfinished(&path("old"), now);
        pending.whole(&path("new"));
        pending.moved_away(&path("old"));
        assert_eq!(pending.due(now), Some(now));
    }
}
