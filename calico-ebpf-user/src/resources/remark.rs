//! Findings of those who look at the resources later, when the places of fields are not known any more.

use super::{
    diagnostic::{Diagnostic, Severity},
    model::Origin,
    source::{Position, SourceText},
    yaml::{self, Node, Value},
};

/// A warning about a field of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// `Kind/name` or `Kind/namespace/name`.
    pub resource: String,
    /// Where the name of the resource was written.
    pub origin: Origin,
    /// Paths of fields like `spec.ingress[0].source.selector`: the first that is in the file is meant, or the first of all.
    pub fields: Vec<String>,
    /// What is odd about it.
    pub message: String,
}

/// The remarks of one file as findings: the file is parsed again to find where the fields stand.
pub(super) fn findings(source: &SourceText, remarks: &[&Remark]) -> Vec<Diagnostic> {
    let mut found: Vec<Option<Diagnostic>> = vec![None; remarks.len()];
    yaml::documents(&source.text, |document| {
        if let Ok(root) = document {
            resources(&root, &mut |resource| {
                let at = name_at(resource);
                for (remark, found) in remarks.iter().zip(&mut found) {
                    if (remark.origin.line, remark.origin.column) == (at.line, at.column) {
                        *found = Some(finding(source, resource, remark));
                    }
                }
            });
        }
        true
    });
    let nowhere = |remark: &Remark| {
        let at = Position { line: remark.origin.line, column: remark.origin.column };
        diagnostic(source, at, 1, &remark.fields, remark)
    };
    remarks.iter().zip(found).map(|(remark, found)| found.unwrap_or_else(|| nowhere(remark))).collect()
}

fn finding(source: &SourceText, resource: &Node, remark: &Remark) -> Diagnostic {
    let places: Vec<_> = remark.fields.iter().map(|field| place(resource, field)).collect();
    let chosen = places.iter().position(|(_, exact)| *exact).unwrap_or_default();
    let node = places.get(chosen).map_or(resource, |(node, _)| node);
    let at = node.place();
    let width = match &node.value {
        Value::Scalar(scalar) => scalar.text.chars().count(),
        _ => source.rest_of_line(at).map_or(1, |rest| rest.chars().take_while(|c| !": ,{[]}".contains(*c)).count()),
    };
    diagnostic(source, at, width, &remark.fields[chosen.min(remark.fields.len())..], remark)
}

fn diagnostic(source: &SourceText, at: Position, width: usize, fields: &[String], remark: &Remark) -> Diagnostic {
    let field = fields.first().map(String::as_str);
    source.diagnostic(Severity::Warning, at, width, Some(&remark.resource), field, &remark.message)
}

/// Calls back for each resource of a document: itself, or the items of a list.
fn resources(node: &Node, each: &mut impl FnMut(&Node)) {
    let is_list =
        matches!(get(node, "kind").map(|kind| &kind.value), Some(Value::Scalar(kind)) if kind.text.ends_with("List"));
    match get(node, "items").map(|items| &items.value) {
        Some(Value::Sequence(items)) if is_list => items.iter().for_each(|item| resources(item, each)),
        _ => each(node),
    }
}

/// As `metadata::read` has it.
fn name_at(resource: &Node) -> Position {
    match get(resource, "metadata") {
        Some(metadata) => get(metadata, "name").map_or(metadata.named_at, |name| name.at),
        None => resource.at,
    }
}

fn get<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    node.entries().iter().find(|entry| entry.key == key).map(|entry| &entry.value).filter(|value| !value.is_null())
}

/// The node of a field, or the nearest around it that is there, and whether it is the field itself.
fn place<'n>(resource: &'n Node, field: &str) -> (&'n Node, bool) {
    let mut node = resource;
    for step in field.split('.') {
        let (key, index) = match step.split_once('[') {
            Some((key, index)) => (key, index.trim_end_matches(']').parse::<usize>().ok()),
            None => (step, None),
        };
        let Some(inside) = get(node, key) else { return (node, false) };
        node = inside;
        if let (Some(index), Value::Sequence(items)) = (index, &node.value) {
            let Some(item) = items.get(index) else { return (node, false) };
            node = item;
        }
    }
    (node, true)
}
