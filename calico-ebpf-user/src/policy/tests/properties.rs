//! Random resources, changed step by step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use calico_ebpf_common::{abi::PolicyRef, judge};
use proptest::prelude::*;

use super::{LIMITS, NODE, expected, fresh, generate::Random, host};
use crate::policy::{
    compile::{Compiler, compile},
    compiled::{Direction, Reason, forward_seat, from_workloads_seat},
    evaluate::{HostWay, evaluate_host, evaluate_untracked},
    flow::{Flow, Verdict},
    maps::Maps,
    store::Store,
    write::{Plan, Write},
};
use crate::resources::model::HostInterface;

fn judge_all(maps: &Maps, flows: &[Flow]) -> Vec<Verdict> {
    flows.iter().map(|flow| maps.judge(flow)).collect()
}

/// Egress and ingress epochs in force, by workload.
fn epochs(maps: &Maps) -> BTreeMap<String, (u32, u32)> {
    let state = maps.state();
    let epochs = |slot: &u32| {
        // A name is written before anything else of its slot.
        let PolicyRef { egress_epoch, ingress_epoch, .. } =
            *state.workloads.get(*slot as usize)?.policy(state.root.generation);
        Some((egress_epoch, ingress_epoch))
    };
    state.workload_names.iter().filter_map(|(slot, name)| Some((name.clone(), epochs(slot)?))).collect()
}

