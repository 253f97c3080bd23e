//! The host's own translation of destinations: published ports of containers, node ports, addresses of services.
//!
//! Policy of host endpoints is about what becomes of a packet behind it, which the programs at the interfaces cannot know. Where
//! anybody on this host translates, they leave what they would deny to the stack, marked by its priority and as a frame for
//! another host, which the stack drops. Two tables of ours see to the rest, made and removed together: one takes such frames in,
//! the other drops behind the translation what was not translated. Without them it stays denied.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs, io,
};

use calico_ebpf_common::abi::{MARK_ASKED, MARK_REPLY, MARK_SETTLED, PRIORITY_DENIED, PRIORITY_REJECTED};

use super::{error::Result, nft};

/// Name of the default instance's tables.
pub(crate) const TABLE: &str = "calico_host";
/// What they are for.
const PURPOSE: &str = "policy of host endpoints behind the translation of destinations";
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
    /// Those of host endpoints whose packets may be left to the stack.
    pub(crate) hosts: BTreeMap<u32, &'a str>,
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
    /// Interfaces that are none of host endpoints, where programs have to judge what was translated and leaves.
    pub(crate) ways_out: BTreeSet<u32>,
}

/// Sees to the tables.
#[derive(Debug)]
pub(crate) struct Translation {
    tables: nft::Table,
    /// The kernel's number for all tables when it was last looked whether anybody translates, and what was seen.
    seen: Option<(u32, bool)>,
    /// Whether anybody translated when the tables were last seen to; nothing where no host endpoint asks for them.
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

    /// Whether the tables have to be there, where there are host endpoints or none.
    pub(crate) fn is_wanted(&mut self, has_host_endpoints: bool) -> Result<bool> {
        if !has_host_endpoints {
            self.went_by = None;
            return Ok(false);
        }
        let wanted = self.is_translating();
        self.went_by = Some(*wanted.as_ref().unwrap_or(&false));
        wanted
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

/// The tables for these interfaces of host endpoints. `programmed`: the interfaces where programs of ours judge what leaves;
/// `judging`: those of host endpoints where something judges what is forwarded.
///
/// Between the interface and the end of the translation a frame is one for all hosts: without the second table sockets of TCP do not
/// take it, and nothing is forwarded. Of old versions of nft the words are: one chain for each device, `icmpx type`.
fn ruleset(table: &str, wanted: &Interfaces<'_>) -> String {
    let left = format!("meta priority {{ {PRIORITY_DENIED:#x}, {PRIORITY_REJECTED:#x} }}");
    let mut ingress = String::new();
    for (index, name) in &wanted.hosts {
        // By index, too: an interface that is made anew has lost its chain.
        let _ = writeln!(
            ingress,
            "  chain ingress{index} {{
    type filter hook ingress device \"{name}\" priority 0; policy accept;
    {left} meta pkttype set broadcast
  }}"
        );
    }
    let take_in = "meta pkttype set host meta priority set 0";
    let of = |indices: &BTreeSet<u32>| indices.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let unjudged = if wanted.judging.is_empty() {
        String::new()
    } else {
        format!(
            "    iif {{ {} }} oif != {{ {} }} ct direction original ct status dnat meta mark & {MARK_SETTLED:#010x} == 0 \
             counter drop comment \"nobody would ask policy of what is forwarded\"\n",
            of(&wanted.judging),
            of(&wanted.programmed)
        )
    };
    let behind = format!(
        "  chain behind_dnat {{
    type filter hook prerouting priority {PRIORITY}; policy accept;
    ct direction original ct status dnat meta mark set meta mark & {:#010x} comment \"not asked about this destination yet\"
    ct direction reply ct status dnat meta mark set meta mark | {MARK_REPLY:#010x}
    {left} ct direction original ct status dnat fib daddr type != local {take_in} counter accept
    meta priority {PRIORITY_REJECTED:#x} meta l4proto tcp {take_in} counter reject with tcp reset
    meta priority {PRIORITY_REJECTED:#x} {take_in} counter reject with icmpx type admin-prohibited
    meta priority {PRIORITY_DENIED:#x} counter drop
  }}
  chain not_taken_in {{
    type filter hook input priority {FIRST}; policy accept;
    {left} counter drop comment \"a bridge has passed by the chain above\"
  }}
  chain unjudged {{
    type filter hook forward priority {FIRST}; policy accept;
{unjudged}  }}
",
        !MARK_ASKED
    );
    format!("{}{}", nft::whole(FAMILIES[0], table, &ingress), nft::whole(FAMILIES[1], table, &behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_makes_both_tables() {
        let wanted = Interfaces {
            hosts: BTreeMap::from([(3, "eth0"), (4, "eth1")]),
            judging: BTreeSet::from([3]),
            programmed: BTreeSet::from([3, 4, 9]),
        };
        let text = ruleset("t", &wanted);
        for (index, name) in &wanted.hosts {
            assert!(text.contains(&format!("chain ingress{index} {{")), "{text}");
            assert!(text.contains(&format!("device \"{name}\"")), "{text}");
        }
        for family in FAMILIES {
            assert!(text.contains(&format!("table {family} t {{}}\ndelete table {family} t\n")), "{text}");
        }
        assert!(text.contains("meta mark & 0xffdfffff "), "{text}");
        assert!(text.contains("iif { 3 } oif != { 3, 4, 9 } "), "{text}");
        let text = ruleset("t", &Interfaces { judging: BTreeSet::new(), ..wanted });
        assert!(!text.contains("oif"), "{text}");
    }
}
