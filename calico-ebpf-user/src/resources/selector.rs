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

use std::{
    cmp::Ordering,
    fmt::{self, Write as _},
    hash::{Hash, Hasher},
    sync::Arc,
};

use super::model::Labels;

/// How deep parentheses may nest. Calico knows no limit; nobody writes this by hand, and evaluation recurses.
const MAX_DEPTH: usize = 100;
/// The longest label name.
const MAX_LABEL: usize = 512;
/// The longest selector, in bytes. Calico's own limit is 1,024 characters, since it checks by schema.
const MAX_LENGTH: usize = 64 << 10;

/// A parsed selector. Equality, order and hash are those of its canonical text. Cheap to clone.
#[derive(Clone)]
pub struct Selector {
    canonical: Arc<str>,
    expression: Arc<Expression>,
}

/// The tree of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// `all()`: everything.
    All,
    /// `global()`: what has no namespace. As an expression over labels it is true; whoever evaluates a `namespaceSelector`
    /// has to look at [`Selector::is_global`].
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
        let tokens = tokenize(text).map_err(|error| error.locate(text))?;
        let mut parser = Parser { tokens: &tokens, next: 0, end: text.len() };
        let expression = parser.selector().map_err(|error| error.locate(text))?;
        Ok(Self::from(expression))
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

    fn holds<'a>(&self, lookup: &impl Fn(&str) -> Option<&'a str>) -> bool {
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

    fn mentions_global(&self) -> bool {
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
struct Quoted<'a>(&'a str);

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

/// An error at a byte offset; becomes a [`SelectorError`] when the text is at hand.
struct SyntaxError {
    at: usize,
    message: String,
}

impl SyntaxError {
    fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }

    fn locate(self, text: &str) -> SelectorError {
        SelectorError { offset: text.char_indices().take_while(|(i, _)| *i < self.at).count(), message: self.message }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Label(&'a str),
    Literal(&'a str),
    Has(&'a str),
    All,
    Global,
    BraceOpen,
    BraceClose,
    Comma,
    Equal,
    NotEqual,
    In,
    NotIn,
    Contains,
    StartsWith,
    EndsWith,
    Not,
    ParenOpen,
    ParenClose,
    And,
    Or,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(label) => write!(f, "\"{label}\""),
            Self::Literal(value) => write!(f, "the value {}", Quoted(value)),
            Self::Has(label) => write!(f, "\"has({label})\""),
            Self::All => f.write_str("\"all()\""),
            Self::Global => f.write_str("\"global()\""),
            Self::BraceOpen => f.write_str("\"{\""),
            Self::BraceClose => f.write_str("\"}\""),
            Self::Comma => f.write_str("\",\""),
            Self::Equal => f.write_str("\"==\""),
            Self::NotEqual => f.write_str("\"!=\""),
            Self::In => f.write_str("\"in\""),
            Self::NotIn => f.write_str("\"not in\""),
            Self::Contains => f.write_str("\"contains\""),
            Self::StartsWith => f.write_str("\"starts with\""),
            Self::EndsWith => f.write_str("\"ends with\""),
            Self::Not => f.write_str("\"!\""),
            Self::ParenOpen => f.write_str("\"(\""),
            Self::ParenClose => f.write_str("\")\""),
            Self::And => f.write_str("\"&&\""),
            Self::Or => f.write_str("\"||\""),
        }
    }
}

const BLANK: [char; 2] = [' ', '\t'];
const OPERATORS: &str = "==, !=, in, not in, contains, starts with, ends with";

/// Cuts the text into tokens, each with its byte offset.
fn tokenize(text: &str) -> Result<Vec<(usize, Token<'_>)>, SyntaxError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(BLANK);
    while let Some(first) = rest.chars().next() {
        let at = text.len() - rest.len();
        let after_label = match tokens.last() {
            Some((_, Token::Label(label))) => Some(*label),
            _ => None,
        };
        let (token, remaining) = match first {
            '(' => (Token::ParenOpen, &rest[1..]),
            ')' => (Token::ParenClose, &rest[1..]),
            '{' => (Token::BraceOpen, &rest[1..]),
            '}' => (Token::BraceClose, &rest[1..]),
            ',' => (Token::Comma, &rest[1..]),
            '"' | '\'' => {
                let Some((value, remaining)) = rest[1..].split_once(first) else {
                    return Err(SyntaxError::new(at, format!("this {first} has no end: close the value with {first}")));
                };
                (Token::Literal(value), remaining)
            }
            '=' if rest.starts_with("===") => {
                return Err(SyntaxError::new(at, "\"===\" is no operator: use \"==\""));
            }
            '=' => match rest.strip_prefix("==") {
                Some(remaining) => (Token::Equal, remaining),
                None => return Err(SyntaxError::new(at, "\"=\" is no operator: use \"==\"")),
            },
            '!' => match rest.strip_prefix("!=") {
                Some(remaining) => (Token::NotEqual, remaining),
                None => (Token::Not, &rest[1..]),
            },
            '&' => match rest.strip_prefix("&&") {
                Some(remaining) => (Token::And, remaining),
                None => return Err(SyntaxError::new(at, "\"&\" is no operator: use \"&&\"")),
            },
            '|' => match rest.strip_prefix("||") {
                Some(remaining) => (Token::Or, remaining),
                None => return Err(SyntaxError::new(at, "\"|\" is no operator: use \"||\"")),
            },
            '\n' | '\r' => {
                return Err(SyntaxError::new(
                    at,
                    "a line break is not a blank in a selector: write it on one line (or as a YAML block with \">-\")",
                ));
            }
            _ => match after_label {
                Some(label) => operator_word(rest).ok_or_else(|| {
                    let word: String = rest.chars().take_while(|c| !BLANK.contains(c)).take(20).collect();
                    let hint = match word.as_str() {
                        _ if label == "not" => "; negation is written with \"!\" before an expression",
                        "starts" => "; write \"starts with\"",
                        "ends" => "; write \"ends with\"",
                        "IN" | "NOT" => "; operators are written in lower case",
                        _ => "",
                    };
                    SyntaxError::new(
                        at,
                        format!("\"{word}\" after the label \"{label}\" is no operator: use one of {OPERATORS}{hint}"),
                    )
                })?,
                None => word(rest, at)?,
            },
        };
        // After a complete expression these are no labels; told here, before the next word is taken for their operator.
        if let (Some((_, last)), Token::Label(word)) = (tokens.last(), token)
            && matches!(last, Token::Literal(_) | Token::BraceClose | Token::ParenClose | Token::Has(_) | Token::All)
            && matches!(word, "and" | "AND" | "or" | "OR")
        {
            let operator = if word.eq_ignore_ascii_case("and") { "&&" } else { "||" };
            return Err(SyntaxError::new(at, format!("\"{word}\" is no operator: use \"{operator}\"")));
        }
        tokens.push((at, token));
        rest = remaining.trim_start_matches(BLANK);
    }
    Ok(tokens)
}

/// An operator made of letters, as it may follow a label. `startswith` and `notin` are accepted, as in Calico.
fn operator_word(text: &str) -> Option<(Token<'_>, &str)> {
    let two = |first: &str, second: &str| text.strip_prefix(first)?.trim_start_matches(BLANK).strip_prefix(second);
    if let Some(rest) = text.strip_prefix("contains") {
        return Some((Token::Contains, rest));
    }
    if let Some(rest) = two("starts", "with") {
        return Some((Token::StartsWith, rest));
    }
    if let Some(rest) = two("ends", "with") {
        return Some((Token::EndsWith, rest));
    }
    if let Some(rest) = two("not", "in") {
        return Some((Token::NotIn, rest));
    }
    text.strip_prefix("in").map(|rest| (Token::In, rest))
}

/// A label or one of the functions. `at` is the byte offset of `text`, for errors.
fn word(text: &str, at: usize) -> Result<(Token<'_>, &str), SyntaxError> {
    if let Some(inner) = text.strip_prefix("has(") {
        let inner = inner.trim_start_matches(BLANK);
        let (label, rest) = label(inner, at + (text.len() - inner.len()))?;
        if label.is_empty() {
            return Err(SyntaxError::new(at, "\"has(\" needs the name of a label: has(LABEL)"));
        }
        let Some(rest) = rest.trim_start_matches(BLANK).strip_prefix(')') else {
            return Err(SyntaxError::new(at, "\"has(\" takes the name of one label and a \")\": has(LABEL)"));
        };
        return Ok((Token::Has(label), rest));
    }
    for (open, token) in [("all(", Token::All), ("global(", Token::Global)] {
        if let Some(inner) = text.strip_prefix(open) {
            return match inner.trim_start_matches(BLANK).strip_prefix(')') {
                Some(rest) => Ok((token, rest)),
                None => Err(SyntaxError::new(at, format!("\"{open}\" has to be followed by \")\""))),
            };
        }
    }
    let (label, rest) = label(text, at)?;
    if label.is_empty() {
        let character: String = text.chars().take(1).collect();
        return Err(SyntaxError::new(
            at,
            format!("\"{}\" cannot stand here: a label has only letters, digits and _ . / -", character.escape_debug()),
        ));
    }
    Ok((Token::Label(label), rest))
}

/// The longest label name that the text begins with; may be empty.
fn label(text: &str, at: usize) -> Result<(&str, &str), SyntaxError> {
    let end =
        text.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '-'))).unwrap_or(text.len());
    if end > MAX_LABEL {
        return Err(SyntaxError::new(at, format!("a label of {end} characters: at most {MAX_LABEL} are allowed")));
    }
    Ok(text.split_at(end))
}

