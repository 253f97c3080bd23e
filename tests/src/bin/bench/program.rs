//! The program alone, by test run.

use std::path::PathBuf;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};

use crate::{
    cpu,
    kernel::{Kernel, ifindex},
    report::{Report, interleave},
    variant::{Kind, PORTS, Variant},
};

const ROUNDS: usize = 2_000;
/// The program counts the TTL down in the one packet that all runs of a call share: fewer than it starts with.
const REPEAT: u32 = 60;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut variant = Variant::new(Kind::Ours)?;
    variant.add_sinks()?;
    let frame = variant.frame(variant.lab.workload("b").v4.into(), PORTS.0)?;
    let uplink = variant.frame(xtask::lab::OUTSIDE4.into(), PORTS.0)?;
    let ifindex = ifindex(&variant.lab.host, &variant.lab.workload("a").interface)?;
    let program = SchedClassifier::from_pin(pinned(&variant))?;
    let mut empty = Kernel::load()?;
    cpu::pin(1)?;

    // struct __sk_buff up to its field `ingress_ifindex`, the tenth word; `ifindex` is the eleventh.
    let mut context = [0_u8; 192];
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    let run = |frame: &[u8]| -> anyhow::Result<f64> {
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            repeat: REPEAT,
            ..TestRunOptions::default()
        };
        let result = variant.lab.host.enter(|| program.test_run(options))??;
        // TC_ACT_REDIRECT: anything else is another path than the one to be measured.
        anyhow::ensure!(result.return_value == 7, "the program returned {}", result.return_value);
        Ok(result.duration.as_nanos() as f64)
    };
    let mut ways = ["empty program", "established, local workloads", "established, to the uplink"];
    let rows = interleave(
        ROUNDS,
        &mut ways,
        |way| (*way).to_owned(),
        |way| match *way {
            "empty program" => Ok(empty.empty(&frame, REPEAT)?.as_nanos() as f64),
            "established, to the uplink" => run(&uplink),
            _ => run(&frame),
        },
    )?;
    report.section("the program alone, by test run", "ns", rows);
    Ok(())
}

/// The program that hangs on the workloads' interfaces.
fn pinned(variant: &Variant) -> PathBuf {
    let layout = format!("v{}", calico_ebpf_common::abi::LAYOUT_VERSION);
    let name = format!("prog_{}", calico_ebpf_common::abi::names::PROG_FROM_WORKLOAD);
    variant.lab.pin_dir().join(layout).join(name)
}
