//! Workloads that come from other nodes: seen as soon as they are alive here. And those that go to others: seen as soon as they
//! are not.
//!
//! A packet socket on the interface sees every frame before the programs do. What counts is what only the workload itself
//! sends once it runs: not the messages with which its end of the link comes up. Who has announced itself before anybody
//! listened, or has nothing to say, is asked for its address.

use std::{
    fmt,
    future::{pending, poll_fn},
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    task::Poll,
    time::{Duration, Instant},
};

use calico_ebpf_common::packet::arp::ArpFrame;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::{io::unix::AsyncFd, time::sleep_until};

use super::sys;

const ARP: [u8; 2] = [0x08, 0x06];
const RARP: [u8; 2] = [0x80, 0x35];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ICMPV6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The gateway that Calico gives to every workload: who asks is known to it.
const GATEWAY: [u8; 4] = [169, 254, 1, 1];

/// A workload that is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// `namespace/name`.
    pub endpoint: String,
    /// Its interface.
    pub ifindex: u32,
    /// The interface's own MAC address.
    pub host_mac: [u8; 6],
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its MAC address, where configured.
    pub mac: Option<[u8; 6]>,
    /// It has been here and goes: it is to say so again and again.
    pub departs: bool,
}

/// What became of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It has come.
    Alive(String),
    /// It was here, and has not answered.
    Silent(String),
}

/// Who goes is asked as often as this, and who comes at first.
const ASK: Duration = Duration::from_millis(10);
/// Who comes is asked at least as often as this.
const ASK_LATER: Duration = Duration::from_secs(1);
/// The longer it has not come, the rarer it is asked: after one part of the time in so many.
const SHARE: u32 = 32;
/// So many questions without an answer, and it is not here any more.
const UNANSWERED: u32 = 5;

struct Ear {
    awaited: Awaited,
    socket: AsyncFd<OwnedFd>,
    since: Instant,
    ask: Instant,
    unanswered: u32,
}

/// Listens for signs of life.
#[derive(Default)]
pub struct Signs {
    ears: Vec<Ear>,
}

impl fmt::Debug for Signs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.ears.iter().map(|ear| &ear.awaited)).finish()
    }
}

impl Signs {
    /// Listens for these, and for nobody else. Those that are new are asked at once. Needs a tokio runtime.
    pub fn listen(&mut self, awaited: Vec<Awaited>) {
        self.ears.retain(|ear| awaited.contains(&ear.awaited));
        for one in awaited {
            if self.ears.iter().any(|ear| ear.awaited == one) {
                continue;
            }
            match sys::packet_socket(one.ifindex, libc::ETH_P_ALL as u16) {
                Ok(socket) => {
                    let now = Instant::now();
                    let mut ear = Ear { awaited: one, socket, since: now, ask: now, unanswered: 0 };
                    ear.ask(now);
                    self.ears.push(ear);
                }
                Err(error) => tracing::warn!(endpoint = one.endpoint, %error, "cannot listen for its packets"),
            }
        }
    }

    /// Waits until one that comes is alive, or one that goes is silent, and asks them meanwhile. May be dropped and called again
    /// without losing anything.
    pub async fn next(&mut self) -> Sign {
        loop {
            let Some(due) = self.ears.iter().map(|ear| ear.ask).min() else { return pending().await };
            tokio::select! {
                // An answer that is there counts before the next question.
                biased;
                endpoint = self.heard() => return Sign::Alive(endpoint),
                () = sleep_until(due.into()) => {}
            }
            let now = Instant::now();
            for ear in self.ears.iter_mut().filter(|ear| ear.ask <= now) {
                ear.ask(now);
                if ear.awaited.departs && ear.unanswered > UNANSWERED {
                    ear.unanswered = 0;
                    return Sign::Silent(ear.awaited.endpoint.clone());
                }
            }
        }
    }

