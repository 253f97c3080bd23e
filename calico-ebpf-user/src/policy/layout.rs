//! A rule table as objects in the arena.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use calico_ebpf_common::abi::{Block, CHUNK_RULES, NODE_BLOCKS, NODE_ENTRIES, NodeRef, RuleEntry, VEC_ANY, VEC_NONE};

use super::{
    arena::{Arena, Kind},
    compiled::{AddressMatch, RuleMatch, RuleName, Table, TableRule},
    write::LimitError,
};

/// What a class stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ClassKey {
    /// Whether the addresses are IPv6.
    pub(super) v6: bool,
    /// The conditions that hold, sorted.
    pub(super) conditions: Arc<[u32]>,
}

/// The counter of a rule.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counter {
    pub(super) number: u32,
    /// How often tables have the rule.
    pub(super) uses: u32,
}

/// Bits of a radix tree's key.
const KEY_BITS: u32 = 24;
/// Keys.
const KEYS: u32 = 1 << KEY_BITS;

/// A table in the arena.
#[derive(Clone, Debug)]
pub(super) struct Built {
    /// Block of the header.
    pub(super) header: u32,
    /// All that it uses, itself included.
    pub(super) objects: Arc<[u32]>,
    /// What people call it.
    pub(super) number: u32,
    own: ClassField,
    peer: ClassField,
    destination_port: Field,
    source_port: Field,
    entries: u32,
    /// Objects of the fields that do not depend on classes, and the entries.
    fixed: Arc<[u32]>,
}

/// A field in the arena.
#[derive(Clone, Copy, Debug)]
struct Field {
    root: NodeRef,
    /// The vector of the rules that do not look at it.
    indifferent: NodeRef,
}

/// A field whose value is a class.
#[derive(Clone, Debug)]
struct ClassField {
    /// Conditions that any rule asks about.
    relevant: Arc<BTreeSet<u32>>,
    /// Whether any rule asks for the address family.
    by_family: bool,
    /// Vectors by what is relevant of a class.
    vectors: HashMap<(bool, Vec<u32>), NodeRef>,
    /// Classes whose vector is not that of class 0, which all keys have that are no class.
    leaves: BTreeMap<u32, NodeRef>,
    field: Field,
    objects: Vec<u32>,
}

/// What classes there are now, and which of them are new or mean something else than before.
pub(super) struct Classes<'a> {
    pub(super) all: &'a [(ClassKey, u32)],
    pub(super) added: &'a [(ClassKey, u32)],
    /// Whether classes went, too: then everything is looked at.
    pub(super) removed: bool,
    /// For whoever looks at everything.
    pub(super) index: &'a ClassIndex,
}

/// Classes by the conditions that hold for them: places in [`Classes::all`].
#[derive(Default)]
pub(super) struct ClassIndex(OnceCell<HashMap<u32, Vec<usize>>>);

impl Classes<'_> {
    /// All classes that any of these conditions, or the family, can tell from class 0.
    fn told_apart(&self, conditions: &BTreeSet<u32>, by_family: bool) -> impl Iterator<Item = &(ClassKey, u32)> {
        let index = self.index.0.get_or_init(|| {
            let mut index = HashMap::<u32, Vec<usize>>::new();
            for (place, (key, _)) in self.all.iter().enumerate() {
                for &condition in &*key.conditions {
                    index.entry(condition).or_default().push(place);
                }
            }
            index
        });
        let mut places: BTreeSet<usize> = conditions.iter().filter_map(|c| index.get(c)).flatten().copied().collect();
        if by_family {
            places.extend((0..self.all.len()).filter(|place| self.all[*place].0.v6));
        }
        places.into_iter().map(|place| &self.all[place])
    }
}

