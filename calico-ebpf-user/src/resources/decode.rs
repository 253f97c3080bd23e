//! Reading fields from a tree: what is wrong is written down with its place, and reading goes on.

use std::{collections::HashMap, fmt};

use super::{
    diagnostic::{Diagnostic, Severity},
    model::{Labels, Origin},
    selector::Selector,
    source::{Position, SourceText},
    values,
    yaml::{Entry, Meaning, Node, Style, Value},
};

/// How many findings of one file are kept.
const MAX_DIAGNOSTICS: usize = 1_000;
/// How long the annotations of a resource may be, names and values together, in bytes; as in Kubernetes.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It is read.
    Read,
    /// It is Calico's and has no effect here: a warning.
    NoEffect,
    /// Likewise, for this reason; whoever needs what it says refuses.
    Unsupported(&'static str),
    /// It changes nothing: written by servers, or for other readers.
    Ignored,
    /// It is Calico's and cannot be enforced here: refused, with the reason.
    Refused(&'static str),
}

/// The fields of a mapping.
pub(super) type Table = &'static [(&'static str, Use)];

/// The way to a field, from the root of the resource. Lives on the stack; written out only for a finding.
#[derive(Clone, Copy)]
pub(super) struct FieldPath<'a> {
    parent: Option<&'a FieldPath<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> FieldPath<'a> {
    pub(super) const ROOT: FieldPath<'static> = FieldPath { parent: None, step: Step::Root };

    pub(super) fn field(&'a self, name: &'a str) -> FieldPath<'a> {
        FieldPath { parent: Some(self), step: Step::Field(name) }
    }

    pub(super) fn index(&'a self, index: usize) -> FieldPath<'a> {
        FieldPath { parent: Some(self), step: Step::Index(index) }
    }
}

impl fmt::Display for FieldPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}")?;
            if let (Step::Field(_), Step::Field(_) | Step::Index(_)) = (self.step, parent.step) {
                f.write_str(".")?;
            }
        }
        match self.step {
            Step::Root => Ok(()),
            // Keys of labels hold dots and slashes: shown as in a program.
            Step::Field(name) if name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) => {
                f.write_str(name)
            }
            Step::Field(name) => write!(f, "\"{}\"", name.escape_debug()),
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The fields of a mapping that was checked against its table.
pub(super) struct Fields<'n> {
    /// Where to point when something is missing.
    pub(super) at: Position,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// Of a mapping that is not there; `at`: of the one that lacks it.
    pub(super) const fn none(at: Position) -> Self {
        Self { at, entries: &[] }
    }

    /// Names of the fields that say something.
    pub(super) fn names_with_content(&self) -> impl Iterator<Item = &'n str> {
        self.entries.iter().filter(|entry| !is_empty(&entry.value)).map(|entry| entry.key.as_str())
    }

    /// Those of a table's fields that say something, but are not supported.
    pub(super) fn unsupported(&self, table: Table) -> Vec<&'static str> {
        let said = |name: &str| self.names_with_content().any(|there| there == name);
        let unsupported = table.iter().filter(|(name, used)| matches!(used, Use::Unsupported(_)) && said(name));
        unsupported.map(|(name, _)| *name).collect()
    }

    /// A field that is there and not null.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        self.entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value).filter(|node| !node.is_null())
    }
}

/// Reads one file; collects what is wrong.
pub(super) struct Decoder<'s> {
    pub(super) source: &'s SourceText,
    /// `Kind/name` of the resource at hand.
    pub(super) resource: Option<String>,
    diagnostics: Vec<Diagnostic>,
    without_effect: Vec<(String, Position)>,
}

impl<'s> Decoder<'s> {
    pub(super) fn new(source: &'s SourceText) -> Self {
        Self { source, resource: None, diagnostics: Vec::new(), without_effect: Vec::new() }
    }

    pub(super) fn finish(self) -> Vec<Diagnostic> {
        self.diagnostics
    }

