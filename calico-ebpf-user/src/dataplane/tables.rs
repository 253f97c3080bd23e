//! The maps as the loader writes them: executes the policy store's writes, reads back what an earlier process left.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::offset_of,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use calico_ebpf_common::abi::{
    AddressEntry, Block, Interface, NO_SLOT, Neighbour, NeighbourKey, PolicyRef, RULE_BYTES, Root, Settings, Timeouts,
    WORKLOAD_BYTES, Workload, names, role, workload_flags,
};
use ipnet::IpNet;

use super::{
    error::{DataplaneError, Result},
    info::SavedSysctl,
    links::Runtime,
    maps::{Counters, TypedMap, text_value, value_text},
    netlink::Route,
    sys::Mapping,
};
use crate::policy::{
    compiled::RuleName,
    write::{KernelState, Limits, Write},
};

/// Classes of addresses that the layout can tell apart: 24 bits.
const CLASSES: u32 = 1 << 24;

/// A key of a trie: prefix length in host order, address.
type NetKey6 = [u8; 20];
/// The same with the slot before the address, which the prefix length counts.
type SpoofNetKey4 = [u8; 12];
type SpoofNetKey6 = [u8; 24];

/// Who owns a slot: `cali_wl_name`, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Owner {
    /// `NAMESPACE/NAME`.
    pub endpoint: String,
    /// Name of its pod, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Host side of its veth or tap, as configured.
    pub interface: String,
    /// The node that it came from, as long as its routes are not as ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Sysctls of that interface that were set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sysctls: Vec<SavedSysctl>,
}

/// All maps that the loader writes.
#[derive(Debug)]
pub(crate) struct Tables {
    root: Mapping<Root>,
    rules: Mapping<Block>,
    workloads: Mapping<Workload>,
    interfaces: TypedMap<u32, Interface>,
    neighbours: TypedMap<NeighbourKey, Neighbour>,
    addresses4: TypedMap<[u8; 4], AddressEntry>,
    addresses6: TypedMap<[u8; 16], AddressEntry>,
    nets6: TypedMap<NetKey6, AddressEntry>,
    spoof4: TypedMap<SpoofNetKey4, u32>,
    spoof6: TypedMap<SpoofNetKey6, u32>,
    hits: Counters,
    rule_names: TypedMap<u32, [u8; RULE_BYTES]>,
    workload_names: TypedMap<u32, [u8; WORKLOAD_BYTES]>,
    owners: BTreeMap<u32, Owner>,
    limits: Limits,
}

