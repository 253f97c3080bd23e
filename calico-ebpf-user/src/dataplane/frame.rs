//! The first packet of a flow, as a frame.

use std::net::IpAddr;

use calico_ebpf_common::packet::protocol::{ICMP, ICMPV6, SCTP, TCP, UDP, UDP_LITE};

use crate::policy::flow::Flow;

/// `SYN` in the flags of TCP.
const SYN: u8 = 2;

/// Headers with nothing behind them, checksums left out: nobody looks at them who is asked by a test run. `None` if the
/// addresses are of two families.
pub(super) fn first(flow: &Flow) -> Option<Vec<u8>> {
    let above = transport(flow);
    let length = u16::try_from(above.len()).ok()?;
    let mut frame = vec![0; 12];
    match (flow.source, flow.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            const HEADER: u16 = 20;
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((HEADER + length).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, flow.protocol, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([flow.protocol, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => return None,
    }
    frame.extend(above);
    Some(frame)
}

/// The header above IP. What has none gets a few bytes that mean nothing.
fn transport(flow: &Flow) -> Vec<u8> {
    let [from, to] = [flow.source_port.to_be_bytes(), flow.destination_port.to_be_bytes()];
    let ports = [from, to].concat();
    match flow.protocol {
        TCP => [&ports[..], &[0; 8], &[5 << 4, SYN, 0xff, 0xff, 0, 0, 0, 0]].concat(),
        UDP | UDP_LITE => [&ports[..], &[0, 8, 0, 0]].concat(),
        SCTP => [&ports[..], &[0; 8]].concat(),
        ICMP | ICMPV6 => [&to[..], &[0; 6]].concat(),
        _ => vec![0; 8],
    }
}
