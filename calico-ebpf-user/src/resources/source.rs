//! The text of a file, and how to show a place in it.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use super::{
    diagnostic::{Diagnostic, Severity, SourceLine},
    model::Origin,
};

/// The most characters of a source line that are shown.
const SHOWN: usize = 120;

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A file that was read.
#[derive(Debug)]
pub(super) struct SourceText {
    /// As the user gave it.
    pub(super) path: Arc<Path>,
    /// Valid UTF-8 without a byte order mark; empty if the file was not that.
    pub(super) text: String,
    /// Byte offset of each line; made when the first finding needs it.
    lines: OnceLock<Vec<usize>>,
}

impl SourceText {
    pub(super) fn new(path: Arc<Path>, text: String) -> Self {
        Self { path, text, lines: OnceLock::new() }
    }

    pub(super) fn origin(&self, at: Position) -> Origin {
        Origin { path: Arc::clone(&self.path), line: at.line, column: at.column }
    }

    /// A line without its end; lines count from 1.
    pub(super) fn line(&self, number: u32) -> Option<&str> {
        let lines = self.lines.get_or_init(|| line_starts(&self.text));
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let start = *lines.get(index)?;
        let end = lines.get(index + 1).copied().unwrap_or(self.text.len());
        Some(self.text.get(start..end)?.trim_end_matches(['\n', '\r']))
    }

    /// The text of a line from a column on.
    pub(super) fn rest_of_line(&self, at: Position) -> Option<&str> {
        let line = self.line(at.line)?;
        let column = usize::try_from(at.column).ok()?.checked_sub(1)?;
        let start = line.char_indices().map(|(i, _)| i).chain([line.len()]).nth(column)?;
        line.get(start..)
    }

    /// A finding at a place. `width`: how many characters are meant.
    pub(super) fn diagnostic(
        &self,
        severity: Severity,
        at: Position,
        width: usize,
        resource: Option<&str>,
        field: Option<&str>,
        message: &str,
    ) -> Diagnostic {
        Diagnostic {
            severity,
            path: self.path.to_string_lossy().into_owned(),
            line: at.line,
            column: at.column,
            resource: resource.map(clean),
            field: field.map(clean),
            message: clean(message),
            source_line: self.line(at.line).map(|line| shown(line, at.column, width)),
        }
    }
}

/// What files say may end up in messages: never control characters, never megabytes.
fn clean(text: &str) -> String {
    const LONGEST: usize = 1_000;
    let mut clean = String::new();
    for c in text.chars().take(LONGEST) {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    if text.chars().nth(LONGEST).is_some() {
        clean.push('…');
    }
    clean
}

fn line_starts(text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let mut starts = vec![0];
    for (i, byte) in bytes.iter().enumerate() {
        // YAML takes a lone carriage return for a line break, too.
        if *byte == b'\n' || (*byte == b'\r' && bytes.get(i + 1) != Some(&b'\n')) {
            starts.push(i + 1);
        }
    }
    starts
}

/// Cuts a line to what a terminal can show. Control characters become blanks, so that the marker stands right and a file
/// cannot send escape sequences to the terminal.
fn shown(line: &str, column: u32, width: usize) -> SourceLine {
    let column = usize::try_from(column).unwrap_or(usize::MAX).saturating_sub(1);
    let mut skip = 0;
    if column > SHOWN - 20 {
        skip = column - SHOWN / 2;
    }
    let text: String = line.chars().skip(skip).take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let length = text.chars().count();
    let marker = (column - skip).min(length);
    SourceLine { marker, width: width.min(length - marker).max(1), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_columns() {
        let source = SourceText::new(Arc::from(Path::new("f")), "é b\r\nc\rdd\n\ne".to_owned());
        let lines: Vec<_> = (0..=6).map(|n| source.line(n)).collect();
        assert_eq!(lines, [None, Some("é b"), Some("c"), Some("dd"), Some(""), Some("e"), None]);
        assert_eq!(source.rest_of_line(Position { line: 1, column: 3 }), Some("b"));
        assert_eq!(source.rest_of_line(Position { line: 1, column: 4 }), Some(""));
        assert_eq!(source.rest_of_line(Position { line: 1, column: 9 }), None);
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let line = format!("{}HERE{}", "a".repeat(10_000), "b".repeat(10_000));
        let shown = shown(&line, 10_001, 4);
        assert_eq!(shown.text.chars().count(), SHOWN);
        assert_eq!(&shown.text[shown.marker..shown.marker + shown.width], "HERE");
    }
}
