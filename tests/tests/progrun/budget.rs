//! How much work the programs are for the verifier.

use calico_ebpf_common::abi::names;

use crate::harness::{World, lacks_frags};

/// The kernel refuses a million. Newer kernels look at fewer instructions, so this says nothing where the number is not
/// reported.
const BUDGETS: [(&str, u32); 8] = [
    (names::PROG_FROM_WORKLOAD, 150_000),
    (names::PROG_TO_WORKLOAD, 155_000),
    (names::PROG_FROM_UPLINK, 220_000),
    (names::PROG_TO_UPLINK, 165_000),
    (names::PROG_SWEEP, 5_000),
    (names::PROG_DROP, 100),
    (names::PROG_CLOCK, 100),
    (names::PROG_EXPLAIN, 45_000),
];

/// XDP programs, likewise. The first one is for kernels that know frames in several buffers.
const XDP_BUDGETS: [(&str, u32); 2] = [(names::PROG_XDP, 60_000), (names::PROG_XDP_LINEAR, 60_000)];

#[test]
fn all_programs_load_within_their_budget() {
    let mut world = World::new();
    for (program, budget) in BUDGETS {
        let verified = world.load(program).unwrap_or_else(|error| panic!("{program}: {error}"));
        println!("{program}: {verified} instructions verified");
        assert!(verified <= budget, "{program}: {verified} instructions verified, {budget} allowed");
    }
    for (program, budget) in XDP_BUDGETS {
        let verified = match world.load_xdp(program) {
            Err(_) if program == names::PROG_XDP && lacks_frags() => continue,
            verified => verified.unwrap_or_else(|error| panic!("{program}: {error}")),
        };
        println!("{program}: {verified} instructions verified");
        assert!(verified <= budget, "{program}: {verified} instructions verified, {budget} allowed");
    }
}
