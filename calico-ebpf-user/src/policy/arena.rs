//! The arena of rule tables as user space knows it: contents, what is free, and what is where.
//!
//! What tables are made of (*objects*: vectors, radix nodes, rule entries, table headers) never changes once written and
//! is kept once, whoever uses it. So tables that hardly differ, in one generation or in two, hardly cost more than one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

use calico_ebpf_common::{
    abi::{BLOCK_ONES, Block, MAX_CHUNKS, NODE_BLOCKS, NODE_ENTRIES, NodeRef, VEC_ANY, VEC_NONE},
    judge,
};

use super::write::{LimitError, Write};

/// Blocks of one page of the image: what is copied to change one block.
const PAGE: usize = 256;
/// The first block that is given out: block 0 is never written, then come the fixed ones.
const FIRST_FREE: u32 = BLOCK_ONES + 1;

/// Contents of the arena; pages are shared between copies.
#[derive(Clone, Debug, Default)]
pub(super) struct Image {
    pages: Vec<Option<Arc<[Block; PAGE]>>>,
}

impl Image {
    fn set(&mut self, index: u32, block: Block) {
        let (page, offset) = (index as usize / PAGE, index as usize % PAGE);
        if self.pages.len() <= page {
            self.pages.resize(page + 1, None);
        }
        let page = self.pages[page].get_or_insert_with(|| Arc::new([Block::default(); PAGE]));
        Arc::make_mut(page)[offset] = block;
    }
}

impl judge::Arena for Image {
    fn block(&self, index: u32) -> Option<&Block> {
        let page = self.pages.get(index as usize / PAGE)?.as_ref()?;
        page.get(index as usize % PAGE)
    }
}

/// What an object is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Header and chunks. Its first block holds its own place; contents are compared without that.
    Vector,
    /// A radix node.
    Node,
    /// Rule entries.
    Entries,
    /// The header of a table.
    Table,
    /// A search tree over IPv4 addresses.
    Chunk,
}

#[derive(Clone, Copy, Debug)]
struct Object {
    kind: Kind,
    blocks: u32,
    /// Tables that use it.
    uses: u32,
    hash: u64,
}

/// The arena, and what is in it.
#[derive(Clone, Debug)]
pub(super) struct Arena {
    image: Image,
    free: Free,
    objects: HashMap<u32, Object>,
    /// Objects by the hash of what they hold.
    by_content: HashMap<u64, u32>,
    /// Blocks written since [`Arena::take_writes`].
    written: Vec<(u32, u32)>,
}

impl Arena {
    /// An arena of zeros. The fixed blocks are written first.
    pub(super) fn new(blocks: u32) -> Self {
        let mut arena = Self {
            image: Image::default(),
            free: Free::new(FIRST_FREE, blocks),
            objects: HashMap::new(),
            by_content: HashMap::new(),
            written: Vec::new(),
        };
        let mut any = Block { words: [u64::MAX, u64::MAX, 0, 0, 0, 0, 0, 0] };
        any.set_u32(4, BLOCK_ONES);
        arena.image.set(VEC_ANY, any);
        arena.image.set(BLOCK_ONES, Block { words: [u64::MAX; 8] });
        arena.written.push((VEC_ANY, 2));
        arena
    }

    /// An arena that holds what leads from these table headers on. Tables that are broken are left out.
    ///
    /// The second value has the objects of each table.
    pub(super) fn adopt(blocks: &[Block], limit: u32, tables: &BTreeSet<u32>) -> (Self, HashMap<u32, Arc<[u32]>>) {
        let mut arena = Self::new(limit);
        if (VEC_ANY..FIRST_FREE).all(|i| blocks.get(i as usize) == judge::Arena::block(&arena.image, i)) {
            arena.written.clear();
        }
        let mut found = HashMap::new();
        for &table in tables {
            let mut walk = Walk { blocks, limit, found: BTreeMap::new() };
            if table >= FIRST_FREE && walk.table(table).is_some() {
                let objects: Arc<[u32]> = walk.found.keys().copied().collect();
                for (&first, &(kind, count)) in &walk.found {
                    arena.adopt_object(blocks, first, kind, count);
                }
                arena.acquire(&objects);
                found.insert(table, objects);
            }
        }
        (arena, found)
    }

    /// Takes over an object that is used once (more). The same one is taken over only once.
    pub(super) fn adopt_used(&mut self, blocks: &[Block], first: u32, kind: Kind, count: u32) {
        self.adopt_object(blocks, first, kind, count);
        self.acquire(&[first]);
    }

    fn adopt_object(&mut self, blocks: &[Block], first: u32, kind: Kind, count: u32) {
        if self.objects.contains_key(&first) {
            return;
        }
        let mut content = blocks[first as usize..(first + count) as usize].to_vec();
        for (index, block) in (first..).zip(&content) {
            self.image.set(index, *block);
        }
        if kind == Kind::Vector {
            content[0].set_u32(4, 0);
        }
        self.free.take_range(first, count);
        let hash = hash(kind, &content);
        self.objects.insert(first, Object { kind, blocks: count, uses: 0, hash });
        self.by_content.entry(hash).or_insert(first);
    }

