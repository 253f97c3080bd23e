//! The Calico data path in eBPF: loader, policy compiler and command line.

pub mod agent;
pub mod cli;
pub mod dataplane;
pub mod observe;
pub mod policy;
pub mod resources;
pub mod routes;
