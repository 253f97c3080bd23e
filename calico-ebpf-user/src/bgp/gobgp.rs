//! The configuration of GoBGP, which reads and writes the kernel's routes through FRR's zebra.

use std::{fmt::Write as _, net::IpAddr};

use super::{FAMILIES, Family, NodeBgp, SUM, Session};
use crate::resources::model::{BgpNextHop, Community};

/// Where zebra listens.
const ZEBRA: &str = "/var/run/frr/zserv.api";
/// The newest dialect of zebra's protocol that GoBGP 3 speaks, which FRR 8 understands and FRR 10 does not.
const DIALECT: &str = "frr8.2";

/// What GoBGP shall do on a node. `hold_time`: how long a peer without a sign of life is believed to be there, in seconds.
///
/// # Errors
/// What the resources ask for, GoBGP cannot do, or is not made for it here.
pub fn gobgp(node: &NodeBgp, hold_time: u16) -> anyhow::Result<String> {
    node.needs_no_filters("gobgp")?;
    if let Some(session) = node.sessions.iter().find(|session| session.next_hop == BgpNextHop::Keep) {
        anyhow::bail!("{}: keeping the next hop is not made for GoBGP here", session.name);
    }
    let mut text = format!(
        "# GoBGP on node {}, by `calico-ebpf bgp config`. Made again when nodes, pools, peers or blocks change.\n\
         [global.config]\n  as = {}\n  router-id = \"{}\"\n",
        node.node, node.as_number, node.router_id
    );
    if let Some(port) = node.port {
        let _infallible = writeln!(text, "  port = {port}");
    }
    text.push_str(&format!(
        "[global.use-multiple-paths.config]\n  enabled = true\n\
         # What is told, of own routes and of others': see the statements below. GoBGP 3 cannot tell routes of different\n\
         # metrics apart: that of a workload that is moving is not preferred, and not told within the own blocks.\n\
         [global.apply-policy.config]\n  export-policy-list = [\"calico-export\"]\n  \
         default-import-policy = \"accept-route\"\n  default-export-policy = \"reject-route\"\n\n\
         # GoBGP itself neither sees nor writes the kernel's routes. FRR's zebra does that for it: routes of workloads are\n\
         # `kernel` there, and the blackholes of blocks `static` (`--flavour gobgp-zebra` prints zebra's part).\n\
         [zebra.config]\n  enabled = true\n  url = \"unix:{ZEBRA}\"\n  version = 6\n  \
         # The newest that GoBGP 3 speaks: FRR 8 understands it. With FRR 10 it would not see routes of workloads.\n  \
         software-name = \"{DIALECT}\"\n  redistribute-route-type-list = [\"kernel\", \"static\"]\n"
    ));
    sets(&mut text, node);
    policy(&mut text, node);
    for session in &node.sessions {
        neighbor(&mut text, node, session, hold_time);
    }
    Ok(text)
}

fn sets(text: &mut String, node: &NodeBgp) {
    let mut set = |name: String, nets: &[(String, String)]| {
        if nets.is_empty() {
            return;
        }
        let _infallible = write!(text, "\n[[defined-sets.prefix-sets]]\n  prefix-set-name = \"{name}\"\n");
        for (net, range) in nets {
            let _infallible = write!(
                text,
                "  [[defined-sets.prefix-sets.prefix-list]]\n    ip-prefix = \"{net}\"\n    masklength-range = \"{range}\"\n"
            );
        }
    };
    for family in FAMILIES {
        let Family { number: n, whole, .. } = family;
        let pools = |told| -> Vec<_> {
            let pools = node.pools_of(family, told).into_iter();
            pools.map(|net| (net.to_string(), format!("{}..{whole}", net.prefix_len()))).collect()
        };
        let (told, kept) = (pools(true), pools(false));
        let blocks = node.blocks.iter().filter(|block| family.has(block));
        let blocks: Vec<_> =
            blocks.map(|block| (block.to_string(), format!("{}..{whole}", block.prefix_len() + 1))).collect();
        set(format!("told-{n}"), &told);
        set(format!("kept-{n}"), &kept);
        set(format!("block-{n}"), &blocks);
        for (index, advertised) in node.advertisements.iter().filter(|one| family.has(&one.cidr)).enumerate() {
            let net = advertised.cidr;
            set(format!("advertised-{index}-{n}"), &[(net.to_string(), format!("{}..{whole}", net.prefix_len()))]);
        }
    }
}

/// One statement of the policy: what must hold, and what is done then.
struct Statement<'a> {
    name: &'a str,
    set: &'a str,
    conditions: &'a [String],
    actions: &'a [String],
    disposition: &'a str,
}

