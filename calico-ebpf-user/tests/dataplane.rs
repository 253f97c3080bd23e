//! Loading, attaching, routes, takeover and purge on the real kernel, in network namespaces of their own. Needs root.
#![expect(clippy::expect_used, reason = "a test that cannot go on has failed")]

mod lab;

use std::{net::IpAddr, path::PathBuf, process::Command, time::Duration};

use aya::programs::{SchedClassifier, TcAttachType};
use calico_ebpf_common::abi::{AddressEntry, Stamped, workload_flags};
use calico_ebpf_user::{
    dataplane::{
        AttachMode, Attachment, Dataplane, DataplaneError, Desired, DesiredWorkload, LinkState, Options, Uplinks,
        purge::purge,
    },
    policy::{
        store::Store,
        write::{Changes, Limits, Plan, Write},
    },
};
use lab::{Lab, run};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn workload(slot: u32, interface: &str, addresses: &[&str]) -> DesiredWorkload {
    DesiredWorkload {
        name: format!("default/{interface}"),
        pod: None,
        slot,
        interface: interface.to_owned(),
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        mac: None,
        spoof: false,
        migration: None,
    }
}

fn desired(workloads: &[DesiredWorkload]) -> Desired {
    Desired { workloads: workloads.to_vec(), node: "here".to_owned(), ..Desired::default() }
}

/// A plan that does nothing but say whose the addresses are.
fn plan(generation: u32, workloads: &[DesiredWorkload]) -> Plan {
    let mut prepare = Vec::new();
    for workload in workloads {
        prepare.push(Write::WorkloadName { slot: workload.slot, name: workload.name.clone() });
        for address in &workload.addresses {
            let slot = Stamped { value: [workload.slot; 2] };
            let entry = AddressEntry { slot, since: generation, ..AddressEntry::default() };
            prepare.push(Write::Address { prefix: (*address).into(), entry });
        }
    }
    let limits = Limits {
        blocks: 16,
        slots: 16,
        counters: 16,
        addresses4: 16,
        addresses6: 16,
        nets: 16,
        spoof: 16,
        classes: 16,
    };
    Plan { prepare, generation, retire: Vec::new(), next: Store::empty(limits), changes: Changes::default() }
}

/// How many programs hang on a hook, and the hook's revision.
fn tcx(interface: &str, hook: TcAttachType) -> (u64, Vec<u32>) {
    let name = std::ffi::CString::new(interface).expect("a name");
    let (revision, programs) = SchedClassifier::query_tcx(name.as_c_str(), hook).expect("a TCX hook");
    (revision, programs.iter().map(aya::programs::ProgramInfo::id).collect())
}

fn routes(family: &str) -> String {
    run(&["ip", family, "route", "show", "proto", "80"])
}

