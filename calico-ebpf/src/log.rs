//! Records of packets that met a `Log` rule.

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use calico_ebpf_common::{
    abi::Allowance,
    packet::{V4, V6},
};

use crate::{
    maps::{LOG, ROOT},
    tables::Tables,
    work::{jiffies, work},
};

/// Records that one processor makes in a second, and at once.
const RATE: u32 = 10;
const BURST: u32 = 20;

#[btf_map(name = "cali_log_room")]
static ALLOWANCE: PerCpuArray<Allowance, 1> = PerCpuArray::new();

/// Records the packet at hand, which met the `Log` rule with this counter.
///
/// Global, and told the family by a number, as the functions that judge.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cali_record_log(counter: u32, v6: u32) -> u32 {
    if v6 != 0 { record::<V6>(counter) } else { record::<V4>(counter) }
}

/// 1 if it was recorded.
#[inline(always)]
fn record<F: Tables>(counter: u32) -> u32 {
    let (Some(root), Some(allowance), Some(work)) = (ROOT.get(0), ALLOWANCE.get_ptr_mut(0), work::<F>()) else {
        return 0;
    };
    // SAFETY: a value of a per-processor map, which only this processor writes, and programs do not interrupt each other.
    let allowance = unsafe { &mut *allowance };
    if !allowance.take(jiffies(), root.hz, RATE, BURST) {
        return 0;
    }
    let packet = &work.packet;
    let [source_port, destination_port] = packet.transport.rule_ports(packet.protocol);
    let Some(mut entry) = LOG.reserve(0) else {
        // Nobody reads them.
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: the ring gave room for a record. Field by field: the stack is too small for another one.
    unsafe {
        (*record).counter = counter;
        (*record).suppressed = allowance.refused;
        (*record).source = F::wide(&packet.source);
        (*record).destination = F::wide(&packet.destination);
        (*record).source_port = source_port;
        (*record).destination_port = destination_port;
        (*record).protocol = packet.protocol;
        (*record).version = if F::AF == V6::AF { 6 } else { 4 };
        (*record).reserved = [0; 2];
    }
    entry.submit(0);
    allowance.refused = 0;
    1
}