fn policy(text: &mut String, node: &NodeBgp) {
    text.push_str("\n[[policy-definitions]]\n  name = \"calico-export\"\n");
    let mut add = |statement: &Statement<'_>| text.push_str(&rendered(statement));
    for family in FAMILIES {
        let n = family.number;
        let [normal, _] = node.priorities_of(family);
        let (told, kept, block) = (format!("told-{n}"), format!("kept-{n}"), format!("block-{n}"));
        let own = "route-type = \"local\"".to_owned();
        if !node.pools_of(family, false).is_empty() {
            add(&Statement { name: &kept, set: &kept, conditions: &[], actions: &[], disposition: "reject-route" });
        }
        for (index, advertised) in node.advertisements.iter().filter(|one| family.has(&one.cidr)).enumerate() {
            let name = format!("advertised-{index}-{n}");
            let actions = communities(&advertised.communities);
            // Goes on with the next one.
            add(&Statement { name: &name, set: &name, conditions: &[], actions: &actions, disposition: "none" });
        }
        if node.pools_of(family, true).is_empty() {
            continue;
        }
        let conditions = std::slice::from_ref(&own);
        if node.blocks.iter().any(|block| family.has(block)) {
            add(&Statement { name: &block, set: &block, conditions, actions: &[], disposition: "reject-route" });
        }
        let actions = "policy-definitions.statements.actions.bgp-actions";
        let preference = [format!("[{actions}]\n      set-local-pref = {}", SUM - normal)];
        add(&Statement {
            name: &format!("workload-{n}"),
            set: &told,
            conditions,
            actions: &preference,
            disposition: "accept-route",
        });
        add(&Statement { name: &told, set: &told, conditions: &[], actions: &[], disposition: "accept-route" });
    }
}

fn rendered(statement: &Statement<'_>) -> String {
    let Statement { name, set, conditions, actions, disposition } = statement;
    let mut text = format!(
        "  [[policy-definitions.statements]]\n    name = \"{name}\"\n    \
         [policy-definitions.statements.conditions.match-prefix-set]\n      prefix-set = \"{set}\"\n"
    );
    if !conditions.is_empty() {
        text.push_str("    [policy-definitions.statements.conditions.bgp-conditions]\n");
    }
    for condition in *conditions {
        let _infallible = writeln!(text, "      {condition}");
    }
    let _infallible =
        writeln!(text, "    [policy-definitions.statements.actions]\n      route-disposition = \"{disposition}\"");
    for action in *actions {
        let _infallible = writeln!(text, "    {action}");
    }
    text
}

fn communities(all: &[Community]) -> Vec<String> {
    let (mut standard, mut large) = (Vec::new(), Vec::new());
    for community in all {
        match community {
            Community::Standard(a, b) => standard.push(format!("\"{a}:{b}\"")),
            Community::Large(a, b, c) => large.push(format!("\"{a}:{b}:{c}\"")),
        }
    }
    let action = |kind: &str, list: Vec<String>| {
        (!list.is_empty()).then(|| {
            let actions = "policy-definitions.statements.actions.bgp-actions";
            format!(
                "[{actions}.set-{kind}community]\n      options = \"add\"\n      \
                 [{actions}.set-{kind}community.set-{kind}community-method]\n        communities-list = [{}]",
                list.join(", ")
            )
        })
    };
    action("", standard).into_iter().chain(action("large-", large)).collect()
}

fn neighbor(text: &mut String, node: &NodeBgp, session: &Session, hold_time: u16) {
    let Session { name, address, as_number, restart_time, .. } = session;
    let internal = *as_number == node.as_number;
    let mut say = |line: &str| {
        let _infallible = writeln!(text, "{line}");
    };
    say(&format!("\n# {name}\n[[neighbors]]\n  [neighbors.config]"));
    say(&format!("    neighbor-address = \"{address}\"\n    peer-as = {as_number}"));
    say(&format!(
        "  [neighbors.timers.config]\n    hold-time = {hold_time}\n    keepalive-interval = {}\n    connect-retry = 2",
        (hold_time / 3).max(1)
    ));
    say("  [neighbors.transport.config]");
    if let Some(source) = session.source {
        say(&format!("    local-address = \"{source}\""));
    }
    if let Some(port) = session.port {
        say(&format!("    remote-port = {port}"));
    }
    if session.passive {
        say("    passive-mode = true");
    }
    match session.ttl_security {
        // Counted the other way round: the least TTL.
        Some(hops) => {
            let least = 256 - u16::from(hops.max(1));
            say(&format!("  [neighbors.ttl-security.config]\n    enabled = true\n    ttl-min = {least}"));
        }
        None if !internal => say("  [neighbors.ebgp-multihop.config]\n    enabled = true\n    multihop-ttl = 255"),
        None => {}
    }
    if session.client {
        let cluster = node.cluster.unwrap_or(node.router_id);
        say("  [neighbors.route-reflector.config]\n    route-reflector-client = true");
        say(&format!("    route-reflector-cluster-id = \"{cluster}\""));
    }
    if session.allowed_local_as > 0 {
        say(&format!("  [neighbors.as-path-options.config]\n    allow-own-as = {}", session.allowed_local_as));
    }
    say(&format!("  [neighbors.graceful-restart.config]\n    enabled = true\n    restart-time = {restart_time}"));
    let family = if matches!(address, IpAddr::V4(_)) { "ipv4" } else { "ipv6" };
    say(&format!(
        "  [[neighbors.afi-safis]]\n    [neighbors.afi-safis.config]\n      afi-safi-name = \"{family}-unicast\"\n    \
         [neighbors.afi-safis.mp-graceful-restart.config]\n      enabled = true"
    ));
}
