//! What on this host stops or slows the data path, and what to do about it.

use super::Options;

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Info,
    /// Works, but slower or less safe than it could.
    Warning,
    /// Stops the data path.
    Failure,
}

/// One thing looked at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to do, where there is something to do.
    pub advice: Option<String>,
}

/// Looks at everything. Changes nothing.
#[must_use]
pub fn examine(options: &Options) -> Vec<Check> {
    let _ = options;
    Vec::new()
}

/// A Felix that lives in this network namespace: its process id and name.
#[must_use]
pub fn live_felix() -> Option<(u32, String)> {
    None
}
