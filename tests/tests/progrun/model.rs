//! The data path in plain words, written without a look at the programs' own code: what each hook does with a frame, what it
//! makes of its bytes, and what is in the tables afterwards. Time stands still in it.

use std::collections::{HashMap, HashSet};

use calico_ebpf_common::abi::DropReason;

use crate::{
    harness::{A, B, DROP, HOST_MAC, HOST4, REDIRECT, STACK},
    parse::{Kind, Packet, Parsed, parse},
};

/// Where a frame is given to the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    FromA,
    FromB,
    /// Forwarded to workload A, or the host's own.
    ToA {
        own: bool,
    },
    FromUplink,
    /// Workload A's, or the host's own.
    ToUplink {
        own: bool,
    },
}

/// Who is at an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    A,
    B,
    /// No local workload.
    Other,
}

/// What policy says of a workload, and how often that has changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) egress: bool,
    pub(crate) ingress: bool,
    pub(crate) epoch: u32,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Conn {
    /// Address and port of who opened it.
    pub(crate) opener: ([u8; 16], u16),
    pub(crate) ends: [Who; 2],
    pub(crate) epochs: [u32; 2],
    pub(crate) by_host: bool,
    pub(crate) via_stack: bool,
    pub(crate) probing: bool,
    pub(crate) answered: bool,
    pub(crate) assured: bool,
    pub(crate) tcp: Tcp,
}

/// What was seen of a TCP connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) syn: bool,
    pub(crate) syn_ack: Option<u32>,
    pub(crate) fins: [bool; 2],
    pub(crate) reset: bool,
    pub(crate) midstream: bool,
}

/// Both ends in order, and the protocol: the same for both directions.
pub(crate) type Key = ([([u8; 16], u16); 2], u8);

/// Why a frame is dropped, or where it goes.
type Verdict = Result<Way, DropReason>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Stack,
    /// Past the stack to a workload, or out of the uplink.
    ToWorkload(Who),
    Out,
}

/// What the model expects.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) action: i32,
    pub(crate) frame: Vec<u8>,
    pub(crate) reason: Option<DropReason>,
}

/// The pieces of one packet: where it came in, its addresses, and what they have in common.
type Fragments = (On, [u8; 16], [u8; 16], [u8; 4]);

/// All of it.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) policies: [Policy; 2],
    pub(crate) host_accepts: bool,
    pub(crate) conns: HashMap<Key, Conn>,
    pub(crate) fragments: HashSet<Fragments>,
    pub(crate) midstream: u64,
}

/// The interface that a program sits on, as far as fragments are told apart by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum On {
    A,
    B,
    Uplink,
}

impl Model {
    pub(crate) fn new() -> Self {
        let policy = Policy { egress: true, ingress: true, epoch: 1 };
        Self {
            policies: [policy; 2],
            host_accepts: false,
            conns: HashMap::new(),
            fragments: HashSet::new(),
            midstream: 0,
        }
    }

    /// What becomes of a frame; `None` where the model has nothing to say: ARP and messages of the link.
    pub(crate) fn run(&mut self, hook: Hook, frame: &[u8]) -> Option<Expected> {
        let verdict = self.judge(hook, frame)?;
        let mut out = frame.to_vec();
        let (action, reason) = match verdict {
            Err(reason) => (DROP, Some(reason)),
            Ok(Way::Stack) => (STACK, None),
            Ok(Way::Out) => {
                one_router_further(&mut out);
                (REDIRECT, None)
            }
            Ok(Way::ToWorkload(who)) => {
                out[..6].copy_from_slice(if who == Who::A { &A.mac } else { &B.mac });
                out[6..12].copy_from_slice(&HOST_MAC);
                one_router_further(&mut out);
                (REDIRECT, None)
            }
        };
        Some(Expected { action, frame: out, reason })
    }