/// Recursive descent over the tokens.
struct Parser<'a> {
    tokens: &'a [(usize, Token<'a>)],
    next: usize,
    /// Length of the text: where the end is reported.
    end: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).map(|(_, token)| *token)
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    /// Takes the next token if it is this one.
    fn take(&mut self, token: Token<'_>) -> bool {
        let found = self.peek() == Some(token);
        self.next += usize::from(found);
        found
    }

    fn unexpected<T>(&self, expected: &str) -> Result<T, SyntaxError> {
        let message = match self.peek() {
            Some(token) => format!("{token} cannot stand here: expected {expected}"),
            None => format!("the selector ends too early: expected {expected}"),
        };
        Err(SyntaxError::new(self.at(), message))
    }

    fn selector(&mut self) -> Result<Expression, SyntaxError> {
        if self.tokens.is_empty() {
            return Ok(Expression::All);
        }
        let expression = self.or(0)?;
        match self.peek() {
            None => Ok(expression),
            Some(_) => self.unexpected("\"&&\", \"||\" or the end"),
        }
    }

    fn or(&mut self, depth: usize) -> Result<Expression, SyntaxError> {
        let mut parts = vec![self.and(depth)?];
        while self.take(Token::Or) {
            parts.push(self.and(depth)?);
        }
        Ok(one_or(parts, Expression::Or))
    }

    fn and(&mut self, depth: usize) -> Result<Expression, SyntaxError> {
        let mut parts = vec![self.unary(depth)?];
        while self.take(Token::And) {
            parts.push(self.unary(depth)?);
        }
        Ok(one_or(parts, Expression::And))
    }

    fn unary(&mut self, depth: usize) -> Result<Expression, SyntaxError> {
        let mut negated = false;
        while self.take(Token::Not) {
            negated = !negated;
        }
        let expression = self.primary(depth)?;
        Ok(if negated { Expression::Not(Box::new(expression)) } else { expression })
    }

    fn primary(&mut self, depth: usize) -> Result<Expression, SyntaxError> {
        let Some(token) = self.peek() else {
            return self.unexpected("a label, has(LABEL), all() or \"(\"");
        };
        match token {
            Token::ParenOpen => {
                if depth == MAX_DEPTH {
                    return Err(SyntaxError::new(
                        self.at(),
                        format!("more than {MAX_DEPTH} parentheses in each other"),
                    ));
                }
                self.next += 1;
                let inner = self.or(depth + 1)?;
                if self.take(Token::ParenClose) { Ok(inner) } else { self.unexpected("\")\"") }
            }
            Token::All => {
                self.next += 1;
                Ok(Expression::All)
            }
            Token::Global => {
                self.next += 1;
                Ok(Expression::Global)
            }
            Token::Has(label) => {
                self.next += 1;
                Ok(Expression::Has(label.to_owned()))
            }
            Token::Label(label) => {
                self.next += 1;
                self.operation(label)
            }
            Token::Literal(value) => Err(SyntaxError::new(
                self.at(),
                format!("the value {} cannot stand here: the label comes first, without quotes", Quoted(value)),
            )),
            _ => self.unexpected("a label, has(LABEL), all() or \"(\""),
        }
    }

    fn operation(&mut self, label: &str) -> Result<Expression, SyntaxError> {
        let Some(operator) = self.peek() else {
            return Err(SyntaxError::new(
                self.end,
                format!(
                    "the label \"{label}\" alone says nothing: use has({label}), or one of {OPERATORS} and a value"
                ),
            ));
        };
        let label = label.to_owned();
        let make: fn(String, String) -> Expression = match operator {
            Token::Equal => Expression::Equal,
            Token::NotEqual => Expression::NotEqual,
            Token::Contains => Expression::Contains,
            Token::StartsWith => Expression::StartsWith,
            Token::EndsWith => Expression::EndsWith,
            Token::In | Token::NotIn => {
                self.next += 1;
                let set = self.set()?;
                return Ok(if operator == Token::In {
                    Expression::In(label, set)
                } else {
                    Expression::NotIn(label, set)
                });
            }
            Token::ParenOpen if matches!(label.as_str(), "all" | "has" | "global") => {
                return self.unexpected(&format!("\"{label}(\" in one word"));
            }
            _ => {
                return self.unexpected(&format!("one of {OPERATORS} after the label \"{label}\""));
            }
        };
        self.next += 1;
        Ok(make(label, self.literal()?))
    }

    fn literal(&mut self) -> Result<String, SyntaxError> {
        match self.peek() {
            Some(Token::Literal(value)) => {
                self.next += 1;
                Ok(value.to_owned())
            }
            Some(Token::Label(word)) => self.unexpected(&format!("a value in quotes: '{word}'")),
            _ => self.unexpected("a value in quotes"),
        }
    }

    fn set(&mut self) -> Result<Vec<String>, SyntaxError> {
        if !self.take(Token::BraceOpen) {
            return self.unexpected("a set of values: {'a', 'b'}");
        }
        let mut values = Vec::new();
        while let Some(Token::Literal(value)) = self.peek() {
            self.next += 1;
            values.push(value.to_owned());
            if !self.take(Token::Comma) {
                break;
            }
        }
        if !self.take(Token::BraceClose) {
            return self.unexpected("a value in quotes or \"}\"");
        }
        values.sort();
        values.dedup();
        Ok(values)
    }
}

fn one_or(mut parts: Vec<Expression>, many: fn(Vec<Expression>) -> Expression) -> Expression {
    if parts.len() == 1 { parts.swap_remove(0) } else { many(parts) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
