//! The configuration of FRR, and of FRR's zebra under GoBGP.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, ensure};
use ipnet::IpNet;

use super::{FAMILIES, Family, NodeBgp, SUM, Session};
use crate::resources::model::{BgpNextHop, Community};

/// How many equal ways are used.
const MOST_WAYS: u8 = 64;

/// What FRR shall do on a node: an integrated configuration, as `vtysh` reads it. `hold_time`: how long a peer without a sign
/// of life is believed to be there, in seconds.
///
/// # Errors
/// What the resources ask for, FRR cannot do, or is not made for it here.
pub fn frr(node: &NodeBgp, hold_time: u16) -> anyhow::Result<String> {
    node.needs_no_filters("frr")?;
    let mut text = format!(
        "! FRR on node {}, by `calico-ebpf bgp config`. Made again when nodes, pools, peers or blocks change.\n\
         ! Daemons that are needed: zebra, staticd, bgpd (and mgmtd from FRR 9.1 on).\n",
        node.node
    );
    if let Some(port) = node.port {
        let _infallible = writeln!(text, "! bgpd listens where its command line says: start it with `-p {port}`.");
    }
    text.push_str("frr defaults datacenter\n");
    text.push_str(&blackholes(node));
    for family in FAMILIES {
        route_maps(&mut text, node, family);
    }
    router(&mut text, node, hold_time)?;
    Ok(text)
}

/// What zebra shall do under GoBGP: nothing but the blocks' blackholes is written down, the rest it is told.
#[must_use]
pub fn zebra(node: &NodeBgp) -> String {
    format!(
        "! FRR's zebra and staticd under GoBGP on node {}, by `calico-ebpf bgp config`. Made again when blocks change.\n{}",
        node.node,
        blackholes(node)
    )
}

fn blackholes(node: &NodeBgp) -> String {
    let mut text = String::new();
    if !node.blocks.is_empty() {
        text.push_str("!\n! The blocks of this node: told as a whole, and what nobody has of them goes nowhere.\n");
    }
    for block in &node.blocks {
        let _infallible = writeln!(text, "{} route {block} blackhole", ip(block));
    }
    text
}

/// `ip` or `ipv6`, as commands begin.
const fn ip(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ipv6",
    }
}

fn route_maps(text: &mut String, node: &NodeBgp, family: Family) {
    let Family { number: n, whole, .. } = family;
    let ip = if n == 4 { "ip" } else { "ipv6" };
    let [normal, elevated] = node.priorities_of(family);
    let mut list = |name: &str, nets: &[&IpNet], suffix: &str| {
        for (index, net) in nets.iter().enumerate() {
            let suffix = if suffix == "within" { format!("ge {}", net.prefix_len() + 1) } else { suffix.to_owned() };
            let number = 10 * (index + 1);
            let _infallible = writeln!(text, "{ip} prefix-list calico-{name}-{n} seq {number} permit {net} {suffix}");
        }
    };
    let (told, kept) = (node.pools_of(family, true), node.pools_of(family, false));
    let blocks: Vec<&IpNet> = node.blocks.iter().filter(|block| family.has(block)).collect();
    let all = format!("le {whole}");
    list("told", &told, &all);
    list("kept", &kept, &all);
    list("block", &blocks, "within");
    list("workload", &told, &format!("ge {whole}"));
    for (index, advertisement) in node.advertisements.iter().filter(|one| family.has(&one.cidr)).enumerate() {
        list(&format!("advertised-{index}"), &[&advertisement.cidr], &all);
    }
    let matches = |name: &str| format!(" match {ip} address prefix-list calico-{name}-{n}\n");
    text.push_str(&format!(
        "!\n! Routes of workloads come from the kernel. Their metric goes to others as local preference, {SUM} minus the metric.\n\
         ! That of a workload that is moving ({elevated}) is told even within the own blocks; others there are not told one by one.\n"
    ));
    if !told.is_empty() {
        text.push_str(&format!(
            "route-map calico-learn-{n} permit 10\n{} match metric {elevated}\n set local-preference {}\n",
            matches("workload"),
            SUM - elevated
        ));
        if !blocks.is_empty() {
            text.push_str(&format!("route-map calico-learn-{n} deny 20\n{}", matches("block")));
        }
        text.push_str(&format!(
            "route-map calico-learn-{n} permit 30\n{} set local-preference {}\n",
            matches("workload"),
            SUM - normal
        ));
    }
    text.push_str(&format!(
        "route-map calico-learn-{n} deny 65535\n!\n! What is told, of own routes and of others'.\n"
    ));
    if !kept.is_empty() {
        text.push_str(&format!("route-map calico-export-{n} deny 10\n{}", matches("kept")));
    }
    for (index, advertisement) in node.advertisements.iter().filter(|one| family.has(&one.cidr)).enumerate() {
        let number = 20 + index;
        text.push_str(&format!(
            "route-map calico-export-{n} permit {number}\n{}",
            matches(&format!("advertised-{index}"))
        ));
        for (large, words) in communities(&advertisement.communities) {
            let _infallible = writeln!(text, " set {large}community {words} additive");
        }
        text.push_str(" on-match next\n");
    }
    if !told.is_empty() {
        text.push_str(&format!("route-map calico-export-{n} permit 60000\n{}", matches("told")));
    }
    text.push_str(&format!("route-map calico-export-{n} deny 65535\n!\n"));
}

