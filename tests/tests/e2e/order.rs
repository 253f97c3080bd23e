//! Programs of others on the same interface.

use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttach},
};
use calico_ebpf_tests::{Protocol::Tcp, World};

#[test]
fn ours_comes_before_those_of_others() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let mut others = Ebpf::load(calico_ebpf_user::BENCH_OBJECT).expect("loads");
    let drops_all: &mut SchedClassifier = others.program_mut("bench_empty").expect("there").try_into().expect("for TC");
    drops_all.load().expect("loads");
    let index = world.lab.host.ip("-o link show dev calia").expect("an interface");
    let index: u32 = index.split(':').next().and_then(|index| index.parse().ok()).expect("an index");
    let tcx = TcAttach::Tcx { attach_type: TcAttachType::Ingress, order: LinkOrder::first() };
    if world.lab.host.enter(|| drops_all.attach(index, tcx)).expect("enters").is_err() {
        // Before Linux 6.6 filters have priorities instead, and ours has the lowest number there is.
        assert_ne!(std::env::var("CALICO_EBPF_ATTACH").as_deref(), Ok("tcx"));
        return;
    }
    world.start();
    let tcx = world.command(&["status"]).stdout.lines().any(|line| line.contains("calia") && line.contains(" tcx "));
    if tcx {
        world.allowed("a", "b", Tcp(80));
    } else {
        // TCX runs before all filters of clsact.
        world.denied("a", "b", Tcp(80));
    }
}
