//! The maps as plain data: what writes make of them, and what the kernel programs would read there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    slice,
};

use calico_ebpf_common::{
    abi::{AddressEntry, Block, NO_SLOT, Root, Workload},
    judge::{self, Subject},
    nets::class_of,
};
use ipnet::IpNet;

use super::{
    compiled::{Compiled, Direction, RuleName, host_endpoint_of_seat},
    flow::{EndVerdict, Flow, Verdict},
    prefixes::Prefixes,
    store::{Store, interface_name},
    write::{KernelState, LimitError, Limits, Plan, Write},
};

/// Contents of the maps that a [`Plan`] writes.
#[derive(Clone, Debug, Default)]
pub struct Maps {
    root: Root,
    blocks: Vec<Block>,
    workloads: Vec<Workload>,
    workload_names: BTreeMap<u32, String>,
    rule_names: BTreeMap<u32, RuleName>,
    addresses: BTreeMap<IpNet, AddressEntry>,
    spoof: BTreeSet<(u32, IpNet)>,
}

/// Room in maps that do not exist: what the object says.
pub const ROOM: Limits = Limits {
    blocks: 1 << 19,
    slots: 4096,
    counters: 65_536,
    addresses4: 1 << 15,
    addresses6: 1 << 19,
    nets: 1 << 20,
    spoof: 65_536,
    classes: 1 << 24,
};

impl Maps {
    /// What a first start would make of a policy.
    ///
    /// # Errors
    /// If there is no room for it.
    pub fn of(compiled: &Compiled, host_addresses: &BTreeSet<IpAddr>) -> Result<Self, LimitError> {
        let mut maps = Self::default();
        maps.execute(&Store::empty(ROOM).plan(compiled, host_addresses)?);
        Ok(maps)
    }

    /// Executes a plan.
    pub fn execute(&mut self, plan: &Plan) {
        plan.prepare.iter().for_each(|write| self.apply(write));
        self.commit(plan.generation);
        plan.retire.iter().for_each(|write| self.apply(write));
    }

    /// Executes one write.
    pub fn apply(&mut self, write: &Write) {
        match write {
            Write::Blocks { first, blocks } => {
                let (first, end) = (*first as usize, *first as usize + blocks.len());
                if self.blocks.len() < end {
                    self.blocks.resize(end, Block::default());
                }
                self.blocks[first..end].copy_from_slice(blocks);
            }
            Write::Address { prefix, entry } => {
                self.addresses.insert(*prefix, *entry);
            }
            Write::RemoveAddress { prefix } => {
                self.addresses.remove(prefix);
            }
            Write::WorkloadPolicy { slot, side, policy, incarnation } => {
                let workload = self.workload(*slot);
                workload.policy[side & 1] = *policy;
                workload.incarnation = *incarnation;
            }
            Write::WorkloadName { slot, name } => {
                self.workload_names.insert(*slot, name.clone());
            }
            Write::RemoveWorkload { slot } => {
                self.workload_names.remove(slot);
                let workload = self.workload(*slot);
                *workload = Workload { incarnation: workload.incarnation, ..Workload::default() };
            }
            Write::RuleName { counter, name } => {
                self.rule_names.insert(*counter, name.clone());
            }
            Write::RemoveRuleName { counter } => {
                self.rule_names.remove(counter);
            }
            Write::Settings { side, settings } => self.root.settings[side & 1] = *settings,
            Write::Spoof { slot, prefix } => {
                self.spoof.insert((*slot, *prefix));
            }
            Write::RemoveSpoof { slot, prefix } => {
                self.spoof.remove(&(*slot, *prefix));
            }
        }
    }

    /// Puts a generation in force.
    pub fn commit(&mut self, generation: u32) {
        self.root.generation = generation;
    }

    fn workload(&mut self, slot: u32) -> &mut Workload {
        let slot = slot as usize;
        if self.workloads.len() <= slot {
            self.workloads.resize(slot + 1, Workload::default());
        }
        &mut self.workloads[slot]
    }

    /// All of it, as a new process finds it.
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

    /// Judges the flow at both ends, as far as they are local workloads, by the generation in force: with the very
    /// function that the kernel programs use. The other checks of the data path (spoofing, the host's own traffic) are not
    /// policy and not here. An end that finds no table has no verdict.
    #[must_use]
    pub fn judge(&self, flow: &Flow) -> Verdict {
        self.judge_all(slice::from_ref(flow)).remove(0)
    }

