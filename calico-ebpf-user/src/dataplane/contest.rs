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

use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::io::unix::AsyncFd;

use super::sys;

const ETHERTYPE: u16 = libc::ETH_P_ARP as u16;
const REQUEST: [u8; 2] = [0, 1];
/// struct arphdr with addresses of Ethernet and IPv4: include/uapi/linux/if_arp.h.
const LENGTH: usize = 42;

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
                match sys::packet_socket(uplink.0, ETHERTYPE) {
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
                if let Err(error) = send(socket.get_ref(), &probe(*mac, *address), SendFlags::DONTWAIT) {
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
                    let mut frame = [0; LENGTH];
                    let received = ready.try_io(|socket| {
                        recv(socket.get_ref(), &mut frame[..], RecvFlags::DONTWAIT).map_err(io::Error::from)
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

fn probe(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    frame.extend(ETHERTYPE.to_be_bytes());
    frame.extend([0, 1, 8, 0, 6, 4]);
    frame.extend(REQUEST);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend(address.octets());
    frame
}

/// Who wants which address, if the frame says so. Pure.
fn rival(frame: &[u8; LENGTH]) -> Option<Rival> {
    let is_probe = frame[12..14] == ETHERTYPE.to_be_bytes()
        && frame[14..20] == [0, 1, 8, 0, 6, 4]
        && frame[20..22] == REQUEST
        && frame[28..32] == [0; 4];
    let mac = frame[22..28].try_into().ok()?;
    let address: [u8; 4] = frame[38..42].try_into().ok()?;
    is_probe.then_some(Rival { address: address.into(), mac })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_tells_who_wants_what() {
        let (mac, address) = ([2, 0, 0, 0, 0, 0xaf], Ipv4Addr::new(10, 0, 0, 1));
        let mut frame: [u8; LENGTH] = probe(mac, address).try_into().expect("a whole one");
        assert_eq!(rival(&frame), Some(Rival { address, mac }));
        frame[31] = 9;
        assert_eq!(rival(&frame), None, "a question for the way to it");
        assert_eq!(rival(&[0; LENGTH]), None);
    }

    #[test]
    fn the_kernel_knows_whose_mac_address_it_is() {
        let table = "IP address       HW type     Flags       HW address            Mask     Device\n\
                     192.0.2.11       0x1         0x2         02:00:00:00:00:af     *        up0\n";
        assert_eq!(host_in(table, [2, 0, 0, 0, 0, 0xaf]), Some(IpAddr::from([192, 0, 2, 11])));
        assert_eq!(host_in(table, [2, 0, 0, 0, 0, 1]), None);
    }
}
