//! The running process: who it runs beside, what it serves, how it reads files and how it ends.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

use calico_ebpf_tests::{Protocol::Tcp, World, eventually, resources::policy};
use serde_json::Value;

const DENY: &str = "  types: [Ingress]\n";
const ALLOW: &str = "  types: [Ingress]\n  ingress:\n    - action: Allow\n";

/// What `GET path` answers, inside the host's namespace.
fn get(world: &World, port: u16, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    world.lab.host.enter(ask).expect("enters").unwrap_or_else(|error| panic!("{path}: {error}\n{}", world.log()))
}

#[test]
fn metrics_and_probes_are_served() {
    let mut world = World::new(&["a", "b"]);
    // So that only `reload` reads the files.
    world.start_with(&["--listen", "127.0.0.1:9291", "--watch", "off"]);
    assert!(get(&world, 9291, "/liveness").starts_with("HTTP/1.1 200"));
    assert!(get(&world, 9291, "/readiness").starts_with("HTTP/1.1 200"));
    assert!(get(&world, 9291, "/nothing").starts_with("HTTP/1.1 404"));
    let metrics = get(&world, 9291, "/metrics");
    assert!(metrics.contains("\ncalico_ebpf_failed_loads_total 0\n"), "{metrics}");
    assert!(metrics.contains("\ncalico_ebpf_workloads{state=\"up\"} 2\n"), "{metrics}");
    world.write("policy.yaml", "kind: [");
    for attempt in 1..=2 {
        assert_eq!(world.command(&["reload"]).code, 1);
        let metrics = get(&world, 9291, "/metrics");
        assert!(metrics.contains(&format!("\ncalico_ebpf_failed_loads_total {attempt}\n")), "{metrics}");
        assert!(metrics.contains("\ncalico_ebpf_last_load_ok 0\n"), "{metrics}");
    }
}

#[test]
fn a_busy_port_matters_only_to_who_asked_for_it() {
    let mut world = World::new(&["a"]);
    let listen = || std::net::TcpListener::bind("127.0.0.1:9091");
    let _busy = world.lab.host.enter(listen).expect("enters").expect("binds");
    let refused = world.run_command(&["--listen", "127.0.0.1:9091"]).output().expect("starts");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("127.0.0.1:9091"), "{refused:?}");
    // The default of the program, without --listen.
    let mut command = world.program(&["run"]);
    command.arg("--config").arg(world.config()).args(["--node", "lab", "--once"]);
    assert!(command.stdout(Stdio::null()).status().expect("starts").success());
    world.start();
}

#[test]
fn it_does_not_run_beside_felix() {
    let world = World::new(&["a"]);
    let directory = world.config().parent().expect("a parent").join("bin");
    fs::create_dir(&directory).expect("a directory");
    let felix = directory.join("calico-felix");
    fs::copy("/bin/sleep", &felix).expect("copies");
    let mut felix = world.lab.host.command(felix.to_str().expect("text")).arg("60").spawn().expect("starts");
    // Until it has become Felix it is still whatever started it.
    let command_line = format!("/proc/{}/cmdline", felix.id());
    eventually("Felix", Duration::from_secs(3), || {
        fs::read_to_string(&command_line)
            .is_ok_and(|line| line.split('\0').next().is_some_and(|program| program.ends_with("calico-felix")))
    });
    let refused = world.run_command(&["--once"]).output().expect("starts");
    felix.kill().expect("kills");
    felix.wait().expect("waits");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Felix"), "{refused:?}");
    assert!(!world.lab.pin_dir().exists(), "something was installed");
}

#[test]
fn refused_at_start_nothing_is_touched() {
    let world = World::new(&["a"]);
    world.write("policy.yaml", &policy("x", "app ==", DENY));
    let refused = world.run_command(&[]).output().expect("starts");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("policy.yaml:"), "{said}");
    assert!(refused.stdout.is_empty(), "{refused:?}");
    assert!(!world.lab.pin_dir().exists(), "something was installed");
}

#[test]
fn pins_are_made_on_a_bpffs_or_nowhere() {
    let world = World::new(&["a"]);
    let elsewhere = world.config().with_file_name("pins");
    let pin_dir = elsewhere.to_str().expect("text");
    let refused = world.run_command(&["--once", "--pin-dir", pin_dir]).output().expect("starts");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("no bpffs here") && said.contains("mount -t bpf"), "{said}");
    assert!(!elsewhere.exists(), "something was made");
}

#[test]
fn the_socket_is_for_root_alone_and_goes_with_the_process() {
    let mut world = World::new(&["a"]);
    world.start();
    let found = {
        let pin = world.lab.pin_dir();
        // Another test's may begin with the same.
        let name = format!("{}.sock", pin.file_name().expect("a name").to_string_lossy());
        let entries = fs::read_dir("/run/calico-ebpf").expect("a directory").flatten();
        entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().ends_with(&name)).expect("a socket")
    };
    assert_eq!(fs::metadata(&found).expect("metadata").permissions().mode() & 0o777, 0o600);
    world.terminate();
    assert!(!found.exists());
    // One that was killed leaves it to `purge`.
    world.start();
    world.kill();
    assert!(found.exists());
    assert_eq!(world.command(&["status"]).code, 0);
    let purged = world.command(&["purge"]);
    assert_eq!(purged.code, 0, "{purged:?}");
    assert!(!found.exists());
}

