//! 64-byte UDP packets, generated on one processor, counted at the sink.

use std::{net::IpAddr, sync::Barrier, thread, time::Duration};

use xtask::lab::OUTSIDE4;

use crate::{
    cpu,
    kernel::Kernel,
    report::{Report, interleave},
    variant::{Kind, PORTS, Variant},
};

const COUNT: u32 = 200_000;
const ROUNDS: usize = 15;

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let kinds = [Kind::Redirect, Kind::Routing, Kind::Felix, Kind::Ours];
    let mut variants = kinds.into_iter().map(Variant::new).collect::<anyhow::Result<Vec<_>>>()?;
    for variant in &mut variants {
        variant.add_sinks()?;
    }
    let name = |variant: &Variant| variant.kind.name().to_owned();
    cpu::pin(1)?;

    let rows = interleave(ROUNDS, &mut variants, name, |variant| {
        let to = variant.lab.workload("b").v4.into();
        variant.nanoseconds(to, PORTS.0, COUNT)
    })?;
    report.section("64-byte UDP between two local workloads, established, one CPU", "ns/packet", rows);

    // The bare redirect knows no way out.
    let rows =
        interleave(ROUNDS, &mut variants[1..], name, |variant| variant.nanoseconds(OUTSIDE4.into(), PORTS.0, COUNT))?;
    report.section(
        "64-byte UDP from a workload to the other side of the uplink, established, one CPU",
        "ns/packet",
        rows,
    );

    // What two processors of this machine can do for anybody, beside what they do for us.
    let mut ways = Vec::new();
    for (at, name) in [(0, "P"), (variants.len() - 1, "calico-ebpf")] {
        ways.extend([1, 2].map(|cpus| (at, cpus, format!("{name}, {cpus} CPU"))));
    }
    let rows = interleave(ROUNDS, &mut ways, |way| way.2.clone(), |way| rate(&mut variants[way.0], way.1))?;
    report.section("64-byte UDP between two local workloads, a flow for each CPU", "million packets/s", rows);
    Ok(())
}

/// Million packets a second with one flow on each of the first `cpus` processors: the sum of what each of them carries.
/// They start together, and only the packets are timed, not what it takes to get ready.
fn rate(variant: &mut Variant, cpus: usize) -> anyhow::Result<f64> {
    let to: IpAddr = variant.lab.workload("b").v4.into();
    let count = 5 * COUNT;
    let barrier = Barrier::new(cpus);
    let (lab, before) = (&variant.lab, variant.kernel.sunk()?);
    let frames = (0..cpus).map(|cpu| variant.frame(to, PORTS.0 + cpu as u16)).collect::<anyhow::Result<Vec<_>>>()?;
    let rate = thread::scope(|scope| {
        let threads: Vec<_> = frames
            .iter()
            .enumerate()
            .map(|(cpu, frame)| {
                let barrier = &barrier;
                scope.spawn(move || -> anyhow::Result<Duration> {
                    cpu::pin(cpu)?;
                    let mut kernel = Kernel::load()?;
                    let interface = &lab.workload("a").interface;
                    kernel.generate(&lab.host, interface, frame, 64)?;
                    barrier.wait();
                    kernel.generate(&lab.host, interface, frame, count)
                })
            })
            .collect();
        let mut rate = 0.0;
        for thread in threads {
            let elapsed = thread.join().map_err(|_| anyhow::anyhow!("a generator panicked"))??;
            rate += f64::from(count) / elapsed.as_secs_f64() / 1e6;
        }
        anyhow::Ok(rate)
    })?;
    let sunk = variant.kernel.sunk()? - before;
    anyhow::ensure!(sunk as f64 >= 0.999 * f64::from(count) * cpus as f64, "only {sunk} packets arrived");
    Ok(rate)
}