impl Tables {
    /// Opens the pinned maps for writing.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let nets6 = TypedMap::open(directory, names::NETS6, false)?;
        let addresses4 = TypedMap::open(directory, names::ADDRESSES4, false)?;
        let addresses6 = TypedMap::open(directory, names::ADDRESSES6, false)?;
        let spoof4 = TypedMap::open(directory, names::SPOOF4, false)?;
        let spoof6 = TypedMap::open(directory, names::SPOOF6, false)?;
        let workload_names = TypedMap::open(directory, names::WORKLOAD_NAMES, false)?;
        let rule_names = TypedMap::<u32, [u8; RULE_BYTES]>::open(directory, names::RULE_NAMES, false)?;
        let root = TypedMap::<u32, Root>::open(directory, names::ROOT, false)?.memory()?;
        let rules = TypedMap::<u32, Block>::open(directory, names::RULES, false)?.memory()?;
        let workloads = TypedMap::<u32, Workload>::open(directory, names::WORKLOADS, false)?.memory()?;
        let hits = Counters::open(directory, names::RULE_HITS, false)?;
        let limits = Limits {
            blocks: entries(&rules),
            slots: entries(&workloads),
            counters: rule_names.capacity().min(hits.capacity()),
            addresses4: addresses4.capacity(),
            addresses6: addresses6.capacity(),
            nets: nets6.capacity(),
            spoof: spoof4.capacity().min(spoof6.capacity()),
            classes: CLASSES,
        };
        let mut tables = Self {
            root,
            rules,
            workloads,
            interfaces: TypedMap::open(directory, names::INTERFACES, false)?,
            neighbours: TypedMap::open(directory, names::NEIGHBOURS, false)?,
            addresses4,
            addresses6,
            nets6,
            spoof4,
            spoof6,
            hits,
            rule_names,
            workload_names,
            owners: BTreeMap::new(),
            limits,
        };
        tables.owners = tables.read_owners()?;
        Ok(tables)
    }

    /// Room in the maps.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// The generation in force.
    pub(crate) fn generation(&self) -> Result<u32> {
        self.root.load_u32(0, offset_of!(Root, generation)).map_err(DataplaneError::io(names::ROOT))
    }

    /// Puts a generation in force.
    pub(crate) fn commit(&self, generation: u32) -> Result<()> {
        self.root.store_u32(0, offset_of!(Root, generation), generation).map_err(DataplaneError::io(names::ROOT))
    }

    /// Executes writes in order.
    pub(crate) fn write(&mut self, writes: &[Write]) -> Result<()> {
        let mut batch = Batch::default();
        for write in writes {
            if let Write::Address { prefix, entry } = write {
                batch.add(*prefix, *entry);
                continue;
            }
            batch.flush(self)?;
            self.write_one(write)?;
        }
        batch.flush(self)
    }

    fn write_one(&mut self, write: &Write) -> Result<()> {
        match write {
            Write::Blocks { first, blocks } => {
                self.rules.store(*first as usize, blocks).map_err(DataplaneError::io(names::RULES))
            }
            Write::Address { prefix, entry } => {
                let mut batch = Batch::default();
                batch.add(*prefix, *entry);
                batch.flush(self)
            }
            Write::RemoveAddress { prefix } => self.remove_address(*prefix),
            Write::WorkloadPolicy { slot, side, policy, incarnation } => {
                let offset = offset_of!(Workload, policy) + (side & 1) * size_of::<PolicyRef>();
                self.store_workload(*slot, offset_of!(Workload, incarnation), &incarnation.to_ne_bytes())?;
                self.store_workload(*slot, offset, bytemuck::bytes_of(policy))
            }
            Write::WorkloadName { slot, name } => {
                let mut owner = self.owners.get(slot).cloned().unwrap_or_default();
                if owner.endpoint != *name {
                    owner = Owner { endpoint: name.clone(), ..Owner::default() };
                }
                self.set_owner(*slot, owner)
            }
            Write::RemoveWorkload { slot } => {
                let incarnation = self.workload(*slot)?.incarnation;
                let free = Workload { incarnation, ..Workload::default() };
                self.store_workload(*slot, 0, bytemuck::bytes_of(&free))?;
                self.owners.remove(slot);
                self.workload_names.remove(slot).map(drop)
            }
            Write::RuleName { counter, name } => {
                let text = serde_json::to_string(name).unwrap_or_default();
                let value = text_value(&text).ok_or_else(|| too_long(names::RULE_NAMES, &text))?;
                self.hits.reset(*counter)?;
                self.rule_names.insert(counter, &value)
            }
            Write::RemoveRuleName { counter } => self.rule_names.remove(counter).map(drop),
            Write::Settings { side, settings } => {
                let offset = offset_of!(Root, settings) + (side & 1) * size_of::<Settings>();
                self.store_root(offset, bytemuck::bytes_of(settings))
            }
            Write::Spoof { slot, prefix } => match prefix {
                IpNet::V4(net) => self.spoof4.insert(&spoof_key4(*slot, *net), slot),
                IpNet::V6(net) => self.spoof6.insert(&spoof_key6(*slot, *net), slot),
            },
            Write::RemoveSpoof { slot, prefix } => match prefix {
                IpNet::V4(net) => self.spoof4.remove(&spoof_key4(*slot, *net)).map(drop),
                IpNet::V6(net) => self.spoof6.remove(&spoof_key6(*slot, *net)).map(drop),
            },
        }
    }

    fn remove_address(&self, prefix: IpNet) -> Result<()> {
        match prefix {
            IpNet::V4(net) if net.prefix_len() == 32 => self.addresses4.remove(&net.addr().octets()),
            IpNet::V6(net) if net.prefix_len() == 128 => self.addresses6.remove(&net.addr().octets()),
            // The classes of IPv4 networks are in the arena.
            IpNet::V4(_) => return Ok(()),
            IpNet::V6(net) => self.nets6.remove(&net_key6(net)),
        }
        .map(drop)
    }

    /// The whole of a slot.
    pub(crate) fn workload(&self, slot: u32) -> Result<Workload> {
        self.workloads.load(slot as usize).map_err(DataplaneError::io(names::WORKLOADS))
    }

    fn store_workload(&self, slot: u32, offset: usize, bytes: &[u8]) -> Result<()> {
        self.workloads.store_bytes(slot as usize, offset, bytes).map_err(DataplaneError::io(names::WORKLOADS))
    }

    fn store_root(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.root.store_bytes(0, offset, bytes).map_err(DataplaneError::io(names::ROOT))
    }

    /// The slot's side of its interface.
    pub(crate) fn runtime(&self, slot: u32) -> Result<Runtime> {
        let Workload { ifindex, flags, mtu, mac, host_mac, takeover, .. } = self.workload(slot)?;
        Ok(Runtime { ifindex, flags, mtu, mac, host_mac, takeover })
    }

    /// Sets it. The flags come last when the slot becomes active and first when it no longer is.
    pub(crate) fn set_runtime(&self, slot: u32, runtime: &Runtime) -> Result<()> {
        let flags = |flags: u32| self.store_workload(slot, offset_of!(Workload, flags), &flags.to_ne_bytes());
        if self.runtime(slot)?.ifindex != runtime.ifindex {
            flags(0)?;
        }
        self.store_workload(slot, offset_of!(Workload, ifindex), &runtime.ifindex.to_ne_bytes())?;
        self.store_workload(slot, offset_of!(Workload, mtu), &runtime.mtu.to_ne_bytes())?;
        // Both addresses are neighbours and share a word.
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&runtime.mac);
        macs[6..].copy_from_slice(&runtime.host_mac);
        self.store_workload(slot, offset_of!(Workload, mac), &macs)?;
        self.store_workload(slot, offset_of!(Workload, takeover), &runtime.takeover.to_ne_bytes())?;
        flags(runtime.flags)
    }

    /// Leaves with a slot that is not active yet that its workload comes from another node: whoever goes on from here knows.
    pub(crate) fn announce_arrival(&self, slot: u32) -> Result<()> {
        let flags = self.runtime(slot)?.flags;
        if flags & workload_flags::ACTIVE != 0 {
            return Ok(());
        }
        self.store_workload(slot, offset_of!(Workload, flags), &workload_flags::ARRIVING.to_ne_bytes())
    }

    /// The interface map.
    pub(crate) fn interfaces(&self) -> Result<BTreeMap<u32, Interface>> {
        Ok(self.interfaces.entries()?.into_iter().collect())
    }

    pub(crate) fn set_interface(&self, ifindex: u32, entry: &Interface) -> Result<()> {
        self.interfaces.insert(&ifindex, entry)
    }

    pub(crate) fn remove_interface(&self, ifindex: u32) -> Result<()> {
        self.interfaces.remove(&ifindex).map(drop)
    }

    /// Forgets all interfaces, and what slots and neighbours say of them: they were those of a network namespace that is gone.
    pub(crate) fn forget_interfaces(&mut self) -> Result<()> {
        for (slot, owner) in self.owners.clone() {
            self.set_owner(slot, Owner { sysctls: Vec::new(), ..owner })?;
            if slot < self.limits.slots {
                self.set_runtime(slot, &Runtime::default())?;
            }
        }
        self.interfaces()?.keys().try_for_each(|ifindex| self.remove_interface(*ifindex))?;
        self.neighbours()?.keys().try_for_each(|key| self.set_neighbour(key, None))
    }

    /// What is known of each slot in use.
    pub(crate) fn owners(&self) -> &BTreeMap<u32, Owner> {
        &self.owners
    }

    /// Sets what is known of a slot, if that is news.
    pub(crate) fn set_owner(&mut self, slot: u32, owner: Owner) -> Result<()> {
        if self.owners.get(&slot) == Some(&owner) {
            return Ok(());
        }
        let text = |owner: &Owner| serde_json::to_string(owner).unwrap_or_default();
        // Long names leave no room for the rest: first pod and origin go, and last what only `purge` asks for. The endpoint alone
        // matters to a takeover.
        let shorter = Owner { pod: None, from: None, ..owner.clone() };
        let short = Owner { sysctls: Vec::new(), ..shorter.clone() };
        let value = text_value(&text(&owner))
            .or_else(|| text_value(&text(&shorter)))
            .or_else(|| text_value(&text(&short)))
            .ok_or_else(|| too_long(names::WORKLOAD_NAMES, &text(&short)))?;
        self.workload_names.insert(&slot, &value)?;
        self.owners.insert(slot, owner);
        Ok(())
    }

    fn read_owners(&self) -> Result<BTreeMap<u32, Owner>> {
        let entries = self.workload_names.entries()?;
        Ok(entries.into_iter().filter_map(|(slot, text)| Some((slot, parse_owner(&text)?))).collect())
    }

    /// Sets what in the root is neither policy nor generation.
    pub(crate) fn set_root(
        &self,
        limits: &ConnLimits,
        timeouts: &Timeouts,
        hz: u32,
        takeover: Option<u32>,
    ) -> Result<()> {
        self.store_root(offset_of!(Root, conn_limit), &limits.limit.to_ne_bytes())?;
        self.store_root(offset_of!(Root, conn_fair_share), &limits.fair_share.to_ne_bytes())?;
        self.store_root(offset_of!(Root, conn_unassured), &limits.unassured.to_ne_bytes())?;
        self.store_root(offset_of!(Root, timeouts), bytemuck::bytes_of(timeouts))?;
        self.store_root(offset_of!(Root, hz), &hz.to_ne_bytes())?;
        takeover.map_or(Ok(()), |ticks| self.store_root(offset_of!(Root, takeover), &ticks.max(1).to_ne_bytes()))
    }

    /// When the data path took over from another one, or slots from other judges, is of no account any more where `is_over` says so.
    pub(crate) fn end_takeovers(&self, is_over: impl Fn(u32) -> bool) -> Result<()> {
        if is_over(self.root()?.takeover) {
            self.store_root(offset_of!(Root, takeover), &[0; 4])?;
        }
        for slot in self.owners.keys().filter(|slot| **slot < self.limits.slots) {
            let runtime = self.runtime(*slot)?;
            if runtime.is_seat() && is_over(runtime.takeover) {
                self.store_workload(*slot, offset_of!(Workload, takeover), &[0; 4])?;
            }
        }
        Ok(())
    }

    /// Tells the fast path which interfaces are uplinks.
    pub(crate) fn set_uplinks(&self, uplinks: &[u32]) -> Result<()> {
        let mut root = Root::default();
        for (place, ifindex) in root.uplinks.iter_mut().zip(uplinks) {
            *place = *ifindex;
        }
        self.store_root(offset_of!(Root, uplinks), bytemuck::bytes_of(&root.uplinks))
    }

    /// Tells the fast path whether whole networks are this host's.
    pub(crate) fn set_local_networks(&self, any: bool) -> Result<()> {
        self.store_root(offset_of!(Root, local_networks), &u32::from(any).to_ne_bytes())
    }

    /// Adds to what the programs of uplinks do besides, or takes from it: bits of `abi::uplink_flags`.
    pub(crate) fn set_uplink_flag(&self, flag: u32, set: bool) -> Result<()> {
        let offset = offset_of!(Root, uplink_flags);
        let flags = self.root.load_u32(0, offset).map_err(DataplaneError::io(names::ROOT))?;
        let flags = if set { flags | flag } else { flags & !flag };
        self.store_root(offset, &flags.to_ne_bytes())
    }

    /// Whom uplinks answer for.
    pub(crate) fn neighbours(&self) -> Result<BTreeMap<NeighbourKey, Neighbour>> {
        Ok(self.neighbours.entries()?.into_iter().collect())
    }

    /// `None`: no more.
    pub(crate) fn set_neighbour(&self, key: &NeighbourKey, neighbour: Option<&Neighbour>) -> Result<()> {
        match neighbour {
            Some(neighbour) => self.neighbours.insert(key, neighbour),
            None => self.neighbours.remove(key).map(drop),
        }
    }

    /// Tells the fast path whether the host's stack puts fragments together.
    pub(crate) fn set_reassembles(&self, reassembles: bool) -> Result<()> {
        self.store_root(offset_of!(Root, reassembles), &u32::from(reassembles).to_ne_bytes())
    }

    pub(crate) fn root(&self) -> Result<Root> {
        self.root.load(0).map_err(DataplaneError::io(names::ROOT))
    }

    /// Local workloads' addresses with the interfaces that their routes lead to or, as far as there are `routes`, may lead to still.
    pub(crate) fn owned(&self, routes: &[Route]) -> Result<BTreeSet<(IpAddr, u32)>> {
        let (mut addresses, mut owned) = (BTreeSet::new(), BTreeSet::new());
        for (address, slot) in self.addresses_with_slots()? {
            addresses.insert(address);
            let ifindex = self.workload(slot)?.ifindex;
            if ifindex != 0 {
                owned.insert((address, ifindex));
            }
        }
        // A writer that was killed may have led a workload to another interface, and not come to its routes: until then it forgets no
        // interface.
        let interfaces = self.interfaces()?;
        let is_workloads = |index: u32| interfaces.get(&index).is_some_and(|entry| entry.role == role::WORKLOAD);
        let strayed = routes.iter().filter(|route| addresses.contains(&route.address) && is_workloads(route.ifindex));
        owned.extend(strayed.map(|route| (route.address, route.ifindex)));
        Ok(owned)
    }

    /// Addresses of local workloads in the generation in force.
    pub(crate) fn addresses_in_force(&self) -> Result<BTreeSet<IpAddr>> {
        let generation = self.generation()?;
        let own = self.addresses()?.into_iter().filter(|(_, entry)| entry.slot(generation) != NO_SLOT);
        Ok(own.map(|(address, _)| address).collect())
    }

    /// Addresses of local workloads, as the maps tell in the generation in force and, where that has just come, of the one before:
    /// the writer may not have come to their routes.
    fn addresses_with_slots(&self) -> Result<Vec<(IpAddr, u32)>> {
        let slots = |(address, entry): (IpAddr, AddressEntry)| entry.slot.value.map(|slot| (address, slot));
        Ok(self.addresses()?.into_iter().flat_map(slots).filter(|(_, slot)| *slot < self.limits.slots).collect())
    }

    /// All single addresses that the maps know.
    fn addresses(&self) -> Result<Vec<(IpAddr, AddressEntry)>> {
        let v4 = self.addresses4.entries()?.into_iter().map(|(address, entry)| (Ipv4Addr::from(address).into(), entry));
        let v6 = self.addresses6.entries()?.into_iter().map(|(address, entry)| (Ipv6Addr::from(address).into(), entry));
        Ok(v4.chain(v6).collect())
    }

    /// Everything that the policy store has to know to go on from here.
    pub(crate) fn snapshot(&self) -> Result<Snapshot> {
        let blocks: std::io::Result<Vec<Block>> = (0..self.rules.len()).map(|index| self.rules.load(index)).collect();
        let workloads: Result<Vec<Workload>> = (0..self.limits.slots).map(|slot| self.workload(slot)).collect();
        let mut addresses = BTreeMap::new();
        for (address, entry) in self.addresses4.entries()? {
            addresses.insert(IpNet::from(IpAddr::from(address)), entry);
        }
        for (address, entry) in self.addresses6.entries()? {
            addresses.insert(IpNet::from(IpAddr::from(address)), entry);
        }
        for (key, entry) in self.nets6.entries()? {
            addresses.extend(net(&key).map(|net| (net, entry)));
        }
        let mut spoof = BTreeSet::new();
        spoof.extend(self.spoof4.entries()?.into_iter().filter_map(|(key, _)| spoof_net(&key)));
        spoof.extend(self.spoof6.entries()?.into_iter().filter_map(|(key, _)| spoof_net(&key)));
        let rule_names = self.rule_names.entries()?.into_iter();
        Ok(Snapshot {
            root: self.root()?,
            blocks: blocks.map_err(DataplaneError::io(names::RULES))?,
            workloads: workloads?,
            workload_names: self.owners.iter().map(|(slot, owner)| (*slot, owner.endpoint.clone())).collect(),
            rule_names: rule_names
                .filter_map(|(counter, text)| Some((counter, serde_json::from_str(&value_text(&text)).ok()?)))
                .collect(),
            addresses,
            spoof,
        })
    }
}

