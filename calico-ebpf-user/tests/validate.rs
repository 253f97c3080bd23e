//! The command `validate`, as a user calls it.

use std::{
    path::Path,
    process::{Command, Output},
};

fn validate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_calico-ebpf"))
        .arg("validate")
        .args(arguments)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data"))
        .output()
        .expect("the program starts")
}

/// Exit code, standard output, standard error.
fn shown(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn errors_of_all_files_are_listed_with_their_lines() {
    let output = validate(&["documents/unknown-spec-field.yaml", "documents/second-document-broken.yaml", "gone.yaml"]);
    let expected = "\
gone.yaml:1:1: error: no such file or directory
documents/unknown-spec-field.yaml:7:3: error: GlobalNetworkPolicy/p: spec.ingres: unknown field: did you mean \"ingress\"?
     7 |   ingres:
       |   ^^^^^^
documents/second-document-broken.yaml:13:19: error: GlobalNetworkPolicy/bad: spec.selector: not a selector: the selector ends too early: expected a value in quotes
    13 |   selector: pod ==
       |                   ^
";
    assert_eq!(shown(&output), (Some(1), "refused: 3 errors, 2 files\n".to_owned(), expected.to_owned()));
}

#[test]
fn the_verdict_as_json() {
    let output = validate(&["documents/order-word.yaml", "--output", "json"]);
    let (code, stdout, stderr) = shown(&output);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("documents/order-word.yaml:7:10: error: "), "{stderr}");
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(report["ok"], false);
    let error = &report["errors"][0];
    for (key, value) in [
        ("path", serde_json::json!("documents/order-word.yaml")),
        ("line", 7.into()),
        ("column", 10.into()),
        ("resource", "GlobalNetworkPolicy/p".into()),
        ("field", "spec.order".into()),
    ] {
        assert_eq!(error[key], value, "{key}");
    }
    assert!(error["sourceLine"]["text"].as_str().is_some_and(|line| line.contains("order:")), "{error}");
}

#[test]
fn warnings_fail_only_when_strict() {
    let output = validate(&["warning.yaml"]);
    let (code, stdout, stderr) = shown(&output);
    assert_eq!((code, stdout.as_str()), (Some(0), "valid: 1 warning, 1 file, 1 WorkloadEndpoint\n"));
    assert!(
        stderr.contains("warning: WorkloadEndpoint/default/a: spec.profiles: the profile kns.x does not exist"),
        "{stderr}"
    );
    assert_eq!(validate(&["--strict", "warning.yaml"]).status.code(), Some(1));
    assert_eq!(validate(&["documents/ok-order-negative.yaml", "--strict"]).status.code(), Some(0));
}

#[test]
fn no_path_is_wrong_usage() {
    assert_eq!(validate(&[]).status.code(), Some(2));
}
