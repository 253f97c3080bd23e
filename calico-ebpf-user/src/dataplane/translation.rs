//! The host's own translation of destinations: published ports of containers, node ports, addresses of services.
//!
//! Policy is about what becomes of a packet behind it, which the programs at the interfaces of workloads and host endpoints cannot know.
//! Where anybody on this host translates, they leave what they would deny to the stack, marked by its priority and as a frame for
//! another host, which the stack drops. Two tables of ours see to the rest, made and removed together: one takes such frames in,
//! the other drops behind the translation what was not translated. Without them it stays denied.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::IpAddr,
};

use ipnet::IpNet;

use calico_ebpf_common::abi::{
    MARK_ASKED, MARK_BACK, MARK_LEFT, MARK_REPLY, MARK_SETTLED, MARK_TRANSLATED, PRIORITY_DENIED, PRIORITY_REJECTED,
};

use super::{error::Result, nft};

/// Name of the default instance's tables.
pub(crate) const TABLE: &str = "calico_host";
/// What they are for.
const PURPOSE: &str = "policy behind the translation of destinations";
/// Their families.
pub(crate) const FAMILIES: &[&str] = &["netdev", "inet"];

/// Just behind `dstnat`, where destinations are translated.
const PRIORITY: i32 = -99;
/// Before what others decide.
const FIRST: i32 = -310;

/// The tables of `iptables-legacy`, each a line, that were used since the start.
const LEGACY_TABLES: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// The interfaces that matter, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interfaces<'a> {
    /// Those of workloads and host endpoints whose packets may be left to the stack.
    pub(crate) arrivals: BTreeMap<u32, &'a str>,
    /// Those of them that are of workloads.
    pub(crate) workloads: BTreeSet<u32>,
    /// The workloads' addresses.
    pub(crate) addresses: BTreeSet<IpAddr>,
    /// Whether workloads may reach their host.
    pub(crate) host_welcomes: bool,
    /// Networks that are the host's as a whole, whose addresses the programs do not know.
    pub(crate) host_networks: Vec<IpNet>,
    /// Those of host endpoints where something judges what is forwarded.
    pub(crate) judging: BTreeSet<u32>,
    /// Where programs of ours judge what leaves.
    pub(crate) programmed: BTreeSet<u32>,
}

/// Where it is seen to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Translated {
    /// The interfaces where what policy denies is left to the stack.
    pub(crate) arrivals: BTreeSet<u32>,
    /// Interfaces that are none of workloads or host endpoints, where programs have to judge what was translated and leaves.
    pub(crate) ways_out: BTreeSet<u32>,
}

/// Sees to the tables.
#[derive(Debug)]
pub(crate) struct Translation {
    tables: nft::Table,
    /// The kernel's number for all tables when it was last looked whether anybody translates, and what was seen.
    seen: Option<(u32, bool)>,
    /// Whether anybody translated when the tables were last seen to; nothing where no interface asks for them.
    went_by: Option<bool>,
    /// What was seen to when they were.
    pub(crate) seen_to: Translated,
}

impl Translation {
    /// Nothing is looked at or changed yet.
    pub(crate) fn new(table: String) -> Self {
        Self {
            tables: nft::Table::new(FAMILIES, table, PURPOSE),
            seen: None,
            went_by: None,
            seen_to: Translated::default(),
        }
    }

    pub(crate) fn table(&self) -> &str {
        self.tables.name()
    }

    /// Whether the tables have to be there for these interfaces.
    pub(crate) fn is_wanted(&mut self, interfaces: &Interfaces<'_>) -> Result<bool> {
        if interfaces.arrivals.is_empty() {
            self.went_by = None;
            return Ok(false);
        }
        let translating = self.is_translating();
        self.went_by = Some(*translating.as_ref().unwrap_or(&false));
        Ok(translating? || !interfaces.host_welcomes && !interfaces.host_networks.is_empty())
    }

    /// Puts the tables in place. False if they were so already.
    pub(crate) fn keep(&mut self, wanted: &Interfaces<'_>) -> Result<bool> {
        let ruleset = ruleset(self.tables.name(), wanted);
        self.tables.keep(&ruleset)
    }

    /// Removes them; false if they were not there.
    pub(crate) fn remove(&mut self) -> Result<bool> {
        self.tables.remove()
    }

