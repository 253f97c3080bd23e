//! Printing: a closed pipe is no error, and nothing panics.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::args::Format;

/// Writes to standard output. Whoever reads may have gone away: that ends the program quietly, as any other's.
///
/// # Errors
/// What the system says, but for a closed pipe.
pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    ignore_closed_pipe(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Waits; tells whether whoever reads standard output has gone away meanwhile.
pub(super) fn reader_leaves_within(duration: Duration) -> bool {
    let out = io::stdout();
    // That a pipe has no reader is always told, and nothing else is asked about.
    let mut polled = [PollFd::new(&out, PollFlags::empty())];
    match Timespec::try_from(duration).map(|timeout| poll(&mut polled, Some(&timeout))) {
        Ok(Ok(ready)) => ready > 0,
        // Interrupted by a signal, say.
        _ => false,
    }
}

/// Writes a line to standard error; where that fails there is nobody to tell.
pub(super) fn complain(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a result in the form that was asked for.
///
/// # Errors
/// See [`print()`].
pub(super) fn result<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> io::Result<()> {
    match format {
        Format::Table => print(&table(value)),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(value)?;
            text.push('\n');
            print(&text)
        }
    }
}

/// "It failed, for this reason".
pub(super) fn failure(error: &anyhow::Error) -> ExitCode {
    complain(&format!("error: {}", chain(error)));
    ExitCode::from(1)
}

/// An error with its causes, each said once: many libraries' texts contain their causes' texts.
#[must_use]
pub(super) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn ignore_closed_pipe(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_everything_once() {
        let error = anyhow::anyhow!("no such device").context("attach: no such device").context("cali1");
        assert_eq!(chain(&error), "cali1: attach: no such device");
    }

    #[test]
    fn only_a_closed_pipe_is_forgiven() {
        assert!(ignore_closed_pipe(Err(io::ErrorKind::BrokenPipe.into())).is_ok());
        assert!(ignore_closed_pipe(Err(io::ErrorKind::StorageFull.into())).is_err());
    }
}
