//! The loaded object, tables made by hand, and frames put through one program at a time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, PerCpuArray, lpm_trie},
    programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions, Xdp},
    util::KernelVersion,
};
use bytemuck::Pod;
use calico_ebpf_common::abi::{
    Action, AddressEntry, BLOCK_ONES, Block, Conn, ConnKey4, ConnKey6, DropReason, Event, INTERFACE_NAME, Interface,
    MARK_ANSWER, NO_SLOT, Neighbour, NeighbourKey, NodeRef, PolicyRef, Quota, Root, RuleEntry, Settings, Stamped,
    TableHeader, Timeouts, Untracked, VEC_ANY, VectorHeader, Workload, names, role, settings_flags, uplink_flags,
    workload_flags,
};
use calico_ebpf_tests::{
    frames::mac_text,
    lab::{self, Namespace},
};
use calico_ebpf_user::dataplane;

/// `TC_ACT_UNSPEC`: to the stack.
pub(crate) const STACK: i32 = -1;
/// `TC_ACT_SHOT`.
pub(crate) const DROP: i32 = 2;
/// `TC_ACT_REDIRECT`.
pub(crate) const REDIRECT: i32 = 7;

/// Counters of the tables' only rules.
pub(crate) const ALLOW_RULE: u32 = 100;
pub(crate) const DENY_RULE: u32 = 101;
pub(crate) const REJECT_RULE: u32 = 102;
pub(crate) const LEAVE_RULE: u32 = 103;
/// Tables.
pub(crate) const ALLOW: u32 = 8;
pub(crate) const DENY: u32 = 16;
pub(crate) const REJECT: u32 = 24;
pub(crate) const LEAVE: u32 = 32;
/// Denies everything but that whose destination the host has translated.
pub(crate) const BEHIND_DNAT: u32 = 40;
/// The other way round.
pub(crate) const BEFORE_DNAT: u32 = 48;
/// All host sides have Calico's MAC address.
pub(crate) const HOST_MAC: [u8; 6] = [0xee; 6];
pub(crate) const NEXT_MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
/// See [`World::arrive`].
const LOOPBACK: u32 = 1;
/// Jiffies in a second, as the tables claim.
const HZ: u32 = 1000;
pub(crate) const CONNS: u32 = 1024;

pub(crate) const A: Name =
    Name { slot: 1, interface: "cali-a", mac: [2, 0, 0, 0, 0, 0xa], v4: [10, 65, 0, 1], v6: address6(1) };
pub(crate) const B: Name =
    Name { slot: 2, interface: "cali-b", mac: [2, 0, 0, 0, 0, 0xb], v4: [10, 65, 0, 2], v6: address6(2) };
/// Where the host endpoint sits that the uplink may be.
pub(crate) const HOST_SLOT: u32 = 7;
pub(crate) const OUTSIDE_SLOT: u32 = 8;
/// The host and its neighbour on the uplink.
pub(crate) const UPLINK: &str = "up0";
pub(crate) const HOST4: [u8; 4] = [192, 0, 2, 1];
pub(crate) const OUTSIDE4: [u8; 4] = [192, 0, 2, 2];
pub(crate) const OUTSIDE6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

const fn address6(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0x65, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

/// A workload.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    pub(crate) slot: u32,
    pub(crate) interface: &'static str,
    pub(crate) mac: [u8; 6],
    pub(crate) v4: [u8; 4],
    pub(crate) v6: [u8; 16],
}

/// What became of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) action: i32,
    pub(crate) frame: Vec<u8>,
    /// `skb->mark` and `skb->priority`; zero where there is no skb.
    pub(crate) mark: u32,
    pub(crate) priority: u32,
    /// `cb`, as programs see it.
    pub(crate) control: [u32; 5],
}

/// The programs and their maps.
pub(crate) struct World {
    ebpf: Ebpf,
    namespace: Arc<Namespace>,
    /// The calling thread lives in the namespace.
    entered: bool,
    indices: BTreeMap<&'static str, u32>,
    directory: PathBuf,
    loaded: Vec<&'static str>,
    translates: bool,
}

