//! The loaded data path, and the one call that brings it to what is desired.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use calico_ebpf_common::abi::{names, role, uplink_flags, workload_flags};

use super::{
    Options,
    alive::Awaited,
    attachments::Attachments,
    desired::{
        Applied, Attachment, Desired, DesiredWorkload, LinkState, NatTable, Observed, Uplink, Uplinks, WorkloadStatus,
    },
    error::{DataplaneError, Result},
    guard,
    host_endpoints::{self, Resolved},
    info::{self, Info, SavedSysctl},
    instance::{Instance, Lock},
    links::{Found, LinkAction, PeerMac, Runtime, Wanted, has_peer, reconcile},
    load::{self, Programs},
    nat_outgoing,
    neighbours::{self, Answerer},
    netlink::{Hook, HostRoute, Link, LinkTable, Netlink, Route},
    netns, nft, reassembly, sys, sysctl,
    tables::{ConnLimits, Owner, Snapshot, Tables, timeouts},
    tc::{Expected, Hooks},
    translated,
    translation::{self, Interfaces, Translated, Translation},
    view::View,
    xdp::{self, UplinkXdp, XdpLinks, XdpMode},
};
use crate::{
    policy::{store::Store, write::Plan},
    resources::model::HostInterface,
    routes::{
        RouteParameters, RouteStatus,
        claim::{Claim, TOLD_BY_DAEMONS},
        migration::{Migration, Migrations, Stage, priority},
        plan::{RouteAction, plan as plan_routes, route},
    },
};

/// How long connections are believed to be translated still without looking, where nobody is to be any more.
const TRANSLATED_CHECK: Duration = Duration::from_secs(60);
/// How long the sysctls of workloads' interfaces are believed to be right without looking: nothing tells of changes.
const SYSCTL_CHECK: Duration = Duration::from_secs(60);

/// The loaded data path. Dropping it leaves everything in place and working.
#[derive(Debug)]
pub struct Dataplane {
    instance: Instance,
    programs: Programs,
    tables: Tables,
    hooks: Hooks,
    xdp: XdpLinks,
    netlink: Netlink,
    info: Info,
    hz: u32,
    conn_limit: u32,
    takeover: bool,
    /// Interfaces and hooks with the program that should hang there.
    expected: Expected,
    /// Interfaces with the XDP program that should hang there.
    expected_xdp: BTreeMap<u32, u32>,
    /// Addresses of workloads with their interfaces, now and formerly: whose routes are ours.
    owned: BTreeSet<(IpAddr, u32)>,
    guard: nft::Table,
    nat: nft::Table,
    /// When connections were last seen that `nat` is still there for.
    translated: Option<Instant>,
    translation: Translation,
    reassembly: nft::Table,
    /// Somebody was told that there is none.
    reassembly_missed: bool,
    /// Interfaces and slots whose sysctls have been seen to since all were last looked at.
    settled: BTreeSet<(u32, u32)>,
    sysctls_checked: Option<Instant>,
    /// MAC addresses at the other ends of veths, by interface, when they were last looked at.
    peer_macs: BTreeMap<u32, [u8; 6]>,
    /// Dropped last: the instance is ours as long as anything of the above lives.
    _lock: Lock,
}

impl Dataplane {
    /// Takes the instance: sees to bpffs, locks it, creates or reuses the maps, loads the programs. Traffic is not touched:
    /// whatever is attached stays so until the first [`Dataplane::apply`].
    ///
    /// # Errors
    /// See [`DataplaneError`]. Nothing that works is harmed.
    pub fn open(options: &Options) -> Result<Self> {
        load::prerequisites(&options.instance)?;
        let lock = options.instance.lock()?;
        load::refuse_newer(&options.instance)?;
        load::refuse_elsewhere(&options.instance)?;
        let directory = options.instance.layout_dir();
        let programs = Programs::load(options)?;
        let tables = Tables::open(&directory)?;
        let takeover = tables.generation()? != 0;
        let before = Info::read(&directory).unwrap_or_else(|error| {
            tracing::warn!("{error}: what earlier runs changed on this host is not known any more");
            None
        });
        let mut info = before.unwrap_or_default();
        let hz = if info.hz == 0 { load::measure_hz(&directory)? } else { info.hz };
        info.hz = hz;
        info.version = env!("CARGO_PKG_VERSION").to_owned();
        info.pid = std::process::id();
        info.namespace = netns::own()?;
        let owned = tables.owned_addresses()?;
        let conn_limit = load::conn_limit(&directory)?;
        let ticks = if takeover { None } else { Some(load::clock(&directory)?) };
        tables.set_root(&ConnLimits::new(conn_limit, tables.owners().len()), &timeouts(hz), hz, ticks)?;
        let xdp = XdpLinks { directory: directory.clone() };
        let hooks = Hooks { directory, attachment: load::attachment(options.attach) };
        let netlink = Netlink::open().map_err(DataplaneError::io("open a netlink socket"))?;
        let table = |base, purpose| nft::Table::new(nft::INET, nft::table_name(base, &options.instance), purpose);
        Ok(Self {
            instance: options.instance.clone(),
            programs,
            tables,
            hooks,
            xdp,
            netlink,
            info,
            hz,
            conn_limit,
            takeover,
            expected: Expected::new(),
            expected_xdp: BTreeMap::new(),
            owned,
            guard: table(guard::TABLE, guard::PURPOSE),
            nat: table(nat_outgoing::TABLE, nat_outgoing::PURPOSE),
            translated: None,
            translation: Translation::new(nft::table_name(translation::TABLE, &options.instance)),
            reassembly: table(reassembly::TABLE, reassembly::PURPOSE),
            reassembly_missed: false,
            settled: BTreeSet::new(),
            sysctls_checked: None,
            peer_macs: BTreeMap::new(),
            _lock: lock,
        })
    }

    /// Whether the maps held a policy of an earlier process when they were opened.
    #[must_use]
    pub fn is_takeover(&self) -> bool {
        self.takeover
    }

