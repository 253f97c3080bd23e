//! Who reaches whom.

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp, Udp},
    World,
    resources::{self, policy},
};

const ALLOW_WEB_FROM_A: &str = "  types: [Ingress]
  ingress:
    - action: Allow
      protocol: TCP
      source: {selector: app == 'a'}
      destination: {ports: [80]}
    - action: Allow
      protocol: UDP
      destination: {ports: [\"50:59\"]}
";

#[test]
fn without_policy_everybody_reaches_everybody() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    world.start();
    for (from, to) in [("a", "b"), ("b", "a"), ("a", "outside"), ("outside", "b"), ("host", "a")] {
        for protocol in [Tcp(80), Udp(80), Icmp] {
            world.allowed(from, to, protocol);
        }
    }
    // Calico's default for what a workload sends to its own host.
    for protocol in [Tcp(80), Udp(80), Icmp] {
        world.denied("a", "host", protocol);
    }
}

#[test]
fn policy_holds_for_both_families_and_all_protocols() {
    let mut world = World::new(&["a", "b", "c"]);
    world.serve(80);
    world.serve(55);
    world.write("policy.yaml", &policy("b-in", "app == 'b'", ALLOW_WEB_FROM_A));
    world.start();
    world.allowed("a", "b", Tcp(80));
    world.denied("c", "b", Tcp(80));
    world.denied("outside", "b", Tcp(80));
    world.denied("a", "b", Tcp(55));
    world.denied("a", "b", Udp(80));
    world.allowed("c", "b", Udp(55));
    world.allowed("outside", "b", Udp(55));
    world.denied("a", "b", Icmp);
    // The host reaches its own workloads whatever their policy says.
    world.allowed("host", "b", Tcp(80));
    world.allowed("host", "b", Icmp);
    // b's egress has no policy: its profile allows.
    world.allowed("b", "outside", Tcp(80));
    world.allowed("b", "a", Icmp);
}

#[test]
fn egress_is_policed_at_the_source() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let rules = "  types: [Egress]
  egress:
    - action: Deny
      protocol: TCP
      destination: {nets: [192.0.2.0/24]}
    - action: Deny
      protocol: TCP
      destination: {nets: [\"2001:db8:2::/64\"]}
    - action: Allow
";
    world.write("policy.yaml", &policy("a-out", "app == 'a'", rules));
    world.start();
    world.denied("a", "outside", Tcp(80));
    world.allowed("a", "outside", Udp(80));
    world.allowed("a", "b", Tcp(80));
    world.allowed("b", "outside", Tcp(80));
}

#[test]
fn replies_follow_their_connection() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    // b may send nothing of its own, a may receive nothing of others.
    world.write(
        "policy.yaml",
        &resources::documents(&[
            policy("b-out", "app == 'b'", "  types: [Egress]\n"),
            policy("a-in", "app == 'a'", "  types: [Ingress]\n"),
        ]),
    );
    world.start();
    for protocol in [Tcp(80), Udp(80), Icmp] {
        world.allowed("a", "b", protocol);
        world.denied("b", "a", protocol);
        world.denied("b", "outside", protocol);
        world.allowed("a", "outside", protocol);
        world.denied("outside", "a", protocol);
        world.allowed("outside", "b", protocol);
    }
}

#[test]
fn without_a_profile_nothing_passes_but_from_the_host() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    let text = |name: &str| resources::workload(world.lab.workload(name)).replace("kns.t", "kns.absent");
    world.write("workloads.yaml", &resources::documents(&[text("a"), text("b")]));
    world.start();
    world.denied("a", "b", Tcp(80));
    world.denied("outside", "a", Tcp(80));
    world.allowed("host", "a", Tcp(80));
}

#[test]
fn endpoint_to_host_action_accept() {
    let mut world = World::new(&["a"]);
    world.serve(80);
    world.write("felix.yaml", &resources::felix("defaultEndpointToHostAction", "Accept"));
    world.start();
    world.allowed("a", "host", Tcp(80));
    world.allowed("a", "host", Icmp);
    let deny = "  types: [Egress]\n  egress:\n    - action: Allow\n      protocol: UDP\n";
    world.enforce(&[policy("a-out", "app == 'a'", deny)]);
    world.denied("a", "host", Tcp(80));
    world.allowed("a", "host", Udp(80));
}
