//! The host's own translation of destinations: published ports of containers, node ports, addresses of services.
//!
//! Policy of host endpoints is about what becomes of a packet behind it, which the programs at the interfaces cannot know. Where
//! anybody on this host translates, they leave what they would deny to the stack, marked by its priority and as a frame for
//! another host, which the stack drops. Two tables of ours see to the rest, made and removed together: one takes such frames in,
//! the other drops behind the translation what was not translated. Without them it stays denied.

use std::{collections::BTreeMap, fs, io};

use calico_ebpf_common::abi::{MARK_ASKED, PRIORITY_DENIED, PRIORITY_REJECTED};

use super::{error::Result, nft};

/// Name of the default instance's tables.
pub(crate) const TABLE: &str = "calico_host";
/// What they are for.
const PURPOSE: &str = "policy of host endpoints behind the translation of destinations";
/// Their families.
pub(crate) const FAMILIES: &[&str] = &["netdev", "inet"];

/// Just behind `dstnat`, where destinations are translated.
const PRIORITY: i32 = -99;

/// The tables of `iptables-legacy`, each a line, that were used since the start.
const LEGACY_TABLES: [&str; 2] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"];

/// Sees to the tables.
#[derive(Debug)]
pub(crate) struct Translation {
    tables: nft::Table,
    /// The kernel's number for all tables when it was last looked whether anybody translates, and what was seen.
    seen: Option<(u32, bool)>,
    /// Whether anybody translated when the tables were last seen to; nothing where no host endpoint asks for them.
    went_by: Option<bool>,
}

impl Translation {
    /// Nothing is looked at or changed yet.
    pub(crate) fn new(table: String) -> Self {
        Self { tables: nft::Table::new(FAMILIES, table, PURPOSE), seen: None, went_by: None }
    }

    pub(crate) fn table(&self) -> &str {
        self.tables.name()
    }

    /// Whether the tables have to be there for these interfaces, those of host endpoints.
    pub(crate) fn is_wanted(&mut self, interfaces: &BTreeMap<u32, &str>) -> Result<bool> {
        if interfaces.is_empty() {
            self.went_by = None;
            return Ok(false);
        }
        let wanted = self.is_translating();
        self.went_by = Some(*wanted.as_ref().unwrap_or(&false));
        wanted
    }

    /// Puts the tables in place. False if they were so already.
    pub(crate) fn keep(&mut self, interfaces: &BTreeMap<u32, &str>) -> Result<bool> {
        let ruleset = ruleset(self.tables.name(), interfaces.values());
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

/// The tables.
///
/// Between the interface and the end of the translation a frame is one for all hosts: without the second table sockets of TCP do not
/// take it, and nothing is forwarded.
fn ruleset<'a>(table: &str, interfaces: impl Iterator<Item = &'a &'a str>) -> String {
    let devices: Vec<String> = interfaces.map(|name| format!("\"{name}\"")).collect();
    let devices = devices.join(", ");
    let left = format!("meta priority {{ {PRIORITY_DENIED:#x}, {PRIORITY_REJECTED:#x} }}");
    let ingress = format!(
        "  chain ingress {{
    type filter hook ingress devices = {{ {devices} }} priority filter; policy accept;
    {left} meta pkttype set broadcast
  }}
"
    );
    let forwarded = "ct direction original ct status dnat fib daddr type != local";
    let take_in = "meta pkttype set host meta priority set 0";
    let behind = format!(
        "  chain behind_dnat {{
    type filter hook prerouting priority {PRIORITY}; policy accept;
    ct direction original ct status dnat meta mark set meta mark & {:#010x} comment \"not asked about this destination yet\"
    {left} {forwarded} {take_in} counter accept comment \"policy of what is forwarded decides\"
    meta priority {PRIORITY_REJECTED:#x} meta l4proto tcp {take_in} counter reject with tcp reset
    meta priority {PRIORITY_REJECTED:#x} {take_in} counter reject with icmpx admin-prohibited
    meta priority {PRIORITY_DENIED:#x} counter drop
  }}
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
        let text = ruleset("t", [&"eth0", &"eth1"].into_iter());
        assert!(text.contains("devices = { \"eth0\", \"eth1\" }"), "{text}");
        for family in FAMILIES {
            assert!(text.contains(&format!("table {family} t {{}}\ndelete table {family} t\n")), "{text}");
        }
        assert!(text.contains("meta mark & 0xffdfffff "), "{text}");
    }
}
