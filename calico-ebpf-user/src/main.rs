//! The `calico-ebpf` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    calico_ebpf_user::cli::main(std::env::args_os())
}
