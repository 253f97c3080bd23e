//! From words to the tree, by the grammar of [the language](super).

use super::{
    expression::{Expression, Quoted},
    tokens::{OPERATORS, SyntaxError, Token, tokenize},
};

/// How deep parentheses may nest. Calico knows no limit; nobody writes this by hand, and evaluation recurses.
pub(super) const MAX_DEPTH: usize = 100;

/// Parses a selector of whatever length; one of blanks alone is `all()`.
pub(super) fn parse(text: &str) -> Result<Expression, SyntaxError> {
    let tokens = tokenize(text)?;
    Parser { tokens: &tokens, next: 0, end: text.len() }.selector()
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
