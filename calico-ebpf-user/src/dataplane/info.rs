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