    /// Waits until one that comes is alive.
    async fn heard(&mut self) -> String {
        let alive = poll_fn(|context| {
            for ear in &mut self.ears {
                // Whoever goes and has answered is heard enough until it is asked again, however much it says.
                while ear.is_heard_to()
                    && let Poll::Ready(Ok(mut ready)) = ear.socket.poll_read_ready(context)
                {
                    // More than what is looked at does not matter.
                    let mut frame = [0; 128];
                    let received = ready.try_io(|socket| {
                        recv(socket.get_ref(), &mut frame[..], RecvFlags::DONTWAIT).map_err(io::Error::from)
                    });
                    match received {
                        Ok(Ok((length, _))) if is_sign(&frame[..length], &ear.awaited) => {
                            ear.unanswered = 0;
                            if !ear.awaited.departs {
                                return Poll::Ready(ear.awaited.endpoint.clone());
                            }
                        }
                        Ok(Ok(_)) => {}
                        // The interface is down or gone: notifications tell.
                        Ok(Err(error)) => {
                            tracing::debug!(endpoint = ear.awaited.endpoint, %error, "while listening");
                        }
                        Err(_would_block) => {}
                    }
                }
            }
            Poll::Pending
        });
        alive.await
    }
}

impl Ear {
    fn is_heard_to(&self) -> bool {
        !self.awaited.departs || self.unanswered > 0
    }

    fn ask(&mut self, now: Instant) {
        if !self.is_heard_to() {
            // What it said since it answered is no answer to what follows.
            let mut frame = [0; 1];
            while recv(self.socket.get_ref(), &mut frame[..], RecvFlags::DONTWAIT).is_ok() {}
        }
        for question in questions(&self.awaited) {
            // An interface that is down takes nothing: it is asked again.
            if let Err(error) = send(self.socket.get_ref(), &question, SendFlags::DONTWAIT) {
                tracing::debug!(endpoint = self.awaited.endpoint, %error, "cannot ask it for its address");
            }
        }
        self.unanswered = self.unanswered.saturating_add(1);
        let pause = if self.awaited.departs { ASK } else { (now - self.since) / SHARE };
        self.ask = now + pause.clamp(ASK, ASK_LATER);
    }
}

/// Whether a frame that came in on its interface is the workload's own. Pure.
fn is_sign(frame: &[u8], awaited: &Awaited) -> bool {
    let bytes = |from: usize, length: usize| frame.get(from..from + length).unwrap_or_default();
    if awaited.mac.is_some_and(|mac| bytes(6, 6) != mac) {
        return false;
    }
    let own = |from: usize, v4: bool| {
        awaited.addresses.iter().any(|address| match address {
            IpAddr::V4(address) => v4 && bytes(from, 4) == address.octets(),
            IpAddr::V6(address) => !v4 && bytes(from, 16) == address.octets(),
        })
    };
    match bytes(12, 2) {
        // What a hypervisor sends in the name of a guest that has arrived.
        kind if kind == RARP => true,
        kind if kind == ARP => own(28, true),
        kind if kind == IPV4 => own(26, true),
        kind if kind == IPV6 => {
            own(22, false) || bytes(20, 1) == [ICMPV6] && bytes(54, 1) == [ADVERTISEMENT] && own(62, false)
        }
        _ => false,
    }
}

/// What a workload that is alive answers: a question for one of its addresses of each family. Pure.
fn questions(awaited: &Awaited) -> Vec<Vec<u8>> {
    let v4 = awaited.addresses.iter().find_map(|address| match address {
        IpAddr::V4(address) => {
            Some(bytemuck::bytes_of(&ArpFrame::request(awaited.host_mac, GATEWAY, address.octets())).to_vec())
        }
        IpAddr::V6(_) => None,
    });
    let v6 = awaited.addresses.iter().find_map(|address| match address {
        IpAddr::V6(address) => Some(solicitation(awaited.host_mac, address.octets())),
        IpAddr::V4(_) => None,
    });
    v4.into_iter().chain(v6).collect()
}

