//! What should hang on which interface, and what each slot should say of its interface: desired against found, as a list
//! of actions. Pure; [`super::Dataplane::apply`] carries them out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use calico_ebpf_common::abi::{Interface, NO_SLOT, names, role, workload_flags};

use super::{
    desired::{Attachment, DesiredHostEndpoint, DesiredWorkload},
    host_endpoints::Seats,
    netlink::{Hook, Link, LinkTable},
    tc::Hanging,
    translation::Translated,
};
use crate::{policy::store::interface_name, routes::migration::Stage};

/// What the loader writes into a slot of `cali_wl`; the rest of it is the policy store's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime {
    pub(crate) ifindex: u32,
    pub(crate) flags: u32,
    pub(crate) mtu: u32,
    pub(crate) mac: [u8; 6],
    pub(crate) host_mac: [u8; 6],
    pub(crate) takeover: u32,
}

impl Runtime {
    /// Whether it is of no workload, but of what a host endpoint judges.
    pub(crate) const fn is_seat(&self) -> bool {
        self.flags & workload_flags::HOST_ENDPOINT != 0
    }
}

/// One step. `Display` is what `--dry-run` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkAction {
    /// Hang a program on a hook, in place of ours that hangs there.
    Attach { ifindex: u32, interface: String, hook: Hook, program: &'static str },
    /// Take ours off a hook.
    Detach { ifindex: u32, hook: Hook },
    /// Tell the programs what an interface is.
    SetInterface { ifindex: u32, entry: Interface },
    /// Forget an interface.
    RemoveInterface { ifindex: u32 },
    /// Set the slot's side of its interface.
    SetRuntime { slot: u32, runtime: Runtime },
}

impl fmt::Display for LinkAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attach { ifindex, interface, hook, program } => {
                write!(f, "interface {interface} ({ifindex}): attach {program} to {hook}")
            }
            Self::Detach { ifindex, hook } => write!(f, "interface {ifindex}: detach from {hook}"),
            Self::SetInterface { ifindex, entry } if entry.role != role::WORKLOAD => {
                let what = if entry.role == role::UPLINK { "an uplink" } else { "the host's" };
                write!(f, "interface {ifindex}: is {what}, MTU {}", entry.mtu)?;
                match entry.host {
                    0 => Ok(()),
                    host => write!(f, ", host endpoint in slot {}", host - 1),
                }
            }
            Self::SetInterface { ifindex, entry } => write!(f, "interface {ifindex}: belongs to slot {}", entry.slot),
            Self::RemoveInterface { ifindex } => write!(f, "interface {ifindex}: forget"),
            Self::SetRuntime { slot, runtime } if runtime.is_seat() => {
                write!(f, "slot {slot}: active, of a host endpoint")
            }
            Self::SetRuntime { slot, runtime } if runtime.ifindex == 0 => write!(f, "slot {slot}: no interface"),
            Self::SetRuntime { slot, runtime } => {
                let active = if runtime.flags & workload_flags::ACTIVE == 0 { "inactive" } else { "active" };
                let peer = if runtime.flags & workload_flags::PEER == 0 { "" } else { ", delivered to the peer" };
                write!(f, "slot {slot}: {active} on interface {}, MTU {}{peer}", runtime.ifindex, runtime.mtu)
            }
        }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The MAC address at the other end of a veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerMac {
    pub(crate) mac: [u8; 6],
    /// Whether it is another one than when this process last looked. What changed before its first look, the workload's own
    /// questions have told since.
    pub(crate) is_news: bool,
}

/// What was found in the kernel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) links: LinkTable,
    /// What of ours hangs where; of interfaces that exist.
    pub(crate) hanging: BTreeMap<(u32, Hook), Hanging>,
    /// Link pins, whatever they are worth.
    pub(crate) pins: Vec<(u32, Hook)>,
    /// The interface map.
    pub(crate) interfaces: BTreeMap<u32, Interface>,
    /// What each slot says now.
    pub(crate) runtimes: BTreeMap<u32, Runtime>,
    /// MAC addresses of the other ends, where they could be had.
    pub(crate) peer_macs: BTreeMap<u32, PeerMac>,
}

