//! The classes of IPv4 addresses as objects in the arena. See [`calico_ebpf_common::abi::NetRef`].
//!
//! What changes is found by comparing intervals, /16 by /16; everything else stays where it is.

use std::{collections::BTreeMap, sync::Arc};

use calico_ebpf_common::{
    abi::{
        Block, FILTER_CHILDREN, INDEX_CHILDREN, LEAF_CLASSES, LEAF_CLASSES_HIGH, LEAF_INTERVALS, NODE_BLOCKS,
        NODE_ENTRIES, NetRef,
    },
    judge::Arena as _,
};

use super::{
    arena::{Arena, Image, Kind},
    write::LimitError,
};

/// From this address on, all addresses have this class.
pub(super) type Run = (u32, u32);
/// Intervals that fit into one chunk.
const CHUNK_INTERVALS: usize = INDEX_CHILDREN * INDEX_CHILDREN * LEAF_INTERVALS;
const NODE: usize = NODE_ENTRIES as usize;
/// Where the leaf blocks' last addresses begin in a filter block, counted in 16 bits.
const FILTER_LANES: usize = 18;

/// The classes of all addresses: runs in ascending order, each of another class than the one before; the first one starts at
/// address 0.
#[derive(Clone, Debug)]
pub(super) struct Nets {
    pub(super) runs: Arc<Vec<Run>>,
    tree: Tree,
}

/// What is where.
#[derive(Clone, Debug)]
struct Tree {
    root: u32,
    /// By the first byte.
    first: Box<[u32; NODE]>,
    /// By the first two bytes, where `first` is a node.
    second: BTreeMap<u8, Arc<[u32; NODE]>>,
}

/// Objects that tables begin to use, and cease to.
#[derive(Debug, Default)]
pub(super) struct Uses {
    pub(super) begin: Vec<u32>,
    pub(super) end: Vec<u32>,
}

impl Nets {
    /// Nothing is known of any address.
    pub(super) fn empty() -> Self {
        let class = NetRef::class(0).0;
        let tree = Tree { root: 0, first: Box::new([class; NODE]), second: BTreeMap::new() };
        Self { runs: Arc::new(vec![(0, 0)]), tree }
    }

    /// A [`NetRef`], or zero.
    pub(super) fn root(&self) -> u32 {
        self.tree.root
    }

    /// The class of an address.
    pub(super) fn class(&self, address: u32) -> u32 {
        let after = self.runs.partition_point(|&(start, _)| start <= address);
        after.checked_sub(1).map_or(0, |index| self.runs[index].1)
    }

    /// The same for other runs.
    pub(super) fn update(&self, arena: &mut Arena, runs: Arc<Vec<Run>>) -> Result<(Self, Uses), LimitError> {
        let mut uses = Uses::default();
        if runs == self.runs && self.tree.root != 0 {
            return Ok((self.clone(), uses));
        }
        let mut next = self.clone();
        let (mut old, mut new) = (Rest(&self.runs), Rest(&runs));
        for byte in 0..NODE {
            let start = (byte as u32) << 24;
            let (old, new) = (old.take(start, 24), new.take(start, 24));
            // Where the class is carried in from does not matter.
            if same(&old, &new) && self.tree.root != 0 {
                continue;
            }
            let before = self.tree.second.get(&(byte as u8));
            if let [(_, class)] = new[..] {
                next.tree.first[byte] = NetRef::class(class).0;
                next.tree.second.remove(&(byte as u8));
                for &entry in before.iter().flat_map(|entries| entries.iter()) {
                    objects(arena.image(), entry, &mut uses.end);
                }
            } else {
                let entries = second(arena, before, (&old, &new), start, &mut uses)?;
                let node = intern_node(arena, &entries)?;
                uses.begin.push(node);
                next.tree.first[byte] = NetRef::node(node).0;
                next.tree.second.insert(byte as u8, Arc::new(entries));
            }
            uses.end.extend(node_of(self.tree.first[byte]));
        }
        let root = intern_node(arena, &next.tree.first)?;
        next.tree.root = NetRef::node(root).0;
        uses.begin.push(root);
        if self.tree.root != 0 {
            uses.end.extend(node_of(self.tree.root));
        }
        next.runs = runs;
        Ok((next, uses))
    }

