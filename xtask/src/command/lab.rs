//! `cargo xtask lab`: a laboratory to play with.

use crate::{lab, setup};

/// Makes a laboratory, says how to get into it, and removes it on Ctrl-C.
pub(super) fn run() -> anyhow::Result<()> {
    super::need_root("the lab")?;
    setup::ensure(setup::Purpose::Lab)?;
    lab::reap();
    let lab = lab::Lab::new(&["a", "b", "c"])?;
    println!("host      ip netns exec {} bash     (uplink {})", lab.host.name(), lab::UPLINK);
    println!("outside   ip netns exec {} bash     {} {}", lab.outside.name(), lab::OUTSIDE4, lab::OUTSIDE6);
    for workload in &lab.workloads {
        println!(
            "{:9} ip netns exec {} bash     {} {} on {}",
            workload.name,
            workload.namespace.name(),
            workload.v4,
            workload.v6,
            workload.interface
        );
    }
    println!("\nCtrl-C removes it.");
    super::wait_for_interrupt()
}
