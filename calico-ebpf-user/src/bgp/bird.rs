//! The configuration of BIRD 2 and 3.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::{FAMILIES, Family, NodeBgp, SUM, Session};
use crate::resources::model::{BgpFilterRule, BgpNextHop, BgpOperation, Community};

/// What BIRD shall do on a node. `hold_time`: how long a peer without a sign of life is believed to be there, in seconds.
#[must_use]
pub fn bird(node: &NodeBgp, hold_time: u16) -> String {
    let mut text = format!(
        "# BIRD on node {}, by `calico-ebpf bgp config`. Made again when nodes, pools, peers or blocks change.\n\
         router id {};\n\n\
         protocol device {{ scan time 2; }}\n\
         # Routes of workloads come from the kernel; this is for next hops.\n\
         protocol direct {{ ipv4; ipv6; interface {}\"*\"; }}\n",
        node.node,
        node.router_id,
        node.interface_prefixes.iter().map(|prefix| format!("-\"{prefix}*\", ")).collect::<String>(),
    );
    for family in FAMILIES {
        family_part(&mut text, node, family);
    }
    for session in &node.sessions {
        session_part(&mut text, node, session, hold_time);
    }
    text
}

fn family_part(text: &mut String, node: &NodeBgp, family: Family) {
    let Family { number: n, whole, .. } = family;
    let [normal, moving] = node.priorities_of(family);
    let blocks: Vec<&IpNet> = node.blocks.iter().filter(|block| family.has(block)).collect();
    let of_workload = of_workload(node);
    let elevated = SUM - normal;
    let single = moving + 1;
    text.push_str(&format!(
        "\n# A workload that is moving has a lower metric than {normal}, and wins over what others say.\n\
         filter calico_learn{n} {{\n  \
         if dest = RTD_UNICAST && ({of_workload}) && net.len = {whole} && krt_metric < {normal} then preference = 150;\n  \
         accept;\n}}\n\
         filter calico_program{n} {{\n  \
         if source = RTS_STATIC then accept;\n  \
         if source != RTS_BGP then reject;\n  \
         # What others say about a single address wins over a workload's route here, if it is not moving here. One metric for\n  \
         # each net: where it changes, BIRD leaves the old route behind.\n  \
         if net.len = {whole} then krt_metric = {single}; else krt_metric = {normal};\n  \
         accept;\n}}\n\
         function calico_import{n}() {{\n  \
         if defined(bgp_local_pref) && bgp_local_pref > {elevated} then preference = 200;\n  \
         accept;\n}}\n\
         protocol kernel kernel{n} {{\n  \
         learn; persist; scan time 2; merge paths on; graceful restart; metric 0;\n  \
         ipv{n} {{ import filter calico_learn{n}; export filter calico_program{n}; }};\n}}\n"
    ));
    if !blocks.is_empty() {
        let routes: String = blocks.iter().map(|block| format!("  route {block} blackhole;\n")).collect();
        text.push_str(&format!(
            "# The blocks of this node: told as a whole, and what nobody has of them goes nowhere.\n\
             protocol static calico_blocks{n} {{\n  ipv{n};\n{routes}}}\n"
        ));
    }
    export_function(text, node, family, &blocks);
}

fn export_function(text: &mut String, node: &NodeBgp, family: Family, blocks: &[&IpNet]) {
    let n = family.number;
    let [normal, _] = node.priorities_of(family);
    let (told, kept) = (node.pools_of(family, true), node.pools_of(family, false));
    text.push_str(&format!("function calico_export{n}() {{\n"));
    if !kept.is_empty() {
        text.push_str(&format!("  if net ~ {} then reject;\n", set(&kept, "+")));
    }
    let of_workload = of_workload(node);
    text.push_str(&format!(
        "  # Of the kernel's routes those of workloads: what else somebody wrote is for this node alone.\n  \
         if source = RTS_INHERIT && !({of_workload}) then reject;\n"
    ));
    for advertisement in node.advertisements.iter().filter(|advertisement| family.has(&advertisement.cidr)) {
        let additions: String = advertisement.communities.iter().map(|community| add(*community)).collect();
        text.push_str(&format!("  if net ~ [ {}+ ] then {{ {additions}}}\n", advertisement.cidr));
    }
    if !blocks.is_empty() {
        let (exact, within) = (set(blocks, ""), set(blocks, "+"));
        text.push_str(&format!(
            "  if net ~ {exact} then accept;\n  \
             # Within the own blocks only what is moving is told by itself.\n  \
             if source = RTS_INHERIT && net ~ {within} && krt_metric >= {normal} then reject;\n"
        ));
    }
    if told.is_empty() {
        text.push_str("  if source = RTS_INHERIT then accept;\n");
    } else {
        text.push_str(&format!("  if net ~ {} then accept;\n", set(&told, "+")));
    }
    text.push_str("  reject;\n}\n");
}

