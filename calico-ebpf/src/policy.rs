//! Asking the rule tables.

use calico_ebpf_common::{
    abi::{Block, DropReason, NO_RULE, Workload},
    judge::{Arena, Subject, judge},
};

use crate::{count, maps::{RULE_HITS, RULES}};

struct Blocks;

impl Arena for Blocks {
    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        RULES.get(index)
    }
}

const ALLOWED: u64 = 1;
const DENIED: u64 = 2;

/// Judges by one table: [`ALLOWED`] or [`DENIED`] with the rule's counter in the upper half, or 0 without a table.
/// `to` and `from` are `protocol << 16 | port`.
///
/// A global function over plain numbers: the verifier looks at it once, not at every call.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_judge(table: u32, own_class: u32, peer_class: u32, to: u32, from: u32) -> u64 {
    let subject = Subject {
        own_class,
        peer_class,
        protocol: (to >> 16) as u8,
        source_port: from as u16,
        destination_port: to as u16,
    };
    let Some(decision) = judge(&Blocks, table, &subject) else { return 0 };
    count(RULE_HITS.get_ptr_mut(decision.counter));
    u64::from(decision.counter) << 32 | if decision.allow { ALLOWED } else { DENIED }
}

/// What both ends say of a connection: the rules that allow it, or why it is dropped. An end that is no workload of
/// this host says nothing. The first of each pair is the opener's, or the source's.
#[inline(always)]
pub(crate) fn judge_ends(
    generation: u32,
    workloads: [Option<&Workload>; 2],
    classes: [u32; 2],
    protocol: u8,
    ports: [u16; 2],
) -> Result<[u32; 2], DropReason> {
    let [opener, responder] = workloads;
    let [opener_class, responder_class] = classes;
    let protocol = u32::from(protocol) << 16;
    let (from, to) = (protocol | u32::from(ports[0]), protocol | u32::from(ports[1]));
    let mut rules = [NO_RULE; 2];
    if let Some(opener) = opener {
        let table = opener.policy(generation).egress_table;
        rules[0] = allowed(cali_judge(table, opener_class, responder_class, to, from), DropReason::PolicyEgress)?;
    }
    if let Some(responder) = responder {
        let table = responder.policy(generation).ingress_table;
        rules[1] = allowed(cali_judge(table, responder_class, opener_class, to, from), DropReason::PolicyIngress)?;
    }
    Ok(rules)
}

#[inline(always)]
fn allowed(verdict: u64, denied: DropReason) -> Result<u32, DropReason> {
    if verdict & ALLOWED != 0 {
        Ok((verdict >> 32) as u32)
    } else if verdict & DENIED != 0 {
        Err(denied)
    } else {
        Err(DropReason::NoTable)
    }
}