/// What the maps hold: the owner of what [`KernelState`] borrows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    root: Root,
    blocks: Vec<Block>,
    workloads: Vec<Workload>,
    workload_names: BTreeMap<u32, String>,
    rule_names: BTreeMap<u32, RuleName>,
    addresses: BTreeMap<IpNet, AddressEntry>,
    spoof: BTreeSet<(u32, IpNet)>,
}

impl Snapshot {
    /// For [`crate::policy::store::Store::adopt`].
    #[must_use]
    pub fn state(&self) -> KernelState<'_> {
        KernelState {
            root: &self.root,
            blocks: &self.blocks,
            workloads: &self.workloads,
            workload_names: &self.workload_names,
            rule_names: &self.rule_names,
            addresses: &self.addresses,
            spoof: &self.spoof,
        }
    }
}

/// Room for connections, as the programs share it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnLimits {
    pub(crate) limit: u32,
    pub(crate) fair_share: u32,
    pub(crate) unassured: u32,
}

impl ConnLimits {
    /// Half of the table is shared out in equal parts among the host and two accounts a workload; the other half is for
    /// whoever needs more. Entries that are not assured may take half of an account's part, but at least 1,024.
    pub(crate) fn new(limit: u32, workloads: usize) -> Self {
        let accounts = u32::try_from(workloads.max(16)).unwrap_or(u32::MAX).saturating_mul(2).saturating_add(1);
        let fair_share = (limit / 2 / accounts).max(16);
        Self { limit, fair_share, unassured: (fair_share / 2).max(1024).min(limit / 8) }
    }
}