    /// What somebody else has left in the arena, and its objects, each as often as it is used; `None` if it is broken.
    pub(super) fn adopt(blocks: &[Block], limit: u32, root: u32) -> Option<(Self, Vec<Object>)> {
        let mut walk = Walk { blocks, limit, runs: Vec::new(), objects: Vec::new() };
        let root_node = NetRef(root);
        if root_node.is_class() || root_node.height() != 0 {
            return None;
        }
        let first = walk.node(root_node.place())?;
        let mut second = BTreeMap::new();
        for (byte, &entry) in (0_u32..).zip(&*first) {
            let at = NetRef(entry);
            let start = byte << 24;
            if at.is_class() {
                walk.run(start, at.place());
            } else if at.height() == 0 {
                let entries = walk.node(at.place())?;
                for (number, &entry) in (0..).zip(&*entries) {
                    walk.below(NetRef(entry), start | number << 16, true)?;
                }
                second.insert(byte as u8, Arc::new(*entries));
            } else {
                return None;
            }
        }
        let Walk { runs, objects, .. } = walk;
        Some((Self { runs: Arc::new(runs), tree: Tree { root, first, second } }, objects))
    }
}

/// Entries for the /16s of one first byte.
fn second(
    arena: &mut Arena,
    before: Option<&Arc<[u32; NODE]>>,
    (old, new): (&[Run], &[Run]),
    start: u32,
    uses: &mut Uses,
) -> Result<[u32; NODE], LimitError> {
    let mut entries = [0; NODE];
    let (mut old, mut new) = (Rest(old), Rest(new));
    for (number, entry) in entries.iter_mut().enumerate() {
        let start = start | (number as u32) << 16;
        let (old, new) = (old.take(start, 16), new.take(start, 16));
        let known = before.map(|entries| entries[number]);
        if let Some(known) = known.filter(|_| same(&old, &new)) {
            *entry = known;
            continue;
        }
        *entry = chunk_or_node(arena, &new, start)?;
        objects(arena.image(), *entry, &mut uses.begin);
        if let Some(known) = known {
            objects(arena.image(), known, &mut uses.end);
        }
    }
    Ok(entries)
}

/// The entry for one /16.
fn chunk_or_node(arena: &mut Arena, runs: &[Run], start: u32) -> Result<u32, LimitError> {
    if runs.len() <= CHUNK_INTERVALS {
        return chunk(arena, runs);
    }
    let mut entries = [0; NODE];
    let mut rest = Rest(runs);
    for (number, entry) in entries.iter_mut().enumerate() {
        *entry = chunk(arena, &rest.take(start | (number as u32) << 8, 8))?;
    }
    Ok(NetRef::node(intern_node(arena, &entries)?).0)
}

fn chunk(arena: &mut Arena, runs: &[Run]) -> Result<u32, LimitError> {
    if let [(_, class)] = runs[..] {
        return Ok(NetRef::class(class).0);
    }
    let leaves: Vec<&[Run]> = runs.chunks(LEAF_INTERVALS).collect();
    let mut blocks = Vec::with_capacity(1 + leaves.len() + leaves.len().div_ceil(INDEX_CHILDREN));
    let height = if leaves.len() == 1 {
        1
    } else if leaves.len() <= FILTER_CHILDREN {
        blocks.push(filter(runs, &leaves));
        2
    } else {
        let indices = leaves.chunks(INDEX_CHILDREN);
        let first_leaf = 1 + indices.len();
        blocks.push(index(&indices.clone().map(|leaves| leaves[0]).collect::<Vec<_>>(), 1));
        for (number, leaves) in indices.enumerate() {
            blocks.push(index(leaves, first_leaf + number * INDEX_CHILDREN));
        }
        3
    };
    blocks.extend(leaves.into_iter().map(leaf));
    Ok(NetRef::chunk(arena.intern(Kind::Chunk, &blocks)?, height).0)
}

