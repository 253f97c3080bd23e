//! `natOutgoing`: what leaves all pools has the host's address.

use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    thread,
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World, eventually,
    lab::{HOST4, HOST6, OUTSIDE4, UPLINK},
    mirror::{self, TcpGlance, UdpGlance},
    resources,
};

const PORT: u16 = 5000;
/// Beyond the MTU: a datagram of so many bytes goes in fragments, and those through the stack.
const BIG: usize = 4000;

fn pool(name: &str, cidr: &str, more: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: '{cidr}'{more}}}\n"
    )
}

/// The workloads' pools.
fn pools(nat: bool) -> String {
    let more = format!(", natOutgoing: {nat}");
    resources::documents(&[pool("v4", "10.65.0.0/16", &more), pool("v6", "fd00:65::/64", &more)])
}

fn mirrors(world: &World) {
    for name in ["outside", "host"] {
        mirror::serve(world.namespace(name), PORT);
    }
    for workload in &world.lab.workloads {
        mirror::serve(&workload.namespace, PORT);
    }
}

fn reload(world: &World) {
    let answer = world.command(&["reload"]);
    assert_eq!(answer.code, 0, "{answer:?}\n{}", world.log());
}

fn switch(world: &World, nat: bool) {
    world.write("pools.yaml", &pools(nat));
    reload(world);
}

fn tcp(world: &World, from: &str, to: IpAddr) -> TcpGlance {
    TcpGlance::open(world.namespace(from), SocketAddr::new(to, PORT))
        .unwrap_or_else(|| panic!("no connection from {from} to {to}\n{}", world.describe()))
}

fn udp(world: &World, from: &str, to: IpAddr) -> UdpGlance {
    UdpGlance::open(world.namespace(from), SocketAddr::new(to, PORT))
}

/// Whom `to` sees where `from` connects must be `whom`, at the address of the same IP version.
fn sees(world: &World, from: &str, to: &str, whom: [IpAddr; 2]) {
    for (to, whom) in world.addresses(to).into_iter().zip(whom) {
        let seen = tcp(world, from, to).seen().map(|seen| seen.ip());
        assert_eq!(seen, Some(whom), "TCP from {from} to {to}\n{}", world.describe());
        for length in [4, BIG] {
            let seen = udp(world, from, to).seen(length).map(|seen| seen.ip());
            assert_eq!(seen, Some(whom), "UDP from {from} to {to}, {length} bytes\n{}", world.describe());
        }
    }
}

