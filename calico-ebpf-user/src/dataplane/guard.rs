//! The nftables table that drops what interfaces of `interfacePrefix` without a filter of ours send or are sent.
//!
//! A filter hangs on an interface that exists; this holds for those that come while no process runs.

use std::{collections::BTreeSet, fmt::Write as _};

use super::nft;

/// Name of the default instance's table.
pub(crate) const TABLE: &str = "calico_ebpf";
/// What it is for.
pub(crate) const PURPOSE: &str = "the guard that interfacePrefix asks for";

/// The table.
///
/// Interfaces are told by index, which the kernel does not give again: one that is deleted and made anew under the same
/// name has no filter.
pub(crate) fn ruleset(table: &str, prefixes: &[String], attached: &BTreeSet<u32>) -> String {
    let mut text = String::from("  set attached {\n    type iface_index\n");
    if !attached.is_empty() {
        let elements: Vec<String> = attached.iter().map(u32::to_string).collect();
        let _ = writeln!(text, "    elements = {{ {} }}", elements.join(", "));
    }
    text.push_str("  }\n");
    let mut chain = |name: &str, directions: &[(&str, &str)]| {
        let _ = writeln!(text, "  chain {name} {{\n    type filter hook {name} priority -310; policy accept;");
        for prefix in prefixes.iter().filter(|prefix| nft::is_plain(prefix)) {
            for (interface_name, index) in directions {
                let _ = writeln!(text, "    {interface_name} \"{prefix}*\" {index} != @attached counter drop");
            }
        }
        text.push_str("  }\n");
    };
    chain("input", &[("iifname", "iif")]);
    chain("forward", &[("iifname", "iif"), ("oifname", "oif")]);
    nft::whole("inet", table, &text)
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
