//! What differs from kernel to kernel, said aloud: `cargo xtask vm` holds it against its table.

use std::fs;

use calico_ebpf_tests::{
    Protocol::{Icmp, Tcp},
    World,
};

#[test]
fn the_lab_alone_connects_nobody() {
    let mut world = World::new(&["a", "b"]);
    world.serve(80);
    for (from, to) in [("a", "b"), ("a", "outside"), ("outside", "a"), ("host", "a")] {
        world.denied(from, to, Tcp(80));
        world.denied(from, to, Icmp);
    }
    // But for those that need no help.
    world.allowed("outside", "host", Tcp(80));
    world.allowed("host", "outside", Icmp);
}

#[test]
fn every_program_loads_and_is_attached_as_this_kernel_can() {
    let mut world = World::new(&["a"]);
    world.start();
    let filters = |interface: &str, direction: &str| {
        let arguments = ["filter", "show", "dev", interface, direction];
        let output = world.lab.host.command("tc").args(arguments).output().expect("tc");
        String::from_utf8_lossy(&output.stdout).matches("cali_").count()
    };
    let by_tc = filters("calia", "ingress");
    let links = count_links(&world.lab.pin_dir());
    match (by_tc, links) {
        (0, 1..) => println!("\nfact: attach tcx"),
        (1.., 0) => println!("\nfact: attach clsact"),
        _ => panic!("{by_tc} filters by tc, {links} pinned links\n{}", world.describe()),
    }
}

/// Pinned links under a directory.
fn count_links(directory: &std::path::Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let path = entry.path();
            let link = entry.file_name().to_string_lossy().starts_with("link_");
            if path.is_dir() { count_links(&path) } else { usize::from(link) }
        })
        .sum()
}
