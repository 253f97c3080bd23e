//! A big cluster: how long compiling and planning take is printed (`--nocapture`); how much is written is checked.

use std::time::{Duration, Instant};

use super::{LIMITS, NODE, expected, host, origin};
use crate::{
    policy::{
        compile::{Compiler, Work},
        compiled::Compiled,
        flow::Flow,
        lint,
        maps::Maps,
        store::Store,
        write::{Limits, Plan, Write},
    },
    resources::{
        model::{
            EntityRule, Labels, Policy, PolicyHook, PolicyKind, PortMatch, Profile, ResourceSet, Rule, RuleAction,
            WorkloadEndpoint,
        },
        selector::Selector,
    },
};

const WORKLOADS: u32 = 10_000;
const POLICIES: u32 = 1_000;
const RULES: u32 = 10;
const LOCAL: u32 = 250;
const APPS: u32 = 200;

/// `selects`: of the application with this number, the selector of its policies.
fn cluster(selects: impl Fn(u32) -> String, unique_labels: bool) -> ResourceSet {
    let workload = |number: u32| {
        let mut labels = Labels::from([
            ("projectcalico.org/namespace".to_owned(), format!("ns{}", number % 20)),
            ("app".to_owned(), format!("app{}", number % APPS)),
        ]);
        if unique_labels {
            labels.insert("pod".to_owned(), format!("pod{number}"));
        }
        let [_, a, b, c] = number.to_be_bytes();
        WorkloadEndpoint {
            namespace: format!("ns{}", number % 20),
            name: format!("w{number}"),
            node: if number < LOCAL { NODE } else { "n2" }.to_owned(),
            orchestrator: "k8s".to_owned(),
            pod: None,
            interface: format!("cali{number}"),
            addresses: vec![
                [10, a, b, c].into(),
                std::net::Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(number)).into(),
            ],
            mac: None,
            profiles: vec!["allow".to_owned()],
            ports: Vec::new(),
            allow_spoofed_source_prefixes: Vec::new(),
            labels,
            origin: origin(),
        }
    };
    let rule = |policy: u32, number: u32| {
        let peer = EntityRule {
            nets: if number == 9 {
                vec![format!("172.{}.{}.0/24", policy % 16 + 16, policy / 16).parse().unwrap()]
            } else {
                Vec::new()
            },
            selector: (number != 9)
                .then(|| Selector::parse(&format!("app == 'app{}'", (policy * 7 + number * 31) % APPS)).unwrap()),
            ..EntityRule::default()
        };
        let port = 1000 + (policy * RULES + number) as u16;
        Rule {
            action: RuleAction::Allow,
            deny_action: None,
            number: None,
            ip_version: None,
            protocol: Some(6),
            not_protocol: None,
            icmp: None,
            not_icmp: None,
            source: peer,
            destination: EntityRule { ports: vec![PortMatch::Range(port, port + 3)], ..EntityRule::default() },
            origin: origin(),
        }
    };
    let policy = |number: u32| Policy {
        kind: PolicyKind::Global,
        namespace: None,
        name: format!("p{number}"),
        tier: "default".to_owned(),
        order: Some(f64::from(number % 100)),
        selector: Selector::parse(&selects(number)).unwrap(),
        applies_ingress: true,
        applies_egress: false,
        ingress: (0..RULES).map(|rule_number| rule(number, rule_number)).collect(),
        egress: Vec::new(),
        hook: PolicyHook::Normal,
        origin: origin(),
    };
    let allow = |_| Rule {
        action: RuleAction::Allow,
        deny_action: None,
        number: None,
        ip_version: None,
        protocol: None,
        not_protocol: None,
        icmp: None,
        not_icmp: None,
        source: EntityRule::default(),
        destination: EntityRule::default(),
        origin: origin(),
    };
    ResourceSet {
        workloads: (0..WORKLOADS).map(|number| workload(number).into()).collect(),
        policies: (0..POLICIES).map(|number| policy(number).into()).collect(),
        profiles: vec![Profile {
            name: "allow".to_owned(),
            ingress: vec![allow(())],
            egress: vec![allow(())],
            labels_to_apply: Labels::new(),
            origin: None,
        }],
        ..ResourceSet::default()
    }
}

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    let took: Duration = start.elapsed();
    eprintln!("  {what}: {took:.1?}");
    result
}

fn plan(store: &Store, compiled: &Compiled, what: &str) -> Plan {
    let plan = timed(what, || store.plan(compiled, &host()).unwrap());
    let bytes: usize =
        plan.prepare.iter().map(|w| if let Write::Blocks { blocks, .. } = w { blocks.len() * 64 } else { 0 }).sum();
    eprintln!("    {} + {} writes, {} KiB of tables", plan.prepare.len(), plan.retire.len(), bytes / 1024);
    plan
}

