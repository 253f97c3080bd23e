//! Judging a new connection: which rule of a table decides. See [`crate::abi`] for the tables.

use crate::abi::{Action, Block, CHUNK_RULES, NodeRef, RuleEntry, VEC_ANY, VEC_NONE};

/// The array of blocks that tables live in.
///
/// The kernel makes functions apart of those that are given here: its verifier then looks at each once, and not wherever it
/// is called.
pub trait Arena {
    /// Block number `index`; `None` beyond the end.
    fn block(&self, index: u32) -> Option<&Block>;

    /// [`single_rules`].
    #[inline(always)]
    fn single_rules(&self, fields: [NodeRef; 4], table: u32) -> u64 {
        single_rules(self, fields, table)
    }

    /// [`visit`].
    #[inline(always)]
    fn visit(&self, fields: [NodeRef; 4], singles: u64, table: u32, first: u32) -> Visit {
        visit(self, fields, singles, table, first)
    }

    /// [`has`].
    #[inline(always)]
    fn has(&self, vector: u32, rule: u32) -> bool {
        has(self, vector, rule)
    }

    /// A `Log` rule was met, of this counter slot.
    #[inline(always)]
    fn logged(&self, counter: u32) {
        let _ = counter;
    }
}

impl Arena for [Block] {
    fn block(&self, index: u32) -> Option<&Block> {
        self.get(index as usize)
    }
}

/// What a table looks at in a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Class of the address of the workload whose table it is.
    pub own_class: u32,
    /// Class of the other address.
    pub peer_class: u32,
    /// IP protocol number.
    pub protocol: u8,
    /// 0 where the protocol has none.
    pub source_port: u16,
    /// ICMP: `type << 8 | code`; 0 where the protocol has none.
    pub destination_port: u16,
    /// The host has translated its destination: policy before DNAT was asked about the one before.
    pub behind_dnat: bool,
}

/// What a table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    /// The packet may pass.
    Allow = 1,
    /// It may not.
    Deny = 2,
    /// It may not, and the sender is told.
    Reject = 4,
    /// Whatever judges behind this table decides.
    Leave = 8,
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// Counter slot of the rule that decided.
    pub counter: u32,
    /// Number of that rule in the table.
    pub rule: u32,
}

/// What one look at a chunk came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visit {
    /// A rule decides.
    Decided(Decision),
    /// Go on with this rule.
    Next(u32),
    /// A `Log` rule is met: go on with the next one.
    Logged {
        /// Its counter slot.
        counter: u32,
        /// The next one.
        next: u32,
    },
    /// The table is broken.
    Nothing,
}

/// Visits of chunks and rules in one judgement. The compiler of the tables guarantees that no packet needs more:
/// each chunk is visited at most once, and once more for each `Pass` and `Log` on the way.
pub const VISITS: u32 = crate::abi::MAX_CHUNKS + 64;

/// Judges `subject` by the table at block `table`; `None` where there is no table or it is broken.
#[inline(always)]
pub fn judge<A: Arena + ?Sized>(arena: &A, table: u32, subject: &Subject) -> Option<Decision> {
    let header = arena.block(table)?;
    let protocol = u32::from(subject.protocol) << 16;
    if header.u32_at(1) == 0 {
        return None;
    }
    let fields = [
        walk(arena, header.u32_at(4), subject.own_class)?,
        walk(arena, header.u32_at(5), subject.peer_class)?,
        walk(arena, header.u32_at(6), protocol | u32::from(subject.destination_port))?,
        walk(arena, header.u32_at(7), protocol | u32::from(subject.source_port))?,
    ];
    let by_rule = fields.into_iter().any(NodeRef::is_rule);
    let singles = if by_rule { arena.single_rules(fields, table) } else { NO_SINGLES };
    let mut first = if subject.behind_dnat { header.u32_at(12) } else { 0 };
    for _ in 0..VISITS {
        match arena.visit(fields, singles, table, first) {
            Visit::Decided(decision) => return Some(decision),
            Visit::Next(next) => first = next,
            Visit::Logged { counter, next } => {
                arena.logged(counter);
                first = next;
            }
            Visit::Nothing => return None,
        }
    }
    None
}