/// What should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) workloads: &'a [DesiredWorkload],
    pub(crate) uplinks: &'a [u32],
    pub(crate) host_endpoints: &'a [DesiredHostEndpoint],
    /// What judges at interfaces of the host, by index.
    pub(crate) seats: &'a BTreeMap<u32, Seats>,
    /// Interfaces behind which the stack may translate destinations, and where else that leads.
    pub(crate) translated: &'a Translated,
    pub(crate) prefixes: Option<&'a [String]>,
    pub(crate) attachment: Attachment,
    /// Ids of our programs by name.
    pub(crate) programs: &'a BTreeMap<&'static str, u32>,
    /// Ticks: a host endpoint that judges from now on takes over connections that nobody has seen open.
    pub(crate) now: u32,
}

const HOOKS: [Hook; 2] = [Hook::Ingress, Hook::Egress];

/// What leads from `found` to `wanted`, in the order in which it is to be done. The policy is in the maps already.
///
/// A slot is made active before its filters hang, so that they police from the first packet on: an interface that had
/// traffic before (another network plugin's) loses nothing. The route, which is what leads traffic there, comes later.
pub(crate) fn reconcile(wanted: &Wanted<'_>, found: &Found) -> Vec<LinkAction> {
    let mut actions = Vec::new();
    let mut kept = BTreeSet::new();
    let mut slots = BTreeSet::new();
    for workload in wanted.workloads {
        slots.insert(workload.slot);
        let Some(link) = found.links.by_name(&workload.interface) else {
            set_runtime(&mut actions, found, workload.slot, Runtime::default());
            continue;
        };
        kept.insert(link.index);
        let entry = Interface {
            role: role::WORKLOAD,
            slot: workload.slot,
            mtu: link.mtu,
            mac: link.mac,
            name: interface_name(&link.name),
            translates: wanted.translated.arrivals.contains(&link.index).into(),
            address4: first(&workload.addresses, |address| match address {
                IpAddr::V4(address) => Some(address.octets()),
                IpAddr::V6(_) => None,
            }),
            address6: first(&workload.addresses, |address| match address {
                IpAddr::V4(_) => None,
                IpAddr::V6(address) => Some(address.octets()),
            }),
            ..Interface::default()
        };
        // First the slot, then who leads to it.
        set_runtime(&mut actions, found, workload.slot, runtime(workload, link, found));
        set_interface(&mut actions, found, link.index, entry);
        attach(&mut actions, wanted, found, link, [names::PROG_FROM_WORKLOAD, names::PROG_TO_WORKLOAD]);
    }
    for endpoint in wanted.host_endpoints {
        let flags = workload_flags::ACTIVE | workload_flags::HOST_ENDPOINT;
        let of_host = [Some(endpoint.host), endpoint.from_workloads].map(|slot| (slot, flags));
        for (slot, flags) in of_host.into_iter().chain([(endpoint.forward, flags | workload_flags::OUTSIDE)]) {
            let Some(slot) = slot else { continue };
            slots.insert(slot);
            let before = found.runtimes.get(&slot).filter(|before| before.flags & workload_flags::ACTIVE != 0);
            let takeover = before.map_or(wanted.now.max(1), |before| before.takeover);
            set_runtime(&mut actions, found, slot, Runtime { flags, takeover, ..Runtime::default() });
        }
    }
    let uplinks = wanted.uplinks.iter().map(|index| (*index, role::UPLINK));
    let seats = wanted.seats.keys().map(|index| (*index, role::HOST));
    let ways_out = wanted.translated.ways_out.iter().map(|index| (*index, role::WAY_OUT));
    for (index, role) in uplinks.chain(seats).chain(ways_out) {
        let Some(link) = found.links.by_index(index).filter(|link| kept.insert(link.index)) else { continue };
        let seats = wanted.seats.get(&index);
        let entry = Interface {
            role,
            slot: NO_SLOT,
            mtu: link.mtu,
            mac: link.mac,
            name: interface_name(&link.name),
            translates: wanted.translated.arrivals.contains(&index).into(),
            // 0 is nobody.
            host: seats.map_or(0, |seats| seats.host + 1),
            forward: seats.and_then(|seats| seats.forward).map_or(0, |slot| slot + 1),
            ..Interface::default()
        };
        set_interface(&mut actions, found, link.index, entry);
        if role == role::WAY_OUT {
            attach_to(&mut actions, wanted, found, link, Hook::Egress, names::PROG_TO_UPLINK);
            if found.hanging.contains_key(&(link.index, Hook::Ingress)) {
                actions.push(LinkAction::Detach { ifindex: link.index, hook: Hook::Ingress });
            }
        } else {
            attach(&mut actions, wanted, found, link, [names::PROG_FROM_UPLINK, names::PROG_TO_UPLINK]);
        }
    }
    for (slot, runtime) in &found.runtimes {
        if !slots.contains(slot) && *runtime != Runtime::default() {
            actions.push(LinkAction::SetRuntime { slot: *slot, runtime: Runtime::default() });
        }
    }
    orphans(&mut actions, wanted, found, &kept);
    actions
}

