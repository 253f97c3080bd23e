//! What files mean when they are read together: names, labels, profiles, findings across files, reading again.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use calico_ebpf_user::resources::{
    self, Diagnostic, Loaded, Reader, Report, Severity,
    model::{DenyAction, EndpointToHostAction, RuleAction, WorkloadEndpoint},
};

/// A directory of this test, removed at its end.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("calico-ebpf-resources-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).expect("a file");
        path
    }

    fn load(&self) -> Loaded {
        resources::load(std::slice::from_ref(&self.0))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn load(text: &str) -> Loaded {
    let directory = Directory::new();
    directory.write("test.yaml", text);
    directory.load()
}

fn good(text: &str) -> Loaded {
    let loaded = load(text);
    assert!(!loaded.has_errors(), "{}", rendered(&loaded));
    loaded
}

fn rendered(loaded: &Loaded) -> String {
    loaded.diagnostics.iter().map(|d| d.render() + "\n").collect()
}

/// `LINE:COLUMN severity resource field` of each finding.
fn places(loaded: &Loaded) -> Vec<String> {
    let show = |d: &Diagnostic| {
        let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        format!("{}:{} {} {} {}", d.line, d.column, d.severity, part(&d.resource), part(&d.field))
    };
    loaded.diagnostics.iter().map(show).collect()
}

fn workload(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: projectcalico.org/v3\nkind: WorkloadEndpoint\nmetadata: {{name: {name}, namespace: x}}\nspec: {{{spec}}}\n"
    )
}

fn labels(workload: &WorkloadEndpoint) -> Vec<(&str, &str)> {
    workload.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

#[test]
fn a_workload_with_everything() {
    let loaded = good(
        "apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata:
  namespace: shop
  uid: 1
  creationTimestamp: 2024-01-01T00:00:00Z
  managedFields: [{manager: x}]
  labels:
    role: web
    projectcalico.org/namespace: not-this
spec:
  node: node-1
  orchestrator: k8s
  pod: web-0
  endpoint: eth0
  serviceAccountName: robot
  interfaceName: cali1
  ipNetworks: [10.0.0.1/32, 'fd00::1']
  mac: 0a:00:00:00:00:01
  profiles: [kns.shop]
  ports: [{name: http, protocol: TCP, port: 80, hostPort: 0, hostIP: ''}]
  allowSpoofedSourcePrefixes: [192.0.2.0/24]
status: {}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: blue}}
spec: {finalizers: [kubernetes]}
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec: {defaultEndpointToHostAction: ACCEPT, interfacePrefix: 'cali,tap'}
",
    );
    assert_eq!(places(&loaded), Vec::<String>::new());
    let workload = &loaded.set.workloads[0];
    assert_eq!(workload.name, "node--1-k8s-web--0-eth0");
    let addresses: Vec<_> = workload.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    assert_eq!(workload.mac, Some([10, 0, 0, 0, 0, 1]));
    assert_eq!((workload.ports[0].protocol, workload.ports[0].port), (6, 80));
    assert_eq!(
        labels(workload),
        [
            ("projectcalico.org/namespace", "shop"),
            ("projectcalico.org/orchestrator", "k8s"),
            ("projectcalico.org/serviceaccount", "robot"),
            ("role", "web"),
        ]
    );
    let profile = loaded.set.profiles.iter().find(|p| p.name == "kns.shop").expect("the implied profile");
    assert_eq!(profile.ingress[0].action, RuleAction::Allow);
    assert_eq!(profile.egress[0].action, RuleAction::Allow);
    assert_eq!(profile.labels_to_apply["pcns.team"], "blue");
    assert_eq!(profile.labels_to_apply["pcns.projectcalico.org/name"], "shop");
    assert!(loaded.set.profiles.iter().any(|p| p.name == "projectcalico-default-allow"));
    let felix = loaded.set.felix_for("node-1");
    assert_eq!(felix.default_endpoint_to_host_action, Some(EndpointToHostAction::Accept));
    assert_eq!(felix.interface_prefixes, Some(vec!["cali".to_owned(), "tap".to_owned()]));
}

#[test]
fn types_default_as_in_calico() {
    let rule = "[{action: Allow}]";
    for (spec, expected) in [
        ("selector: all()".to_owned(), (true, false)),
        (format!("ingress: {rule}"), (true, false)),
        (format!("egress: {rule}"), (false, true)),
        (format!("ingress: {rule}, egress: {rule}"), (true, true)),
        (format!("types: [Ingress], egress: {rule}"), (true, false)),
        (format!("types: [], egress: {rule}"), (false, true)),
        ("types: [Egress]".to_owned(), (false, true)),
    ] {
        let loaded = good(&format!(
            "{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: p}}, spec: {{{spec}}}}}"
        ));
        let policy = &loaded.set.policies[0];
        assert_eq!((policy.applies_ingress, policy.applies_egress), expected, "{spec}");
    }
}

