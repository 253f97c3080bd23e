//! `confirm`.

use std::process::ExitCode;

use super::context::Context;
use crate::agent::control::Request;

pub(super) fn run(context: &Context) -> anyhow::Result<ExitCode> {
    context.tell(&Request::Confirm)
}