    /// The contents.
    pub(super) fn image(&self) -> &Image {
        &self.image
    }

    /// First block of an object with this content, which is written if there is none. It stays only if some table
    /// [acquires](Self::acquire) it.
    pub(super) fn intern(&mut self, kind: Kind, content: &[Block]) -> Result<u32, LimitError> {
        let hash = hash(kind, content);
        let known = self.by_content.get(&hash).copied();
        if let Some(first) = known.filter(|&first| self.holds(first, kind, content)) {
            return Ok(first);
        }
        let count = content.len() as u32;
        let first = self.free.take(count)?;
        for (index, &block) in (first..).zip(content) {
            self.image.set(index, block);
        }
        if kind == Kind::Vector {
            let mut header = content[0];
            header.set_u32(4, first + 1);
            self.image.set(first, header);
        }
        self.written.push((first, count));
        self.objects.insert(first, Object { kind, blocks: count, uses: 0, hash });
        if known.is_none() {
            self.by_content.insert(hash, first);
        }
        Ok(first)
    }

    fn holds(&self, first: u32, kind: Kind, content: &[Block]) -> bool {
        let same_shape = |object: &Object| object.kind == kind && object.blocks as usize == content.len();
        self.objects.get(&first).is_some_and(same_shape)
            && (first..).zip(content).all(|(index, block)| {
                judge::Arena::block(&self.image, index).is_some_and(|have| {
                    let mut have = *have;
                    if kind == Kind::Vector && index == first {
                        have.set_u32(4, 0);
                    }
                    have == *block
                })
            })
    }

    /// One more table uses these objects.
    pub(super) fn acquire(&mut self, objects: &[u32]) {
        for first in objects {
            if let Some(object) = self.objects.get_mut(first) {
                object.uses += 1;
            }
        }
    }

    /// One table less uses these objects; what nobody uses any more is free.
    pub(super) fn release(&mut self, objects: &[u32]) {
        for &first in objects {
            let Some(object) = self.objects.get_mut(&first) else { continue };
            object.uses = object.uses.saturating_sub(1);
            if object.uses == 0 {
                let Object { blocks, hash, .. } = *object;
                self.objects.remove(&first);
                if self.by_content.get(&hash) == Some(&first) {
                    self.by_content.remove(&hash);
                }
                self.free.give(first, blocks);
            }
        }
    }

    /// What has been written since the last call, adjacent blocks in one piece.
    pub(super) fn take_writes(&mut self) -> Vec<Write> {
        let mut pieces: Vec<(u32, u32)> = Vec::new();
        self.written.sort_unstable();
        for (first, count) in self.written.drain(..) {
            match pieces.last_mut() {
                Some(piece) if piece.0 + piece.1 == first => piece.1 += count,
                _ => pieces.push((first, count)),
            }
        }
        let block = |index| judge::Arena::block(&self.image, index).copied().unwrap_or_default();
        pieces
            .into_iter()
            .map(|(first, count)| Write::Blocks { first, blocks: (first..first + count).map(block).collect() })
            .collect()
    }

    /// Blocks that are not free.
    #[cfg(test)]
    pub(super) fn used(&self) -> u32 {
        self.free.limit - self.free.total
    }
}

fn hash(kind: Kind, content: &[Block]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one((kind, bytemuck::cast_slice::<Block, u64>(content)))
}

/// The free pieces of the arena.
#[derive(Clone, Debug)]
struct Free {
    /// Length by first block.
    pieces: BTreeMap<u32, u32>,
    /// Length and first block.
    by_length: BTreeSet<(u32, u32)>,
    total: u32,
    limit: u32,
}

impl Free {
    fn new(first: u32, limit: u32) -> Self {
        let mut free = Self { pieces: BTreeMap::new(), by_length: BTreeSet::new(), total: 0, limit };
        if first < limit {
            free.insert(first, limit - first);
        }
        free
    }

    fn insert(&mut self, first: u32, count: u32) {
        self.pieces.insert(first, count);
        self.by_length.insert((count, first));
        self.total += count;
    }

    fn remove(&mut self, first: u32, count: u32) {
        self.pieces.remove(&first);
        self.by_length.remove(&(count, first));
        self.total -= count;
    }

    /// Takes the shortest piece that is long enough.
    fn take(&mut self, count: u32) -> Result<u32, LimitError> {
        let Some(&(length, first)) = self.by_length.range((count, 0)..).next() else {
            let longest = self.by_length.last().map_or(0, |&(length, _)| length);
            return Err(LimitError::Blocks { needed: count, free: self.total, longest, limit: self.limit });
        };
        self.remove(first, length);
        if length > count {
            self.insert(first + count, length - count);
        }
        Ok(first)
    }

