//! What on this host stops or slows the data path, and what to do about it.

use std::{collections::BTreeSet, fs, path::Path};

use aya::{
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{BpfHelper, is_btf_supported, is_helper_supported},
    util::KernelVersion,
};

use super::{
    Options, bpffs,
    desired::Attachment,
    load,
    netlink::{Hook, Link, LinkTable, Netlink},
    nft, sysctl,
    tc::{HANDLE, Hooks, PRIORITY},
    view::View,
    xdp::{XdpLinks, describe},
};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing is wrong.
    Info,
    /// Works, but slower or less safe than it could.
    Warning,
    /// Stops the data path.
    Failure,
}

/// One thing looked at.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: String,
    /// How it came out.
    pub status: CheckStatus,
    /// What was found.
    pub detail: String,
    /// What to do, where there is something to do.
    pub advice: Option<String>,
}

impl Check {
    fn new(name: &str, status: CheckStatus, detail: impl Into<String>, advice: &str) -> Self {
        let advice = (!advice.is_empty()).then(|| advice.to_owned());
        Self { name: name.to_owned(), status, detail: detail.into(), advice }
    }

    fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(name, CheckStatus::Ok, detail, "")
    }
}

/// Looks at everything. Changes nothing.
#[must_use]
pub fn examine(options: &Options) -> Vec<Check> {
    let mut checks = vec![privilege(), kernel(), bpf_fs(options), btf(), jit()];
    checks.extend(helpers());
    checks.push(attachment(options));
    checks.push(felix());
    checks.push(nftables(options));
    checks.extend(forwarding(options));
    match Surroundings::look(options) {
        Ok(mut surroundings) => {
            checks.extend(surroundings.forwarding(options));
            checks.push(surroundings.mtu());
            checks.extend(surroundings.foreign_programs(options));
            checks.extend(surroundings.xdp(options));
            checks.push(surroundings.reverse_path());
        }
        Err(error) => checks.push(Check::new(
            "interfaces",
            CheckStatus::Failure,
            format!("cannot be listed: {error}"),
            "run it as root, in the network namespace of the host",
        )),
    }
    checks
}

/// A Felix that lives in this network namespace: its process id and name.
#[must_use]
pub fn live_felix() -> Option<(u32, String)> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let arguments = String::from_utf8_lossy(&arguments);
            let arguments: Vec<&str> = arguments.split('\0').collect();
            felix_name(&arguments).map(|name| (pid, name.to_owned()))
        })
        .find(|(pid, _)| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs == own))
}

/// Felix runs as `calico-felix`, or as `calico-node -felix`.
fn felix_name<'a>(arguments: &[&'a str]) -> Option<&'a str> {
    let (program, rest) = arguments.split_first()?;
    let name = Path::new(*program).file_name()?.to_str()?;
    let is_felix = name == "calico-felix"
        || (name == "calico-node" || name == "calico")
            && rest.iter().any(|argument| argument.trim_matches('-') == "felix");
    is_felix.then_some(name)
}

