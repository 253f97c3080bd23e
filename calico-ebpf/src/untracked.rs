//! Policy of an interface before connection tracking: each packet is judged for itself.

use aya_ebpf::helpers::generated::bpf_xdp_adjust_meta;
use calico_ebpf_common::{
    abi::{DropReason, judged},
    packet::{Kind, Packet, V6},
};

use crate::{
    maps::ROOT,
    policy::{self, V6_BIT, cali_judge},
    skb::Skb,
    tables::{Tables as _, interface, locate},
    to_workload::Receiver,
    work::{ALLOWED, Code, Env, LEFT, MISS, code, parsed},
    xdp::Frame,
};

/// Longer than any frame that says how long it is.
const ANY_LENGTH: u32 = 0xffff;

/// What comes in by an uplink, where no XDP program has judged it. Ends with [`ALLOWED`] or [`LEFT`] where it may go on.
#[inline(always)]
pub(crate) fn received<F: Receiver>(skb: &Skb) -> Code {
    let word = skb.left_in_front();
    if word == judged::on(skb.ifindex(), judged::ALLOWED) {
        return ALLOWED;
    }
    if word == judged::on(skb.ifindex(), judged::LEFT) {
        return LEFT;
    }
    code(try_judge::<F>(skb, true))
}

/// What the host itself sends by an uplink, likewise.
#[inline(always)]
pub(crate) fn sent<F: Receiver>(skb: &Skb) -> Code {
    code(try_judge::<F>(skb, false))
}

#[inline(always)]
fn try_judge<F: Receiver>(skb: &Skb, ingress: bool) -> Result<Code, DropReason> {
    let env = Env::new(skb)?;
    let table = cali_untracked(env.ifindex, env.generation, ingress.into());
    if table == 0 {
        return Ok(LEFT);
    }
    let work = match parsed::<F, _>(skb, skb.length()) {
        Ok(work) => work,
        // What the host makes is its own affair.
        Err(_) if !ingress => return Ok(LEFT),
        Err(reason) => return Err(reason),
    };
    judge(&env, table, &work.packet, ingress)
}

/// What comes in, in the XDP program. Ends with [`MISS`] where it cannot be read here: the TC program sees all of it.
#[inline(always)]
pub(crate) fn arriving<F: Receiver>(frame: &Frame) -> Code {
    code(try_arriving::<F>(frame))
}

#[inline(always)]
fn try_arriving<F: Receiver>(frame: &Frame) -> Result<Code, DropReason> {
    let env = Env::at(frame.ifindex())?;
    let table = cali_untracked(env.ifindex, env.generation, 1);
    if table == 0 {
        // Not a word: the TC program looks for itself.
        return Ok(MISS);
    }
    // Of a frame in several buffers the first one alone is in reach: its whole length is not known.
    match parsed::<F, _>(frame, ANY_LENGTH) {
        Ok(work) => judge(&env, table, &work.packet, true),
        Err(_) => Ok(MISS),
    }
}

#[inline(always)]
fn judge<F: Receiver>(env: &Env, table: u32, packet: &Packet<F>, ingress: bool) -> Result<Code, DropReason> {
    // The first fragment is judged, and without it there is no packet. Without neighbours there is no network.
    if matches!(packet.kind, Kind::LaterFragment) || F::is_of_link(packet) {
        return Ok(LEFT);
    }
    let source = locate::<F>(&packet.source, env.generation).class;
    let destination = locate::<F>(&packet.destination, env.generation).class;
    let (own, peer) = if ingress { (destination, source) } else { (source, destination) };
    let [from, to] = packet.transport.rule_ports(packet.protocol);
    let protocol = u32::from(packet.protocol) << 16;
    let family = if F::AF == V6::AF { V6_BIT } else { 0 };
    let verdict = cali_judge(table, own, peer, family | protocol | u32::from(to), protocol | u32::from(from));
    if verdict & policy::ALLOWED != 0 {
        Ok(ALLOWED)
    } else if verdict & policy::LEFT != 0 {
        Ok(LEFT)
    } else if verdict & (policy::DENIED | policy::REJECTED) == 0 {
        Err(DropReason::NoTable)
    } else if ingress {
        Err(DropReason::UntrackedIngress)
    } else {
        Err(DropReason::UntrackedEgress)
    }
}

/// The table of an interface in a generation and one direction; 0: it has none.
///
/// A global function over plain numbers: the verifier looks at it once, not at every call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_untracked(ifindex: u32, generation: u32, ingress: u32) -> u32 {
    let Some(root) = ROOT.get(0) else { return 0 };
    let Some(interface) = interface(ifindex) else { return 0 };
    let name: [u64; 2] = bytemuck::must_cast(interface.name);
    for entry in &root.settings(generation).untracked {
        let of: [u64; 2] = bytemuck::must_cast(entry.interface);
        if of[0] == name[0] && of[1] == name[1] {
            return if ingress != 0 { entry.ingress_table } else { entry.egress_table };
        }
        if of[0] == 0 {
            break;
        }
    }
    0
}

/// Leaves word of the judgement in front of the frame. Where the driver has no room, the TC program judges once more.
#[inline(always)]
pub(crate) fn leave_word(frame: &Frame, verdict: u32) {
    // SAFETY: the context is valid.
    if unsafe { bpf_xdp_adjust_meta(frame.raw_context(), -(size_of::<u32>() as i32)) } == 0 {
        frame.put_in_front(judged::on(frame.ifindex(), verdict));
    }
}