#[expect(clippy::wrong_self_convention, reason = "`from_a` is where a frame comes from")]
impl World {
    /// Two workloads that may send and receive everything.
    pub(crate) fn new() -> Self {
        let name = lab::unique_name().expect("a name");
        let namespace = Namespace::create(name.clone()).expect("makes a network namespace");
        for (interface, mac) in [(A.interface, HOST_MAC), (B.interface, HOST_MAC), (UPLINK, HOST_MAC)] {
            let mac = mac_text(mac);
            let peer = format!("{interface}-peer");
            namespace
                .ip(&format!("link add {interface} address {mac} type veth peer name {peer}"))
                .expect("adds a pair");
            for end in [interface, &peer] {
                namespace.ip(&format!("link set {end} up")).expect("sets it up");
            }
        }
        for command in [
            format!("addr add 192.0.2.1/24 dev {UPLINK}"),
            format!("route add 198.51.100.0/24 via 192.0.2.2 dev {UPLINK}"),
            format!("neigh add 192.0.2.2 lladdr 02:00:00:00:09:09 dev {UPLINK}"),
            format!("-6 addr add 2001:db8:2::1/64 dev {UPLINK} nodad"),
            format!("-6 neigh add 2001:db8:2::2 lladdr 02:00:00:00:09:09 dev {UPLINK}"),
        ] {
            namespace.ip(&command).expect("sets the host up");
        }
        for sysctl in ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"] {
            assert!(namespace.command("sysctl").args(["-qw", sysctl]).status().expect("runs").success());
        }

        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).expect("makes a directory");
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&directory).status().expect("runs");
        assert!(mounted.success(), "mounts a bpffs");

        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(&directory).override_global("AYA_LOG_LEVEL", &0_u8, true);
        for map in [names::CONNS4, names::CONNS6, names::RING4, names::RING6] {
            loader.map_max_entries(map, CONNS);
        }
        loader.map_max_entries(names::RULES, 64);
        let index = |interface: &str| {
            let text = namespace.ip(&format!("-o link show dev {interface}")).expect("an interface");
            text.split(':').next().and_then(|index| index.trim().parse().ok()).expect("an index")
        };
        let mut world = Self {
            ebpf: loader.load(&object()).expect("loads the object"),
            indices: [A.interface, B.interface, UPLINK].map(|interface| (interface, index(interface))).into(),
            namespace: Arc::new(namespace),
            entered: false,
            directory,
            loaded: vec![],
            translates: false,
        };
        world.fill();
        world
    }

    fn fill(&mut self) {
        let timeouts = Timeouts {
            tcp_syn: 20 * HZ,
            tcp_established: 3600 * HZ,
            tcp_fin: 30 * HZ,
            tcp_reset: 40 * HZ,
            udp: 60 * HZ,
            icmp: 5 * HZ,
            generic: 600 * HZ,
            reserved: 0,
        };
        let mut uplinks = [0; 8];
        uplinks[0] = self.ifindex(UPLINK);
        self.put(
            names::ROOT,
            0,
            &Root {
                generation: 1,
                conn_limit: CONNS,
                conn_fair_share: 16,
                conn_unassured: 64,
                settings: [Settings::default(); 2],
                timeouts,
                uplinks,
                hz: HZ,
                ..Root::default()
            },
        );
        for (index, block) in blocks() {
            self.put(names::RULES, index, &block);
        }
        for name in [A, B] {
            let ifindex = self.ifindex(name.interface);
            self.set_workload(name, |workload| {
                *workload = Workload {
                    ifindex,
                    flags: workload_flags::ACTIVE | workload_flags::PEER,
                    incarnation: 7,
                    mtu: 1500,
                    mac: name.mac,
                    host_mac: HOST_MAC,
                    takeover: 0,
                    policy: [PolicyRef { egress_table: ALLOW, ingress_table: ALLOW, egress_epoch: 1, ingress_epoch: 1 };
                        2],
                }
            });
            let interface =
                Interface { role: role::WORKLOAD, slot: name.slot, mtu: 1500, mac: HOST_MAC, ..Interface::default() };
            self.insert::<4, 64>(names::INTERFACES, &ifindex, &interface);
            self.insert::<4, 24>(names::ADDRESSES4, &name.v4, &owned(name.slot, 0));
            self.insert::<16, 24>(names::ADDRESSES6, &name.v6, &owned(name.slot, 1));
        }
        let (ifindex, name) = (self.ifindex(UPLINK), interface_name(UPLINK));
        let uplink =
            Interface { role: role::UPLINK, slot: NO_SLOT, mtu: 1500, mac: HOST_MAC, name, ..Interface::default() };
        self.insert::<4, 64>(names::INTERFACES, &ifindex, &uplink);
        self.insert::<4, 64>(names::INTERFACES, &LOOPBACK, &uplink);
        let host = AddressEntry { flags: calico_ebpf_common::abi::HOST, ..owned(NO_SLOT, 0) };
        self.insert::<4, 24>(names::ADDRESSES4, &HOST4, &host);
    }

    /// `ip ARGUMENTS` in its namespace.
    pub(crate) fn ip(&self, arguments: &str) {
        self.namespace.ip(arguments).expect("ip");
    }

    /// Makes the uplink a host endpoint: tables (egress, ingress) for the host's own traffic, and for whoever is outside.
    pub(crate) fn set_host_endpoint(&mut self, host: [u32; 2], outside: Option<[u32; 2]>) {
        let ifindex = self.ifindex(UPLINK);
        let flags = workload_flags::ACTIVE | workload_flags::HOST_ENDPOINT;
        let seats = [(HOST_SLOT, flags, Some(host)), (OUTSIDE_SLOT, flags | workload_flags::OUTSIDE, outside)];
        for (slot, flags, tables) in seats {
            let before: Workload = self.get::<64, _>(names::WORKLOADS, slot);
            let epoch = before.policy[0].egress_epoch + 1;
            let [egress_table, ingress_table] = tables.unwrap_or_default();
            let policy = PolicyRef { egress_table, ingress_table, egress_epoch: epoch, ingress_epoch: epoch };
            self.put(
                names::WORKLOADS,
                slot,
                &Workload { flags, incarnation: 3, policy: [policy; 2], ..Workload::default() },
            );
        }
        let interface = Interface {
            role: role::UPLINK,
            slot: NO_SLOT,
            mtu: 1500,
            mac: HOST_MAC,
            host: HOST_SLOT + 1,
            forward: if outside.is_some() { OUTSIDE_SLOT + 1 } else { 0 },
            translates: self.translates.into(),
            ..Interface::default()
        };
        self.insert::<4, 64>(names::INTERFACES, &ifindex, &interface);
        self.set_root(|root| {
            root.settings.iter_mut().for_each(|settings| settings.flags |= settings_flags::HOST_ENDPOINTS);
        });
    }

    /// The stack may translate what comes in by the uplink, from when it is made a host endpoint.
    pub(crate) fn set_translates(&mut self) {
        self.translates = true;
    }

    /// The stack may translate what this workload sends.
    pub(crate) fn set_translates_for(&mut self, name: Name) {
        let interface = Interface {
            role: role::WORKLOAD,
            slot: name.slot,
            mtu: 1500,
            mac: HOST_MAC,
            translates: 1,
            address4: name.v4,
            address6: name.v6,
            ..Interface::default()
        };
        let ifindex = self.ifindex(name.interface);
        self.insert::<4, 64>(names::INTERFACES, &ifindex, &interface);
    }

    pub(crate) fn ifindex(&self, interface: &str) -> u32 {
        self.indices[interface]
    }

    /// Does `work` on a thread that lives in the namespace, so that its many packets need not enter it one by one.
    pub(crate) fn inside<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> T + Send) -> T {
        let namespace = Arc::clone(&self.namespace);
        self.entered = true;
        let done = namespace.enter(|| work(self)).expect("enters the namespace");
        self.entered = false;
        done
    }

    /// Puts a frame through a program that sits on `interface`, as if it had come in by `ingress`.
    pub(crate) fn run(
        &mut self,
        program: &'static str,
        interface: &str,
        ingress: Option<&str>,
        frame: &[u8],
    ) -> Outcome {
        let ifindex = self.ifindex(interface);
        let ingress = ingress.map_or(0, |ingress| self.ifindex(ingress));
        self.run_with(program, ifindex, ingress, 0, frame)
    }

    pub(crate) fn run_with(
        &mut self,
        program: &'static str,
        ifindex: u32,
        ingress: u32,
        gso: u32,
        frame: &[u8],
    ) -> Outcome {
        self.run_in_context(program, [ifindex, ingress, gso, 0], [0; 5], frame)
    }

    /// Puts an answer of our own through a program.
    pub(crate) fn run_marked(&mut self, program: &'static str, interface: &str, frame: &[u8]) -> Outcome {
        let ifindex = self.ifindex(interface);
        self.run_in_context(program, [ifindex, ifindex, 0, MARK_ANSWER], [0; 5], frame)
    }

    /// Puts a packet that goes past the stack, with this control block, through the program where it leaves.
    pub(crate) fn pass(&mut self, interface: &str, ingress: Option<&str>, control: [u32; 5], frame: &[u8]) -> Outcome {
        let program = if interface == UPLINK { names::PROG_TO_UPLINK } else { names::PROG_TO_WORKLOAD };
        let ingress = ingress.map_or(0, |ingress| self.ifindex(ingress));
        self.run_in_context(program, [self.ifindex(interface), ingress, 0, 0], control, frame)
    }

    /// Puts a packet that the stack has forwarded, with this mark, through the program where it leaves.
    pub(crate) fn leave(&mut self, interface: &str, ingress: &str, mark: u32, frame: &[u8]) -> Outcome {
        let program = if interface == UPLINK { names::PROG_TO_UPLINK } else { names::PROG_TO_WORKLOAD };
        self.run_in_context(program, [self.ifindex(interface), self.ifindex(ingress), 0, mark], [0; 5], frame)
    }

    fn run_in_context(
        &mut self,
        program: &'static str,
        [ifindex, ingress, gso, mark]: [u32; 4],
        control: [u32; 5],
        frame: &[u8],
    ) -> Outcome {
        self.load(program).unwrap_or_else(|error| panic!("{program}: {error}"));
        // struct __sk_buff: `mark`, `priority`, `ingress_ifindex`, `ifindex`, `cb`, `gso_segs` and `gso_size`.
        let mut context = [0_u8; 192];
        context[8..12].copy_from_slice(&mark.to_ne_bytes());
        context[36..40].copy_from_slice(&ingress.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        context[48..68].copy_from_slice(bytemuck::bytes_of(&control));
        context[176..180].copy_from_slice(&gso.to_ne_bytes());
        // Answers may be longer than what they answer.
        let mut out = vec![0; frame.len() + 128];
        let mut context_out = [0_u8; 192];
        let program: &SchedClassifier = self.ebpf.program(program).expect("a program").try_into().expect("for TC");
        let mut run = || {
            program.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_out),
                ..TestRunOptions::default()
            })
        };
        let result = if self.entered { run() } else { self.namespace.enter(run).expect("enters the namespace") };
        let result = result.expect("runs the program");
        out.truncate(result.data_size_out as usize);
        let word = |at: usize| u32::from_ne_bytes(context_out[at..at + 4].try_into().expect("four bytes"));
        let control = [48, 52, 56, 60, 64].map(word);
        Outcome { action: result.return_value as i32, frame: out, mark: word(8), priority: word(32), control }
    }

    /// Puts a frame through the XDP program, as if it had come in by the uplink.
    pub(crate) fn arrive(&mut self, frame: &[u8]) -> Outcome {
        self.arrive_at(if lacks_frags() { names::PROG_XDP_LINEAR } else { names::PROG_XDP }, frame)
    }

    pub(crate) fn arrive_at(&mut self, program: &'static str, frame: &[u8]) -> Outcome {
        self.load_xdp(program).unwrap_or_else(|error| panic!("{program}: {error}"));
        // Before 5.18 the program is told that the frame came in by the first interface of the namespace.
        let knows_context = !lacks_frags();
        // struct xdp_md: `data`, `data_end`, `data_meta`, `ingress_ifindex`, `rx_queue_index`, `egress_ifindex`.
        let mut context = [0_u8; 24];
        context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&self.ifindex(UPLINK).to_ne_bytes());
        let mut out = vec![0; frame.len() + 128];
        let program: &Xdp = self.ebpf.program(program).expect("a program").try_into().expect("for XDP");
        let mut run = || {
            program.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: knows_context.then_some(&context),
                ..TestRunOptions::default()
            })
        };
        let result = if self.entered { run() } else { self.namespace.enter(run).expect("enters the namespace") };
        let result = result.expect("runs the program");
        out.truncate(result.data_size_out as usize);
        Outcome { action: result.return_value as i32, frame: out, mark: 0, priority: 0, control: [0; 5] }
    }

    /// Loads an XDP program and says how many instructions the verifier looked at.
    pub(crate) fn load_xdp(&mut self, name: &'static str) -> Result<u32, ProgramError> {
        let program: &mut Xdp = self.ebpf.program_mut(name).expect("a program").try_into().expect("for XDP");
        if !self.loaded.contains(&name) {
            program.load()?;
            self.loaded.push(name);
        }
        Ok(program.info()?.verified_instruction_count().unwrap_or(0))
    }

    /// Gives the uplink untracked policy.
    pub(crate) fn set_untracked(&mut self, ingress_table: u32, egress_table: u32) {
        let other = Untracked { interface: interface_name("other"), ..Untracked::default() };
        let uplink = Untracked { interface: interface_name(UPLINK), ingress_table, egress_table };
        self.set_root(|root| {
            root.uplink_flags |= uplink_flags::UNTRACKED;
            for settings in &mut root.settings {
                settings.untracked[..2].copy_from_slice(&[other, uplink]);
            }
        });
    }

    /// Has the uplink answer for a workload.
    pub(crate) fn answer_for(&mut self, address: [u8; 16], by_xdp: bool) {
        self.set_root(|root| root.uplink_flags |= uplink_flags::ANSWERS);
        let neighbour = Neighbour { mac: HOST_MAC, by_xdp: by_xdp.into() };
        for ifindex in [self.ifindex(UPLINK), LOOPBACK] {
            self.insert::<20, 8>(names::NEIGHBOURS, &NeighbourKey { address, ifindex }, &neighbour);
        }
    }

    /// The return value of a program that is run for itself.
    pub(crate) fn call(&mut self, program: &'static str) -> u32 {
        self.run_with(program, self.ifindex(A.interface), 0, 0, &[0; 64]).action as u32
    }

    /// Loads a program and says how many instructions the verifier looked at.
    pub(crate) fn load(&mut self, name: &'static str) -> Result<u32, ProgramError> {
        let program: &mut SchedClassifier = self.ebpf.program_mut(name).expect("a program").try_into().expect("for TC");
        if !self.loaded.contains(&name) {
            dataplane::load_program(program)?;
            self.loaded.push(name);
        }
        Ok(program.info()?.verified_instruction_count().unwrap_or(0))
    }

    pub(crate) fn set_workload(&mut self, name: Name, change: impl FnOnce(&mut Workload)) {
        let mut workload: Workload = self.get::<64, _>(names::WORKLOADS, name.slot);
        change(&mut workload);
        self.put(names::WORKLOADS, name.slot, &workload);
    }

    pub(crate) fn set_root(&mut self, change: impl FnOnce(&mut Root)) {
        let mut root: Root = self.get::<528, _>(names::ROOT, 0);
        change(&mut root);
        self.put(names::ROOT, 0, &root);
    }

    /// Other tables for a workload, in force at once.
    pub(crate) fn set_policy(&mut self, name: Name, egress: u32, ingress: u32) {
        self.set_workload(name, |workload| {
            for policy in &mut workload.policy {
                let epoch = policy.egress_epoch + 1;
                *policy = PolicyRef {
                    egress_table: egress,
                    ingress_table: ingress,
                    egress_epoch: epoch,
                    ingress_epoch: epoch,
                };
            }
        });
    }

    /// The epoch of a workload's policy.
    pub(crate) fn epoch(&self, name: Name) -> u32 {
        self.get::<64, Workload>(names::WORKLOADS, name.slot).policy[0].egress_epoch
    }

    pub(crate) fn put<T: Pod>(&mut self, map: &str, index: u32, value: &T) {
        let map = self.ebpf.map_mut(map).expect("a map");
        macro_rules! set {
            ($bytes:literal) => {
                Array::<&mut MapData, [u8; $bytes]>::try_from(map).expect("an array").set(index, &bytes_of(value), 0)
            };
        }
        match size_of::<T>() {
            16 => set!(16),
            64 => set!(64),
            528 => set!(528),
            other => panic!("no array of {other} bytes"),
        }
        .expect("sets a value");
    }

    pub(crate) fn get<const N: usize, T: Pod>(&self, map: &str, index: u32) -> T {
        let map = Array::<&MapData, [u8; N]>::try_from(self.ebpf.map(map).expect("a map")).expect("an array");
        bytemuck::pod_read_unaligned(&map.get(&index, 0).expect("a value"))
    }

    pub(crate) fn insert<const K: usize, const V: usize>(&mut self, map: &str, key: &impl Pod, value: &impl Pod) {
        let map = self.ebpf.map_mut(map).expect("a map");
        let mut map = HashMap::<&mut MapData, [u8; K], [u8; V]>::try_from(map).expect("a hash map");
        map.insert(&bytes_of::<K>(key), &bytes_of::<V>(value), 0).expect("inserts");
    }

    pub(crate) fn allow_spoofing4(&mut self, name: Name, length: u32, prefix: [u8; 4]) {
        let mut data = [0; 8];
        data[..4].copy_from_slice(&name.slot.to_be_bytes());
        data[4..].copy_from_slice(&prefix);
        let map = self.ebpf.map_mut(names::SPOOF4).expect("a map");
        let mut map = aya::maps::LpmTrie::<&mut MapData, [u8; 8], u32>::try_from(map).expect("a trie");
        map.insert(&lpm_trie::Key::new(32 + length, data), &1_u32, 0).expect("inserts");
    }

    pub(crate) fn conns4(&self) -> Vec<(ConnKey4, Conn)> {
        self.conns::<16, _>(names::CONNS4)
    }

    pub(crate) fn conns6(&self) -> Vec<(ConnKey6, Conn)> {
        self.conns::<40, _>(names::CONNS6)
    }

    /// The only IPv4 connection.
    pub(crate) fn conn4(&self) -> Conn {
        let conns = self.conns4();
        assert_eq!(conns.len(), 1, "{conns:?}");
        conns[0].1
    }

    pub(crate) fn set_conn4(&mut self, change: impl FnOnce(&mut Conn)) {
        let (key, mut conn) = self.conns4()[0];
        change(&mut conn);
        self.insert::<16, 64>(names::CONNS4, &key, &conn);
    }

    /// As if nothing had been heard since.
    pub(crate) fn age_all(&mut self, since: u32) {
        for (key, mut conn) in self.conns4() {
            conn.seen = [since; 2];
            self.insert::<16, 64>(names::CONNS4, &key, &conn);
        }
        for (key, mut conn) in self.conns6() {
            conn.seen = [since; 2];
            self.insert::<40, 64>(names::CONNS6, &key, &conn);
        }
    }

    pub(crate) fn clear_fragments(&mut self) {
        let map = self.ebpf.map_mut(names::FRAGMENTS).expect("a map");
        let mut map = HashMap::<&mut MapData, [u8; 48], u32>::try_from(map).expect("a hash map");
        let keys: Vec<[u8; 48]> = map.keys().map(|key| key.expect("reads")).collect();
        for key in keys {
            map.remove(&key).expect("removes");
        }
    }

    fn conns<const K: usize, T: Pod>(&self, map: &str) -> Vec<(T, Conn)> {
        let map = self.ebpf.map(map).expect("a map");
        let map = HashMap::<&MapData, [u8; K], [u8; 64]>::try_from(map).expect("a hash map");
        let read = |(key, value): ([u8; K], [u8; 64])| {
            (bytemuck::pod_read_unaligned(&key), bytemuck::pod_read_unaligned(&value))
        };
        map.iter().map(|entry| read(entry.expect("reads"))).collect()
    }

    pub(crate) fn quota(&self, account: u32) -> Quota {
        self.get::<16, _>(names::QUOTAS, account)
    }

    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.counter(names::DROPS, reason as u32)
    }

    pub(crate) fn events(&self, event: Event) -> u64 {
        self.counter(names::EVENTS, event as u32)
    }

    pub(crate) fn hits(&self, rule: u32) -> u64 {
        self.counter(names::RULE_HITS, rule)
    }

    fn counter(&self, map: &str, index: u32) -> u64 {
        let map = PerCpuArray::<&MapData, u64>::try_from(self.ebpf.map(map).expect("a map")).expect("a per-CPU array");
        map.get(&index, 0).expect("a value").iter().sum()
    }

    // The programs, where they sit.

    pub(crate) fn from_a(&mut self, frame: &[u8]) -> Outcome {
        self.run(names::PROG_FROM_WORKLOAD, A.interface, Some(A.interface), frame)
    }

    pub(crate) fn from_b(&mut self, frame: &[u8]) -> Outcome {
        self.run(names::PROG_FROM_WORKLOAD, B.interface, Some(B.interface), frame)
    }

    /// The host's own, to workload A.
    pub(crate) fn host_to_a(&mut self, frame: &[u8]) -> Outcome {
        self.run(names::PROG_TO_WORKLOAD, A.interface, None, frame)
    }

    /// What the host forwards to workload A.
    pub(crate) fn forwarded_to_a(&mut self, ingress: &str, frame: &[u8]) -> Outcome {
        self.run(names::PROG_TO_WORKLOAD, A.interface, Some(ingress), frame)
    }

    /// What the host forwards to workload B.
    pub(crate) fn forwarded_to_b(&mut self, ingress: &str, frame: &[u8]) -> Outcome {
        self.run(names::PROG_TO_WORKLOAD, B.interface, Some(ingress), frame)
    }

    pub(crate) fn from_uplink(&mut self, frame: &[u8]) -> Outcome {
        self.run(names::PROG_FROM_UPLINK, UPLINK, Some(UPLINK), frame)
    }

    pub(crate) fn to_uplink(&mut self, ingress: Option<&str>, frame: &[u8]) -> Outcome {
        self.run(names::PROG_TO_UPLINK, UPLINK, ingress, frame)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.directory).status();
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// The object that the program carries, or another one: for comparing.
fn object() -> Vec<u8> {
    match std::env::var_os("CALICO_EBPF_OBJECT") {
        Some(path) => std::fs::read(Path::new(&path)).expect("reads the object"),
        None => dataplane::object().to_vec(),
    }
}

