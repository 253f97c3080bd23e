//! The first half minute after this data path took over from another one, which knew the connections.

use calico_ebpf_common::{
    packet::{Packet, protocol},
    track,
};

use crate::{established::Env, tables::Tables};

const SECONDS: u32 = 30;

/// Whether the packet may be of a connection that was there before, opened by whichever end.
#[inline(always)]
pub(crate) fn applies<F: Tables>(env: &Env, packet: &Packet<F>) -> bool {
    let root = env.root;
    root.takeover != 0
        && env.now.wrapping_sub(root.takeover) < SECONDS * root.hz
        && packet.protocol == protocol::TCP
        && !track::opens(&packet.transport)
}
