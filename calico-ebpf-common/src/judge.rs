//! Judging a new connection: which rule of a table decides. See [`crate::abi`] for the tables.

use crate::abi::{Action, Block, CHUNK_RULES, NodeRef, RuleEntry, VEC_ANY, VEC_NONE};

/// The array of blocks that tables live in.
///
/// The kernel makes functions apart of those that are given here: its verifier then looks at each once, and not wherever it
/// is called.
pub trait Arena {
    /// Block number `index`; `None` beyond the end.
    fn block(&self, index: u32) -> Option<&Block>;

    /// [`visit`].
    #[inline(always)]
    fn visit(&self, fields: [NodeRef; 4], table: u32, first: u32) -> Visit {
        visit(self, fields, table, first)
    }

    /// [`search`].
    #[inline(always)]
    fn search(&self, vectors: [u32; 4], first: u32) -> Search {
        search(self, vectors, first)
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
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether the packet may pass.
    pub allow: bool,
    /// Whether the sender is told that it may not.
    pub reject: bool,
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

/// What one look at the vectors of all four fields came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// The first rule that is in all of them.
    Found(u32),
    /// There is none before this one.
    Next(u32),
    /// There is none.
    Nothing,
    /// The table is broken.
    Broken,
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
    let mut first = 0;
    for _ in 0..VISITS {
        match arena.visit(fields, table, first) {
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

/// Looks for the first rule from number `first` on that is in the vectors of all four fields, but in no more than one chunk.
#[inline(always)]
pub fn visit<A: Arena + ?Sized>(arena: &A, fields: [NodeRef; 4], table: u32, first: u32) -> Visit {
    try_visit(arena, fields, table, first).unwrap_or(Visit::Nothing)
}

#[inline(always)]
fn try_visit<A: Arena + ?Sized>(arena: &A, fields: [NodeRef; 4], table: u32, first: u32) -> Option<Visit> {
    let header = arena.block(table)?;
    let [own, peer, to, from] = fields;
    // What is stored of the vector: where one rule stands for it, the rest.
    let stored = |field: NodeRef, number: u32| if field.is_rule() { header.u32_at(8 + number) } else { field.place() };
    let vectors = [stored(own, 0), stored(peer, 1), stored(to, 2), stored(from, 3)];
    // The last rule decides where no other does.
    let mut rule = header.u32_at(0).wrapping_sub(1);
    for field in fields {
        let candidate = field.place();
        let in_all = || fields.into_iter().zip(vectors).all(|(field, stored)| is_in(arena, field, stored, candidate));
        if field.is_rule() && candidate >= first && candidate < rule && in_all() {
            rule = candidate;
        }
    }
    if vectors.into_iter().all(|vector| vector != VEC_NONE) {
        match arena.search(vectors, first) {
            Search::Found(found) if found < rule => rule = found,
            Search::Next(next) if next <= rule => return Some(Visit::Next(next)),
            Search::Broken => return None,
            Search::Found(_) | Search::Next(_) | Search::Nothing => {}
        }
    }
    let entry = RuleEntry::decode(arena.block(header.u32_at(2).wrapping_add(rule / 8))?.words[rule as usize & 7]);
    let decided = |allow, reject| Visit::Decided(Decision { allow, reject, counter: entry.counter, rule });
    Some(match entry.action {
        Action::Allow => decided(true, false),
        Action::Deny => decided(false, false),
        Action::Reject => decided(false, true),
        // A rule passes on to a later one: a broken table does not turn in circles for long, see `VISITS`.
        Action::Pass => Visit::Next(u32::from(entry.next)),
        Action::Log => Visit::Logged { counter: entry.counter, next: rule + 1 },
    })
}

/// Whether a rule is in the vector of a field; `stored` is what of it has blocks.
#[inline(always)]
fn is_in<A: Arena + ?Sized>(arena: &A, field: NodeRef, stored: u32, rule: u32) -> bool {
    field == NodeRef::rule(rule)
        || match stored {
            VEC_ANY => true,
            VEC_NONE => false,
            vector => arena.has(vector, rule),
        }
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

/// Looks for the first rule from number `first` on that is in all four vectors (given by their header blocks), but in no
/// more than one chunk.
#[inline(always)]
pub fn search<A: Arena + ?Sized>(arena: &A, vectors: [u32; 4], first: u32) -> Search {
    try_search(arena, vectors, first).unwrap_or(Search::Broken)
}

#[inline(always)]
fn try_search<A: Arena + ?Sized>(arena: &A, vectors: [u32; 4], first: u32) -> Option<Search> {
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
        return Some(Search::Nothing);
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
    let rule = chunk * CHUNK_RULES + found;
    Some(if found == CHUNK_RULES { Search::Next(rule) } else { Search::Found(rule) })
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
