//! The lab of many hosts, as a newcomer uses it.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use xtask::{project, setup::find_program};

/// A directory for what is kept of one lab; the lab ends with the test.
struct Lab {
    directory: PathBuf,
}

impl Lab {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("calico-ebpf-lab-{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        Self { directory }
    }

    /// `cargo xtask lab ARGUMENTS`.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.arg("lab").args(arguments).env("CALICO_EBPF_LAB", &self.directory);
        command.env("CALICO_EBPF_BIN", project::binary()).output().expect("starts")
    }

    /// The same, which must succeed: what it prints.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The prefix of all that belongs to it.
    fn name(&self) -> String {
        let text = fs::read_to_string(self.directory.join("lab.json")).expect("a lab");
        let state: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        state["name"].as_str().expect("a name").to_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _there_is_none = self.run(&["down"]);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Namespaces, pins and files of this name.
fn traces(name: &str) -> Vec<String> {
    let temporary = std::env::temp_dir();
    let directories = ["/run/netns".as_ref(), "/sys/fs/bpf".as_ref(), temporary.as_path()];
    let entries = directories.into_iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|entry| entry.starts_with(name)).collect()
}

#[test]
fn it_comes_up_shows_follows_and_goes() {
    if find_program("bird").is_none() {
        println!("\nfact: no bird");
        return;
    }
    let lab = Lab::new("racks");
    assert!(!lab.run(&["status"]).status.success(), "there is none yet");
    // Hosts 1 and 3 in one rack, host 2 in the other.
    let shown = lab.done(&["up", "--hosts", "3", "--workloads", "4", "--racks", "--ipv6"]);
    for row in [
        "w1          .           4 6         - -         - -         - -         |",
        "w2          - -         .           4 6         - -         4 -         |",
        "outside     4 6         - -         - -         4 6         .           |",
        "host2       4 6         4 6         - -         4 6         4 6         |",
    ] {
        assert!(shown.lines().any(|line| line.starts_with(row)), "no `{row}` in\n{shown}");
    }
    assert!(shown.contains("all as the policy says"), "{shown}");
    let sessions = "established: rack2_4 rack2_6 outside_4 outside_6 host1_4 host1_6 host3_4 host3_6";
    assert!(shown.contains(sessions), "{shown}");
    let name = lab.name();
    assert!(!traces(&name).is_empty());
    assert!(!lab.run(&["up"]).status.success(), "one at a time");
    // Commands run where they are told, on what belongs there, and end as they end.
    assert_eq!(lab.run(&["exec", "w1", "--", "sh", "-c", "exit 7"]).status.code(), Some(7));
    assert!(lab.done(&["exec", "w4", "--", "ip", "-br", "addr"]).contains("10.65.1.2/32"));
    assert!(lab.done(&["exec", "host2", "--", "calico-ebpf", "workloads"]).contains("w2"));
    assert!(lab.done(&["exec", "rack1", "--", "birdc", "show", "status"]).contains("192.0.2.101"));
    // One directory for all hosts: each polices its own.
    let policy = std::env::temp_dir().join(&name).join("config/policy.yaml");
    let text = fs::read_to_string(&policy).expect("the policy");
    fs::write(
        &policy,
        text.replace("source:\n        selector: role == 'web'", "source:\n        selector: role == 'db'"),
    )
    .expect("writes");
    for host in ["host1", "host2", "host3"] {
        lab.done(&["exec", host, "--", "calico-ebpf", "reload"]);
    }
    let shown = lab.done(&["status"]);
    let row = "w1          .           - -         - -         - -         - -         |";
    assert!(shown.lines().any(|line| line.starts_with(row)), "no `{row}` in\n{shown}");
    lab.done(&["down"]);
    assert_eq!(traces(&name), Vec::<String>::new());
    assert!(!lab.run(&["down"]).status.success(), "there is none any more");
}
