//! YAML (and JSON) text to a tree that knows where everything was written.
//!
//! Only what resources need: mappings with plain keys, sequences, scalars; aliases and merge keys are resolved. Every
//! document is parsed, also after a broken one. What a hostile file can cost is bounded: nesting, aliases, nodes.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use granit_parser::{Event, Parser, ScalarStyle, Tag};

use super::source::Position;

/// How deep collections may nest, aliases resolved.
const MAX_DEPTH: usize = 64;
/// How many nodes a document may have. Ten thousand workloads in one `List` have about 400,000, a network set of a million
/// members has a million.
const MAX_NODES: usize = 1_250_000;
/// How many nodes all documents of a file may have.
pub(super) const MAX_NODES_OF_FILE: usize = 3_000_000;
/// How many documents a file may have, empty ones included.
pub(super) const MAX_DOCUMENTS: usize = 100_000;
/// How many nodes aliases may add to a document.
const MAX_ALIASED: usize = 100_000;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    /// The first character of the value.
    pub(super) at: Position,
    /// The key that leads to it, or the item itself: where to point for a collection.
    pub(super) named_at: Position,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// A key and its value. Keys may repeat: who reads the mapping says so.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Position,
    pub(super) value: Node,
}

/// A scalar as written, quotes and escapes resolved.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) style: Style,
}

/// How a scalar was written. Only plain ones can be numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Quoted,
    Block,
}

/// What a scalar means.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Meaning<'a> {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(&'a str),
    /// `yes`, `on` and the like: a truth value to some readers of YAML, a word to others.
    Ambiguous(&'a str),
}

/// Why a document cannot be read.
#[derive(Clone, Debug)]
pub(super) struct YamlError {
    pub(super) at: Position,
    pub(super) message: String,
    /// Whether so much is in the document that what follows it is not looked at.
    is_excess: bool,
}

impl YamlError {
    fn new(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), is_excess: false }
    }

    fn excess(at: Position, message: impl Into<String>) -> Self {
        Self { at, message: message.into(), is_excess: true }
    }
}

impl Node {
    /// Where to point: at a scalar itself, at the key that leads to a collection, or to a text that begins on a later line.
    pub(super) fn place(&self) -> Position {
        match self.value {
            Value::Scalar(_) if self.at.line <= self.named_at.line => self.at,
            _ => self.named_at,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.meaning() == Meaning::Null)
    }

    /// What it is, for messages.
    pub(super) fn describe(&self) -> &'static str {
        match &self.value {
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Scalar(scalar) => match scalar.meaning() {
                Meaning::Null => "nothing",
                Meaning::Bool(_) => "a truth value",
                Meaning::Integer(_) | Meaning::Float(_) => "a number",
                Meaning::Text(_) | Meaning::Ambiguous(_) => "a text",
            },
        }
    }

    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }
}

impl Scalar {
    /// YAML's core schema, and with it JSON's; numbers that readers of YAML 1.1 and 1.2 take differently are left texts.
    pub(super) fn meaning(&self) -> Meaning<'_> {
        let text = self.text.as_str();
        if self.style != Style::Plain {
            return Meaning::Text(text);
        }
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
            "true" | "True" | "TRUE" => return Meaning::Bool(true),
            "false" | "False" | "FALSE" => return Meaning::Bool(false),
            "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
                return Meaning::Ambiguous(text);
            }
            ".nan" | ".NaN" | ".NAN" => return Meaning::Float(f64::NAN),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Meaning::Float(f64::INFINITY),
            "-.inf" | "-.Inf" | "-.INF" => return Meaning::Float(f64::NEG_INFINITY),
            _ => {}
        }
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Meaning::Text(text);
        }
        if digits.len() > 1 && digits.bytes().all(|b| b.is_ascii_digit()) && digits.starts_with('0') {
            return Meaning::Ambiguous(text);
        }
        for (prefix, radix) in [("0x", 16), ("0o", 8)] {
            if let Some(number) = text.strip_prefix(prefix)
                && let Ok(number) = i64::from_str_radix(number, radix)
            {
                return Meaning::Integer(number);
            }
        }
        if let Ok(number) = text.parse() {
            return Meaning::Integer(number);
        }
        if digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
            && let Ok(number) = text.parse()
        {
            return Meaning::Float(number);
        }
        Meaning::Text(text)
    }
}

/// Reads the documents of a text one after the other and hands each to `document`: its tree, or why it has none. Empty
/// documents are left out. `document` returns whether to go on.
pub(super) fn documents(text: &str, document: impl FnMut(Result<Node, YamlError>) -> bool) {
    documents_from(0, text, document);
}

