//! What a selector says: tree, canonical text, evaluation.

use std::fmt::{self, Write as _};

/// The tree of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// `all()`: everything.
    All,
    /// `global()`: what has no namespace. As an expression over labels it is true; whoever evaluates a `namespaceSelector`
    /// has to look at [`Selector::is_global`](super::Selector::is_global).
    Global,
    /// `has(LABEL)`.
    Has(String),
    /// `LABEL == VALUE`.
    Equal(String, String),
    /// `LABEL != VALUE`; true without the label.
    NotEqual(String, String),
    /// `LABEL in { VALUES }`; sorted, without duplicates.
    In(String, Vec<String>),
    /// `LABEL not in { VALUES }`; true without the label. Sorted, without duplicates.
    NotIn(String, Vec<String>),
    /// `LABEL contains VALUE`.
    Contains(String, String),
    /// `LABEL starts with VALUE`.
    StartsWith(String, String),
    /// `LABEL ends with VALUE`.
    EndsWith(String, String),
    /// `!EXPRESSION`.
    Not(Box<Self>),
    /// All of them; at least two.
    And(Vec<Self>),
    /// Any of them; at least two.
    Or(Vec<Self>),
}

impl Expression {
    /// The same tree with other leaves: everything but `!`, `&&` and `||` is a leaf.
    #[must_use]
    pub fn map_leaves(&self, change: &impl Fn(&Self) -> Self) -> Self {
        match self {
            Self::Not(inner) => Self::Not(Box::new(inner.map_leaves(change))),
            Self::And(parts) => Self::And(parts.iter().map(|part| part.map_leaves(change)).collect()),
            Self::Or(parts) => Self::Or(parts.iter().map(|part| part.map_leaves(change)).collect()),
            leaf => change(leaf),
        }
    }

    /// A leaf about another label; what is about no label stays.
    #[must_use]
    pub fn with_label(&self, name: &impl Fn(&str) -> String) -> Self {
        match self {
            Self::Has(label) => Self::Has(name(label)),
            Self::Equal(label, value) => Self::Equal(name(label), value.clone()),
            Self::NotEqual(label, value) => Self::NotEqual(name(label), value.clone()),
            Self::In(label, set) => Self::In(name(label), set.clone()),
            Self::NotIn(label, set) => Self::NotIn(name(label), set.clone()),
            Self::Contains(label, part) => Self::Contains(name(label), part.clone()),
            Self::StartsWith(label, part) => Self::StartsWith(name(label), part.clone()),
            Self::EndsWith(label, part) => Self::EndsWith(name(label), part.clone()),
            Self::All | Self::Global | Self::Not(_) | Self::And(_) | Self::Or(_) => self.clone(),
        }
    }

    pub(super) fn holds<'a>(&self, lookup: &impl Fn(&str) -> Option<&'a str>) -> bool {
        let is_in = |value: &str, set: &[String]| set.binary_search_by(|item| item.as_str().cmp(value)).is_ok();
        match self {
            Self::All | Self::Global => true,
            Self::Has(label) => lookup(label).is_some(),
            Self::Equal(label, value) => lookup(label) == Some(value),
            Self::NotEqual(label, value) => lookup(label) != Some(value),
            Self::In(label, set) => lookup(label).is_some_and(|value| is_in(value, set)),
            Self::NotIn(label, set) => lookup(label).is_none_or(|value| !is_in(value, set)),
            Self::Contains(label, part) => lookup(label).is_some_and(|value| value.contains(part.as_str())),
            Self::StartsWith(label, part) => lookup(label).is_some_and(|value| value.starts_with(part.as_str())),
            Self::EndsWith(label, part) => lookup(label).is_some_and(|value| value.ends_with(part.as_str())),
            Self::Not(inner) => !inner.holds(lookup),
            Self::And(parts) => parts.iter().all(|part| part.holds(lookup)),
            Self::Or(parts) => parts.iter().any(|part| part.holds(lookup)),
        }
    }

    pub(super) fn mentions_global(&self) -> bool {
        match self {
            Self::Global => true,
            Self::Not(inner) => inner.mentions_global(),
            Self::And(parts) | Self::Or(parts) => parts.iter().any(Self::mentions_global),
            _ => false,
        }
    }
}

/// The canonical text, in Calico's form: parentheses around `&&` and `||`, double quotes where possible.
impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Equal(label, value) => write!(f, "{label} == {}", Quoted(value)),
            Self::NotEqual(label, value) => write!(f, "{label} != {}", Quoted(value)),
            Self::In(label, set) => write!(f, "{label} in {}", Set(set)),
            Self::NotIn(label, set) => write!(f, "{label} not in {}", Set(set)),
            Self::Contains(label, value) => write!(f, "{label} contains {}", Quoted(value)),
            Self::StartsWith(label, value) => write!(f, "{label} starts with {}", Quoted(value)),
            Self::EndsWith(label, value) => write!(f, "{label} ends with {}", Quoted(value)),
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(parts) => joined(f, parts, " && "),
            Self::Or(parts) => joined(f, parts, " || "),
        }
    }
}

fn joined(f: &mut fmt::Formatter<'_>, parts: &[Expression], operator: &str) -> fmt::Result {
    f.write_char('(')?;
    for (i, part) in parts.iter().enumerate() {
        if i > 0 {
            f.write_str(operator)?;
        }
        write!(f, "{part}")?;
    }
    f.write_char(')')
}

/// A string literal. It cannot hold both kinds of quotes: the grammar has no escapes.
pub(super) struct Quoted<'a>(pub(super) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}

struct Set<'a>(&'a [String]);

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (i, value) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{}", Quoted(value))?;
        }
        f.write_char('}')
    }
}