    /// Takes whatever is free of a range.
    fn take_range(&mut self, first: u32, count: u32) {
        let end = first + count;
        let mut overlapping: Vec<(u32, u32)> = self.pieces.range(first..end).map(|(&f, &c)| (f, c)).collect();
        overlapping
            .extend(self.pieces.range(..first).next_back().map(|(&f, &c)| (f, c)).filter(|(f, c)| f + c > first));
        for (piece, length) in overlapping {
            self.remove(piece, length);
            if piece < first {
                self.insert(piece, first - piece);
            }
            if piece + length > end {
                self.insert(end, piece + length - end);
            }
        }
    }

    /// Gives a range back, some of which may be free already.
    fn give(&mut self, first: u32, count: u32) {
        self.take_range(first, count);
        let (mut first, mut count) = (first, count);
        if let Some((&before, &length)) = self.pieces.range(..first).next_back()
            && before + length == first
        {
            self.remove(before, length);
            (first, count) = (before, count + length);
        }
        if let Some(&length) = self.pieces.get(&(first + count)) {
            self.remove(first + count, length);
            count += length;
        }
        self.insert(first, count);
    }
}

/// Finds the objects of a table in blocks that somebody else has written.
struct Walk<'a> {
    blocks: &'a [Block],
    limit: u32,
    found: BTreeMap<u32, (Kind, u32)>,
}

impl Walk<'_> {
    fn block(&self, index: u32) -> Option<&Block> {
        (index < self.limit).then(|| self.blocks.get(index as usize)).flatten()
    }

    /// Notes an object; `Some(true)` if it was not known, `None` if it cannot be.
    fn note(&mut self, first: u32, kind: Kind, count: u32) -> Option<bool> {
        let last = first.checked_add(count)?.checked_sub(1)?;
        self.block(last)?;
        match self.found.insert(first, (kind, count)) {
            None => Some(true),
            Some(before) if before == (kind, count) => Some(false),
            Some(_) => None,
        }
    }

    fn table(&mut self, table: u32) -> Option<()> {
        let header = *self.block(table)?;
        let rules = header.u32_at(0);
        if rules == 0 || header.u32_at(1) > MAX_CHUNKS {
            return None;
        }
        self.note(table, Kind::Table, 1)?;
        self.note(header.u32_at(2), Kind::Entries, rules.div_ceil(8))?;
        (8..12).try_for_each(|field| self.vector(header.u32_at(field)))?;
        (4..8).try_for_each(|field| self.node(NodeRef(header.u32_at(field)), 0, rules))
    }

    fn vector(&mut self, first: u32) -> Option<()> {
        if matches!(first, VEC_NONE | VEC_ANY) {
            return Some(());
        }
        let header = self.block(first)?;
        let chunks = header.words[0].count_ones() + header.words[1].count_ones();
        if header.u32_at(4) != first + 1 || header.u32_at(5) != 1 {
            return None;
        }
        self.note(first, Kind::Vector, 1 + chunks)?;
        Some(())
    }

    fn node(&mut self, node: NodeRef, depth: u32, rules: u32) -> Option<()> {
        let first = node.place();
        if node.is_vector() && node.is_rule() {
            return (first < rules).then_some(());
        }
        if node.is_vector() {
            return self.vector(first);
        }
        if depth == 3 {
            return None;
        }
        if self.note(first, Kind::Node, NODE_BLOCKS)? {
            for entry in 0..NODE_ENTRIES {
                let child = self.block(first + entry / 16)?.u32_at(entry);
                self.node(NodeRef(child), depth + 1, rules)?;
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_pieces_join_and_split() {
        let mut free = Free::new(3, 100);
        let a = free.take(10).unwrap();
        let b = free.take(20).unwrap();
        let c = free.take(5).unwrap();
        assert_eq!((a, b, c, free.total), (3, 13, 33, 62));
        free.give(a, 10);
        free.give(c, 5);
        // The shortest piece that fits.
        assert_eq!(free.take(10).unwrap(), a);
        free.give(a, 10);
        free.give(b, 20);
        assert_eq!((free.pieces.len(), free.total), (1, 97));
        free.take_range(50, 10);
        assert_eq!((free.pieces.len(), free.total), (2, 87));
        free.give(45, 20);
        assert_eq!((free.pieces.len(), free.total, free.by_length.len()), (1, 97, 1));
        let too_much = free.take(98).unwrap_err();
        assert_eq!(too_much, LimitError::Blocks { needed: 98, free: 97, longest: 97, limit: 100 });
    }

    #[test]
    fn equal_objects_are_kept_once_and_freed_with_their_last_user() {
        let mut arena = Arena::new(1000);
        let content = [Block { words: [1; 8] }, Block { words: [2; 8] }];
        let a = arena.intern(Kind::Entries, &content).unwrap();
        let b = arena.intern(Kind::Entries, &content).unwrap();
        assert_eq!(a, b);
        arena.acquire(&[a]);
        arena.acquire(&[b]);
        arena.release(&[a]);
        assert_eq!(arena.intern(Kind::Entries, &content).unwrap(), a);
        arena.release(&[a]);
        assert_eq!(arena.used(), FIRST_FREE);
        assert_eq!(arena.take_writes().len(), 1);
    }
}