    /// The policy store of what the maps hold now.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn store(&self) -> Result<Store> {
        // Whoever wrote them may have committed a moment ago.
        sys::grace_period();
        Ok(Store::adopt(self.tables.limits(), &self.snapshot()?.state()))
    }

    /// What the maps hold now.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.tables.snapshot()
    }

    /// Looks at the host: what the policy store needs to know of it.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn observe(&mut self) -> Result<Observed> {
        let addresses = self.netlink.host_addresses().map_err(DataplaneError::io("list the addresses of this host"))?;
        Ok(Observed { host_addresses: addresses })
    }

    /// Brings the kernel to what is desired; start, reload, link events and resync are all this call. Without a plan only
    /// links, routes and what belongs to them are seen to.
    ///
    /// In this order: translation of what leaves the pools, where there is to be any, prepare and commit (a new policy
    /// waits for nothing else), routes of workloads that are gone withdrawn, slots made active and filters on their interfaces, dropping programs where a workload is
    /// gone, routes, grace period, retire. Idempotent.
    ///
    /// # Errors
    /// If the policy could not be put in force, or what it may let out would not be translated: the generation before
    /// stays, whole. What fails besides is in [`Applied::faults`].
    pub fn apply(&mut self, plan: Option<&Plan>, desired: &Desired) -> Result<Applied> {
        let applied = self.apply_unretired(plan, desired)?;
        if let Some(plan) = plan.filter(|plan| !plan.is_empty()) {
            self.retire(plan)?;
        }
        if desired.untracked.is_empty() {
            self.tables.set_uplink_flag(uplink_flags::UNTRACKED, false)?;
        }
        Ok(applied)
    }

    /// The same, but what only the generation before needs stays: [`Dataplane::take_back`] can bring that back, until
    /// [`Dataplane::retire`]. Nothing else may be planned in between.
    ///
    /// # Errors
    /// As for [`Dataplane::apply`].
    pub fn apply_unretired(&mut self, plan: Option<&Plan>, desired: &Desired) -> Result<Applied> {
        let mut applied = Applied::default();
        match (self.translate(desired, &mut applied), plan) {
            (Ok(()), _) => {}
            (Err(error), Some(_)) => return Err(error),
            (Err(error), None) => applied.faults.push(error.to_string()),
        }
        let plan = plan.filter(|plan| !plan.is_empty());
        if !desired.untracked.is_empty() {
            self.tables.set_uplink_flag(uplink_flags::UNTRACKED, true)?;
        }
        if let Some(plan) = plan {
            self.announce_arrivals(desired)?;
            self.tables.write(&plan.prepare)?;
            self.tables.commit(plan.generation)?;
            self.withdraw(desired, &mut applied);
        }
        let found = self.find(desired)?;
        let uplinks = self.uplinks(desired, &found.links, &mut applied)?;
        let hosts = self.host_interfaces(desired, &found)?;
        let none = BTreeSet::new();
        let translated = self.behind_translation(desired, (&uplinks, &hosts), &found, &none, &mut applied);
        let links = self.plan_links(desired, &uplinks, &hosts, &translated, &found);
        self.note(desired, &uplinks, &found)?;
        // Forwarding first: an uplink that learns by router advertisement has to know before.
        self.sysctls(desired, &uplinks, &found, &mut applied);
        self.restore_sysctls(desired, &mut applied);
        self.tables.set_uplinks(&uplinks)?;
        self.owners(desired)?;
        let failed = self.execute_links(&links, &mut applied);
        if !failed.is_empty() {
            self.behind_translation(desired, (&uplinks, &hosts), &found, &failed, &mut applied);
        }
        self.peer_macs = found.peer_macs.iter().map(|(index, peer)| (*index, peer.mac)).collect();
        self.deactivate(desired, &found, &failed)?;
        let limits = ConnLimits::new(self.conn_limit, desired.workloads.len() + desired.host_endpoints.len());
        self.tables.set_root(&limits, &timeouts(self.hz), self.hz, None)?;
        self.remember_expected(desired, (&uplinks, &hosts, &translated), &found, &failed);
        self.guard(desired, &found, &mut applied);
        self.translate_no_more(desired, &mut applied);
        self.reassemble(&mut applied)?;
        self.routes(desired, &found, &failed, &mut applied);
        self.xdp(desired, &uplinks, &found, &failed, &mut applied)?;
        self.answer(desired, &uplinks, &found, &mut applied);
        self.report(desired, &uplinks, &found, &failed, &mut applied);
        report_host_endpoints(desired, hosts, &found, &failed, &mut applied);
        Ok(applied)
    }

    /// Forgets what only the generation before needs.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn retire(&mut self, plan: &Plan) -> Result<()> {
        // Also where nothing is to be retired: the next plan writes what readers of the former generation may still read.
        sys::grace_period();
        self.retire_now(plan)
    }

    /// The same where a [grace period](Dataplane::grace_period) has gone by since the commit.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn retire_now(&mut self, plan: &Plan) -> Result<()> {
        self.tables.write(&plan.retire)
    }

    /// Waits until no program runs that ran when this was called: some milliseconds.
    pub fn grace_period() {
        sys::grace_period();
    }

    /// Puts the generation before in force again: what [`Dataplane::apply_unretired`] left of it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn take_back(&mut self, generation: u32) -> Result<()> {
        self.tables.commit(generation)?;
        sys::grace_period();
        Ok(())
    }

    /// Puts a new policy in force and nothing else: for where the last [`Dataplane::apply`] led to all that is desired, and
    /// only policy has changed since.
    ///
    /// # Errors
    /// As for [`Dataplane::apply`].
    pub fn apply_policy(&mut self, plan: &Plan) -> Result<()> {
        if plan.is_empty() {
            return Ok(());
        }
        self.tables.write(&plan.prepare)?;
        self.tables.commit(plan.generation)?;
        self.retire(plan)
    }

    /// What should hang where, to be looked at every second or so, for what no notification tells; call [`Dataplane::apply`]
    /// if it does not.
    #[must_use]
    pub fn attachments(&self) -> Attachments {
        Attachments {
            hooks: self.hooks.clone(),
            xdp: self.xdp.clone(),
            expected: self.expected.clone(),
            expected_xdp: self.expected_xdp.clone(),
        }
    }

    /// Whether our nftables tables are as they should be. Cheap, as long as nobody changes any table.
    #[must_use]
    pub fn tables_intact(&mut self) -> bool {
        self.guard.is_intact() && self.nat.is_intact() && self.translation.is_intact() && self.reassembly.is_intact()
    }

    /// Whether somebody on this host has begun to translate the destinations of what comes in, or has ended it, where that
    /// matters to host endpoints. As cheap.
    #[must_use]
    pub fn translation_changed(&mut self) -> bool {
        self.translation.is_news()
    }

    /// Forgets expired connections: for when traffic does not turn the clock hand. Returns how many turns it made.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn sweep(&mut self) -> Result<u32> {
        const TURNS: u32 = 64;
        let path = load::program_path(&self.hooks.directory, names::PROG_SWEEP);
        let run = || sys::program_run(sys::object_open(&path, false)?.as_raw_fd(), TURNS);
        run().map_err(DataplaneError::io(path.display().to_string()))?;
        Ok(TURNS)
    }

    /// Leaves with the pins what the last attempt to load the files led to: at most [`abi::LOAD_BYTES`](calico_ebpf_common::abi::LOAD_BYTES) of text.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_load(&self, text: &str) -> Result<()> {
        info::write_load(&self.hooks.directory, text)
    }

    /// Identity of the files that this process or one before it took back, because nobody confirmed them.
    #[must_use]
    pub fn rejected(&self) -> Option<u64> {
        self.info.rejected
    }

    /// Leaves word of them to the processes to come.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_rejected(&mut self, content: Option<u64>) -> Result<()> {
        if self.info.rejected == content {
            return Ok(());
        }
        self.info.rejected = content;
        self.info.write(&self.hooks.directory)
    }

    /// A read-only view of the maps.
    ///
    /// # Errors
    /// If the pins are gone.
    pub fn view(&self) -> Result<View> {
        View::open(&self.instance)?.ok_or_else(|| DataplaneError::Corrupt {
            what: self.hooks.directory.display().to_string(),
            message: "the pins are gone".to_owned(),
        })
    }

    /// The clock that migrations go by, in ticks.
    ///
    /// # Errors
    /// If the program cannot be run.
    pub fn now(&self) -> Result<u32> {
        load::clock(&self.hooks.directory)
    }

    /// Ticks in a second.
    #[must_use]
    pub fn hz(&self) -> u32 {
        self.hz
    }

    /// The migrations to this node that the maps tell of.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn migrations(&self) -> Result<Migrations> {
        let mut migrations = Migrations::default();
        for (slot, owner) in self.tables.owners() {
            let workload = self.tables.workload(*slot)?;
            if let Some(migration) = Migration::of_slot(&workload, owner.from.as_ref()) {
                migrations.resume(owner.endpoint.clone(), migration);
            }
        }
        Ok(migrations)
    }

    /// The workloads that are to give a sign of life, as far as they have an interface: those that come, and once and again
    /// those that are `departing`.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn awaited(&self, desired: &Desired, departing: &BTreeSet<&str>) -> Result<Vec<Awaited>> {
        let mut awaited = Vec::new();
        for workload in &desired.workloads {
            let departs = departing.contains(&*workload.name);
            if !departs && workload.migration.as_ref().is_none_or(|migration| migration.stage != Stage::Withheld) {
                continue;
            }
            let runtime = self.tables.runtime(workload.slot)?;
            if runtime.ifindex != 0 {
                awaited.push(Awaited {
                    endpoint: workload.name.clone(),
                    ifindex: runtime.ifindex,
                    host_mac: runtime.host_mac,
                    addresses: workload.addresses.clone(),
                    mac: workload.mac,
                    departs,
                });
            }
        }
        Ok(awaited)
    }

    /// Gives a workload that has come from another node its routes at once; the next [`Dataplane::apply`] sees to the rest.
    ///
    /// # Errors
    /// If the maps cannot be written.
    pub fn welcome(&mut self, workload: &DesiredWorkload, parameters: &RouteParameters) -> Result<()> {
        let Some(Migration { stage: Stage::Elevated { since }, .. }) = workload.migration else { return Ok(()) };
        let before = self.tables.runtime(workload.slot)?;
        if before.ifindex == 0 {
            return Ok(());
        }
        let flags = before.flags & !workload_flags::ARRIVING;
        self.tables.set_runtime(workload.slot, &Runtime { flags, takeover: since, ..before })?;
        let priority = priority(workload.migration.as_ref());
        for address in &workload.addresses {
            let Some(route) = route(*address, before.ifindex, priority, parameters) else { continue };
            self.owned.insert((route.address, route.ifindex));
            // It may be there already, or somebody else's is: the next look finds out.
            if let Err(error) = self.netlink.add_route(&route) {
                tracing::debug!("route {address}: {error}");
            }
        }
        Ok(())
    }

    /// The uplinks among these that exist, with their MAC addresses.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn with_macs(&mut self, uplinks: &[u32]) -> Result<Vec<(u32, [u8; 6])>> {
        let links = self.netlink.links().map_err(DataplaneError::io("list the interfaces"))?;
        Ok(links.iter().filter(|link| uplinks.contains(&link.index)).map(|link| (link.index, link.mac)).collect())
    }

    /// What routing daemons say of addresses of these workloads, where that is better than our own routes, which have
    /// `own_protocol` or one of before; and what others do, for people.
    ///
    /// # Errors
    /// If netlink fails.
    pub fn claims<'a>(
        &mut self,
        workloads: impl Iterator<Item = (&'a String, &'a [IpAddr])>,
        own_protocol: u8,
    ) -> Result<(BTreeMap<String, Claim>, Vec<String>)> {
        let (mut claims, mut others) = (BTreeMap::new(), Vec::new());
        for (name, addresses) in workloads {
            for address in addresses {
                let found = self.netlink.host_route(*address).map_err(DataplaneError::io("look for a route"))?;
                let Some(HostRoute { route, via }) = found else { continue };
                if route.protocol == own_protocol || self.info.route_protocols.contains(&route.protocol) {
                    continue;
                }
                if TOLD_BY_DAEMONS.contains(&route.protocol) {
                    claims.insert(name.clone(), Claim { address: *address, via });
                } else {
                    others.push(format!(
                        "{address} of {name}: another program's route (protocol {}, metric {}) is better than ours; it is \
                         left alone, and traffic follows it",
                        route.protocol, route.metric
                    ));
                }
            }
        }
        Ok((claims, others))
    }

    /// Leaves word of those that come from other nodes before their policy is in force.
    fn announce_arrivals(&self, desired: &Desired) -> Result<()> {
        let arrives = |workload: &&DesiredWorkload| {
            workload.migration.as_ref().is_some_and(|migration| migration.stage == Stage::Withheld)
        };
        desired.workloads.iter().filter(arrives).try_for_each(|workload| self.tables.announce_arrival(workload.slot))
    }

    /// Withdraws the routes of addresses that no workload has any more: others may have them, and nothing waits for that.
    fn withdraw(&mut self, desired: &Desired, applied: &mut Applied) {
        let kept: BTreeSet<IpAddr> =
            desired.workloads.iter().flat_map(|workload| workload.addresses.iter().copied()).collect();
        let gone: BTreeSet<_> = self.owned.iter().filter(|(address, _)| !kept.contains(address)).copied().collect();
        if gone.is_empty() {
            return;
        }
        let deleted = self.netlink.routes(&self.info.route_protocols).and_then(|there| {
            plan_routes(&[], &there, &gone).iter().try_for_each(|action| {
                tracing::debug!("{action}");
                if let RouteAction::Delete(route) = action {
                    self.netlink.delete_route(route)?;
                    applied.changes += 1;
                }
                Ok(())
            })
        });
        // All routes are looked at again at the end.
        if let Err(error) = deleted {
            tracing::debug!("cannot withdraw routes at once: {error}");
        }
    }

    /// Indices of the uplinks that exist.
    fn uplinks(&mut self, desired: &Desired, links: &LinkTable, applied: &mut Applied) -> Result<Vec<u32>> {
        let mut uplinks: Vec<u32> = match &desired.uplinks {
            Uplinks::Named(interfaces) => {
                interfaces.iter().filter_map(|name| links.by_name(name)).map(|link| link.index).collect()
            }
            Uplinks::DefaultRoutes => {
                let devices = self.netlink.default_route_devices().map_err(DataplaneError::io("list the routes"))?;
                let workload = |index: &u32| {
                    let name = links.by_index(*index).map(|link| link.name.as_str());
                    desired.workloads.iter().any(|workload| Some(workload.interface.as_str()) == name)
                };
                devices.into_iter().filter(|index| !workload(index)).collect()
            }
        };
        for link in desired.untracked.keys().filter_map(|name| links.by_name(name)) {
            if !uplinks.contains(&link.index) {
                uplinks.push(link.index);
            }
        }
        let most = calico_ebpf_common::abi::MAX_UPLINKS;
        if uplinks.len() > most {
            applied.faults.push(format!("{} uplinks, but only the first {most} are used", uplinks.len()));
            uplinks.truncate(most);
        }
        Ok(uplinks)
    }

    /// Looks at everything that a reconcile compares.
    fn find(&mut self, desired: &Desired) -> Result<Found> {
        let links = self.netlink.links().map_err(DataplaneError::io("list the interfaces"))?;
        let mut found = Found {
            links: LinkTable::new(links),
            pins: self.hooks.pins()?,
            interfaces: self.tables.interfaces()?,
            ..Found::default()
        };
        let mut candidates: BTreeSet<u32> = found.pins.iter().map(|(index, _)| *index).collect();
        candidates.extend(found.interfaces.keys());
        candidates.extend(&self.info.qdiscs);
        candidates.extend(desired.workloads.iter().filter_map(|w| Some(found.links.by_name(&w.interface)?.index)));
        for ifindex in candidates.into_iter().filter(|index| found.links.by_index(*index).is_some()) {
            for hook in [Hook::Ingress, Hook::Egress] {
                if let Some(hanging) = self.hooks.hanging(&mut self.netlink, ifindex, hook)? {
                    found.hanging.insert((ifindex, hook), hanging);
                }
            }
        }
        let of_hosts = desired.host_endpoints.iter().flat_map(|endpoint| {
            [Some(endpoint.host), endpoint.forward, endpoint.from_workloads].into_iter().flatten()
        });
        let slots = desired.workloads.iter().map(|workload| workload.slot).chain(of_hosts);
        for slot in slots.chain(self.tables.owners().keys().copied()) {
            if slot < self.tables.limits().slots {
                found.runtimes.insert(slot, self.tables.runtime(slot)?);
            }
        }
        for workload in desired.workloads.iter().filter(|workload| workload.mac.is_none()) {
            let Some(link) = found.links.by_name(&workload.interface) else { continue };
            let (true, Some(netns), Some(peer)) = (link.veth, link.peer_netns, link.peer_index) else { continue };
            match self.netlink.foreign_mac(netns, peer) {
                Ok(Some(mac)) if mac != [0; 6] => {
                    let is_news = self.peer_macs.get(&link.index) != Some(&mac);
                    found.peer_macs.insert(link.index, PeerMac { mac, is_news });
                }
                // The program learns it from what the workload sends.
                Ok(_) => {}
                Err(error) => tracing::debug!("MAC address behind {}: {error}", link.name),
            }
        }
        Ok(found)
    }

    /// Which interfaces are host endpoints.
    fn host_interfaces(&mut self, desired: &Desired, found: &Found) -> Result<Resolved> {
        if desired.host_endpoints.is_empty() {
            return Ok(Resolved::default());
        }
        let networks = self.netlink.networks().map_err(DataplaneError::io("list the addresses of this host"))?;
        let addresses = networks.into_iter().map(|(index, network)| (index, network.addr())).collect();
        let is_workload = |link: &Link| {
            let prefixes = desired.interface_prefixes.iter().flatten();
            desired.workloads.iter().any(|workload| workload.interface == link.name)
                || prefixes.into_iter().any(|prefix| !prefix.is_empty() && link.name.starts_with(prefix.as_str()))
                || found.interfaces.get(&link.index).is_some_and(|entry| entry.role == role::WORKLOAD)
                // It was one's, and drops everything since.
                || found
                    .hanging
                    .get(&(link.index, Hook::Ingress))
                    .is_some_and(|hanging| Some(hanging.program) == self.programs.id(names::PROG_DROP))
        };
        Ok(host_endpoints::resolve(&desired.host_endpoints, &found.links, is_workload, &addresses))
    }

    fn plan_links(
        &self,
        desired: &Desired,
        uplinks: &[u32],
        hosts: &Resolved,
        translated: &Translated,
        found: &Found,
    ) -> Vec<LinkAction> {
        let programs = load::PROGRAMS.into_iter().filter_map(|name| Some((name, self.programs.id(name)?))).collect();
        let wanted = Wanted {
            workloads: &desired.workloads,
            uplinks,
            host_endpoints: &desired.host_endpoints,
            seats: &hosts.seats,
            translated,
            prefixes: desired.interface_prefixes.as_deref(),
            attachment: self.hooks.attachment,
            programs: &programs,
        };
        reconcile(&wanted, found)
    }

    /// Carries out actions; those that fail become faults. The interfaces where a program could not be attached.
    fn execute_links(&mut self, actions: &[LinkAction], applied: &mut Applied) -> BTreeSet<u32> {
        let mut failed = BTreeSet::new();
        for action in actions {
            tracing::debug!("{action}");
            match self.execute_link(action) {
                Ok(()) => applied.changes += 1,
                Err(error) => {
                    if let LinkAction::Attach { ifindex, .. } = action {
                        failed.insert(*ifindex);
                        // It has vanished since it was listed: no fault, and a notification is on its way.
                        if !self.netlink.exists(*ifindex) {
                            continue;
                        }
                    }
                    applied.faults.push(format!("{action}: {error}"));
                }
            }
        }
        failed
    }

    /// Closes the slots whose interface has no filter: nothing is delivered there.
    fn deactivate(&mut self, desired: &Desired, found: &Found, failed: &BTreeSet<u32>) -> Result<()> {
        for workload in desired.workloads.iter().filter(|_| !failed.is_empty()) {
            if let Some(link) = found.links.by_name(&workload.interface).filter(|link| failed.contains(&link.index)) {
                self.tables.set_runtime(workload.slot, &Runtime::default())?;
                self.tables.remove_interface(link.index)?;
            }
        }
        Ok(())
    }

    fn execute_link(&mut self, action: &LinkAction) -> Result<()> {
        match action {
            LinkAction::Attach { ifindex, hook, program, .. } => {
                let made = self.hooks.attach(&mut self.netlink, &mut self.programs, program, *ifindex, *hook)?;
                if made && !self.info.qdiscs.contains(ifindex) {
                    self.info.qdiscs.push(*ifindex);
                    self.info.write(&self.hooks.directory)?;
                }
                Ok(())
            }
            LinkAction::Detach { ifindex, hook } => self.hooks.detach(&mut self.netlink, *ifindex, *hook),
            LinkAction::SetInterface { ifindex, entry } => self.tables.set_interface(*ifindex, entry),
            LinkAction::RemoveInterface { ifindex } => self.tables.remove_interface(*ifindex),
            LinkAction::SetRuntime { slot, runtime } => self.tables.set_runtime(*slot, runtime),
        }
    }

    /// Leaves in `cali_info` what others and `purge` have to know, before it is done.
    fn note(&mut self, desired: &Desired, uplinks: &[u32], found: &Found) -> Result<()> {
        let before = self.info.clone();
        self.info.node.clone_from(&desired.node);
        let name = |index: &u32| found.links.by_index(*index).map(|link| link.name.clone());
        self.info.uplinks = uplinks.iter().filter_map(name).collect();
        if !self.info.route_protocols.contains(&desired.routes.protocol) {
            self.info.route_protocols.push(desired.routes.protocol);
        }
        self.info.qdiscs.retain(|index| found.links.by_index(*index).is_some());
        if desired.interface_prefixes.is_some() {
            self.info.nft_table = Some(self.guard.name().to_owned());
        }
        if self.info != before || Info::read(&self.hooks.directory)?.as_ref() != Some(&self.info) {
            self.info.write(&self.hooks.directory)?;
        }
        Ok(())
    }

    fn sysctls(&mut self, desired: &Desired, uplinks: &[u32], found: &Found, applied: &mut Applied) {
        let mut settings = Vec::new();
        for link in uplinks.iter().filter_map(|index| found.links.by_index(*index)) {
            match sysctl::uplink(&link.name) {
                Ok(setting) => settings.extend(setting),
                Err(error) => applied.faults.push(error.to_string()),
            }
        }
        settings.extend(sysctl::forwarding());
        let mut saved = Vec::new();
        for setting in settings {
            match setting.apply() {
                Ok(old) => saved.extend(old),
                Err(error) => applied.faults.push(error.to_string()),
            }
        }
        if !saved.is_empty() {
            applied.changes += saved.len();
            keep_oldest(&mut self.info.sysctls, saved);
            if let Err(error) = self.info.write(&self.hooks.directory) {
                applied.faults.push(error.to_string());
            }
        }
        let full = self.sysctls_checked.is_none_or(|at| at.elapsed() >= SYSCTL_CHECK);
        if full {
            self.sysctls_checked = Some(Instant::now());
            self.settled.clear();
        }
        for workload in &desired.workloads {
            let Some(link) = found.links.by_name(&workload.interface) else { continue };
            if !self.settled.insert((link.index, workload.slot)) {
                continue;
            }
            let v6 = workload.addresses.iter().any(IpAddr::is_ipv6);
            let mut saved = Vec::new();
            for setting in sysctl::workload(&workload.interface, workload.spoof, v6) {
                match setting.apply() {
                    Ok(old) => saved.extend(old),
                    Err(error) => applied.faults.push(error.to_string()),
                }
            }
            if !saved.is_empty() {
                applied.changes += saved.len();
                let mut owner = self.owner(workload);
                keep_oldest(&mut owner.sysctls, saved);
                if let Err(error) = self.tables.set_owner(workload.slot, owner) {
                    applied.faults.push(error.to_string());
                }
            }
        }
    }

    /// Interfaces that lose their workload get back what they had: afterwards nobody would know.
    fn restore_sysctls(&mut self, desired: &Desired, applied: &mut Applied) {
        let slots: BTreeSet<u32> = desired.workloads.iter().map(|workload| workload.slot).collect();
        self.settled.retain(|(_, slot)| slots.contains(slot));
        for (_, owner) in self.tables.owners().iter().filter(|(slot, _)| !slots.contains(slot)) {
            if desired.workloads.iter().any(|workload| workload.interface == owner.interface) {
                continue;
            }
            for saved in &owner.sysctls {
                match sysctl::restore(saved) {
                    Ok(true) => applied.changes += 1,
                    Ok(false) => tracing::info!(
                        "{} was set to {} and is another one now: it is left so (it was {})",
                        saved.path,
                        saved.new,
                        saved.old
                    ),
                    Err(error) => applied.faults.push(error.to_string()),
                }
            }
        }
    }

    /// What is to be known of a workload's slot: what is known, brought up to date. What was changed on its interface for
    /// another workload goes over to it.
    fn owner(&self, workload: &DesiredWorkload) -> Owner {
        let owners = self.tables.owners();
        let own = owners.get(&workload.slot).into_iter();
        let same = own.chain(owners.values()).find(|owner| owner.interface == workload.interface);
        Owner {
            endpoint: workload.name.clone(),
            pod: workload.pod.clone(),
            interface: workload.interface.clone(),
            from: workload.migration.as_ref().and_then(|migration| migration.from.clone()),
            sysctls: same.map(|owner| owner.sysctls.clone()).unwrap_or_default(),
        }
    }

    fn owners(&mut self, desired: &Desired) -> Result<()> {
        for workload in &desired.workloads {
            let owner = self.owner(workload);
            self.tables.set_owner(workload.slot, owner)?;
        }
        Ok(())
    }

    fn remember_expected(
        &mut self,
        desired: &Desired,
        (uplinks, hosts, translated): (&[u32], &Resolved, &Translated),
        found: &Found,
        failed: &BTreeSet<u32>,
    ) {
        let mut expected = Expected::new();
        let mut expect_at = |ifindex: u32, hook: Hook, program: &str| {
            if let Some(id) = self.programs.id(program).filter(|_| !failed.contains(&ifindex)) {
                expected.insert((ifindex, hook), id);
            }
        };
        for index in &translated.ways_out {
            expect_at(*index, Hook::Egress, names::PROG_TO_UPLINK);
        }
        let mut expect = |ifindex: u32, programs: [&str; 2]| {
            for (hook, program) in [Hook::Ingress, Hook::Egress].into_iter().zip(programs) {
                expect_at(ifindex, hook, program);
            }
        };
        for index in uplinks.iter().chain(hosts.seats.keys()) {
            expect(*index, [names::PROG_FROM_UPLINK, names::PROG_TO_UPLINK]);
        }
        for link in desired.workloads.iter().filter_map(|workload| found.links.by_name(&workload.interface)) {
            expect(link.index, [names::PROG_FROM_WORKLOAD, names::PROG_TO_WORKLOAD]);
        }
        self.expected = expected;
    }

    /// Has the kernel put fragments together. Where it cannot, later ones pass only behind the first.
    fn reassemble(&mut self, applied: &mut Applied) -> Result<()> {
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

    fn guard(&mut self, desired: &Desired, found: &Found, applied: &mut Applied) {
        let result = match &desired.interface_prefixes {
            None if self.info.nft_table.take().is_none() => return,
            None => self.guard.remove().and_then(|_| self.info.write(&self.hooks.directory)).map(|()| false),
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

    /// Sees to what host endpoints deny where the host may translate its destination. Where that is not seen to, it is dropped
    /// as it comes in. `failed`: the interfaces where programs could not be attached.
    fn behind_translation(
        &mut self,
        desired: &Desired,
        (uplinks, hosts): (&[u32], &Resolved),
        found: &Found,
        failed: &BTreeSet<u32>,
        applied: &mut Applied,
    ) -> Translated {
        // What is a part of another interface goes ways where the priority may not last.
        let links = hosts.seats.keys().filter_map(|index| found.links.by_index(*index));
        let arrivals = links.filter(|link| !link.has_master && nft::is_plain(&link.name));
        let of_workloads = desired.workloads.iter().filter_map(|workload| found.links.by_name(&workload.interface));
        let judging = hosts.seats.iter().filter(|(_, seats)| seats.forward.is_some());
        let mut interfaces = Interfaces {
            hosts: arrivals.map(|link| (link.index, link.name.as_str())).collect(),
            judging: judging.map(|(index, _)| *index).collect(),
            programmed: of_workloads.map(|link| link.index).chain(uplinks.iter().copied()).collect(),
        };
        interfaces.programmed.extend(hosts.seats.keys());
        let mut ways_out = BTreeSet::new();
        if !interfaces.judging.is_empty() {
            ways_out.extend(hosts.others.difference(&interfaces.programmed));
            interfaces.programmed.extend(&ways_out);
        }
        interfaces.programmed.retain(|index| !failed.contains(index));
        match self.try_behind_translation(&interfaces) {
            Ok((in_place, changed)) => {
                applied.changes += usize::from(changed);
                let arrivals = interfaces.hosts.into_keys().collect();
                let seen_to = if in_place { Translated { arrivals, ways_out } } else { Translated::default() };
                self.translation.seen_to = seen_to.clone();
                seen_to
            }
            Err(error) => {
                applied.faults.push(format!(
                    "{error}: where that was not so before, what policy of host endpoints denies by the address it was sent \
                     to is dropped, even if the host would translate that"
                ));
                // What was in place is so still: one interface that has vanished meanwhile does not change that.
                self.translation.seen_to.clone()
            }
        }
    }

    /// Whether the tables are in place, and whether that is new.
    fn try_behind_translation(&mut self, interfaces: &Interfaces<'_>) -> Result<(bool, bool)> {
        let wanted = self.translation.is_wanted(!interfaces.hosts.is_empty())?;
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
    fn translate(&mut self, desired: &Desired, applied: &mut Applied) -> Result<()> {
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
    fn translate_no_more(&mut self, desired: &Desired, applied: &mut Applied) {
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

    fn try_translate_no_more(&mut self) -> Result<bool> {
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

    /// Interfaces that carry an ingress filter of ours now.
    fn attached(&mut self, found: &Found) -> BTreeSet<u32> {
        let Self { hooks, netlink, .. } = self;
        let indices = found.links.iter().map(|link| link.index);
        indices.filter(|index| hooks.hanging(netlink, *index, Hook::Ingress).is_ok_and(|h| h.is_some())).collect()
    }

    fn routes(&mut self, desired: &Desired, found: &Found, failed: &BTreeSet<u32>, applied: &mut Applied) {
        let (actions, wanted) = match self.plan_routes(desired, found, failed) {
            Ok(plan) => plan,
            Err(error) => return applied.faults.push(error.to_string()),
        };
        let mut missing = BTreeSet::new();
        for action in &actions {
            tracing::debug!("{action}");
            let done = match action {
                RouteAction::Add(route) => self.netlink.add_route(route),
                RouteAction::Replace(route) => self.netlink.replace_route(route),
                RouteAction::Delete(route) => self.netlink.delete_route(route),
            };
            match done {
                Ok(()) => applied.changes += 1,
                Err(error) => {
                    if let RouteAction::Add(route) | RouteAction::Replace(route) = action {
                        missing.insert((route.address, route.ifindex));
                        if !self.netlink.exists(route.ifindex) {
                            continue;
                        }
                    }
                    applied.faults.push(format!("{action}: {}", explain_route_error(&error)));
                }
            }
        }
        self.owned.extend(wanted.iter().map(|(_, route)| (route.address, route.ifindex)));
        self.owned.retain(|(_, ifindex)| found.links.by_index(*ifindex).is_some());
        for workload in &desired.workloads {
            let priority = priority(workload.migration.as_ref());
            for address in &workload.addresses {
                // One that is withheld is not missing.
                let Some(Route { metric, .. }) = route(*address, 0, priority, &desired.routes) else { continue };
                let route = wanted.iter().find(|(name, route)| name == &workload.name && route.address == *address);
                let installed = route.is_some_and(|(_, route)| !missing.contains(&(route.address, route.ifindex)));
                applied.routes.push(RouteStatus {
                    address: *address,
                    interface: workload.interface.clone(),
                    endpoint: workload.name.clone(),
                    protocol: desired.routes.protocol,
                    metric,
                    installed,
                });
            }
        }
    }

    /// The routes to change, and those that should be, each with its workload.
    #[expect(clippy::type_complexity, reason = "used twice, next to here")]
    fn plan_routes(
        &mut self,
        desired: &Desired,
        found: &Found,
        failed: &BTreeSet<u32>,
    ) -> Result<(Vec<RouteAction>, Vec<(String, Route)>)> {
        let mut wanted = Vec::new();
        for workload in &desired.workloads {
            let Some(link) = found.links.by_name(&workload.interface) else { continue };
            // The kernel refuses routes over an interface that is down.
            if failed.contains(&link.index) || !link.up {
                continue;
            }
            let priority = priority(workload.migration.as_ref());
            let addresses = workload.addresses.iter();
            let routes = addresses.filter_map(|address| route(*address, link.index, priority, &desired.routes));
            wanted.extend(routes.map(|route| (workload.name.clone(), route)));
        }
        let mut owned = self.owned.clone();
        owned.extend(wanted.iter().map(|(_, route)| (route.address, route.ifindex)));
        let there = self.netlink.routes(&self.info.route_protocols).map_err(DataplaneError::io("list the routes"))?;
        let routes: Vec<Route> = wanted.iter().map(|(_, route)| route.clone()).collect();
        Ok((plan_routes(&routes, &there, &owned), wanted))
    }

    /// Hangs the XDP program where there is something for it to do, and takes it from elsewhere. Behind the interfaces and
    /// their other programs: it tells those behind it that it has judged, and has to know by what.
    fn xdp(
        &mut self,
        desired: &Desired,
        uplinks: &[u32],
        found: &Found,
        failed: &BTreeSet<u32>,
        applied: &mut Applied,
    ) -> Result<()> {
        self.expected_xdp.clear();
        let mut kept = BTreeSet::new();
        for link in uplinks.iter().filter_map(|index| found.links.by_index(*index)) {
            let Some(ingress) = desired.untracked.get(&link.name) else { continue };
            let off = |reason: &str| UplinkXdp {
                interface: link.name.clone(),
                mode: None,
                reason: reason.to_owned(),
                hindered: false,
            };
            if failed.contains(&link.index) || !*ingress || !desired.xdp.enabled {
                applied.xdp.push(off(if !*ingress {
                    "the untracked policy is about what the host sends only"
                } else if desired.xdp.enabled {
                    "the TC programs could not be attached"
                } else {
                    "xdpEnabled is false: the TC program judges alone"
                }));
                continue;
            }
            if let Some(obstacle) = xdp::obstacle(link, &found.links) {
                applied.xdp.push(off(&obstacle));
                continue;
            }
            let Self { xdp, netlink, programs, .. } = self;
            match xdp.keep(netlink, programs, (link.index, &link.name), desired.xdp) {
                Ok((state, changed)) => {
                    applied.changes += usize::from(changed);
                    if state.mode.is_some() {
                        kept.insert(link.index);
                    }
                    applied.xdp.push(state);
                }
                Err(error) => {
                    applied.xdp.push(off(&format!("{error}: the TC program judges alone")));
                    applied.faults.push(error.to_string());
                }
            }
            if let Some((_, program)) = self.xdp.hanging(link.index) {
                self.expected_xdp.insert(link.index, program);
            }
        }
        let gone: BTreeSet<u32> = self.xdp.pins()?.into_iter().map(|(index, _)| index).collect();
        for ifindex in gone.difference(&kept) {
            applied.changes += usize::from(self.xdp.detach(*ifindex)?);
        }
        if self.info.xdp != applied.xdp {
            self.info.xdp.clone_from(&applied.xdp);
            self.info.write(&self.hooks.directory)?;
        }
        Ok(())
    }

    /// Has uplinks answer for local workloads inside of their own networks, where that is asked for. Behind everything that a
    /// packet needs which comes because of such an answer.
    fn answer(&mut self, desired: &Desired, uplinks: &[u32], found: &Found, applied: &mut Applied) {
        if let Err(error) = self.try_answer(desired, uplinks, found, applied) {
            applied.faults.push(error.to_string());
        }
    }

    fn try_answer(&mut self, desired: &Desired, uplinks: &[u32], found: &Found, applied: &mut Applied) -> Result<()> {
        let there = self.tables.neighbours()?;
        if desired.answered.is_empty() && there.is_empty() {
            return self.tables.set_uplink_flag(uplink_flags::ANSWERS, false);
        }
        let networks = self.netlink.networks().map_err(DataplaneError::io("list the addresses of this host"))?;
        let links = uplinks.iter().filter_map(|index| found.links.by_index(*index));
        let answerers: Vec<Answerer> = links
            .map(|link| Answerer {
                ifindex: link.index,
                mac: link.mac,
                // What a driver sends back reaches the other end of a veth only if that end is ready for it.
                by_xdp: match self.xdp.hanging(link.index) {
                    Some((XdpMode::Native, _)) => !link.veth,
                    Some((XdpMode::Generic, _)) => true,
                    None => false,
                },
            })
            .collect();
        let wanted = neighbours::wanted(&desired.answered, &answerers, &networks);
        let name = |ifindex: u32| found.links.by_index(ifindex).map(|link| link.name.as_str());
        let (mut received, mut no_longer) = (BTreeSet::new(), BTreeSet::new());
        for (key, neighbour) in &wanted {
            if there.get(key) != Some(neighbour) {
                self.tables.set_neighbour(key, Some(neighbour))?;
                applied.changes += 1;
            }
            received.extend(neighbours::solicited_mac(key).map(|mac| (key.ifindex, mac)));
        }
        for key in there.keys().filter(|key| !wanted.contains_key(key)) {
            self.tables.set_neighbour(key, None)?;
            applied.changes += 1;
            no_longer.extend(neighbours::solicited_mac(key).map(|mac| (key.ifindex, mac)));
        }
        self.tables.set_uplink_flag(uplink_flags::ANSWERS, !wanted.is_empty())?;
        let all = received.iter().map(|of| (of, true)).chain(no_longer.difference(&received).map(|of| (of, false)));
        for ((ifindex, mac), receive) in all {
            let Some(name) = name(*ifindex) else { continue };
            let what = || format!("interface {name}: the multicast address that neighbours ask by");
            sys::receive_multicast(name, *mac, receive).map_err(DataplaneError::io(what()))?;
        }
        Ok(())
    }

    fn report(&self, desired: &Desired, uplinks: &[u32], found: &Found, failed: &BTreeSet<u32>, applied: &mut Applied) {
        let attachment = |index: u32| (!failed.contains(&index)).then_some(self.hooks.attachment);
        for workload in &desired.workloads {
            let link = found.links.by_name(&workload.interface);
            applied.workloads.push(WorkloadStatus {
                endpoint: workload.name.clone(),
                interface: workload.interface.clone(),
                state: match link {
                    None => LinkState::Absent,
                    Some(link) if failed.contains(&link.index) => LinkState::Failed,
                    Some(link) if link.carrier => LinkState::Up,
                    Some(_) => LinkState::Down,
                },
                ifindex: link.map(|link| link.index),
                attachment: link.and_then(|link| attachment(link.index)),
                peer: link.is_some_and(has_peer),
                migration: workload.migration.clone(),
            });
        }
        let present = uplinks.iter().filter_map(|index| found.links.by_index(*index));
        applied.uplinks.extend(present.map(|link| Uplink {
            interface: link.name.clone(),
            ifindex: Some(link.index),
            mtu: link.mtu,
            attachment: attachment(link.index),
        }));
        if let Uplinks::Named(interfaces) = &desired.uplinks {
            let absent = interfaces.iter().filter(|name| found.links.by_name(name).is_none());
            applied.uplinks.extend(absent.map(|name| Uplink {
                interface: name.clone(),
                ifindex: None,
                mtu: 0,
                attachment: None::<Attachment>,
            }));
        }
    }
}

/// Tells which interfaces host endpoints are, and where one is none.
fn report_host_endpoints(
    desired: &Desired,
    hosts: Resolved,
    found: &Found,
    failed: &BTreeSet<u32>,
    applied: &mut Applied,
) {
    applied.host_endpoints = hosts.status;
    let is_open = |name: &String| found.links.by_name(name).is_some_and(|link| failed.contains(&link.index));
    for (endpoint, status) in desired.host_endpoints.iter().zip(&mut applied.host_endpoints) {
        status.interfaces.retain(|name| !is_open(name));
        if endpoint.interface != HostInterface::All {
            applied.faults.extend(status.uncovered.iter().map(|name| {
                format!(
                    "host endpoint {}: packets of interface {name} have no Ethernet header: nothing is judged there",
                    endpoint.name
                )
            }));
        }
    }
}

/// Adds what was set to what is known, keeping the first value that each sysctl had.
fn keep_oldest(known: &mut Vec<SavedSysctl>, new: Vec<SavedSysctl>) {
    let mut by_path: BTreeMap<String, usize> =
        known.iter().enumerate().map(|(i, saved)| (saved.path.clone(), i)).collect();
    for saved in new {
        match by_path.get(&saved.path) {
            Some(index) => known[*index].new = saved.new,
            None => {
                by_path.insert(saved.path.clone(), known.len());
                known.push(saved);
            }
        }
    }
}

fn explain_route_error(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EEXIST) => "another program's route has this destination and metric; it is left alone".to_owned(),
        _ => error.to_string(),
    }
}