/// `large-` or nothing, and the communities of that kind.
fn communities(all: &[Community]) -> Vec<(&'static str, String)> {
    let (mut standard, mut large) = (Vec::new(), Vec::new());
    for community in all {
        match community {
            Community::Standard(a, b) => standard.push(format!("{a}:{b}")),
            Community::Large(a, b, c) => large.push(format!("{a}:{b}:{c}")),
        }
    }
    let both = [("", standard), ("large-", large)];
    both.into_iter().filter(|(_, words)| !words.is_empty()).map(|(kind, words)| (kind, words.join(" "))).collect()
}

fn router(text: &mut String, node: &NodeBgp, hold_time: u16) -> anyhow::Result<()> {
    text.push_str(&format!(
        "router bgp {}\n bgp router-id {}\n no bgp default ipv4-unicast\n no bgp ebgp-requires-policy\n \
         no bgp network import-check\n bgp bestpath as-path multipath-relax\n \
         ! Peers keep our routes while bgpd starts anew, and we theirs.\n \
         bgp graceful-restart\n bgp graceful-restart preserve-fw-state\n",
        node.as_number, node.router_id
    ));
    if let Some(restart_time) = node.sessions.iter().map(|session| session.restart_time).max() {
        let _infallible = writeln!(text, " bgp graceful-restart restart-time {restart_time}");
    }
    if let Some(cluster) = node.cluster {
        let _infallible = writeln!(text, " bgp cluster-id {cluster}");
    }
    for session in &node.sessions {
        neighbor(text, node, session, hold_time).with_context(|| session.name.clone())?;
    }
    for family in FAMILIES {
        let n = family.number;
        let _infallible = writeln!(text, " address-family ipv{n} unicast");
        for block in node.blocks.iter().filter(|block| family.has(block)) {
            let _infallible = writeln!(text, "  network {block}");
        }
        let _infallible = writeln!(
            text,
            "  redistribute kernel route-map calico-learn-{n}\n  maximum-paths {MOST_WAYS}\n  maximum-paths ibgp {MOST_WAYS}"
        );
        for session in node.sessions.iter().filter(|session| session.address.is_ipv4() == (n == 4)) {
            activated(text, session, n);
        }
        text.push_str(" exit-address-family\n");
    }
    text.push_str("exit\n");
    Ok(())
}

fn neighbor(text: &mut String, node: &NodeBgp, session: &Session, hold_time: u16) -> anyhow::Result<()> {
    let Session { address, as_number, .. } = session;
    let keepalive = (hold_time / 3).max(1);
    let mut say = |words: String| {
        let _infallible = writeln!(text, " neighbor {address} {words}");
    };
    say(format!("remote-as {as_number}"));
    say(format!("description {}", session.name));
    if let Some(source) = session.source {
        ensure!(
            !matches!(source, IpAddr::V4(_)) || address.is_ipv4(),
            "its address and the node's are of two families"
        );
        say(format!("update-source {source}"));
    }
    if let Some(port) = session.port {
        say(format!("port {port}"));
    }
    say(format!("timers {keepalive} {hold_time}"));
    say("timers connect 2".to_owned());
    say("advertisement-interval 0".to_owned());
    match session.ttl_security {
        Some(hops) => say(format!("ttl-security hops {hops}")),
        None if *as_number != node.as_number => say("ebgp-multihop 255".to_owned()),
        None => {}
    }
    // Not `passive`, whichever end would be to wait: one that has kept the routes of a peer through its restart (FRR 8.4 and
    // 10.3) would wait too. Two connections at once are settled by the protocol.
    Ok(())
}

fn activated(text: &mut String, session: &Session, family: u8) {
    let address = session.address;
    let mut say = |words: String| {
        let _infallible = writeln!(text, "  neighbor {address} {words}");
    };
    say("activate".to_owned());
    say(format!("route-map calico-export-{family} out"));
    if session.client {
        say("route-reflector-client".to_owned());
    }
    match session.next_hop {
        BgpNextHop::Auto => {}
        BgpNextHop::Own => say("next-hop-self force".to_owned()),
        BgpNextHop::Keep => say("attribute-unchanged next-hop".to_owned()),
    }
    if session.allowed_local_as > 0 {
        say(format!("allowas-in {}", session.allowed_local_as));
    }
}