fn bytes_of<const N: usize>(value: &impl Pod) -> [u8; N] {
    bytemuck::bytes_of(value).try_into().expect("of that size")
}

/// Frames in several buffers, and what comes with them for tests, came with 5.18.
pub(crate) fn lacks_frags() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(5, 18, 0))
}

fn interface_name(name: &str) -> [u8; INTERFACE_NAME] {
    let mut padded = [0; INTERFACE_NAME];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

/// An address of a workload, in every generation.
pub(crate) fn owned(slot: u32, class: u32) -> AddressEntry {
    AddressEntry { class: Stamped { value: [class; 2] }, slot: Stamped { value: [slot; 2] }, since: 0, flags: 0 }
}

/// Tables for everything.
fn blocks() -> Vec<(u32, Block)> {
    let any = VectorHeader { present: [u64::MAX; 2], base: BLOCK_ONES, stride: 0, reserved: [0; 10] };
    let mut blocks = vec![(VEC_ANY, bytemuck::cast(any)), (BLOCK_ONES, Block { words: [u64::MAX; 8] })];
    let allow = (Action::Allow, ALLOW_RULE);
    let deny = (Action::Deny, DENY_RULE);
    for (table, rules, behind_dnat) in [
        (ALLOW, &[allow][..], 0),
        (DENY, &[deny], 0),
        (REJECT, &[(Action::Reject, REJECT_RULE)], 0),
        (LEAVE, &[(Action::Leave, LEAVE_RULE)], 0),
        (BEHIND_DNAT, &[deny, allow], 1),
        (BEFORE_DNAT, &[allow, deny], 1),
    ] {
        let root = NodeRef::vector(VEC_ANY).0;
        let header = TableHeader {
            rules: rules.len() as u32,
            chunks: 1,
            entries: table + 1,
            number: table,
            own: root,
            peer: root,
            destination_port: root,
            source_port: root,
            indifferent: [VEC_ANY; 4],
            behind_dnat,
            before_dnat: 0,
            reserved: [0; 2],
        };
        let mut entries = Block::default();
        for (entry, &(action, counter)) in entries.words.iter_mut().zip(rules) {
            *entry = RuleEntry { action, next: 0, counter }.encode();
        }
        blocks.push((table, bytemuck::cast(header)));
        blocks.push((table + 1, entries));
    }
    blocks
}