#[test]
fn one_interface_or_address_belongs_to_one_workload_of_a_node() {
    let text = [
        workload("a", "node: n, interfaceName: cali1, ipNetworks: [10.0.0.1]"),
        workload("b", "node: n, interfaceName: cali1, ipNetworks: [10.0.0.2]"),
        workload("c", "node: n, interfaceName: cali3, ipNetworks: [10.0.0.3, 10.0.0.1/32]"),
        workload("d", "node: m, interfaceName: cali1, ipNetworks: [10.0.0.1]"),
    ]
    .concat();
    let loaded = load(&text);
    assert_eq!(
        places(&loaded),
        [
            "10:32 error WorkloadEndpoint/x/b spec.interfaceName",
            "15:62 error WorkloadEndpoint/x/c spec.ipNetworks",
            "20:52 warning WorkloadEndpoint/x/d spec.ipNetworks",
        ]
    );
    for error in loaded.errors() {
        assert!(error.message.contains("WorkloadEndpoint/x/a"), "{error}");
    }
}

#[test]
fn one_warning_names_all_missing_profiles() {
    let text = [
        workload("a", "node: n, interfaceName: cali1, profiles: [kns.x, zebra]"),
        workload("b", "node: n, interfaceName: cali2, profiles: [kns.x, projectcalico-default-allow, ape]"),
        "---\n{apiVersion: v1, kind: Namespace, metadata: {name: x}}\n".to_owned(),
    ]
    .concat();
    let loaded = good(&text);
    assert_eq!(places(&loaded), ["5:57 warning WorkloadEndpoint/x/a spec.profiles"]);
    assert!(loaded.diagnostics[0].message.contains("ape, zebra"), "{}", loaded.diagnostics[0]);
    assert!(Report::new(&loaded, false, None).ok);
    assert!(!Report::new(&loaded, true, None).ok);
}

#[test]
fn kubernetes_workloads_without_an_action_to_the_host_get_a_notice() {
    let text = workload("a", "node: n, orchestrator: k8s, interfaceName: cali1");
    let loaded = good(&text);
    assert_eq!(places(&loaded), ["4:18 notice WorkloadEndpoint/x/a spec.orchestrator"]);
    assert!(Report::new(&loaded, true, None).ok, "a notice never fails");
    let felix = |name: &str| {
        format!(
            "---\n{{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {{name: {name}}}, \
             spec: {{defaultEndpointToHostAction: Drop}}}}\n"
        )
    };
    assert!(places(&good(&(text.clone() + &felix("default")))).is_empty());
    assert!(places(&good(&(text.clone() + &felix("node.n")))).is_empty());
    assert_eq!(places(&good(&(text + &felix("node.m")))).len(), 1);
}

#[test]
fn what_has_no_effect_is_one_warning_a_resource() {
    let loaded = good(
        "apiVersion: projectcalico.org/v3
kind: WorkloadEndpoint
metadata: {name: a}
spec:
  node: n
  interfaceName: cali1
  ipv4Gateway: 169.254.1.1
  ipNATs: [{internalIP: 10.0.0.1, externalIP: 192.0.2.1}]
---
apiVersion: projectcalico.org/v3
kind: FelixConfiguration
metadata: {name: default}
spec:
  vxlanEnabled: true
  bpfLogLevel: ''
  logSeverityScreen: Info
",
    );
    assert_eq!(
        places(&loaded),
        [
            "7:3 warning WorkloadEndpoint/default/a spec.ipv4Gateway",
            "14:3 warning FelixConfiguration/default spec.vxlanEnabled",
        ]
    );
    assert!(loaded.diagnostics[0].message.contains("spec.ipNATs"));
    assert!(loaded.diagnostics[1].message.contains("spec.logSeverityScreen"));
    let misspelt = load(
        "{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {name: default}, spec: {interfacePrefixes: cali}}",
    );
    assert!(
        misspelt.errors().any(|e| e.message.contains("did you mean \"interfacePrefix\"")),
        "{}",
        rendered(&misspelt)
    );
}

#[test]
fn the_prefix_of_the_tier_makes_no_other_name() {
    let policy = |name: &str| {
        format!("---\n{{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {{name: {name}}}}}\n")
    };
    let loaded = load(&(policy("default.p") + &policy("p") + &policy("q")));
    assert_eq!(places(&loaded), ["4:63 error GlobalNetworkPolicy/p metadata.name"]);
    let loaded = good(&policy("default.p"));
    assert_eq!((loaded.set.policies[0].name.as_str(), loaded.set.policies[0].base_name()), ("default.p", "p"));
}