/// Calico's defaults (`BPFConntrackTimeouts`), in ticks.
pub(crate) fn timeouts(hz: u32) -> Timeouts {
    Timeouts {
        tcp_syn: 20 * hz,
        tcp_established: 3600 * hz,
        tcp_fin: 30 * hz,
        tcp_reset: 40 * hz,
        udp: 60 * hz,
        icmp: 5 * hz,
        generic: 600 * hz,
        reserved: 0,
    }
}

/// Address writes that may go together: nothing else was between them.
#[derive(Debug, Default)]
struct Batch {
    addresses4: Vec<([u8; 4], AddressEntry)>,
    addresses6: Vec<([u8; 16], AddressEntry)>,
    nets6: Vec<(NetKey6, AddressEntry)>,
}

impl Batch {
    fn add(&mut self, prefix: IpNet, entry: AddressEntry) {
        match prefix {
            IpNet::V4(net) if net.prefix_len() == 32 => self.addresses4.push((net.addr().octets(), entry)),
            IpNet::V6(net) if net.prefix_len() == 128 => self.addresses6.push((net.addr().octets(), entry)),
            // The classes of IPv4 networks are in the arena.
            IpNet::V4(_) => {}
            IpNet::V6(net) => self.nets6.push((net_key6(net), entry)),
        }
    }

