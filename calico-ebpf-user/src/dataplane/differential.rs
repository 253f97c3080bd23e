//! Three judges over random resources, changes of them, and packets: the tables as `explain` reads them, the loaded
//! program, and the plain evaluator. They never differ. Needs root.
//!
//! `CALICO_EBPF_PAIRS` says how many pairs of resources and packet are tried (30,000 unless given), `CALICO_EBPF_SEED`
//! where the random numbers start. What they differ about is made smaller before it is shown.

use std::{collections::BTreeSet, fs, path::PathBuf};

use calico_ebpf_common::abi::{DropReason, Explained, ExplainedEnd, NO_SLOT, explained, host_action, workload_flags};

use super::{
    AttachMode, Instance, Options,
    links::Runtime,
    load::{self, Programs},
    probe::Probe,
    tables::Tables,
};
use crate::{
    policy::{
        compile::compile,
        compiled::{Direction, RuleName},
        flow::{EndVerdict, Flow, Verdict},
        maps::Maps,
        store::Store,
        tests::{NODE, expected, generate::Random, host},
        write::KernelState,
    },
    resources::model::{ResourceSet, Rule},
};

/// Packets for each state of the resources.
const FLOWS: usize = 100;

/// The programs loaded, their maps pinned, attached to nothing.
struct Kernel {
    _programs: Programs,
    tables: Tables,
    probe: Probe,
    store: Store,
    /// What the maps hold, as plain data.
    image: Maps,
    _pins: Pins,
}

/// The pins, which end with it.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Kernel {
    fn new() -> Self {
        let directory = PathBuf::from(format!("/sys/fs/bpf/differential-{}", std::process::id()));
        let options =
            Options { instance: Instance::new(directory.clone()), conns: 1024, attach: AttachMode::Auto, log_level: 0 };
        let pins = Pins(directory);
        load::prerequisites(&options.instance).expect("root and a bpffs");
        let programs = Programs::load(&options).expect("the programs load");
        let tables = Tables::open(&options.instance.layout_dir()).expect("the maps are there");
        let probe = Probe::open(&options.instance).expect("it is pinned").expect("it is pinned");
        let store = Store::empty(tables.limits());
        Self { _programs: programs, tables, probe, store, image: Maps::default(), _pins: pins }
    }

    /// Puts the resources in force.
    fn enforce(&mut self, set: &ResourceSet) {
        let plan = self.store.plan(&compile(set, NODE), &host()).expect("it fits");
        self.tables.write(&plan.prepare).expect("written");
        self.tables.commit(plan.generation).expect("committed");
        self.tables.write(&plan.retire).expect("written");
        self.image.execute(&plan);
        self.store = plan.next;
        for (_, slot) in self.store.slots() {
            let runtime = Runtime { ifindex: 1, flags: workload_flags::ACTIVE, ..Runtime::default() };
            self.tables.set_runtime(slot.slot, &runtime).expect("written");
        }
    }

    /// What the three say of a packet, if they differ.
    fn differ(&self, set: &ResourceSet, flow: &Flow) -> Option<String> {
        let evaluated = expected(set, flow);
        let tables = self.image.judge(flow);
        let answer = self.probe.ask(flow).expect("the program answers");
        let program = verdict(&self.image.state(), &answer);
        if host().contains(&flow.source) {
            // The loaded program knows who the host is, the others judge policy alone.
            let free = answer.reason == explained::PASSES && program == Verdict::default() && tables == evaluated;
            return (!free).then(|| format!("from the host: {answer:?}"));
        }
        let to_host = host().contains(&flow.destination) || flow.destination.is_multicast();
        let to_host = to_host && evaluated.source.is_some();
        let reason = match (&evaluated.source, &evaluated.destination) {
            (Some(end), _) if end.reject => DropReason::RejectedEgress as u32,
            (Some(end), _) if !end.allow => DropReason::PolicyEgress as u32,
            (_, Some(end)) if end.reject => DropReason::RejectedIngress as u32,
            (_, Some(end)) if !end.allow => DropReason::PolicyIngress as u32,
            _ if to_host && compile(set, NODE).host_action == host_action::DROP => DropReason::EndpointToHost as u32,
            _ => explained::PASSES,
        };
        let same = tables == evaluated && program == evaluated && answer.reason == reason;
        (!same).then(|| {
            format!(
                "evaluator {evaluated:#?}\ntables {tables:#?}\nprogram {program:#?}, {answer:?}, not reason {reason}"
            )
        })
    }

    /// Whether they still differ with other resources in force.
    fn differ_with(&mut self, set: &ResourceSet, flow: &Flow) -> bool {
        self.enforce(set);
        self.differ(set, flow).is_some()
    }

    /// Leaves out what can be left out.
    fn shrink(&mut self, set: &ResourceSet, flow: &Flow) -> ResourceSet {
        let mut smallest = set.clone();
        loop {
            let smaller = without_one(&smallest).into_iter().find(|candidate| self.differ_with(candidate, flow));
            match smaller {
                Some(smaller) => smallest = smaller,
                None => break,
            }
        }
        self.enforce(&smallest);
        smallest
    }
}