#[test]
fn a_workload_comes_and_goes() {
    for attach in [AttachMode::Tcx, AttachMode::Clsact] {
        let lab = Lab::new();
        lab.add_interface("cali1");
        let workloads = [workload(3, "cali1", &["10.77.0.1", "fd77::1"])];
        let mut dataplane = lab.open(attach);
        assert!(!dataplane.is_takeover());

        let applied = dataplane.apply(Some(&plan(1, &workloads)), &desired(&workloads)).expect("applied");
        assert_eq!(applied.faults, [] as [String; 0], "{attach:?}");
        assert_eq!(applied.workloads[0].state, LinkState::Up);
        let kind = if attach == AttachMode::Tcx { Attachment::Tcx } else { Attachment::Clsact };
        assert_eq!(applied.workloads[0].attachment, Some(kind));
        assert!(applied.routes.iter().all(|route| route.installed));
        assert!(dataplane.attachments().are_intact().expect("looks"));
        assert_eq!(routes("-4").trim(), "10.77.0.1 dev cali1 scope link metric 1024");
        assert_eq!(routes("-6").trim(), "fd77::1 dev cali1 metric 1024 pref medium");

        let view = lab.view();
        assert_eq!(view.root().expect("a root").generation, 1);
        let (slot, owner, entry) = view.workloads().expect("workloads").remove(0);
        assert_eq!((slot, owner.endpoint.as_str(), owner.interface.as_str()), (3, "default/cali1", "cali1"));
        assert_eq!(entry.flags, workload_flags::ACTIVE | workload_flags::PEER);
        let address = run(&["ip", "netns", "exec", &lab.pod(), "cat", "/sys/class/net/cali1/address"]);
        let mac = entry.mac.map(|byte| format!("{byte:02x}")).join(":");
        assert_eq!(mac, address.trim(), "the other end's address is known before it sends");

        let again = dataplane.apply(None, &desired(&workloads)).expect("applied");
        assert_eq!((again.changes, again.faults.len()), (0, 0), "a second apply has nothing to do");

        // The workload goes, its interface stays: it drops.
        let gone = Plan { retire: vec![Write::RemoveWorkload { slot: 3 }], ..plan(2, &[]) };
        let applied = dataplane.apply(Some(&gone), &desired(&[])).expect("applied");
        assert_eq!(applied.faults, [] as [String; 0]);
        assert_eq!((routes("-4").as_str(), routes("-6").as_str()), ("", ""));
        assert!(lab.view().interfaces().expect("interfaces").is_empty());
        if attach == AttachMode::Tcx {
            assert_eq!(tcx("cali1", TcAttachType::Ingress).1.len(), 1);
        } else {
            assert!(run(&["tc", "filter", "show", "dev", "cali1", "ingress"]).contains("cali_drop"));
        }

        // The interface goes too, and returns with a workload.
        run(&["ip", "link", "del", "cali1"]);
        let applied = dataplane.apply(Some(&plan(3, &workloads)), &desired(&workloads)).expect("applied");
        assert_eq!(applied.workloads[0].state, LinkState::Absent);
        assert_eq!(applied.faults, [] as [String; 0]);
        lab.add_interface("cali1");
        let applied = dataplane.apply(None, &desired(&workloads)).expect("applied");
        assert_eq!(applied.workloads[0].state, LinkState::Up);
        assert_eq!(applied.faults, [] as [String; 0]);
        assert_eq!(routes("-4").trim(), "10.77.0.1 dev cali1 scope link metric 1024");
    }
}

#[test]
fn what_others_take_away_is_put_back() {
    let lab = Lab::new();
    lab.add_interface("cali1");
    let workloads = [workload(0, "cali1", &["10.77.0.1", "fd77::1"])];
    let mut dataplane = lab.open(AttachMode::Tcx);
    dataplane.apply(Some(&plan(1, &workloads)), &desired(&workloads)).expect("applied");

    run(&["ip", "route", "del", "10.77.0.1/32", "dev", "cali1"]);
    run(&["ip", "-6", "route", "replace", "fd77::1/128", "dev", "cali1", "proto", "80", "metric", "77"]);
    let applied = dataplane.apply(None, &desired(&workloads)).expect("applied");
    assert_eq!(applied.faults, [] as [String; 0]);
    assert_eq!(routes("-4").trim(), "10.77.0.1 dev cali1 scope link metric 1024");
    assert_eq!(routes("-6").trim(), "fd77::1 dev cali1 metric 1024 pref medium");

    // The pin of a link is all that holds it.
    let pin = lab.instance.layout_dir();
    let pins: Vec<PathBuf> = std::fs::read_dir(&pin)
        .expect("pins")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().contains("/link_"))
        .collect();
    assert_eq!(pins.len(), 2);
    for path in pins {
        assert!(dataplane.attachments().are_intact().expect("looks"));
        std::fs::remove_file(path).expect("removed");
        assert!(!dataplane.attachments().are_intact().expect("looks"));
        let applied = dataplane.apply(None, &desired(&workloads)).expect("applied");
        assert_eq!(applied.faults, [] as [String; 0]);
        assert!(dataplane.attachments().are_intact().expect("looks"));
    }
    assert_eq!(tcx("cali1", TcAttachType::Ingress).1.len(), 1);
    drop(dataplane);

    // A qdisc deleted by hand takes its filters along.
    let mut dataplane = lab.open(AttachMode::Clsact);
    dataplane.apply(None, &desired(&workloads)).expect("applied");
    // The kernel lets go of a link some time after its pin is removed.
    let gone = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(10));
        tcx("cali1", TcAttachType::Ingress).1.is_empty()
    });
    assert!(gone, "the other kind of attachment is gone");
    assert!(dataplane.attachments().are_intact().expect("looks"));
    run(&["tc", "qdisc", "del", "dev", "cali1", "clsact"]);
    assert!(!dataplane.attachments().are_intact().expect("looks"));
    let applied = dataplane.apply(None, &desired(&workloads)).expect("applied");
    assert_eq!(applied.faults, [] as [String; 0]);
    assert!(dataplane.attachments().are_intact().expect("looks"));
}

