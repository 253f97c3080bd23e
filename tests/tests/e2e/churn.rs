//! Interfaces and workloads come and go.

use std::time::Duration;

use calico_ebpf_tests::{Protocol::Tcp, World, eventually, resources};

const SOON: Duration = Duration::from_secs(10);

fn state(world: &World, interface: &str) -> String {
    let status = world.status();
    let workloads = status["workloads"].as_array().expect("a list");
    let found = workloads.iter().find(|workload| workload["interface"] == interface);
    found.map_or_else(|| panic!("no {interface} in {status}"), |workload| workload["state"].to_string())
}

#[test]
fn an_interface_may_vanish_and_return_at_any_time() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    // Absent at the start: no error, no delay.
    world.lab.workload("b").disconnect().expect("deletes the veth");
    world.start();
    let absent = state(&world, "calib");
    let present = state(&world, "calia");
    assert_ne!(absent, present);
    for round in 0..3 {
        world.lab.workload("b").connect().expect("makes a veth");
        eventually("the workload to be served", SOON, || state(&world, "calib") == present);
        world.allowed("a", "b", Tcp(80));
        world.allowed("b", "outside", Tcp(80));
        world.lab.workload("b").disconnect().expect("deletes the veth");
        eventually("the workload to wait", SOON, || state(&world, "calib") == absent);
        world.allowed("a", "outside", Tcp(80));
        assert!(world.log().lines().all(|line| !line.contains("panicked")), "round {round}");
    }
}

#[test]
fn fast_churn_ends_in_the_right_state() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.start();
    for _ in 0..8 {
        for name in ["b", "c"] {
            world.lab.workload(name).disconnect().expect("deletes the veth");
            world.lab.workload(name).connect().expect("makes a veth");
        }
    }
    for name in ["b", "c"] {
        let to = world.addresses(name)[0];
        eventually(&format!("{name} to be reached"), SOON, || {
            world.reaches("a", to, Tcp(80), Duration::from_millis(300))
        });
        world.allowed(name, "a", Tcp(80));
    }
}

#[test]
fn a_workload_may_be_added_and_removed_while_running() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    world.lab.add_workload("late").expect("a workload");
    let server = calico_ebpf_tests::lab::Server::start(&world.lab.workload("late").namespace, 80).expect("a server");
    world.write("late.yaml", &resources::workload(world.lab.workload("late")));
    assert_eq!(world.command(&["reload"]).code, 0);
    world.allowed("a", "late", Tcp(80));
    world.allowed("late", "outside", Tcp(80));
    let route = format!("{} dev calilate", world.lab.workload("late").v4);
    assert!(world.lab.host.ip("route").expect("routes").contains(&route));
    world.remove("late.yaml");
    assert_eq!(world.command(&["reload"]).code, 0);
    assert!(!world.lab.host.ip("route").expect("routes").contains(&route), "its route is gone");
    world.denied("a", "late", Tcp(80));
    world.denied("late", "a", Tcp(80));
    world.denied("late", "outside", Tcp(80));
    drop(server);
}

#[test]
fn an_address_may_move_to_another_workload() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.start();
    world.allowed("a", "b", Tcp(80));
    // c takes b's addresses over.
    let (b, c) = (world.lab.workload("b"), world.lab.workload("c"));
    let text = |name: &str| resources::workload(world.lab.workload(name));
    let moved = text("c")
        .replace(&format!("{}/32", c.v4), &format!("{}/32", b.v4))
        .replace(&c.v6.to_string(), &b.v6.to_string());
    c.namespace.ip(&format!("addr add {}/32 dev eth0", b.v4)).expect("adds an address");
    c.namespace.ip(&format!("addr add {}/128 dev eth0 nodad", b.v6)).expect("adds an address");
    b.namespace.ip(&format!("addr del {}/32 dev eth0", b.v4)).expect("removes an address");
    b.namespace.ip(&format!("addr del {}/128 dev eth0", b.v6)).expect("removes an address");
    world.write("workloads.yaml", &resources::documents(&[resources::NAMESPACE.to_owned(), text("a"), moved]));
    assert_eq!(world.command(&["reload"]).code, 0);
    world.allowed("a", "b", Tcp(80));
    assert!(world.lab.host.ip("route").expect("routes").contains(&format!("{} dev calic", b.v4)));
}