/// Executes the plan step by step: nobody notices anything but the commit.
fn execute(maps: &mut Maps, plan: &Plan, flows: &[Flow]) -> Result<(), TestCaseError> {
    let before = judge_all(maps, flows);
    for write in &plan.prepare {
        maps.apply(write);
    }
    prop_assert_eq!(&judge_all(maps, flows), &before, "the old generation changed before the commit");
    maps.commit(plan.generation);
    let after = judge_all(maps, flows);
    for write in &plan.retire {
        maps.apply(write);
    }
    prop_assert_eq!(&judge_all(maps, flows), &after, "retiring changed the new generation");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_say_what_the_evaluator_says(seed in any::<u64>()) {
        let mut random = Random(seed);
        let set = random.set();
        let (_, maps) = fresh(&set);
        for flow in random.flows(200) {
            prop_assert_eq!(maps.judge(&flow), expected(&set, &flow), "{:?}", flow);
        }
    }

    #[test]
    fn tables_of_host_endpoints_say_what_the_evaluator_says(seed in any::<u64>()) {
        let mut random = Random(seed);
        let set = random.set();
        let (_, maps) = fresh(&set);
        for flow in random.flows(60) {
            for host in set.host_endpoints.values().filter(|host| host.node == NODE) {
                let name = host.name.as_str();
                for (way, seat, side) in [
                    (HostWay::Sent, name.to_owned(), Direction::Egress),
                    (HostWay::Received, name.to_owned(), Direction::Ingress),
                    (HostWay::Arriving, forward_seat(name), Direction::Egress),
                    (HostWay::Leaving, forward_seat(name), Direction::Ingress),
                    (HostWay::FromWorkloads, from_workloads_seat(name), Direction::Ingress),
                ] {
                    let said = evaluate_host(&set, host, way, &flow);
                    match maps.judge_seat(&seat, side, &flow) {
                        Some(judged) => prop_assert_eq!(judged, said, "{:?} {:?}", way, flow),
                        // Where nobody is asked, nobody has anything to say but the failsafe ports.
                        None => prop_assert!(matches!(said.rule.reason, Reason::NoPolicy | Reason::Failsafe)
                            || way == HostWay::FromWorkloads && host.interface != HostInterface::All, "{:?} {:?}", way, said),
                    }
                }
            }
        }
    }

    #[test]
    fn untracked_tables_say_what_the_evaluator_says(seed in any::<u64>()) {
        let mut random = Random(seed);
        let set = random.set();
        let (_, maps) = fresh(&set);
        let mut interfaces = BTreeSet::new();
        for host in set.host_endpoints_of(NODE) {
            let HostInterface::Named(interface) = &host.interface else { continue };
            // The first by name is the interface.
            if !interfaces.insert(interface) {
                continue;
            }
            for packet in random.flows(60) {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let judged = maps.judge_untracked(interface, direction, &packet);
                    let judged = judged.map(|(verdict, rule)| (match verdict {
                        judge::Verdict::Allow => Some(true),
                        judge::Verdict::Leave => None,
                        _ => Some(false),
                    }, rule));
                    prop_assert_eq!(judged, evaluate_untracked(&set, host, direction, &packet), "{:?}", packet);
                }
            }
        }
    }

    #[test]
    fn changes_step_by_step(seed in any::<u64>(), steps in 1_usize..12) {
        let mut random = Random(seed);
        let mut set = random.set();
        let (mut store, mut maps) = fresh(&set);
        let mut compiler = Compiler::default();
        for _ in 0..steps {
            random.change(&mut set);
            if random.below(4) == 0 {
                // Another process takes over, perhaps after one that died while it prepared something else.
                if random.below(2) == 0 {
                    let mut other = set.clone();
                    random.change(&mut other);
                    let abandoned = store.plan(&compiler.compile(&other, NODE), &host()).unwrap();
                    let until = random.below(abandoned.prepare.len() + 1);
                    abandoned.prepare[..until].iter().for_each(|write| maps.apply(write));
                }
                store = Store::adopt(LIMITS, &maps.state());
            }
            let flows = random.flows(60);
            let (before, epochs_before) = (judge_all(&maps, &flows), epochs(&maps));
            let plan = store.plan(&compiler.compile(&set, NODE), &host()).unwrap();
            execute(&mut maps, &plan, &flows)?;
            store = plan.next;
            let (after, epochs_after) = (judge_all(&maps, &flows), epochs(&maps));
            for (flow, verdict) in flows.iter().zip(&after) {
                prop_assert_eq!(verdict, &expected(&set, flow), "{:?}", flow);
            }
            // Where a verdict changed, its epoch did.
            for (was, is) in before.iter().zip(&after) {
                for (was, is, of) in [
                    (&was.source, &is.source, (|e: &(u32, u32)| e.0) as fn(&(u32, u32)) -> u32),
                    (&was.destination, &is.destination, |e| e.1),
                ] {
                    if let (Some(was), Some(is)) = (was, is)
                        && was.endpoint == is.endpoint
                        && was != is
                    {
                        prop_assert_ne!(of(&epochs_before[&was.endpoint]), of(&epochs_after[&is.endpoint]));
                    }
                }
            }
            // Nothing is left to do for this process, and for another one nothing that anybody notices: it only does not
            // keep classes in reserve.
            prop_assert!(store.plan(&compiler.compile(&set, NODE), &host()).unwrap().is_empty());
            let again = Store::adopt(LIMITS, &maps.state()).plan(&compile(&set, NODE), &host()).unwrap();
            for write in again.prepare.iter().chain(&again.retire) {
                let nobody_notices =
                    matches!(write, Write::Blocks { .. } | Write::WorkloadPolicy { .. } | Write::Settings { .. });
                prop_assert!(nobody_notices, "{}", write);
            }
            let mut tidied = maps.clone();
            execute(&mut tidied, &again, &flows)?;
            prop_assert_eq!(epochs(&tidied), epochs_after);
            let third = Store::adopt(LIMITS, &tidied.state()).plan(&compile(&set, NODE), &host()).unwrap();
            prop_assert!(third.is_empty(), "{:?}", third.prepare);
        }
    }

    #[test]
    fn what_was_in_force_can_be_taken_back(seed in any::<u64>(), steps in 2_usize..8) {
        let mut random = Random(seed);
        let mut set = random.set();
        let mut compiler = Compiler::default();
        let (mut store, mut maps) = fresh(&set);
        let mut accepted = vec![(set.clone(), compiler.compile(&set, NODE))];
        for _ in 0..steps {
            let chosen = if random.below(3) == 0 {
                random.below(accepted.len())
            } else {
                random.change(&mut set);
                accepted.push((set.clone(), compiler.compile(&set, NODE)));
                accepted.len() - 1
            };
            let (set, compiled) = &accepted[chosen];
            let flows = random.flows(30);
            let plan = store.plan(compiled, &host()).unwrap();
            execute(&mut maps, &plan, &flows)?;
            store = plan.next;
            for flow in &flows {
                prop_assert_eq!(maps.judge(flow), expected(set, flow), "{:?}", flow);
            }
        }
    }

    #[test]
    fn one_change_is_few_writes(seed in any::<u64>()) {
        let mut random = Random(seed);
        let mut set = random.set();
        // One process: a new compiler knows classes by their addresses alone.
        let mut compiler = Compiler::default();
        let store = Store::empty(LIMITS).plan(&compiler.compile(&set, NODE), &host()).unwrap().next;
        let Some(workload) = set.workloads.iter().position(|workload| workload.node != NODE) else { return Ok(()) };
        // A label that no selector asks for: nothing at all.
        set.workloads[workload].labels.insert("nobody".to_owned(), "cares".to_owned());
        let plan = store.plan(&compiler.compile(&set, NODE), &host()).unwrap();
        prop_assert!(plan.is_empty(), "{:?}", plan.prepare);
        // A remote workload that goes: what is about other addresses stays.
        let gone = set.workloads.remove(workload);
        let plan = store.plan(&compiler.compile(&set, NODE), &host()).unwrap();
        for write in plan.prepare.iter().chain(&plan.retire) {
            if let Write::Address { prefix, .. } | Write::RemoveAddress { prefix } = write {
                prop_assert!(gone.addresses.iter().any(|&address| *prefix == address.into()), "{}", write);
            }
        }
    }
}

/// However long it goes on, nothing is lost: in the end the maps are as full as those of a new process.
#[test]
fn nothing_leaks() {
    let mut random = Random(7);
    let mut set = random.set();
    let (mut store, mut maps) = fresh(&set);
    for step in 0..600 {
        random.change(&mut set);
        if step % 97 == 0 {
            store = Store::adopt(LIMITS, &maps.state());
        }
        let plan = store.plan(&compile(&set, NODE), &host()).unwrap();
        maps.execute(&plan);
        store = plan.next;
    }
    // Without classes kept in reserve.
    let store = Store::adopt(LIMITS, &maps.state()).plan(&compile(&set, NODE), &host()).unwrap().next;
    let (new, new_maps) = fresh(&set);
    assert_eq!(store.used_blocks(), new.used_blocks());
    let count = |maps: &Maps| {
        let state = maps.state();
        let names: HashMap<_, _> = state.workload_names.iter().map(|(slot, name)| (name.clone(), *slot)).collect();
        (names.len(), state.rule_names.len(), state.addresses.len(), state.spoof.len())
    };
    assert_eq!(count(&maps), count(&new_maps));
}