/// The program's answer with names.
fn verdict(state: &KernelState<'_>, answer: &Explained) -> Verdict {
    let end = |end: &ExplainedEnd| {
        if end.slot == NO_SLOT {
            return None;
        }
        let rule: &RuleName = state.rule_names.get(&end.rule)?;
        Some(EndVerdict {
            endpoint: state.workload_names.get(&end.slot)?.clone(),
            allow: end.verdict == explained::ALLOW,
            reject: end.verdict == explained::REJECT,
            rule: rule.clone(),
        })
    };
    Verdict { source: end(&answer.ends[0]), destination: end(&answer.ends[1]) }
}

/// Every set that lacks one thing.
fn without_one(set: &ResourceSet) -> Vec<ResourceSet> {
    let mut smaller = Vec::new();
    let mut with = |change: &dyn Fn(&mut ResourceSet)| {
        let mut set = set.clone();
        change(&mut set);
        smaller.push(set);
    };
    for i in 0..set.policies.len() {
        with(&|set| drop(set.policies.remove(i)));
    }
    for i in 0..set.workloads.len() {
        with(&|set| drop(set.workloads.remove(i)));
    }
    for i in 0..set.profiles.len() {
        with(&|set| drop(set.profiles.remove(i)));
    }
    for i in 0..set.network_sets.len() {
        with(&|set| drop(set.network_sets.remove(i)));
    }
    for name in set.tiers.keys() {
        with(&|set| set.tiers.retain(|other, _| other != name));
    }
    let mut rules = |count: usize, of: &dyn Fn(&mut ResourceSet) -> &mut Vec<Rule>| {
        for rule in 0..count {
            with(&|set| drop(of(set).remove(rule)));
        }
    };
    for (i, policy) in set.policies.iter().enumerate() {
        rules(policy.ingress.len(), &|set| &mut set.policies[i].ingress);
        rules(policy.egress.len(), &|set| &mut set.policies[i].egress);
    }
    for (i, profile) in set.profiles.iter().enumerate() {
        rules(profile.ingress.len(), &|set| &mut set.profiles[i].ingress);
        rules(profile.egress.len(), &|set| &mut set.profiles[i].egress);
    }
    smaller
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn explain_the_program_and_the_evaluator_agree() {
    let pairs = number("CALICO_EBPF_PAIRS", 30_000) as usize;
    let seed = number("CALICO_EBPF_SEED", 1);
    let mut random = Random(seed);
    let mut kernel = Kernel::new();
    let mut set = random.set();
    let mut verdicts = BTreeSet::new();
    let mut denied_on_the_way = [0; 2];
    for state in 0..pairs.div_ceil(FLOWS) {
        // What was in force before is part of what is tried.
        random.change(&mut set);
        kernel.enforce(&set);
        for flow in random.flows(FLOWS) {
            if let Some(difference) = kernel.differ(&set, &flow) {
                let set = kernel.shrink(&set, &flow);
                let smallest = kernel.differ(&set, &flow).unwrap_or_else(|| "nothing, once made anew".to_owned());
                panic!("seed {seed}, state {state}: {flow:?}: {difference}\nthe smallest: {set:#?}\n{smallest}");
            }
            let Verdict { source, destination } = kernel.image.judge(&flow);
            let passed = |end: &Option<EndVerdict>, side| end.as_ref().is_some_and(|end| end.rule.direction != side);
            denied_on_the_way[0] += usize::from(passed(&source, Direction::Egress));
            denied_on_the_way[1] += usize::from(passed(&destination, Direction::Ingress));
            verdicts.insert([source, destination].map(|end| end.map(|end| (end.allow, end.reject, end.rule.reason))));
        }
    }
    assert!(
        denied_on_the_way.iter().all(|count| *count > 100),
        "by the host endpoint of all interfaces: {denied_on_the_way:?}"
    );
    assert!(verdicts.len() > 24, "everything was tried: {verdicts:?}");
}
