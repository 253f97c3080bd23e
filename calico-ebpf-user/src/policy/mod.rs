//! From validated resources to tables. Pure: no I/O, no `unsafe`.
//!
//! `compile` says what each local workload is judged by; [`store`] lays that out in the maps, knowing
//! what they hold already, as a list of [writes](write::Write).

pub mod compiled;
pub mod store;
pub mod write;
