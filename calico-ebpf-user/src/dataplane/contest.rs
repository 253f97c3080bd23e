//! What hosts that claim one workload tell each other on the link.
//!
//! A host that steps back tells no routes any more, and within its blocks it never told one: routing says nothing of it to the
//! host that keeps the workload. So it asks the link for the address as one does who wants to have it: an ARP probe (RFC 5227,
//! section 2.1.1), which changes nobody's cache and asks for no answer here. What comes so is for people, and nothing is decided
//! by it: anybody on the link can say it.

use std::{
    collections::BTreeMap,
    fmt, fs,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    task::Poll,
};

use calico_ebpf_common::packet::arp::{ArpFrame, ArpPacket};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::unix::AsyncFd;

use super::sys;

/// Somebody on the link wants an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// The address.
    pub address: Ipv4Addr,
    /// Whoever it is.
    pub mac: [u8; 6],
}

/// Listens on uplinks for those who want addresses of ours, and tells others which ones we want.
#[derive(Default)]
pub struct Contest {
    sockets: BTreeMap<(u32, [u8; 6]), AsyncFd<OwnedFd>>,
}

impl fmt::Debug for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.sockets.keys()).finish()
    }
}

impl Contest {
    /// Listens on these interfaces, given with their MAC addresses, and on no others. Needs a tokio runtime.
    pub fn listen(&mut self, uplinks: &[(u32, [u8; 6])]) {
        self.sockets.retain(|uplink, _| uplinks.contains(uplink));
        for uplink in uplinks {
            if !self.sockets.contains_key(uplink) {
                match sys::packet_socket(uplink.0, libc::ETH_P_ARP as u16) {
                    Ok(socket) => drop(self.sockets.insert(*uplink, socket)),
                    Err(error) => tracing::debug!(ifindex = uplink.0, %error, "cannot listen for other hosts' claims"),
                }
            }
        }
    }

    /// Tells everybody on the links that this host wants these addresses.
    pub fn want(&self, addresses: &[Ipv4Addr]) {
        for ((ifindex, mac), socket) in &self.sockets {
            for address in addresses {
                if let Err(error) =
                    send(socket.get_ref(), bytemuck::bytes_of(&probe(*mac, *address)), SendFlags::DONTWAIT)
                {
                    tracing::debug!(ifindex, %error, "cannot tell others what is claimed here");
                }
            }
        }
    }

    /// Waits until somebody wants an address, whosever. May be dropped and called again without losing anything.
    pub async fn next(&mut self) -> Rival {
        let rival = poll_fn(|context| {
            for ((_, own), socket) in &self.sockets {
                while let Poll::Ready(Ok(mut ready)) = socket.poll_read_ready(context) {
                    let mut frame = ArpFrame::default();
                    let received = ready.try_io(|socket| {
                        recv(socket.get_ref(), bytemuck::bytes_of_mut(&mut frame), RecvFlags::DONTWAIT)
                            .map_err(io::Error::from)
                    });
                    if let Ok(Ok(_)) = received
                        && let Some(rival) = rival(&frame).filter(|rival| rival.mac != *own)
                    {
                        return Poll::Ready(rival);
                    }
                }
            }
            Poll::Pending
        });
        rival.await
    }
}

/// The address of the host on the link that has this MAC address, as far as the kernel knows.
#[must_use]
pub fn host_of(mac: [u8; 6]) -> Option<IpAddr> {
    let table = fs::read_to_string("/proc/thread-self/net/arp").ok()?;
    host_in(&table, mac)
}

fn host_in(table: &str, mac: [u8; 6]) -> Option<IpAddr> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    // IP address, HW type, Flags, HW address, Mask, Device.
    let line = table.lines().skip(1).find(|line| line.split_whitespace().nth(3) == Some(&mac))?;
    line.split_whitespace().next()?.parse().ok()
}

fn probe(mac: [u8; 6], address: Ipv4Addr) -> ArpFrame {
    ArpFrame::request(mac, [0; 4], address.octets())
}

/// Who wants which address, if the frame says so. Pure.
fn rival(frame: &ArpFrame) -> Option<Rival> {
    let ArpFrame { ethernet, arp } = frame;
    let probe = probe(arp.sender_mac, arp.target.into());
    let is_probe = ethernet.ether_type == probe.ethernet.ether_type
        && *arp == ArpPacket { target_mac: arp.target_mac, ..probe.arp };
    is_probe.then_some(Rival { address: arp.target.into(), mac: arp.sender_mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_tells_who_wants_what() {
        let (mac, address) = ([2, 0, 0, 0, 0, 0xaf], Ipv4Addr::new(10, 0, 0, 1));
        let mut frame = probe(mac, address);
        assert_eq!(rival(&frame), Some(Rival { address, mac }));
        frame.arp.sender = [0, 0, 0, 9];
        assert_eq!(rival(&frame), None, "a question for the way to it");
        assert_eq!(rival(&ArpFrame::default()), None);
    }

    #[test]
    fn the_kernel_knows_whose_mac_address_it_is() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     192.0.2.11       0x1         0x2         02:00:00:00:00:af     *        up0\n";
        assert_eq!(host_in(table, [2, 0, 0, 0, 0, 0xaf]), Some(IpAddr::from([192, 0, 2, 11])));
        assert_eq!(host_in(table, [2, 0, 0, 0, 0, 1]), None);
    }
}
