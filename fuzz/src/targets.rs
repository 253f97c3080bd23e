//! What must hold for any bytes. The fuzzer looks for bytes of which it does not; a test holds it of the kept ones and of
//! what becomes of them by some changes.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use calico_ebpf_user::{
    policy::{
        compile::compile,
        evaluate::evaluate,
        flow::{EndVerdict, Flow},
        lint,
        maps::Maps,
        store::Store,
        write::Limits,
    },
    resources::{self, Loaded, model::Labels, selector::Selector},
};

/// Whatever is in a file: it is read or refused, findings are where something is, and what they say can be shown.
pub(crate) fn reader(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines = 2 + text.matches(['\n', '\r']).count();
    let loaded = resources::load_content(Path::new("file.yaml"), bytes.to_vec());
    for finding in &loaded.diagnostics {
        let shown = finding.render();
        assert!((1..=lines).contains(&(finding.line as usize)) && finding.column >= 1, "{shown}");
        assert!(!finding.message.is_empty(), "{shown}");
        assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    }
    if !loaded.has_errors() {
        for remark in lint(&loaded.set) {
            assert!(!remark.fields.is_empty() && !remark.message.is_empty());
        }
        let _ = compile(&loaded.set, "n");
    }
}

/// A text is a selector or not; if it is, its canonical form is one, too, and means the same.
/// (It need not be the same text again: `!(!a)` is `!!a`, which is `a`.)
pub(crate) fn selector(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match Selector::parse(text) {
        Err(error) => assert!(error.offset <= text.chars().count() && !error.message.is_empty()),
        Ok(selector) => {
            let again = Selector::parse(selector.canonical()).expect("the canonical form is a selector");
            for labels in label_sets(text) {
                assert_eq!(selector.matches(&labels), again.matches(&labels), "{labels:?}");
            }
        }
    }
}

/// Labels out of the words of the selector itself.
fn label_sets(text: &str) -> Vec<Labels> {
    let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).take(8).collect();
    let pairs = words.iter().flat_map(|key| words.iter().map(|value| ((*key).to_owned(), (*value).to_owned())));
    pairs.map(|pair| Labels::from([pair])).chain([Labels::new()]).collect()
}

/// Documents that the bytes choose, and flows: the tables say what the plain evaluator says, and no rule that the lints call
/// dead decides.
pub(crate) fn compiler(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let text = documents(&mut choices);
    let loaded: Loaded = resources::load_content(Path::new("file.yaml"), text.clone().into_bytes());
    if loaded.has_errors() {
        return;
    }
    let limits = Limits {
        blocks: 1 << 16,
        slots: 64,
        counters: 4096,
        addresses4: 4096,
        addresses6: 4096,
        nets: 4096,
        spoof: 64,
        classes: 4096,
    };
    let Ok(plan) = Store::empty(limits).plan(&compile(&loaded.set, "n"), &BTreeSet::new()) else { return };
    let mut maps = Maps::default();
    maps.execute(&plan);
    let dead: BTreeSet<String> = lint(&loaded.set)
        .into_iter()
        .filter(|remark| remark.message.starts_with("never"))
        .map(|remark| format!("{} {}", remark.resource, remark.fields[0]))
        .collect();
    for _ in 0..16 {
        let flow = flow(&mut choices);
        let verdict = maps.judge(&flow);
        assert_eq!(verdict, evaluate(&loaded.set, &flow), "{flow:?}\n{text}");
        for name in [verdict.source, verdict.destination].iter().flatten().filter_map(deciding) {
            assert!(!dead.contains(&name), "{name}: {flow:?}\n{text}");
        }
    }
}

fn deciding(end: &EndVerdict) -> Option<String> {
    let rule = &end.rule;
    let namespace = rule.namespace.as_ref().map_or(String::new(), |namespace| format!("{namespace}/"));
    let (kind, policy, number) = (rule.kind.as_ref()?, rule.policy.as_ref()?, rule.rule?);
    Some(format!("{kind}/{namespace}{policy} spec.{}[{number}]", rule.direction.as_str()))
}

/// Bytes as choices; zeros when they are used up.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn below(&mut self, count: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % count
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

const SELECTORS: [&str; 12] = [
    "all()",
    "role == 'a'",
    "role != 'a'",
    "has(role)",
    "!has(role)",
    "role in {'a', 'b'}",
    "role not in {'b'}",
    "set == 's'",
    "zone == 'a' && role == 'a'",
    "zone == 'a' || role == 'b'",
    "pcns.kind starts with 'p'",
    "projectcalico.org/namespace == 'x'",
];
const NETS: [&str; 8] = [
    "10.0.0.0/8",
    "10.0.0.0/30",
    "10.0.0.2/32",
    "0.0.0.0/0",
    "192.0.2.0/24",
    "'fd00::/16'",
    "'fd00::2/128'",
    "'2001:db8::/32'",
];
const PORTS: [&str; 7] = ["80", "1", "65535", "'79:81'", "'1:65535'", "http", "dns"];
const NAMESPACES: [&str; 2] = ["x", "y"];