#[test]
fn a_new_process_takes_over_in_place() {
    let lab = Lab::new();
    lab.add_interface("cali1");
    let workloads = [workload(0, "cali1", &["10.77.0.1"])];
    let mut dataplane = lab.open(AttachMode::Auto);
    dataplane.apply(Some(&plan(7, &workloads)), &desired(&workloads)).expect("applied");
    let options = Options { conns: 4096, ..Options::new(lab.instance.clone()) };
    assert!(matches!(Dataplane::open(&options), Err(DataplaneError::Busy { .. })));
    assert!(matches!(purge(&lab.instance), Err(DataplaneError::Busy { .. })));
    drop(dataplane);

    let (revision, before) = tcx("cali1", TcAttachType::Ingress);
    assert_eq!(before.len(), 1, "it stays without the process");
    // Another size than it was made with.
    let mut dataplane = Dataplane::open(&Options { conns: 8192, ..options }).expect("a takeover");
    assert!(dataplane.is_takeover());
    assert_eq!(tcx("cali1", TcAttachType::Ingress), (revision, before.clone()), "opening touches nothing");
    let applied = dataplane.apply(None, &desired(&workloads)).expect("applied");
    assert_eq!(applied.faults, [] as [String; 0]);
    let (revision_after, after) = tcx("cali1", TcAttachType::Ingress);
    assert_eq!(revision_after, revision + 1, "replaced once, in place");
    assert_eq!(after.len(), 1);
    assert_ne!(after, before);
    let root = lab.view().root().expect("a root");
    assert_eq!((root.generation, root.conn_limit), (7, 4096));

    // A workload that is removed while no process runs loses its route at the next start.
    drop(dataplane);
    let mut dataplane = lab.open(AttachMode::Auto);
    dataplane.apply(Some(&plan(8, &[])), &desired(&[])).expect("applied");
    assert_eq!(routes("-4"), "");
}

