//! The demo, as a newcomer sees it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::project;

const PATIENCE: Duration = Duration::from_secs(30);
const MATRIX: [&str; 5] = [
    "web         .           4 6         - -         - -         |",
    "api         - -         .           4 6         4 -         |",
    "db          - -         - -         .           - -         |",
    "outside     4 6         - -         - -         .           |",
    "host        4 6         4 6         4 6         4 6         |",
];

/// A running demo; ends with the test.
struct Demo {
    child: Child,
    lines: Receiver<String>,
}

impl Demo {
    fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
        let mut child = command.arg(config).stdout(Stdio::piped()).spawn().expect("starts the demo");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The lines up to the first one with `text`.
    fn until(&self, text: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else { panic!("no `{text}` in:\n{}", seen.join("\n")) };
            seen.push(line);
            if seen.last().is_some_and(|line| line.contains(text)) {
                return seen;
            }
        }
    }

    fn interrupt(&mut self) -> Option<i32> {
        kill(Pid::from_raw(i32::try_from(self.child.id()).expect("a pid")), Signal::SIGINT).expect("signals");
        self.child.wait().expect("waits").code()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.interrupt();
        }
    }
}

/// Namespaces and pins of this process's laboratories.
fn traces(pid: u32) -> Vec<String> {
    let prefix = format!("calilab-{pid}-");
    let entries =
        ["/run/netns", "/sys/fs/bpf"].into_iter().flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten());
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with(&prefix))
        .collect()
}

#[test]
fn it_shows_follows_and_cleans_up() {
    let config = std::env::temp_dir().join(format!("calico-ebpf-demo-{}", std::process::id()));
    fs::create_dir_all(&config).expect("a directory");
    for file in ["workloads.yaml", "policy.yaml"] {
        fs::copy(project::root().join("examples/demo").join(file), config.join(file)).expect("copies the example");
    }
    let mut demo = Demo::start(&config);
    let shown = demo.until("as the policy says");
    for row in MATRIX {
        assert!(shown.iter().any(|line| line.starts_with(row)), "no `{row}` in\n{}", shown.join("\n"));
    }
    assert!(shown.last().is_some_and(|line| line.contains("all as the policy says")), "{}", shown.join("\n"));
    assert!(shown.iter().any(|line| line.starts_with("10.65.0.10 dev caliweb")), "no routes in\n{}", shown.join("\n"));
    assert!(!traces(demo.child.id()).is_empty());

    let policy = fs::read_to_string(config.join("policy.yaml")).expect("reads");
    let edited = policy.replacen("role == 'web'\n      destination", "role == 'db'\n      destination", 1);
    assert_ne!(policy, edited);
    let edit = |text: &str| {
        let before = Instant::now();
        fs::write(config.join("policy.yaml"), text).expect("writes");
        (demo.until("as the policy says"), before.elapsed())
    };
    let (shown, mut took) = edit(&edited);
    assert!(shown.iter().any(|line| line.starts_with("web         .           - -")), "{}", shown.join("\n"));
    assert!(shown.last().is_some_and(|line| line.contains("all as the policy says")), "{}", shown.join("\n"));
    // The probes that are refused take most of it. A machine that stands still for a moment does not do so three times.
    for text in [&policy, &edited] {
        if took >= Duration::from_secs(2) {
            took = edit(text).1;
        }
    }
    assert!(took < Duration::from_secs(2), "{took:?}");

    fs::write(config.join("policy.yaml"), "kind: [\n").expect("writes");
    demo.until("refused");

    let pid = demo.child.id();
    assert_eq!(demo.interrupt(), Some(0));
    assert!(traces(pid).is_empty(), "{:?}", traces(pid));
    fs::remove_dir_all(&config).expect("removes the directory");
}
