//! What `Log` rules met, into the log.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use aya::{Ebpf, maps::RingBuf};
use calico_ebpf_common::abi::{LogRecord, names};

use super::view::View;
use crate::policy::compiled::RuleName;

/// How often the ring is looked into.
const INTERVAL: Duration = Duration::from_millis(100);

/// Reads the ring in a thread of its own, which ends when `alive` does. Where there is no ring, nothing is logged.
pub(super) fn follow(ebpf: &mut Ebpf, directory: &Path, alive: &Arc<()>) {
    let ring = ebpf.take_map(names::LOG).map(RingBuf::try_from);
    let mut ring = match ring {
        Some(Ok(ring)) => ring,
        Some(Err(error)) => return tracing::warn!("packets that meet Log rules are not logged: {error}"),
        None => return,
    };
    let mut names = Names { view: View::at(directory.to_owned()), rules: HashMap::new(), owners: HashMap::new() };
    let alive: Weak<()> = Arc::downgrade(alive);
    let reader = move || {
        while alive.strong_count() > 0 {
            // One reading of the names for all that came together: workloads come and go.
            let mut fresh = false;
            while let Some(item) = ring.next() {
                if let Ok(record) = bytemuck::try_pod_read_unaligned::<LogRecord>(&item) {
                    if !std::mem::replace(&mut fresh, true) {
                        names.refresh();
                    }
                    names.tell(&record);
                }
            }
            std::thread::sleep(INTERVAL);
        }
    };
    if let Err(error) = std::thread::Builder::new().name("packet-log".to_owned()).spawn(reader) {
        tracing::warn!("packets that meet Log rules are not logged: {error}");
    }
}

struct Names {
    view: View,
    rules: HashMap<u32, RuleName>,
    owners: HashMap<IpAddr, String>,
}

impl Names {
    fn refresh(&mut self) {
        // What cannot be read now stays as it was.
        if let Ok(rules) = self.view.rules() {
            self.rules = rules.into_iter().map(|(counter, name, _)| (counter, name)).collect();
        }
        if let (Ok(addresses), Ok(workloads)) = (self.view.owned_addresses(), self.view.workloads()) {
            let slots: HashMap<u32, String> =
                workloads.into_iter().map(|(slot, owner, _)| (slot, owner.endpoint)).collect();
            self.owners = addresses
                .into_iter()
                .filter_map(|(address, slot)| Some((address, slots.get(&slot)?.clone())))
                .collect();
        }
    }

    fn tell(&self, record: &LogRecord) {
        let rule =
            self.rules.get(&record.counter).map_or_else(|| "a rule that is gone".to_owned(), ToString::to_string);
        let icmp = record.protocol == 1 || record.protocol == 58;
        let end = |address: [u8; 16], port: u16| {
            let address = Ipv6Addr::from(address);
            let address = if record.version == 4 { address.to_canonical() } else { address.into() };
            let port = if icmp { 0 } else { port };
            let text = if port == 0 { address.to_string() } else { SocketAddr::new(address, port).to_string() };
            self.owners.get(&address).map_or(text.clone(), |owner| format!("{owner} {text}"))
        };
        let [kind, code] = record.destination_port.to_be_bytes();
        let message = if icmp { format!(" type {kind} code {code}") } else { String::new() };
        tracing::info!(
            target: "calico_ebpf_user::packets",
            "{}{message} from {} to {} met Log rule {rule}{}",
            crate::observe::names::protocol(record.protocol),
            end(record.source, record.source_port),
            end(record.destination, record.destination_port),
            match record.suppressed {
                0 => String::new(),
                more => format!("; {more} packets before it were not logged"),
            },
        );
    }
}