/// Loads the cluster, changes one label, one rule, nothing; then another process takes over.
fn run(title: &str, mut set: ResourceSet, few: usize) {
    eprintln!("{title}");
    let limits = Limits { blocks: 1 << 20, ..LIMITS };
    let remarks = timed("lint, all nodes", || lint(&set));
    eprintln!("    {} remarks", remarks.len());
    let mut compiler = Compiler::default();
    let compiled = timed("compile", || compiler.compile(&set, NODE));
    let rules: usize = compiled.tables.iter().map(|table| table.rules.len()).sum();
    eprintln!("    {} tables, {rules} rules, {} sets of conditions", compiled.tables.len(), compiled.holdings.len());
    let first = plan(&Store::empty(limits), &compiled, "first plan");
    eprintln!("    {:.1} MiB of the arena", f64::from(first.next.used_blocks()) / 16384.0);
    let mut maps = Maps::default();
    maps.execute(&first);
    let nothing = plan(&first.next, &compiled, "plan without a change");
    assert!(nothing.is_empty());

    set.workloads[5000].labels.insert("app".to_owned(), "app7".to_owned());
    let label = plan(&first.next, &timed("compile", || compiler.compile(&set, NODE)), "one remote label");
    assert!(label.prepare.len() <= few, "{}", label.prepare.len());
    maps.execute(&label);

    let start = Instant::now();
    let adopted = Store::adopt(limits, &maps.state());
    eprintln!("  adopt: {:.1?}", start.elapsed());
    let again = plan(&adopted, &compiler.compile(&set, NODE), "plan after adopting");
    assert!(again.is_empty());

    set.policies[10].ingress[3].action = RuleAction::Deny;
    let rule = plan(&again.next, &compiler.compile(&set, NODE), "one rule");
    maps.execute(&rule);

    let port = |policy: u32, rule: u32| 1000 + (policy * RULES + rule) as u16;
    for number in 0..8 {
        let flow = Flow {
            source: set.workloads[300 + 477 * number].addresses[number % 2],
            destination: set.workloads[number].addresses[number % 2],
            protocol: 6,
            source_port: 49152,
            destination_port: port(number as u32, (number % 10) as u32),
        };
        assert_eq!(maps.judge(&flow), expected(&set, &flow));
    }
}

/// Not how long a change takes but how much is done for it.
#[test]
fn a_change_is_little_work() {
    let mut set = cluster(|policy| format!("app == 'app{}'", policy % APPS), false);
    let mut compiler = Compiler::default();
    let limits = Limits { blocks: 1 << 20, ..LIMITS };
    let first = Store::empty(limits).plan(&compiler.compile(&set, NODE), &host()).unwrap();
    let all = compiler.work;
    // One for what each application receives, one for what all of them send.
    assert_eq!((all.workloads, all.tables), (WORKLOADS as usize, APPS as usize + 1));
    let mut change = |store: &Store, set: &ResourceSet| {
        let plan = store.plan(&compiler.compile(set, NODE), &host()).unwrap();
        (plan, compiler.work)
    };
    // Profiles are so few that they are always expanded.
    let profiles = 2;
    let label = |set: &mut ResourceSet, app: &str| {
        set.workloads[5000].labels.insert("app".to_owned(), app.to_owned());
    };
    label(&mut set, "app7");
    let (label, work) = change(&first.next, &set);
    assert_eq!(work, Work { workloads: 1, expansions: profiles, tables: 0 });
    // Its IPv6 address, and the classes of IPv4 addresses from there up.
    assert!(label.changes.tables == 0 && label.changes.addresses <= 2, "{:?}", label.changes);

    set.policies[10].ingress[3].action = RuleAction::Deny;
    let (action, work) = change(&label.next, &set);
    assert_eq!(work, Work { workloads: 0, expansions: profiles + 1, tables: 1 });
    assert!(action.changes.tables == 1 && action.changes.addresses == 0, "{:?}", action.changes);

    let (nothing, work) = change(&action.next, &set);
    assert_eq!((nothing.is_empty(), work), (true, Work { workloads: 0, expansions: profiles, tables: 0 }));
}

#[test]
fn policies_of_applications() {
    let selects = |policy| format!("app == 'app{}'", policy % APPS);
    // For each of the local applications a new table at most.
    run("policies select one application each", cluster(selects, false), 1 + 2 * LOCAL as usize);
}

#[test]
fn unique_labels() {
    let selects = |policy| format!("app == 'app{}'", policy % APPS);
    run("the same, no two workloads with the same labels", cluster(selects, true), 1 + 2 * LOCAL as usize);
}

#[test]
fn policies_of_everything() {
    run("all policies select everything", cluster(|_| "all()".to_owned(), false), 1 + 2 * LOCAL as usize);
}

/// Blocks that a node's tables take where the first `local` workloads are its own.
fn blocks(mut set: ResourceSet, local: u32) -> u32 {
    for (number, workload) in (0..).zip(set.workloads.iter_mut()) {
        workload.node = if number < local { NODE } else { "n2" }.to_owned();
    }
    let compiled = Compiler::default().compile(&set, NODE);
    let plan = Store::empty(Limits { blocks: 1 << 19, ..LIMITS }).plan(&compiled, &host()).unwrap();
    plan.next.used_blocks()
}

#[test]
fn a_workload_more_takes_no_table() {
    let cluster = |local| blocks(cluster(|_| "all()".to_owned(), false), local);
    // All workloads have the same policies, and each application's are alike: the classes are there already.
    assert_eq!(cluster(APPS + 250), cluster(APPS));
}

#[test]
fn many_policies_over_the_same_peers_do_not_explode() {
    // 200 local applications with five policies of their own each; each of their rules is about fifty peers.
    let used = blocks(cluster(|policy| format!("app == 'app{}'", policy % APPS), false), LOCAL);
    let bytes = u64::from(used) * 64;
    eprintln!("  {} KiB", bytes / 1024);
    assert!(bytes < 4 << 20, "{bytes} bytes");
}