/// Whether the rule that decided is one of policy before DNAT.
#[inline(always)]
pub fn is_before_dnat<A: Arena + ?Sized>(arena: &A, table: u32, decision: &Decision) -> bool {
    arena.block(table).is_some_and(|header| decision.rule < header.u32_at(12) && decision.rule >= header.u32_at(13))
}

/// Four times 16 bits, each without a rule: no search gets beyond the last rule that can have this number.
const NO_SINGLES: u64 = u64::MAX;

/// Of the rules that stand for a field's vector those that are in the vectors of all four fields: four times 16 bits, each the
/// number of one, or all ones.
#[inline(always)]
pub fn single_rules<A: Arena + ?Sized>(arena: &A, fields: [NodeRef; 4], table: u32) -> u64 {
    let Some(header) = arena.block(table) else { return NO_SINGLES };
    let mut singles = NO_SINGLES;
    for field in fields {
        let rule = field.place();
        let in_vector = |(other, number): (NodeRef, u32)| {
            other == field
                || match stored(header, other, number) {
                    VEC_ANY => true,
                    VEC_NONE => false,
                    vector => arena.has(vector, rule),
                }
        };
        if field.is_rule() && fields.into_iter().zip(0..).all(in_vector) {
            singles = singles << 16 | u64::from(rule & 0xffff);
        }
    }
    singles
}

/// What is stored of a field's vector: where one rule stands for it, the rest.
#[inline(always)]
fn stored(header: &Block, field: NodeRef, number: u32) -> u32 {
    if field.is_rule() { header.u32_at(8 + number) } else { field.place() }
}

/// Whether a rule is in the vector whose header is at block `vector`.
#[inline(always)]
pub fn has<A: Arena + ?Sized>(arena: &A, vector: u32, rule: u32) -> bool {
    let look = || {
        let vector = arena.block(vector)?;
        let chunk = rule / CHUNK_RULES;
        if vector.words[(chunk / 64) as usize & 1] >> (chunk & 63) & 1 == 0 {
            return Some(false);
        }
        let word = arena.block(place(vector, chunk))?.words[(rule / 64) as usize & 7];
        Some(word >> (rule & 63) & 1 != 0)
    };
    look().unwrap_or(false)
}

/// Looks for the first rule from number `first` on that is in the vectors of all four fields, but in no more than one chunk.
/// `singles` are those of [`single_rules`].
#[inline(always)]
pub fn visit<A: Arena + ?Sized>(arena: &A, fields: [NodeRef; 4], singles: u64, table: u32, first: u32) -> Visit {
    try_visit(arena, fields, singles, table, first).unwrap_or(Visit::Nothing)
}

#[inline(always)]
fn try_visit<A: Arena + ?Sized>(
    arena: &A,
    fields: [NodeRef; 4],
    singles: u64,
    table: u32,
    first: u32,
) -> Option<Visit> {
    let header = arena.block(table)?;
    let [own, peer, to, from] = fields;
    let vectors = [stored(header, own, 0), stored(header, peer, 1), stored(header, to, 2), stored(header, from, 3)];
    let (found, further) = if vectors.into_iter().any(|vector| vector == VEC_NONE) {
        (u32::MAX, false)
    } else {
        search(arena, vectors, first)?
    };
    // The last rule decides where no other does.
    let mut rule = header.u32_at(0).wrapping_sub(1);
    for shift in [0, 16, 32, 48] {
        let single = (singles >> shift) as u32 & 0xffff;
        if single >= first && single < rule {
            rule = single;
        }
    }
    if found <= rule {
        if further {
            return Some(Visit::Next(found));
        }
        rule = found;
    }
    let entry = RuleEntry::decode(arena.block(header.u32_at(2).wrapping_add(rule / 8))?.words[rule as usize & 7]);
    let decided = |verdict| Visit::Decided(Decision { verdict, counter: entry.counter, rule });
    Some(match entry.action {
        Action::Allow => decided(Verdict::Allow),
        Action::Deny => decided(Verdict::Deny),
        Action::Reject => decided(Verdict::Reject),
        Action::Leave => decided(Verdict::Leave),
        // A rule passes on to a later one: a broken table does not turn in circles for long, see `VISITS`.
        Action::Pass => Visit::Next(u32::from(entry.next)),
        Action::Log => Visit::Logged { counter: entry.counter, next: rule + 1 },
    })
}