fn documents(choices: &mut Choices<'_>) -> String {
    let mut text = String::new();
    for namespace in NAMESPACES {
        let kind = choices.pick(&["prod", "test"]);
        text += &format!(
            "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {{kind: {kind}}}}}}}\n"
        );
    }
    let tier = choices.pick(&["Deny", "Pass"]);
    text += &format!(
        "---\n{{apiVersion: projectcalico.org/v3, kind: Tier, metadata: {{name: t}}, spec: {{order: 5, defaultAction: {tier}}}}}\n"
    );
    let net = choices.pick(&NETS);
    text += &format!(
        "---\n{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkSet, metadata: {{name: s, labels: {{set: s}}}}, spec: {{nets: [{net}]}}}}\n"
    );
    for number in 1..=4 {
        let (namespace, role, zone) = (choices.pick(&NAMESPACES), choices.pick(&["a", "b"]), choices.pick(&["a", "b"]));
        let profile = choices.pick(&["kns.x", "kns.y", "missing"]);
        let port = choices.pick(&["{name: http, protocol: TCP, port: 80}", "{name: dns, protocol: UDP, port: 1}"]);
        text += &format!(
            "---\napiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\n\
             metadata: {{name: w{number}, namespace: {namespace}, labels: {{role: {role}, zone: {zone}}}}}\n\
             spec: {{node: n, interfaceName: c{number}, ipNetworks: [10.0.0.{number}, 'fd00::{number}'], profiles: [{profile}], ports: [{port}]}}\n"
        );
    }
    for number in 0..choices.below(4) {
        let (kind, namespace) = choices.pick(&[("GlobalNetworkPolicy", ""), ("NetworkPolicy", ", namespace: x")]);
        let (selector, order) = (choices.pick(&SELECTORS), choices.pick(&["1", "2", "null"]));
        let (tier, types) =
            (choices.pick(&["t", "default"]), choices.pick(&["[Ingress]", "[Egress]", "[Ingress, Egress]"]));
        text += &format!(
            "---\napiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: {tier}.p{number}{namespace}}}\n\
             spec:\n  tier: {tier}\n  order: {order}\n  selector: \"{selector}\"\n  types: {types}\n"
        );
        for direction in ["ingress", "egress"] {
            text += &format!("  {direction}:\n");
            for _ in 0..choices.below(5) {
                text += &rule(choices);
            }
        }
    }
    text
}

fn rule(choices: &mut Choices<'_>) -> String {
    let mut text = format!("  - action: {}\n", choices.pick(&["Allow", "Deny", "Allow", "Deny", "Pass", "Log"]));
    let protocol = choices.pick(&["", "TCP", "UDP", "ICMP", "ICMPv6", "132"]);
    if !protocol.is_empty() {
        text += &format!("    protocol: {protocol}\n");
    }
    match choices.below(8) {
        0 => text += "    ipVersion: 4\n",
        1 => text += "    ipVersion: 6\n",
        2 => text += "    notProtocol: UDP\n",
        3 if protocol.starts_with("ICMP") => text += "    icmp: {type: 8, code: 0}\n",
        4 if protocol.starts_with("ICMP") => text += "    notICMP: {type: 8}\n",
        _ => {}
    }
    let has_ports = ["TCP", "UDP", "132"].contains(&protocol);
    for end in ["source", "destination"] {
        let mut fields = Vec::new();
        for _ in 0..choices.below(3) {
            fields.push(match choices.below(7) {
                0 => format!("nets: [{}]", choices.pick(&NETS)),
                1 => format!("notNets: [{}]", choices.pick(&NETS)),
                2 => format!("selector: \"{}\"", choices.pick(&SELECTORS)),
                3 => format!("notSelector: \"{}\"", choices.pick(&SELECTORS)),
                4 => format!("namespaceSelector: {}", choices.pick(&["\"kind == 'prod'\"", "global()", "all()"])),
                5 if has_ports => format!("ports: [{}, {}]", choices.pick(&PORTS), choices.pick(&PORTS)),
                6 if has_ports => format!("notPorts: [{}]", choices.pick(&PORTS)),
                _ => continue,
            });
        }
        fields.sort();
        fields.dedup_by_key(|field| field.split(':').next().map(str::to_owned));
        text += &format!("    {end}: {{{}}}\n", fields.join(", "));
    }
    text
}

fn flow(choices: &mut Choices<'_>) -> Flow {
    let v4 = choices.below(2) == 0;
    let mut address = || -> IpAddr {
        let number = choices.below(7);
        let text = match (number, v4) {
            (5, true) => "192.0.2.1".to_owned(),
            (6, true) => "8.8.8.8".to_owned(),
            (5, false) => "2001:db8::1".to_owned(),
            (6, false) => "2a00::1".to_owned(),
            (number, true) => format!("10.0.0.{number}"),
            (number, false) => format!("fd00::{number}"),
        };
        text.parse().expect("an address")
    };
    let (source, destination) = (address(), address());
    let protocol = choices.pick(&[6, 17, 1, 58, 132, 253]);
    let mut port = || if matches!(protocol, 6 | 17 | 132) { choices.pick(&[1, 79, 80, 81, 65535]) } else { 0 };
    let (source_port, mut destination_port) = (port(), port());
    if protocol == 1 || protocol == 58 {
        destination_port = u16::from_be_bytes([choices.pick(&[0, 8]), choices.pick(&[0, 3])]);
    }
    Flow { source, destination, protocol, source_port, destination_port }
}
