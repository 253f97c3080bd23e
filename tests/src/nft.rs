//! Rules of the kernel's own filter, as somebody else on a host has them.

use std::{io::Write as _, process::Stdio};

use xtask::lab::Namespace;

/// Has `nft` carry out these commands, all or nothing.
pub fn nft(namespace: &Namespace, commands: &str) {
    let mut nft = namespace.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft");
    nft.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("writes");
    assert!(nft.wait().expect("nft").success(), "{commands}");
}
