//! Whatever is in a file, and whatever it is: a clear error, soon, in little memory, from the program as users start it.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::symlink, net::UnixListener},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use calico_ebpf_user::resources;

/// The most memory that the program may ask the kernel for, in KiB: code, libraries and all.
const MEMORY: u64 = 512 << 10;
/// How long it may take, unoptimised and beside other tests. Optimised, each of these takes less than a second.
const TIME: Duration = Duration::from_secs(8);

/// A directory of this test, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("calico-ebpf-hostile-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a file");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Exit code and standard error of `validate`.
fn validate(path: &Path) -> (Option<i32>, String) {
    let start = Instant::now();
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit -v {MEMORY}; exec \"$0\" validate \"$1\"")])
        .arg(env!("CARGO_BIN_EXE_calico-ebpf"))
        .arg(path)
        .output()
        .expect("the program starts");
    let taken = start.elapsed();
    assert!(taken < TIME, "{} took {taken:?}", path.display());
    let errors = String::from_utf8(output.stderr).expect("text");
    assert!(errors.len() < 2 << 20, "{}: {} bytes of errors", path.display(), errors.len());
    (output.status.code(), errors)
}

fn repeated(text: &str, mebibytes: usize) -> String {
    text.repeat((mebibytes << 20) / text.len())
}

fn policy(selector: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkPolicy\nmetadata: {{name: p}}\nspec: {{selector: \"{selector}\"}}\n"
    )
}

#[test]
fn contents() {
    let directory = Directory::new("contents");
    let aliases: String =
        (1..30).map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "))).collect();
    let numbered = |count: usize, text: &dyn Fn(usize) -> String| (0..count).map(text).collect::<String>();
    let namespaces = |count, kind: &str| {
        numbered(count, &|i| format!("---\napiVersion: v1\nkind: {kind}\nmetadata: {{name: n{i}}}\n"))
    };
    let keys = |count| numbered(count, &|i| format!("k{i}: 1, "));
    for (name, content, part) in [
        ("brackets", "[".repeat(1_000_000), "1:65: error: not YAML"),
        ("braces", repeated("{", 10), "1:65: error: not YAML"),
        ("keys in keys", repeated("{a: ", 10), "error: not YAML"),
        ("dashes", repeated("- ", 10), "error: not YAML"),
        ("question marks", repeated("? ", 10), "error: not YAML"),
        ("ever deeper", numbered(5_000, &|n| format!("{}a:\n", " ".repeat(n))), "65:65: error: not YAML"),
        ("aliases", format!("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n{aliases}"), "error: the aliases"),
        ("many aliases", format!("a: &a x\nb: [{}]", repeated("*a, ", 10)), "error: the aliases"),
        ("merges", format!("a: &a {{x: 1}}\nb:\n{}", repeated("  <<: *a\n", 20)), "error: the aliases"),
        (
            "a great merge",
            format!("a: &a {{{}}}\nb: {{<<: *a, j{}}}", keys(20_000), keys(200_000)),
            "error: apiVersion",
        ),
        ("anchors", repeated("&a ", 10), "error: not YAML"),
        ("tags", repeated("!a ", 10), "error: the YAML tag"),
        ("zeros", "\0".repeat(30 << 20), "error: a zero byte"),
        ("one line", repeated("a", 10), "error: a text where a resource"),
        ("an open string", format!("a: \"{}", repeated("b", 10)), "error: not YAML: unclosed quote"),
        ("an open string of lines", format!("a: '{}", repeated("b\n", 10)), "error: not YAML"),
        (
            "one scalar",
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {}}}\n", repeated("x", 50)),
            "at most 63",
        ),
        ("a list", format!("a:\n{}", repeated("- x\n", 10)), "error: more than"),
        ("empty mappings", format!("a:\n{}", repeated("- {}\n", 10)), "error: more than"),
        ("a mapping", numbered(2_000_000, &|i| format!("k{i}: b\n")), "error: more than"),
        ("the same key", repeated("a: b\n", 10), "error: more than"),
        ("documents", repeated("--- a\n", 10), "a text where a resource"),
        ("empty documents", repeated("---\n", 10), "error: more than"),
        ("broken documents", repeated("--- [\n", 10), "error: not YAML"),
        ("a million documents", namespaces(1_000_000, "Namespace"), "error: more than"),
        ("misspelt documents", namespaces(400_000, "Namespce"), "did you mean \"Namespace\""),
        ("one name", "---\n{apiVersion: v1, kind: Namespace, metadata: {name: n}}\n".repeat(90_000), "(and more"),
        ("a selector of parentheses", policy(&repeated("(", 10)), "at most 65536"),
        ("parentheses", policy(&"(".repeat(1_000)), "more than 100"),
        ("a selector of negations", policy(&format!("{}all()", repeated("!", 10))), "at most 65536"),
        ("comments", repeated("# x\n", 60), "no document in it"),
        ("blanks", repeated(" ", 60), "no document in it"),
        ("line ends", repeated("\r", 60), "no document in it"),
        ("large", repeated("# x\n", 100), "larger than 64 MiB"),
        ("nothing", String::new(), "no document in it"),
        ("only comments", "# a\n---\n# b\n...\n".to_owned(), "no document in it"),
    ] {
        let path = directory.write("file.yaml", content);
        let (code, errors) = validate(&path);
        assert_eq!(code, Some(1), "{name}: {errors:.300}");
        assert!(errors.starts_with(&format!("{}:", path.display())), "{name}: {errors:.300}");
        assert!(errors.contains(part), "{name}: {errors:.600}");
    }
}

