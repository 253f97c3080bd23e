//! The Calico data path in eBPF: loader, policy compiler and command line.

pub mod policy;
pub mod resources;
