//! Moving a workload from one host to another, as a hypervisor does it: while it runs, with its addresses.

use anyhow::{Context as _, ensure};

use super::{plan::Role, view::View};
use crate::lab::{GATEWAY4, GATEWAY6, HOST_SIDE_MAC, Namespace};

const DEVICES: [&str; 2] = ["eth0", "eth1"];

/// A workload's second interface, on the host that it goes to.
#[derive(Debug)]
pub struct Landing {
    /// In the workload.
    pub device: &'static str,
    /// In the workload: the interface that it leaves.
    pub leaves: &'static str,
    workload: Namespace,
    families: Vec<Family>,
}

#[derive(Debug)]
struct Family {
    ip: &'static str,
    address: String,
    gateway: String,
}

impl Landing {
    /// Makes the interface on `host`. The workload has no address there, and so says nothing.
    ///
    /// # Errors
    /// There is no such workload or host, or the host has an interface of that name.
    pub fn prepare(view: &View, workload: &str, host: &str) -> anyhow::Result<Self> {
        let planned = view.plan.workloads.iter().find(|one| one.name == workload).context("no such workload")?;
        ensure!(view.speaker(host).is_ok_and(|one| one.role == Role::Host), "no such host: {host}");
        let (inside, outside) = (view.namespace(workload)?, view.namespace(host)?);
        let way = inside.ip("route show default")?;
        let [first, second] = DEVICES;
        let (leaves, device) = if way.contains(first) { (first, second) } else { (second, first) };
        let interface = &planned.interface;
        outside.ip_batch(&format!(
            "link add {interface} address {HOST_SIDE_MAC} type veth peer name {device} netns {}",
            inside.name()
        ))?;
        outside.sysctl(&format!("net/ipv6/conf/{interface}/accept_dad"), "0")?;
        inside.sysctl(&format!("net/ipv6/conf/{device}/accept_dad"), "0")?;
        // Each interface answers for its own addresses only: it stands for a machine of its own.
        inside.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        outside.ip_batch(&format!("link set {interface} up"))?;
        inside.ip_batch(&format!("link set {device} up"))?;
        let families = view.addresses(workload)?.into_iter().map(|address| match address {
            std::net::IpAddr::V4(v4) => Family { ip: "-4", address: format!("{v4}/32"), gateway: GATEWAY4.to_string() },
            std::net::IpAddr::V6(v6) => {
                Family { ip: "-6", address: format!("{v6}/128"), gateway: GATEWAY6.to_string() }
            }
        });
        Ok(Self { device, leaves, workload: inside, families: families.collect() })
    }

    /// Puts the workload there: from now on it is on the other host. It does not announce itself.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn cut_over(&self) -> anyhow::Result<()> {
        self.switch(self.leaves, self.device)
    }

    /// Puts it back where it was.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn go_back(&self) -> anyhow::Result<()> {
        self.switch(self.device, self.leaves)
    }

    /// It keeps what it knows of its neighbours, as a guest does that is moved with its memory.
    fn switch(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let mut lines = format!("link set {to} up\n");
        for Family { ip, address, gateway } in &self.families {
            if *ip == "-4" {
                lines.push_str(&format!("addr add {address} dev {to}\n"));
                lines.push_str(&format!("route replace {gateway} dev {to} scope link\n"));
                lines.push_str(&format!("neigh replace {gateway} lladdr {HOST_SIDE_MAC} dev {to} nud stale\n"));
                lines.push_str(&format!("route replace default via {gateway} dev {to}\n"));
            } else {
                lines.push_str(&format!("addr add {address} dev {to} nodad\n"));
                lines.push_str(&format!("neigh replace {gateway} lladdr {HOST_SIDE_MAC} dev {to} nud stale\n"));
                lines.push_str(&format!("route replace default via {gateway} dev {to} metric 1\n"));
            }
        }
        for Family { address, .. } in &self.families {
            lines.push_str(&format!("addr del {address} dev {from}\n"));
        }
        // Nothing is received there any more, as by a guest that has left; with an address anywhere it would be.
        lines.push_str(&format!("link set {from} down\n"));
        self.workload.ip_batch(&lines)
    }

    /// Removes the interface on the host that it left.
    ///
    /// # Errors
    /// `ip` fails.
    pub fn clear(&self) -> anyhow::Result<()> {
        self.workload.ip_batch(&format!("link del {}", self.leaves))
    }
}

/// Moves a workload: makes its interface on `host`, says in the resources that it is there, and puts it there.
///
/// # Errors
/// There is no such workload or host, or it is there already.
pub fn migrate(view: &View, workload: &str, host: &str) -> anyhow::Result<()> {
    let file = view.config().join("workloads.yaml");
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let moved = with_node(&text, workload, host).with_context(|| format!("{}: no {workload}", file.display()))?;
    anyhow::ensure!(moved != text, "{workload} is on {host}");
    let landing = Landing::prepare(view, workload, host)?;
    let temporary = view.config().join(".workloads.yaml.new");
    std::fs::write(&temporary, moved)?;
    std::fs::rename(&temporary, &file)?;
    landing.cut_over()?;
    landing.clear()
}

/// The resources with another `spec.node` for the workload whose pod has this name.
fn with_node(text: &str, pod: &str, node: &str) -> Option<String> {
    let documents: Vec<&str> = text.split("---\n").collect();
    let of_pod = |document: &&str| document.lines().any(|line| line.trim() == format!("pod: {pod}"));
    documents.iter().find(|document| of_pod(document))?;
    let changed = documents.iter().map(|document| {
        if !of_pod(document) {
            return (*document).to_owned();
        }
        let lines = document.lines().map(|line| match line.strip_prefix("  node: ") {
            Some(_) => format!("  node: {node}\n"),
            None => format!("{line}\n"),
        });
        lines.collect()
    });
    Some(changed.collect::<Vec<String>>().join("---\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_workload_gets_another_node() {
        let text = "kind: Namespace\n---\nspec:\n  node: host1\n  pod: w1\n---\nspec:\n  node: host1\n  pod: w11\n";
        let expected = "kind: Namespace\n---\nspec:\n  node: host3\n  pod: w1\n---\nspec:\n  node: host1\n  pod: w11\n";
        assert_eq!(with_node(text, "w1", "host3").as_deref(), Some(expected));
        assert_eq!(with_node(text, "w2", "host3"), None);
    }
}
