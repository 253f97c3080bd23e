//! The Calico data path in eBPF: loader, policy compiler and command line.

pub mod dataplane;
pub mod policy;
pub mod resources;
pub mod routes;
