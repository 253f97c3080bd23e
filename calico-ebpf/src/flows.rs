//! Who talks to whom: one record a flow, and only while somebody looks.

use core::ptr;

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};
use calico_ebpf_common::{
    abi::{CONN_VERSION, DropReason, FlowKey, FlowRecord, NO_RULE, NO_SLOT, conn_flags, explained},
    packet::{ETHERNET_BYTES, Kind, V6, ether_type, protocol},
};

use crate::{
    cali_flow4, cali_flow6,
    conns::add,
    established::Hook,
    explain::{Sides, end},
    forward::TO_STACK,
    maps::{FLOWS, ROOT},
    skb::Skb,
    tables::{Tables, locate},
    work::{Code, Env, jiffies, reason, take},
};

const BPF_NOEXIST: u64 = 1;
/// Neighbour discovery and multicast listeners, by ICMPv6 type.
const LINK_MESSAGES: [u16; 2] = [130, 143];

/// Where a key and a record are made: together they are too much for the stack.
#[repr(C)]
struct Draft {
    key: FlowKey,
    record: FlowRecord,
}

#[btf_map(name = "cali_flow_new")]
static DRAFT: PerCpuArray<Draft, 1> = PerCpuArray::new();

/// Records what became of a packet, if somebody looks.
#[inline(always)]
pub(crate) fn settled(skb: &Skb, hook: Hook, code: Code) {
    let Some(root) = ROOT.get(0) else { return };
    // SAFETY: a valid reference. Volatile: whoever looks changes it.
    let until = unsafe { ptr::read_volatile(&raw const root.watched_until) };
    if until == 0 || (until.wrapping_sub(jiffies()) as i32) < 0 {
        return;
    }
    let packed = (hook as Code) << 32 | (code & 0xffff_ffff);
    match skb.ether_type() {
        ether_type::IPV4 => cali_flow4(skb.raw_context(), packed),
        ether_type::IPV6 => cali_flow6(skb.raw_context(), packed),
        _ => 0,
    };
}

/// `packed`: the hook, and in the lower half the code that the program ends with.
#[inline(always)]
pub(crate) fn record<F: Tables>(skb: &Skb, packed: Code) -> Code {
    Code::from(try_record::<F>(skb, (packed >> 32) as u32, Code::from(packed as i32)).is_some())
}

#[inline(always)]
fn try_record<F: Tables>(skb: &Skb, hook: u32, code: Code) -> Option<()> {
    let env = Env::new(skb).ok()?;
    let work = take::<F>(skb, &env).ok()?;
    let packet = &work.packet;
    let dropped = reason(code);
    if matches!(packet.kind, Kind::LaterFragment) || is_of_link::<F>(packet.protocol, packet.transport.icmp) {
        return None;
    }
    // A packet passes several programs on its way through the stack: it is counted where it enters, but dropped anywhere.
    let counted = if hook == Hook::FromWorkload as u32 {
        true
    } else if hook == Hook::FromUplink as u32 {
        code != TO_STACK
    } else if hook == Hook::ToWorkload as u32 {
        locate::<F>(&packet.source, env.generation).slot == NO_SLOT
    } else {
        false
    };
    if !counted && dropped.is_none() {
        return None;
    }

    let draft = DRAFT.get_ptr_mut(0)?;
    // SAFETY: a value of a per-processor map, which only this processor writes, and programs do not interrupt each other.
    let Draft { key, record } = unsafe { &mut *draft };
    let mut ports = packet.transport.rule_ports(packet.protocol);
    let mut from_opener = true;
    record.slots = [NO_SLOT; 2];
    record.rules = [NO_RULE; 2];
    let mut known = false;
    if matches!(packet.kind, Kind::Flow)
        && let Some(conn) = F::conn(&work.key)
    {
        // SAFETY: the entry stays readable as long as the program runs.
        let conn = unsafe { &*conn };
        if conn.version == CONN_VERSION {
            from_opener = work.source_is_a == (conn.flags & conn_flags::OPENER_IS_A != 0);
            known = dropped.is_none();
            record.slots = [conn.ends[0].slot, conn.ends[1].slot];
            if known {
                record.rules = [conn.ends[0].rule, conn.ends[1].rule];
            }
            if packet.protocol == F::ICMP {
                ports = [0, u16::from(conn.icmp_type) << 8 | u16::from(conn.icmp_code)];
            } else if !from_opener {
                ports = [ports[1], ports[0]];
            }
        }
    }
    let (opener, responder) =
        if from_opener { (&packet.source, &packet.destination) } else { (&packet.destination, &packet.source) };
    key.source = F::wide(opener);
    key.destination = F::wide(responder);
    key.source_port = ports[0].to_be_bytes();
    key.destination_port = ports[1].to_be_bytes();
    key.protocol = packet.protocol;
    key.reserved = [0; 3];
    key.reason = dropped.unwrap_or(explained::PASSES);
    key.version = if F::AF == V6::AF { 6 } else { 4 };

    let bytes = u64::from(skb.length()).saturating_sub(ETHERNET_BYTES as u64);
    if let Some(record) = FLOWS.get_ptr_mut(&*key) {
        // SAFETY: the entry stays writable as long as the program runs. One that is used again meanwhile is another
        // flow's and counts a packet too many.
        unsafe { count(record, from_opener, bytes, env.now) };
        return Some(());
    }
    let judged = dropped.is_none_or(is_of_policy);
    if !known && judged {
        let source = locate::<F>(opener, env.generation);
        let destination = locate::<F>(responder, env.generation);
        let protocol = u32::from(packet.protocol) << 16;
        let sides = Sides {
            opener: source,
            responder: destination,
            ports: [protocol | u32::from(ports[0]), protocol | u32::from(ports[1])],
        };
        let ends = [end(&env, &sides, false), end(&env, &sides, true)];
        record.slots = [ends[0].slot, ends[1].slot];
        record.rules = [ends[0].rule, ends[1].rule];
    }
    record.packets = [u64::from(from_opener), u64::from(!from_opener)];
    record.bytes = [record.packets[0] * bytes, record.packets[1] * bytes];
    record.first = env.now;
    record.last = env.now;
    record.reserved = [0; 2];
    // Another processor may have been faster: then this packet is not counted.
    FLOWS.insert(&*key, &*record, BPF_NOEXIST).ok()
}

#[inline(always)]
const fn is_of_policy(reason: u32) -> bool {
    reason == DropReason::PolicyEgress as u32
        || reason == DropReason::PolicyIngress as u32
        || reason == DropReason::RejectedEgress as u32
        || reason == DropReason::RejectedIngress as u32
}

/// # Safety
/// `record` must be a value of the map.
#[inline(always)]
unsafe fn count(record: *mut FlowRecord, from_opener: bool, bytes: u64, now: u32) {
    // SAFETY: as the caller promises; the fields are aligned.
    unsafe {
        let (packets, sum) = if from_opener {
            (&raw mut (*record).packets[0], &raw mut (*record).bytes[0])
        } else {
            (&raw mut (*record).packets[1], &raw mut (*record).bytes[1])
        };
        add(packets, 1);
        add(sum, bytes as i64);
        ptr::write_volatile(&raw mut (*record).last, now);
    }
}

#[inline(always)]
fn is_of_link<F: Tables>(number: u8, icmp: u16) -> bool {
    let kind = icmp >> 8;
    F::AF == V6::AF && number == protocol::ICMPV6 && kind >= LINK_MESSAGES[0] && kind <= LINK_MESSAGES[1]
}
