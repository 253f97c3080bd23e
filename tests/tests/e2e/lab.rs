//! The laboratory itself: what a killed test leaves is removed by the next one.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use calico_ebpf_tests::lab::{self, Namespace};

/// A name of a laboratory whose process is dead: this process, had it started at another time.
fn orphan() -> String {
    let own = lab::unique_name().expect("a name");
    let parts: Vec<&str> = own.split('-').collect();
    let [prefix, pid, start, number] = parts[..] else { panic!("another form of name: {own}") };
    let other = start.parse::<u64>().expect("a number") + 1;
    [prefix, pid, &other.to_string(), number].join("-")
}

fn is_mounted(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("reads");
    mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str())
}

/// Namespace, a process in it, pins, a mounted file system: as the tests of single programs and the demo make them.
fn make(name: &str) -> std::process::Child {
    let namespace = Namespace::create(format!("{name}-host")).expect("a namespace");
    let process = namespace.command("sleep").arg("600").stdout(Stdio::null()).spawn().expect("starts");
    // It stays when the test is killed.
    std::mem::forget(namespace);
    fs::create_dir(lab::pin_dir(name)).expect("a pin directory");
    let directory = std::env::temp_dir().join(name);
    fs::create_dir(&directory).expect("a directory");
    assert!(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&directory).status().expect("mount").success());
    fs::create_dir(directory.join("pins")).expect("a directory of pins");
    process
}

#[test]
fn what_a_dead_process_left_is_removed_and_nothing_else() {
    let (dead, living) = (orphan(), lab::unique_name().expect("a name"));
    let mut processes = [make(&dead), make(&living)];
    lab::reap();
    let traces = |name: &str| {
        [
            Path::new("/run/netns").join(format!("{name}-host")).exists(),
            lab::pin_dir(name).exists(),
            std::env::temp_dir().join(name).exists(),
            is_mounted(&std::env::temp_dir().join(name)),
        ]
    };
    let ended = processes.each_mut().map(|process| process.try_wait().expect("waits").is_some());
    let found = (traces(&dead), traces(&living));
    // Before anything can fail: this one has nobody else to remove it.
    for process in &mut processes {
        let _ended_already = process.kill();
        let _ = process.wait();
    }
    let directory = std::env::temp_dir().join(&living);
    assert!(Command::new("umount").arg(&directory).status().expect("umount").success());
    fs::remove_dir(&directory).expect("removes");
    fs::remove_dir(lab::pin_dir(&living)).expect("removes");
    assert!(Command::new("ip").args(["netns", "del", &format!("{living}-host")]).status().expect("ip").success());
    assert_eq!(found, ([false; 4], [true; 4]));
    assert_eq!(ended, [true, false]);
}