    /// Whether so much is wrong that it makes no sense to go on.
    pub(super) fn is_full(&self) -> bool {
        self.diagnostics.len() >= MAX_DIAGNOSTICS
    }

    /// How many errors there are so far.
    pub(super) fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|d| d.severity == Severity::Error).count()
    }

    pub(super) fn origin(&self, at: Position) -> Origin {
        self.source.origin(at)
    }

    pub(super) fn report(
        &mut self,
        severity: Severity,
        at: Position,
        width: usize,
        field: Option<&str>,
        message: impl Into<String>,
    ) {
        if self.is_full() {
            return;
        }
        let again = |d: &Diagnostic| {
            (d.line, d.column, d.field.as_deref()) == (at.line, at.column, field) && d.severity == severity
        };
        if self.diagnostics.iter().rev().take(20).any(again) {
            return;
        }
        let mut message = message.into();
        if self.diagnostics.len() + 1 == MAX_DIAGNOSTICS {
            message.push_str(" (and more: the rest of this file is not looked at)");
        }
        let resource = self.resource.as_deref();
        self.diagnostics.push(self.source.diagnostic(severity, at, width, resource, field, &message));
    }

    /// An error at a place.
    pub(super) fn error_at(&mut self, at: Position, width: usize, path: &FieldPath<'_>, message: impl Into<String>) {
        let field = path.to_string();
        self.report(Severity::Error, at, width, (!field.is_empty()).then_some(field.as_str()), message);
    }

    /// An error about a value.
    pub(super) fn error(&mut self, node: &Node, path: &FieldPath<'_>, message: impl Into<String>) {
        self.error_at(node.place(), self.width(node), path, message);
    }

    /// How many characters of a value are marked.
    fn width(&self, node: &Node) -> usize {
        match &node.value {
            Value::Scalar(scalar) if node.place() == node.at => match scalar.style {
                Style::Plain => scalar.text.chars().count(),
                Style::Quoted => scalar.text.chars().count() + 2,
                Style::Block => self.word_at(node.at),
            },
            _ => self.word_at(node.place()),
        }
    }

    /// An error about a field that is not there.
    pub(super) fn missing(&mut self, at: Position, path: &FieldPath<'_>, message: impl Into<String>) {
        let width = self.word_at(at);
        self.error_at(at, width, path, message);
    }

    fn word_at(&self, at: Position) -> usize {
        self.source.rest_of_line(at).map_or(1, |rest| rest.chars().take_while(|c| !": ,{[]}".contains(*c)).count())
    }

    /// The fields of a mapping: unknown ones are errors, those without effect are noted.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, path: &FieldPath<'_>, table: Table) -> Option<Fields<'n>> {
        if node.is_null() {
            return Some(Fields { at: node.named_at, entries: &[] });
        }
        let Value::Mapping(entries) = &node.value else {
            self.error(node, path, format!("{} where a mapping (KEY: VALUE) is needed", node.describe()));
            return None;
        };
        for entry in entries {
            let field = path.field(&entry.key);
            match table.iter().find(|(name, _)| *name == entry.key).map(|(_, used)| *used) {
                Some(Use::NoEffect) if !is_empty(&entry.value) => {
                    self.without_effect.push((field.to_string(), entry.key_at));
                }
                Some(Use::Unsupported(reason)) if !is_empty(&entry.value) => {
                    let (width, field) = (entry.key.chars().count(), field.to_string());
                    let message = format!("has no effect here: {reason}");
                    self.report(Severity::Warning, entry.key_at, width, Some(&field), message);
                }
                // An empty mapping is there: Calico's tools leave out what is not set.
                Some(Use::Refused(reason))
                    if !is_empty(&entry.value) || matches!(entry.value.value, Value::Mapping(_)) =>
                {
                    self.error_at(entry.key_at, entry.key.chars().count(), &field, reason);
                }
                Some(_) => {}
                None => {
                    let known = table.iter().map(|(name, _)| *name);
                    let message = format!("unknown field{}", did_you_mean(&entry.key, known));
                    self.error_at(entry.key_at, entry.key.chars().count(), &field, message);
                }
            }
        }
        Some(Fields { at: node.named_at, entries })
    }

    /// Notes a field of the resource at hand that has no effect.
    pub(super) fn note_without_effect(&mut self, path: &FieldPath<'_>, at: Position) {
        self.without_effect.push((path.to_string(), at));
    }

    /// One warning for all fields of the resource at hand that have no effect.
    pub(super) fn warn_without_effect(&mut self) {
        let fields = std::mem::take(&mut self.without_effect);
        let Some((first, at)) = fields.first().cloned() else {
            return;
        };
        let message = match fields.len() {
            1 => "has no effect here".to_owned(),
            _ => {
                let others: Vec<_> = fields[1..].iter().map(|(field, _)| field.as_str()).collect();
                format!("has no effect here, nor have {}", others.join(", "))
            }
        };
        let width = self.word_at(at);
        self.report(Severity::Warning, at, width, Some(&first), message);
    }

    /// Says which keys stand twice in a mapping, anywhere in the tree.
    pub(super) fn check_duplicate_keys(&mut self, node: &Node, path: &FieldPath<'_>) {
        match &node.value {
            Value::Scalar(_) => {}
            Value::Sequence(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.check_duplicate_keys(item, &path.index(i));
                }
            }
            Value::Mapping(entries) => {
                self.check_own_duplicate_keys(entries, path);
                for entry in entries {
                    self.check_duplicate_keys(&entry.value, &path.field(&entry.key));
                }
            }
        }
    }

    /// Says which keys stand twice in this mapping.
    pub(super) fn check_own_duplicate_keys(&mut self, entries: &[Entry], path: &FieldPath<'_>) {
        let mut seen = HashMap::with_capacity(entries.len());
        for entry in entries {
            if let Some(first) = seen.insert(entry.key.as_str(), entry.key_at) {
                let message = format!("the key stands twice in one mapping, first in line {}", first.line);
                self.error_at(entry.key_at, entry.key.chars().count(), &path.field(&entry.key), message);
            }
        }
    }

    /// The items of a list.
    pub(super) fn list<'n>(&mut self, node: &'n Node, path: &FieldPath<'_>) -> &'n [Node] {
        match &node.value {
            Value::Sequence(items) => items,
            _ => {
                self.error(node, path, format!("{} where a list is needed", node.describe()));
                &[]
            }
        }
    }

    /// A text. Numbers and truth values have to be quoted, as for Calico and Kubernetes.
    pub(super) fn text<'n>(&mut self, node: &'n Node, path: &FieldPath<'_>) -> Option<&'n str> {
        let message = match &node.value {
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Text(text) => return Some(text),
                Meaning::Null => "nothing where a text is needed".to_owned(),
                Meaning::Ambiguous(text) => {
                    format!("readers of YAML differ about what {text} is: quote it: \"{text}\"")
                }
                _ => format!("{} where a text is needed: quote it: \"{}\"", node.describe(), scalar.text),
            },
            _ => format!("{} where a text is needed", node.describe()),
        };
        self.error(node, path, message);
        None
    }

    /// A truth value.
    pub(super) fn boolean(&mut self, node: &Node, path: &FieldPath<'_>) -> Option<bool> {
        if let Value::Scalar(scalar) = &node.value
            && let Meaning::Bool(value) = scalar.meaning()
        {
            return Some(value);
        }
        self.error(node, path, "expected true or false");
        None
    }

    /// A whole number within a range.
    pub(super) fn integer<T>(
        &mut self,
        node: &Node,
        path: &FieldPath<'_>,
        range: std::ops::RangeInclusive<T>,
    ) -> Option<T>
    where
        T: TryFrom<i64> + PartialOrd + fmt::Display,
    {
        if let Value::Scalar(scalar) = &node.value
            && let Meaning::Integer(number) = scalar.meaning()
            && let Ok(number) = T::try_from(number)
            && range.contains(&number)
        {
            return Some(number);
        }
        self.error(node, path, format!("expected a whole number from {} to {}", range.start(), range.end()));
        None
    }

    /// A number that is finite.
    pub(super) fn number(&mut self, node: &Node, path: &FieldPath<'_>) -> Option<f64> {
        let message = match &node.value {
            Value::Scalar(scalar) => match scalar.meaning() {
                #[expect(
                    clippy::cast_precision_loss,
                    reason = "orders beyond 2^53 are rounded, as in Calico's float64"
                )]
                Meaning::Integer(number) => return Some(number as f64),
                Meaning::Float(number) if number.is_finite() => return Some(number),
                Meaning::Float(_) => "not a finite number".to_owned(),
                Meaning::Text(text) if scalar.style != Style::Plain && text.parse::<f64>().is_ok() => {
                    format!("a text where a number is needed: write {text} without quotes")
                }
                _ => format!("{} where a number is needed", node.describe()),
            },
            _ => format!("{} where a number is needed", node.describe()),
        };
        self.error(node, path, message);
        None
    }

    /// A selector; an error points into it.
    pub(super) fn selector(&mut self, node: &Node, path: &FieldPath<'_>) -> Option<Selector> {
        let text = self.text(node, path)?;
        match Selector::parse(text) {
            Ok(selector) => Some(selector),
            Err(error) => {
                let at = self.within(node, text, error.offset);
                let message = format!("not a selector: {error}");
                if at == node.place() {
                    self.error(node, path, message);
                } else {
                    self.error_at(at, 1, path, message);
                }
                None
            }
        }
    }

    /// The place of a character of a text, if it was written on one line and without escapes; else the place of the text.
    fn within(&self, node: &Node, text: &str, offset: usize) -> Position {
        let skipped = match &node.value {
            Value::Scalar(scalar) if scalar.style == Style::Plain => 0,
            Value::Scalar(scalar) if scalar.style == Style::Quoted => 1,
            _ => return node.place(),
        };
        let column =
            |n: usize| Some(Position { column: node.at.column.checked_add(u32::try_from(n).ok()?)?, ..node.at });
        let written = column(skipped).and_then(|start| self.source.rest_of_line(start));
        match (written, column(skipped + offset)) {
            (Some(written), Some(at)) if written.starts_with(text) => at,
            _ => node.place(),
        }
    }

    /// Labels, as strict as Kubernetes and Calico's API are.
    pub(super) fn labels(&mut self, node: &Node, path: &FieldPath<'_>) -> Labels {
        self.texts(node, path, "labels", |decoder, entry, value, field| {
            if let Err(message) = values::qualified_name(&entry.key) {
                decoder.key_error(entry, field, format!("not the name of a label: {message}"));
            } else if let Err(message) = values::label_value(value) {
                decoder.error(&entry.value, field, format!("not the value of a label: {message}"));
            }
        })
    }

    /// Labels of a workload: whatever selectors can tell apart. What Kubernetes would not take is one warning.
    pub(super) fn labels_of_workload(&mut self, node: &Node, path: &FieldPath<'_>) -> Labels {
        let mut warned = false;
        self.texts(node, path, "labels", |decoder, entry, value, field| {
            let warning = if !is_label_name(&entry.key) {
                let message = "not the name of a label: 1 to 512 letters, digits and _ . / - are allowed";
                return decoder.key_error(entry, field, message);
            } else if value.len() > 63 {
                let message = "not the value of a label: at most 63 letters, digits and - _ . are allowed";
                return decoder.error(&entry.value, field, message);
            } else if let Err(message) = values::qualified_name(&entry.key) {
                format!("Kubernetes would refuse this name: {message}")
            } else if let Err(message) = values::label_value(value) {
                format!("Kubernetes would refuse this value: {message}")
            } else {
                return;
            };
            if !std::mem::replace(&mut warned, true) {
                let width = entry.key.chars().count();
                decoder.report(Severity::Warning, entry.key_at, width, Some(&field.to_string()), warning);
            }
        })
    }

    /// Checks annotations (`ValidateAnnotations` of Kubernetes). Those whose names are right, `read` looks at.
    pub(super) fn annotations(
        &mut self,
        node: &Node,
        path: &FieldPath<'_>,
        mut read: impl FnMut(&mut Self, &Entry, &FieldPath<'_>),
    ) {
        let mut size = 0;
        self.texts(node, path, "annotations", |decoder, entry, value, field| {
            size += entry.key.len() + value.len();
            if let Err(message) = values::qualified_name(&entry.key.to_ascii_lowercase()) {
                decoder.key_error(entry, field, format!("not the name of an annotation: {message}"));
            } else {
                read(decoder, entry, field);
            }
        });
        if size > MAX_ANNOTATIONS {
            self.error(node, path, format!("{size} bytes of annotations: at most {MAX_ANNOTATIONS} are allowed"));
        }
    }

    /// An error about the key of an entry.
    pub(super) fn key_error(&mut self, entry: &Entry, field: &FieldPath<'_>, message: impl Into<String>) {
        self.error_at(entry.key_at, entry.key.chars().count(), field, message);
    }

    /// A mapping of texts, where nothing is the empty text, each looked at by `check`.
    fn texts(
        &mut self,
        node: &Node,
        path: &FieldPath<'_>,
        what: &str,
        mut check: impl FnMut(&mut Self, &Entry, &str, &FieldPath<'_>),
    ) -> Labels {
        let Value::Mapping(entries) = &node.value else {
            self.error(node, path, format!("{} where {what} (NAME: VALUE) are needed", node.describe()));
            return Labels::new();
        };
        let mut texts = Labels::new();
        for entry in entries {
            let field = path.field(&entry.key);
            let value = if entry.value.is_null() { Some("") } else { self.text(&entry.value, &field) };
            if let Some(value) = value {
                check(self, entry, value, &field);
                texts.insert(entry.key.clone(), value.to_owned());
            }
        }
        texts
    }
}

/// What selectors can name.
fn is_label_name(name: &str) -> bool {
    (1..=512).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-'))
}

/// Whether a value says nothing, as Calico's tools print it for fields that are not set.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        Value::Scalar(scalar) => {
            matches!(scalar.meaning(), Meaning::Null | Meaning::Bool(false)) || scalar.text.is_empty()
        }
        Value::Sequence(items) => items.is_empty(),
        Value::Mapping(entries) => entries.is_empty(),
    }
}

