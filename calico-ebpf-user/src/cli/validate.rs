//! `validate`.

use std::{path::PathBuf, process::ExitCode};

use serde::Serialize;

use super::{args::Format, output};
use crate::resources::{self, Diagnostic, Severity};

/// What `--output json` prints.
#[derive(Serialize)]
struct Report<'a> {
    ok: bool,
    errors: Vec<&'a Diagnostic>,
    warnings: Vec<&'a Diagnostic>,
    notices: Vec<&'a Diagnostic>,
}

/// Findings go to standard error for people, to standard output as JSON for programs.
pub(super) fn run(paths: &[PathBuf], strict: bool, format: Format) -> anyhow::Result<ExitCode> {
    let loaded = resources::load(paths);
    let of = |severity| loaded.of(severity).collect::<Vec<_>>();
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    let ok = errors.is_empty() && !(strict && !warnings.is_empty());
    match format {
        Format::Json => {
            output::result(format, &Report { ok, errors, warnings, notices: of(Severity::Notice) }, |_| String::new())?
        }
        Format::Table => {
            for diagnostic in &loaded.diagnostics {
                output::complain(&diagnostic.render());
            }
            let set = &loaded.set;
            let verdict = if ok { "valid" } else { "refused" };
            output::print(&format!(
                "{verdict}: {} errors, {} warnings; {} workloads and {} policies in {} files\n",
                errors.len(),
                warnings.len(),
                set.workloads.len(),
                set.policies.len(),
                loaded.files.len()
            ))?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