fn nft(world: &World, arguments: &[&str]) -> String {
    let output = world.lab.host.command("nft").args(arguments).output().expect("nft");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn table(world: &World) -> String {
    world.status()["natOutgoing"]["table"].as_str().unwrap_or_else(|| panic!("{}", world.describe())).to_owned()
}

fn has_table(world: &World) -> bool {
    nft(world, &["list", "tables"]).contains("calico_nat")
}

const HOST: [IpAddr; 2] = [IpAddr::V4(HOST4), IpAddr::V6(HOST6)];

#[test]
fn only_outside_of_all_pools_the_host_is_seen() {
    let mut world = World::new(&["a", "b"]);
    mirrors(&world);
    world.write("felix.yaml", &resources::felix("defaultEndpointToHostAction", "Accept"));
    world.write("pools.yaml", &pools(true));
    world.start();
    sees(&world, "a", "outside", HOST);
    sees(&world, "a", "b", world.addresses("a"));
    sees(&world, "a", "host", world.addresses("a"));
    sees(&world, "outside", "a", world.addresses("outside"));
    sees(&world, "host", "outside", HOST);
    // Only to the host's address can an answer come back.
    for route in ["route del 10.65.0.0/16", "-6 route del fd00:65::/64"] {
        world.lab.outside.ip(route).expect("deletes the route");
    }
    world.allowed("a", "outside", Icmp);
    for (version, path) in [("4", "10.65."), ("6", "fd00:65:")] {
        let shown = world.command(&["conntrack"]).stdout;
        let line = shown.lines().find(|line| line.contains("icmp") && line.contains(path));
        assert!(line.is_some_and(|line| line.contains("stack")), "IPv{version}\n{shown}");
    }
    let status = world.command(&["status"]);
    assert!(status.stdout.contains("natOutgoing 10.65.0.0/16, fd00:65::/64"), "{status:?}");
    // A network that is to be reached as it is: a pool that nobody gets addresses of.
    world.lab.outside.ip(&format!("route add 10.65.0.0/16 via {HOST4}")).expect("a route");
    world.write("outside.yaml", &pool("outside", "192.0.2.0/24", ", disabled: true"));
    reload(&world);
    assert_eq!(tcp(&world, "a", OUTSIDE4.into()).seen().map(|seen| seen.ip()), Some(world.addresses("a")[0]));
}

#[test]
fn between_workloads_of_a_host_nothing_is_translated() {
    let mut world = World::new(&["a", "b"]);
    mirrors(&world);
    let [v4, v6] = world.addresses("a");
    let one = |name: &str, address: IpAddr, bits: u8| {
        pool(name, &format!("{address}/{bits}"), &format!(", blockSize: {bits}, natOutgoing: true"))
    };
    // The other one is in no pool.
    world.write("pools.yaml", &resources::documents(&[one("v4", v4, 32), one("v6", v6, 128)]));
    world.start();
    sees(&world, "a", "b", world.addresses("a"));
    sees(&world, "b", "a", world.addresses("b"));
    sees(&world, "a", "outside", HOST);
    sees(&world, "b", "outside", world.addresses("b"));
}

#[test]
fn policy_decides_as_if_nothing_were_translated() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.serve(81);
    world.write("pools.yaml", &pools(true));
    let egress =
        "  types: [Egress]\n  egress:\n    - action: Allow\n      protocol: TCP\n      destination: {ports: [80]}\n";
    let ingress = "  types: [Ingress]\n  ingress:\n    - action: Allow\n      source: {selector: app == 'a'}\n";
    world.write(
        "policy.yaml",
        &resources::documents(&[
            resources::policy("a-out", "app == 'a'", egress),
            resources::policy("b-in", "app == 'b'", ingress),
        ]),
    );
    world.start();
    world.allowed("a", "outside", Tcp(80));
    world.denied("a", "outside", Tcp(81));
    world.denied("a", "outside", Udp(80));
    world.allowed("a", "b", Tcp(80));
    world.denied("outside", "b", Tcp(80));
    // A running connection that is denied from now on is cut, translated or not.
    let talk = calico_ebpf_tests::stream::Talk::start(world.namespace("a"), SocketAddr::new(OUTSIDE4.into(), 80));
    world.enforce(&[resources::policy("a-out", "app == 'a'", "  types: [Egress]\n")]);
    assert!(!talk.goes_on(Duration::from_millis(500)));
    world.enforce(&[resources::policy("a-out", "app == 'a'", egress)]);
    assert!(talk.goes_on(calico_ebpf_tests::stream::RESUMES), "{}", world.describe());
}

#[test]
fn a_running_connection_keeps_its_address() {
    let mut world = World::new(&["a"]);
    mirrors(&world);
    world.write("pools.yaml", &pools(true));
    world.start();
    let to = world.addresses("outside");
    let mut streams = to.map(|to| tcp(&world, "a", to));
    let sockets = to.map(|to| udp(&world, "a", to));
    let mut glance = |world: &World, when: &str| {
        let seen = streams.each_mut().map(TcpGlance::seen).into_iter().chain(sockets.each_ref().map(|s| s.seen(4)));
        seen.map(|seen| seen.unwrap_or_else(|| panic!("{when}: no answer\n{}", world.describe()))).collect::<Vec<_>>()
    };
    let first = glance(&world, "at first");
    assert_eq!(first.iter().map(SocketAddr::ip).collect::<Vec<_>>(), [HOST, HOST].concat());

    world.enforce(&[resources::policy("a-out", "app == 'a'", "  types: [Egress]\n  egress: [{action: Allow}]\n")]);
    assert_eq!(glance(&world, "judged again"), first);
    world.write("more.yaml", &pool("more", "10.99.0.0/16", ", natOutgoing: true"));
    reload(&world);
    assert_eq!(glance(&world, "one pool more"), first);
    world.kill();
    assert_eq!(glance(&world, "without the process"), first);
    world.start();
    assert_eq!(glance(&world, "with a new process"), first);

    world.remove("more.yaml");
    switch(&world, false);
    assert_eq!(glance(&world, "switched off"), first);
    sees(&world, "a", "outside", world.addresses("a"));
    world.terminate();
    world.start();
    assert_eq!(glance(&world, "a new process, switched off"), first);
    assert!(has_table(&world), "{}", world.describe());
    switch(&world, true);
    assert_eq!(glance(&world, "switched on again"), first);
    sees(&world, "a", "outside", HOST);

    let name = table(&world);
    for vandalism in
        [&["delete", "table", "inet", &name][..], &["flush", "ruleset"], &["flush", "table", "inet", &name]]
    {
        let before = nft(&world, &["-s", "list", "table", "inet", &name]);
        nft(&world, vandalism);
        // Something goes out meanwhile: it must not take the connection off the stack.
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(50));
            for socket in &sockets {
                let _lost_perhaps = socket.seen(4);
            }
        }
        let back = || {
            let output =
                world.lab.host.command("nft").args(["-s", "list", "table", "inet", &name]).output().expect("nft");
            String::from_utf8_lossy(&output.stdout) == before
        };
        eventually("the table is back", Duration::from_secs(10), back);
        assert_eq!(glance(&world, &format!("after {vandalism:?}")), first, "{vandalism:?}\n{}", world.describe());
    }
}

