//! Files that are right and files that are wrong, one mistake each: the verdict, and what the error names.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use calico_ebpf_user::resources::{self, Severity};

#[derive(serde::Deserialize)]
struct Row {
    file: String,
    expect: String,
    line: Option<u32>,
    resource: Option<String>,
    field: Option<String>,
    why: String,
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/documents")
}

#[test]
fn each_mistake_is_named_and_placed() {
    let rows = fs::read_to_string(data().join("expected.jsonl")).expect("the table");
    let mut wrong = Vec::new();
    for row in rows.lines().map(|line| serde_json::from_str::<Row>(line).expect(line)) {
        let start = Instant::now();
        let loaded = resources::load(&[data().join(&row.file)]);
        assert!(start.elapsed() < Duration::from_secs(1), "{} took {:?}", row.file, start.elapsed());
        let errors: Vec<_> = loaded.errors().collect();
        let right = match row.expect.as_str() {
            "accept" => errors.is_empty(),
            "reject" => errors.iter().any(|error| {
                error.path.ends_with(&row.file)
                    && row.line.is_none_or(|line| match row.field {
                        Some(_) => error.line == line,
                        // A mistake of syntax shows where it ends at the latest.
                        None => error.line.abs_diff(line) <= 1,
                    })
                    && row.resource.as_ref().is_none_or(|resource| error.resource.as_ref() == Some(resource))
                    && row.field.as_ref().is_none_or(|field| error.field.as_ref() == Some(field))
            }),
            other => panic!("{other}?"),
        };
        if !right {
            let errors: Vec<_> = errors.iter().map(|error| error.render()).collect();
            wrong.push(format!("{}: {}\n{}", row.file, row.why, errors.join("\n")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Every finding of the documents above, as people see it. `UPDATE_GOLDEN=1` writes the file anew.
#[test]
fn findings_read_well() {
    let mut names: Vec<_> = fs::read_dir(data())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    let mut text = String::new();
    for name in names {
        let loaded = resources::load(&[data().join(&name)]);
        for finding in &loaded.diagnostics {
            assert!(finding.severity != Severity::Error || !finding.message.is_empty());
            let mut finding = finding.clone();
            finding.path.clone_from(&name);
            text.push_str(&finding.render().replace(&format!("{}/", data().display()), ""));
            text.push('\n');
        }
    }
    let golden = data().join("findings.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &text).expect("the golden file");
    }
    let expected = fs::read_to_string(&golden).expect("the golden file");
    assert_eq!(text, expected, "run with UPDATE_GOLDEN=1 and look at the difference");
}
