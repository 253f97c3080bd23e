//! `cali_info`: what the writer of the maps leaves about itself, as JSON text, for other processes and for `purge`.

use std::path::Path;

use calico_ebpf_common::abi::{InfoText, LOAD_BYTES, LoadText, names};

use bytemuck::Pod;

use super::{
    error::{DataplaneError, Result},
    maps::{TypedMap, text_value, value_text},
    nft, translation,
    xdp::UplinkXdp,
};

/// What the writer of the maps left about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Info {
    /// Version of the program that wrote last.
    pub version: String,
    /// `--node` of that process.
    pub node: String,
    /// Process that wrote last; it may be gone.
    pub pid: u32,
    /// The cookie of the network namespace; 0: not known.
    pub namespace: u64,
    /// Kernel ticks (jiffies) in a second.
    pub hz: u32,
    /// Identity of the files that were taken back because nobody confirmed them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<u64>,
    /// Uplinks in use, by name.
    pub uplinks: Vec<String>,
    /// Route protocols that our routes have carried.
    pub route_protocols: Vec<u8>,
    /// Sysctls that were set.
    pub sysctls: Vec<SavedSysctl>,
    /// Interfaces that got a `clsact` qdisc from us.
    #[serde(with = "indices")]
    pub qdiscs: Vec<u32>,
    /// Name of the guard's nftables table, if one was made.
    pub nft_table: Option<String>,
    /// Name of the nftables table of `natOutgoing`, likewise.
    pub nat_table: Option<String>,
    /// Name of the nftables tables behind the host's translation of destinations, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_table: Option<String>,
    /// How it is with XDP on uplinks with untracked policy.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xdp: Vec<UplinkXdp>,
}

/// A sysctl that was set. As JSON it is a list of the three: room is short in `cali_wl_name`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(from = "[String; 3]", into = "[String; 3]")]
pub struct SavedSysctl {
    /// Path below `/proc/sys`.
    pub path: String,
    /// Value before.
    pub old: String,
    /// Value that was set.
    pub new: String,
}

impl From<[String; 3]> for SavedSysctl {
    fn from([path, old, new]: [String; 3]) -> Self {
        Self { path, old, new }
    }
}

impl From<SavedSysctl> for [String; 3] {
    fn from(SavedSysctl { path, old, new }: SavedSysctl) -> Self {
        [path, old, new]
    }
}

impl Info {
    /// The nftables tables that were made, each with its families.
    pub(crate) fn nft_tables(&self) -> impl Iterator<Item = (&'static [&'static str], &str)> {
        let of_inet = [&self.nft_table, &self.nat_table].into_iter().flatten().map(|table| (nft::INET, table));
        of_inet
            .chain(self.host_table.iter().map(|table| (translation::FAMILIES, table)))
            .map(|(families, table)| (families, table.as_str()))
    }

    /// Reads it; `None` if the map is there but nothing was written yet.
    pub(crate) fn read(directory: &Path) -> Result<Option<Self>> {
        let text = text::<InfoText>(directory, names::INFO)?;
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| DataplaneError::Corrupt { what: names::INFO.to_owned(), message: error.to_string() })
    }

    /// Writes it. What does not fit is an error: nothing that must be undone later is forgotten silently.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        let corrupt = |message: String| DataplaneError::Corrupt { what: names::INFO.to_owned(), message };
        let text = serde_json::to_string(self).map_err(|error| corrupt(error.to_string()))?;
        let room = size_of::<InfoText>();
        let value = text_value(&text).ok_or_else(|| corrupt(format!("{} bytes, room for {room}", text.len())))?;
        TypedMap::<u32, InfoText>::open(directory, names::INFO, false)?.insert(&0, &value)
    }
}