impl Built {
    /// Lays `table` out.
    pub(super) fn new(
        arena: &mut Arena,
        table: &Table,
        number: u32,
        counters: &HashMap<Arc<RuleName>, Counter>,
        classes: &Classes<'_>,
    ) -> Result<Self, LimitError> {
        let mut fixed = BTreeSet::new();
        let entries = intern_entries(arena, table, counters)?;
        fixed.insert(entries);
        let ports = |of: fn(&RuleMatch) -> &[(u32, u32)], arena: &mut Arena, fixed: &mut BTreeSet<u32>| {
            let (runs, indifferent) = port_runs(arena, table, of)?;
            fixed.extend(runs.iter().map(|run| run.1).chain([indifferent]).filter_map(stored));
            Ok(Field { root: tree(arena, &runs, fixed)?, indifferent })
        };
        let destination_port = ports(|matches| &matches.destination_ports, arena, &mut fixed)?;
        let source_port = ports(|matches| &matches.source_ports, arena, &mut fixed)?;
        let everything = Classes { removed: true, ..*classes };
        let mut own = ClassField::new(arena, table, |matches| &matches.own)?;
        own.update(arena, table, |matches| &matches.own, &everything)?;
        let mut peer = ClassField::new(arena, table, |matches| &matches.peer)?;
        peer.update(arena, table, |matches| &matches.peer, &everything)?;
        let mut built = Self {
            header: 0,
            objects: Arc::default(),
            number,
            own,
            peer,
            destination_port,
            source_port,
            entries,
            fixed: fixed.into_iter().collect(),
        };
        built.finish(arena, table)?;
        Ok(built)
    }

    /// The same table for other classes; `None` if it needs no change.
    pub(super) fn for_classes(
        &self,
        arena: &mut Arena,
        table: &Table,
        classes: &Classes<'_>,
    ) -> Result<Option<Self>, LimitError> {
        if !self.own.concerned(classes) && !self.peer.concerned(classes) {
            return Ok(None);
        }
        let mut built = self.clone();
        built.own.update(arena, table, |matches| &matches.own, classes)?;
        built.peer.update(arena, table, |matches| &matches.peer, classes)?;
        built.finish(arena, table)?;
        Ok(Some(built))
    }

    /// Writes the header.
    fn finish(&mut self, arena: &mut Arena, table: &Table) -> Result<(), LimitError> {
        let rules = table.rules.len() as u32;
        let mut header = Block::default();
        let words = [rules, rules.div_ceil(CHUNK_RULES), self.entries, self.number];
        let fields = [self.own.field, self.peer.field, self.destination_port, self.source_port];
        let roots = fields.map(|field| field.root.0);
        let indifferent = fields.map(|field| field.indifferent.place());
        let before_dnat = [table.before_dnat.end, table.before_dnat.start].map(u32::from);
        for (index, word) in (0..).zip(words.into_iter().chain(roots).chain(indifferent).chain(before_dnat)) {
            header.set_u32(index, word);
        }
        self.header = arena.intern(Kind::Table, &[header])?;
        let mut objects: BTreeSet<u32> = self.fixed.iter().copied().collect();
        objects.extend(self.own.objects.iter().chain(&self.peer.objects).chain([&self.header]));
        self.objects = objects.into_iter().collect();
        Ok(())
    }
}

impl ClassField {
    /// Without a tree yet.
    fn new(arena: &mut Arena, table: &Table, of: fn(&RuleMatch) -> &AddressMatch) -> Result<Self, LimitError> {
        let mut relevant = BTreeSet::new();
        let mut by_family = false;
        for rule in &table.rules {
            let address = of(&rule.matches);
            relevant.extend(address.all_of.iter().flatten().chain(&address.none_of));
            by_family |= address.family.is_some();
        }
        let indifferent = Vectors::new(table, |matches| of(matches).is_empty()).intern_indifferent(arena)?;
        Ok(Self {
            relevant: Arc::new(relevant),
            by_family,
            vectors: HashMap::new(),
            leaves: BTreeMap::new(),
            field: Field { root: indifferent, indifferent },
            objects: Vec::new(),
        })
    }

    /// What of a class matters here.
    fn signature(&self, key: &ClassKey) -> (bool, Vec<u32>) {
        let conditions = key.conditions.iter().copied().filter(|c| self.relevant.contains(c)).collect();
        (self.by_family && key.v6, conditions)
    }

