//! Asking the rule tables.

use calico_ebpf_common::{
    abi::{Block, DropReason, NO_RULE, NodeRef, Workload},
    judge::{Arena, Decision, Subject, Verdict, Visit, is_before_dnat, judge},
    packet::V6,
};

use crate::{
    count,
    log::cali_record_log,
    maps::{RULE_HITS, RULES},
    tables::Tables,
    visit::{single_rules, visit},
};

/// The arena, and what to do about `Log` rules: `V6` is the family of the packet at hand.
struct Blocks<const LOGS: bool> {
    v6: bool,
}

impl<const LOGS: bool> Arena for Blocks<LOGS> {
    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        RULES.get(index)
    }

    #[inline(always)]
    fn single_rules(&self, fields: [NodeRef; 4], table: u32) -> u64 {
        single_rules(fields, table)
    }

    #[inline(always)]
    fn visit(&self, fields: [NodeRef; 4], singles: u64, table: u32, first: u32) -> Visit {
        visit(fields, singles, table, first)
    }

    #[inline(always)]
    fn logged(&self, counter: u32) {
        if LOGS {
            cali_record_log(counter, self.v6.into());
        }
    }
}

pub(crate) const ALLOWED: u64 = Verdict::Allow as u64;
pub(crate) const DENIED: u64 = Verdict::Deny as u64;
pub(crate) const REJECTED: u64 = Verdict::Reject as u64;
pub(crate) const LEFT: u64 = Verdict::Leave as u64;

/// Besides: the rule is one of policy before DNAT.
const BEFORE_DNAT: u64 = 1 << 8;

/// In `to` of [`cali_judge`]: the packet is IPv6.
pub(crate) const V6_BIT: u32 = 1 << 31;

/// Likewise: see [`Subject::behind_dnat`].
const BEHIND_DNAT_BIT: u32 = 1 << 30;

/// Judges by one table: [`ALLOWED`], [`DENIED`], [`REJECTED`] or [`LEFT`] with the rule's counter in the upper half, or 0 without a table;
/// with [`BEFORE_DNAT`]. `to` and `from` are `protocol << 16 | port`, and in `to` [`V6_BIT`] and [`BEHIND_DNAT_BIT`].
///
/// A global function over plain numbers: the verifier looks at it once, not at every call.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cali_judge(table: u32, own_class: u32, peer_class: u32, to: u32, from: u32) -> u64 {
    let blocks = Blocks::<true> { v6: to & V6_BIT != 0 };
    let Some(decision) = judge(&blocks, table, &subject(own_class, peer_class, to, from)) else { return 0 };
    count(RULE_HITS.get_ptr_mut(decision.counter));
    let before_dnat = if is_before_dnat(&blocks, table, &decision) { BEFORE_DNAT } else { 0 };
    verdict(&decision) | before_dnat
}

/// Likewise, but nothing is counted or logged.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn cali_ask(table: u32, own_class: u32, peer_class: u32, to: u32, from: u32) -> u64 {
    match judge(&Blocks::<false> { v6: false }, table, &subject(own_class, peer_class, to, from)) {
        Some(decision) => verdict(&decision),
        None => 0,
    }
}

#[inline(always)]
fn subject(own_class: u32, peer_class: u32, to: u32, from: u32) -> Subject {
    Subject {
        own_class,
        peer_class,
        protocol: (to >> 16) as u8,
        source_port: from as u16,
        destination_port: to as u16,
        behind_dnat: to & BEHIND_DNAT_BIT != 0,
    }
}

#[inline(always)]
fn verdict(decision: &Decision) -> u64 {
    u64::from(decision.counter) << 32 | u64::from(decision.verdict as u8)
}

/// What lets a connection pass.
#[derive(Clone, Copy)]
pub(crate) struct Allowed {
    pub rules: [u32; 2],
    /// One of them is of policy before DNAT.
    pub before_dnat: bool,
}

/// Why it does not pass.
#[derive(Clone, Copy)]
pub(crate) struct Denied {
    pub reason: DropReason,
    /// By policy before DNAT: nothing that the stack could do to the packet changes that.
    pub before_dnat: bool,
}

impl From<Denied> for DropReason {
    #[inline(always)]
    fn from(denied: Denied) -> Self {
        denied.reason
    }
}

impl From<DropReason> for Denied {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self { reason, before_dnat: false }
    }
}

/// What both ends say of a connection: the rules that allow it, or why it is dropped. An end that is no workload of
/// this host says nothing. The first of each pair is the opener's, or the source's. `behind_dnat`: see [`Subject`].
#[inline(always)]
pub(crate) fn judge_ends<F: Tables>(
    generation: u32,
    workloads: [Option<&Workload>; 2],
    classes: [u32; 2],
    protocol: u8,
    ports: [u16; 2],
    behind_dnat: bool,
) -> Result<Allowed, Denied> {
    let [opener, responder] = workloads;
    let [opener_class, responder_class] = classes;
    let protocol = u32::from(protocol) << 16;
    let family = if F::AF == V6::AF { V6_BIT } else { 0 };
    let behind_dnat = u32::from(behind_dnat) * BEHIND_DNAT_BIT;
    let (from, to) = (protocol | u32::from(ports[0]), family | behind_dnat | protocol | u32::from(ports[1]));
    let mut allowed = Allowed { rules: [NO_RULE; 2], before_dnat: false };
    if let Some(opener) = opener {
        let table = opener.policy(generation).egress_table;
        let verdict = cali_judge(table, opener_class, responder_class, to, from);
        allowed.rules[0] = rule(verdict, EGRESS)?;
        allowed.before_dnat |= verdict & BEFORE_DNAT != 0;
    }
    if let Some(responder) = responder {
        let table = responder.policy(generation).ingress_table;
        let verdict = cali_judge(table, responder_class, opener_class, to, from);
        allowed.rules[1] = rule(verdict, INGRESS)?;
        allowed.before_dnat |= verdict & BEFORE_DNAT != 0;
    }
    Ok(allowed)
}

/// Why what an end denies is dropped: in silence, or with an answer.
pub(crate) type Denial = [DropReason; 2];

pub(crate) const EGRESS: Denial = [DropReason::PolicyEgress, DropReason::RejectedEgress];
pub(crate) const INGRESS: Denial = [DropReason::PolicyIngress, DropReason::RejectedIngress];

#[inline(always)]
fn rule(verdict: u64, [denied, rejected]: Denial) -> Result<u32, Denied> {
    let reason = if verdict & ALLOWED != 0 {
        return Ok((verdict >> 32) as u32);
    } else if verdict & DENIED != 0 {
        denied
    } else if verdict & REJECTED != 0 {
        rejected
    } else {
        DropReason::NoTable
    };
    Err(Denied { reason, before_dnat: verdict & BEFORE_DNAT != 0 })
}
