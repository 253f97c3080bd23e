//! Read-only looks at the data path, running or stopped.

pub mod clock;
pub mod connections;
pub mod interfaces;
pub mod inventory;
pub mod metrics;
pub mod rules;
pub mod status;
