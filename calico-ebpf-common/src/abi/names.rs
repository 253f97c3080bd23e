//! Names of maps and programs: the `cali_` prefix and at most 15 characters (the kernel keeps no more).

/// TC ingress on a workload's host side: packets that the workload sends.
pub const PROG_FROM_WORKLOAD: &str = "cali_from_wl";
/// TC egress on a workload's host side: packets that the host's stack delivers to the workload.
pub const PROG_TO_WORKLOAD: &str = "cali_to_wl";
/// TC ingress on an uplink.
pub const PROG_FROM_UPLINK: &str = "cali_from_up";
/// TC egress on an uplink: packets that leave through the host's stack.
pub const PROG_TO_UPLINK: &str = "cali_to_up";
/// XDP on an uplink with untracked policy, of frames in several buffers too.
pub const PROG_XDP: &str = "cali_xdp_up";
/// The same for kernels before 5.18, which know no such frames.
pub const PROG_XDP_LINEAR: &str = "cali_xdp_up1";
/// TC ingress on an interface without a workload: drops everything.
pub const PROG_DROP: &str = "cali_drop";
/// Run by user space only: advances the clock hand over the connection table.
pub const PROG_SWEEP: &str = "cali_sweep";
/// Run by user space only: returns the clock the connection entries are stamped with.
pub const PROG_CLOCK: &str = "cali_clock";
/// Run by user space only: what would become of a packet, found out without a trace. See [`super::Explained`].
pub const PROG_EXPLAIN: &str = "cali_explain";

/// `Array<Root>`, one entry, memory-mapped by the loader.
pub const ROOT: &str = "cali_root";
/// `Array<Block>`: rule tables and the classes of IPv4 addresses, memory-mapped by the loader.
pub const RULES: &str = "cali_rules";
/// `Array<Workload>` by slot, memory-mapped by the loader.
pub const WORKLOADS: &str = "cali_wl";
/// `HashMap<u32, Interface>` by interface index.
pub const INTERFACES: &str = "cali_iface";
/// `HashMap<[u8; 4], AddressEntry>`: IPv4 addresses of local workloads and of this host.
pub const ADDRESSES4: &str = "cali_addr4";
/// `HashMap<[u8; 16], AddressEntry>`: single IPv6 addresses.
pub const ADDRESSES6: &str = "cali_addr6";
/// `LpmTrie<[u8; 16], AddressEntry>`: IPv6 prefixes shorter than /128.
pub const NETS6: &str = "cali_net6";
/// `LpmTrie<SpoofKey4, u32>`: prefixes that a workload may send from besides its own addresses.
pub const SPOOF4: &str = "cali_spoof4";
/// `LpmTrie<SpoofKey6, u32>`, likewise.
pub const SPOOF6: &str = "cali_spoof6";
/// `HashMap<NeighbourKey, Neighbour>`: addresses of local workloads that uplinks answer for.
pub const NEIGHBOURS: &str = "cali_neigh";
/// `LruHashMap<ServiceKey, u32>`: addresses and ports that the stack translates for local workloads, with the jiffies of the first
/// packet of the connection that was opened there last.
pub const SERVICES: &str = "cali_service";
/// `Array<Allowance>` by slot: what a workload may leave to the stack that is not known to be translated.
pub const LEAVES: &str = "cali_leaves";
/// `HashMap<ConnKey4, Conn>`.
pub const CONNS4: &str = "cali_ct4";
/// `HashMap<ConnKey6, Conn>`.
pub const CONNS6: &str = "cali_ct6";
/// `Queue<ConnKey4>`: every key of [`CONNS4`], the ring that the clock hand turns.
pub const RING4: &str = "cali_ring4";
/// `Queue<ConnKey6>`, likewise.
pub const RING6: &str = "cali_ring6";
/// `Array<Quota>` by account: connections held.
pub const QUOTAS: &str = "cali_quota";
/// `Array<ConnKey6>`: `VICTIMS` keys an account, candidates for eviction.
pub const VICTIM_KEYS: &str = "cali_victim";
/// `PerCpuArray<u64>` by counter slot of a rule: packets that the rule decided.
pub const RULE_HITS: &str = "cali_hits";
/// `PerCpuArray<u64>` by [`super::DropReason`].
pub const DROPS: &str = "cali_drops";
/// `PerCpuArray<u64>` by [`super::Event`].
pub const EVENTS: &str = "cali_events";
/// `LruHashMap<FragmentKey, u32>`: IPv4 and IPv6 packets whose first fragment was allowed, with the jiffies of it.
pub const FRAGMENTS: &str = "cali_frag";
/// `RingBuf<LogRecord>`: what `Log` rules met.
pub const LOG: &str = "cali_log";
/// `LruHashMap<FlowKey, FlowRecord>`: who talks to whom, while somebody looks.
pub const FLOWS: &str = "cali_flows";
/// `HashMap<u32, RuleText>` by counter slot of a rule: what the rule is, as JSON. Of user space only.
pub const RULE_NAMES: &str = "cali_rule_name";
/// `HashMap<u32, WorkloadText>` by slot: which workload it is, as JSON. Of user space only.
pub const WORKLOAD_NAMES: &str = "cali_wl_name";
/// `Array<InfoText>`, one entry: what `status` says of a stopped data path, as JSON. Of user space only.
pub const INFO: &str = "cali_info";
/// `Array<LoadText>`, one entry: what the last attempt to load the files led to, as JSON. Of user space only.
pub const LOAD: &str = "cali_load";
