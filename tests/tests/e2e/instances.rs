//! Several instances on one machine, each in its network namespace.

use std::{fs, path::PathBuf, process::Command};

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
fn what_was_in_a_namespace_that_is_gone_hangs_on_nothing_in_the_next_one() {
    let mut world = World::new(&["a"]);
    world.start();
    if world.status()["workloads"][0]["attachment"] != "tcx" {
        println!("\nfact: no TCX links, whose pins could stay");
        return;
    }
    let index = world.lab.host.ip("-o link show dev calia").expect("a link");
    let index = index.split_once(':').expect("an index").0.to_owned();
    let mark = format!("link_{index}_");
    let links = |world: &World| -> Vec<String> {
        let layouts = fs::read_dir(world.lab.pin_dir()).expect("pins").flatten();
        let pins = layouts.flat_map(|layout| fs::read_dir(layout.path()).expect("pins").flatten());
        pins.filter_map(|pin| pin.file_name().into_string().ok()).filter(|name| name.starts_with("link_")).collect()
    };
    assert!(links(&world).iter().any(|name| name.starts_with(&mark)), "{:?}", links(&world));
    world.kill();
    // As where a container has started anew, with a file system of the host's: interfaces with the same numbers are others.
    let again = format!("ip netns del {0} && ip netns add {0}", world.lab.host.name());
    assert!(Command::new("sh").args(["-c", &again]).status().expect("a shell").success());
    let innocent = format!("link add innocent index {index} type veth peer name other\nlink set innocent up");
    world.lab.host.ip_batch(&innocent).expect("an interface");
    world.start();
    assert_eq!(links(&world), Vec::<String>::new(), "{}", world.log());
    assert_eq!(world.status()["faults"], serde_json::json!([]), "{}", world.log());
    // Nor does it end with that: a purge of pins alone touches nothing else.
    world.kill();
    assert!(Command::new("sh").args(["-c", &again]).status().expect("a shell").success());
    let forwarding = |world: &World| {
        let output = world.lab.host.command("sysctl").args(["-n", "net.ipv4.conf.all.forwarding"]).output();
        String::from_utf8_lossy(&output.expect("sysctl").stdout).into_owned()
    };
    world.lab.host.sysctl("net/ipv4/conf/all/forwarding", "1").expect("sets it");
    let purged = world.command(&["purge"]);
    assert_eq!(purged.code, 0, "{purged:?}");
    assert_eq!(forwarding(&world), "1\n", "{purged:?}");
    assert!(!world.lab.pin_dir().exists());
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

/// A pin directory, which goes with the test however that ends.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _gone_already = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn one_network_namespace_has_one_data_path() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    // The same namespace, another pin directory: another instance.
    let pins = Pins(world.lab.pin_dir().with_file_name(format!("{}-other", world.lab.name())));
    let other = pins.0.as_path();
    let mut command = Command::new(project::binary());
    command.args(["run", "--once", "--netns", world.lab.host.name(), "--listen", "off"]);
    command.arg("--pin-dir").arg(other).arg("--config").arg(world.config());
    let refused = command.output().expect("starts");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&world.pid().to_string()) && said.contains("namespace"), "{said}");
    assert!(!other.exists(), "something was installed");
    // What another instance left is not taken away from under the one that runs.
    world.kill();
    let left = world.run_command(&["--once", "--pin-dir"]).arg(other).output().expect("starts");
    assert_eq!(left.status.code(), Some(0), "{left:?}");
    world.start();
    let purge = |world: &World| world.program(&["purge"]).arg("--pin-dir").arg(other).output().expect("starts");
    let refused = purge(&world);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains(&world.pid().to_string()) && said.contains("namespace"), "{said}");
    world.allowed("a", "b", Tcp(80));
    world.kill();
    let purged = purge(&world);
    assert_eq!(purged.status.code(), Some(0), "{purged:?}");
    assert!(!other.exists());
    world.start();
    world.allowed("a", "b", Tcp(80));
}