/// A filter block for these runs, which are in leaf blocks as given.
fn filter(runs: &[Run], leaves: &[&[Run]]) -> Block {
    // By third byte, the class if there is but one.
    let mut only: [Option<u32>; 256] = [None; 256];
    for (number, &(start, class)) in runs.iter().enumerate() {
        let end = runs.get(number + 1).map_or(1 << 16, |next| next.0 & 0xffff);
        let whole = ((start & 0xffff).div_ceil(256) as usize)..(end / 256) as usize;
        only.get_mut(whole).unwrap_or_default().fill(Some(class));
    }
    let mut count = BTreeMap::<u32, u32>::new();
    only.iter().flatten().for_each(|class| *count.entry(*class).or_default() += 1);
    let common = count.into_iter().max_by_key(|(_, count)| *count).map_or(0, |(class, _)| class);
    let mut lanes = [u16::MAX; 32];
    for (lane, next) in lanes[FILTER_LANES..].iter_mut().zip(&leaves[1..]) {
        *lane = last_before(next[0].0);
    }
    let mut block = from_lanes(&lanes);
    block.words[..4].fill(0);
    for (third, _) in only.iter().enumerate().filter(|(_, class)| **class != Some(common)) {
        block.words[third / 64] |= 1 << (third % 64);
    }
    block.set_u32(8, common);
    block
}

/// An index block over children that begin with these runs, the first of them at `place`.
fn index(children: &[&[Run]], place: usize) -> Block {
    let mut lanes = [u16::MAX; 32];
    for (lane, next) in lanes.iter_mut().zip(&children[1..]) {
        *lane = last_before(next[0].0);
    }
    let mut block = from_lanes(&lanes);
    block.set_u32(15, place as u32);
    block
}

fn leaf(runs: &[Run]) -> Block {
    let mut lanes = [0; 32];
    lanes[..LEAF_CLASSES as usize].fill(u16::MAX);
    for (lane, next) in lanes.iter_mut().zip(&runs[1..]) {
        *lane = last_before(next.0);
    }
    for (lane, run) in lanes[LEAF_CLASSES as usize..].iter_mut().zip(runs) {
        *lane = run.1 as u16;
    }
    let mut block = from_lanes(&lanes);
    for (byte, run) in (LEAF_CLASSES_HIGH as usize..).zip(runs) {
        block.words[byte / 8] |= u64::from(run.1 >> 16) << (byte % 8 * 8);
    }
    block
}

/// The lower half of the address before `start`, which is not the first one of its /16.
fn last_before(start: u32) -> u16 {
    (start as u16).wrapping_sub(1)
}

fn from_lanes(lanes: &[u16; 32]) -> Block {
    let mut block = Block::default();
    for (word, lanes) in block.words.iter_mut().zip(lanes.as_chunks::<4>().0) {
        *word = lanes.iter().rev().fold(0, |word, &lane| word << 16 | u64::from(lane));
    }
    block
}

fn intern_node(arena: &mut Arena, entries: &[u32; NODE]) -> Result<u32, LimitError> {
    let mut node = [Block::default(); NODE_BLOCKS as usize];
    for (number, &entry) in (0..).zip(entries) {
        node[number as usize / 16].set_u32(number, entry);
    }
    arena.intern(Kind::Node, &node)
}

/// The node that an entry leads to.
fn node_of(entry: u32) -> Option<u32> {
    let at = NetRef(entry);
    (!at.is_class() && at.height() == 0).then_some(at.place())
}

/// Objects that the entry of a /16 leads to.
fn objects(image: &Image, entry: u32, found: &mut Vec<u32>) {
    let at = NetRef(entry);
    if at.is_class() {
        return;
    }
    found.push(at.place());
    if at.height() == 0 {
        for number in 0..NODE_ENTRIES {
            if let Some(block) = image.block(at.place() + number / 16) {
                objects(image, block.u32_at(number), found);
            }
        }
    }
}

/// Runs that have not been looked at yet.
struct Rest<'a>(&'a [Run]);

impl Rest<'_> {
    /// Those that meet the `1 << bits` addresses from `start` on; the first one begins there.
    fn take(&mut self, start: u32, bits: u32) -> Vec<Run> {
        let last = start | ((1 << bits) - 1);
        let count = match self.0 {
            [_, next, ..] if next.0 > last => 1,
            runs => runs.partition_point(|run| run.0 <= last),
        };
        let mut runs = self.0[..count].to_vec();
        if let Some(first) = runs.first_mut() {
            first.0 = start;
        }
        // The last of them may go on.
        self.0 = &self.0[count.saturating_sub(1)..];
        if let [_, next, ..] = self.0
            && Some(next.0) == last.checked_add(1)
        {
            self.0 = &self.0[1..];
        }
        runs
    }
}