fn privilege() -> Check {
    // include/uapi/linux/capability.h
    const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    const WANTED: [(u32, &str); 2] = [
        (13, "CAP_NET_RAW: nobody hears workloads that move here or away"),
        (19, "CAP_SYS_PTRACE: a Felix beside it may go unseen"),
    ];
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let without = |of: [(u32, &'static str); 2]| -> Vec<&str> {
        of.into_iter().filter(|(bit, _)| effective & 1 << bit == 0).map(|(_, name)| name).collect()
    };
    let (missing, wanted) = (without(NEEDED), without(WANTED));
    if !rustix::process::geteuid().is_root() {
        return Check::new("privilege", CheckStatus::Failure, "not root", "run as root");
    }
    if missing.is_empty() && wanted.is_empty() {
        return Check::ok("privilege", "root, with the capabilities needed");
    }
    if missing.is_empty() {
        return Check::new(
            "privilege",
            CheckStatus::Warning,
            format!("root, but without {}", wanted.join(", and ")),
            "give the container or the service these capabilities",
        );
    }
    Check::new(
        "privilege",
        CheckStatus::Failure,
        format!("root, but without {}", missing.join(", ")),
        "give the container or the service these capabilities",
    )
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    match KernelVersion::current() {
        Ok(version) if version < KernelVersion::new(5, 10, 0) => Check::new(
            "kernel",
            CheckStatus::Failure,
            format!("{release}: bpf_redirect_peer and bpf_redirect_neigh came with 5.10"),
            "use a kernel of 5.10 or newer",
        ),
        Ok(_) => Check::ok("kernel", release),
        Err(error) => Check::new("kernel", CheckStatus::Warning, format!("{release}: {error}"), ""),
    }
}

fn bpf_fs(options: &Options) -> Check {
    let path = options.instance.pin_dir();
    let shown = path.display();
    if bpffs::is_bpffs(path) {
        return Check::ok("bpffs", format!("{shown} is on a bpffs"));
    }
    if path.starts_with("/sys/fs/bpf") && !bpffs::is_private_mount_namespace() {
        return Check::new("bpffs", CheckStatus::Info, "/sys/fs/bpf is not mounted; `run` mounts it", "");
    }
    Check::new(
        "bpffs",
        CheckStatus::Failure,
        format!("{shown} is on no bpffs"),
        "mount -t bpf bpf /sys/fs/bpf, on the host and not in a private mount namespace (`ip netns exec` makes one: use --netns)",
    )
}

fn btf() -> Check {
    if is_btf_supported().unwrap_or(false) {
        return Check::ok("BTF", "the kernel takes type information: bpftool shows the maps typed");
    }
    Check::new(
        "BTF",
        CheckStatus::Warning,
        "not supported: bpftool shows the maps as bytes",
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y",
    )
}

fn jit() -> Check {
    let read = |name: &str| sysctl::read(&format!("net/core/{name}")).ok().flatten();
    match (read("bpf_jit_enable").as_deref(), read("bpf_jit_harden").as_deref()) {
        (Some("0"), _) => Check::new(
            "JIT",
            CheckStatus::Warning,
            "off: programs are interpreted, several times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        (Some(_), Some("2")) => Check::new(
            "JIT",
            CheckStatus::Info,
            "on, hardened for root too (net.core.bpf_jit_harden=2), which costs some time on each packet",
            "sysctl -w net.core.bpf_jit_harden=1 if no BPF program of others has to be mistrusted",
        ),
        (Some(_), _) => Check::ok("JIT", "on"),
        (None, _) => {
            Check::new("JIT", CheckStatus::Info, "cannot be told here (seen from the first network namespace only)", "")
        }
    }
}

fn helpers() -> Vec<Check> {
    let needed = [
        (BpfHelper::BPF_FUNC_redirect_peer, "bpf_redirect_peer"),
        (BpfHelper::BPF_FUNC_redirect_neigh, "bpf_redirect_neigh"),
        (BpfHelper::BPF_FUNC_fib_lookup, "bpf_fib_lookup"),
        (BpfHelper::BPF_FUNC_jiffies64, "bpf_jiffies64"),
    ];
    let mut missing = Vec::new();
    for (helper, name) in needed {
        match is_helper_supported(ProgramType::SchedClassifier, helper) {
            Ok(true) => {}
            Ok(false) => missing.push(name),
            Err(error) => {
                let detail = format!("cannot be tried: {error}");
                return vec![Check::new("helpers", CheckStatus::Failure, detail, "run as root")];
            }
        }
    }
    if missing.is_empty() {
        return vec![Check::ok("helpers", "all that the programs call are there")];
    }
    let detail = format!("the kernel lacks {}", missing.join(", "));
    vec![Check::new("helpers", CheckStatus::Failure, detail, "use a kernel of 5.10 or newer")]
}

fn attachment(options: &Options) -> Check {
    match load::attachment(options.attach) {
        Attachment::Tcx => Check::ok("attachment", "TCX links"),
        Attachment::Clsact => Check::new(
            "attachment",
            CheckStatus::Info,
            "clsact filters: this kernel has no TCX links (6.6); nothing is lost but some speed",
            "",
        ),
    }
}

fn felix() -> Check {
    match live_felix() {
        None => Check::ok("Felix", "none in this network namespace"),
        Some((pid, name)) => Check::new(
            "Felix",
            CheckStatus::Failure,
            format!("{name} runs in this network namespace (process {pid})"),
            "stop it first: two programs that set up the same interfaces and routes undo each other's work",
        ),
    }
}

fn nftables(options: &Options) -> Check {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join("nft").is_file()));
    if !found {
        return Check::new(
            "nft",
            CheckStatus::Warning,
            "missing: configurations with an IPPool of natOutgoing are refused, fragments pass only in order, what policy denies by the \
             address it was sent to stays denied where the host would translate it (services, published ports), and where FelixConfiguration gives interfacePrefix, interfaces that come while no process runs are not stopped",
            "install the package nftables",
        );
    }
    let info = View::open(&options.instance).ok().flatten().and_then(|view| view.info().ok()).unwrap_or_default();
    let by_family = info.nft_tables().flat_map(|(families, table)| families.iter().map(move |family| (*family, table)));
    let (there, missing): (Vec<_>, Vec<_>) =
        by_family.partition(|(family, table)| nft::exists(family, table).unwrap_or(false));
    let named = |tables: &[(&str, &str)]| {
        let names: Vec<String> = tables.iter().map(|(family, table)| format!("{family} {table}")).collect();
        names.join(", ")
    };
    if missing.is_empty() {
        let purpose = "there, for natOutgoing of IPPools, for fragments, for policy on hosts that translate destinations, and for \
             the guard that interfacePrefix asks for";
        let made = if there.is_empty() { String::new() } else { format!("; tables {}", named(&there)) };
        return Check::ok("nft", format!("{purpose}{made}"));
    }
    Check::new(
        "nft",
        CheckStatus::Warning,
        format!("somebody has removed the table {}", named(&missing)),
        "a running process puts it back within a second: start one, and find out who removed it",
    )
}