/// The same for a part of a text, before which there are so many lines. How many nodes it has.
pub(super) fn documents_from(
    lines: u32,
    text: &str,
    mut document: impl FnMut(Result<Node, YamlError>) -> bool,
) -> usize {
    let position = |marker: granit_parser::Marker| {
        let Position { line, column } = position(marker);
        Position { line: line.saturating_add(lines), column }
    };
    let options = granit_parser::options! {
        emit_comments: false,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut nodes_left = MAX_NODES_OF_FILE;
    let mut seen = 0;
    loop {
        let mut builder = Builder { nodes_left: nodes_left.min(MAX_NODES), ..Builder::default() };
        let result = loop {
            match parser.next_event() {
                None => return MAX_NODES_OF_FILE - nodes_left,
                Some(Err(error)) => {
                    let at = position(*error.marker());
                    break Err(YamlError::new(at, syntax_message(&error.info())));
                }
                Some(Ok((Event::StreamEnd, _))) => return MAX_NODES_OF_FILE - nodes_left,
                Some(Ok((Event::DocumentEnd, _))) => break Ok(builder.root.take()),
                Some(Ok((Event::DocumentStart(..), span))) => {
                    seen += 1;
                    if seen > MAX_DOCUMENTS {
                        let message = format!("more than {MAX_DOCUMENTS} documents in one file: split it");
                        document(Err(YamlError::excess(position(span.start), message)));
                        return MAX_NODES_OF_FILE - nodes_left;
                    }
                }
                Some(Ok((event, span))) => {
                    if let Err(error) = builder.event(event, position(span.start)) {
                        break Err(error);
                    }
                }
            }
        };
        let failed = result.is_err();
        let is_excess = result.as_ref().is_err_and(|error| error.is_excess);
        let go_on = match result {
            Ok(Some(node)) if node.is_null() => true,
            Ok(Some(node)) => document(Ok(node)),
            Ok(None) => true,
            Err(error) => document(Err(error)),
        };
        nodes_left = nodes_left.saturating_sub(builder.nodes);
        if !go_on || is_excess || (failed && !matches!(parser.proceed_next_document(), Ok(true))) {
            return MAX_NODES_OF_FILE - nodes_left;
        }
    }
}

/// The parts of a text that are documents, whatever is in the others: the lines before each, and its text. `None` where one
/// may depend on another (directives), or it takes more than a look to see where they end.
pub(super) fn parts(text: &str) -> Option<Vec<(u32, &str)>> {
    let mut parts = Vec::new();
    let (mut begin, mut at, mut lines_before) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        if line.starts_with(['%', '.', '\u{feff}']) || line.contains('\r') {
            return None;
        }
        if line.starts_with("---") && line[3..].chars().next().is_none_or(char::is_whitespace) && at > begin {
            parts.push((lines_before, &text[begin..at]));
            (begin, lines_before) = (at, number);
        }
        at += line.len();
    }
    parts.push((lines_before, &text[begin..]));
    Some(parts)
}

fn syntax_message(info: &str) -> String {
    if info.starts_with("tab") {
        return "not YAML: a tab in the indentation: use blanks".to_owned();
    }
    format!("not YAML: {info}")
}

fn position(marker: granit_parser::Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(marker.line()).max(1), column: number(marker.col()).saturating_add(1) }
}

/// Builds the tree of one document from the parser's events.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    /// How many nodes this document may have.
    nodes_left: usize,
    aliased: usize,
    root: Option<Node>,
}

/// A collection whose end has not come yet.
struct Open {
    at: Position,
    anchor: usize,
    items: Items,
    /// Of the children: how many nodes, and how deep.
    size: usize,
    depth: usize,
}

enum Items {
    Sequence(Vec<Node>),
    Mapping { entries: Vec<Entry>, key: Option<(String, Position)> },
}

