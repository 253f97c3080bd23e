//! The routing daemons for which `bgp config` makes a configuration, each with our program on real hosts; everybody else in
//! the cluster has BIRD 2.

use std::{
    fs,
    process::{Command, Output, Stdio},
    time::Instant,
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp},
    eventually,
    hosts::{CONVERGENCE, Hosts, MESH},
};
use xtask::{
    cluster::{files, plan::Options, router::Daemon},
    project,
    setup::{
        daemons::{BIRD3, FRR, FRR8, GOBGP, Tree},
        find_program,
    },
};

#[test]
fn bird_3() {
    serves(Daemon::Bird3);
}

#[test]
fn frr_10() {
    serves(Daemon::Frr);
}

#[test]
fn frr_8() {
    serves(Daemon::Frr8);
}

#[test]
fn gobgp_over_zebra() {
    serves(Daemon::Gobgp);
}

/// Sessions come up, what is ours is told and withdrawn, what others say gets into the kernel and is used, and a crash of the
/// daemon interrupts nothing.
fn serves(daemon: Daemon) {
    let Some(mut hosts) = Hosts::start(Options { hosts: 2, workloads: 4, bgp: daemon, ..MESH }) else { return };
    let plan = hosts.cluster.view.plan.clone();
    for host in plan.hosts() {
        let sessions = hosts.cluster.view.router(host).sessions().expect("sessions");
        let up = sessions.iter().filter(|session| session.established).count();
        assert!(up == 4 && sessions.len() == 4, "{}: {sessions:?}\n{}", host.name, hosts.describe());
    }
    let routes = |hosts: &Hosts, host: &str| hosts.cluster.view.routes(host).expect("routes").join("\n");
    let outside = routes(&hosts, "outside");
    for route in ["10.65.1.0/26 via 192.0.2.11", "10.65.2.0/26 via 192.0.2.12", "fd00:65:0:1::/122 via"] {
        assert!(outside.contains(route), "no {route}\n{}", hosts.describe());
    }
    assert!(!outside.contains("10.65.1.1 "), "a single address of a block\n{}", hosts.describe());
    let own = routes(&hosts, "host1");
    for route in ["blackhole 10.65.1.0/26", "blackhole fd00:65:0:1::/122", "10.65.2.0/26 via", "10.65.2.0/26 nhid"] {
        // FRR makes objects of next hops.
        let either = route.starts_with("10.65.2.0/26") && own.contains("unicast 10.65.2.0/26 ");
        assert!(either || own.contains(route), "no {route}\n{}", hosts.describe());
    }
    // Packets go from host to host, and from and to somebody outside.
    for (from, to) in [("w1", "w2"), ("w4", "w3"), ("outside", "w1"), ("w2", "outside")] {
        hosts.allowed(from, to, Tcp(80));
        hosts.allowed(from, to, Icmp);
    }

    // An address of another host's block is told by itself, and withdrawn.
    let view = &hosts.cluster.view;
    let text = files::workloads(&view.plan, &view.options, |workload| workload.host.clone());
    let moved = text.replace("10.65.1.2/32", "10.65.2.40/32").replace("fd00:65:0:1::2/128", "fd00:65:0:2::40/128");
    assert_ne!(text, moved);
    let told = |hosts: &Hosts, who: &str| {
        let routes = routes(hosts, who);
        [routes.contains("unicast 10.65.2.40 "), routes.contains("unicast fd00:65:0:2::40 ")]
    };
    for (text, there) in [(&moved, true), (&text, false)] {
        let begin = Instant::now();
        hosts.cluster.write("workloads.yaml", text).expect("writes");
        hosts.reload();
        for who in ["outside", "host2"] {
            eventually(&format!("the address to be told: {there}"), CONVERGENCE, || told(&hosts, who) == [there; 2]);
        }
        println!("{daemon:?}: told {there} within {:?}", begin.elapsed());
    }

    // It crashes. Nobody notices, and when it is back it knows what it knew.
    hosts.cluster.router("host1").expect("it runs").kill();
    for (from, to) in [("w1", "w2"), ("w2", "w1"), ("outside", "w1")] {
        hosts.allowed(from, to, Tcp(80));
    }
    hosts.cluster.router("host1").expect("it ran").recover().expect("starts");
    let up = |hosts: &Hosts| {
        let host = hosts.cluster.view.speaker("host1").expect("a host");
        hosts
            .cluster
            .view
            .router(host)
            .sessions()
            .is_ok_and(|all| all.len() == 4 && all.iter().all(|one| one.established))
    };
    eventually("sessions", CONVERGENCE, || up(&hosts));
    hosts.converge();
    for (from, to) in [("w1", "w2"), ("w2", "w1"), ("outside", "w1")] {
        hosts.allowed(from, to, Tcp(80));
    }
    // Neither disturbs the other.
    for host in ["host1", "host2"] {
        let status = hosts.cluster.program(host).expect("it runs").instance.status().expect("a status");
        assert_eq!(status["faults"], serde_json::json!([]), "{}", hosts.describe());
    }
}

