//! `validate`: checks the files offline, without root.

use std::{path::PathBuf, process::ExitCode};

use super::{args::Format, output};
use crate::resources::{self, Report};

/// Findings go to standard error, the verdict to standard output; as JSON everything is in the verdict, too.
pub(super) fn run(paths: &[PathBuf], strict: bool, format: Format) -> anyhow::Result<ExitCode> {
    let report = Report::new(&resources::load(paths), strict);
    let findings = report.findings();
    if !findings.is_empty() {
        output::complain(findings.trim_end());
    }
    output::result(format, &report, |report| report.summary() + "\n")?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