#[test]
fn a_table_that_is_emptied_before_anybody_looks_is_filled_again() {
    let mut world = World::new(&["a"]);
    mirrors(&world);
    world.write("pools.yaml", &pools(true));
    // In the place of nft, somebody who is quicker than everybody else, once.
    let vandal = world.config().with_file_name("vandal");
    fs::create_dir(&vandal).expect("makes a directory");
    let path = env::var("PATH").expect("a search path");
    let script = format!(
        r#"#!/bin/sh
PATH='{path}'
nft "$@" || exit
[ "$1" = -f ] || exit 0
nft list tables | while read -r word family name; do
    case $name in calico_nat*) mkdir '{}/been' && nft flush table $family $name;; esac
done
exit 0
"#,
        vandal.display()
    );
    fs::write(vandal.join("nft"), script).expect("writes a script");
    fs::set_permissions(vandal.join("nft"), fs::Permissions::from_mode(0o755)).expect("may be run");
    let mut command = world.run_command(&[]);
    command.env("PATH", format!("{}:{path}", vandal.display()));
    world.start_command(command);
    assert!(vandal.join("been").exists(), "nobody emptied it");
    sees(&world, "a", "outside", HOST);
}

#[test]
fn what_was_opened_untranslated_stays_so() {
    let mut world = World::new(&["a"]);
    mirrors(&world);
    world.write("pools.yaml", &pools(false));
    world.start();
    let own = world.addresses("a");
    let to = world.addresses("outside");
    let mut streams = to.map(|to| tcp(&world, "a", to));
    let sockets = to.map(|to| udp(&world, "a", to));
    for round in ["before", "after"] {
        for ((stream, socket), own) in streams.iter_mut().zip(&sockets).zip(own) {
            assert_eq!(stream.seen().map(|seen| seen.ip()), Some(own), "{round}\n{}", world.describe());
            // In fragments it goes through the stack, which has never seen the connection.
            for length in [4, BIG] {
                let seen = socket.seen(length).map(|seen| seen.ip());
                assert_eq!(seen, Some(own), "{round}, {length} bytes\n{}", world.describe());
            }
        }
        switch(&world, true);
    }
    sees(&world, "a", "outside", HOST);
}

#[test]
fn answers_in_fragments_are_not_translated() {
    let mut world = World::new(&["a"]);
    mirrors(&world);
    world.write("pools.yaml", &pools(true));
    world.start();
    for (to, outside) in world.addresses("a").into_iter().zip(world.addresses("outside")) {
        let socket = udp(&world, "outside", to);
        // The question goes past the stack, so the answer, which does not, is the first that it sees.
        let seen = socket.asked(4, BIG).map(|seen| seen.ip());
        assert_eq!(seen, Some(outside), "{}", world.describe());
    }
}

#[test]
fn the_table_goes_with_the_last_pool_that_asks_for_it() {
    let mut world = World::new(&["a"]);
    world.write("pools.yaml", &pools(true));
    let dry = world.run_command(&["--dry-run"]).output().expect("starts");
    assert!(String::from_utf8_lossy(&dry.stdout).contains("nftables table inet calico_nat"), "{dry:?}");
    assert!(!has_table(&world));
    world.start();
    assert!(has_table(&world));
    switch(&world, false);
    assert!(!has_table(&world), "{}", world.describe());
    assert!(world.status()["natOutgoing"].is_null(), "{}", world.describe());
    switch(&world, true);
    assert!(has_table(&world));
    world.terminate();
    assert_eq!(world.status()["natOutgoing"]["installed"], true);
    let answer = world.command(&["purge"]);
    assert_eq!(answer.code, 0, "{answer:?}");
    assert!(answer.stdout.contains("nftables table inet calico_nat"), "{answer:?}");
    assert!(!has_table(&world));
}