/// What `bgp config` makes of files of the example for a node.
fn configuration(node: &str, flavour: &str, files: &[&str]) -> Output {
    let mut command = Command::new(project::binary());
    command.args(["bgp", "config", "--flavour", flavour, "--node", node]);
    for file in files {
        command.arg("--config").arg(project::root().join("examples/bgp").join(file));
    }
    command.output().expect("starts")
}

/// The same, which must succeed.
fn made(node: &str, flavour: &str, files: &[&str]) -> String {
    let output = configuration(node, flavour, files);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

const PLAIN: &[&str] = &["resources.yaml"];
const FILTERED: &[&str] = &["resources.yaml", "filter.yaml"];

#[test]
fn the_examples_are_what_they_say() {
    let files =
        [("bird", "bird.conf"), ("frr", "frr.conf"), ("gobgp", "gobgp.toml"), ("gobgp-zebra", "gobgp-zebra.conf")];
    for (flavour, file) in files {
        let written = fs::read_to_string(project::root().join("examples/bgp").join(file)).expect("the example");
        assert_eq!(made("node1", flavour, PLAIN), written, "examples/bgp/{file} is not what its resources say");
    }
    // Where it would not be what the resources say, there is none.
    for flavour in ["frr", "gobgp"] {
        let output = configuration("node1", flavour, FILTERED);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && text.contains("filters of a BGPPeer"), "{output:?}");
    }
}

#[test]
fn the_daemons_take_the_examples() {
    let directory = std::env::temp_dir().join(format!("calico-ebpf-examples-{}", std::process::id()));
    let cases = [
        (None, "bird", PLAIN),
        (None, "bird", FILTERED),
        (Some(&BIRD3), "bird", PLAIN),
        (Some(&BIRD3), "bird", FILTERED),
        (Some(&FRR), "frr", PLAIN),
        (Some(&FRR8), "frr", PLAIN),
        (Some(&FRR8), "gobgp-zebra", PLAIN),
        (Some(&GOBGP), "gobgp", PLAIN),
    ];
    for (tree, flavour, files) in cases {
        let Some(mut command) = checker(tree, &directory) else {
            println!("\nfact: no {}", tree.map_or("bird2", |tree| tree.name));
            continue;
        };
        for node in ["node1", "reflector"] {
            fs::write(directory.join("etc/frr.conf"), made(node, flavour, files)).expect("writes");
            let output = command.stdin(Stdio::null()).output().expect("starts");
            let text = [output.stdout, output.stderr].map(|part| String::from_utf8_lossy(&part).into_owned()).concat();
            let complains = tree.is_some_and(|tree| tree.package() == "frr") && text.contains('%');
            assert!(output.status.success() && !complains, "{tree:?}, {node}: {text}");
        }
    }
    let _nothing_there = fs::remove_dir_all(directory);
}

/// The command with which a daemon (BIRD 2: none) only looks at the file `etc/frr.conf` in `directory`.
fn checker(tree: Option<&Tree>, directory: &std::path::Path) -> Option<Command> {
    for name in ["etc", "run", "lib"] {
        fs::create_dir_all(directory.join(name)).expect("a directory");
    }
    fs::write(directory.join("etc/vtysh.conf"), "").expect("writes");
    let file = directory.join("etc/frr.conf");
    let Some(tree) = tree else {
        let mut command = Command::new(find_program("bird")?);
        command.arg("-p").arg("-c").arg(file);
        return Some(command);
    };
    tree.find()?;
    let mut command = Command::new("unshare");
    command.arg("--mount");
    match tree.package() {
        "frr" => {
            command.args(tree.rooted(directory, "/usr/bin/vtysh").expect("FRR")).args(["-C", "-f", "/etc/frr/frr.conf"])
        }
        "gobgpd" => command
            .args(tree.command("usr/bin/gobgpd").expect("GoBGP"))
            .args(["--dry-run", "--config-strict", "-f"])
            .arg(file),
        _ => command.args(tree.command("usr/sbin/bird").expect("BIRD")).args(["-p", "-c"]).arg(file),
    };
    Some(command)
}
