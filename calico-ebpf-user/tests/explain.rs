//! The command `explain`, as a user calls it.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn explain(arguments: &[&str], input: &[u8]) -> Output {
    explain_files("../examples/demo", arguments, input)
}

fn explain_files(files: &str, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_calico-ebpf"))
        .args(["explain", "--config"])
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(files))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // Who refuses its arguments does not read.
    let _ = child.stdin.take().expect("was piped").write_all(input);
    child.wait_with_output().expect("the program ends")
}

fn code(arguments: &str) -> Option<i32> {
    explain(&arguments.split_whitespace().collect::<Vec<_>>(), b"").status.code()
}

#[test]
fn each_line_has_its_answer() {
    let good = r#"{"from":"shop/web","to":"shop/api","protocol":"TCP","port":8080}"#;
    let by_number = r#"{"from":"10.65.0.10","to":"shop/api","protocol":6,"port":8080,"sourcePort":1}"#;
    let ping = r#"{"from":"shop/web","to":"host","protocol":"ICMP","icmpType":8,"icmpCode":0}"#;
    let lines: [&[u8]; 8] = [
        good.as_bytes(),
        b"",
        b"\xff\xfe",
        br#"{"from":"shop/web","to":"shop/nobody","protocol":"TCP","port":1}"#,
        br#"{"from":"shop/web","to":"shop/api","protocol":"TCP"}"#,
        by_number.as_bytes(),
        br#"{"from":"shop/web","to":"shop/api","protocol":"TCP","port":1,"prot":2}"#,
        ping.as_bytes(),
    ];
    // As a table, too: the answers are JSON whatever is asked for.
    let output = explain(&["--node", "demo", "--queries", "-", "--output", "table"], &lines.join(&b'\n'));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    let answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let said: Vec<_> = answers.iter().map(|answer| answer["verdict"].as_str().unwrap_or("error")).collect();
    assert_eq!(said, ["allow", "error", "error", "error", "error", "allow", "error", "deny"]);
    assert!(answers.iter().all(|answer| answer.get("error").is_none_or(Value::is_string)), "{text}");
    let good = explain(&["--node", "demo", "--queries", "-"], format!("{good}\n").as_bytes());
    assert_eq!(good.status.code(), Some(0), "{good:?}");
}

#[test]
fn wrong_usage_is_told_from_a_denied_flow() {
    assert_eq!(code("--node demo --from shop/web --to shop/db --protocol TCP --port 1"), Some(0), "denied");
    assert_eq!(code("--node demo --from shop/web --to shop/api --protocol TCP"), Some(2), "no port");
    assert_eq!(code("--node demo --from shop/web --to shop/api --protocol ICMP --port 1"), Some(2), "a port too many");
    assert_eq!(code("--node demo --from nobody --to shop/api --protocol ICMP"), Some(2), "no WHO");
    assert_eq!(code("--node demo --from shop/web --to shop/api --protocol FOO"), Some(2), "no protocol");
    assert_eq!(code("--node demo --from shop/nobody --to shop/api --protocol ICMP"), Some(1), "not in the files");
    assert_eq!(code("--node demo --queries /nonexistent"), Some(1));
}

#[test]
fn what_is_for_many_is_for_the_host() {
    for (to, protocol) in [
        ("224.0.0.251", "UDP --port 5353"),
        ("255.255.255.255", "UDP --port 67"),
        ("127.0.0.1", "TCP --port 80"),
        ("ff02::1", "ICMPv6"),
    ] {
        let flow = format!("--node demo --output json --from shop/web --to {to} --protocol {protocol}");
        let output = explain(&flow.split_whitespace().collect::<Vec<_>>(), b"");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        // Whether policy has it dropped or what becomes of what is for the host.
        assert_eq!((&said["verdict"], &said["destination"]), (&"deny".into(), &Value::Null), "{to}: {said}");
    }
}

