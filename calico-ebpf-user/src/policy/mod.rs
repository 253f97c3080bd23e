//! From validated resources to tables. Pure: no I/O, no `unsafe`.
//!
//! [`compile`](compile::compile) says what each local workload is judged by; [`store`] lays that out in the maps, knowing
//! what they hold already, as a list of [writes](write::Write).

mod arena;
pub mod compile;
pub mod compiled;
mod conditions;
mod endpoints;
pub mod evaluate;
mod expand;
mod failsafe;
pub mod flow;
mod layout;
mod lint;
pub mod maps;
mod nets;
mod prefixes;
mod ranges;
pub mod staged;
pub mod store;
pub mod write;

pub use lint::lint;

#[cfg(test)]
pub(crate) mod tests;
