//! A laboratory of network namespaces: a host with workloads as Calico's CNI plugin makes them, and a neighbour outside.
//!
//! ```text
//!   workload              host                        outside
//!   eth0 -------- cali<NAME>     up0 ---------------- eth0
//!   10.65.0.10+n/32              192.0.2.1/24         192.0.2.2/24
//!   fd00:65::10+n/128            2001:db8:2::1/64     2001:db8:2::2/64
//!   gateways 169.254.1.1 and fe80::ecee:eeff:feee:eeee
//! ```
//!
//! The host has no default route and does not forward; nothing here makes the workloads reachable: that is the task of the
//! program under test. All names carry the process that made them, so that what a killed process leaves is found and removed.

mod namespace;
mod owner;
mod traffic;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use anyhow::Context as _;

pub use namespace::Namespace;
pub use owner::{is_kept, pin_dir, reap, unique_name};
pub use traffic::{Server, make_room, ping, tcp, udp};

/// The uplink's name in the host's namespace.
pub const UPLINK: &str = "up0";
/// The host on the uplink.
pub const HOST4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The host on the uplink.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// The neighbour outside.
pub const OUTSIDE4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The neighbour outside.
pub const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2);
/// The gateway that Calico gives to every workload.
pub const GATEWAY4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The link-local address of every host side with Calico's MAC.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee);
/// Calico's MAC for all host sides.
pub const HOST_SIDE_MAC: &str = "ee:ee:ee:ee:ee:ee";

/// A laboratory. It ends when it is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    /// The host.
    pub host: Namespace,
    /// The neighbour on the uplink.
    pub outside: Namespace,
    /// In the order they were asked for.
    pub workloads: Vec<Workload>,
}

/// A workload with its own namespace and a veth to the host.
#[derive(Debug)]
pub struct Workload {
    /// Its name: that of its pod in the resources.
    pub name: String,
    /// Where it lives.
    pub namespace: Namespace,
    /// The host side of its veth.
    pub interface: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    host: String,
}

impl Lab {
    /// Makes a laboratory with a workload for each of `names`, of at most 11 characters each.
    ///
    /// # Errors
    /// `ip` is missing or refuses, for example because this is not root.
    pub fn new(names: &[&str]) -> anyhow::Result<Self> {
        let name = unique_name()?;
        let mut lab = Self {
            host: Namespace::create(format!("{name}-host"))?,
            outside: Namespace::create(format!("{name}-out"))?,
            workloads: Vec::new(),
            name,
        };
        lab.uplink()?;
        for name in names {
            lab.add_workload(name)?;
        }
        Ok(lab)
    }

    /// Its name, the same prefix for all that belongs to it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A pin directory of its own; removed with the laboratory.
    #[must_use]
    pub fn pin_dir(&self) -> PathBuf {
        pin_dir(&self.name)
    }

    /// The workload of this name.
    ///
    /// # Panics
    /// There is none: a mistake in the test.
    #[must_use]
    pub fn workload(&self, name: &str) -> &Workload {
        let found = self.workloads.iter().find(|workload| workload.name == name);
        found.unwrap_or_else(|| panic!("the lab has no workload {name}"))
    }

    /// Adds a workload, connected.
    ///
    /// # Errors
    /// See [`Lab::new`].
    pub fn add_workload(&mut self, name: &str) -> anyhow::Result<&Workload> {
        let number = u8::try_from(self.workloads.len() + 10).context("too many workloads")?;
        let v4 = Ipv4Addr::new(10, 65, 0, number);
        let v6 = Ipv6Addr::new(0xfd00, 0x65, 0, 0, 0, 0, 0, number.into());
        self.add_workload_with(name, &format!("cali{name}"), v4, v6)
    }

    /// Adds a workload with an interface and addresses of the caller's choice, connected.
    ///
    /// # Errors
    /// See [`Lab::new`].
    pub fn add_workload_with(
        &mut self,
        name: &str,
        interface: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> anyhow::Result<&Workload> {
        let namespace = Namespace::create(format!("{}-w-{name}", self.name))?;
        let workload = Workload::new(name, namespace, interface, v4, v6, &self.host);
        workload.connect()?;
        self.workloads.push(workload);
        self.workloads.last().context("just pushed")
    }

    /// Makes the pair between the host and the neighbour: anew, where somebody has deleted it.
    ///
    /// # Errors
    /// It is there, or `ip` refuses.
    pub fn uplink(&self) -> anyhow::Result<()> {
        self.host.ip_batch(&format!("link add {UPLINK} type veth peer name eth0 netns {}", self.outside.name()))?;
        // An uplink has been there for long.
        namespace::write(self.host.name(), &format!("/proc/sys/net/ipv6/conf/{UPLINK}/accept_dad"), "0")?;
        namespace::write(self.outside.name(), "/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")?;
        self.host.ip_batch(&format!(
            "addr add {HOST4}/24 dev {UPLINK}\n\
             addr add {HOST6}/64 dev {UPLINK} nodad\n\
             link set {UPLINK} up"
        ))?;
        self.outside.ip_batch(&format!(
            "addr add {OUTSIDE4}/24 dev eth0\n\
             addr add {OUTSIDE6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add 10.65.0.0/16 via {HOST4}\n\
             route add fd00:65::/64 via {HOST6}"
        ))
    }
}

impl Workload {
    /// A workload of `host`, not connected yet.
    #[must_use]
    pub fn new(
        name: &str,
        namespace: Namespace,
        interface: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
        host: &Namespace,
    ) -> Self {
        let (name, interface, host) = (name.to_owned(), interface.to_owned(), host.name().to_owned());
        Self { name, namespace, interface, v4, v6, host }
    }

    /// Makes its veth, as Calico's CNI plugin does.
    ///
    /// # Errors
    /// `ip` refuses, for example because it is there.
    pub fn connect(&self) -> anyhow::Result<()> {
        let (interface, v4, v6) = (&self.interface, self.v4, self.v6);
        namespace::ip_batch(
            &self.host,
            &format!(
                "link add {interface} address {HOST_SIDE_MAC} type veth peer name eth0 netns {}",
                self.namespace.name()
            ),
        )?;
        // Addresses are given out by somebody who knows: both ends use theirs at once.
        namespace::write(&self.host, &format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad"), "0")?;
        namespace::write(self.namespace.name(), "/proc/sys/net/ipv6/conf/eth0/accept_dad", "0")?;
        namespace::ip_batch(&self.host, &format!("link set {interface} up"))?;
        self.namespace.ip_batch(&format!(
            "addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {GATEWAY4} dev eth0 scope link\n\
             route add default via {GATEWAY4} dev eth0\n\
             route add default via {GATEWAY6} dev eth0"
        ))
    }

    /// Deletes its veth.
    ///
    /// # Errors
    /// There is none.
    pub fn disconnect(&self) -> anyhow::Result<()> {
        namespace::ip_batch(&self.host, &format!("link del {}", self.interface))
    }

    /// Both addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Sockets that still live would keep their namespaces, and the veths with them.
        for namespace in [&self.host, &self.outside].into_iter().chain(self.workloads.iter().map(|w| &w.namespace)) {
            namespace.kill_processes();
        }
        for interface in self.workloads.iter().map(|workload| workload.interface.as_str()).chain([UPLINK]) {
            let _gone_already = self.host.ip_batch(&format!("link del {interface}"));
        }
        owner::remove_pins(&self.name);
    }
}