    fn flush(&mut self, tables: &Tables) -> Result<()> {
        let Self { addresses4, addresses6, nets6 } = std::mem::take(self);
        tables.addresses4.insert_many(&addresses4)?;
        tables.addresses6.insert_many(&addresses6)?;
        tables.nets6.insert_many(&nets6)
    }
}

pub(crate) fn parse_owner(text: &[u8]) -> Option<Owner> {
    serde_json::from_str(&value_text(text)).ok()
}

fn entries<T: bytemuck::Pod>(mapping: &Mapping<T>) -> u32 {
    u32::try_from(mapping.len()).unwrap_or(u32::MAX)
}

fn too_long(what: &str, text: &str) -> DataplaneError {
    DataplaneError::Corrupt { what: what.to_owned(), message: format!("no room for {text}") }
}

fn net_key6(net: ipnet::Ipv6Net) -> NetKey6 {
    trie_key(u32::from(net.prefix_len()), None, &net.network().octets())
}

fn spoof_key4(slot: u32, net: ipnet::Ipv4Net) -> SpoofNetKey4 {
    trie_key(32 + u32::from(net.prefix_len()), Some(slot), &net.network().octets())
}

fn spoof_key6(slot: u32, net: ipnet::Ipv6Net) -> SpoofNetKey6 {
    trie_key(32 + u32::from(net.prefix_len()), Some(slot), &net.network().octets())
}

