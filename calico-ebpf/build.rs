//! Linker flags of the BPF object.

fn main() {
    // Packet headers are byte arrays: without this LLVM loads them byte by byte.
    println!("cargo::rustc-link-arg-bins=--cpu-features=+allows-misaligned-mem-access");
    println!("cargo::rerun-if-changed=build.rs");
}