/// The first of these addresses that is one of that family; zero where none is.
fn first<const N: usize>(addresses: &[IpAddr], of_family: impl Fn(&IpAddr) -> Option<[u8; N]>) -> [u8; N] {
    addresses.iter().find_map(of_family).unwrap_or([0; N])
}

/// Interfaces that were ours, or that `interfacePrefix` claims, and have no workload.
fn orphans(actions: &mut Vec<LinkAction>, wanted: &Wanted<'_>, found: &Found, kept: &BTreeSet<u32>) {
    let mut orphans: BTreeSet<u32> = found.hanging.keys().map(|(index, _)| *index).collect();
    orphans.extend(found.interfaces.keys());
    orphans.extend(found.pins.iter().map(|(index, _)| *index));
    let claimed = |link: &&Link| {
        wanted.prefixes.is_some_and(|prefixes| {
            prefixes.iter().any(|prefix| !prefix.is_empty() && link.name.starts_with(prefix.as_str()))
        })
    };
    orphans.extend(found.links.iter().filter(|link| !link.loopback).filter(claimed).map(|link| link.index));
    for ifindex in orphans.into_iter().filter(|index| !kept.contains(index)) {
        let entry = found.interfaces.get(&ifindex);
        match found.links.by_index(ifindex) {
            None => {
                for hook in HOOKS.into_iter().filter(|hook| found.pins.contains(&(ifindex, *hook))) {
                    actions.push(LinkAction::Detach { ifindex, hook });
                }
            }
            Some(link) if entry.is_some_and(|entry| entry.role != role::WORKLOAD) && !claimed(&link) => {
                for hook in HOOKS.into_iter().filter(|hook| found.hanging.contains_key(&(ifindex, *hook))) {
                    actions.push(LinkAction::Detach { ifindex, hook });
                }
            }
            Some(link) => attach(actions, wanted, found, link, [names::PROG_DROP, names::PROG_DROP]),
        }
        if entry.is_some() {
            actions.push(LinkAction::RemoveInterface { ifindex });
        }
    }
}

fn attach(actions: &mut Vec<LinkAction>, wanted: &Wanted<'_>, found: &Found, link: &Link, programs: [&'static str; 2]) {
    for (hook, program) in HOOKS.into_iter().zip(programs) {
        attach_to(actions, wanted, found, link, hook, program);
    }
}

fn attach_to(
    actions: &mut Vec<LinkAction>,
    wanted: &Wanted<'_>,
    found: &Found,
    link: &Link,
    hook: Hook,
    program: &'static str,
) {
    let right = wanted.programs.get(program).is_some_and(|id| {
        found.hanging.get(&(link.index, hook)) == Some(&Hanging { attachment: wanted.attachment, program: *id })
    });
    if !right {
        actions.push(LinkAction::Attach { ifindex: link.index, interface: link.name.clone(), hook, program });
    }
}

fn set_interface(actions: &mut Vec<LinkAction>, found: &Found, ifindex: u32, entry: Interface) {
    if found.interfaces.get(&ifindex) != Some(&entry) {
        actions.push(LinkAction::SetInterface { ifindex, entry });
    }
}

fn set_runtime(actions: &mut Vec<LinkAction>, found: &Found, slot: u32, runtime: Runtime) {
    if found.runtimes.get(&slot).copied().unwrap_or_default() != runtime {
        actions.push(LinkAction::SetRuntime { slot, runtime });
    }
}

/// Whether packets can be put straight into the other end: it is a veth's, and neither down nor in the same network namespace,
/// where `bpf_redirect_peer` drops. The others (taps) get theirs by the interface itself.
pub(crate) fn has_peer(link: &Link) -> bool {
    link.veth && link.carrier && link.peer_netns.is_some()
}

