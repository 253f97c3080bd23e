//! Putting fragments together is the kernel's business, which does it for whoever asks: here an nftables table whose only
//! chain no packet ever meets. A rule of `tproxy` is enough, and unlike one of `ct` it tracks nothing.

use super::nft;

/// Name of the default instance's table.
pub(crate) const TABLE: &str = "calico_reassembly";
/// What it is for.
pub(crate) const PURPOSE: &str = "putting fragments together before they are forwarded";

/// The table.
pub(crate) fn ruleset(table: &str) -> String {
    let rule =
        |version: &str, family: &str| format!("    meta nfproto {version} meta l4proto tcp tproxy {family} to :1\n");
    nft::whole("inet", table, &format!("  chain never_met {{\n{}{}  }}\n", rule("ipv4", "ip"), rule("ipv6", "ip6")))
}
