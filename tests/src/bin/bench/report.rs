//! Figures and the table they end in.

use std::{collections::BTreeMap, fmt::Write as _};

/// Samples by what was measured, in the order of appearance.
#[derive(Debug, Default)]
pub(crate) struct Report {
    sections: Vec<Section>,
}

#[derive(Debug)]
struct Section {
    title: String,
    unit: &'static str,
    /// The first is what the others are compared with.
    rows: Vec<(String, Vec<f64>)>,
}

impl Report {
    /// Adds a section. All rows have their samples from the same rounds; ratios are taken round by round.
    pub(crate) fn section(&mut self, title: &str, unit: &'static str, rows: Vec<(String, Vec<f64>)>) {
        let section = Section { title: title.to_owned(), unit, rows };
        print!("{}", section.table());
        self.sections.push(section);
    }

    /// Prints all of it.
    pub(crate) fn print(&self) {
        println!("\n# All figures\n");
        for section in &self.sections {
            print!("{}", section.table());
        }
    }
}

impl Section {
    fn table(&self) -> String {
        let mut text = format!("\n## {}\n\n| | {} (median) | spread |", self.title, self.unit);
        let references: Vec<&(String, Vec<f64>)> = self.rows.iter().collect();
        for (name, _) in &references {
            let _ = write!(text, " / {} |", short(name));
        }
        text += "\n|---|---|---|";
        text += &"---|".repeat(references.len());
        text.push('\n');
        for (name, samples) in &self.rows {
            let sorted = sorted(samples.clone());
            let (low, high) = (sorted.first().copied().unwrap_or(0.0), sorted.last().copied().unwrap_or(0.0));
            let _ = write!(text, "| {name} | {:.1} | {low:.1} to {high:.1} |", median(samples.clone()));
            for (_, reference) in &references {
                let ratios = samples.iter().zip(reference).map(|(sample, reference)| sample / reference).collect();
                let _ = write!(text, " {:.2} |", median(ratios));
            }
            text.push('\n');
        }
        text
    }
}

/// Runs each of `variants` once a round, forwards and backwards in turn, and collects the samples by name.
pub(crate) fn interleave<V>(
    rounds: usize,
    variants: &mut [V],
    name: impl Fn(&V) -> String,
    mut measure: impl FnMut(&mut V) -> anyhow::Result<f64>,
) -> anyhow::Result<Vec<(String, Vec<f64>)>> {
    let mut samples: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        let mut order: Vec<usize> = (0..variants.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for index in order {
            let sample = measure(&mut variants[index])?;
            samples.entry(index).or_default().push(sample);
        }
    }
    Ok(samples.into_iter().map(|(index, samples)| (name(&variants[index]), samples)).collect())
}

/// The middle one.
pub(crate) fn median(samples: Vec<f64>) -> f64 {
    let sorted = sorted(samples);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

fn sorted(mut samples: Vec<f64>) -> Vec<f64> {
    samples.sort_by(f64::total_cmp);
    samples
}

/// What stands in the parentheses at the end of a name, or the name.
fn short(name: &str) -> &str {
    name.strip_suffix(')').and_then(|name| name.rsplit_once('(')).map_or(name, |(_, short)| short)
}
