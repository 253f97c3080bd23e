//! Random frames, out of small pools so that they meet each other.

use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder,
};

use crate::{
    harness::{A, B, HOST_MAC, HOST4, OUTSIDE4, OUTSIDE6},
    model::Hook,
};

/// SplitMix64: the same numbers for the same seed everywhere.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn of<T: Copy>(&mut self, pool: &[T]) -> T {
        pool[self.below(pool.len() as u64) as usize]
    }
}

pub(crate) fn hook(random: &mut Random) -> Hook {
    match random.below(10) {
        0..3 => Hook::FromA,
        3..5 => Hook::FromB,
        5 => Hook::ToA { own: true },
        6 => Hook::ToA { own: false },
        7 | 8 => Hook::FromUplink,
        _ => Hook::ToUplink { own: random.below(8) == 0 },
    }
}

/// A frame: half of them whole, the others damaged. Those that quote, quote one of `recent`.
pub(crate) fn frame(random: &mut Random, hook: Hook, recent: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = whole(random, recent);
    // Mostly the MAC address of who sends it.
    if random.below(12) != 0 {
        frame[6..12].copy_from_slice(if hook == Hook::FromB { &B.mac } else { &A.mac });
    }
    if random.below(2) == 0 {
        for _ in 0..=random.below(3) {
            damage(random, &mut frame);
        }
    }
    // A test run takes no frame without a whole IP header.
    let least = match frame[12..14] {
        [8, 0] => 34,
        [0x86, 0xdd] => 54,
        _ => 15,
    };
    if frame.len() < least {
        frame.resize(least, 0);
    }
    frame
}

fn whole(random: &mut Random, recent: &[Vec<u8>]) -> Vec<u8> {
    const V4: [[u8; 4]; 8] = [A.v4, B.v4, A.v4, B.v4, OUTSIDE4, HOST4, [198, 51, 100, 7], [224, 0, 0, 251]];
    const V6: [[u8; 16]; 5] = [A.v6, B.v6, OUTSIDE6, A.v6, [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfb]];
    let v6 = random.below(3) == 0;
    let protocol = random.of(&[6, 6, 6, 17, 17, 1, 58, 132, 136, 47, 50, 89, 4, 253]);
    let mut payload = transport(random, protocol, recent, v6);
    let ttl = random.of(&[64, 64, 64, 255, 2, 1, 0]);
    let macs = [random.of(&[A.mac, B.mac]), HOST_MAC];
    let ether_type = if v6 { EtherType::IPV6 } else { EtherType::IPV4 };
    let mut frame = Ethernet2Header { source: macs[0], destination: macs[1], ether_type }.to_bytes().to_vec();
    let fragment = random.below(12) == 0;
    let (offset, more) = (random.of(&[0, 0, 1, 2, 3, 185]), random.below(2) == 0);
    let id = random.below(4) as u16;
    if v6 {
        let mut next = IpNumber(protocol);
        if fragment {
            let offset = IpFragOffset::try_new(offset).expect("an offset");
            let header = Ipv6FragmentHeader::new(next, offset, more, id.into());
            payload.splice(0..0, header.to_bytes());
            next = IpNumber::IPV6_FRAGMENTATION_HEADER;
        }
        for _ in 0..(if random.below(4) == 0 { random.below(8) } else { 0 }) {
            // Routing: of no segments left, or of some.
            let kind = random.of(&[IpNumber(0), IpNumber(60), IpNumber(60), IpNumber(43)]);
            let left = u8::from(random.below(3) == 0);
            let header = Ipv6RawExtHeader::new_raw(next, &[4, left, 0, 0, 0, 0]).expect("a header");
            payload.splice(0..0, header.to_bytes());
            next = kind;
        }
        let header = Ipv6Header {
            payload_length: payload.len() as u16,
            next_header: next,
            hop_limit: ttl,
            source: random.of(&V6),
            destination: random.of(&V6),
            ..Ipv6Header::default()
        };
        frame.extend_from_slice(&header.to_bytes());
    } else {
        let mut header = Ipv4Header::new(payload.len() as u16, ttl, IpNumber(protocol), random.of(&V4), random.of(&V4))
            .expect("a header");
        header.identification = id;
        if random.below(12) == 0 {
            header.options = Ipv4Options::try_from(&[148, 4, 0, 0][..]).expect("router alert");
        }
        if fragment {
            header.more_fragments = more;
            header.fragment_offset = IpFragOffset::try_new(offset).expect("an offset");
        }
        header.total_len = (header.header_len() + payload.len()) as u16;
        header.header_checksum = header.calc_header_checksum();
        frame.extend_from_slice(&header.to_bytes());
    }
    frame.extend_from_slice(&payload);
    frame
}

