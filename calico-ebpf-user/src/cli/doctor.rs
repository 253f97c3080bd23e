//! `doctor`.

use std::process::ExitCode;

use super::{context::Context, output, table::Table};
use crate::dataplane::{
    Options,
    doctor::{self, Check, CheckStatus},
};

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let checks = doctor::examine(&Options::new(context.instance.clone()));
    output::result(context.format, &checks, |checks| render(checks))?;
    let stops = checks.iter().any(|check| check.status == CheckStatus::Failure);
    Ok(if stops { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

fn render(checks: &[Check]) -> String {
    let mut table = Table::new(&["", "CHECK", "FOUND"]);
    for Check { name, status, detail, advice } in checks {
        let mark = match status {
            CheckStatus::Ok => "ok",
            CheckStatus::Info => "info",
            CheckStatus::Warning => "WARN",
            CheckStatus::Failure => "STOP",
        };
        table.row([mark, name, detail]);
        if let Some(advice) = advice {
            table.row(["", "", &format!("-> {advice}")]);
        }
    }
    table.render(0)
}