    fn judge(&mut self, hook: Hook, frame: &[u8]) -> Option<Verdict> {
        let for_host = frame[..6] == HOST_MAC;
        match hook {
            Hook::FromA | Hook::FromB if !for_host && frame[0] & 1 == 0 => return Some(Err(DropReason::ForeignMac)),
            Hook::FromUplink if !for_host => return Some(Ok(Way::Stack)),
            Hook::ToUplink { own: true } => return Some(Ok(Way::Stack)),
            _ => {}
        }
        let own = hook == Hook::ToA { own: true };
        let packet = match (parse(frame), hook) {
            (Parsed::Arp, Hook::FromA | Hook::FromB) => return None,
            (Parsed::Arp, _) => return Some(Ok(Way::Stack)),
            (Parsed::Packet(packet), _) => packet,
            (Parsed::Other | Parsed::Bad(_), Hook::FromUplink | Hook::ToUplink { .. }) => return Some(Ok(Way::Stack)),
            (Parsed::Other | Parsed::Bad(_), _) if own => return Some(Ok(Way::Stack)),
            (Parsed::Other, _) => return Some(Err(DropReason::EtherType)),
            (Parsed::Bad(reason), _) => return Some(Err(reason)),
        };
        let v6_link = packet.v6 && packet.protocol == 58 && matches!(packet.kind, Kind::Stateless);
        match hook {
            Hook::FromA | Hook::FromB if v6_link && (130..=143).contains(&packet.icmp[0]) => return None,
            Hook::ToA { .. } if v6_link && packet.ttl == 255 && (133..=137).contains(&packet.icmp[0]) => {
                return Some(Ok(Way::Stack));
            }
            _ => {}
        }
        Some(match hook {
            Hook::FromA => self.at_from_workload(Who::A, &packet, frame),
            Hook::FromB => self.at_from_workload(Who::B, &packet, frame),
            Hook::ToA { own } => {
                let verdict = self.at_to_workload(&packet, own);
                if own { Ok(Way::Stack) } else { verdict }
            }
            Hook::FromUplink => self.at_from_uplink(&packet, frame.len()),
            Hook::ToUplink { .. } => self.at_to_uplink(&packet),
        })
    }

    fn at_from_workload(&mut self, sender: Who, packet: &Packet, frame: &[u8]) -> Verdict {
        let (for_host, length) = (frame[..6] == HOST_MAC, frame.len());
        let mac = if sender == Who::A { A.mac } else { B.mac };
        let check_mac = || if frame[6..12] == mac { Ok(()) } else { Err(DropReason::SpoofedMac) };
        let on = if sender == Who::A { On::A } else { On::B };
        let fast = for_host && !packet.slow && packet.ttl > 1 && length <= 14 + 1500;
        if let Some(from_opener) = self.known(packet, |source, _| source == sender)? {
            check_mac()?;
            let conn = &self.conns[&packet.key()];
            let (way_stack, opened_by_workload) = (conn.via_stack, conn.ends[0] != Who::Other);
            let destination = conn.ends[usize::from(from_opener)];
            if way_stack && destination == Who::Other && from_opener && opened_by_workload {
                self.host_welcomes(packet)?;
            }
            self.first_fragment(on, packet);
            return Ok(if way_stack || !fast {
                Way::Stack
            } else if destination != Who::Other {
                Way::ToWorkload(destination)
            } else if packet.routed_to_uplink() {
                Way::Out
            } else {
                Way::Stack
            });
        }
        check_mac()?;
        if who(&packet.source) != sender {
            return Err(DropReason::SpoofedSource);
        }
        self.forget_foreign(packet, |source, _| source == sender);
        if packet.protocol == 4 || packet.protocol == 17 && packet.ports[1] == 4789 {
            return Err(DropReason::Encapsulated);
        }
        if packet.kind == Kind::Later {
            return self.later_fragment(on, packet);
        }
        if let Some((_, to, from, via_stack)) = self.related(packet)
            && from == sender
        {
            return Ok(if to != Who::Other && !via_stack && fast { Way::ToWorkload(to) } else { Way::Stack });
        }
        let destination = who(&packet.destination);
        self.policy(packet, [sender, destination])?;
        let mut to_host = false;
        if destination == Who::Other {
            to_host = self.host_welcomes(packet)?;
        }
        if packet.kind == Kind::Flow && !packet.multicast() {
            let leaves = destination == Who::Other;
            self.enter(packet, [sender, destination], false, leaves, leaves && !to_host);
        }
        self.first_fragment(on, packet);
        Ok(if destination != Who::Other && fast { Way::ToWorkload(destination) } else { Way::Stack })
    }

