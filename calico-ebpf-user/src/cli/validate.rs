//! `validate`: checks the files offline, without root.

use std::{path::PathBuf, process::ExitCode};

use super::{args::Format, output};
use crate::{
    policy,
    resources::{Reader, Report},
};

/// Findings go to standard error, the verdict to standard output; as JSON everything is in the verdict, too.
pub(super) fn run(paths: &[PathBuf], strict: bool, node: Option<&str>, format: Format) -> anyhow::Result<ExitCode> {
    let mut reader = Reader::default();
    let mut loaded = reader.load(paths);
    if !loaded.has_errors() {
        let remarks = policy::lint(&loaded.set);
        reader.add(&mut loaded, &remarks);
    }
    let report = Report::new(&loaded, strict, node);
    let findings = report.findings();
    if !findings.is_empty() {
        output::complain(findings.trim_end());
    }
    if let Some(warning) = &report.node_warning {
        output::complain(&format!("warning: {warning}"));
    }
    output::result(format, &report, |report| report.summary() + "\n")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
