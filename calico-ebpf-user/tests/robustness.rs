//! Whatever the bytes are, reading them ends, soon and without a panic, and what is refused says why.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use calico_ebpf_user::resources::{self, Loaded, Severity};
use proptest::prelude::*;

/// A file of this test; removed at its end.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("calico-ebpf-robustness-{}-{name}.yaml", std::process::id())))
    }

    fn load(&self, bytes: &[u8]) -> Loaded {
        fs::write(&self.0, bytes).expect("a file");
        let load = || {
            let start = Instant::now();
            (resources::load(std::slice::from_ref(&self.0)), start.elapsed())
        };
        // A machine that stands still for a moment does not do so twice.
        let (slow, (loaded, took)) = (Duration::from_secs(3), load());
        assert!(took < slow || load().1 < slow, "took {took:?}");
        for finding in &loaded.diagnostics {
            assert!(finding.line >= 1 && finding.column >= 1 && !finding.message.is_empty(), "{finding}");
            assert!(!finding.render().contains(|c: char| c.is_control() && c != '\n'), "{finding:?}");
        }
        loaded
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Valid documents with all kinds of fields.
const VALID: &str = r#"apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: p, labels: {"a.b/c": 'd'}, annotations: &notes {x: "y"}}
spec:
  tier: default
  order: -1.5e3
  selector: (a == 'b' || has(c)) && !d in {"e", "f"}
  types: [Ingress, Egress]
  ingress:
  - action: Allow
    protocol: TCP
    source: {nets: [10.0.0.0/8, 192.0.2.1/32], selector: "e starts with 'f'"}
    destination:
      ports: [80, '81', "90:99"]
  - {action: Deny}
  egress: []
---
apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: w, namespace: x, labels: {role: web}, annotations: {n: 'o'}}
spec:
  node: node1
  orchestrator: k8s
  interfaceName: cali1
  ipNetworks: [10.0.0.1/32, "fd00::1"]
  profiles: [kns.x]
  ports: [{name: http, protocol: TCP, port: 80}]
---
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}
---
apiVersion: v1
kind: List
items:
- apiVersion: projectcalico.org/v3
  kind: Profile
  metadata: {name: q}
  spec: {labelsToApply: {l: m}, ingress: [&r {action: Allow}], egress: [*r]}
"#;

#[test]
fn the_document_is_valid_before_it_is_broken() {
    let loaded = File::new("valid").load(VALID.as_bytes());
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
}

#[test]
fn hostile_files_are_refused_soon() {
    let file = File::new("hostile");
    let mut aliases = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..30 {
        aliases += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
    }
    let utf16: Vec<u8> = VALID.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut with_mark = vec![0xff, 0xfe];
    with_mark.extend(&utf16);
    let repeated = |text: &str, size: usize| text.repeat(size / text.len()).into_bytes();
    for (name, bytes) in [
        ("aliases", aliases.into_bytes()),
        ("open brackets", repeated("[", 10 << 20)),
        ("open braces", repeated("{", 10 << 20)),
        ("keys in keys", repeated("{a: ", 10 << 20)),
        ("dashes", repeated("- ", 10 << 20)),
        ("question marks", repeated("? ", 10 << 20)),
        ("ever deeper", (0..5_000).map(|n| format!("{}a:\n", " ".repeat(n))).collect::<String>().into_bytes()),
        ("UTF-16", utf16),
        ("UTF-16 with mark", with_mark),
        ("zeros", vec![0; 10 << 20]),
        ("one long line", repeated("a", 10 << 20)),
        ("an open string", [b"a: \"".to_vec(), repeated("b", 10 << 20)].concat()),
        ("anchors", repeated("&a ", 1 << 20)),
        ("tags", repeated("!a ", 1 << 20)),
        ("documents", repeated("--- a\n", 10 << 20)),
        ("broken documents", repeated("--- [\n", 10 << 20)),
        ("too large", vec![b'#'; (32 << 20) + 1]),
    ] {
        let start = Instant::now();
        let loaded = file.load(&bytes);
        assert!(loaded.has_errors(), "{name}");
        assert!(start.elapsed() < Duration::from_secs(2), "{name} took {:?}", start.elapsed());
        assert!(loaded.of(Severity::Error).count() <= 1000, "{name}");
    }
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_are_fine() {
    let text = format!("\u{feff}{}", VALID.replace('\n', "\r\n"));
    let loaded = File::new("windows").load(text.as_bytes());
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        File::new("bytes").load(&bytes);
    }

    #[test]
    fn random_yaml(text in r#"([-?:,\[\]{}#&*!|>'"%@`~<= \n\t]|[a-c0-9./]|kind: |spec:\n|- |\PC){0,200}"#) {
        File::new("yaml").load(text.as_bytes());
    }

    /// A few bytes of a valid file changed, cut out or doubled.
    #[test]
    fn mutated_documents(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<u8>(), 1..40_usize), 1..6),
    ) {
        let mut bytes = VALID.as_bytes().to_vec();
        for (at, change, byte, length) in changes {
            let at = at.index(bytes.len().max(1)).min(bytes.len().saturating_sub(1));
            let end = (at + length).min(bytes.len());
            match change {
                0 if !bytes.is_empty() => bytes[at] = byte,
                1 => { bytes.drain(at..end); }
                2 => { let part = bytes[at..end].to_vec(); bytes.splice(at..at, part); }
                _ => bytes.insert(at, b"[]{}:,-&*!\"'\n\t #|>%@"[usize::from(byte) % 20]),
            }
        }
        File::new("mutated").load(&bytes);
    }

    /// One value of a valid file replaced by another kind of value.
    #[test]
    fn other_values(line in 0..40_usize, value in r#"null|\[\]|\{\}|-1|1e400|"\\0"|''|yes|0x7fffffffffffffff|\[\[\[1\]\]\]|\{a: \{b: c\}\}|&x \[\*x\]|!!binary x"#) {
        let text: Vec<String> = VALID
            .lines()
            .enumerate()
            .map(|(i, text)| match text.split_once(": ") {
                Some((key, _)) if i == line => format!("{key}: {value}"),
                _ => text.to_owned(),
            })
            .collect();
        File::new("values").load(text.join("\n").as_bytes());
    }
}