fn forwarding(options: &Options) -> Vec<Check> {
    let installed = options.instance.is_installed();
    let mut checks = Vec::new();
    for setting in sysctl::forwarding() {
        let name = setting.path.replace('/', ".");
        checks.push(match sysctl::read(&setting.path) {
            Ok(Some(value)) if value == "0" && installed => Check::new(
                "forwarding",
                CheckStatus::Warning,
                format!("{name} = 0, though the data path is installed: what takes the stack is not forwarded"),
                &format!("sysctl -w {name}=1, and find out who switched it off"),
            ),
            Ok(Some(value)) if value == "0" => {
                Check::new("forwarding", CheckStatus::Info, format!("{name} = 0; `run` sets it to 1"), "")
            }
            Ok(Some(value)) => Check::ok("forwarding", format!("{name} = {value}")),
            Ok(None) => {
                Check::new("forwarding", CheckStatus::Info, format!("no {name}: the family is switched off"), "")
            }
            Err(error) => Check::new("forwarding", CheckStatus::Warning, error.to_string(), ""),
        });
    }
    checks
}

/// An interface of an installed data path whose own forwarding somebody has switched off. (Over IPv6 that of all of them counts.)
fn forwarding_of(link: &Link) -> Option<Check> {
    let path = format!("net/ipv4/conf/{}/forwarding", link.name);
    let is_off = sysctl::read(&path).is_ok_and(|value| value.as_deref() == Some("0"));
    is_off.then(|| {
        let path = format!("/proc/sys/{path}");
        Check::new(
            "forwarding",
            CheckStatus::Warning,
            format!("{path} is 0: what comes in by {} and takes the stack is not forwarded", link.name),
            &format!("echo 1 > {path}, and find out who switched it off"),
        )
    })
}

/// The interfaces that matter: the uplinks, and those that the maps name.
struct Surroundings {
    netlink: Netlink,
    links: LinkTable,
    uplinks: BTreeSet<u32>,
    workloads: BTreeSet<u32>,
    spoofing: bool,
}

impl Surroundings {
    fn look(options: &Options) -> std::io::Result<Self> {
        let mut netlink = Netlink::open()?;
        let links = LinkTable::new(netlink.links()?);
        let mut uplinks: BTreeSet<u32> = netlink.default_route_devices()?.into_iter().collect();
        let mut workloads = BTreeSet::new();
        let mut spoofing = false;
        if let Ok(Some(view)) = View::open(&options.instance) {
            if let Ok(root) = view.root() {
                uplinks.extend(root.uplinks.iter().filter(|index| **index != 0));
            }
            for (_, _, workload) in view.workloads().unwrap_or_default() {
                workloads.insert(workload.ifindex);
                spoofing |= workload.flags & calico_ebpf_common::abi::workload_flags::SPOOF != 0;
            }
        }
        Ok(Self { netlink, links, uplinks, workloads, spoofing })
    }

    fn of(&self, indices: &BTreeSet<u32>) -> Vec<Link> {
        indices.iter().filter_map(|index| self.links.by_index(*index)).cloned().collect()
    }

    fn indices(&self) -> BTreeSet<u32> {
        self.uplinks.union(&self.workloads).copied().collect()
    }

    fn forwarding(&self, options: &Options) -> Vec<Check> {
        if !options.instance.is_installed() {
            return Vec::new();
        }
        self.of(&self.indices()).iter().filter_map(forwarding_of).collect()
    }

    fn mtu(&self) -> Check {
        let uplinks = self.of(&self.uplinks);
        let Some(least) = uplinks.iter().min_by_key(|link| link.mtu) else {
            return Check::new(
                "MTU",
                CheckStatus::Info,
                "no uplink: there is no default route, and none is configured",
                "",
            );
        };
        let larger: Vec<String> = self
            .of(&self.workloads)
            .into_iter()
            .filter(|link| link.mtu > least.mtu)
            .map(|link| format!("{} ({})", link.name, link.mtu))
            .collect();
        let uplink = format!("uplink {} has {}", least.name, least.mtu);
        if larger.is_empty() {
            return Check::ok("MTU", uplink);
        }
        Check::new(
            "MTU",
            CheckStatus::Warning,
            format!("{uplink}, but larger: {}", larger.join(", ")),
            "packets that are too big take the slow way through the stack; give workloads the uplink's MTU",
        )
    }