#[test]
fn what_is_large_and_good() {
    let directory = Directory::new("good");
    let address = |i: u32| std::net::Ipv4Addr::from((10 << 24) + i).to_string();
    let addresses: Vec<String> = (1..200_000).map(address).collect();
    let workload = format!(
        "apiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: {{name: x}}\n\
         spec: {{node: n, interfaceName: a, ipNetworks: [{}]}}\n",
        addresses.join(", ")
    );
    let selector = policy(&format!("{}all()", "a == 'b' && ".repeat(5_000)));
    for content in [workload, selector] {
        let path = directory.write("file.yaml", content);
        assert_eq!(validate(&path), (Some(0), String::new()));
    }
}

#[test]
fn encodings() {
    let directory = Directory::new("encodings");
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n";
    let wide = |mark: bool, unit: fn(u16) -> [u8; 2]| {
        let mark = mark.then_some(0xfeff).into_iter();
        mark.chain(text.encode_utf16()).flat_map(unit).collect::<Vec<u8>>()
    };
    let utf32: Vec<u8> = "\u{feff}".chars().chain(text.chars()).flat_map(|c| u32::from(c).to_le_bytes()).collect();
    let in_line_2 = |bytes: &[u8]| [b"apiVersion: v1\nkind: ".as_slice(), bytes, b"\n"].concat();
    for (name, content, part) in [
        ("UTF-16", wide(true, u16::to_le_bytes), ":1:1: error: the file is UTF-16"),
        ("UTF-16 of the other order", wide(true, u16::to_be_bytes), ":1:1: error: the file is UTF-16"),
        ("UTF-16 without mark", wide(false, u16::to_le_bytes), ":1:2: error: a zero byte"),
        ("UTF-16 of the other order without mark", wide(false, u16::to_be_bytes), ":1:1: error: a zero byte"),
        ("UTF-32", utf32, ":1:1: error: the file is UTF-16 or UTF-32"),
        ("Latin-1", in_line_2(b"\xe9"), ":2:7: error: bytes that are not UTF-8"),
        ("half a character", in_line_2("é".as_bytes().split_at(1).0), ":2:7: error: bytes that are not UTF-8"),
        ("a surrogate", in_line_2(b"\xed\xa0\x80"), ":2:7: error: bytes that are not UTF-8"),
        ("too long a form", in_line_2(b"\xc0\xaf"), ":2:7: error: bytes that are not UTF-8"),
        ("a zero byte", in_line_2(b"a\0"), ":2:8: error: a zero byte"),
        ("a control character", in_line_2(b"a\x1b[2J"), ":2:8: error: a control character"),
        ("a delete", in_line_2(b"\"a\x7f\""), ":2:9: error: a control character"),
        ("a mark inside", in_line_2("a\u{feff}b".as_bytes()), ":2:7: error: "),
        ("random", (0..4096_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 | 1).collect(), ":1:"),
    ] {
        let path = directory.write("file.yaml", content);
        let (code, errors) = validate(&path);
        assert_eq!(code, Some(1), "{name}: {errors}");
        assert!(errors.starts_with(&format!("{}{part}", path.display())), "{name}: {errors}");
    }
    let path = directory.write("file.yaml", format!("\u{feff}{}", text.replace('\n', "\r\n")));
    assert_eq!(validate(&path), (Some(0), String::new()));
}