/// `: did you mean "ingress"?`, or what would be known, or nothing.
pub(super) fn did_you_mean<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    if word.len() > 64 {
        return String::new();
    }
    let lower = word.to_lowercase();
    let nearest = known
        .clone()
        .map(|name| (strsim::osa_distance(&lower, &name.to_lowercase()), name))
        .min()
        .filter(|(distance, name)| *distance <= (name.len() / 3).clamp(1, 3));
    if let Some((_, name)) = nearest {
        return format!(": did you mean \"{name}\"?");
    }
    let all: Vec<_> = known.collect();
    if all.len() <= 12 { format!(": expected one of {}", all.join(", ")) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_like_in_programs() {
        let root = FieldPath::ROOT;
        let spec = root.field("spec");
        let ingress = spec.field("ingress");
        let first = ingress.index(0);
        assert_eq!(first.field("action").to_string(), "spec.ingress[0].action");
        let metadata = root.field("metadata");
        let labels = metadata.field("labels");
        assert_eq!(labels.field("a.b/c").to_string(), "metadata.labels.\"a.b/c\"");
    }

    #[test]
    fn suggestions() {
        let known = ["ingress", "egress", "selector", "types"];
        let suggest = |word| did_you_mean(word, known.iter().copied());
        assert_eq!(suggest("ingres"), ": did you mean \"ingress\"?");
        assert_eq!(suggest("Selector"), ": did you mean \"selector\"?");
        assert_eq!(suggest("tpyes"), ": did you mean \"types\"?");
        assert_eq!(suggest("colour"), ": expected one of ingress, egress, selector, types");
    }
}