    /// What is not the host's own comes in by the uplink.
    fn at_to_workload(&mut self, packet: &Packet, own: bool) -> Verdict {
        if !own
            && self
                .source_of_known(packet, |destination| destination == Who::A)
                .is_some_and(|source| source != Who::Other)
        {
            return Err(DropReason::SpoofedLocal);
        }
        if let Some(from_opener) = self.known(packet, |_, destination| destination == Who::A)? {
            if !from_opener {
                // The answer comes through the stack, too.
                self.conns.get_mut(&packet.key()).expect("known").probing = false;
            }
            self.first_fragment(On::A, packet);
            return Ok(Way::Stack);
        }
        self.forget_foreign(packet, |_, destination| destination == Who::A);
        let has_entry = packet.kind == Kind::Flow && !packet.multicast();
        if own {
            if has_entry && (packet.protocol != 6 || packet.opens()) {
                self.enter(packet, [Who::Other, Who::A], true, true, false);
            }
            return Ok(Way::Stack);
        }
        if packet.kind == Kind::Later {
            return self.later_fragment(On::A, packet);
        }
        if self.related(packet).is_some_and(|(_, to, ..)| to == Who::A) {
            return Ok(Way::Stack);
        }
        let ends = [who(&packet.source), Who::A];
        if ends[0] != Who::Other {
            return Err(DropReason::SpoofedLocal);
        }
        self.policy(packet, ends)?;
        if has_entry {
            self.enter(packet, ends, false, true, false);
        }
        self.first_fragment(On::A, packet);
        Ok(Way::Stack)
    }

    fn at_from_uplink(&mut self, packet: &Packet, length: usize) -> Verdict {
        let fast = !packet.slow && packet.ttl > 1 && length <= 14 + 1500;
        let deliver = |to| if fast { Way::ToWorkload(to) } else { Way::Stack };
        if packet.kind == Kind::Flow
            && let Some(conn) = self.conns.get(&packet.key())
        {
            let from_opener = conn.opener == (packet.source, packet.ports[0]);
            if conn.ends[usize::from(!from_opener)] != Who::Other || from_opener && conn.by_host {
                return Err(DropReason::SpoofedLocal);
            }
        }
        if let Some(from_opener) = self.known(packet, |_, _| true)? {
            let conn = &self.conns[&packet.key()];
            let destination = conn.ends[usize::from(from_opener)];
            let past = destination != Who::Other && !conn.via_stack;
            return Ok(if past { deliver(destination) } else { Way::Stack });
        }
        if who(&packet.source) != Who::Other || packet.source == wide4(HOST4) {
            return Err(DropReason::SpoofedLocal);
        }
        let destination = who(&packet.destination);
        let is_about_known = self.related(packet).is_some_and(|(_, to, ..)| to == destination);
        if destination != Who::Other && is_nobodys(&packet.source) && !is_about_known {
            return Err(DropReason::ReversePath);
        }
        if destination == Who::Other || packet.fragment {
            return Ok(Way::Stack);
        }
        if let Some((_, to, _, via_stack)) = self.related(packet)
            && to == destination
        {
            return Ok(if via_stack { Way::Stack } else { deliver(to) });
        }
        self.policy(packet, [Who::Other, destination])?;
        if packet.kind == Kind::Flow {
            self.enter(packet, [Who::Other, destination], false, false, false);
        }
        Ok(deliver(destination))
    }

    /// It comes in by A's interface.
    fn at_to_uplink(&mut self, packet: &Packet) -> Verdict {
        if packet.kind == Kind::Later && who(&packet.source) != Who::Other {
            return self.later_fragment(On::Uplink, packet);
        }
        if packet.kind != Kind::Flow {
            if packet.kind != Kind::Later {
                self.first_fragment(On::Uplink, packet);
            }
            return Ok(Way::Stack);
        }
        if self.source_of_known(packet, |_| true) == Some(Who::B) {
            return Err(DropReason::SpoofedLocal);
        }
        if let Some(from_opener) = self.known(packet, |_, _| true)? {
            self.first_fragment(On::Uplink, packet);
            let conn = self.conns.get_mut(&packet.key()).expect("known");
            if conn.probing && conn.ends[usize::from(!from_opener)] != Who::Other {
                (conn.probing, conn.via_stack) = (false, false);
            }
            return Ok(Way::Stack);
        }
        let source = who(&packet.source);
        if source == Who::B {
            return Err(DropReason::SpoofedLocal);
        }
        if source != Who::Other {
            self.policy(packet, [source, Who::Other])?;
            if !packet.multicast() {
                self.enter(packet, [source, Who::Other], false, true, false);
            }
            self.first_fragment(On::Uplink, packet);
        }
        Ok(Way::Stack)
    }

