//! Which tables there are: of whom, made of what.

use std::{collections::HashMap, sync::Arc};

use super::{
    AllInterfaces, Compiler,
    expansions::{Expansion, OfPolicy, Side},
    layout::{index_of, lay_out, lay_out_through, lay_out_untracked},
};
use crate::{
    policy::compiled::{Direction, Table},
    resources::model::{DenyAction, FailsafePort, Policy, Profile, ResourceSet, TierAction},
};

/// What a table is made of.
pub(super) struct Outline<'a> {
    pub(super) side: Side,
    /// Whether the ports come first that host endpoints never shut.
    pub(super) failsafes: bool,
    /// Policies that come before all others, and at the end of whose tiers nothing happens.
    pub(super) before: &'a [usize],
    /// Policies in the order of evaluation.
    pub(super) policies: &'a [usize],
    /// Profiles behind them; without, what nobody decides passes.
    pub(super) profiles: Option<&'a [String]>,
    /// The host endpoint that it all passes first.
    pub(super) through: Option<&'a AllInterfaces>,
}

/// What a table is made of besides numbers of expansions.
const PROFILES: u32 = u32::MAX;
const TIER_END: u32 = 1 << 31;
const POLICIES: u32 = u32::MAX - 1;
const NO_PROFILES: u32 = u32::MAX - 2;
/// In place of what becomes of denied packets.
const UNTRACKED: u32 = u32::MAX - 3;
/// Behind it, what is of the host endpoint of all interfaces.
const THROUGH: u32 = u32::MAX - 4;

/// What a tier brings into a table.
pub(super) struct TierRules<'s> {
    pub(super) name: &'s str,
    /// Whether its end passes.
    pub(super) passes: bool,
    pub(super) policies: Vec<Arc<Expansion>>,
}

/// What the host endpoint of all interfaces brings into the table of a workload.
pub(super) struct Through<'s> {
    pub(super) direction: Direction,
    /// What is for the host itself, and so nothing that it forwards: of what the workload sends.
    pub(super) to_host: Option<Arc<Expansion>>,
    /// Policies before DNAT, at the end of whose tiers nothing happens.
    pub(super) before: Vec<TierRules<'s>>,
    pub(super) forward: Vec<TierRules<'s>>,
}

/// The tables of one compilation.
pub(super) struct Tables<'a> {
    pub(super) all: Vec<Arc<Table>>,
    pub(super) known: HashMap<Vec<u32>, usize>,
    pub(super) by_parts: HashMap<Vec<u32>, Arc<Table>>,
    /// Expansions of policies by index and direction.
    pub(super) of_policies: Vec<OfPolicy>,
    /// Those of profiles by name.
    pub(super) of_profiles: HashMap<&'a str, OfPolicy>,
    /// Those of the failsafe ports, by direction.
    pub(super) of_failsafes: [Option<[Arc<Expansion>; 2]>; 2],
    /// What is for the host itself.
    pub(super) to_host: Option<Arc<Expansion>>,
    /// What becomes of denied packets where no rule says anything.
    pub(super) deny_action: DenyAction,
}

impl Tables<'_> {
    /// Index of the table that is made of these parts: one of this compilation, one of the `last`, or a new one.
    pub(super) fn known_or(
        &mut self,
        parts: Vec<u32>,
        last: &mut HashMap<Vec<u32>, Arc<Table>>,
        lay_out: impl FnOnce() -> Table,
    ) -> usize {
        if let Some(&table) = self.known.get(&parts) {
            return table;
        }
        let table = last.remove(&parts).unwrap_or_else(|| Arc::new(lay_out()));
        self.all.push(Arc::clone(&table));
        self.by_parts.insert(parts.clone(), table);
        self.known.insert(parts, self.all.len() - 1);
        self.all.len() - 1
    }
}