fn same(old: &[Run], new: &[Run]) -> bool {
    old == new
}

/// A node or leaf that was met: its first block, what it is, and how many blocks it has.
type Object = (u32, Kind, u32);

/// Reads what somebody else has written.
struct Walk<'a> {
    blocks: &'a [Block],
    limit: u32,
    runs: Vec<Run>,
    objects: Vec<Object>,
}

impl Walk<'_> {
    fn block(&self, index: u32) -> Option<&Block> {
        (index != 0 && index < self.limit).then(|| self.blocks.get(index as usize)).flatten()
    }

    fn run(&mut self, start: u32, class: u32) {
        let class = class & 0xff_ffff;
        if self.runs.last().is_none_or(|last| last.1 != class) {
            self.runs.push((start, class));
        }
    }

    fn node(&mut self, first: u32) -> Option<Box<[u32; NODE]>> {
        let mut entries = Box::new([0; NODE]);
        for (number, entry) in (0..).zip(entries.iter_mut()) {
            *entry = self.block(first.checked_add(number / 16)?)?.u32_at(number);
        }
        self.objects.push((first, Kind::Node, NODE_BLOCKS));
        Some(entries)
    }

    /// What an entry for a /16 (or a /24, of which none is a node) leads to.
    fn below(&mut self, at: NetRef, start: u32, may_be_node: bool) -> Option<()> {
        if at.is_class() {
            self.run(start, at.place());
        } else if at.height() != 0 {
            let level = match at.height() {
                1 => Level::Leaf,
                2 => Level::Filter,
                _ => Level::Top,
            };
            let blocks = self.chunk(at.place(), 0, level, start)?;
            self.objects.push((at.place(), Kind::Chunk, blocks));
        } else if may_be_node {
            let entries = self.node(at.place())?;
            for (number, &entry) in (0..).zip(&*entries) {
                self.below(NetRef(entry), start | number << 8, false)?;
            }
        } else {
            return None;
        }
        Some(())
    }

    /// The part of a chunk below the block at `place`; returns how many blocks the chunk has at least.
    fn chunk(&mut self, first: u32, place: u32, level: Level, start: u32) -> Option<u32> {
        let block = *self.block(first.checked_add(place)?)?;
        let lane = |number: usize| (block.words[number / 4] >> (number % 4 * 16)) as u16;
        let (lanes, most) = match level {
            Level::Leaf => (0, LEAF_INTERVALS),
            Level::Filter => (FILTER_LANES, FILTER_CHILDREN),
            Level::Index | Level::Top => (0, INDEX_CHILDREN),
        };
        let parts = 1 + (0..most - 1).take_while(|&number| lane(lanes + number) != u16::MAX).count();
        let (mut from, mut blocks) = (start, place + 1);
        for part in 0..parts {
            let (first_child, below) = match level {
                Level::Leaf => {
                    let byte = LEAF_CLASSES_HIGH as usize + part;
                    let high = (block.words[byte / 8] >> (byte % 8 * 8)) as u8;
                    self.run(from, u32::from(lane(LEAF_CLASSES as usize + part)) | u32::from(high) << 16);
                    (0, Level::Leaf)
                }
                Level::Filter => (1, Level::Leaf),
                Level::Index => (block.u32_at(15), Level::Leaf),
                Level::Top => (block.u32_at(15), Level::Index),
            };
            if level != Level::Leaf {
                let child = first_child.checked_add(part as u32)?;
                // Children come after their parents: no turning in circles.
                let child = Some(child).filter(|child| *child > place)?;
                blocks = blocks.max(self.chunk(first, child, below, from)?);
            }
            if part + 1 < parts {
                from = (start & 0xffff_0000) | (u32::from(lane(lanes + part)) + 1);
            }
        }
        Some(blocks)
    }
}

/// What a block of a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Leaf,
    Filter,
    /// Over leaf blocks.
    Index,
    /// Over index blocks.
    Top,
}

#[cfg(test)]
mod tests {
    use calico_ebpf_common::nets;
    use proptest::prelude::*;

    use super::*;