#[test]
fn lists_of_both_forms() {
    let loaded = good(
        "apiVersion: v1
kind: List
metadata: {resourceVersion: ''}
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: x}}
- {apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: p}}
---
apiVersion: projectcalico.org/v3
kind: NetworkPolicyList
items:
- metadata: {name: q, namespace: x}
  spec: {selector: a == 'b'}
",
    );
    assert_eq!(loaded.set.namespaces.len(), 1);
    assert_eq!(loaded.set.policies.len(), 2);
    let nested = load("{apiVersion: v1, kind: List, items: [{kind: Pod, apiVersion: v1}, 3]}");
    assert_eq!(nested.errors().count(), 2, "{}", rendered(&nested));
}

#[test]
fn json_is_read_with_tabs_too() {
    let loaded = good(
        "{\n\t\"apiVersion\": \"projectcalico.org/v3\",\n\t\"kind\": \"GlobalNetworkPolicy\",\n\t\"metadata\": {\n\t\t\"name\": \"p\"\n\t},\n\t\"spec\": {\n\t\t\"order\": 1.5e1,\n\t\t\"selector\": \"a == \\u0027b\\u0027\"\n\t}\n}\n",
    );
    assert_eq!(loaded.set.policies[0].order, Some(15.0));
    assert_eq!(loaded.set.policies[0].selector.canonical(), "a == \"b\"");
}

#[test]
fn stored_forms_and_wrong_versions_get_a_hint() {
    for (version, kind, hint) in [
        ("crd.projectcalico.org/v1", "GlobalNetworkPolicy", "calicoctl get globalnetworkpolicy"),
        ("projectcalico.org/v1", "GlobalNetworkPolicy", "write projectcalico.org/v3"),
        ("extensions/v1beta1", "NetworkPolicy", "projectcalico.org/v3 or networking.k8s.io/v1"),
        ("projectcalico.org/v3", "Namespace", "write v1"),
    ] {
        let loaded = load(&format!("{{apiVersion: {version}, kind: {kind}, metadata: {{name: p}}}}"));
        assert_eq!(
            places(&loaded),
            [format!("1:14 error {kind}/{}p apiVersion", if kind == "NetworkPolicy" { "default/" } else { "" })]
        );
        assert!(loaded.diagnostics[0].message.contains(hint), "{}", loaded.diagnostics[0]);
    }
}

#[test]
fn all_errors_of_all_files_in_order() {
    let directory = Directory::new();
    directory.write("b.yaml", "kind: [\n---\na: 1\n");
    directory.write(
        "a.yml",
        "{apiVersion: projectcalico.org/v3, kind: Profile, metadata: {name: A}, spec: {ingres: [], x: 1}}",
    );
    directory.write("c.json", [0xff, 0xfe, 0x7b, 0x00]);
    directory.write(".hidden.yaml", "nonsense: [");
    directory.write("notes.txt", "nonsense: [");
    let loaded = directory.load();
    let names: Vec<_> = loaded.files.iter().map(|f| f.path.file_name().expect("a name").to_owned()).collect();
    assert_eq!(names, ["a.yml", "b.yaml", "c.json"]);
    let found: Vec<_> = loaded
        .diagnostics
        .iter()
        .map(|d| format!("{}:{}", Path::new(&d.path).file_name().expect("a name").display(), d.line))
        .collect();
    assert_eq!(
        found,
        ["a.yml:1", "a.yml:1", "a.yml:1", "b.yaml:1", "b.yaml:3", "b.yaml:3", "c.json:1"],
        "{}",
        rendered(&loaded)
    );
}

#[test]
fn what_is_not_there_is_an_error() {
    let directory = Directory::new();
    let here = std::slice::from_ref(&directory.0);
    let message = |paths: &[PathBuf]| {
        let loaded = resources::load(paths);
        loaded.errors().map(|e| e.message.clone()).collect::<Vec<_>>().join("; ")
    };
    assert!(message(here).starts_with("no *.yaml"));
    assert!(message(&[directory.0.join("gone")]).starts_with("no such file"));
    let empty = directory.write("empty.yaml", "# nothing\n---\n");
    assert!(message(std::slice::from_ref(&empty)).starts_with("no document"));
    let list = directory.write("list.yaml", "{apiVersion: v1, kind: List, items: []}");
    assert_eq!(message(here), "");
    assert_eq!(message(&[list.clone(), list]), "", "a file is read once");
    symlink("nowhere", directory.0.join("dangling.yaml")).expect("a link");
    assert!(message(here).starts_with("no such file"));
    assert!(message(&[PathBuf::from("/dev/zero")]).starts_with("not a regular file"));
}

