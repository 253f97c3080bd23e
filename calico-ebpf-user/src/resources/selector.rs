//! Calico's selector language: tokens, parser, canonical form, evaluation.
//!
//! ```text
//! selector   := [ or ]                          an empty one is all()
//! or         := and { "||" and }
//! and        := unary { "&&" unary }
//! unary      := { "!" } primary                 an even number of ! cancels
//! primary    := "(" or ")" | "all()" | "global()" | "has(" label ")" | label operator
//! operator   := "==" string | "!=" string | "in" set | "not in" set
//!             | "contains" string | "starts with" string | "ends with" string
//! set        := "{" [ string { "," string } [ "," ] ] "}"
//! string     := '"' any but " '"' | "'" any but ' "'"          no escapes
//! label      := [a-zA-Z0-9_./-]{1,512}
//! ```
//!
//! Blanks are spaces and tabs only. An operator word is recognised directly after a label and nowhere else, so that `in` is a
//! fine name for a label. `has(`, `all(` and `global(` have to touch their parenthesis; otherwise the word is a label.
//! The source is Calico's own tokenizer and parser (`libcalico-go/lib/selector`).

mod expression;
mod parser;
mod tokens;

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

pub use self::expression::Expression;
use super::model::Labels;

/// The longest selector, in bytes. Calico's own limit is 1,024 characters, since it checks by schema.
const MAX_LENGTH: usize = 64 << 10;

/// A parsed selector. Equality, order and hash are those of its canonical text. Cheap to clone.
#[derive(Clone)]
pub struct Selector {
    canonical: Arc<str>,
    expression: Arc<Expression>,
}

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SelectorError {
    /// Where, in characters from the start of the selector, from 0.
    pub offset: usize,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Selector {
    /// Parses a selector; an empty or blank one is `all()`.
    ///
    /// # Errors
    /// If the text does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_LENGTH {
            let message = format!("{} bytes are too long: at most {MAX_LENGTH} are possible", text.len());
            return Err(SelectorError { offset: 0, message });
        }
        parser::parse(text).map(Self::from).map_err(|error| error.locate(text))
    }

    /// `all()`.
    #[must_use]
    pub fn all() -> Self {
        Self::from(Expression::All)
    }

    /// `LABEL in { VALUES }`.
    #[must_use]
    pub fn one_of(label: &str, mut values: Vec<String>) -> Self {
        values.sort_unstable();
        values.dedup();
        Self::from(Expression::In(label.to_owned(), values))
    }

    /// What holds where all of these do; `None` if there are none.
    #[must_use]
    pub fn all_of(parts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut parts: Vec<Self> = parts.into_iter().collect();
        if parts.len() < 2 {
            return parts.pop();
        }
        Some(Self::from(Expression::And(parts.iter().map(|part| part.expression().clone()).collect())))
    }

    /// The same selector about labels with this in front of their names.
    #[must_use]
    pub fn with_prefix(&self, prefix: &str) -> Self {
        Self::from(self.expression.map_leaves(&|leaf| leaf.with_label(&|label| format!("{prefix}{label}"))))
    }

    /// The same selector with another expression in place of each `all()`.
    #[must_use]
    pub fn with_all_as(&self, all: &Expression) -> Self {
        Self::from(self.expression.map_leaves(&|leaf| match leaf {
            Expression::All => all.clone(),
            other => other.clone(),
        }))
    }

    /// The canonical text: sets sorted and without duplicates, spaces normalised.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The parsed tree.
    #[must_use]
    pub fn expression(&self) -> &Expression {
        &self.expression
    }

    /// Whether the selector holds for these labels.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.expression.holds(&|label| labels.get(label).map(String::as_str))
    }

    /// Like [`matches`](Self::matches), over labels that are looked up by a function (layers of them, for example).
    #[must_use]
    pub fn matches_with<'a>(&self, lookup: &impl Fn(&str) -> Option<&'a str>) -> bool {
        self.expression.holds(lookup)
    }

    /// Whether it is `all()`, or the empty selector.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self.expression == Expression::All
    }

    /// Whether it is `global()`: as a `namespaceSelector` this means what has no namespace.
    #[must_use]
    pub fn is_global(&self) -> bool {
        *self.expression == Expression::Global
    }

    /// Whether `global()` occurs anywhere in it.
    #[must_use]
    pub fn mentions_global(&self) -> bool {
        self.expression.mentions_global()
    }
}

