//! BIRD takes our routes out of the main table and tells them to others, as Calico's own BIRD does.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use calico_ebpf_tests::{
    Protocol::Tcp,
    World, eventually,
    lab::{HOST4, HOST6, Namespace, OUTSIDE4, OUTSIDE6},
    resources,
};
use xtask::setup::find_program;

const SOON: Duration = Duration::from_secs(20);

/// BIRD in a namespace; ends with the test.
struct Bird {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Bird {
    /// Learns what the kernel's tables hold, exports to them what it hears, and speaks BGP with one neighbour per family.
    fn start(world: &World, namespace: &Namespace, number: u32, id: &str, neighbours: [String; 2]) -> Self {
        let [v4, v6] = neighbours;
        let base = world.config().parent().expect("a parent").join(format!("bird{number}"));
        let (config, socket, log) =
            (base.with_extension("conf"), base.with_extension("ctl"), base.with_extension("log"));
        let text = format!(
            "router id {id};
             log \"{}\" all;
             protocol device {{ scan time 1; }}
             protocol direct {{ ipv4; ipv6; }}
             protocol kernel kernel4 {{ learn; scan time 1; ipv4 {{ import all; export where source = RTS_BGP; }}; }}
             protocol kernel kernel6 {{ learn; scan time 1; ipv6 {{ import all; export where source = RTS_BGP; }}; }}
             protocol bgp bgp4 {{ local as 64512; neighbor {v4} as 64512; connect retry time 1; connect delay time 1;
                 ipv4 {{ import all; export where source = RTS_INHERIT; next hop self; }}; }}
             protocol bgp bgp6 {{ local as 64512; neighbor {v6} as 64512; connect retry time 1; connect delay time 1;
                 ipv6 {{ import all; export where source = RTS_INHERIT; next hop self; }}; }}\n",
            log.display()
        );
        fs::write(&config, text).expect("writes");
        let mut command = namespace.command("bird");
        command.args(["-f", "-c"]).arg(&config).arg("-s").arg(&socket);
        Self { child: command.stdout(Stdio::null()).spawn().expect("bird"), socket, log }
    }

    fn ask(&self, namespace: &Namespace, question: &str) -> String {
        let mut command = namespace.command("birdc");
        let output = command.arg("-s").arg(&self.socket).args(question.split(' ')).output().expect("birdc");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn it_tells_a_neighbour_where_the_workloads_are() {
    // Where there is none (a virtual machine) there is nothing to find out.
    if find_program("bird").is_none() {
        println!("\nfact: no bird");
        return;
    }
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    // What the neighbour knows of the workloads, it knows from BIRD.
    world.lab.outside.ip("route del 10.65.0.0/16").expect("deletes the route");
    world.lab.outside.ip("-6 route del fd00:65::/64").expect("deletes the route");
    world.start();
    world.denied("outside", "a", Tcp(80));
    let host = Bird::start(&world, &world.lab.host, 1, "192.0.2.1", [OUTSIDE4.to_string(), OUTSIDE6.to_string()]);
    let outside = Bird::start(&world, &world.lab.outside, 2, "192.0.2.2", [HOST4.to_string(), HOST6.to_string()]);
    let learned = |family: &str| world.lab.outside.ip(&format!("{family} route show proto bird")).expect("routes");
    let (a, b) = (world.lab.workload("a"), world.lab.workload("b"));
    for (family, addresses) in
        [("-4", [a.v4.to_string(), b.v4.to_string()]), ("-6", [a.v6.to_string(), b.v6.to_string()])]
    {
        let what = format!(
            "{addresses:?}: {}\n{}\n{}",
            host.ask(&world.lab.host, "show route all"),
            host.log(),
            outside.log()
        );
        eventually(&what, SOON, || addresses.iter().all(|address| learned(family).contains(address.as_str())));
    }
    world.allowed("outside", "a", Tcp(80));
    world.allowed("a", "outside", Tcp(80));
    // A workload that goes takes its route with it, everywhere.
    let only_a = [resources::NAMESPACE.to_owned(), resources::workload(a)];
    world.write("workloads.yaml", &resources::documents(&only_a));
    assert_eq!(world.command(&["reload"]).code, 0);
    eventually("the route of b to be withdrawn", SOON, || {
        !learned("-4").contains(&b.v4.to_string()) && !learned("-6").contains(&b.v6.to_string())
    });
    world.allowed("outside", "a", Tcp(80));
    // BIRD's own work does not disturb ours, nor ours BIRD's.
    assert_eq!(world.status()["faults"], serde_json::json!([]), "{}", world.describe());
}