    /// Who sends the packet by the connection that is known, if that is to whom it fits.
    fn source_of_known(&self, packet: &Packet, fits: impl Fn(Who) -> bool) -> Option<Who> {
        let conn = (packet.kind == Kind::Flow).then(|| self.conns.get(&packet.key())).flatten()?;
        let from_opener = conn.opener == (packet.source, packet.ports[0]);
        let [source, destination] = if from_opener { conn.ends } else { [conn.ends[1], conn.ends[0]] };
        fits(destination).then_some(source)
    }

    /// Whether the packet passes by a connection that is known, and whether it comes from who opened it. `fits` says of the
    /// source and the destination whether they are where the packet is.
    fn known(&mut self, packet: &Packet, fits: impl Fn(Who, Who) -> bool) -> Result<Option<bool>, DropReason> {
        if packet.kind != Kind::Flow {
            return Ok(None);
        }
        let key = packet.key();
        let Some(conn) = self.conns.get(&key) else { return Ok(None) };
        let from_opener = conn.opener == (packet.source, packet.ports[0]);
        let [opener, responder] = conn.ends;
        let (source, destination) = if from_opener { (opener, responder) } else { (responder, opener) };
        if !fits(source, destination) {
            return Ok(None);
        }
        let over = conn.tcp.reset || conn.tcp.fins == [true; 2];
        let reopened = packet.protocol == 6 && packet.opens() && over;
        if reopened || !self.is_current(conn) {
            let addresses =
                if from_opener { [packet.source, packet.destination] } else { [packet.destination, packet.source] };
            let moved =
                who(&addresses[0]) != opener || who(&addresses[1]) != responder && who(&addresses[1]) != Who::Other;
            if reopened || moved {
                self.conns.remove(&key);
                return Ok(None);
            }
            self.ends_allow([opener, responder])?;
            let epochs = [self.epoch(opener), self.epoch(responder)];
            self.conns.get_mut(&key).expect("is there").epochs = epochs;
        }
        self.conns.get_mut(&key).expect("is there").see(packet, from_opener);
        Ok(Some(from_opener))
    }

    fn is_current(&self, conn: &Conn) -> bool {
        conn.by_host || conn.epochs == [self.epoch(conn.ends[0]), self.epoch(conn.ends[1])]
    }

    fn epoch(&self, who: Who) -> u32 {
        match who {
            Who::A => self.policies[0].epoch,
            Who::B => self.policies[1].epoch,
            Who::Other => 0,
        }
    }

    /// A connection that is another's by now is forgotten.
    fn forget_foreign(&mut self, packet: &Packet, fits: impl Fn(Who, Who) -> bool) {
        if packet.kind != Kind::Flow {
            return;
        }
        let Some(conn) = self.conns.get(&packet.key()) else { return };
        let from_opener = conn.opener == (packet.source, packet.ports[0]);
        let [opener, responder] = conn.ends;
        let (source, destination) = if from_opener { (opener, responder) } else { (responder, opener) };
        if !fits(source, destination) {
            self.conns.remove(&packet.key());
        }
    }

    /// The first packet of a connection.
    fn policy(&mut self, packet: &Packet, ends: [Who; 2]) -> Result<(), DropReason> {
        if packet.protocol == 6 {
            let [syn, ack, rst, fin] = packet.flags();
            if rst || fin || syn == ack {
                return Err(DropReason::TcpInvalid);
            }
        }
        if packet.kind == Kind::Error {
            return Err(DropReason::IcmpUnrelated);
        }
        if packet.protocol == 6 && !packet.opens() {
            self.midstream += 1;
        }
        self.ends_allow(ends)
    }

    fn ends_allow(&self, [opener, responder]: [Who; 2]) -> Result<(), DropReason> {
        let of = |who| match who {
            Who::A => Some(&self.policies[0]),
            Who::B => Some(&self.policies[1]),
            Who::Other => None,
        };
        if of(opener).is_some_and(|policy| !policy.egress) {
            return Err(DropReason::PolicyEgress);
        }
        if of(responder).is_some_and(|policy| !policy.ingress) {
            return Err(DropReason::PolicyIngress);
        }
        Ok(())
    }