    /// Whether nobody else has changed or deleted the tables. Cheap as long as nobody touches any.
    pub(crate) fn is_intact(&mut self) -> bool {
        self.tables.is_intact()
    }

    /// Whether somebody has begun to translate destinations, or nobody does any more. As cheap.
    pub(crate) fn is_news(&mut self) -> bool {
        self.went_by.is_some_and(|before| self.is_translating().is_ok_and(|now| now != before))
    }

    fn is_translating(&mut self) -> Result<bool> {
        let generation = nft::generation().ok();
        let known = self.seen.filter(|(at, _)| Some(*at) == generation).map(|(_, translating)| translating);
        let translating = match known {
            Some(known) => known,
            None if generation == Some(nft::UNTOUCHED) => false,
            None => nft::chains(PURPOSE)?.lines().any(|line| line.trim().starts_with("type nat hook prerouting")),
        };
        self.seen = generation.map(|generation| (generation, translating));
        Ok(translating || is_translating_by_legacy_tables())
    }
}

fn is_translating_by_legacy_tables() -> bool {
    let has_nat = |path| -> io::Result<bool> { Ok(fs::read_to_string(path)?.lines().any(|table| table == "nat")) };
    // Without the file there are no such tables.
    LEGACY_TABLES.into_iter().any(|path| has_nat(path).unwrap_or(false))
}

/// The tables for these interfaces.
///
/// Between the interface and the end of the translation a frame is one for all hosts: without the second table sockets of TCP do not
/// take it, and nothing is forwarded. Of old versions of nft the words are: one chain for each device, `icmpx type`.
fn ruleset(table: &str, wanted: &Interfaces<'_>) -> String {
    let left = left();
    let ingress: String = wanted
        .arrivals
        .iter()
        .map(|(index, name)| {
            // By index, too: an interface that is made anew has lost its chain.
            format!(
                "  chain ingress{index} {{
    type filter hook ingress device \"{name}\" priority 0; policy accept;
    {left} meta pkttype set broadcast
  }}
"
            )
        })
        .collect();
    let behind = format!(
        "  chain behind_dnat {{
    type filter hook prerouting priority {PRIORITY}; policy accept;
{}  }}
  chain to_host {{
    type filter hook input priority {FIRST}; policy accept;
{}  }}
  chain unjudged {{
    type filter hook forward priority {FIRST}; policy accept;
{}  }}
",
        behind_dnat(wanted),
        to_host(wanted),
        unjudged(wanted)
    );
    format!("{}{}", nft::whole(FAMILIES[0], table, &ingress), nft::whole(FAMILIES[1], table, &behind))
}

/// What was left to the stack, by its priority.
fn left() -> String {
    format!("meta priority {{ {PRIORITY_DENIED:#x}, {PRIORITY_REJECTED:#x} }}")
}

/// What somebody opens whose destination was translated.
const TRANSLATED: &str = "ct direction original ct status dnat";
/// What comes back to it.
const ANSWERS: &str = "ct direction reply ct status dnat";

