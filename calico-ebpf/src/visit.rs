//! Looking for the rule that decides.
//!
//! Global functions over plain numbers: the verifier looks at each once, not at every call.

use calico_ebpf_common::{
    abi::{Block, NodeRef},
    judge::{self, Arena, Decision, Verdict, Visit},
};

use crate::maps::RULES;

/// The arena.
struct Blocks;

impl Arena for Blocks {
    #[inline(always)]
    fn block(&self, index: u32) -> Option<&Block> {
        RULES.get(index)
    }

    #[inline(always)]
    fn has(&self, vector: u32, rule: u32) -> bool {
        cali_has(vector, rule) != 0
    }
}

/// [`judge::single_rules`].
#[inline(always)]
pub(crate) fn single_rules(fields: [NodeRef; 4], table: u32) -> u64 {
    let [own_peer, to_from] = pairs(fields);
    cali_single_rules(own_peer, to_from, table)
}

/// Two numbers in each parameter.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_single_rules(own_peer: u64, to_from: u64, table: u32) -> u64 {
    judge::single_rules(&Blocks, fields(own_peer, to_from), table)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_has(vector: u32, rule: u32) -> u32 {
    judge::has(&Blocks, vector, rule).into()
}

const DECIDED: u64 = 1 << 63;
const NEXT: u64 = 1 << 61;
const LOGGED: u64 = 1 << 60;
/// Where the verdict of [`DECIDED`] stands: a [`Verdict`] as a number.
const VERDICT: u32 = 48;
const ALLOW: u8 = Verdict::Allow as u8;
const REJECT: u8 = Verdict::Reject as u8;
const LEAVE: u8 = Verdict::Leave as u8;

/// [`judge::visit`].
#[inline(always)]
pub(crate) fn visit(fields: [NodeRef; 4], singles: u64, table: u32, first: u32) -> Visit {
    let [own_peer, to_from] = pairs(fields);
    let visited = cali_visit(own_peer, to_from, singles, u64::from(table) << 32 | u64::from(first));
    let rule = (visited >> 32) as u32 & 0xffff;
    if visited & DECIDED != 0 {
        let verdict = match (visited >> VERDICT) as u8 {
            ALLOW => Verdict::Allow,
            REJECT => Verdict::Reject,
            LEAVE => Verdict::Leave,
            _ => Verdict::Deny,
        };
        Visit::Decided(Decision { verdict, counter: visited as u32, rule })
    } else if visited & NEXT != 0 {
        Visit::Next(visited as u32)
    } else if visited & LOGGED != 0 {
        Visit::Logged { counter: visited as u32, next: rule }
    } else {
        Visit::Nothing
    }
}

/// Two numbers in each parameter.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_visit(own_peer: u64, to_from: u64, singles: u64, table_first: u64) -> u64 {
    let fields = fields(own_peer, to_from);
    match judge::visit(&Blocks, fields, singles, (table_first >> 32) as u32, table_first as u32) {
        Visit::Decided(decision) => {
            let verdict = u64::from(decision.verdict as u8) << VERDICT;
            DECIDED | verdict | u64::from(decision.rule & 0xffff) << 32 | u64::from(decision.counter)
        }
        Visit::Next(rule) => NEXT | u64::from(rule),
        // The last rule of a table is no `Log` rule: the next one's number has 16 bits.
        Visit::Logged { counter, next } => LOGGED | u64::from(next & 0xffff) << 32 | u64::from(counter),
        Visit::Nothing => 0,
    }
}

#[inline(always)]
fn pairs(fields: [NodeRef; 4]) -> [u64; 2] {
    let [own, peer, to, from] = fields.map(|field| u64::from(field.0));
    [own << 32 | peer, to << 32 | from]
}

#[inline(always)]
fn fields(own_peer: u64, to_from: u64) -> [NodeRef; 4] {
    [(own_peer >> 32) as u32, own_peer as u32, (to_from >> 32) as u32, to_from as u32].map(NodeRef)
}