    /// Whether [`update`](Self::update) could change anything.
    fn concerned(&self, classes: &Classes<'_>) -> bool {
        classes.removed && !self.leaves.is_empty()
            || classes.added.iter().any(|(key, _)| self.signature(key) != (false, Vec::new()))
    }

    /// Makes the tree fit the classes.
    fn update(
        &mut self,
        arena: &mut Arena,
        table: &Table,
        of: fn(&RuleMatch) -> &AddressMatch,
        classes: &Classes<'_>,
    ) -> Result<(), LimitError> {
        let mut rules = None;
        let filler = self.vector((false, Vec::new()), arena, table, of, &mut rules)?;
        let mut leaf = |field: &mut Self, key: &ClassKey, class: u32| {
            let vector = field.vector(field.signature(key), arena, table, of, &mut rules)?;
            if vector == filler {
                field.leaves.remove(&class);
            } else {
                field.leaves.insert(class, vector);
            }
            Ok(())
        };
        if classes.removed {
            self.leaves.clear();
            let relevant = Arc::clone(&self.relevant);
            let mut told_apart = classes.told_apart(&relevant, self.by_family);
            told_apart.try_for_each(|(key, class)| leaf(self, key, *class))?;
        } else {
            classes.added.iter().try_for_each(|(key, class)| leaf(self, key, *class))?;
        }

        let mut runs = vec![(0, filler)];
        for (&class, &vector) in &self.leaves {
            if runs.last().is_some_and(|&(start, _)| start == class) {
                runs.pop();
            }
            runs.push((class, vector));
            runs.push((class + 1, filler));
        }
        let mut objects = BTreeSet::new();
        self.field.root = tree(arena, &runs, &mut objects)?;
        let used: BTreeSet<u32> =
            self.leaves.values().copied().chain([filler, self.field.indifferent]).filter_map(stored).collect();
        // A vector that no class leads to any more may go with the last table that still uses it.
        self.vectors.retain(|_, vector| stored(*vector).is_none_or(|vector| used.contains(&vector)));
        objects.extend(used);
        self.objects = objects.into_iter().collect();
        Ok(())
    }

    fn vector<'t>(
        &mut self,
        signature: (bool, Vec<u32>),
        arena: &mut Arena,
        table: &'t Table,
        of: fn(&RuleMatch) -> &AddressMatch,
        rules: &mut Option<ByCondition<'t>>,
    ) -> Result<NodeRef, LimitError> {
        if let Some(&vector) = self.vectors.get(&signature) {
            return Ok(vector);
        }
        let rules = rules.get_or_insert_with(|| ByCondition::new(table, of));
        let vector = rules.vectors.intern(arena, &rules.vector(signature.0, &signature.1))?;
        self.vectors.insert(signature, vector);
        Ok(vector)
    }
}

/// Rules by the conditions that they ask one address about.
struct ByCondition<'t> {
    vectors: Vectors,
    matches: Vec<&'t AddressMatch>,
    rules: HashMap<u32, Vec<u32>>,
    /// The rules that hold where no condition does, for IPv4 and for IPv6.
    without: [Vec<u64>; 2],
}

impl<'t> ByCondition<'t> {
    fn new(table: &'t Table, of: fn(&RuleMatch) -> &AddressMatch) -> Self {
        let vectors = Vectors::new(table, |matches| of(matches).is_empty());
        let matches: Vec<&AddressMatch> = in_vectors(table).iter().map(|rule| of(&rule.matches)).collect();
        let mut rules = HashMap::<u32, Vec<u32>>::new();
        let mut without = [false, true].map(|_| bits(matches.len()));
        for (rule, matches) in (0..).zip(&matches) {
            for &condition in matches.all_of.iter().flatten().chain(&matches.none_of) {
                let rules = rules.entry(condition).or_default();
                if rules.last() != Some(&rule) {
                    rules.push(rule);
                }
            }
            for (v6, without) in [false, true].into_iter().zip(&mut without) {
                if holds(matches, v6, &[]) {
                    set(without, rule, true);
                }
            }
        }
        Self { vectors, matches, rules, without }
    }