#[test]
fn each_instance_has_its_own_table() {
    let (mut one, mut two) = (World::new(&["a"]), World::new(&["a"]));
    for world in [&mut one, &mut two] {
        mirrors(world);
        world.write("pools.yaml", &pools(true));
        world.start();
    }
    sees(&one, "a", "outside", HOST);
    let stream = tcp(&two, "a", two.addresses("outside")[0]).seen();
    assert_eq!(stream.map(|seen| seen.ip()), Some(HOST[0]));
    one.terminate();
    assert_eq!(one.command(&["purge"]).code, 0);
    assert!(!has_table(&one));
    sees(&two, "a", "outside", HOST);
}

#[test]
fn without_nft_only_what_needs_it_is_refused() {
    let mut world = World::new(&["a"]);
    mirrors(&world);
    world.write("pools.yaml", &pools(false));
    let mut command = world.run_command(&[]);
    command.env("PATH", "/nowhere");
    world.start_command(command);
    sees(&world, "a", "outside", world.addresses("a"));
    world.write("pools.yaml", &pools(true));
    let answer = world.command(&["reload"]);
    assert_eq!(answer.code, 1, "{answer:?}");
    let said = format!("{}{}", answer.stdout, answer.stderr);
    assert!(said.contains("natOutgoing") && said.contains("install the package nftables"), "{answer:?}");
    assert_eq!(world.status()["lastLoad"]["ok"], false);
    // What was in force goes on without a fault.
    world.lab.host.ip("link add other type veth peer name another").expect("something to look at");
    eventually("no faults", Duration::from_secs(8), || world.status()["faults"].as_array().is_some_and(Vec::is_empty));
    sees(&world, "a", "outside", world.addresses("a"));
    world.terminate();
    let mut command = world.run_command(&["--once"]);
    let refused = command.env("PATH", "/nowhere").output().expect("starts");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nftables"), "{refused:?}");
}

#[test]
fn the_parameters_of_felix_configuration_apply() {
    let mut world = World::new(&["a"]);
    mirrors(&world);
    world.lab.host.ip(&format!("addr add 192.0.2.9/24 dev {UPLINK}")).expect("another address");
    world.write("pools.yaml", &pools(true));
    let felix = |world: &World, more: &str| {
        let text = resources::felix("natOutgoingAddress", "192.0.2.9");
        world.write("felix.yaml", &format!("{text}  natPortRange: '20000:20099'\n{more}"));
    };
    felix(&world, &format!("  iptablesNATOutgoingInterfaceFilter: {}+\n", &UPLINK[..2]));
    world.start();
    let [v4, v6] = world.addresses("outside");
    for (to, whom) in [(v4, "192.0.2.9".parse().expect("an address")), (v6, HOST[1])] {
        for seen in [tcp(&world, "a", to).seen(), udp(&world, "a", to).seen(4)] {
            let seen = seen.unwrap_or_else(|| panic!("no answer\n{}", world.describe()));
            assert_eq!(seen.ip(), whom);
            assert!((20_000..20_100).contains(&seen.port()), "{seen}");
        }
    }
    world.allowed("a", "outside", Icmp);
    felix(&world, "  iptablesNATOutgoingInterfaceFilter: eth0\n");
    reload(&world);
    sees(&world, "a", "outside", world.addresses("a"));
    felix(&world, "  natOutgoingExclusions: IPPoolsAndHostIPs\n");
    world.write(
        "nodes.yaml",
        &format!(
            "apiVersion: projectcalico.org/v3\nkind: Node\nmetadata: {{name: other}}\nspec: {{bgp: {{ipv4Address: {OUTSIDE4}/24}}}}\n"
        ),
    );
    reload(&world);
    assert_eq!(tcp(&world, "a", v4).seen().map(|seen| seen.ip()), Some(world.addresses("a")[0]));
    assert_eq!(tcp(&world, "a", v6).seen().map(|seen| seen.ip()), Some(HOST[1]));
}