    /// TC programs and filters of others on the interfaces that matter. They see only what ours let through to them.
    fn foreign_programs(&mut self, options: &Options) -> Vec<Check> {
        let hooks = Hooks { directory: options.instance.layout_dir(), attachment: Attachment::Tcx };
        let mut foreign = Vec::new();
        let indices = self.indices();
        for link in self.of(&indices) {
            for (hook, attach_type) in [(Hook::Ingress, TcAttachType::Ingress), (Hook::Egress, TcAttachType::Egress)] {
                let own = hooks.hanging(&mut self.netlink, link.index, hook).ok().flatten();
                let programs = SchedClassifier::query_tcx(link.index, attach_type).map(|(_, found)| found);
                for program in programs.unwrap_or_default() {
                    if own.is_none_or(|own| own.program != program.id()) {
                        let name = program.name_as_str().unwrap_or("?").to_owned();
                        foreign.push(format!("{} {hook}: TCX program {name} (id {})", link.name, program.id()));
                    }
                }
                for filter in self.netlink.filters(link.index, hook).unwrap_or_default() {
                    if (filter.priority, filter.handle) != (PRIORITY, HANDLE) {
                        foreign.push(format!(
                            "{} {hook}: filter {} (priority {})",
                            link.name, filter.name, filter.priority
                        ));
                    }
                }
            }
        }
        if foreign.is_empty() {
            return vec![Check::ok("other programs", "none on the hooks that are used here")];
        }
        let advice = "ours run first; what they redirect or drop, the others do not see. Another network plugin that is \
                      still installed has to go";
        foreign.into_iter().map(|found| Check::new("other programs", CheckStatus::Warning, found, advice)).collect()
    }

    /// XDP on uplinks: ours, where there is something for it to do, and those of others, which are in its way.
    fn xdp(&mut self, options: &Options) -> Vec<Check> {
        let links = XdpLinks { directory: options.instance.layout_dir() };
        let states =
            View::open(&options.instance).ok().flatten().and_then(|view| view.info().ok()).unwrap_or_default().xdp;
        let mut checks = Vec::new();
        for link in self.of(&self.uplinks.clone()) {
            let state = states.iter().find(|state| state.interface == link.name);
            let own = links.hanging(link.index).map(|(_, program)| program);
            let mut foreign = self.netlink.xdp_programs(link.index).unwrap_or_default();
            foreign.retain(|id| Some(*id) != own);
            if foreign.is_empty() {
                checks.extend(state.map(|state| match state.mode {
                    Some(_) => Check::ok("XDP", format!("{} {state}", link.name)),
                    None => Check::new("XDP", CheckStatus::Info, format!("{} {state}", link.name), ""),
                }));
                continue;
            }
            let detail = format!("{} has a program of somebody else{}", link.name, describe(foreign));
            checks.push(if state.is_some() {
                let advice = format!(
                    "a device has one XDP program: the TC program judges untracked policy alone, behind that one. To have it \
                     judged before the stack, take the other one away (ip link set dev {} xdp off)",
                    link.name
                );
                Check::new("XDP", CheckStatus::Warning, detail, &advice)
            } else {
                Check::new("XDP", CheckStatus::Info, format!("{detail}; it sees packets before ours"), "")
            });
        }
        checks
    }

    /// The stack's reverse path filter: strict filtering on all interfaces overrides a workload's own setting.
    fn reverse_path(&self) -> Check {
        let all = sysctl::read("net/ipv4/conf/all/rp_filter").ok().flatten().unwrap_or_default();
        if self.spoofing && all != "0" {
            return Check::new(
                "rp_filter",
                CheckStatus::Warning,
                format!(
                    "net.ipv4.conf.all.rp_filter = {all}: workloads with allowSpoofedSourcePrefixes are stopped by it where the stack forwards for them"
                ),
                "sysctl -w net.ipv4.conf.all.rp_filter=0, and set it for each interface instead",
            );
        }
        Check::ok("rp_filter", "nothing in the way")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn felix_is_recognised() {
        assert_eq!(felix_name(&["/usr/bin/calico-felix", ""]), Some("calico-felix"));
        assert_eq!(felix_name(&["calico-node", "-felix", ""]), Some("calico-node"));
        assert_eq!(felix_name(&["calico-node", "-confd", ""]), None);
        assert_eq!(felix_name(&["/bin/grep", "calico-felix"]), None);
        assert_eq!(felix_name(&[]), None);
    }
}
