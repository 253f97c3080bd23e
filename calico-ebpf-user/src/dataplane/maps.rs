//! Pinned maps with the types of their keys and values.

use std::{io, marker::PhantomData, path::Path};

use bytemuck::Pod;

use super::{
    error::{DataplaneError, Result},
    sys,
};

/// A map whose sizes have been checked against its types.
#[derive(Debug)]
pub(crate) struct TypedMap<K, V> {
    map: sys::Map,
    name: String,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> TypedMap<K, V> {
    /// Opens the map that is pinned in `directory` by its name.
    pub(crate) fn open(directory: &Path, name: &str, read_only: bool) -> Result<Self> {
        let path = directory.join(name);
        let map = sys::Map::open(&path, read_only).map_err(DataplaneError::io(path.display().to_string()))?;
        let info = map.info();
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(DataplaneError::Corrupt {
                what: path.display().to_string(),
                message: format!(
                    "keys of {} and values of {} bytes, expected {} and {}",
                    info.key_size,
                    info.value_size,
                    size_of::<K>(),
                    size_of::<V>()
                ),
            });
        }
        Ok(Self { map, name: name.to_owned(), types: PhantomData })
    }

    /// How many entries it can hold.
    pub(crate) fn capacity(&self) -> u32 {
        self.map.info().max_entries
    }

    pub(crate) fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value: V = bytemuck::Zeroable::zeroed();
        let found = self.map.lookup(bytemuck::bytes_of(key), bytemuck::bytes_of_mut(&mut value));
        Ok(found.map_err(self.error("read"))?.then_some(value))
    }

    pub(crate) fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.map.update(bytemuck::bytes_of(key), bytemuck::bytes_of(value)).map_err(self.error("write"))
    }

    pub(crate) fn insert_many(&self, entries: &[(K, V)]) -> Result<()> {
        if let [(key, value)] = entries {
            return self.insert(key, value);
        }
        for entries in entries.chunks(16 * 1024) {
            let keys: Vec<K> = entries.iter().map(|(key, _)| *key).collect();
            let values: Vec<V> = entries.iter().map(|(_, value)| *value).collect();
            self.map
                .update_many(bytemuck::cast_slice(&keys), bytemuck::cast_slice(&values))
                .map_err(self.error("write"))?;
        }
        Ok(())
    }

    /// False if there was no such entry.
    pub(crate) fn remove(&self, key: &K) -> Result<bool> {
        self.map.delete(bytemuck::bytes_of(key)).map_err(self.error("delete from"))
    }

    pub(crate) fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.map
            .for_each(|key, value| {
                entries.push((bytemuck::pod_read_unaligned(key), bytemuck::pod_read_unaligned(value)));
            })
            .map_err(self.error("read"))?;
        Ok(entries)
    }

    /// Maps an array into memory.
    pub(crate) fn memory(&self) -> Result<sys::Mapping<V>> {
        self.map.map_memory().map_err(self.error("map"))
    }

    fn error(&self, verb: &str) -> impl FnOnce(io::Error) -> DataplaneError {
        DataplaneError::io(format!("{verb} map {}", self.name))
    }
}

/// Counters, one copy a CPU.
#[derive(Debug)]
pub(crate) struct Counters {
    map: sys::Map,
    name: String,
}

impl Counters {
    pub(crate) fn open(directory: &Path, name: &str, read_only: bool) -> Result<Self> {
        let path = directory.join(name);
        let map = sys::Map::open(&path, read_only).map_err(DataplaneError::io(path.display().to_string()))?;
        Ok(Self { map, name: name.to_owned() })
    }

    /// How many there are.
    pub(crate) fn capacity(&self) -> u32 {
        self.map.info().max_entries
    }

    /// All CPUs together; 0 outside of the array.
    pub(crate) fn sum(&self, index: u32) -> Result<u64> {
        let mut value = vec![0; self.map.value_bytes()];
        if !self.map.lookup(&index.to_ne_bytes(), &mut value).map_err(self.error())? {
            return Ok(0);
        }
        let counters = value.as_chunks::<8>().0.iter().map(|counter| u64::from_ne_bytes(*counter));
        Ok(counters.fold(0, u64::wrapping_add))
    }

    pub(crate) fn reset(&self, index: u32) -> Result<()> {
        self.map.update(&index.to_ne_bytes(), &vec![0; self.map.value_bytes()]).map_err(self.error())
    }

    fn error(&self) -> impl FnOnce(io::Error) -> DataplaneError {
        DataplaneError::io(format!("map {}", self.name))
    }
}

/// Text in a value of fixed size, padded with zeros. None if it does not fit.
pub(crate) fn text_value<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut value = [0; N];
    value.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(value)
}

/// The reverse: up to the first zero.
pub(crate) fn value_text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}
