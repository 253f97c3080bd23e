//! The nftables table that drops what interfaces of `interfacePrefix` without a filter of ours send or are sent.
//!
//! A filter hangs on an interface that exists; this holds for those that come while no process runs.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
};

use super::{
    error::{DataplaneError, Result},
    instance::Instance,
};

/// Name of an instance's table, in family `inet`.
pub(crate) fn table_name(instance: &Instance) -> String {
    if *instance == Instance::default() {
        return "calico_ebpf".to_owned();
    }
    let name: String = instance.name().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("calico_ebpf_{name}")
}

/// The table as one transaction: whatever it was before, afterwards it is this.
///
/// Interfaces are told by index, which the kernel does not give again: one that is deleted and made anew under the same
/// name has no filter.
pub(crate) fn ruleset(table: &str, prefixes: &[String], attached: &BTreeSet<u32>) -> String {
    let mut text = format!("table inet {table} {{}}\ndelete table inet {table}\ntable inet {table} {{\n");
    text.push_str("  set attached {\n    type iface_index\n");
    if !attached.is_empty() {
        let elements: Vec<String> = attached.iter().map(u32::to_string).collect();
        let _ = writeln!(text, "    elements = {{ {} }}", elements.join(", "));
    }
    text.push_str("  }\n");
    let mut chain = |name: &str, directions: &[(&str, &str)]| {
        let _ = writeln!(text, "  chain {name} {{\n    type filter hook {name} priority -310; policy accept;");
        for prefix in prefixes.iter().filter(|prefix| is_plain(prefix)) {
            for (interface_name, index) in directions {
                let _ = writeln!(text, "    {interface_name} \"{prefix}*\" {index} != @attached counter drop");
            }
        }
        text.push_str("  }\n");
    };
    chain("input", &[("iifname", "iif")]);
    chain("forward", &[("iifname", "iif"), ("oifname", "oif")]);
    text.push_str("}\n");
    text
}

/// Makes the table so.
pub(crate) fn apply(ruleset: &str) -> Result<()> {
    nft(&["-f", "-"], ruleset).map(drop)
}

/// Removes a table; false if it was not there.
pub(crate) fn remove(table: &str) -> Result<bool> {
    if !exists(table)? {
        return Ok(false);
    }
    nft(&["delete", "table", "inet", table], "").map(|_| true)
}

/// Whether the table is there.
pub(crate) fn exists(table: &str) -> Result<bool> {
    let tables = nft(&["list", "tables", "inet"], "")?;
    Ok(tables.lines().any(|line| line.trim() == format!("table inet {table}")))
}

/// Characters that cannot end the string in the rule set. Interface names that hold others are not Calico's.
fn is_plain(prefix: &str) -> bool {
    !prefix.is_empty() && prefix.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let what = || format!("nft {}", arguments.join(" "));
    let spawned =
        Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(DataplaneError::Load {
                what: "the guard that interfacePrefix asks for".to_owned(),
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
        return Err(DataplaneError::Load { what: what(), message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_cannot_break_out_of_its_string() {
        let text = ruleset("t", &["cali".to_owned(), "x\" accept #".to_owned()], &BTreeSet::from([3, 7]));
        assert!(text.contains("iifname \"cali*\" iif != @attached counter drop"));
        assert!(text.contains("elements = { 3, 7 }"));
        assert!(!text.contains("accept #"));
    }
}
