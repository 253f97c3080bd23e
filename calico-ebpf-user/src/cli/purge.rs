//! `purge`.

use std::process::ExitCode;

use super::{context::Context, output};
use crate::{
    agent::control,
    dataplane::purge::{self, Purged},
};

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    let purged = purge::purge(&context.instance)?;
    // What a killed process left: nobody listens there, or the instance would have been locked.
    control::remove(&context.instance);
    output::result(context.format, &purged, render)?;
    Ok(if purged.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn render(purged: &Purged) -> String {
    let Purged { removed, restored, left, faults } = purged;
    let line = |what: &'static str| move |thing: &String| format!("{what} {thing}\n");
    let mut text: String = removed.iter().map(line("removed")).collect();
    text.extend(restored.iter().map(line("restored")));
    text.extend(left.iter().map(line("left")));
    text.extend(faults.iter().map(line("could not remove")));
    if text.is_empty() {
        text.push_str("nothing is installed\n");
    }
    text
}