#[test]
fn a_file_being_written_is_not_read_half() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ALLOW));
    world.start();
    let whole = policy("b-in", "app == 'b'", DENY);
    // Slowly, but without a pause that is an end for whoever watches; how long the longest one was.
    let write = || {
        let mut file = fs::File::create(world.config().join("policy.yaml")).expect("creates");
        let (mut longest, mut last) = (Duration::ZERO, Instant::now());
        for piece in whole.as_bytes().chunks(whole.len() / 8) {
            let before = Instant::now();
            file.write_all(piece).expect("writes");
            longest = longest.max(last.elapsed());
            last = before;
            std::thread::sleep(Duration::from_millis(40));
        }
        longest.max(last.elapsed())
    };
    let mut said = world.log().len();
    // The machine may stand still for longer.
    while write() > Duration::from_millis(90) {
        world.enforce(&[policy("b-in", "app == 'b'", ALLOW)]);
        said = world.log().len();
    }
    let to = SocketAddr::new(world.addresses("b")[0], 80);
    eventually("the whole file", Duration::from_secs(3), || {
        !calico_ebpf_tests::lab::tcp(world.namespace("a"), to, Duration::from_millis(100)).expect("a probe")
    });
    assert!(!world.log()[said..].contains("refused"), "{}", world.log());
}

#[test]
fn a_directory_that_vanishes_and_comes_back() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", DENY));
    world.start();
    let aside = world.config().with_extension("aside");
    fs::rename(world.config(), &aside).expect("renames");
    eventually("the loss is noticed", Duration::from_secs(3), || world.status()["lastLoad"]["ok"] == false);
    world.denied("a", "b", Tcp(80));
    fs::write(aside.join("policy.yaml"), policy("b-in", "app == 'b'", ALLOW)).expect("writes");
    fs::rename(&aside, world.config()).expect("renames");
    eventually("it is back", Duration::from_secs(3), || world.status()["lastLoad"]["ok"] == true);
    world.allowed("a", "b", Tcp(80));
}

#[test]
fn what_nobody_confirmed_is_taken_back_when_the_process_ends() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start_with(&["--watch", "off"]);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", DENY));
    assert_eq!(world.command(&["reload", "--confirm", "600"]).code, 0);
    assert!(world.status()["confirmWithin"].as_u64().is_some_and(|left| left > 500));
    world.denied("a", "b", Tcp(80));
    world.terminate();
    world.allowed("a", "b", Tcp(80));
    assert_eq!(world.command(&["confirm"]).code, 1, "there is nobody to confirm to");
    // No more does the next process put the same in force by itself.
    let again = world.run_command(&["--once"]).output().expect("starts");
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("nobody confirmed"), "{again:?}");
    world.allowed("a", "b", Tcp(80));
    world.write("policy.yaml", &policy("b-in2", "app == 'b'", DENY));
    world.start();
    world.denied("a", "b", Tcp(80));
}

#[test]
fn a_closed_pipe_is_no_accident() {
    let mut world = World::new(&["a"]);
    world.start();
    for arguments in [&["status"][..], &["workloads"], &["rules"], &["doctor"], &["status", "--output", "json"]] {
        let mut child = world.program(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("waits");
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    }
}

#[test]
fn a_stopped_data_path_tells_of_the_last_load() {
    let mut world = World::new(&["a"]);
    world.start();
    world.terminate();
    let accepted = world.status();
    assert_eq!((&accepted["pid"], &accepted["lastLoad"]["ok"]), (&Value::Null, &Value::Bool(true)), "{accepted}");
    world.start();
    // More errors than there is room for.
    let rule = |number: u32| format!("    - {{action: Allow, misspelt{number}: 1}}\n");
    let rules: String = (0..200).map(rule).collect();
    world.write("policy.yaml", &policy("bad", "app == 'a'", &format!("  types: [Ingress]\n  ingress:\n{rules}")));
    assert_eq!(world.command(&["reload"]).code, 1);
    let of_process = world.status()["lastLoad"].clone();
    world.kill();
    let stopped = world.status()["lastLoad"].clone();
    assert_eq!((&stopped["ok"], &stopped["time"]), (&Value::Bool(false), &of_process["time"]));
    let errors = |load: &Value| load["errors"].as_array().expect("a list").clone();
    let (all, mut kept) = (errors(&of_process), errors(&stopped));
    let more = kept.pop().expect("an error")["message"].to_string();
    assert!(all.len() == 200 && kept.len() > 20 && kept[..] == all[..kept.len()], "{kept:?}");
    assert!(more.contains(&format!("and {} more", 200 - kept.len())), "{more}");
    assert!(world.command(&["status"]).stdout.contains("REFUSED"));
}
