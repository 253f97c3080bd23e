//! Several instances on one machine, each in its network namespace.

use std::process::Command;

use calico_ebpf_tests::{Protocol::Tcp, World, resources::policy};
use xtask::project;

#[test]
fn two_side_by_side_know_nothing_of_each_other() {
    // The same names and addresses in both.
    let (mut one, mut two) = (World::new(&["a", "b"]), World::new(&["a", "b"]));
    one.serve(80);
    two.serve(80);
    two.write("policy.yaml", &policy("all", "all()", "  types: [Ingress]\n"));
    one.start();
    two.start();
    one.allowed("a", "b", Tcp(80));
    two.denied("a", "b", Tcp(80));
    one.terminate();
    assert_eq!(one.command(&["purge"]).code, 0);
    two.denied("a", "b", Tcp(80));
    two.allowed("host", "b", Tcp(80));
    assert!(two.status()["pid"].is_number());
}

#[test]
fn one_of_another_network_namespace_is_not_touched() {
    let (mut one, other) = (World::new(&["a", "b"]), World::new(&["a"]));
    one.serve(80);
    one.write("policy.yaml", &policy("all", "all()", "  types: [Ingress]\n"));
    one.start();
    one.terminate();
    let mistaken = |arguments: &[&str]| {
        let mut command = Command::new(project::binary());
        command.args(arguments).args(["--netns", other.lab.host.name(), "--pin-dir"]).arg(one.lab.pin_dir());
        let refused = command.output().expect("starts");
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}: {refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(one.lab.host.name()), "{arguments:?}: {said}");
    };
    let config = one.config().to_str().expect("a path").to_owned();
    mistaken(&["run", "--once", "--listen", "off", "--config", &config]);
    mistaken(&["purge"]);
    one.denied("a", "b", Tcp(80));
    one.start();
    one.denied("a", "b", Tcp(80));
}

#[test]
fn one_instance_runs_once() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    let second = world.run_command(&[]).output().expect("starts");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains(&world.pid().to_string()) || said.contains("run"), "{said}");
    world.allowed("a", "b", Tcp(80));
}

#[test]
fn one_network_namespace_has_one_data_path() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    // The same namespace, another pin directory: another instance.
    let other = world.lab.pin_dir().with_extension("other");
    let mut command = Command::new(project::binary());
    command.args(["run", "--once", "--netns", world.lab.host.name(), "--listen", "off"]);
    command.arg("--pin-dir").arg(&other).arg("--config").arg(world.config());
    let refused = command.output().expect("starts");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&world.pid().to_string()) && said.contains("namespace"), "{said}");
    assert!(!other.exists(), "something was installed");
    world.allowed("a", "b", Tcp(80));
}
