//! The Calico data path in eBPF: loader, policy compiler and command line.

pub mod agent;
pub mod bgp;
pub mod cli;
pub mod dataplane;
pub mod observe;
pub mod policy;
pub mod resources;
pub mod routes;

/// The programs that `cargo xtask bench` measures with; no part of the data path.
#[doc(hidden)]
pub static BENCH_OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/calico-ebpf-bench"));

/// Likewise, for `cargo xtask bench policy`.
#[doc(hidden)]
pub static BENCH_POLICY_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/calico-ebpf-bench-policy"));

/// Likewise.
#[doc(hidden)]
pub static BENCH_CALIBRATE_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/calico-ebpf-bench-calibrate"));
