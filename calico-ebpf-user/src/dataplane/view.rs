//! Read-only looks at the pinned maps, of a running or a stopped data path.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use calico_ebpf_common::abi::{
    AddressEntry, Block, Conn, ConnKey4, ConnKey6, DROP_REASONS, DropReason, EVENTS, Event, Interface, Neighbour,
    NeighbourKey, RULE_BYTES, Root, RuleEntry, TableHeader, WORKLOAD_BYTES, Workload, names,
};

use super::{
    clock::Clock,
    error::{DataplaneError, Result},
    info,
    instance::Instance,
    maps::{Counters, TypedMap, value_text},
    tables::parse_owner,
};
pub use super::{
    info::{Info, SavedSysctl},
    tables::Owner,
};
use crate::policy::compiled::RuleName;

/// The pinned maps of an instance. Each method opens what it reads.
#[derive(Clone, Debug)]
pub struct View {
    directory: PathBuf,
}

impl View {
    /// Opens what is pinned; `None` if nothing is installed.
    ///
    /// # Errors
    /// Without the privilege to look.
    pub fn open(instance: &Instance) -> Result<Option<Self>> {
        let directory = instance.layout_dir();
        match directory.join(names::ROOT).try_exists() {
            Ok(installed) => Ok(installed.then_some(Self { directory })),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(DataplaneError::NotRoot),
            Err(error) => Err(DataplaneError::io(directory.display().to_string())(error)),
        }
    }

    /// The maps pinned in this very directory, which must be there.
    pub(super) const fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The root: generation, settings, timeouts, uplinks.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn root(&self) -> Result<Root> {
        let map = TypedMap::<u32, Root>::open(&self.directory, names::ROOT, true)?;
        Ok(map.get(&0)?.unwrap_or_default())
    }