    fn host_welcomes(&self, packet: &Packet) -> Result<bool, DropReason> {
        let to_host = packet.multicast() || packet.host_scope() || packet.destination == wide4(HOST4);
        if to_host && !self.host_accepts { Err(DropReason::EndpointToHost) } else { Ok(to_host) }
    }

    fn enter(&mut self, packet: &Packet, ends: [Who; 2], by_host: bool, via_stack: bool, probing: bool) {
        let mut tcp = Tcp::default();
        if packet.protocol == 6 {
            (tcp.syn, tcp.midstream) = (packet.opens(), !packet.opens());
        }
        let epochs = [self.epoch(ends[0]), self.epoch(ends[1])];
        let opener = (packet.source, packet.ports[0]);
        self.conns.insert(
            packet.key(),
            Conn {
                opener,
                ends,
                epochs,
                by_host: by_host && ends[0] == Who::Other,
                via_stack,
                probing,
                answered: false,
                assured: false,
                tcp,
            },
        );
    }

    /// The connection of what an ICMP error quotes: its key, who is to get the error, who sends it, whether it takes the stack.
    fn related(&self, packet: &Packet) -> Option<(Key, Who, Who, bool)> {
        let quoted = packet.quoted.as_ref()?;
        if packet.kind != Kind::Error || quoted.source != packet.destination {
            return None;
        }
        let key = quoted.key();
        let conn = self.conns.get(&key)?;
        if !self.is_current(conn) {
            return None;
        }
        let from_opener = conn.opener == (quoted.source, quoted.ports[0]);
        let [opener, responder] = conn.ends;
        let (to, from) = if from_opener { (opener, responder) } else { (responder, opener) };
        Some((key, to, from, conn.via_stack))
    }

    fn first_fragment(&mut self, on: On, packet: &Packet) {
        if packet.fragment {
            self.fragments.insert((on, packet.source, packet.destination, packet.id));
        }
    }

    fn later_fragment(&self, on: On, packet: &Packet) -> Verdict {
        let known = self.fragments.contains(&(on, packet.source, packet.destination, packet.id));
        if known { Ok(Way::Stack) } else { Err(DropReason::Fragment) }
    }
}

impl Conn {
    fn see(&mut self, packet: &Packet, from_opener: bool) {
        if packet.protocol == 6 {
            let [syn, ack, rst, fin] = packet.flags();
            self.tcp.reset |= rst;
            self.tcp.fins[usize::from(!from_opener)] |= fin;
            if syn && ack && !from_opener {
                self.tcp.syn_ack = Some(packet.sequence.wrapping_add(1));
            }
        }
        if self.assured {
            return;
        }
        if !from_opener {
            self.answered = true;
            // A workload's address is its own.
            self.assured = packet.protocol != 6 && self.ends[0] != Who::Other;
        } else if self.answered {
            let [_, ack, ..] = packet.flags();
            let got = |syn_ack: u32| ack && packet.acknowledgement.wrapping_sub(syn_ack) < 1 << 20;
            self.assured = packet.protocol != 6
                || self.tcp.midstream && !self.tcp.reset
                || !self.tcp.midstream && self.tcp.syn_ack.is_some_and(got);
        }
    }
}

/// Whether nobody can have this address.
fn is_nobodys(address: &[u8; 16]) -> bool {
    let v4 = address[..12] == wide4([0; 4])[..12];
    let words = &address[12..];
    *address == [0; 16] || address[0] == 0xff || v4 && (words[0] >> 4 == 0xe || words == [255; 4] || words == [0; 4])
}

/// The workload that has an address.
pub(crate) fn who(address: &[u8; 16]) -> Who {
    if *address == wide4(A.v4) || *address == A.v6 {
        Who::A
    } else if *address == wide4(B.v4) || *address == B.v6 {
        Who::B
    } else {
        Who::Other
    }
}

pub(crate) fn wide4(address: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets()
}

/// The TTL one less, the checksum by the book.
fn one_router_further(frame: &mut [u8]) {
    if frame[12..14] == [0x86, 0xdd] {
        frame[21] -= 1;
        return;
    }
    let old = u16::from_be_bytes([frame[22], frame[23]]);
    frame[22] -= 1;
    let new = u16::from_be_bytes([frame[22], frame[23]]);
    // RFC 1624, equation 3; where the checksum was wrong it stays wrong in the same way.
    let sum = u32::from(!u16::from_be_bytes([frame[24], frame[25]])) + u32::from(!old) + u32::from(new);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}
