//! Namespaces to try things in.
#![allow(clippy::expect_used, dead_code, unreachable_pub, missing_docs, reason = "shared by several test programs")]

use std::process::Command;

use calico_ebpf_user::dataplane::{AttachMode, Dataplane, Instance, Options, netns, purge::purge, view::View};
use xtask::lab::{pin_dir, unique_name};

/// A host and a workload, each a network namespace; the calling thread is in the host's.
pub struct Lab {
    pub name: String,
    pub instance: Instance,
}

impl Lab {
    pub fn new() -> Self {
        let name = unique_name().expect("a name");
        let lab = Self { instance: Instance::new(pin_dir(&name)), name };
        for namespace in [lab.host(), lab.pod()] {
            run(&["ip", "netns", "add", &namespace]);
        }
        netns::enter(&lab.host()).expect("the namespace was just made");
        run(&["ip", "link", "set", "lo", "up"]);
        run(&["sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"]);
        lab
    }

    pub fn host(&self) -> String {
        format!("{}-h", self.name)
    }

    pub fn pod(&self) -> String {
        format!("{}-p", self.name)
    }

    pub fn add_interface(&self, interface: &str) {
        run(&["ip", "link", "add", interface, "type", "veth", "peer", "name", interface, "netns", &self.pod()]);
        run(&["ip", "link", "set", interface, "up"]);
        run(&["ip", "-n", &self.pod(), "link", "set", interface, "up"]);
    }

    pub fn open(&self, attach: AttachMode) -> Dataplane {
        let options = Options { conns: 4096, attach, ..Options::new(self.instance.clone()) };
        Dataplane::open(&options).expect("a data path")
    }

    pub fn view(&self) -> View {
        View::open(&self.instance).expect("may look").expect("is installed")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = purge(&self.instance) {
            eprintln!("{}: {error}", self.name);
        }
        for namespace in [self.host(), self.pod()] {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).status();
        }
    }
}

/// Runs a command in the namespace of the thread; its output.
pub fn run(command: &[&str]) -> String {
    let output = Command::new(command[0]).args(&command[1..]).output().expect("the command exists");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}", text(&output.stderr));
    text(&output.stdout)
}