/// Indices of interfaces as a text: room is short in `cali_info`, and there may be thousands. Each is the distance to the one before;
/// `2x3` is three times the distance 2.
mod indices {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(indices: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
        let mut sorted = indices.to_vec();
        sorted.sort_unstable();
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut before = 0;
        for index in sorted {
            let distance = index - before;
            before = index;
            match runs.last_mut() {
                Some((last, times)) if *last == distance => *times += 1,
                _ => runs.push((distance, 1)),
            }
        }
        let run = |(distance, times): &(u32, u32)| match times {
            1 => distance.to_string(),
            times => format!("{distance}x{times}"),
        };
        serializer.serialize_str(&runs.iter().map(run).collect::<Vec<_>>().join(","))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
        /// Versions before this wrote a list.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            List(Vec<u32>),
        }
        match Form::deserialize(deserializer)? {
            Form::Text(text) => parse(&text).ok_or_else(|| D::Error::custom(format!("\"{text}\" are no indices"))),
            Form::List(indices) => Ok(indices),
        }
    }

    /// So many at most, whatever the text says.
    const MOST: u32 = 1 << 16;

    fn parse(text: &str) -> Option<Vec<u32>> {
        let (mut indices, mut index) = (Vec::new(), 0_u32);
        for run in text.split(',').filter(|run| !run.is_empty()) {
            let (distance, times) = run.split_once('x').unwrap_or((run, "1"));
            let (distance, times): (u32, u32) = (distance.parse().ok()?, times.parse().ok()?);
            for _ in 0..times.min(MOST) {
                index = index.checked_add(distance)?;
                indices.push(index);
            }
        }
        Some(indices)
    }
}

/// The text in `cali_load`: what the last attempt to load the files led to. Empty where nobody left one, as versions
/// without this map do.
pub(crate) fn read_load(directory: &Path) -> Result<String> {
    if directory.join(names::LOAD).exists() { text::<LoadText>(directory, names::LOAD) } else { Ok(String::new()) }
}

/// Leaves it there; at most [`LOAD_BYTES`].
pub(crate) fn write_load(directory: &Path, text: &str) -> Result<()> {
    let value = text_value(text).ok_or_else(|| DataplaneError::Corrupt {
        what: names::LOAD.to_owned(),
        message: format!("{} bytes, room for {LOAD_BYTES}", text.len()),
    })?;
    TypedMap::<u32, LoadText>::open(directory, names::LOAD, false)?.insert(&0, &value)
}

fn text<T: Pod + AsRef<[u8]>>(directory: &Path, name: &str) -> Result<String> {
    let value = TypedMap::<u32, T>::open(directory, name, true)?.get(&0)?;
    Ok(value.map(|value| value_text(value.as_ref())).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_of_a_full_node_have_room() {
        let text = |info: &Info| serde_json::to_string(info).expect("as JSON");
        let back = |text: &str| serde_json::from_str::<Info>(text).expect("is read back");
        // Pairs of veths in a row, and with gaps as pods come and go.
        let in_a_row: Vec<u32> = (0..4096).map(|number| 7 + 2 * number).collect();
        let step = |at: &mut u32, number: u32| {
            *at += 2 + number * number % 7;
            Some(*at)
        };
        let with_gaps: Vec<u32> = (0..1_200).scan(7, step).collect();
        for qdiscs in [Vec::new(), vec![3], in_a_row, with_gaps] {
            let info = Info { qdiscs: qdiscs.clone(), ..Info::default() };
            assert!(text(&info).len() < size_of::<InfoText>() * 3 / 4, "{} interfaces", qdiscs.len());
            let mut read = back(&text(&info)).qdiscs;
            read.sort_unstable();
            let mut sorted = qdiscs;
            sorted.sort_unstable();
            assert_eq!(read, sorted);
        }
        assert_eq!(back(r#"{"qdiscs": [5, 9]}"#).qdiscs, [5, 9], "as it was written once");
        assert!(serde_json::from_str::<Info>(r#"{"qdiscs": "5,x"}"#).is_err());
    }
}
