//! Logs go to standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;

use super::args::{Common, LogFormat};

/// Starts logging as the options say. `--log-level` was parsed before; what cannot be parsed again logs `info`.
pub(super) fn start(common: &Common) {
    // What the libraries say of each step of loading is only for who asks for them by name.
    let filter = format!("aya=warn,aya_obj=warn,netlink_proto=warn,{}", common.log_level);
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match common.log_format {
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            logs.with_ansi(colours).with_target(false).try_init()
        }
        LogFormat::Json => logs.json().flatten_event(true).try_init(),
    };
    // Only a second call in one process can fail, and it changes nothing.
    drop(started);
}
