//! The conformance cases from file to verdict: through `explain --queries`, and by the plain evaluator.

mod cases;

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use calico_ebpf_user::{policy::evaluate::evaluate, resources};
use cases::{Topology, data, flow, query, read, resources_of};
use serde_json::Value;

/// The answers of `explain --queries`.
fn explain(files: &[&Path], queries: &[Value]) -> Result<Vec<Value>, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_calico-ebpf"));
    command.args(["--node", "node1", "explain", "--queries", "-"]);
    for file in files {
        command.arg("--config").arg(file);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    let text: String = queries.iter().map(|query| format!("{query}\n")).collect();
    let mut input = child.stdin.take().expect("its input");
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("it ends");
    // Where the files are refused nobody reads the queries.
    let _ = writer.join().expect("the writer ends");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let answers = String::from_utf8(output.stdout).expect("UTF-8");
    Ok(answers.lines().map(|line| serde_json::from_str(line).expect("an answer")).collect())
}

/// What decided at both ends, shortly.
fn decided(answer: &Value) -> String {
    let end = |end: &Value| -> String {
        let text = |key: &str| end[key].as_str().map(str::to_owned);
        match (text("kind"), text("policy"), end["rule"].as_u64()) {
            (Some(kind), Some(policy), Some(rule)) => {
                let namespace = text("namespace").map_or(String::new(), |namespace| namespace + "/");
                format!("{kind}/{namespace}{policy}#{rule}")
            }
            _ => match (text("reason"), text("tier")) {
                (Some(reason), Some(tier)) => format!("{reason} {tier}"),
                (Some(reason), None) => reason,
                (None, _) => "nobody".to_owned(),
            },
        }
    };
    format!("{} > {}", end(&answer["source"]), end(&answer["destination"]))
}

/// Runs the cases of a directory; gives the number of probes.
fn run(directory: &str) -> usize {
    let topology: Topology = read(&data().join("topology.json"));
    let mut wrong = Vec::new();
    let mut judged = 0;
    for (policies, case) in cases::cases(directory) {
        let name = cases::name(&policies);
        let common = std::env::temp_dir().join(format!("calico-ebpf-{directory}-{}.json", std::process::id()));
        fs::write(&common, resources_of(&topology, &case).to_string()).expect("a file");
        let queries: Vec<_> = case.probes.iter().map(|probe| query(&topology, probe)).collect();
        let answers = explain(&[&common, &policies], &queries);
        let set = resources::load(&[common.clone(), policies]).set;
        fs::remove_file(&common).expect("removed");
        let answers = match answers {
            Ok(answers) => answers,
            Err(errors) => {
                wrong.push(format!("{name}: {errors}"));
                continue;
            }
        };
        assert_eq!(answers.len(), queries.len(), "{name}");
        for (probe, answer) in case.probes.iter().zip(&answers) {
            judged += 1;
            let mut complain = |who: &str, says: &dyn std::fmt::Display| {
                wrong.push(format!("{name} ({}): {probe:?}: the {who} says {says}", case.title));
            };
            if answer["verdict"] != if probe.allow { "allow" } else { "deny" } {
                complain("program", answer);
            }
            if probe.by.as_ref().is_some_and(|by| *by != decided(answer)) {
                complain("program", &decided(answer));
            }
            if probe.staged.as_ref().is_some_and(|staged| *staged != decided(&answer["staged"])) {
                complain("program", &format!("{} with the staged policies", decided(&answer["staged"])));
            }
            if let Some(verdict) = flow(&topology, probe).map(|flow| evaluate(&set, &flow))
                && verdict.allow() != probe.allow
            {
                complain("evaluator", &format!("{verdict:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    judged
}

#[test]
fn calico() {
    assert!(run("calico") > 700);
}

#[test]
fn kubernetes() {
    assert!(run("k8s") > 400);
}

#[test]
fn own() {
    assert!(run("own") > 300);
}