/// The first rule from number `first` on that is in all four vectors (given by their header blocks), looked for in no more
/// than one chunk; or where to look further, and true. `None` where the table is broken.
#[inline(always)]
fn search<A: Arena + ?Sized>(arena: &A, vectors: [u32; 4], first: u32) -> Option<(u32, bool)> {
    let (own, peer) = (arena.block(vectors[0])?, arena.block(vectors[1])?);
    let (to, from) = (arena.block(vectors[2])?, arena.block(vectors[3])?);
    // The first chunk, from that of `first` on, in which all four have a rule.
    let low = own.words[0] & peer.words[0] & to.words[0] & from.words[0] & from_bit(first / CHUNK_RULES, 0);
    let high = own.words[1] & peer.words[1] & to.words[1] & from.words[1] & from_bit(first / CHUNK_RULES, 1);
    let chunk = if low != 0 {
        low.trailing_zeros()
    } else if high != 0 {
        64 + high.trailing_zeros()
    } else {
        return Some((u32::MAX, false));
    };
    let own = arena.block(place(own, chunk))?;
    let peer = arena.block(place(peer, chunk))?;
    let to = arena.block(place(to, chunk))?;
    let from = arena.block(place(from, chunk))?;
    let start = if chunk == first / CHUNK_RULES { first % CHUNK_RULES } else { 0 };
    let mut found = CHUNK_RULES;
    for word in (0..8).rev() {
        let bits = own.words[word] & peer.words[word] & to.words[word] & from.words[word];
        let bits = bits & from_bit(start, word as u32);
        if bits != 0 {
            found = word as u32 * 64 + bits.trailing_zeros();
        }
    }
    Some((chunk * CHUNK_RULES + found, found == CHUNK_RULES))
}

/// Follows a radix tree to the vector of `key` (24 bits).
#[inline(always)]
pub fn walk<A: Arena + ?Sized>(arena: &A, root: u32, key: u32) -> Option<NodeRef> {
    let mut node = NodeRef(root);
    for shift in [16, 8, 0] {
        if node.is_vector() {
            break;
        }
        let slot = key >> shift & 0xff;
        node = NodeRef(arena.block(node.place() + slot / 16)?.u32_at(slot));
    }
    node.is_vector().then_some(node)
}

/// Block of a chunk that the vector has.
#[inline(always)]
fn place(vector: &Block, chunk: u32) -> u32 {
    let rank = if chunk < 64 {
        below(vector.words[0], chunk).count_ones()
    } else {
        vector.words[0].count_ones() + below(vector.words[1], chunk & 63).count_ones()
    };
    let (base, stride) = (vector.u32_at(4), vector.u32_at(5));
    base + rank * stride
}

/// The bits of `word` below bit `bit` (less than 64).
#[inline(always)]
const fn below(word: u64, bit: u32) -> u64 {
    word & ((1 << (bit & 63)) - 1)
}

/// In word number `word` of a bit set, a mask of the bits from bit `first` of the whole set on.
#[inline(always)]
const fn from_bit(first: u32, word: u32) -> u64 {
    let start = word * 64;
    if first <= start {
        u64::MAX
    } else if first >= start + 64 {
        0
    } else {
        u64::MAX << (first - start)
    }
}