impl From<Expression> for Selector {
    fn from(expression: Expression) -> Self {
        Self { canonical: expression.to_string().into(), expression: Arc::new(expression) }
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for Selector {}

impl Hash for Selector {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canonical.hash(state);
    }
}

impl PartialOrd for Selector {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Selector {
    fn cmp(&self, other: &Self) -> Ordering {
        self.canonical.cmp(&other.canonical)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({})", self.canonical)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.canonical)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{parser::MAX_DEPTH, tokens::MAX_LABEL, *};

    fn canonical(text: &str) -> String {
        Selector::parse(text).expect(text).canonical().to_owned()
    }

    #[test]
    fn canonical_form() {
        for (text, expected) in [
            ("", "all()"),
            ("  \t ", "all()"),
            ("all( )", "all()"),
            ("a=='b'", r#"a == "b""#),
            (r#"a == 'b"c'"#, r#"a == 'b"c'"#),
            ("a in{'c','b','c',}", r#"a in {"b", "c"}"#),
            ("a notin {}", "a not in {}"),
            ("!!!has( a )", "!has(a)"),
            ("!!has(a)", "has(a)"),
            ("((a == 'b'))", r#"a == "b""#),
            ("a=='b'&&c!='d'||has(e)", r#"((a == "b" && c != "d") || has(e))"#),
            ("! c != 'd'", r#"!c != "d""#),
            (
                "a startswith 'b' || a ends\twith 'c' || in contains''",
                r#"(a starts with "b" || a ends with "c" || in contains "")"#,
            ),
        ] {
            assert_eq!(canonical(text), expected, "{text:?}");
            assert_eq!(canonical(expected), expected, "{expected:?} is not stable");
        }
    }

    #[test]
    fn errors_say_where_and_what_to_do() {
        for (text, offset, part) in [
            ("é == 'x'", 0, "a label has only"),
            ("a == 'é' & b", 9, "use \"&&\""),
            ("a == b", 5, "a value in quotes: 'b'"),
            ("a ==", 4, "ends too early"),
            ("a", 1, "has(a)"),
            ("'a' == b", 0, "the label comes first"),
            ("a == 'b' and c == 'd'", 9, "\"&&\""),
            ("not a == 'b'", 4, "negation is written with"),
            ("all ()", 4, "in one word"),
            ("a == 'b'\n", 8, "a line break is not a blank"),
            ("a == 'b", 5, "has no end"),
            ("(a == 'b'", 9, "\")\""),
            ("has()", 0, "has(LABEL)"),
            ("a in ['b']", 5, "[\" cannot stand here"),
        ] {
            let error = Selector::parse(text).expect_err(text);
            assert_eq!(error.offset, offset, "{text:?}: {error}");
            assert!(error.message.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn nesting_and_length_have_limits() {
        let nested = |depth: usize| format!("{}has(a){}", "(".repeat(depth), ")".repeat(depth));
        assert!(Selector::parse(&nested(MAX_DEPTH)).is_ok());
        assert!(Selector::parse(&nested(MAX_DEPTH + 1)).is_err());
        assert!(Selector::parse(&nested(1_000_000)).is_err());
        assert!(Selector::parse(&format!("{}has(a)", "!".repeat(MAX_LENGTH - 6))).is_ok());
        assert!(Selector::parse(&format!("{}has(a)", "!".repeat(MAX_LENGTH - 5))).is_err());
        assert!(Selector::parse(&format!("has({})", "a".repeat(MAX_LABEL))).is_ok());
        assert!(Selector::parse(&format!("has({})", "a".repeat(MAX_LABEL + 1))).is_err());
    }

    fn expression() -> impl Strategy<Value = Expression> {
        let label = "[a-c]";
        let value = "[x-z]{0,2}";
        let leaf = prop_oneof![
            Just(Expression::All),
            label.prop_map(Expression::Has),
            (label, value).prop_map(|(l, v)| Expression::Equal(l, v)),
            (label, value).prop_map(|(l, v)| Expression::NotEqual(l, v)),
            (label, value).prop_map(|(l, v)| Expression::Contains(l, v)),
            (label, value).prop_map(|(l, v)| Expression::StartsWith(l, v)),
            (label, value).prop_map(|(l, v)| Expression::EndsWith(l, v)),
            (label, prop::collection::btree_set(value, 0..3))
                .prop_map(|(l, v)| Expression::In(l, v.into_iter().collect())),
            (label, prop::collection::btree_set(value, 0..3))
                .prop_map(|(l, v)| Expression::NotIn(l, v.into_iter().collect())),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|e| Expression::Not(Box::new(e))),
                prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::And),
                prop::collection::vec(inner, 2..4).prop_map(Expression::Or),
            ]
        })
    }

    proptest! {
        #[test]
        fn printed_selectors_mean_the_same(
            expression in expression(),
            labels in prop::collection::btree_map("[a-c]", "[x-z]{0,2}", 0..4),
        ) {
            let selector = Selector::from(expression);
            let again = Selector::parse(selector.canonical()).expect("the canonical text parses");
            prop_assert_eq!(again.matches(&labels), selector.matches(&labels));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in r#"(\PC|[ \t\n!&|(){}='",a-c]|all\(\)|has\(a\)| in | not ){0,40}"#) {
            if let Ok(selector) = Selector::parse(&text) {
                let canonical = selector.canonical().to_owned();
                let again = Selector::parse(&canonical).map(|s| s.canonical().to_owned());
                prop_assert_eq!(again, Ok(canonical));
            }
        }
    }
}
