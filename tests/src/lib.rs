//! End-to-end test harness: the real program in a laboratory of network namespaces.
//!
//! Whatever goes wrong in here is a failed test, so everything panics, with what was being done.
#![forbid(unsafe_code)]

pub mod frames;
pub mod hosts;
pub mod mirror;
mod nft;
pub mod resources;
pub mod stream;
mod world;

pub use nft::nft;
pub use world::{Answer, Protocol, World, eventually};
pub use xtask::lab;