#[test]
fn icmpv6_is_of_ipv6() {
    let flow = "--node demo --output json --from shop/web --to shop/api --protocol";
    let judged = |protocol: &str, to: &str| {
        let flow = flow.replace("shop/api", to);
        let output = explain(&flow.split_whitespace().chain([protocol]).collect::<Vec<_>>(), b"");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    assert_eq!(judged("ICMPv6", "shop/api"), judged("ICMPv6", "fd00:65::b"));
    assert_eq!(judged("ICMP", "shop/api"), judged("ICMP", "10.65.0.11"));
}

#[test]
fn a_misspelt_node_is_told() {
    let arguments = ["--from", "shop/web", "--to", "shop/api", "--protocol", "ICMP", "--node"];
    let said = |node: &str| {
        let output = explain(&[&arguments[..], &[node]].concat(), b"");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    };
    assert_eq!(said("demo"), "");
    assert!(said("dmeo").contains("the files name demo"));
    let mut validate = Command::new(env!("CARGO_BIN_EXE_calico-ebpf"));
    validate.args(["validate", "--node", "dmeo"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo"));
    let validated = validate.output().expect("the program starts");
    assert_eq!(validated.status.code(), Some(0), "{validated:?}");
    assert!(String::from_utf8_lossy(&validated.stderr).contains("the files name demo"), "{validated:?}");
}

#[test]
fn untracked_policy_is_asked_first_and_about_the_answer() {
    let asked = |flow: &str| {
        let arguments: Vec<_> =
            ["--node", "n", "--output", "json"].into_iter().chain(flow.split_whitespace()).collect();
        let output = explain_files("tests/data/untracked.yaml", &arguments, b"");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let end = |name: &str| {
            let end = &said[name];
            let word = |field: &str| end[field].as_str().unwrap_or("-").to_owned();
            if end.is_null() {
                "-".to_owned()
            } else {
                format!("{} {} {}", word("verdict"), word("reason"), word("policy"))
            }
        };
        let verdict = said["verdict"].as_str().expect("a word").to_owned();
        [verdict, end("untracked"), end("untrackedAnswer"), end("source"), end("destination")]
    };
    let (listed, other) = ("--from 192.0.2.7 --protocol TCP", "--from 198.51.100.7 --protocol TCP");
    let (allowed, undecided) = ("allow rule a", "leave undecided -");
    let failsafe = "failsafe failsafeInboundHostPorts";
    for (flow, expected) in [
        // Denied before the workload's policy, which would allow it.
        (format!("{listed} --to t/a --port 80"), ["deny", "deny rule list", "-", "-", allowed]),
        (format!("{other} --to t/a --port 80"), ["allow", undecided, "-", "-", allowed]),
        // Failsafe ports come before the list.
        (
            format!("{listed} --to 10.0.0.1 --port 22"),
            ["allow", &format!("leave {failsafe}"), &format!("leave {failsafe}"), "-", &format!("allow {failsafe}")],
        ),
        // Allowed, so that the host endpoint's other policy is not asked; but it is about the answer, which nothing knows for one.
        (format!("{other} --to 10.0.0.1 --port 53"), ["deny", "allow rule list", "deny no-profile -", "-", "-"]),
        (format!("{other} --to 10.0.0.1 --port 54"), ["deny", undecided, undecided, "-", "deny no-profile -"]),
        // What comes back from who is listed does not arrive.
        ("--from t/a --to 192.0.2.7 --protocol TCP --port 80".into(), ["deny", "-", "deny rule list", allowed, "-"]),
        (
            "--from host --to 198.51.100.7 --protocol TCP --port 666".into(),
            ["deny", "deny rule list", undecided, "deny no-profile -", "-"],
        ),
        // What IPv6 needs to work at all is judged by nobody.
        ("--from fd00::7 --to host --protocol ICMPv6 --icmp-type 135".into(), ["allow", "-", "-", "-", "-"]),
        // Between workloads nothing passes the interface.
        ("--from t/a --to t/b --protocol TCP --port 80".into(), ["allow", "-", "-", allowed, allowed]),
    ] {
        assert_eq!(asked(&flow), expected, "{flow}");
    }
    let table = explain_files(
        "tests/data/untracked.yaml",
        &["--node", "n", "--from", "192.0.2.7", "--to", "t/a", "--protocol", "TCP", "--port", "80"],
        b"",
    );
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.contains("untracked    deny: eth0: rule, tier default, GlobalNetworkPolicy list, rule 0"), "{table}");
}