    /// The rules that are content with an address of which these conditions hold.
    fn vector(&self, v6: bool, conditions: &[u32]) -> Vec<u64> {
        let mut vector = self.without[usize::from(v6)].clone();
        for condition in conditions {
            for &rule in self.rules.get(condition).into_iter().flatten() {
                set(&mut vector, rule, holds(self.matches[rule as usize], v6, conditions));
            }
        }
        vector
    }
}

/// Whether an address is content with `matches` if exactly these conditions (sorted) hold of it.
pub(super) fn holds(matches: &AddressMatch, v6: bool, conditions: &[u32]) -> bool {
    let holds = |condition: &u32| conditions.binary_search(condition).is_ok();
    matches.family.is_none_or(|family| family == if v6 { 6 } else { 4 })
        && matches.all_of.iter().all(|any| any.iter().any(holds))
        && !matches.none_of.iter().any(holds)
}

/// For each stretch of keys, from its first one on, the vector of the rules whose ranges cover it; and the vector of the rules
/// that have no ranges.
fn port_runs(
    arena: &mut Arena,
    table: &Table,
    of: fn(&RuleMatch) -> &[(u32, u32)],
) -> Result<(Vec<(u32, NodeRef)>, NodeRef), LimitError> {
    let vectors = Vectors::new(table, |matches| of(matches).is_empty());
    let mut vector = vectors.indifferent.clone();
    let mut changes = BTreeMap::<u32, Vec<(u32, bool)>>::new();
    changes.insert(0, Vec::new());
    for (number, rule) in (0..).zip(in_vectors(table)) {
        for &(first, last) in of(&rule.matches) {
            changes.entry(first).or_default().push((number, true));
            changes.entry(last + 1).or_default().push((number, false));
        }
    }
    let mut runs = Vec::with_capacity(changes.len());
    for (start, changes) in changes {
        // Ranges of one rule are disjoint but may be adjacent: what ends comes first.
        for &(rule, on) in changes.iter().filter(|(_, on)| !on).chain(changes.iter().filter(|(_, on)| *on)) {
            set(&mut vector, rule, on);
        }
        if start < KEYS {
            runs.push((start, vectors.intern(arena, &vector)?));
        }
    }
    Ok((runs, vectors.intern_indifferent(arena)?))
}

/// Builds the radix tree for runs of keys that have one vector each; the first one starts at 0.
fn tree(arena: &mut Arena, runs: &[(u32, NodeRef)], objects: &mut BTreeSet<u32>) -> Result<NodeRef, LimitError> {
    subtree(arena, runs, 0, KEY_BITS, objects)
}

/// The subtree for the `1 << bits` keys from `first` on; `runs` are those that meet it.
fn subtree(
    arena: &mut Arena,
    runs: &[(u32, NodeRef)],
    first: u32,
    bits: u32,
    objects: &mut BTreeSet<u32>,
) -> Result<NodeRef, LimitError> {
    let vector = runs.first().map_or(NodeRef::vector(VEC_ANY), |run| run.1);
    if runs.iter().all(|run| run.1 == vector) {
        return Ok(vector);
    }
    let mut node = [Block::default(); NODE_BLOCKS as usize];
    let bits = bits - 8;
    let mut rest = runs;
    for entry in 0..NODE_ENTRIES {
        let start = first + (entry << bits);
        let end = start + (1 << bits);
        let count = rest.partition_point(|run| run.0 < end);
        let child = subtree(arena, &rest[..count], start, bits, objects)?;
        node[entry as usize / 16].set_u32(entry, child.0);
        // The last of them may go on.
        rest = &rest[rest.partition_point(|run| run.0 <= end).saturating_sub(1)..];
    }
    let node = arena.intern(Kind::Node, &node)?;
    objects.insert(node);
    Ok(NodeRef::node(node))
}