    /// Who wrote the maps.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn info(&self) -> Result<Info> {
        Ok(Info::read(&self.directory)?.unwrap_or_default())
    }

    /// What the writer left about the last attempt to load the files; empty if it left nothing.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn load(&self) -> Result<String> {
        info::read_load(&self.directory)
    }

    /// Every slot in use, with its owner.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn workloads(&self) -> Result<Vec<(u32, Owner, Workload)>> {
        let owners = TypedMap::<u32, [u8; WORKLOAD_BYTES]>::open(&self.directory, names::WORKLOAD_NAMES, true)?;
        let slots = TypedMap::<u32, Workload>::open(&self.directory, names::WORKLOADS, true)?;
        let mut workloads = Vec::new();
        for (slot, text) in owners.entries()? {
            let Some(owner) = parse_owner(&text) else { continue };
            workloads.push((slot, owner, slots.get(&slot)?.unwrap_or_default()));
        }
        workloads.sort_unstable_by_key(|(slot, ..)| *slot);
        Ok(workloads)
    }

    /// Every single address that belongs to a local workload in the generation in force, with the workload's slot.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn owned_addresses(&self) -> Result<Vec<(IpAddr, u32)>> {
        let generation = self.root()?.generation;
        let v4 = TypedMap::<[u8; 4], AddressEntry>::open(&self.directory, names::ADDRESSES4, true)?.entries()?;
        let v6 = TypedMap::<[u8; 16], AddressEntry>::open(&self.directory, names::ADDRESSES6, true)?.entries()?;
        let v4 = v4.into_iter().map(|(address, entry)| (IpAddr::V4(Ipv4Addr::from(address)), entry));
        let v6 = v6.into_iter().map(|(address, entry)| (IpAddr::V6(Ipv6Addr::from(address)), entry));
        let all = v4.chain(v6).map(|(address, entry)| (address, entry.slot(generation)));
        let mut owned: Vec<_> = all.filter(|(_, slot)| *slot != calico_ebpf_common::abi::NO_SLOT).collect();
        owned.sort_unstable();
        Ok(owned)
    }

    /// Every interface that the programs know, by index.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn interfaces(&self) -> Result<Vec<(u32, Interface)>> {
        let mut interfaces = TypedMap::open(&self.directory, names::INTERFACES, true)?.entries()?;
        interfaces.sort_unstable_by_key(|(index, _)| *index);
        Ok(interfaces)
    }

    /// Whom uplinks answer for. None where an older program left the maps.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn neighbours(&self) -> Result<Vec<NeighbourKey>> {
        if !self.directory.join(names::NEIGHBOURS).exists() {
            return Ok(Vec::new());
        }
        let entries = TypedMap::<NeighbourKey, Neighbour>::open(&self.directory, names::NEIGHBOURS, true)?.entries()?;
        Ok(entries.into_iter().map(|(key, _)| key).collect())
    }

    /// Every named rule: counter slot, name, packets that it decided (all CPUs together).
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn rules(&self) -> Result<Vec<(u32, RuleName, u64)>> {
        let texts = TypedMap::<u32, [u8; RULE_BYTES]>::open(&self.directory, names::RULE_NAMES, true)?.entries()?;
        let hits = Counters::open(&self.directory, names::RULE_HITS, true)?;
        let mut rules = Vec::with_capacity(texts.len());
        for (counter, text) in texts {
            let name = serde_json::from_str(&value_text(&text)).map_err(|error| DataplaneError::Corrupt {
                what: names::RULE_NAMES.to_owned(),
                message: format!("counter {counter}: {error}"),
            })?;
            rules.push((counter, name, hits.sum(counter)?));
        }
        rules.sort_unstable_by_key(|(counter, ..)| *counter);
        Ok(rules)
    }

    /// The entries of the rule table whose header is this block, in order; none for "no table" (block 0, or no chunks).
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn table(&self, header: u32) -> Result<Vec<RuleEntry>> {
        let blocks = TypedMap::<u32, Block>::open(&self.directory, names::RULES, true)?;
        let Some(block) = (header != 0).then(|| blocks.get(&header)).transpose()?.flatten() else {
            return Ok(Vec::new());
        };
        let header: TableHeader = bytemuck::cast(block);
        if header.chunks == 0 {
            return Ok(Vec::new());
        }
        let mut rules = Vec::new();
        for number in 0..header.rules.div_ceil(8) {
            let block = blocks.get(&(header.entries + number))?.unwrap_or_default();
            rules.extend(block.words.into_iter().map(RuleEntry::decode));
        }
        rules.truncate(header.rules as usize);
        Ok(rules)
    }

    /// Drops by reason, all CPUs together.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn drops(&self) -> Result<Vec<(DropReason, u64)>> {
        let counters = Counters::open(&self.directory, names::DROPS, true)?;
        DROP_REASONS.iter().map(|(reason, _)| Ok((*reason, counters.sum(*reason as u32)?))).collect()
    }

    /// Events, all CPUs together. None where an older program left the maps.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn events(&self) -> Result<Vec<(Event, u64)>> {
        if !self.directory.join(names::EVENTS).exists() {
            return Ok(Vec::new());
        }
        let counters = Counters::open(&self.directory, names::EVENTS, true)?;
        EVENTS.iter().map(|(event, _)| Ok((*event, counters.sum(*event as u32)?))).collect()
    }

    /// The IPv4 connections. Entries that come or go meanwhile may or may not be among them.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn connections4(&self) -> Result<Vec<(ConnKey4, Conn)>> {
        TypedMap::open(&self.directory, names::CONNS4, true)?.entries()
    }

    /// The IPv6 connections, likewise.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn connections6(&self) -> Result<Vec<(ConnKey6, Conn)>> {
        TypedMap::open(&self.directory, names::CONNS6, true)?.entries()
    }

    /// Now, in the ticks that connections are stamped with.
    ///
    /// # Errors
    /// If the clock program is not pinned or cannot be run.
    pub fn now(&self) -> Result<u32> {
        Clock::open(&self.directory)?.now()
    }
}
