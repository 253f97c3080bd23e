//! What is wrong with the files, and where.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The whole set is refused.
    Error,
    /// Something has no effect, or hardly the intended one.
    Warning,
    /// Worth knowing; never fails anything.
    Notice,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
        })
    }
}

/// One finding. [`Display`](fmt::Display) gives the one-line form `PATH:LINE:COLUMN: error: Kind/name: field.path: what`,
/// [`render`](Self::render) adds the source line and a marker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as the user gave it.
    pub path: String,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
    /// `Kind/name` or `Kind/namespace/name`, as far as known.
    #[serde(default)]
    pub resource: Option<String>,
    /// Path of the field within the resource.
    #[serde(default)]
    pub field: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
    /// The line of the file, for people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub source_line: Option<SourceLine>,
}

/// A line of a file, cut to a readable length around the place that is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceLine {
    /// The text, without control characters.
    pub text: String,
    /// Where the marker begins, in characters from 0.
    pub marker: usize,
    /// How many characters are marked; at least 1.
    pub width: usize,
}

impl Diagnostic {
    /// The one-line form, the source line and a marker, without a final line break.
    #[must_use]
    pub fn render(&self) -> String {
        let Some(source) = &self.source_line else {
            return self.to_string();
        };
        let line = self.line.to_string();
        format!(
            "{self}\n{line:>6} | {}\n{:>6} | {}{}",
            source.text,
            "",
            " ".repeat(source.marker),
            "^".repeat(source.width.max(1)),
        )
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The name of a file may be anything.
        let shown = |c: char| if c.is_control() { '?' } else { c };
        let path: String = self.path.chars().map(shown).collect();
        write!(f, "{path}:{}:{}: {}: ", self.line, self.column, self.severity)?;
        if let Some(resource) = &self.resource {
            write!(f, "{resource}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}
