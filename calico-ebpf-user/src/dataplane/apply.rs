//! The loaded data path, and the one call that brings it to what is desired.

mod arrangement;
mod interfaces;
mod nftables;
mod report;
mod routes;
mod sysctls;
mod uplinks;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsRawFd as _,
    time::Instant,
};

use calico_ebpf_common::abi::{TAKEOVER_SECONDS, names, uplink_flags};
use ipnet::IpNet;

pub use self::arrangement::Arrangement;
use super::{
    Options,
    alive::Awaited,
    attachments::Attachments,
    clock::Clock,
    desired::{Applied, Desired, DesiredWorkload, Observed},
    error::{DataplaneError, Result},
    guard,
    info::{self, Info},
    instance::{Instance, Lock},
    links::{Found, LinkAction},
    load::{self, Programs},
    nat_outgoing,
    netlink::{Hook, Netlink},
    netns, nft, reassembly, sys,
    tables::{ConnLimits, Owner, Snapshot, Tables, timeouts},
    tc::{Expected, Hooks},
    translation::{self, Translation},
    view::View,
    xdp::XdpLinks,
};
use crate::{
    policy::{store::Store, write::Plan},
    routes::migration::{Migration, Migrations, Stage},
};

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
    /// What is in force may be taken back, with what it took from interfaces: see [`Arrangement`].
    unconfirmed: bool,
    /// Interfaces and hooks with the program that should hang there.
    expected: Expected,
    /// Interfaces with the XDP program that should hang there.
    expected_xdp: BTreeMap<u32, u32>,
    /// Addresses of workloads with their interfaces, now and formerly: whose routes are ours.
    owned: BTreeSet<(IpAddr, u32)>,
    /// Networks that are this host's as a whole, when they were last looked at.
    host_networks: Vec<IpNet>,
    guard: nft::Table,
    nat: nft::Table,
    /// When connections were last seen that `nat` is still there for.
    translated: Option<Instant>,
    translation: Translation,
    /// Somebody was told that nobody can look whether the host translates.
    translation_missed: bool,
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
        let is_orphaned = load::refuse_elsewhere(&options.instance)?;
        let directory = options.instance.layout_dir();
        let programs = Programs::load(options)?;
        let mut tables = Tables::open(&directory)?;
        let takeover = tables.generation()? != 0;
        let before = Info::read(&directory).unwrap_or_else(|error| {
            tracing::warn!("{error}: what earlier runs changed on this host is not known any more");
            None
        });
        let mut info = before.unwrap_or_default();
        if is_orphaned {
            tracing::info!(
                "the network namespace that this data path was in is gone: its policy and connections are taken over"
            );
            tables.forget_interfaces()?;
            load::remove_link_pins(&directory)?;
            (info.qdiscs, info.sysctls) = (Vec::new(), Vec::new());
        }
        let clock = Clock::open(&directory)?;
        let hz = if info.hz == 0 { clock.measure_hz()? } else { info.hz };
        info.hz = hz;
        info.version = env!("CARGO_PKG_VERSION").to_owned();
        info.pid = std::process::id();
        info.namespace = netns::cookie().unwrap_or(0);
        let conn_limit = load::conn_limit(&directory)?;
        let ticks = if takeover { None } else { Some(clock.now()?) };
        tables.set_root(&ConnLimits::new(conn_limit, tables.owners().len()), &timeouts(hz), hz, ticks)?;
        let xdp = XdpLinks { directory: directory.clone() };
        let hooks = Hooks { directory, attachment: load::attachment(options.attach) };
        let mut netlink = Netlink::open().map_err(DataplaneError::io("open a netlink socket"))?;
        let routes = netlink.routes(&info.route_protocols).map_err(DataplaneError::io("list the routes"))?;
        let owned = tables.owned(&routes)?;
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
            unconfirmed: false,
            expected: Expected::new(),
            expected_xdp: BTreeMap::new(),
            owned,
            host_networks: Vec::new(),
            guard: table(guard::TABLE, guard::PURPOSE),
            nat: table(nat_outgoing::TABLE, nat_outgoing::PURPOSE),
            translated: None,
            translation: Translation::new(nft::table_name(translation::TABLE, &options.instance)),
            translation_missed: false,
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
    /// stays, whole. What fails besides is in [`Applied::faults`]; without a plan also what fails altogether.
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
        match self.connect(desired, &mut applied) {
            // Who asked for a policy has it: what is in force and what counts as that must not differ.
            Err(error) if plan.is_some() => {
                applied.partial = true;
                applied
                    .faults
                    .push(format!("{error}: the policy is in force, but links and routes may not be as it needs them"));
            }
            outcome => outcome?,
        }
        Ok(applied)
    }

    /// Brings links, routes and what belongs to them to what is desired.
    fn connect(&mut self, desired: &Desired, applied: &mut Applied) -> Result<()> {
        let found = self.find(desired)?;
        let local = self.host_networks(applied);
        let uplinks = self.uplinks(desired, &found.links, applied)?;
        let hosts = self.host_interfaces(desired, &found)?;
        let is_bare = |index: &u32| !found.hanging.contains_key(&(*index, Hook::Egress));
        // Not those of workloads: nothing leads there yet.
        let leading = hosts.others.iter().chain(hosts.seats.keys()).chain(&uplinks).copied();
        let mut bare: BTreeSet<u32> = leading.filter(is_bare).collect();
        let translated = self.behind_translation(desired, (&uplinks, &hosts, &local), &found, &bare, applied);
        let links = self.plan_links(desired, &uplinks, &hosts, &translated, &found);
        self.note(desired, &uplinks, &found)?;
        // Forwarding first: an uplink that learns by router advertisement has to know before.
        self.sysctls(desired, &uplinks, &found, applied);
        if !self.unconfirmed {
            self.restore_sysctls(desired, applied);
        }
        self.tables.set_uplinks(&uplinks)?;
        self.tables.set_local_networks(!local.is_empty())?;
        self.owners(desired)?;
        let (forgotten, links): (Vec<_>, Vec<_>) =
            links.into_iter().partition(|action| matches!(action, LinkAction::RemoveInterface { .. }));
        let mut undetached = BTreeSet::new();
        let failed = self.execute_links(&links, &mut undetached, applied);
        bare.retain(|index| !hosts.others.contains(index) || translated.ways_out.contains(index));
        if !failed.is_empty() || !bare.is_empty() {
            self.behind_translation(desired, (&uplinks, &hosts, &local), &found, &failed, applied);
        }
        self.forget_neighbours(desired, &found);
        self.peer_macs = found.peer_macs.iter().map(|(index, peer)| (*index, peer.mac)).collect();
        self.deactivate(desired, &found, &failed)?;
        let limits = ConnLimits::new(self.conn_limit, desired.workloads.len() + desired.host_endpoints.len());
        self.tables.set_root(&limits, &timeouts(self.hz), self.hz, None)?;
        // They are no matter of links.
        if let Err(error) = self.end_takeovers() {
            tracing::debug!("takeovers are remembered for longer than they matter: {error}");
        }
        self.remember_expected(desired, (&uplinks, &hosts, &translated), &found, &failed);
        self.guard(desired, &found, applied);
        self.translate_no_more(desired, applied);
        self.reassemble(applied)?;
        self.routes(desired, &found, &failed, applied);
        // Not before: who goes on behind a writer that was killed knows by them which routes are ours.
        self.execute_links(&forgotten, &mut undetached, applied);
        self.xdp(desired, &uplinks, &found, &failed, applied)?;
        self.answer(desired, &uplinks, &found, applied);
        self.report(desired, &uplinks, &found, &failed, applied);
        report::report_host_endpoints(desired, hosts, &found, &failed, applied);
        Ok(())
    }

    /// Takeovers are remembered for as long as they matter: the clock goes round.
    fn end_takeovers(&self) -> Result<()> {
        let now = self.now()?;
        let is_over = |since: u32| since != 0 && now.wrapping_sub(since) > TAKEOVER_SECONDS * self.hz;
        self.tables.end_takeovers(is_over)
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
        self.unconfirmed = false;
        self.tables.write(&plan.retire)
    }

    /// Waits until no program runs that ran when this was called: some milliseconds.
    pub fn grace_period() {
        sys::grace_period();
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
        Clock::open(&self.hooks.directory)?.now()
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

    /// Leaves word of those that come from other nodes before their policy is in force.
    fn announce_arrivals(&self, desired: &Desired) -> Result<()> {
        let arrives = |workload: &&DesiredWorkload| {
            workload.migration.as_ref().is_some_and(|migration| migration.stage == Stage::Withheld)
        };
        desired.workloads.iter().filter(arrives).try_for_each(|workload| self.tables.announce_arrival(workload.slot))
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
}
