//! Read-only looks at the data path, running or stopped.

pub mod changes;
pub mod clock;
pub mod connections;
pub mod flows;
pub mod interfaces;
pub mod inventory;
pub mod live;
pub mod metrics;
pub mod names;
pub mod rules;
pub mod status;
