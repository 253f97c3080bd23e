//! The maps. Their layouts are in `calico_ebpf_common::abi`, their names in `abi::names`; the loader overrides the sizes.
//!
//! All are pinned by name, so that they outlive the loader and the next one finds them.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue, RingBuf},
    macros::btf_map,
};
use calico_ebpf_common::abi::{
    AddressEntry, Allowance, Block, Conn, ConnKey4, ConnKey6, FlowKey, FlowRecord, FragmentKey, InfoText, Interface,
    LoadText, LogRecord, Neighbour, NeighbourKey, Quota, Root, RuleText, ServiceKey, SpoofKey4, SpoofKey6, VICTIMS,
    Workload, WorkloadText,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

const SLOTS: usize = 4096;
const ACCOUNTS: usize = 2 * SLOTS + 2;
/// What local workloads and the host have of IPv4: few, so that the table of buckets stays in the processor's cache.
const ADDRESSES4_MAX: usize = 1 << 15;
const ADDRESSES6_MAX: usize = 1 << 19;
const NETS6_MAX: usize = 1 << 20;
const CONNS: usize = 1 << 19;
const COUNTERS: usize = 1 << 16;

#[btf_map(pin_by_name, name = "cali_root")]
pub(crate) static ROOT: Array<Root, 1, MMAPABLE> = Array::new();
#[btf_map(pin_by_name, name = "cali_rules")]
pub(crate) static RULES: Array<Block, { 1 << 19 }, MMAPABLE> = Array::new();
#[btf_map(pin_by_name, name = "cali_wl")]
pub(crate) static WORKLOADS: Array<Workload, SLOTS, MMAPABLE> = Array::new();
#[btf_map(pin_by_name, name = "cali_iface")]
pub(crate) static INTERFACES: HashMap<u32, Interface, 16384, NO_PREALLOC> = HashMap::new();

#[btf_map(pin_by_name, name = "cali_addr4")]
pub(crate) static ADDRESSES4: HashMap<[u8; 4], AddressEntry, ADDRESSES4_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map(pin_by_name, name = "cali_addr6")]
pub(crate) static ADDRESSES6: HashMap<[u8; 16], AddressEntry, ADDRESSES6_MAX, NO_PREALLOC> = HashMap::new();
#[btf_map(pin_by_name, name = "cali_net6")]
pub(crate) static NETS6: LpmTrie<[u8; 16], AddressEntry, NETS6_MAX> = LpmTrie::new();
#[btf_map(pin_by_name, name = "cali_spoof4")]
pub(crate) static SPOOF4: LpmTrie<SpoofKey4, u32, 65536> = LpmTrie::new();
#[btf_map(pin_by_name, name = "cali_spoof6")]
pub(crate) static SPOOF6: LpmTrie<SpoofKey6, u32, 65536> = LpmTrie::new();

#[btf_map(pin_by_name, name = "cali_neigh")]
pub(crate) static NEIGHBOURS: HashMap<NeighbourKey, Neighbour, 16384, NO_PREALLOC> = HashMap::new();

// Preallocated: an entry whose memory has to be found costs several times as much, and in a burst there may be none.
#[btf_map(pin_by_name, name = "cali_ct4")]
pub(crate) static CONNS4: HashMap<ConnKey4, Conn, CONNS> = HashMap::new();
#[btf_map(pin_by_name, name = "cali_ct6")]
pub(crate) static CONNS6: HashMap<ConnKey6, Conn, CONNS> = HashMap::new();
#[btf_map(pin_by_name, name = "cali_ring4")]
pub(crate) static RING4: Queue<ConnKey4, CONNS> = Queue::new();
#[btf_map(pin_by_name, name = "cali_ring6")]
pub(crate) static RING6: Queue<ConnKey6, CONNS> = Queue::new();
#[btf_map(pin_by_name, name = "cali_quota")]
pub(crate) static QUOTAS: Array<Quota, ACCOUNTS> = Array::new();
#[btf_map(pin_by_name, name = "cali_victim")]
pub(crate) static VICTIM_KEYS: Array<ConnKey6, { ACCOUNTS * VICTIMS as usize }> = Array::new();
#[btf_map(pin_by_name, name = "cali_frag")]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, u32, 8192> = LruHashMap::new();

#[btf_map(pin_by_name, name = "cali_service")]
pub(crate) static SERVICES: LruHashMap<ServiceKey, u32, 16384> = LruHashMap::new();
#[btf_map(pin_by_name, name = "cali_leaves")]
pub(crate) static LEAVES: Array<Allowance, SLOTS> = Array::new();

#[btf_map(pin_by_name, name = "cali_hits")]
pub(crate) static RULE_HITS: PerCpuArray<u64, COUNTERS> = PerCpuArray::new();
#[btf_map(pin_by_name, name = "cali_drops")]
pub(crate) static DROPS: PerCpuArray<u64, 32> = PerCpuArray::new();
#[btf_map(pin_by_name, name = "cali_events")]
pub(crate) static EVENTS: PerCpuArray<u64, 8> = PerCpuArray::new();

#[btf_map(pin_by_name, name = "cali_log")]
pub(crate) static LOG: RingBuf<LogRecord, 65536> = RingBuf::new();
#[btf_map(pin_by_name, name = "cali_flows")]
pub(crate) static FLOWS: LruHashMap<FlowKey, FlowRecord, 16384> = LruHashMap::new();

// What follows is written and read by user space only: it lets a data path whose agent is gone be looked at. The
// programs take no part in it, so nothing refers to these statics but the loader.

#[btf_map(pin_by_name, name = "cali_rule_name")]
pub(crate) static RULE_NAMES: HashMap<u32, RuleText, COUNTERS, NO_PREALLOC> = HashMap::new();
#[btf_map(pin_by_name, name = "cali_wl_name")]
pub(crate) static WORKLOAD_NAMES: HashMap<u32, WorkloadText, SLOTS, NO_PREALLOC> = HashMap::new();
#[btf_map(pin_by_name, name = "cali_info")]
pub(crate) static INFO: Array<InfoText, 1> = Array::new();
#[btf_map(pin_by_name, name = "cali_load")]
pub(crate) static LOAD: Array<LoadText, 1> = Array::new();