/// Prefix length in host order, then the slot if there is one, then the address, both big-endian.
fn trie_key<const N: usize>(prefix_len: u32, slot: Option<u32>, address: &[u8]) -> [u8; N] {
    let parts = prefix_len.to_ne_bytes().into_iter().chain(slot.into_iter().flat_map(u32::to_be_bytes));
    let mut key = [0; N];
    for (place, byte) in key.iter_mut().zip(parts.chain(address.iter().copied())) {
        *place = byte;
    }
    key
}

fn net(key: &[u8]) -> Option<IpNet> {
    let (prefix_len, address) = key.split_first_chunk::<4>()?;
    let address = match address.len() {
        4 => IpAddr::from(*address.first_chunk::<4>()?),
        _ => IpAddr::from(*address.first_chunk::<16>()?),
    };
    IpNet::new(address, u8::try_from(u32::from_ne_bytes(*prefix_len)).ok()?).ok()
}

fn spoof_net(key: &[u8]) -> Option<(u32, IpNet)> {
    let (prefix_len, rest) = key.split_first_chunk::<4>()?;
    let (slot, address) = rest.split_first_chunk::<4>()?;
    let plain = (u32::from_ne_bytes(*prefix_len).checked_sub(32)?).to_ne_bytes();
    Some((u32::from_be_bytes(*slot), net(&[plain.as_slice(), address].concat())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trie_keys_are_read_back() {
        let v4: ipnet::Ipv4Net = "10.1.0.0/16".parse().expect("a prefix");
        let v6: ipnet::Ipv6Net = "fd00:1::/32".parse().expect("a prefix");
        assert_eq!(net(&net_key6(v6)), Some(v6.into()));
        assert_eq!(spoof_net(&spoof_key4(300, v4)), Some((300, v4.into())));
        assert_eq!(spoof_net(&spoof_key6(300, v6)), Some((300, v6.into())));
        assert_eq!(spoof_key4(258, v4)[..8], [48, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn an_owner_fits() {
        let interface = "cali0123456789a".to_owned();
        let settings = super::super::sysctl::workload(&interface, true, true).into_iter();
        let saved = |setting: super::super::sysctl::Setting| SavedSysctl {
            path: setting.path,
            old: "1".to_owned(),
            new: "0".to_owned(),
        };
        let usual = Owner {
            endpoint: format!("{}/{}", "n".repeat(20), "e".repeat(60)),
            pod: None,
            interface: interface.clone(),
            from: Some("f".repeat(20)),
            sysctls: settings.map(saved).collect(),
        };
        let longest =
            Owner { endpoint: format!("{}/{}", "n".repeat(63), "e".repeat(253)), interface, ..Owner::default() };
        for owner in [usual, longest] {
            let text = text_value::<WORKLOAD_BYTES>(&serde_json::to_string(&owner).expect("as JSON")).expect("fits");
            assert_eq!(parse_owner(&text), Some(owner));
        }
    }

    #[test]
    fn fair_shares_take_no_more_than_half() {
        for workloads in [0, 3, 250, 4096] {
            let limits = ConnLimits::new(524_288, workloads);
            assert!(u64::from(limits.fair_share) * (2 * workloads as u64 + 1) <= 262_144);
            assert!(limits.fair_share >= 16);
        }
    }
}
