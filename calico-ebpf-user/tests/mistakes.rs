//! Neighbours of every rule of validation: files whose comments say which findings there are, in which line, of which field.
//!
//! `#! FIELD: TEXT` stands in a line with an error about that field (`-` for none) whose message contains the text,
//! `#? FIELD: TEXT` in one with a warning. All findings of a file have to be foretold and all that are foretold have to be
//! there, so that each document without a comment is also one that has to be accepted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use calico_ebpf_user::{
    policy,
    resources::{Diagnostic, Reader, Severity},
};

#[derive(Debug)]
struct Foretold {
    line: u32,
    severity: Severity,
    field: Option<String>,
    text: String,
}

impl Foretold {
    fn fits(&self, finding: &Diagnostic) -> bool {
        self.line == finding.line
            && self.severity == finding.severity
            && self.field == finding.field
            && finding.message.contains(&self.text)
    }
}

/// The findings of a file, as `validate` has them.
fn findings(path: &Path) -> Vec<Diagnostic> {
    let mut reader = Reader::default();
    let mut loaded = reader.load(&[path.to_owned()]);
    if !loaded.has_errors() {
        let remarks = policy::lint(&loaded.set);
        reader.add(&mut loaded, &remarks);
    }
    loaded.diagnostics
}

/// What the comments say.
fn foretold(text: &str) -> Vec<Foretold> {
    let mut all = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let marks = text.match_indices("#! ").map(|(at, _)| (at, Severity::Error));
        let mut marks: Vec<_> = marks.chain(text.match_indices("#? ").map(|(at, _)| (at, Severity::Warning))).collect();
        marks.sort_by_key(|(at, _)| *at);
        for (number, (at, severity)) in marks.iter().enumerate() {
            let end = marks.get(number + 1).map_or(text.len(), |(next, _)| *next);
            let (field, part) = text[at + 3..end].trim().split_once(": ").expect("FIELD: TEXT");
            let field = (field != "-").then(|| field.to_owned());
            all.push(Foretold { line, severity: *severity, field, text: part.to_owned() });
        }
    }
    all
}

#[test]
fn each_file_has_the_findings_that_its_comments_foretell() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mistakes");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(data).expect("the directory").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = String::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("a text");
        let mut missing = foretold(&text);
        for finding in findings(&path) {
            if finding.severity == Severity::Notice {
                continue;
            }
            if let Some(known) = missing.iter().position(|foretold| foretold.fits(&finding)) {
                missing.swap_remove(known);
            } else {
                wrong += &format!("not foretold: {}\n\n", finding.render());
            }
            let identity = matches!(finding.field.as_deref(), None | Some("kind" | "apiVersion"));
            assert!(identity || finding.resource.is_some(), "no resource: {finding}");
        }
        for foretold in missing {
            wrong += &format!("{}: not found: {foretold:?}\n\n", path.display());
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