    fn runs(starts: &[(u32, u32)]) -> Arc<Vec<Run>> {
        let mut sorted: BTreeMap<u32, u32> = starts.iter().copied().collect();
        sorted.entry(0).or_insert(0);
        let mut runs: Vec<Run> = sorted.into_iter().collect();
        runs.dedup_by_key(|run| run.1);
        Arc::new(runs)
    }

    /// Goes through all states; the arena has what the last one needs, and not a block more.
    fn check(states: &[Arc<Vec<Run>>], probes: &[u32]) {
        let mut arena = Arena::new(1 << 16);
        let mut nets = Nets::empty();
        let mut last = 0;
        for runs in states {
            let (next, uses) = nets.update(&mut arena, runs.clone()).unwrap();
            arena.acquire(&uses.begin);
            arena.release(&uses.end);
            nets = next;
            let boundaries = runs.iter().flat_map(|run| [run.0, run.0.wrapping_sub(1), run.0.wrapping_add(1)]);
            for address in boundaries.chain(probes.iter().copied()) {
                let found = nets::class_of(arena.image(), nets.root(), address);
                assert_eq!(found, Some(nets.class(address)), "{address:x}");
            }
            last = arena.used();
        }
        let mut fresh = Arena::new(1 << 16);
        let (direct, uses) = Nets::empty().update(&mut fresh, nets.runs.clone()).unwrap();
        fresh.acquire(&uses.begin);
        assert_eq!((&direct.runs, fresh.used()), (&nets.runs, last));
        let blocks: Vec<Block> = (0..1 << 16).map(|i| fresh.image().block(i).copied().unwrap_or_default()).collect();
        let (adopted, objects) = Nets::adopt(&blocks, 1 << 16, direct.root()).expect("whole");
        let mut used: BTreeMap<u32, u32> = BTreeMap::new();
        for (first, _, count) in objects {
            used.insert(first, count);
        }
        assert_eq!((&adopted.runs, used.values().sum::<u32>() + 3), (&nets.runs, last));
        assert_eq!(adopted.tree.second, direct.tree.second);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn every_address_has_its_class(
            states in prop::collection::vec(
                prop::collection::vec((prop_oneof![any::<u32>(), 0x0a00_0000_u32..0x0a01_0000, 0x0a00_0100_u32..0x0a00_0200], 0_u32..0x2_0005), 0..200), 1..4),
            probes in prop::collection::vec(any::<u32>(), 20),
        ) {
            check(&states.iter().map(|starts| runs(starts)).collect::<Vec<_>>(), &probes);
        }
    }

    #[test]
    fn dense_parts_get_higher() {
        let every = |step: u32, from: u32, count: u32| -> Vec<(u32, u32)> {
            (0..count).map(|number| (from + number * step, number % 2 + 1)).collect()
        };
        let states = [
            runs(&every(1, 0x0a00_0000, 12)),
            runs(&every(3, 0x0a00_0000, 300)),
            runs(&every(1, 0x0a00_0000, 0x1_0000)),
            runs(&every(5, 0x0a00_0000, 12_000)),
            runs(&every(7, 0xffff_0000, 9_000)),
            runs(&every(1, 0xffff_fff0, 16)),
            runs(&[]),
        ];
        check(&states, &[0, 1, 0x0a00_ffff, 0x0a01_0000, u32::MAX, u32::MAX - 1, 0x0b00_0000]);
    }

    #[test]
    fn a_broken_tree_is_not_adopted() {
        let mut blocks = vec![Block::default(); 64];
        assert!(Nets::adopt(&blocks, 64, NetRef::node(4).0).is_none(), "entries that lead nowhere");
        let circle = Block { words: [u64::MAX, u64::MAX, u64::MAX, 0, 0, 0, 0, 0] };
        blocks[4..20].fill(Block { words: [u64::from(NetRef::class(1).0) * 0x1_0000_0001; 8] });
        assert!(Nets::adopt(&blocks, 64, NetRef::node(4).0).is_some());
        blocks[4].set_u32(0, NetRef::node(20).0);
        blocks[20..36].fill(Block { words: [u64::from(NetRef::chunk(40, 3).0) * 0x1_0000_0001; 8] });
        blocks[40] = circle;
        assert!(Nets::adopt(&blocks, 64, NetRef::node(4).0).is_none());
        assert!(Nets::adopt(&blocks, 64, NetRef::node(u32::MAX >> 4).0).is_none());
    }
}
