//! The words of [the language](super).

use std::fmt;

use super::{SelectorError, expression::Quoted};

/// The longest label name.
pub(super) const MAX_LABEL: usize = 512;

/// An error at a byte offset; becomes a [`SelectorError`] when the text is at hand.
pub(super) struct SyntaxError {
    at: usize,
    message: String,
}

impl SyntaxError {
    pub(super) fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }

    pub(super) fn locate(self, text: &str) -> SelectorError {
        SelectorError { offset: text.char_indices().take_while(|(i, _)| *i < self.at).count(), message: self.message }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
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
pub(super) const OPERATORS: &str = "==, !=, in, not in, contains, starts with, ends with";

/// Cuts the text into tokens, each with its byte offset.
pub(super) fn tokenize(text: &str) -> Result<Vec<(usize, Token<'_>)>, SyntaxError> {
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
