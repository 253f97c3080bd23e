//! Reloads that must be confirmed. Pure: `T` is whatever was in force before.

use std::time::{Duration, Instant};

/// Whether what is in force waits for a confirmation, and which content was taken back for want of one.
#[derive(Debug)]
pub(super) struct Confirmation<T> {
    awaiting: Option<Awaiting<T>>,
    rejected: Option<u64>,
}

#[derive(Debug)]
struct Awaiting<T> {
    before: T,
    deadline: Instant,
}

impl<T> Default for Confirmation<T> {
    fn default() -> Self {
        Self { awaiting: None, rejected: None }
    }
}

impl<T> Confirmation<T> {
    /// From now on what comes into force must be confirmed by the deadline, else `before` comes back. While something
    /// waits already, only the deadline moves: the set to come back is the last one that nobody doubted.
    pub(super) fn start(&mut self, before: T, deadline: Instant) {
        if !self.postpone(deadline) {
            self.awaiting = Some(Awaiting { before, deadline });
        }
    }

    /// What waits for a confirmation waits until then. `false`: nothing does.
    pub(super) fn postpone(&mut self, deadline: Instant) -> bool {
        match &mut self.awaiting {
            Some(awaiting) => awaiting.deadline = deadline,
            None => return false,
        }
        true
    }

    /// What comes back if nobody confirms.
    pub(super) fn before(&self) -> Option<&T> {
        self.awaiting.as_ref().map(|awaiting| &awaiting.before)
    }

    /// What is in force may stay. `false`: nothing waited for that.
    pub(super) fn confirm(&mut self) -> bool {
        let waited = self.awaiting.take().is_some();
        if waited {
            // A roll-back may have failed.
            self.rejected = None;
        }
        waited
    }

    /// When what is in force is taken back.
    #[must_use]
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.awaiting.as_ref().map(|awaiting| awaiting.deadline)
    }

    /// The time left to confirm.
    #[must_use]
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        self.deadline().map(|deadline| deadline.saturating_duration_since(now))
    }

    /// The time is up, or the process ends: returns what comes back. `content` is what was in force and is refused from
    /// now on.
    pub(super) fn take_back(&mut self, content: u64) -> Option<T> {
        let awaiting = self.awaiting.take()?;
        self.rejected = Some(content);
        Some(awaiting.before)
    }

    /// Whether this content was taken back. Any other content lifts the refusal: the files have changed.
    pub(super) fn refuses(&mut self, content: u64) -> bool {
        if self.rejected != Some(content) {
            self.rejected = None;
        }
        self.rejected.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(5);

    #[test]
    fn without_confirmation_the_old_set_comes_back_and_the_new_one_is_refused() {
        let now = Instant::now();
        let mut confirmation = Confirmation::default();
        confirmation.start("old", now + LATER);
        assert_eq!(confirmation.deadline(), Some(now + LATER));
        assert_eq!(confirmation.left(now), Some(LATER));
        assert_eq!(confirmation.take_back(7), Some("old"));
        assert_eq!(confirmation.take_back(7), None);
        assert!(confirmation.refuses(7));
        assert!(!confirmation.refuses(8));
        assert!(!confirmation.refuses(7), "the files have changed meanwhile");
    }

    #[test]
    fn confirmed_is_confirmed() {
        let mut confirmation = Confirmation::default();
        assert!(!confirmation.confirm());
        confirmation.start("old", Instant::now());
        assert!(confirmation.confirm());
        assert_eq!(confirmation.take_back(7), None);
        assert!(!confirmation.refuses(7));
    }

    #[test]
    fn a_second_reload_moves_the_deadline_only() {
        let now = Instant::now();
        let mut confirmation = Confirmation::default();
        confirmation.start("old", now);
        confirmation.start("unconfirmed", now + LATER);
        assert_eq!(confirmation.deadline(), Some(now + LATER));
        assert_eq!(confirmation.take_back(7), Some("old"));
    }
}
