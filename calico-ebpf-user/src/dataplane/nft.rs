//! nftables: tables of ours. Each is one text, put in place in one transaction, and kept as that text says.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{
    error::{DataplaneError, Result},
    instance::Instance,
};

// include/uapi/linux/netfilter/nfnetlink.h and nf_tables.h.
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;
const NLM_F_REQUEST: u16 = 1;

/// The family of tables for both IP versions.
pub(crate) const INET: &[&str] = &["inet"];

/// Name of an instance's table; `base` is the default instance's.
pub(crate) fn table_name(base: &str, instance: &Instance) -> String {
    if *instance == Instance::default() {
        return base.to_owned();
    }
    let name: String = instance.name().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("{base}_{name}")
}

/// The text that makes a table of these lines, whatever it was before: in one transaction, so that no packet finds it
/// missing or half.
pub(crate) fn whole(family: &str, table: &str, lines: &str) -> String {
    let table = format!("table {family} {table}");
    format!("{table} {{}}\ndelete {table}\n{table} {{\n{lines}}}\n")
}

/// Whether an interface's name, or the beginning of one, holds no character that could end the string in a rule set. Names
/// that hold others are not Calico's.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// How often a table is put in place before somebody else is blamed for what becomes of it.
const PUTS: u32 = 5;

/// A table that is kept, or several of one name in different families.
#[derive(Debug)]
pub(crate) struct Table {
    families: &'static [&'static str],
    name: String,
    /// What it is for: who is told that the nft command is missing learns why it is needed.
    purpose: &'static str,
    kept: Option<Kept>,
}

/// What was put in place.
#[derive(Debug)]
struct Kept {
    ruleset: String,
    /// As nft showed it right after.
    listing: String,
    /// The kernel's number for all tables together, when the table was last seen to be so.
    generation: Option<u32>,
}

impl Table {
    /// Nothing is looked at or changed yet.
    pub(crate) fn new(families: &'static [&'static str], name: String, purpose: &'static str) -> Self {
        Self { families, name, purpose, kept: None }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the table as `ruleset` (of [`whole`]) says. False if it was so already.
    pub(crate) fn keep(&mut self, ruleset: &str) -> Result<bool> {
        if self.kept.as_ref().is_some_and(|kept| kept.ruleset == ruleset) && self.is_intact() {
            return Ok(false);
        }
        self.kept = None;
        self.kept = Some(self.put(ruleset)?);
        Ok(true)
    }

    /// Puts it in place and learns how nft shows it. Somebody may change it in between: what is shown counts where nobody has
    /// changed any table meanwhile, or where it is shown so twice, since there are hosts whose tables change all the time.
    fn put(&self, ruleset: &str) -> Result<Kept> {
        let mut before = None;
        let mut failed = None;
        for _ in 0..PUTS {
            let last = generation().ok();
            nft(self.purpose, &["-f", "-"], ruleset)?;
            let listing = self.list();
            let generation = generation().ok().filter(|now| last.is_some_and(|last| *now == last.wrapping_add(1)));
            match listing {
                Ok(listing) if generation.is_some() || before.as_ref() == Some(&listing) => {
                    return Ok(Kept { ruleset: ruleset.to_owned(), listing, generation });
                }
                Ok(listing) => before = Some(listing),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| DataplaneError::Load {
            what: self.purpose.to_owned(),
            message: "somebody else changes the table as soon as it is there".to_owned(),
        }))
    }

    /// Whether nobody else has changed or deleted what was put in place. Cheap as long as nobody touches any table.
    pub(crate) fn is_intact(&mut self) -> bool {
        let Some(kept) = &self.kept else { return true };
        let generation = generation().ok();
        if generation.is_some() && generation == kept.generation {
            return true;
        }
        let intact = self.list().is_ok_and(|listing| listing == kept.listing);
        if let Some(kept) = self.kept.as_mut().filter(|_| intact) {
            kept.generation = generation;
        }
        intact
    }

    /// Removes it; false if it was not there.
    pub(crate) fn remove(&mut self) -> Result<bool> {
        self.kept = None;
        remove(self.families, &self.name)
    }

    /// The tables without what changes by itself, their counters.
    fn list(&self) -> Result<String> {
        let list = |family: &&str| nft(self.purpose, &["-s", "list", "table", family, &self.name], "");
        self.families.iter().map(list).collect()
    }
}

/// Removes a table of these families; false if there was none.
pub(crate) fn remove(families: &[&str], table: &str) -> Result<bool> {
    let mut there = Vec::new();
    for family in families {
        if exists(family, table)? {
            there.push(format!("delete table {family} {table}\n"));
        }
    }
    if there.is_empty() {
        return Ok(false);
    }
    nft(&format!("removing table {table}"), &["-f", "-"], &there.concat()).map(|_| true)
}

/// Whether a table is there.
pub(crate) fn exists(family: &str, table: &str) -> Result<bool> {
    let tables = nft(&format!("looking for table {family} {table}"), &["list", "tables", family], "")?;
    Ok(tables.lines().any(|line| line.trim() == format!("table {family} {table}")))
}

/// All chains of all tables, without their rules, as nft lists them.
pub(crate) fn chains(purpose: &str) -> Result<String> {
    nft(purpose, &["list", "chains"], "")
}

fn nft(purpose: &str, arguments: &[&str], input: &str) -> Result<String> {
    let what = || format!("nft {}", arguments.join(" "));
    let spawned =
        Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DataplaneError::Load {
                what: purpose.to_owned(),
                message: "the nft command is missing; install the package nftables".to_owned(),
            });
        }
        spawned => spawned.map_err(DataplaneError::io(what()))?,
    };
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).map_err(DataplaneError::io(what()))?;
    }
    let output = child.wait_with_output().map_err(DataplaneError::io(what()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("failed").to_owned();
        return Err(DataplaneError::Load { what: format!("{purpose}: {}", what()), message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// That number as long as nobody has made any table.
pub(crate) const UNTOUCHED: u32 = 1;

/// The number that the kernel raises with every change of any table of this network namespace.
pub(crate) fn generation() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // struct nlmsghdr, and struct nfgenmsg, which is all zeroes.
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 12]);
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    generation_in(&answer).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// The number in the kernel's answer.
fn generation_in(answer: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    if kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN {
        return None;
    }
    let mut attributes = answer.get(20..)?;
    while let Some((header, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        if u16::from_ne_bytes([header[2], header[3]]) == NFTA_GEN_ID {
            return Some(u32::from_be_bytes(*attributes.get(4..)?.first_chunk()?));
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generation_is_found_among_attributes() {
        let answer = |kind: u16, attributes: &[u8]| {
            let mut bytes = vec![0; 20];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes.extend(attributes);
            generation_in(&bytes)
        };
        let new = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN;
        let name = [&7_u16.to_ne_bytes()[..], &3_u16.to_ne_bytes(), b"nft", &[0]].concat();
        let id = [&8_u16.to_ne_bytes()[..], &1_u16.to_ne_bytes(), &77_u32.to_be_bytes()].concat();
        assert_eq!(answer(new, &[name.clone(), id.clone()].concat()), Some(77));
        assert_eq!(answer(new, &name), None);
        assert_eq!(answer(2, &id), None, "an error");
        assert_eq!(answer(new, &id[..6]), None);
        assert_eq!(answer(new, &[0; 4]), None);
        assert_eq!(generation_in(&[]), None);
    }
}
