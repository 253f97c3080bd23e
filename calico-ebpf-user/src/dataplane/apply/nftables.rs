//! The nftables tables that are ours.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use ipnet::IpNet;

use super::Dataplane;
use crate::dataplane::{
    desired::{Applied, Desired, NatTable},
    error::Result,
    guard,
    host_endpoints::Resolved,
    links::Found,
    nat_outgoing,
    netlink::Link,
    nft, reassembly, translated,
    translation::{Interfaces, Translated},
};

/// How long connections are believed to be translated still without looking, where nobody is to be any more.
const TRANSLATED_CHECK: Duration = Duration::from_secs(60);

impl Dataplane {
    /// Whether our nftables tables are as they should be. Cheap, as long as nobody changes any table.
    #[must_use]
    pub fn tables_intact(&mut self) -> bool {
        self.guard.is_intact() && self.nat.is_intact() && self.translation.is_intact() && self.reassembly.is_intact()
    }

    /// Whether somebody on this host has begun to translate the destinations of what comes in, or has ended it, where that
    /// matters to any interface. As cheap.
    #[must_use]
    pub fn translation_changed(&mut self) -> bool {
        self.translation.is_news()
    }

    /// Has the kernel put fragments together. Where it cannot, later ones pass only behind the first.
    pub(super) fn reassemble(&mut self, applied: &mut Applied) -> Result<()> {
        let kept = self.reassembly.keep(&reassembly::ruleset(self.reassembly.name()));
        match &kept {
            Ok(changed) => applied.changes += usize::from(*changed),
            Err(error) if !self.reassembly_missed => {
                tracing::warn!("fragments pass only in order, since the kernel does not put them together: {error}");
                self.reassembly_missed = true;
            }
            Err(_) => {}
        }
        self.tables.set_reassembles(kept.is_ok())
    }

    pub(super) fn guard(&mut self, desired: &Desired, found: &Found, applied: &mut Applied) {
        let result = match &desired.interface_prefixes {
            None if self.info.nft_table.is_none() => return,
            None => self.remove_guard(),
            Some(prefixes) => {
                // Also those that drop: the guard is for interfaces that nothing hangs on.
                let attached = self.attached(found);
                self.guard.keep(&guard::ruleset(self.guard.name(), prefixes, &attached))
            }
        };
        match result {
            Ok(changed) => applied.changes += usize::from(changed),
            Err(error) => applied.faults.push(error.to_string()),
        }
    }

    fn remove_guard(&mut self) -> Result<bool> {
        let removed = self.guard.remove()?;
        // Not before: what is not noted nobody removes.
        self.info.nft_table = None;
        self.info.write(&self.hooks.directory)?;
        Ok(removed)
    }

    /// Sees to what policy denies where the host may translate its destination. Where that is not seen to, it is dropped as it comes
    /// in. `bare`: the interfaces where programs should hang and do not.
    pub(super) fn behind_translation(
        &mut self,
        desired: &Desired,
        (uplinks, hosts, local): (&[u32], &Resolved, &[IpNet]),
        found: &Found,
        bare: &BTreeSet<u32>,
        applied: &mut Applied,
    ) -> Translated {
        // What is in another interface goes ways where the priority may not last.
        let links = hosts.seats.keys().filter_map(|index| found.links.by_index(*index));
        let of_workloads: Vec<&Link> =
            desired.workloads.iter().filter_map(|workload| found.links.by_name(&workload.interface)).collect();
        let arrivals = links.chain(of_workloads.iter().copied());
        let arrivals = arrivals.filter(|link| !link.has_master && !link.in_vrf && nft::is_plain(&link.name));
        let judging = hosts.seats.iter().filter(|(_, seats)| seats.forward.is_some());
        let workloads: BTreeSet<u32> = of_workloads.iter().map(|link| link.index).collect();
        let mut interfaces = Interfaces {
            arrivals: arrivals.map(|link| (link.index, link.name.as_str())).collect(),
            host_welcomes: desired.host_welcomes,
            // Whoever may reach the host may reach these.
            host_networks: if desired.host_welcomes { Vec::new() } else { local.to_vec() },
            judging: judging.map(|(index, _)| *index).collect(),
            addresses: desired.workloads.iter().flat_map(|workload| &workload.addresses).copied().collect(),
            programmed: workloads.iter().chain(uplinks).copied().collect(),
            workloads,
        };
        interfaces.programmed.extend(hosts.seats.keys());
        let mut ways_out = BTreeSet::new();
        if !interfaces.judging.is_empty() || !interfaces.workloads.is_empty() {
            ways_out.extend(hosts.others.difference(&interfaces.programmed));
            interfaces.programmed.extend(&ways_out);
        }
        interfaces.programmed.retain(|index| !bare.contains(index));
        let mut tried = self.try_behind_translation(&interfaces);
        let all = interfaces.arrivals.len();
        if tried.is_err() {
            interfaces.arrivals.retain(|index, _| self.netlink.exists(*index));
        }
        if interfaces.arrivals.len() < all {
            tried = self.try_behind_translation(&interfaces);
        }
        match tried {
            Ok((in_place, changed)) => {
                applied.changes += usize::from(changed);
                let arrivals = interfaces.arrivals.into_keys().collect();
                let seen_to = if in_place { Translated { arrivals, ways_out } } else { Translated::default() };
                self.translation.seen_to = seen_to.clone();
                seen_to
            }
            // It is not known whether anybody translates at all: that is no fault.
            Err(error) if hosts.seats.is_empty() && self.info.host_table.is_none() => {
                if !self.translation_missed {
                    tracing::warn!(
                        "{error}: should this host translate destinations, what policy denies by the address it was sent to is \
                         dropped nevertheless, and what workloads send to the host by way of that is not"
                    );
                    self.translation_missed = true;
                }
                self.translation.seen_to.clone()
            }
            Err(error) => {
                applied.faults.push(format!(
                    "{error}: where that was not so before, what policy denies by the address it was sent to is dropped, even \
                     if the host would translate that"
                ));
                // What was in place is so still: one interface that has vanished meanwhile does not change that.
                self.translation.seen_to.clone()
            }
        }
    }