fn intern_entries(
    arena: &mut Arena,
    table: &Table,
    counters: &HashMap<Arc<RuleName>, Counter>,
) -> Result<u32, LimitError> {
    let mut blocks = vec![Block::default(); table.rules.len().div_ceil(8)];
    let mut last: Option<(&Arc<RuleName>, u32)> = None;
    for (number, rule) in table.rules.iter().enumerate() {
        let counter = match last {
            Some((name, counter)) if Arc::ptr_eq(name, &rule.name) => counter,
            _ => counters.get(&rule.name).map_or(0, |counter| counter.number),
        };
        last = Some((&rule.name, counter));
        blocks[number / 8].words[number % 8] = RuleEntry { action: rule.action, next: rule.next, counter }.encode();
    }
    arena.intern(Kind::Entries, &blocks)
}

/// The rules that are in vectors: the last one matches everything and is in none.
fn in_vectors(table: &Table) -> &[TableRule] {
    table.rules.split_last().map_or(&[], |(_, rules)| rules)
}

/// Stores the vectors of one field.
struct Vectors {
    rules: usize,
    /// The rules that do not look at the field.
    indifferent: Vec<u64>,
}

impl Vectors {
    fn new(table: &Table, is_indifferent: impl Fn(&RuleMatch) -> bool) -> Self {
        let rules = in_vectors(table);
        let mut indifferent = bits(rules.len());
        for (number, rule) in (0..).zip(rules) {
            set(&mut indifferent, number, is_indifferent(&rule.matches));
        }
        Self { rules: rules.len(), indifferent }
    }

    fn intern_indifferent(&self, arena: &mut Arena) -> Result<NodeRef, LimitError> {
        self.store(arena, &self.indifferent)
    }

    /// What leads to this vector, which has at least the indifferent rules.
    fn intern(&self, arena: &mut Arena, vector: &[u64]) -> Result<NodeRef, LimitError> {
        let mut others =
            vector.iter().zip(&self.indifferent).enumerate().filter(|(_, (word, indifferent))| word != indifferent);
        match (others.next(), others.next()) {
            (Some((number, (word, indifferent))), None) if (word ^ indifferent).is_power_of_two() => {
                Ok(NodeRef::rule(number as u32 * 64 + (word ^ indifferent).trailing_zeros()))
            }
            _ => self.store(arena, vector),
        }
    }

    /// Only chunks that are not empty are stored; the vectors of all rules and of none are always there.
    fn store(&self, arena: &mut Arena, vector: &[u64]) -> Result<NodeRef, LimitError> {
        match vector.iter().map(|word| word.count_ones() as usize).sum::<usize>() {
            count if count == self.rules => return Ok(NodeRef::vector(VEC_ANY)),
            0 => return Ok(NodeRef::vector(VEC_NONE)),
            _ => {}
        }
        let mut blocks = vec![Block::default()];
        for (chunk, words) in vector.chunks(8).enumerate() {
            if words.iter().any(|&word| word != 0) {
                blocks[0].words[chunk / 64] |= 1 << (chunk % 64);
                let mut block = Block::default();
                block.words[..words.len()].copy_from_slice(words);
                blocks.push(block);
            }
        }
        blocks[0].set_u32(5, 1);
        arena.intern(Kind::Vector, &blocks).map(NodeRef::vector)
    }
}

/// The object that a leaf of a tree leads to.
fn stored(leaf: NodeRef) -> Option<u32> {
    (!leaf.is_rule() && !matches!(leaf.place(), VEC_NONE | VEC_ANY)).then(|| leaf.place())
}

fn bits(rules: usize) -> Vec<u64> {
    vec![0; rules.div_ceil(64)]
}

fn set(bits: &mut [u64], rule: u32, on: bool) {
    let word = &mut bits[rule as usize / 64];
    let bit = 1 << (rule % 64);
    *word = *word & !bit | if on { bit } else { 0 };
}