/// RFC 4861, section 4.3, from the interface's link-local address: the gateway of workloads.
fn solicitation(mac: [u8; 6], target: [u8; 16]) -> Vec<u8> {
    let [a, b, c, d, e, f] = mac;
    let source = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    let last = [target[13], target[14], target[15]];
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    group[11..].copy_from_slice(&[1, 0xff, last[0], last[1], last[2]]);
    let mut message = vec![SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target);
    message.extend([1, 1]);
    message.extend(mac);
    let length = message.len() as u16;
    let summed = [&source[..], &group, &u32::from(length).to_be_bytes(), &[0, 0, 0, ICMPV6], &message].concat();
    message[2..4].copy_from_slice(&checksum(&summed).to_be_bytes());
    let mut frame = vec![0x33, 0x33, 0xff, last[0], last[1], last[2]];
    frame.extend(mac);
    frame.extend(IPV6);
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([ICMPV6, 255]);
    frame.extend(source);
    frame.extend(group);
    frame.extend(message);
    frame
}

/// The Internet checksum of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn awaited() -> Awaited {
        Awaited {
            endpoint: "a/b".to_owned(),
            ifindex: 7,
            host_mac: [0xee; 6],
            addresses: vec![IpAddr::from([10, 0, 0, 1]), "fd00::1".parse().expect("an address")],
            mac: None,
            departs: false,
        }
    }

    fn arp(sender: [u8; 4]) -> Vec<u8> {
        bytemuck::bytes_of(&ArpFrame::request(MAC, sender, [10, 0, 0, 1])).to_vec()
    }

    #[test]
    fn what_only_the_workload_sends_is_a_sign_of_life() {
        let awaited = awaited();
        assert!(is_sign(&arp([10, 0, 0, 1]), &awaited), "a gratuitous ARP");
        assert!(!is_sign(&arp([0; 4]), &awaited), "whether the address is taken");
        assert!(!is_sign(&arp([10, 0, 0, 2]), &awaited), "somebody else's");
        let mut rarp = arp([0; 4]);
        rarp[12..14].copy_from_slice(&RARP);
        assert!(is_sign(&rarp, &awaited));
        let mut packet = vec![0; 60];
        packet[12..14].copy_from_slice(&IPV4);
        packet[26..30].copy_from_slice(&[10, 0, 0, 1]);
        assert!(is_sign(&packet, &awaited), "its first packet");
        packet[26] = 11;
        assert!(!is_sign(&packet, &awaited));
        assert!(!is_sign(&packet[..20], &awaited));
        assert!(!is_sign(&[], &awaited));
        let with_mac = Awaited { mac: Some([9; 6]), ..awaited };
        assert!(!is_sign(&arp([10, 0, 0, 1]), &with_mac), "another one's MAC address");
    }

    #[test]
    fn neighbours_of_ipv6_are_told_from_the_noise_of_a_link_that_comes_up() {
        let awaited = awaited();
        let target = "fd00::1".parse::<std::net::Ipv6Addr>().expect("an address").octets();
        let mut frame = solicitation(MAC, target);
        assert!(!is_sign(&frame, &awaited), "it looks whether the address is taken");
        frame[54] = ADVERTISEMENT;
        assert!(is_sign(&frame, &awaited), "it tells that it has the address");
        frame[77] = 9;
        assert!(!is_sign(&frame, &awaited), "another address");
        frame[54] = 143;
        assert!(!is_sign(&frame, &awaited), "a multicast listener");
    }

    #[test]
    fn questions_are_well_formed() {
        let [v4, v6] = questions(&awaited()).try_into().expect("one for each family");
        assert_eq!(v4.len(), 42);
        assert_eq!(v4[38..], [10, 0, 0, 1]);
        assert_eq!(v6.len(), 14 + 40 + 32);
        assert_eq!(v6[..6], [0x33, 0x33, 0xff, 0, 0, 1]);
        assert_eq!(v6[22..38], "fe80::ecee:eeff:feee:eeee".parse::<std::net::Ipv6Addr>().expect("it").octets());
        // A right checksum makes the sum all ones.
        let summed = [&v6[22..54], &32_u32.to_be_bytes(), &[0, 0, 0, ICMPV6], &v6[54..]].concat();
        assert_eq!(checksum(&summed), 0);
    }
}