/// Marks of what others translate for others are none of ours.
fn behind_dnat(wanted: &Interfaces<'_>) -> String {
    let left = left();
    let take_in = "meta pkttype set host meta priority set 0";
    let own = set(&wanted.arrivals.keys().copied().collect());
    let of_workloads = |family: &str, addresses: Vec<String>| {
        if addresses.is_empty() {
            return String::new();
        }
        let addresses = addresses.join(", ");
        format!(
            "    ct original {family} saddr {{ {addresses} }} {ANSWERS} meta mark set meta mark | {MARK_REPLY:#010x}\n"
        )
    };
    let answers = if wanted.arrivals.keys().any(|index| !wanted.workloads.contains(index)) {
        format!("    {ANSWERS} meta mark set meta mark | {MARK_REPLY:#010x}\n")
    } else {
        let of = |v4: bool| wanted.addresses.iter().filter(|a| a.is_ipv4() == v4).map(ToString::to_string).collect();
        of_workloads("ip", of(true)) + &of_workloads("ip6", of(false))
    };
    format!(
        "    iif {own} {TRANSLATED} meta mark set meta mark & {:#010x} | {MARK_TRANSLATED:#010x} comment \"not asked about this destination yet\"
{answers}    {left} {TRANSLATED} fib daddr type != local {take_in} meta mark set meta mark | {MARK_LEFT:#010x} counter accept
    meta priority {PRIORITY_REJECTED:#x} meta l4proto tcp {take_in} counter reject with tcp reset
    meta priority {PRIORITY_REJECTED:#x} {take_in} counter reject with icmpx type admin-prohibited
    meta priority {PRIORITY_DENIED:#x} counter drop
",
        !(MARK_ASKED | MARK_REPLY)
    )
}

fn to_host(wanted: &Interfaces<'_>) -> String {
    let mut rules = format!("    {} counter drop comment \"a bridge has passed by the chain above\"\n", left());
    if wanted.workloads.is_empty() {
        return rules;
    }
    let workloads = set(&wanted.workloads);
    rules += &format!(
        "    meta mark & {MARK_BACK:#010x} != 0 counter drop comment \"an answer whose connection is forgotten\"\n"
    );
    if !wanted.host_welcomes {
        let mut drop = |what: &str| {
            rules += &format!("    iif {workloads} {what} counter drop comment \"defaultEndpointToHostAction\"\n");
        };
        drop(TRANSLATED);
        for network in &wanted.host_networks {
            let family = if network.addr().is_ipv4() { "ip" } else { "ip6" };
            drop(&format!("{family} daddr {network} ct direction original"));
        }
    }
    rules
}

fn unjudged(wanted: &Interfaces<'_>) -> String {
    let programmed = set(&wanted.programmed);
    let mut rules = String::new();
    let mut rule = |from: &BTreeSet<u32>, mark: String| {
        if !from.is_empty() {
            let from = set(from);
            rules += &format!(
                "    iif {from} oif != {programmed} {TRANSLATED} meta mark & {mark} counter drop comment \"nobody would ask policy of what is \
                 forwarded\"\n"
            );
        }
    };
    rule(&wanted.judging, format!("{MARK_SETTLED:#010x} == 0"));
    rule(&wanted.workloads, format!("{MARK_LEFT:#010x} != 0"));
    rules
}

fn set(indices: &BTreeSet<u32>) -> String {
    format!("{{ {} }}", indices.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_makes_both_tables() {
        let wanted = Interfaces {
            arrivals: BTreeMap::from([(3, "eth0"), (4, "eth1"), (5, "cali1")]),
            workloads: BTreeSet::from([5]),
            addresses: BTreeSet::from(["10.65.0.1".parse().expect("an address")]),
            host_welcomes: false,
            host_networks: vec!["192.0.2.0/25".parse().expect("a network")],
            judging: BTreeSet::from([3]),
            programmed: BTreeSet::from([3, 4, 9]),
        };
        let text = ruleset("t", &wanted);
        for (index, name) in &wanted.arrivals {
            assert!(text.contains(&format!("chain ingress{index} {{")), "{text}");
            assert!(text.contains(&format!("device \"{name}\"")), "{text}");
        }
        for family in FAMILIES {
            assert!(text.contains(&format!("table {family} t {{}}\ndelete table {family} t\n")), "{text}");
        }
        assert!(text.contains("iif { 3, 4, 5 } ct direction original ct status dnat meta mark set meta mark & 0xff5fffff | 0x01000000 "), "{text}");
        assert!(text.contains("iif { 3 } oif != { 3, 4, 9 } "), "{text}");
        assert!(text.contains("iif { 5 } oif != { 3, 4, 9 } "), "{text}");
        assert!(text.contains("iif { 5 } ct direction original ct status dnat counter drop"), "{text}");
        assert!(text.contains("iif { 5 } ip daddr 192.0.2.0/25 ct direction original counter drop"), "{text}");
        assert!(!text.contains("ct original"), "{text}");
        let only = Interfaces { arrivals: BTreeMap::from([(5, "cali1")]), ..wanted.clone() };
        let text = ruleset("t", &only);
        assert!(text.contains("ct original ip saddr { 10.65.0.1 } ct direction reply ct status dnat"), "{text}");
        let nobody = Interfaces { judging: BTreeSet::new(), workloads: BTreeSet::new(), ..wanted };
        let text = ruleset("t", &nobody);
        assert!(!text.contains("oif") && !text.contains("defaultEndpointToHostAction"), "{text}");
    }
}
