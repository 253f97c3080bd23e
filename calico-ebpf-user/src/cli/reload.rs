//! `reload`.

use std::process::ExitCode;

use super::{args::Reload, context::Context};
use crate::agent::control::Request;

pub(super) fn run(context: &Context, reload: &Reload) -> anyhow::Result<ExitCode> {
    context.tell(&Request::Reload { confirm: reload.confirm })
}