#[test]
fn purge_leaves_nothing_but_what_others_made() {
    for attach in [AttachMode::Tcx, AttachMode::Clsact] {
        let lab = Lab::new();
        lab.add_interface("cali1");
        lab.add_interface("cali2");
        lab.add_interface("up0");
        run(&["ip", "addr", "add", "192.0.2.1/24", "dev", "up0"]);
        run(&["ip", "route", "add", "default", "via", "192.0.2.2"]);
        run(&["ip", "route", "add", "10.77.9.9/32", "dev", "cali1", "proto", "80"]);
        run(&["tc", "qdisc", "add", "dev", "cali2", "clsact"]);
        let all_routes = || {
            let routes = run(&["ip", "-4", "route", "show"]) + &run(&["ip", "-6", "route", "show"]);
            // Those of the kernel come and go with the addresses that it gives itself.
            routes.lines().filter(|route| !route.starts_with("fe80::")).map(str::to_owned).collect::<Vec<_>>()
        };
        let before = all_routes();
        let workloads = [workload(0, "cali1", &["10.77.0.1", "fd77::1"])];
        let mut desired = desired(&workloads);
        desired.interface_prefixes = Some(vec!["cali".to_owned()]);
        let mut dataplane = lab.open(attach);
        let applied = dataplane.apply(Some(&plan(1, &workloads)), &desired).expect("applied");
        assert_eq!(applied.faults, [] as [String; 0]);
        assert_eq!(applied.uplinks.iter().map(|uplink| uplink.interface.as_str()).collect::<Vec<_>>(), ["up0"]);
        assert!(run(&["nft", "list", "ruleset"]).contains("calico_ebpf"));
        assert_eq!(run(&["sysctl", "-n", "net.ipv4.ip_forward"]).trim(), "1");
        run(&["sysctl", "-qw", "net.ipv6.conf.all.forwarding=2"]);
        drop(dataplane);

        let purged = purge(&lab.instance).expect("purged");
        assert_eq!(purged.faults, [] as [String; 0]);
        assert!(!lab.instance.pin_dir().exists());
        assert_eq!(all_routes(), before);
        assert_eq!(run(&["nft", "list", "ruleset"]), "");
        assert_eq!(run(&["sysctl", "-n", "net.ipv4.ip_forward"]).trim(), "0");
        assert_eq!(run(&["sysctl", "-n", "net.ipv6.conf.cali1.accept_ra"]).trim(), "1");
        assert!(purged.left.iter().any(|left| left.contains("net/ipv6/conf/all/forwarding")), "{:?}", purged.left);
        for interface in ["cali1", "cali2", "up0"] {
            let qdiscs = run(&["tc", "qdisc", "show", "dev", interface]);
            assert_eq!(qdiscs.contains("clsact"), interface == "cali2", "{interface}: {qdiscs}");
            assert_eq!(run(&["tc", "filter", "show", "dev", interface, "ingress"]), "");
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                assert_eq!(tcx(interface, hook).1, [] as [u32; 0]);
            }
        }
        assert_eq!(purge(&lab.instance).expect("nothing is no error"), Default::default());
    }
}

#[test]
fn the_guard_stops_interfaces_that_come_while_no_process_runs() {
    let lab = Lab::new();
    lab.add_interface("cali1");
    run(&["ip", "addr", "add", "10.99.0.1/24", "dev", "cali1"]);
    run(&["ip", "-n", &lab.pod(), "addr", "add", "10.99.0.2/24", "dev", "cali1"]);
    let ping = || {
        let pod = lab.pod();
        let arguments = ["netns", "exec", &pod, "ping", "-c1", "-W1", "10.99.0.1"];
        Command::new("ip").args(arguments).output().expect("ping").status.success()
    };
    assert!(ping(), "the interfaces are set up rightly");
    let mut dataplane = lab.open(AttachMode::Auto);
    let desired = Desired { interface_prefixes: Some(vec!["cali".to_owned()]), ..desired(&[]) };
    dataplane.apply(Some(&plan(1, &[])), &desired).expect("applied");
    assert!(!ping(), "an interface of the prefix without a workload drops");
    drop(dataplane);
    run(&["ip", "link", "del", "cali1"]);
    lab.add_interface("cali1");
    run(&["ip", "addr", "add", "10.99.0.1/24", "dev", "cali1"]);
    run(&["ip", "-n", &lab.pod(), "addr", "add", "10.99.0.2/24", "dev", "cali1"]);
    assert!(!ping(), "made anew under the same name, without a filter");
    purge(&lab.instance).expect("purged");
    assert!(ping());
}

#[test]
fn a_default_route_learnt_by_router_advertisement_stays_alive() {
    let lab = Lab::new();
    lab.add_interface("up0");
    run(&["sysctl", "-qw", "net.ipv6.conf.up0.accept_ra=1"]);
    let mut dataplane = lab.open(AttachMode::Auto);
    let desired = Desired { uplinks: Uplinks::Named(vec!["up0".to_owned(), "up1".to_owned()]), ..desired(&[]) };
    let applied = dataplane.apply(Some(&plan(1, &[])), &desired).expect("applied");
    assert_eq!(run(&["sysctl", "-n", "net.ipv6.conf.up0.accept_ra"]).trim(), "2");
    assert_eq!(applied.uplinks[1].ifindex, None, "an uplink that is not there is shown");
    drop(dataplane);
    purge(&lab.instance).expect("purged");
    assert_eq!(run(&["sysctl", "-n", "net.ipv6.conf.up0.accept_ra"]).trim(), "1");
}
