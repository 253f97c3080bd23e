//! The selector language against a table of texts, labels and verdicts.

use calico_ebpf_user::resources::{model::Labels, selector::Selector};

#[derive(serde::Deserialize)]
struct Row {
    selector: String,
    #[serde(default)]
    labels: Labels,
    r#match: Option<bool>,
    valid: Option<bool>,
}

#[test]
fn the_table_holds() {
    let table = include_str!("data/selectors.jsonl");
    let rows: Vec<Row> = table.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(rows.len() > 150);
    for Row { selector: text, labels, r#match: matches, valid } in rows {
        match (Selector::parse(&text), matches, valid) {
            (Ok(selector), Some(expected), None) => {
                assert_eq!(selector.matches(&labels), expected, "{text:?} on {labels:?}");
                let again = Selector::parse(selector.canonical()).expect("the canonical text parses");
                assert_eq!(again.matches(&labels), expected, "{:?} on {labels:?}", selector.canonical());
            }
            (Err(error), None, Some(false)) => assert!(!error.message.is_empty()),
            (parsed, _, _) => panic!("{text:?} gave {parsed:?}"),
        }
    }
}
