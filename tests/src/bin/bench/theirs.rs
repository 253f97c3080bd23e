//! What the same policies cost with the kernel's own filters: packets of one flow that no rule and no set matches, beside
//! packets that nothing judges.

use std::{io::Write as _, net::Ipv4Addr, process::Stdio};

use anyhow::{Context as _, ensure};
use xtask::lab::Namespace;

use crate::{
    random::Random,
    report::{Report, interleave},
    variant::{Kind, PORTS, Variant},
};

const ROUNDS: usize = 7;

/// Something that judges, and how many packets are sent through it.
struct Theirs {
    name: String,
    variant: Variant,
    packets: u32,
}

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let mut all = vec![with("nothing judges (K0)".to_owned(), 100_000, |_| Ok(()))?];
    for (rules, packets) in [(10_u32, 100_000), (100, 50_000), (1_000, 10_000), (10_000, 2_000)] {
        all.push(with(format!("iptables, {rules} rules"), packets, |host| {
            let mut text = "*filter\n".to_owned();
            for number in 0..rules {
                let [_, a, b, c] = (number << 4).to_be_bytes();
                text += &format!(
                    "-A FORWARD -s 10.{a}.{b}.{c}/28 -p tcp -m tcp --dport {} -j DROP\n",
                    1_000 + number % 60_000
                );
            }
            feed(host, "iptables-restore", &[], &(text + "COMMIT\n"))
        })?);
    }
    for members in [10, 1_000_000] {
        let mut random = Random(11);
        let members: Vec<Ipv4Addr> = (0..members).map(|_| Ipv4Addr::from(random.next() | 1 << 31)).collect();
        all.push(with(format!("iptables and ipset, {} members", members.len()), 100_000, |host| {
            let mut text = "create s hash:ip maxelem 2000000\n".to_owned();
            members.iter().for_each(|member| text += &format!("add s {member}\n"));
            feed(host, "ipset", &["restore", "-exist"], &text)?;
            let rule = "*filter\n-A FORWARD -m set --match-set s src -j DROP\nCOMMIT\n";
            feed(host, "iptables-restore", &[], rule)
        })?);
        all.push(with(format!("nft set, {} members", members.len()), 100_000, |host| {
            let mut unique = members.clone();
            unique.sort_unstable();
            unique.dedup();
            let mut text = "add table ip t\nadd set ip t s { type ipv4_addr; }\n".to_owned();
            for members in unique.chunks(10_000) {
                let members: Vec<String> = members.iter().map(Ipv4Addr::to_string).collect();
                text += &format!("add element ip t s {{ {} }}\n", members.join(","));
            }
            text += "add chain ip t f { type filter hook forward priority 0; }\nadd rule ip t f ip saddr @s drop\n";
            feed(host, "nft", &["-f", "-"], &text)
        })?);
    }
    let rows = interleave(
        ROUNDS,
        &mut all,
        |theirs| theirs.name.clone(),
        |theirs| {
            let to = theirs.variant.lab.workload("b").v4.into();
            theirs.variant.nanoseconds(to, PORTS.0, theirs.packets)
        },
    )?;
    report.section("the kernel's own filters: a packet that no rule matches, its way included", "ns/packet", rows);
    Ok(())
}

fn with(name: String, packets: u32, judge: impl FnOnce(&Namespace) -> anyhow::Result<()>) -> anyhow::Result<Theirs> {
    let mut variant = Variant::new(Kind::Routing)?;
    variant.add_sinks()?;
    judge(&variant.lab.host).with_context(|| name.clone())?;
    Ok(Theirs { name, variant, packets })
}

fn feed(host: &Namespace, program: &str, arguments: &[&str], text: &str) -> anyhow::Result<()> {
    let mut child = host.command(program).args(arguments).stdin(Stdio::piped()).spawn().context(program.to_owned())?;
    child.stdin.take().context("no stdin")?.write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "{program} refused the rules");
    Ok(())
}
