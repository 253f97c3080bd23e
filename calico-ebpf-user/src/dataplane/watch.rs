//! Tells that something changed: links, addresses, routes, filters. What changed is for a new look to find out.

use std::io;

/// Listens to the kernel's notifications.
#[derive(Debug)]
pub struct Watcher {}

impl Watcher {
    /// Starts listening, in the network namespace of the calling thread. Call it before the first look, so that nothing
    /// is missed. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits for the next change that may matter. Cancel safe. Several changes at once are one; lost notifications count
    /// as a change.
    ///
    /// # Errors
    /// If the socket breaks.
    pub async fn changed(&mut self) -> io::Result<()> {
        std::future::pending().await
    }
}
