//! Metrics in Prometheus' text format.

use std::{collections::BTreeMap, fmt::Write as _};

use super::status::{drops, events};
use crate::dataplane::{self, view::View};

/// What the process counts itself; the rest comes from the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Attempts to load the files.
    pub loads: u64,
    /// Of these, refused.
    pub failed_loads: u64,
    /// Whether the last one was accepted.
    pub last_load_ok: bool,
    /// Workloads by state.
    pub workloads: BTreeMap<String, u64>,
    /// Routes that the kernel has.
    pub routes: u64,
    /// Things that could not be done and are tried again.
    pub faults: u64,
}

/// All metrics.
///
/// # Errors
/// If the maps cannot be read.
pub fn gather(numbers: &Numbers, view: &View) -> dataplane::Result<String> {
    Ok(render(numbers, view.root()?.generation, &drops(view)?, &events(view)?))
}

fn render(numbers: &Numbers, generation: u32, drops: &BTreeMap<String, u64>, events: &BTreeMap<String, u64>) -> String {
    let Numbers { loads, failed_loads, last_load_ok, workloads, routes, faults } = numbers;
    let mut text = Text::default();
    text.family("build_info", "gauge", "The program.");
    text.sample("build_info", Some(("version", env!("CARGO_PKG_VERSION"))), 1);
    text.single("generation", "gauge", "Generation of the policy in force; it wraps.", generation.into());
    text.single("loads_total", "counter", "Attempts to load the files.", *loads);
    text.single("failed_loads_total", "counter", "Attempts to load the files that were refused.", *failed_loads);
    text.single("last_load_ok", "gauge", "1 if what the files say is in force.", (*last_load_ok).into());
    text.family("workloads", "gauge", "Local workloads by the state of their interface.");
    for (state, count) in workloads {
        text.sample("workloads", Some(("state", state)), *count);
    }
    text.single("routes", "gauge", "Routes of local workloads that the kernel has.", *routes);
    text.single("faults", "gauge", "Things that could not be done and are tried again.", *faults);
    text.family("dropped_packets_total", "counter", "Packets dropped, by reason.");
    for (reason, packets) in drops {
        text.sample("dropped_packets_total", Some(("reason", reason)), *packets);
    }
    text.family("events_total", "counter", "What else the data path counts, by its name.");
    for (event, times) in events {
        text.sample("events_total", Some(("event", event)), *times);
    }
    text.0
}

#[derive(Default)]
struct Text(String);

impl Text {
    fn single(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.family(name, kind, help);
        self.sample(name, None, value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a `String` cannot fail.
        let _ = write!(self.0, "# HELP calico_ebpf_{name} {help}\n# TYPE calico_ebpf_{name} {kind}\n");
    }

    fn sample(&mut self, name: &str, label: Option<(&str, &str)>, value: u64) {
        let _ = match label {
            Some((key, text)) => writeln!(self.0, "calico_ebpf_{name}{{{key}=\"{}\"}} {value}", escape(text)),
            None => writeln!(self.0, "calico_ebpf_{name} {value}"),
        };
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_in_the_text_format() {
        let numbers = Numbers { loads: 3, workloads: [("up".to_owned(), 2)].into(), ..Numbers::default() };
        let text =
            render(&numbers, 7, &[("spoofed-source".to_owned(), 5)].into(), &[("midstream".to_owned(), 2)].into());
        for line in [
            "# TYPE calico_ebpf_generation gauge",
            "calico_ebpf_generation 7",
            "calico_ebpf_loads_total 3",
            "calico_ebpf_last_load_ok 0",
            "calico_ebpf_workloads{state=\"up\"} 2",
            "calico_ebpf_dropped_packets_total{reason=\"spoofed-source\"} 5",
            "calico_ebpf_events_total{event=\"midstream\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
