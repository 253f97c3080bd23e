//! What the maps are to be changed by: pure data, executed by the data plane, printed by `--dry-run`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use calico_ebpf_common::abi::{AddressEntry, Block, HOST, NO_SLOT, PolicyRef, Root, Settings, Workload};
use ipnet::IpNet;

use super::{compiled::RuleName, store::Store};

/// Room in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Blocks in the arena of rule tables.
    pub blocks: u32,
    /// Workload slots.
    pub slots: u32,
    /// Hit counters.
    pub counters: u32,
    /// IPv4 addresses of local workloads and of the host.
    pub addresses4: u32,
    /// Single IPv6 addresses.
    pub addresses6: u32,
    /// IPv6 prefixes that are no single addresses.
    pub nets: u32,
    /// Prefixes that workloads may spoof, each family.
    pub spoof: u32,
    /// Classes of addresses; at most 2^24.
    pub classes: u32,
}

/// What does not fit. Nothing is ever cut to fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The arena is too small (or too fragmented) for the old and the new tables together.
    #[error(
        "the rule tables need {needed} more blocks of 64 bytes in one piece; {free} of {limit} are free, the longest piece is {longest}"
    )]
    Blocks {
        /// Blocks of the piece that found no room.
        needed: u32,
        /// Blocks that are free in all.
        free: u32,
        /// Longest free piece.
        longest: u32,
        /// Blocks there are.
        limit: u32,
    },
    /// Too many of something that has a map or a number of its own.
    #[error("{needed} {what}, but there is room for {limit}")]
    Count {
        /// What there is too much of.
        what: &'static str,
        /// How many there would have to be.
        needed: usize,
        /// How many there can be.
        limit: usize,
    },
    /// A rule table that is too long.
    #[error("the {direction} rules of {workload}: {needed} after expansion, but a table holds {limit}")]
    Rules {
        /// A workload that has the table.
        workload: String,
        /// `ingress` or `egress`.
        direction: &'static str,
        /// Rules in it.
        needed: usize,
        /// Rules there can be.
        limit: usize,
    },
    /// More `Pass` and `Log` rules on the way of a packet than the judge follows.
    #[error(
        "the {direction} rules of {workload}: a packet could meet {needed} Log rules and tiers that are passed, but {limit} are possible"
    )]
    Detours {
        /// A workload that has the table.
        workload: String,
        /// `ingress` or `egress`.
        direction: &'static str,
        /// How many there are.
        needed: usize,
        /// How many there can be.
        limit: usize,
    },
}

/// One change of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Store blocks in the arena, from block `first` on. Nobody reads them before a later write leads there: the
    /// executor keeps the order of writes (release ordering on the memory map).
    Blocks {
        /// The first block.
        first: u32,
        /// Their contents.
        blocks: Arc<[Block]>,
    },
    /// Set what is known of an address (prefix of full length) or of a network.
    Address {
        /// The prefix, its host bits zero.
        prefix: IpNet,
        /// The whole value.
        entry: AddressEntry,
    },
    /// Delete that.
    RemoveAddress {
        /// The prefix.
        prefix: IpNet,
    },
    /// Set one side of a workload's tables, and its incarnation. The other fields of the slot are the executor's.
    WorkloadPolicy {
        /// Slot.
        slot: u32,
        /// Index into `Workload::policy`.
        side: usize,
        /// Tables and epochs.
        policy: PolicyRef,
        /// `Workload::incarnation`.
        incarnation: u32,
    },
    /// Say who owns a slot. Written before anything else about the slot.
    WorkloadName {
        /// Slot.
        slot: u32,
        /// `namespace/name`.
        name: String,
    },
    /// The slot is free: forget its name, zero all of the slot but `incarnation`.
    RemoveWorkload {
        /// Slot.
        slot: u32,
    },
    /// Say which rule a counter counts; it starts at zero.
    RuleName {
        /// Index of the counter.
        counter: u32,
        /// The rule.
        name: RuleName,
    },
    /// The counter is free.
    RemoveRuleName {
        /// Index of the counter.
        counter: u32,
    },
    /// Set one side of the settings.
    Settings {
        /// Index into `Root::settings`.
        side: usize,
        /// Their value.
        settings: Settings,
    },
    /// Let a workload send from a prefix that is not its own.
    Spoof {
        /// Slot of the workload.
        slot: u32,
        /// The prefix.
        prefix: IpNet,
    },
    /// Forbid it again.
    RemoveSpoof {
        /// Slot of the workload.
        slot: u32,
        /// The prefix.
        prefix: IpNet,
    },
}

