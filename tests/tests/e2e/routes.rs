//! The routes of the workloads, and nobody else's.

use std::time::Duration;

use calico_ebpf_tests::{Protocol::Tcp, World, eventually};

const SOON: Duration = Duration::from_secs(10);

fn routes(world: &World, family: &str) -> Vec<String> {
    let text = world.lab.host.ip(&format!("{family} route show table main")).expect("routes");
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn they_have_the_form_that_routing_daemons_export() {
    let mut world = World::new(&["a", "b"]);
    world.start();
    for name in ["a", "b"] {
        let workload = world.lab.workload(name);
        let v4 = format!("{} dev {} proto 80 scope link metric 1024", workload.v4, workload.interface);
        let v6 = format!("{} dev {} proto 80 metric 1024", workload.v6, workload.interface);
        assert!(routes(&world, "-4").contains(&v4), "{v4}: {:?}", routes(&world, "-4"));
        assert!(routes(&world, "-6").iter().any(|route| route.starts_with(&v6)), "{v6}: {:?}", routes(&world, "-6"));
    }
    let listed = world.command(&["routes", "--output", "json"]);
    assert!(listed.stdout.contains(&world.lab.workload("a").v4.to_string()), "{listed:?}");
}

#[test]
fn deleted_and_changed_ones_are_repaired() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.start();
    let (v4, v6) = (world.lab.workload("a").v4, world.lab.workload("a").v6);
    let right = |world: &World, family: &str| {
        routes(world, family).iter().filter(|route| route.contains("proto 80")).count() == 1
    };
    for wrong in [
        format!("route del {v4} dev calia"),
        format!("-6 route del {v6} dev calia"),
        // One of ours with another metric, as an earlier configuration may have left it.
        format!("route add {v4} dev calia scope link proto 80 metric 7"),
    ] {
        world.lab.host.ip(&wrong).expect("changes a route");
        eventually(&wrong, SOON, || {
            right(&world, "-4")
                && right(&world, "-6")
                && routes(&world, "-4").iter().any(|r| r.starts_with(&format!("{v4} dev calia")))
        });
    }
    // Together with a change of the host's addresses, which policy has to know.
    let both = format!("route del {v4} dev calia\naddr add 192.0.2.77/32 dev lo\n");
    world.lab.host.ip_batch(&both).expect("changes a route and an address");
    eventually("the route to be back", SOON, || right(&world, "-4"));
    // All routes through an interface vanish when it goes down.
    world.lab.host.ip("link set calia down").expect("down");
    world.lab.host.ip("link set calia up").expect("up");
    eventually("the routes to be back", SOON, || right(&world, "-4") && right(&world, "-6"));
    world.allowed("outside", "a", Tcp(80));
}

#[test]
fn others_are_never_touched() {
    let mut world = World::new(&["a"]);
    let foreign = [
        // Our protocol number, but no address of a local workload.
        "198.51.100.7 dev up0 scope link proto 80",
        "198.51.100.0/24 via 192.0.2.2 proto 80",
        // A workload's address, but not our protocol, or not our table.
        "10.65.0.10 dev up0 scope link proto static metric 7",
        "10.65.0.10 dev up0 scope link proto 80 table 100",
        "203.0.113.0/24 via 192.0.2.2 proto bird",
    ];
    for route in foreign {
        world.lab.host.ip(&format!("route add {route}")).expect("a route");
    }
    let there = |world: &World| {
        let all = world.lab.host.ip("-d route show table all").expect("routes");
        ["198.51.100.7 ", "198.51.100.0/24 ", "metric 7", "table 100", "203.0.113.0/24 "]
            .iter()
            .all(|part| all.contains(part))
    };
    assert!(there(&world));
    world.start();
    assert!(there(&world));
    world.terminate();
    world.start();
    assert!(there(&world));
    world.terminate();
    assert_eq!(world.command(&["purge"]).code, 0);
    assert!(there(&world));
    let left = world.lab.host.ip("route show table main proto 80").expect("routes");
    assert!(!left.contains("calia"), "{left}");
}
