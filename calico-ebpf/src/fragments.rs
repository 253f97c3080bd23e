//! Fragments: the first one is judged, the others follow it for as long as somebody might put them together.

use calico_ebpf_common::{abi::DropReason, packet::Packet};

use crate::{maps::FRAGMENTS, tables::Tables, work::Env};

/// How long the others may come after the first one.
const SECONDS: u32 = 30;

/// Remembers that the first fragment passed.
#[inline(always)]
pub(crate) fn first_passed<F: Tables>(env: &Env, packet: &Packet<F>) {
    if packet.fragment {
        // A failure drops the other fragments: the packet is sent again.
        let _ = FRAGMENTS.insert(&packet.fragment_key(env.ifindex), &env.now, 0);
    }
}

/// Passes a later fragment if the first one passed.
#[inline(always)]
pub(crate) fn follow<F: Tables>(env: &Env, packet: &Packet<F>) -> Result<(), DropReason> {
    // SAFETY: the value is read at once. A slot that is used again meanwhile has the time of another packet.
    let since = unsafe { FRAGMENTS.get(&packet.fragment_key(env.ifindex)) }.copied().ok_or(DropReason::Fragment)?;
    if env.now.wrapping_sub(since) > SECONDS * env.root.hz { Err(DropReason::Fragment) } else { Ok(()) }
}
