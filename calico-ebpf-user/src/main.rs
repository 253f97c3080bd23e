//! The `calico-ebpf` program.

fn main() {}
