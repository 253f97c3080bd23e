//! What the HTTP server shows: shared with the loop.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::http::Site;
use crate::{
    dataplane::{Instance, view::View},
    observe::metrics::{self, Numbers},
};

/// The loop turns at least once a second; one that has not for so long is stuck.
const STUCK: Duration = Duration::from_secs(60);

/// The loop's state as others may see it.
#[derive(Debug)]
pub(super) struct Shared {
    instance: Instance,
    ready: AtomicBool,
    numbers: Mutex<Numbers>,
    turned: Mutex<Instant>,
}

impl Shared {
    /// Nothing is applied yet.
    #[must_use]
    pub(super) fn new(instance: Instance) -> Self {
        Self { instance, ready: AtomicBool::new(false), numbers: Mutex::default(), turned: Mutex::new(Instant::now()) }
    }

    /// The loop turned, and this is how things are.
    pub(super) fn publish(&self, numbers: Numbers) {
        *self.numbers.lock().unwrap_or_else(PoisonError::into_inner) = numbers;
        self.turned();
    }

    /// The loop turned.
    pub(super) fn turned(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The first full apply is in the kernel.
    pub(super) fn ready(&self) {
        self.ready.store(true, Ordering::Release);
    }
}

impl Site for Shared {
    fn metrics(&self) -> Result<String, String> {
        let numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let view = View::open(&self.instance).map_err(|error| error.to_string())?.ok_or("nothing is installed")?;
        metrics::gather(&numbers, &view).map_err(|error| error.to_string())
    }

    fn liveness(&self) -> Result<String, String> {
        let since = self.turned.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        if since < STUCK { Ok("alive".into()) } else { Err(format!("the loop has not turned for {since:.0?}")) }
    }

    fn readiness(&self) -> Result<String, String> {
        if self.ready.load(Ordering::Acquire) {
            Ok("ready".into())
        } else {
            Err("the first apply is not finished".into())
        }
    }
}