/// Header and payload above IP.
fn transport(random: &mut Random, protocol: u8, recent: &[Vec<u8>], v6: bool) -> Vec<u8> {
    let ports = [random.of(&[1000, 53, 80]), random.of(&[1000, 53, 80, 4789])];
    let data = vec![7; random.below(24) as usize];
    let builder = PacketBuilder::ipv4([0; 4], [0; 4], 1);
    let mut packet = Vec::new();
    match protocol {
        6 => {
            let mut step = builder.tcp(ports[0], ports[1], random.of(&[100, 500]), 1000);
            // The usual ones, and any.
            let flags = random.of(&[0b0010, 0b0010, 0b0011, 0b0001, 0b0001, 0b0101, 0b1000, 0b1001, 16]);
            let flags = if flags == 16 { random.below(16) } else { flags };
            if flags & 0b0001 != 0 {
                step = step.ack(random.of(&[101, 501]));
            }
            if flags & 0b0010 != 0 {
                step = step.syn();
            }
            if flags & 0b0100 != 0 {
                step = step.fin();
            }
            if flags & 0b1000 != 0 {
                step = step.rst();
            }
            step.write(&mut packet, &data).expect("a packet");
        }
        17 | 136 => builder.udp(ports[0], ports[1]).write(&mut packet, &data).expect("a packet"),
        1 | 58 => {
            let kind = random.of(&[8, 0, 128, 129, 3, 3, 11, 1, 1, 2, 13]);
            let rest = [0, random.below(2) as u8, 0, 0];
            // The head of a packet as a router quotes it, or something else.
            let quoted = match recent {
                [] => data,
                recent => {
                    let quoted = &random.of(&recent.iter().collect::<Vec<_>>())[14..];
                    quoted[..quoted.len().min(if v6 { 80 } else { 28 })].to_vec()
                }
            };
            builder.icmpv4_raw(kind, 0, rest).write(&mut packet, &quoted).expect("a packet");
        }
        132 => {
            let [from, to] = ports.map(u16::to_be_bytes);
            return [&from[..], &to, &[0; 8], &data].concat();
        }
        _ => return data,
    }
    packet.split_off(20)
}

fn damage(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(8) {
        // The end is missing, but for what makes it a frame.
        0 => {
            let least = 14;
            let left = least + random.below((frame.len() - least + 1) as u64) as usize;
            frame.truncate(left);
        }
        1 => frame.extend(std::iter::repeat_n(0xa5, random.below(64) as usize)),
        // One bit of the headers, where most that matters is.
        2..5 => {
            let at = random.below(frame.len().min(74) as u64) as usize;
            frame[at] ^= 1 << random.below(8);
        }
        5 => {
            let at = random.below(frame.len() as u64) as usize;
            frame[at] = random.next() as u8;
        }
        // Lengths and fragments.
        6 if frame.len() > 22 => {
            let at = 14 + random.below(8) as usize;
            frame[at] = random.of(&[0, 1, 5, 0x20, 0x45, 0x46, 0x4f, 0x60, 0xff]);
        }
        _ => {
            let at = random.below(frame.len() as u64) as usize;
            frame.insert(at, random.next() as u8);
        }
    }
}
