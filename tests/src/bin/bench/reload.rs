//! From a changed file to the first packet judged by it.

use std::{
    fs,
    net::UdpSocket,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::{
    report::Report,
    variant::{Kind, PORTS, Variant},
};

const ROUNDS: usize = 40;
const GAP: Duration = Duration::from_micros(50);

pub(crate) fn run(report: &mut Report) -> anyhow::Result<()> {
    let variant = Variant::new(Kind::Ours)?;
    let (a, b) = (variant.lab.workload("a"), variant.lab.workload("b"));
    let server = b.namespace.enter(|| UdpSocket::bind((b.v4, PORTS.1)))??;
    let client = a.namespace.enter(|| UdpSocket::bind((a.v4, PORTS.0)))??;
    client.connect((b.v4, PORTS.1))?;
    server.set_nonblocking(true)?;

    let mut samples = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        samples.0.push(switch(&variant, "Deny", &client, &server)?);
        samples.1.push(switch(&variant, "Allow", &client, &server)?);
    }
    let rows =
        vec![("allow to deny, on a running flow".to_owned(), samples.0), ("deny to allow".to_owned(), samples.1)];
    report.section("from the renamed file to the first packet judged by it", "ms", rows);
    Ok(())
}

/// Replaces the file and sends packets until the other verdict is seen.
fn switch(variant: &Variant, action: &str, client: &UdpSocket, server: &UdpSocket) -> anyhow::Result<f64> {
    let config = variant.config()?;
    let next = config.with_extension("next");
    fs::write(&next, variant.resources(action))?;
    let (start, mut last) = (Instant::now(), None);
    fs::rename(&next, config)?;
    while start.elapsed() < Duration::from_secs(5) {
        let sent = start.elapsed();
        // A deny is silent: no error comes back.
        client.send(b"probe")?;
        std::thread::sleep(GAP);
        let mut arrived = false;
        while server.recv(&mut [0; 16]).is_ok() {
            arrived = true;
        }
        if arrived == (action == "Allow") {
            // A denied one is the first of an unbroken row: the path is lossless.
            let first = *last.get_or_insert(sent);
            if start.elapsed() - first > Duration::from_millis(20) {
                return Ok(first.as_secs_f64() * 1e3);
            }
        } else {
            last = None;
        }
    }
    bail!("the change to {action} was not seen within 5 s")
}