/// How the maps get from one generation to the next: execute `prepare` in order, store `generation` in
/// `Root.generation`, wait for a grace period, execute `retire`, go on with `next`.
///
/// When anything of that fails, the store before the plan no longer tells what the maps hold: [`Store::adopt`] does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What readers of the generation in force do not notice.
    pub prepare: Vec<Write>,
    /// The new generation; the one in force if the plan is empty.
    pub generation: u32,
    /// What only readers of the former generation could meet, and what must not come before the commit.
    pub retire: Vec<Write>,
    /// The store once all is done.
    pub next: Store,
    /// For people.
    pub changes: Changes,
}

impl Plan {
    /// Whether there is nothing to do, no commit either.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.prepare.is_empty() && self.retire.is_empty()
    }
}

/// What a plan changes, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Workloads that come, by `namespace/name`.
    pub added: Vec<String>,
    /// Workloads that go.
    pub removed: Vec<String>,
    /// Workloads that stay and whose connections are judged again for what they send, because verdicts may differ.
    pub egress: Vec<String>,
    /// Likewise for what they receive.
    pub ingress: Vec<String>,
    /// Addresses and networks whose class, owner or kind changes.
    pub addresses: usize,
    /// Tables that are written.
    pub tables: usize,
    /// Blocks that are written.
    pub blocks: usize,
}

/// What the maps of an earlier process hold, for [`Store::adopt`].
#[derive(Clone, Copy, Debug)]
pub struct KernelState<'a> {
    /// The root map's entry.
    pub root: &'a Root,
    /// The arena.
    pub blocks: &'a [Block],
    /// All slots.
    pub workloads: &'a [Workload],
    /// `namespace/name` by slot.
    pub workload_names: &'a BTreeMap<u32, String>,
    /// Rules by counter.
    pub rule_names: &'a BTreeMap<u32, RuleName>,
    /// All of the four address maps.
    pub addresses: &'a BTreeMap<IpNet, AddressEntry>,
    /// Slots and prefixes in the two maps of allowed spoofed sources.
    pub spoof: &'a BTreeSet<(u32, IpNet)>,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks { first, blocks } => write!(f, "rules: blocks {first}+{}", blocks.len()),
            Self::Address { prefix, entry } => {
                write!(f, "address {prefix}: ")?;
                change(f, "class", entry.class.value, |f, class| write!(f, "{class}"))?;
                f.write_str(", ")?;
                change(f, "slot", entry.slot.value, |f, slot| match slot {
                    NO_SLOT => f.write_str("none"),
                    slot => write!(f, "{slot}"),
                })?;
                write!(f, " from generation {}", entry.since)?;
                if entry.flags & HOST != 0 { f.write_str(", host") } else { Ok(()) }
            }
            Self::RemoveAddress { prefix } => write!(f, "address {prefix}: remove"),
            Self::WorkloadPolicy { slot, side, policy, incarnation } => write!(
                f,
                "slot {slot} side {side}: egress table {} epoch {}, ingress table {} epoch {}, incarnation {incarnation}",
                policy.egress_table, policy.egress_epoch, policy.ingress_table, policy.ingress_epoch
            ),
            Self::WorkloadName { slot, name } => write!(f, "slot {slot}: {name}"),
            Self::RemoveWorkload { slot } => write!(f, "slot {slot}: free"),
            Self::RuleName { counter, name } => write!(f, "counter {counter}: {name}"),
            Self::RemoveRuleName { counter } => write!(f, "counter {counter}: free"),
            Self::Settings { side, settings } => {
                write!(f, "settings side {side}: host action {}, flags {}", settings.host_action, settings.flags)?;
                for of in settings.untracked.iter().take_while(|of| of.interface[0] != 0) {
                    let name = String::from_utf8_lossy(&of.interface);
                    let (name, ingress, egress) = (name.trim_end_matches('\0'), of.ingress_table, of.egress_table);
                    write!(f, ", {name} untracked: ingress table {ingress}, egress table {egress}")?;
                }
                Ok(())
            }
            Self::Spoof { slot, prefix } => write!(f, "slot {slot}: may send from {prefix}"),
            Self::RemoveSpoof { slot, prefix } => {
                write!(f, "slot {slot}: may no longer send from {prefix}")
            }
        }
    }
}

/// Writes `what old -> new`, or `what value` where both are equal.
fn change(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    [old, new]: [u32; 2],
    show: impl Fn(&mut fmt::Formatter<'_>, u32) -> fmt::Result,
) -> fmt::Result {
    write!(f, "{what} ")?;
    if old != new {
        show(f, old)?;
        f.write_str(" -> ")?;
    }
    show(f, new)
}