    /// Networks that are this host's as a whole. Where they cannot be listed, those of the last look.
    pub(super) fn host_networks(&mut self, applied: &mut Applied) -> Vec<IpNet> {
        let is_wanted = |route: &IpNet| route.prefix_len() < route.max_prefix_len() && !route.addr().is_loopback();
        match self.netlink.local_routes() {
            Ok(routes) => self.host_networks = routes.into_iter().filter(is_wanted).collect(),
            Err(error) => applied.faults.push(format!(
                "list what is this host's by table local: {error}: what has come there since the last look may be reached, \
                 whatever policy about the host says"
            )),
        }
        self.host_networks.clone()
    }

    /// Whether the tables are in place, and whether that is new.
    pub(super) fn try_behind_translation(&mut self, interfaces: &Interfaces<'_>) -> Result<(bool, bool)> {
        let wanted = self.translation.is_wanted(interfaces)?;
        if !wanted && self.info.host_table.is_none() {
            return Ok((false, false));
        }
        if !wanted {
            self.translation.remove()?;
            self.info.host_table = None;
            self.info.write(&self.hooks.directory)?;
            return Ok((false, true));
        }
        if self.info.host_table.is_none() {
            self.info.host_table = Some(self.translation.table().to_owned());
            self.info.write(&self.hooks.directory)?;
        }
        Ok((true, self.translation.keep(interfaces)?))
    }

    /// Sees to the translation that `natOutgoing` asks for, before anything is let out that needs it.
    pub(super) fn translate(&mut self, desired: &Desired, applied: &mut Applied) -> Result<()> {
        let Some(wanted) = &desired.nat_outgoing else { return Ok(()) };
        let is_new = self.info.nat_table.is_none();
        if is_new {
            self.info.nat_table = Some(self.nat.name().to_owned());
            self.info.write(&self.hooks.directory)?;
        }
        let mut status =
            NatTable { table: self.nat.name().to_owned(), sources: wanted.sources.clone(), in_place: false };
        let kept = self.nat.keep(&nat_outgoing::ruleset(self.nat.name(), wanted));
        if is_new && kept.is_err() && !nft::exists("inet", self.nat.name()).unwrap_or(false) {
            self.info.nat_table = None;
            self.info.write(&self.hooks.directory)?;
        }
        status.in_place = kept.is_ok();
        applied.nat_table = Some(status);
        self.translated = Some(Instant::now());
        applied.changes += usize::from(kept?);
        Ok(())
    }

    /// Ends the translation where none is asked for any more, once no connection needs it. Behind the policy that was in
    /// force with it.
    pub(super) fn translate_no_more(&mut self, desired: &Desired, applied: &mut Applied) {
        if desired.nat_outgoing.is_some() || self.info.nat_table.is_none() {
            return;
        }
        let done = self.try_translate_no_more();
        let in_place = done.is_ok();
        applied.nat_table = self.info.nat_table.clone().map(|table| NatTable { table, sources: Vec::new(), in_place });
        match done {
            Ok(changed) => applied.changes += usize::from(changed),
            Err(error) => applied.faults.push(error.to_string()),
        }
    }

    pub(super) fn try_translate_no_more(&mut self) -> Result<bool> {
        let changed = self.nat.keep(&nat_outgoing::only_running_connections(self.nat.name()))?;
        if !changed && self.translated.is_some_and(|at| at.elapsed() < TRANSLATED_CHECK) {
            return Ok(false);
        }
        if translated::any(&self.view()?, &self.observe()?.host_addresses)? {
            self.translated = Some(Instant::now());
            return Ok(changed);
        }
        self.nat.remove()?;
        self.info.nat_table = None;
        self.info.write(&self.hooks.directory)?;
        Ok(true)
    }
}