struct Anchored {
    node: Node,
    size: usize,
    depth: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, at: Position) -> Result<(), YamlError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let scalar = scalar(text, style, tag.as_deref(), at)?;
                let node = Node { at, named_at: at, value: Value::Scalar(scalar) };
                self.finished(node, anchor, 1, 0)
            }
            Event::SequenceStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), &["seq"], at)?;
                self.push(at, anchor, Items::Sequence(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                check_tag(tag.as_deref(), &["map"], at)?;
                self.push(at, anchor, Items::Mapping { entries: Vec::new(), key: None })
            }
            Event::SequenceEnd | Event::MappingEnd => self.pop(),
            Event::Alias(id) => self.alias(id, at),
            _ => Ok(()),
        }
    }

    fn push(&mut self, at: Position, anchor: usize, items: Items) -> Result<(), YamlError> {
        if self.open.len() == MAX_DEPTH {
            return Err(too_deep(at));
        }
        self.open.push(Open { at, anchor, items, size: 0, depth: 0 });
        Ok(())
    }

    fn pop(&mut self) -> Result<(), YamlError> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let value = match open.items {
            Items::Sequence(items) => Value::Sequence(items),
            Items::Mapping { entries, .. } => Value::Mapping(merged(entries)?),
        };
        let node = Node { at: open.at, named_at: open.at, value };
        self.finished(node, open.anchor, open.size + 1, open.depth + 1)
    }

    fn alias(&mut self, id: usize, at: Position) -> Result<(), YamlError> {
        let Some(anchored) = self.anchors.get(&id) else {
            return Err(YamlError::new(at, "this alias stands for something that it is a part of"));
        };
        let (size, depth) = (anchored.size, anchored.depth);
        self.aliased += size;
        if self.aliased > MAX_ALIASED {
            let message = format!("the aliases of this document stand for more than {MAX_ALIASED} values");
            return Err(YamlError::excess(at, message));
        }
        let node = anchored.node.clone();
        self.finished(node, 0, size, depth)
    }

    /// Puts a complete node where it belongs. `depth`: of the collections in it, itself included.
    fn finished(&mut self, mut node: Node, anchor: usize, size: usize, depth: usize) -> Result<(), YamlError> {
        self.nodes += 1;
        if self.nodes > self.nodes_left {
            let message =
                format!("more than {MAX_NODES} values in one document, or {MAX_NODES_OF_FILE} in one file: split it");
            return Err(YamlError::excess(node.at, message));
        }
        if self.open.len() + depth > MAX_DEPTH {
            return Err(too_deep(node.at));
        }
        if anchor != 0 {
            // Copies in anchors cost as much as those made by aliases.
            self.aliased += size;
            if self.aliased > MAX_ALIASED {
                let message = format!("the anchors of this document name more than {MAX_ALIASED} values");
                return Err(YamlError::excess(node.at, message));
            }
            self.anchors.insert(anchor, Anchored { node: node.clone(), size, depth });
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        parent.size += size;
        parent.depth = parent.depth.max(depth);
        match &mut parent.items {
            Items::Sequence(items) => {
                node.named_at = node.at;
                items.push(node);
            }
            Items::Mapping { entries, key } => match key.take() {
                Some((key, key_at)) => {
                    node.named_at = key_at;
                    entries.push(Entry { key, key_at, value: node });
                }
                None => match node.value {
                    Value::Scalar(scalar) => *key = Some((scalar.text, node.at)),
                    _ => {
                        return Err(YamlError::new(node.at, "a key has to be a plain word, not a list or mapping"));
                    }
                },
            },
        }
        Ok(())
    }
}

fn too_deep(at: Position) -> YamlError {
    YamlError::new(at, format!("more than {MAX_DEPTH} lists and mappings in each other"))
}

/// Resolves merge keys (`<<: *defaults`): what the mapping says itself wins, then the earlier of several.
fn merged(entries: Vec<Entry>) -> Result<Vec<Entry>, YamlError> {
    if !entries.iter().any(|entry| entry.key == "<<") {
        return Ok(entries);
    }
    let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| entry.key == "<<");
    let mut known: HashSet<String> = own.iter().map(|entry| entry.key.clone()).collect();
    for merge in merges {
        let sources = match merge.value.value {
            Value::Sequence(sources) => sources,
            _ => vec![merge.value],
        };
        for source in sources {
            let Value::Mapping(inherited) = source.value else {
                return Err(YamlError::new(merge.key_at, "\"<<\" takes a mapping, or a list of mappings"));
            };
            for entry in inherited {
                if known.insert(entry.key.clone()) {
                    own.push(entry);
                }
            }
        }
    }
    Ok(own)
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>, at: Position) -> Result<Scalar, YamlError> {
    check_tag(tag, &["str", "int", "float", "bool", "null"], at)?;
    let style = match style {
        _ if tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str")) => Style::Quoted,
        ScalarStyle::Plain => Style::Plain,
        ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => Style::Quoted,
        ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
    };
    Ok(Scalar { text: text.into_owned(), style })
}