#[test]
fn a_mounted_config_map_is_read_once() {
    let directory = Directory::new();
    fs::create_dir(directory.0.join("..2024")).expect("a directory");
    directory.write("..2024/a.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: x}}");
    symlink("..2024", directory.0.join("..data")).expect("a link");
    symlink("..data/a.yaml", directory.0.join("a.yaml")).expect("a link");
    let loaded = directory.load();
    assert!(!loaded.has_errors(), "{}", rendered(&loaded));
    assert_eq!(loaded.set.namespaces.len(), 1);
}

#[test]
fn a_reader_sees_what_changed() {
    let directory = Directory::new();
    let namespace = |name: &str| format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}");
    let mut reader = Reader::default();
    let paths = [directory.0.clone()];
    let mut names = || {
        let loaded = reader.load(&paths);
        assert!(!loaded.has_errors(), "{}", rendered(&loaded));
        let names: Vec<_> = loaded.set.namespaces.iter().map(|n| n.name.clone()).collect();
        (names.join(" "), loaded.files)
    };
    directory.write("1.yaml", namespace("a"));
    directory.write("2.yaml", namespace("b"));
    let (first, stamps) = names();
    assert_eq!(first, "a b");
    assert_eq!(names(), ("a b".to_owned(), stamps.clone()));
    directory.write("2.yaml", namespace("c"));
    let (changed, changed_stamps) = names();
    assert_eq!(changed, "a c");
    assert_eq!((&changed_stamps[0], changed_stamps[1] == stamps[1]), (&stamps[0], false));
    directory.write("2.yaml", namespace("b"));
    assert_eq!(names(), ("a b".to_owned(), stamps));
    fs::remove_file(directory.0.join("1.yaml")).expect("removed");
    assert_eq!(names().0, "b");
}

#[test]
fn too_much_is_wrong_to_list_it_all() {
    let rules = "  - {action: Alow}\n".repeat(50_000);
    let text =
        format!("apiVersion: projectcalico.org/v3\nkind: Profile\nmetadata: {{name: p}}\nspec:\n  ingress:\n{rules}");
    let loaded = load(&text);
    assert_eq!(loaded.errors().count(), 1000);
    assert!(loaded.diagnostics[999].message.contains("and more"));
    assert_eq!(loaded.of(Severity::Warning).count(), 0);
}

#[test]
fn terminals_get_no_control_characters_from_files() {
    let loaded = load("a: \u{1b}[2Jx\n");
    assert_eq!(loaded.errors().count(), 1);
    let loaded = load("apiVersion: v1\nkind: \"\\e[2J\"\n");
    assert!(!rendered(&loaded).contains('\u{1b}'), "{:?}", rendered(&loaded));
}

#[test]
fn a_rule_says_how_it_denies_or_its_policy_or_the_node() {
    let felix = |name: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: projectcalico.org/v3, kind: FelixConfiguration, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
        )
    };
    let policy = "\
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: p, annotations: {calico-ebpf/deny-action: Reject}}
spec:
  ingress:
  - {action: Deny}
  - {action: Deny, metadata: {annotations: {calico-ebpf/deny-action: Drop}}}
  - {action: Allow}
---
apiVersion: projectcalico.org/v3
kind: GlobalNetworkPolicy
metadata: {name: q}
spec:
  egress:
  - {action: Deny}
  - {action: Deny, metadata: {annotations: {calico-ebpf/deny-action: reject}}}
";
    let (drop, reject) = (Some(DenyAction::Drop), Some(DenyAction::Reject));
    let set = good(policy).set;
    let rules = set.policies.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress));
    assert_eq!(rules.map(|rule| rule.deny_action).collect::<Vec<_>>(), [reject, drop, None, None, reject]);

    let of_node = |text: &str| good(text).set.felix_for("n").deny_action();
    assert_eq!(of_node(policy), DenyAction::Drop);
    let reject = felix("default", "iptablesFilterDenyAction: Reject");
    assert_eq!(of_node(&reject), DenyAction::Reject);
    assert_eq!(
        of_node(&felix("default", "nftablesFilterDenyAction: REJECT, iptablesFilterDenyAction: ''")),
        DenyAction::Reject
    );
    // Field by field: the node's own word about the other parameter changes nothing, that about the override does.
    assert_eq!(of_node(&(reject.clone() + &felix("node.n", "nftablesFilterDenyAction: Drop"))), DenyAction::Reject);
    assert_eq!(of_node(&(reject.clone() + &felix("node.n", "iptablesFilterDenyAction: Drop"))), DenyAction::Drop);
    assert_eq!(of_node(&(reject.clone() + &felix("node.n", "dropActionOverride: Drop"))), DenyAction::Drop);
    assert_eq!(of_node(&(reject + &felix("node.m", "dropActionOverride: Drop"))), DenyAction::Reject);
}
