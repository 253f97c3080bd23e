//! Looking for the rule that decides.
//!
//! Global functions over plain numbers: the verifier looks at each once, not at every call.

use calico_ebpf_common::{
    abi::{Block, NodeRef},
    judge::{self, Arena, Decision, Search, Visit},
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
    fn search(&self, vectors: [u32; 4], first: u32) -> Search {
        let [own, peer, to, from] = vectors.map(u64::from);
        let result = cali_search(own << 32 | peer, to << 32 | from, first);
        match result & !0xffff_ffff {
            0 => Search::Nothing,
            FOUND => Search::Found(result as u32),
            FURTHER => Search::Next(result as u32),
            _ => Search::Broken,
        }
    }

    #[inline(always)]
    fn has(&self, vector: u32, rule: u32) -> bool {
        cali_has(vector, rule) != 0
    }
}

const DECIDED: u64 = 1 << 63;
const DECIDED_ALLOW: u64 = 1 << 62;
const NEXT: u64 = 1 << 61;
const LOGGED: u64 = 1 << 60;
const DECIDED_REJECT: u64 = 1 << 59;

/// [`judge::visit`].
#[inline(always)]
pub(crate) fn visit(fields: [NodeRef; 4], table: u32, first: u32) -> Visit {
    let [own, peer, to, from] = fields.map(|field| u64::from(field.0));
    let visited = cali_visit(own << 32 | peer, to << 32 | from, u64::from(table) << 32 | u64::from(first));
    let rule = (visited >> 32) as u32 & 0xffff;
    if visited & DECIDED != 0 {
        let (allow, reject) = (visited & DECIDED_ALLOW != 0, visited & DECIDED_REJECT != 0);
        Visit::Decided(Decision { allow, reject, counter: visited as u32, rule })
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
extern "C" fn cali_visit(own_peer: u64, to_from: u64, table_first: u64) -> u64 {
    let fields = halves(own_peer, to_from).map(NodeRef);
    match judge::visit(&Blocks, fields, (table_first >> 32) as u32, table_first as u32) {
        Visit::Decided(decision) => {
            let verdict = if decision.allow {
                DECIDED_ALLOW
            } else if decision.reject {
                DECIDED_REJECT
            } else {
                0
            };
            DECIDED | verdict | u64::from(decision.rule & 0xffff) << 32 | u64::from(decision.counter)
        }
        Visit::Next(rule) => NEXT | u64::from(rule),
        // The last rule of a table is no `Log` rule: the next one's number has 16 bits.
        Visit::Logged { counter, next } => LOGGED | u64::from(next & 0xffff) << 32 | u64::from(counter),
        Visit::Nothing => 0,
    }
}

const FOUND: u64 = 1 << 32;
const FURTHER: u64 = 2 << 32;
const BROKEN: u64 = 3 << 32;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_search(own_peer: u64, to_from: u64, first: u32) -> u64 {
    match judge::search(&Blocks, halves(own_peer, to_from), first) {
        Search::Nothing => 0,
        Search::Found(rule) => FOUND | u64::from(rule),
        Search::Next(rule) => FURTHER | u64::from(rule),
        Search::Broken => BROKEN,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cali_has(vector: u32, rule: u32) -> u32 {
    judge::has(&Blocks, vector, rule).into()
}

#[inline(always)]
const fn halves(own_peer: u64, to_from: u64) -> [u32; 4] {
    [(own_peer >> 32) as u32, own_peer as u32, (to_from >> 32) as u32, to_from as u32]
}