fn runtime(workload: &DesiredWorkload, link: &Link, found: &Found) -> Runtime {
    let mut flags = workload_flags::ACTIVE;
    if has_peer(link) {
        flags |= workload_flags::PEER;
    }
    if workload.mac.is_some() {
        flags |= workload_flags::MAC_CHECK;
    }
    if workload.spoof {
        flags |= workload_flags::SPOOF;
    }
    let mut takeover = 0;
    match workload.migration.as_ref().map(|migration| migration.stage) {
        Some(Stage::Withheld) => flags |= workload_flags::ARRIVING,
        Some(Stage::Elevated { since } | Stage::Settling { since }) => takeover = since,
        None => {}
    }
    let before = found.runtimes.get(&workload.slot).copied().unwrap_or_default();
    // A learned address is kept as long as the interface is the same, and the one at the other end stays what it is: what is
    // behind that, a virtual machine say, may have another.
    let learned = (before.ifindex == link.index && before.mac != [0; 6]).then_some(before.mac);
    let peer = found.peer_macs.get(&link.index);
    let news = peer.filter(|peer| peer.is_news);
    let mac = workload.mac.or(news.map(|peer| peer.mac)).or(learned).or(peer.map(|peer| peer.mac)).unwrap_or_default();
    Runtime { ifindex: link.index, flags, mtu: link.mtu, mac, host_mac: link.mac, takeover }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            mtu: 1500,
            mac: [2, 0, 0, 0, 0, index as u8],
            up: true,
            carrier: true,
            loopback: false,
            ethernet: true,
            has_master: false,
            in_vrf: false,
            veth: true,
            vlan: false,
            bond: false,
            ifb: false,
            peer_netns: Some(0),
            peer_index: Some(2),
        }
    }

    fn workload(slot: u32, interface: &str) -> DesiredWorkload {
        DesiredWorkload {
            name: format!("default/{interface}"),
            pod: None,
            slot,
            interface: interface.to_owned(),
            addresses: Vec::new(),
            mac: None,
            spoof: false,
            migration: None,
        }
    }

    fn programs() -> BTreeMap<&'static str, u32> {
        super::super::load::PROGRAMS.into_iter().zip(1..).collect()
    }

    /// Does to `found` what the executor does to the kernel.
    fn execute(found: &mut Found, programs: &BTreeMap<&'static str, u32>, actions: &[LinkAction]) {
        for action in actions {
            match action {
                LinkAction::Attach { ifindex, hook, program, .. } => {
                    let program = programs[program];
                    found.hanging.insert((*ifindex, *hook), Hanging { attachment: Attachment::Tcx, program });
                }
                LinkAction::Detach { ifindex, hook } => {
                    found.hanging.remove(&(*ifindex, *hook));
                    found.pins.retain(|pin| *pin != (*ifindex, *hook));
                }
                LinkAction::SetInterface { ifindex, entry } => drop(found.interfaces.insert(*ifindex, *entry)),
                LinkAction::RemoveInterface { ifindex } => drop(found.interfaces.remove(ifindex)),
                LinkAction::SetRuntime { slot, runtime } => drop(found.runtimes.insert(*slot, *runtime)),
            }
        }
    }

    fn converge(found: &mut Found, workloads: &[DesiredWorkload], uplinks: &[u32], prefixes: Option<&[String]>) {
        let programs = programs();
        let wanted = Wanted {
            workloads,
            uplinks,
            host_endpoints: &[],
            seats: &BTreeMap::new(),
            translated: &Translated::default(),
            prefixes,
            attachment: Attachment::Tcx,
            programs: &programs,
            now: 7,
        };
        let actions = reconcile(&wanted, found);
        execute(found, &programs, &actions);
        for index in uplinks {
            assert_eq!(found.interfaces[index].role, role::UPLINK);
        }
        assert_eq!(reconcile(&wanted, found), [], "a second run has nothing to do");
    }

    #[test]
    fn filters_hang_when_all_that_they_need_is_there() {
        let found = Found { links: LinkTable::new(vec![link(7, "cali1")]), ..Found::default() };
        let programs = programs();
        let workloads = [workload(3, "cali1")];
        let wanted = Wanted {
            workloads: &workloads,
            uplinks: &[],
            host_endpoints: &[],
            seats: &BTreeMap::new(),
            translated: &Translated::default(),
            prefixes: None,
            attachment: Attachment::Tcx,
            programs: &programs,
            now: 7,
        };
        let actions = reconcile(&wanted, &found);
        let active = workload_flags::ACTIVE | workload_flags::PEER;
        assert!(matches!(actions[0], LinkAction::SetRuntime { slot: 3, runtime } if runtime.flags == active));
        assert!(matches!(actions[1], LinkAction::SetInterface { ifindex: 7, entry } if entry.slot == 3));
        assert!(actions[2..].iter().all(|action| matches!(action, LinkAction::Attach { ifindex: 7, .. })));
        assert_eq!(actions.len(), 4);
    }

    #[test]
    fn an_interface_without_its_workload_keeps_a_dropping_program() {
        let mut found = Found { links: LinkTable::new(vec![link(7, "cali1"), link(8, "cali2")]), ..Found::default() };
        converge(&mut found, &[workload(0, "cali1"), workload(1, "cali2")], &[], None);
        converge(&mut found, &[workload(1, "cali2")], &[], None);
        let drop = programs()[names::PROG_DROP];
        assert_eq!(found.hanging[&(7, Hook::Ingress)].program, drop);
        assert_eq!(found.hanging[&(7, Hook::Egress)].program, drop);
        assert!(!found.interfaces.contains_key(&7));
        assert_eq!(found.runtimes[&0], Runtime::default());
        // It gets a workload again.
        converge(&mut found, &[workload(0, "cali1"), workload(1, "cali2")], &[], None);
        assert_ne!(found.hanging[&(7, Hook::Ingress)].program, drop);
    }

    #[test]
    fn what_hung_on_a_vanished_interface_is_forgotten() {
        let mut found = Found { links: LinkTable::new(vec![link(7, "cali1")]), ..Found::default() };
        converge(&mut found, &[workload(0, "cali1")], &[], None);
        found.links = LinkTable::new(Vec::new());
        found.hanging.clear();
        found.pins = vec![(7, Hook::Ingress), (7, Hook::Egress)];
        converge(&mut found, &[workload(0, "cali1")], &[], None);
        assert!(found.pins.is_empty() && found.interfaces.is_empty());
        assert_eq!(found.runtimes[&0], Runtime::default());
        // It returns with another index.
        found.links = LinkTable::new(vec![link(12, "cali1")]);
        converge(&mut found, &[workload(0, "cali1")], &[], None);
        assert_eq!(found.runtimes[&0].ifindex, 12);
    }

    #[test]
    fn a_former_uplink_is_let_go() {
        let mut found = Found { links: LinkTable::new(vec![link(2, "eth0")]), ..Found::default() };
        converge(&mut found, &[], &[2], None);
        assert_eq!(found.hanging.len(), 2);
        converge(&mut found, &[], &[], None);
        assert!(found.hanging.is_empty() && found.interfaces.is_empty());
    }

    #[test]
    fn interfaces_of_the_prefix_drop() {
        let mut found = Found { links: LinkTable::new(vec![link(2, "eth0"), link(9, "cali9")]), ..Found::default() };
        converge(&mut found, &[], &[2], Some(&["cali".to_owned()]));
        assert_eq!(found.hanging[&(9, Hook::Ingress)].program, programs()[names::PROG_DROP]);
        assert_eq!(found.hanging[&(2, Hook::Ingress)].program, programs()[names::PROG_FROM_UPLINK]);
    }

    #[test]
    fn a_learned_mac_address_stays_with_its_interface() {
        let mut found = Found { links: LinkTable::new(vec![link(7, "cali1")]), ..Found::default() };
        converge(&mut found, &[workload(0, "cali1")], &[], None);
        let mac = [6, 5, 4, 3, 2, 1];
        found.runtimes.get_mut(&0).unwrap_or(&mut Runtime::default()).mac = mac;
        converge(&mut found, &[workload(0, "cali1")], &[], None);
        assert_eq!(found.runtimes[&0].mac, mac);
        found.links = LinkTable::new(vec![link(8, "cali1")]);
        converge(&mut found, &[workload(0, "cali1")], &[], None);
        assert_eq!(found.runtimes[&0].mac, [0; 6]);
    }

    #[test]
    fn a_mac_address_that_changes_at_the_other_end_counts_more_than_a_learned_one() {
        let mut found = Found { links: LinkTable::new(vec![link(7, "cali1")]), ..Found::default() };
        let mut mac_with = |peer: PeerMac, learned: Option<[u8; 6]>| {
            found.peer_macs.insert(7, peer);
            if let (Some(learned), Some(runtime)) = (learned, found.runtimes.get_mut(&0)) {
                runtime.mac = learned;
            }
            converge(&mut found, &[workload(0, "cali1")], &[], None);
            found.runtimes[&0].mac
        };
        let (peer, learned) = ([2; 6], [4; 6]);
        assert_eq!(mac_with(PeerMac { mac: peer, is_news: true }, None), peer);
        assert_eq!(mac_with(PeerMac { mac: peer, is_news: false }, Some(learned)), learned, "of what is behind it");
        assert_eq!(mac_with(PeerMac { mac: [6; 6], is_news: true }, None), [6; 6]);
    }
}