/// Columns count characters, and the marker stands under the place, whatever is before it.
#[test]
fn markers() {
    let directory = Directory::new("markers");
    let head = "apiVersion: v1\nkind: Namespace\n";
    for (line, column, shown) in [
        ("metadata: {name: A}", 18, "metadata: {name: A}"),
        ("metadata: {labels: {a: 'ä'}, name: A}\r", 36, "metadata: {labels: {a: 'ä'}, name: A}"),
        ("{\"metadata\":\t{\"name\":\t\"A\"}}", 0, ""),
        ("metadata: {uid: 日本語, name: A}", 28, "metadata: {uid: 日本語, name: A}"),
    ] {
        if column == 0 {
            continue;
        }
        let path = directory.write("file.yaml", format!("{head}{line}\n"));
        let (_, errors) = validate(&path);
        let found = errors.split("\n\n").flat_map(str::lines).collect::<Vec<_>>();
        let at = found
            .iter()
            .position(|l| l.contains(&format!(":3:{column}: error: Namespace/A: metadata.name")))
            .expect(&errors);
        assert_eq!(found[at + 1], format!("     3 | {shown}"), "{errors}");
        let marker: Vec<char> = found[at + 2].chars().collect();
        assert_eq!(marker.iter().position(|c| *c == '^'), Some(9 + column - 1), "{errors}");
    }
}

#[test]
fn what_is_no_file() {
    let directory = Directory::new("files");
    let inside = |name: &str| directory.0.join(name);
    fs::create_dir_all(inside("of/directories.yaml")).expect("a directory");
    symlink("loop.yaml", inside("loop.yaml")).expect("a link");
    symlink("nowhere", inside("dangling.yaml")).expect("a link");
    let _socket = UnixListener::bind(inside("socket.yaml")).expect("a socket");
    let made = Command::new("mkfifo").arg(inside("fifo.yaml")).status().expect("mkfifo");
    assert!(made.success());
    for (path, part) in [
        (inside("of"), "no *.yaml, *.yml or *.json file in this directory"),
        (inside("loop.yaml"), "symbolic link"),
        (inside("dangling.yaml"), "no such file or directory"),
        (inside("socket.yaml"), "not a regular file"),
        (inside("fifo.yaml"), "not a regular file"),
        (inside("fifo.yaml/a"), "cannot be read"),
        (inside(&"a".repeat(300)), "cannot be read"),
        ("/dev/zero".into(), "not a regular file"),
        ("/dev/tty".into(), "not a regular file"),
        ("/proc/self/mem".into(), "cannot be read"),
        (directory.0.clone(), "not a regular file"),
    ] {
        let (code, errors) = validate(&path);
        assert_eq!(code, Some(1), "{}", path.display());
        assert!(errors.contains(part), "{}: {errors}", path.display());
    }
    // Readers of these would wait for the kernel to say something.
    for path in ["/proc/kmsg", "/sys/kernel/debug/tracing/trace_pipe"] {
        if Path::new(path).exists() {
            assert_eq!(validate(Path::new(path)).0, Some(1), "{path}");
        }
    }
}

#[test]
fn all_files_together_have_a_limit() {
    let directory = Directory::new("together");
    for number in 0..5 {
        let file = fs::File::create(directory.0.join(format!("{number}.yaml"))).expect("a file");
        file.set_len(60 << 20).expect("a long file");
    }
    let (code, errors) = validate(&directory.0);
    assert_eq!(code, Some(1));
    assert!(errors.contains("4.yaml:1:1: error: with this file, all together are larger than 256 MiB"), "{errors}");
}

/// A file that comes and goes, is half written, grows or is cut while it is read: the whole of one state, or an error.
#[test]
fn files_that_change_while_they_are_read() {
    let directory = Directory::new("changing");
    let path = directory.0.join("file.yaml");
    let done = AtomicBool::new(false);
    let list = |count: usize| {
        let items: String =
            (0..count).map(|i| format!("- {{apiVersion: v1, kind: Namespace, metadata: {{name: n{i}}}}}\n")).collect();
        format!("apiVersion: v1\nkind: List\nitems:\n{items}")
    };
    let (long, short) = (list(2_000), list(3));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                fs::write(&path, &long).expect("written");
                fs::write(&path, &short).expect("written");
                let _ = fs::remove_file(&path);
                let mut file = fs::File::create(&path).expect("a file");
                for part in long.as_bytes().chunks(5_000) {
                    file.write_all(part).expect("written");
                }
            }
        });
        let until = Instant::now() + Duration::from_secs(2);
        let mut reader = resources::Reader::default();
        while Instant::now() < until {
            let loaded = reader.load(std::slice::from_ref(&path));
            for error in loaded.errors() {
                assert!(error.line >= 1 && !error.message.is_empty(), "{error}");
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    fs::write(&path, &short).expect("written");
    let loaded = resources::load(std::slice::from_ref(&path));
    assert_eq!((loaded.errors().count(), loaded.set.namespaces.len()), (0, 3));
}