    /// The same of many flows, in their order.
    #[must_use]
    pub fn judge_all(&self, flows: &[Flow]) -> Vec<Verdict> {
        let nets = Prefixes::new(self.addresses.keys());
        let judge = |flow: &Flow| {
            let (source, destination) = (self.lookup(&nets, flow.source), self.lookup(&nets, flow.destination));
            Verdict {
                source: self.judge_end(flow, Direction::Egress, source, destination),
                destination: self.judge_end(flow, Direction::Ingress, destination, source),
            }
        };
        flows.iter().map(judge).collect()
    }

    /// What a seat says of a flow, as if its sender (`Egress`) or its receiver were there, whoever has the address. `None`
    /// where there is no such seat, or no table.
    #[must_use]
    pub fn judge_seat(&self, seat: &str, side: Direction, flow: &Flow) -> Option<EndVerdict> {
        let nets = Prefixes::new(self.addresses.keys());
        let slot = self.workload_names.iter().find(|(_, name)| *name == seat).map(|(slot, _)| *slot)?;
        let classes = [flow.source, flow.destination].map(|address| self.lookup(&nets, address).0);
        let [own, peer] = match side {
            Direction::Egress => classes,
            Direction::Ingress => [classes[1], classes[0]],
        };
        let verdict = self.judge_end(flow, side, (own, slot), (peer, NO_SLOT))?;
        let endpoint = host_endpoint_of_seat(&verdict.endpoint).map(str::to_owned);
        Some(EndVerdict { endpoint: endpoint.unwrap_or(verdict.endpoint), ..verdict })
    }

    /// Whether any interface has untracked policy.
    #[must_use]
    pub fn has_untracked(&self) -> bool {
        self.root.settings(self.root.generation).untracked[0].interface[0] != 0
    }

    /// What untracked policy of an interface says of a packet that comes in by it (`Ingress`), or that the host itself sends
    /// by it. `None` where it has none about that.
    #[must_use]
    pub fn judge_untracked(
        &self,
        interface: &str,
        direction: Direction,
        packet: &Flow,
    ) -> Option<(judge::Verdict, RuleName)> {
        let (interface, settings) = (interface_name(interface), self.root.settings(self.root.generation));
        let of = settings.untracked.iter().find(|of| of.interface == interface)?;
        let nets = Prefixes::new(self.addresses.keys());
        let [source, destination] = [packet.source, packet.destination].map(|address| self.lookup(&nets, address).0);
        let decision = match direction {
            Direction::Ingress => self.decide(of.ingress_table, packet, destination, source),
            Direction::Egress => self.decide(of.egress_table, packet, source, destination),
        }?;
        Some((decision.verdict, self.rule_names.get(&decision.counter)?.clone()))
    }

    fn decide(&self, table: u32, flow: &Flow, own_class: u32, peer_class: u32) -> Option<judge::Decision> {
        let subject = Subject {
            own_class,
            peer_class,
            protocol: flow.protocol,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
            behind_dnat: false,
        };
        judge::judge(&self.blocks[..], table, &subject)
    }

    fn judge_end(
        &self,
        flow: &Flow,
        direction: Direction,
        (own_class, slot): (u32, u32),
        (peer_class, _): (u32, u32),
    ) -> Option<EndVerdict> {
        if slot == NO_SLOT {
            return None;
        }
        let policy = self.workloads.get(slot as usize)?.policy(self.root.generation);
        let table = match direction {
            Direction::Egress => policy.egress_table,
            Direction::Ingress => policy.ingress_table,
        };
        let decision = self.decide(table, flow, own_class, peer_class)?;
        let endpoint = self.workload_names.get(&slot)?.clone();
        let rule = self.rule_names.get(&decision.counter)?.clone();
        let (allow, reject) = (decision.verdict == judge::Verdict::Allow, decision.verdict == judge::Verdict::Reject);
        Some(EndVerdict { endpoint, allow, reject, rule })
    }

    /// Class and owner's slot of an address.
    fn lookup(&self, nets: &Prefixes, address: IpAddr) -> (u32, u32) {
        let prefix = IpNet::from(address);
        let generation = self.root.generation;
        match (self.addresses.get(&prefix), address) {
            (Some(entry), _) => (entry.class(generation), entry.slot(generation)),
            (None, IpAddr::V4(address)) => {
                let root = self.root.settings(generation).nets4;
                (class_of(&self.blocks[..], root, address.into()).unwrap_or(0), NO_SLOT)
            }
            (None, IpAddr::V6(_)) => {
                let plain = u32::from(address.is_ipv6());
                (nets.wider(&self.addresses, &prefix).map_or(plain, |entry| entry.class(generation)), NO_SLOT)
            }
        }
    }
}
