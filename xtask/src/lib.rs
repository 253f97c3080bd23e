//! Set-up, demo and laboratory of the project.
//!
//! A library too, so that the end-to-end tests use the same laboratory as the demo. Its few dependencies build with any
//! stable cargo from 1.90 on, because it has to run before it can install the pinned toolchain.
#![forbid(unsafe_code)]

pub mod bench;
pub mod cargo;
pub mod cluster;
pub mod command;
pub mod debian;
pub mod demo;
pub mod dependencies;
pub mod lab;
pub mod matrix;
pub mod program;
pub mod project;
pub mod setup;
pub mod vm;