impl Compiler {
    /// Index of a table.
    pub(super) fn table<'a>(
        &mut self,
        set: &ResourceSet,
        profiles: &HashMap<&'a str, &Profile>,
        outline: &Outline<'_>,
        tables: &mut Tables<'a>,
    ) -> usize {
        let Outline { side, failsafes, before, policies, profiles: of_profiles, through } = *outline;
        let direction = side.direction;
        let deny_action = tables.deny_action;
        let mut parts = vec![side.index() as u32, deny_action as u32];
        let of_failsafes = tables.of_failsafes[direction as usize].as_ref().filter(|_| failsafes);
        let first = of_failsafes.map(|lists| Arc::clone(&lists[direction as usize]));
        parts.extend(first.iter().map(|expansion| expansion.number));
        let before = self.tiers(set, before, side, &mut parts, tables);
        parts.push(POLICIES);
        let tiers = self.tiers(set, policies, side, &mut parts, tables);
        parts.push(if of_profiles.is_some() { PROFILES } else { NO_PROFILES });
        let of_profiles: Option<Vec<Arc<Expansion>>> = of_profiles.map(|names| {
            // One that does not exist denies, as Felix's stand-in for it (`DummyDropRules`) does.
            let known = names.iter().map_while(|name| profiles.get_key_value(name.as_str()));
            known
                .map(|(name, profile)| {
                    let of_profile = &mut tables.of_profiles.entry(name).or_default()[side.index()];
                    of_profile.get_or_insert_with(|| self.profile(profile, direction)).clone()
                })
                .collect()
        });
        parts.extend(of_profiles.iter().flatten().map(|expansion| expansion.number));
        let through = through.and_then(|all| self.through(set, all, side.seat, &mut parts, tables));
        tables.known_or(parts, &mut self.tables, || {
            #[cfg(test)]
            {
                self.work.tables += 1;
            }
            let (mut rules, through_before_dnat) =
                through.map(|through| lay_out_through(&through, deny_action)).unwrap_or_default();
            let of_host_endpoint = index_of(&rules);
            let own_before_dnat =
                lay_out(&mut rules, first.as_ref(), &before, &tiers, of_profiles.as_deref(), direction, deny_action);
            let before_dnat = if before.is_empty() { through_before_dnat } else { own_before_dnat };
            Table { rules, of_host_endpoint, before_dnat }
        })
    }

    /// Index of the table of untracked policies for one direction, if any of those that select the interface is about it.
    pub(super) fn untracked_table<'a>(
        &mut self,
        set: &ResourceSet,
        selecting: &[usize],
        failsafes: &[Vec<FailsafePort>; 2],
        direction: Direction,
        tables: &mut Tables<'a>,
    ) -> Option<usize> {
        let mut parts = vec![direction as u32, UNTRACKED];
        let tiers = self.tiers(set, selecting, Side::of(direction), &mut parts, tables);
        if tiers.is_empty() {
            return None;
        }
        let of_failsafes = self.failsafes(failsafes, direction, tables);
        parts.extend(of_failsafes.iter().map(|expansion| expansion.number));
        tables.known_or(parts, &mut self.tables, || lay_out_untracked(&of_failsafes, &tiers, direction)).into()
    }

    /// What the host endpoint of all interfaces has to say of what a workload sends (`Egress`) or receives.
    fn through<'s>(
        &mut self,
        set: &'s ResourceSet,
        all: &AllInterfaces,
        seat: Direction,
        parts: &mut Vec<u32>,
        tables: &mut Tables<'_>,
    ) -> Option<Through<'s>> {
        let side = match seat {
            Direction::Egress => Side::outside(Direction::Ingress),
            Direction::Ingress => Side::outside(Direction::Egress),
        };
        parts.push(THROUGH);
        // Policies before DNAT are about what comes in.
        let before = if side.direction == Direction::Ingress { &all.before[..] } else { &[] };
        let before = self.tiers(set, before, side, parts, tables);
        parts.push(POLICIES);
        let forward = self.tiers(set, &all.forward, side, parts, tables);
        if before.is_empty() && forward.is_empty() {
            return None;
        }
        let to_host = (seat == Direction::Egress).then(|| self.passing_to_host(tables));
        Some(Through { direction: side.direction, to_host, before, forward })
    }

    /// The tiers of policies that apply, and what of them tells one table from another.
    fn tiers<'s>(
        &mut self,
        set: &'s ResourceSet,
        policies: &[usize],
        side: Side,
        parts: &mut Vec<u32>,
        tables: &mut Tables<'_>,
    ) -> Vec<TierRules<'s>> {
        let mut tiers: Vec<TierRules<'s>> = Vec::new();
        for (index, policy) in policies.iter().map(|&index| (index, &set.policies[index])) {
            if !applies(policy, side.direction) {
                continue;
            }
            if tiers.last().is_none_or(|tier| tier.name != policy.tier) {
                let passes = set.tier(&policy.tier).is_some_and(|tier| tier.default_action == TierAction::Pass);
                parts.push(TIER_END | self.tier_end(&policy.tier, passes));
                tiers.push(TierRules { name: &policy.tier, passes, policies: Vec::new() });
            }
            let of_policy = &mut tables.of_policies[index][side.index()];
            let expansion = of_policy.get_or_insert_with(|| self.policy(index, policy, side)).clone();
            parts.push(expansion.number);
            if let Some(tier) = tiers.last_mut() {
                tier.policies.push(expansion);
            }
        }
        tiers
    }

    fn tier_end(&mut self, tier: &str, passes: bool) -> u32 {
        let next = self.tier_ends.len() as u32;
        *self.tier_ends.entry((tier.to_owned(), passes)).or_insert(next)
    }
}

fn applies(policy: &Policy, direction: Direction) -> bool {
    match direction {
        Direction::Ingress => policy.applies_ingress,
        Direction::Egress => policy.applies_egress,
    }
}