fn session_part(text: &mut String, node: &NodeBgp, session: &Session, hold_time: u16) {
    let Session { name, address, as_number, restart_time, .. } = session;
    let family = Family::of(*address);
    let n = family.number;
    let internal = *as_number == node.as_number;
    let source = session.source.map(|source| format!(" {source}")).unwrap_or_default();
    let own_port = node.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let port = session.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let mut options = String::new();
    match session.ttl_security {
        Some(hops) => options.push_str(&format!("  multihop {hops}; ttl security on;\n")),
        None => options.push_str("  multihop;\n"),
    }
    if session.passive {
        options.push_str("  passive;\n");
    }
    if session.client {
        options.push_str("  rr client;\n");
    }
    if let Some(cluster) = node.cluster.filter(|_| internal) {
        options.push_str(&format!("  rr cluster id {cluster};\n"));
    }
    if session.allowed_local_as > 0 {
        options.push_str(&format!("  allow local as {};\n", session.allowed_local_as));
    }
    let next_hop = match session.next_hop {
        BgpNextHop::Auto => "",
        BgpNextHop::Own => "\n    next hop self;",
        BgpNextHop::Keep => "\n    next hop keep;",
    };
    let rules = |export: bool| -> String {
        let of_filter = session
            .filters
            .iter()
            .flat_map(|filter| if export { &filter.export[family.index] } else { &filter.import[family.index] });
        of_filter
            .filter(|rule| rule.external.is_none_or(|external| external != internal))
            .map(|r| rule(r, export))
            .collect()
    };
    let (imported, exported) = (rules(false), rules(true));
    // Before all rules: one may accept, or ask for it.
    let preferred = if internal {
        format!("      if source = RTS_INHERIT && defined(krt_metric) then bgp_local_pref = {SUM} - krt_metric;\n")
    } else {
        String::new()
    };
    let keepalive = (hold_time / 3).max(1);
    text.push_str(&format!(
        "\nprotocol bgp {name} {{\n  \
         local{source}{own_port} as {};\n  \
         neighbor {address}{port} as {as_number};\n\
         {options}  \
         hold time {hold_time}; keepalive time {keepalive};\n  \
         connect delay time 1; connect retry time 2; error wait time 1, 30;\n  \
         graceful restart on; graceful restart time {restart_time};\n  \
         ipv{n} {{\n    \
         import filter {{\n{imported}      calico_import{n}();\n    }};\n    \
         export filter {{\n{preferred}{exported}      calico_export{n}();\n    }};{next_hop}\n    \
         gateway recursive; add paths on;\n  }};\n}}\n",
        node.as_number
    ));
}

/// A rule of a `BGPFilter`, as a line.
fn rule(rule: &BgpFilterRule, export: bool) -> String {
    let mut conditions = Vec::new();
    if let Some(prefix) = &rule.prefix {
        let found = format!("net ~ [ {}{{{},{}}} ]", prefix.net, prefix.min, prefix.max);
        conditions.push(if prefix.negated { format!("!({found})") } else { found });
    }
    if rule.remote_peers && export {
        conditions.push("source = RTS_BGP".to_owned());
    }
    if let Some(interface) = &rule.interface {
        conditions.push(format!("ifname ~ \"{interface}\""));
    }
    match rule.community {
        Some(Community::Standard(a, b)) => conditions.push(format!("bgp_community ~ [ ({a},{b}) ]")),
        Some(Community::Large(a, b, c)) => conditions.push(format!("bgp_large_community ~ [ ({a},{b},{c}) ]")),
        None => {}
    }
    if !rule.as_path_prefix.is_empty() {
        let numbers: Vec<String> = rule.as_path_prefix.iter().map(u32::to_string).collect();
        conditions.push(format!("bgp_path ~ [= {} * =]", numbers.join(" ")));
    }
    if let Some(priority) = rule.priority {
        let told = format!("(defined(bgp_local_pref) && bgp_local_pref = {})", SUM - priority);
        let own = format!("(source = RTS_INHERIT && defined(krt_metric) && krt_metric = {priority})");
        conditions.push(if export { format!("({own} || {told})") } else { told });
    }
    let mut operations = String::new();
    for operation in &rule.operations {
        match operation {
            BgpOperation::AddCommunity(community) => operations.push_str(&add(*community)),
            // The first of them is to be the first in the path.
            BgpOperation::PrependAsPath(numbers) => {
                for number in numbers.iter().rev() {
                    let _infallible = write!(operations, "bgp_path.prepend({number}); ");
                }
            }
            BgpOperation::SetPriority(priority) => {
                let _infallible = write!(operations, "bgp_local_pref = {}; ", SUM - priority);
            }
        }
    }
    let action = if rule.accept { "accept" } else { "reject" };
    match conditions.is_empty() {
        true => format!("      {operations}{action};\n"),
        false => format!("      if {} then {{ {operations}{action}; }}\n", conditions.join(" && ")),
    }
}

fn add(community: Community) -> String {
    match community {
        Community::Standard(a, b) => format!("bgp_community.add(({a},{b})); "),
        Community::Large(a, b, c) => format!("bgp_large_community.add(({a},{b},{c})); "),
    }
}

/// A set of prefixes, each followed by `suffix`.
fn set(nets: &[&IpNet], suffix: &str) -> String {
    let each: Vec<String> = nets.iter().map(|net| format!("{net}{suffix}")).collect();
    format!("[ {} ]", each.join(", "))
}

fn of_workload(node: &NodeBgp) -> String {
    let each: Vec<String> = node.interface_prefixes.iter().map(|prefix| format!("ifname ~ \"{prefix}*\"")).collect();
    each.join(" || ")
}