/// A tag of an unknown type would be dropped in silence.
fn check_tag(tag: Option<&Tag>, known: &[&str], at: Position) -> Result<(), YamlError> {
    match tag {
        Some(tag) if !known.iter().any(|known| tag.is_yaml_core_schema_tag(known)) => {
            Err(YamlError::new(at, format!("the YAML tag {} means nothing here: remove it", tag.original())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Result<Node, String>> {
        let mut all = Vec::new();
        documents(text, |document| {
            all.push(document.map_err(|e| format!("{}:{}: {}", e.at.line, e.at.column, e.message)));
            true
        });
        all
    }

    fn one(text: &str) -> Node {
        let mut all = parse(text);
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0).expect(text)
    }

    fn show(node: &Node) -> String {
        match &node.value {
            Value::Scalar(scalar) => format!("{:?}", scalar.meaning()),
            Value::Sequence(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(", ")),
            Value::Mapping(entries) => {
                let entries: Vec<_> = entries.iter().map(|e| format!("{}: {}", e.key, show(&e.value))).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }

    #[test]
    fn meanings() {
        for (text, meaning) in [
            ("80", "Integer(80)"),
            ("-3.5", "Float(-3.5)"),
            ("1e3", "Float(1000.0)"),
            ("0x1F", "Integer(31)"),
            ("'80'", "Text(\"80\")"),
            ("!!str 80", "Text(\"80\")"),
            ("080", "Ambiguous(\"080\")"),
            ("yes", "Ambiguous(\"yes\")"),
            ("8000:8010", "Text(\"8000:8010\")"),
            ("10.0.0.1", "Text(\"10.0.0.1\")"),
            ("1.2.3.4/8", "Text(\"1.2.3.4/8\")"),
            ("fd00::1", "Text(\"fd00::1\")"),
            (".nan", "Float(NaN)"),
            ("all()", "Text(\"all()\")"),
            ("infinity", "Text(\"infinity\")"),
        ] {
            let node = one(&format!("a: {text}"));
            assert_eq!(show(&node), format!("{{a: {meaning}}}"));
        }
    }

    #[test]
    fn places_are_exact() {
        let node = one("# é\nspec:\n  ingress:\n  - action: é\n    x: [1,\n 2]\n");
        let spec = &node.entries()[0];
        assert_eq!(spec.key_at, Position { line: 2, column: 1 });
        let ingress = &spec.value.entries()[0].value;
        assert_eq!(ingress.place(), Position { line: 3, column: 3 });
        let Value::Sequence(rules) = &ingress.value else { panic!("a list") };
        assert_eq!(rules[0].place(), Position { line: 4, column: 5 });
        assert_eq!(rules[0].entries()[0].value.at, Position { line: 4, column: 13 });
        let Value::Sequence(numbers) = &rules[0].entries()[1].value.value else { panic!("a list") };
        assert_eq!(numbers[1].at, Position { line: 6, column: 2 });
    }

    #[test]
    fn aliases_and_merge_keys() {
        let node = one("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\n");
        assert_eq!(
            show(&node),
            "{a: {x: Integer(1), y: Integer(2)}, b: {y: Integer(3), x: Integer(1)}, c: {x: Integer(1), y: Integer(2)}}"
        );
        assert!(parse("a: &a [*a]")[0].is_err());
        assert!(parse("a: *b")[0].is_err());
    }

    #[test]
    fn every_document_is_seen() {
        let all = parse("a: 1\n---\nb: [\n---\nc: 3\n---\n# nothing\n---\nd: !x 4\n---\ne: 5\n...\n");
        let shown: Vec<_> = all.iter().map(|d| d.as_ref().map(show).map_err(|e| e[..2].to_owned())).collect();
        assert_eq!(
            shown,
            [
                Ok("{a: Integer(1)}".to_owned()),
                Err("3:".to_owned()),
                Ok("{c: Integer(3)}".to_owned()),
                Err("9:".to_owned()),
                Ok("{e: Integer(5)}".to_owned()),
            ]
        );
    }

    #[test]
    fn what_a_hostile_file_can_cost_is_bounded() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", "));
        }
        let mut chain = "a0: &a0 []\n".to_owned();
        for i in 1..5_000 {
            chain += &format!("a{i}: &a{i} [*a{}]\n", i - 1);
        }
        for text in
            [bomb, chain, "[".repeat(1_000_000), "{a: ".repeat(1_000_000), "- ".repeat(1_000_000), "? ".repeat(100_000)]
        {
            let start = std::time::Instant::now();
            assert!(parse(&text).iter().any(Result::is_err), "{}", &text[..20]);
            assert!(start.elapsed().as_secs() < 5, "{}", &text[..20]);
        }
    }
}
