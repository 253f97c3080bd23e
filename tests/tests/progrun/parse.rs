//! What is in a frame, for the model: by slices, as one would read it out of the RFCs.

use calico_ebpf_common::abi::DropReason;

use crate::model::{Key, wide4};

/// A frame.
#[derive(Debug)]
pub(crate) enum Parsed {
    Arp,
    /// Neither ARP nor IP.
    Other,
    Bad(DropReason),
    Packet(Packet),
}

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Flow,
    Stateless,
    Error,
    Later,
}

/// A packet.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) v6: bool,
    pub(crate) source: [u8; 16],
    pub(crate) destination: [u8; 16],
    pub(crate) protocol: u8,
    pub(crate) ttl: u8,
    pub(crate) kind: Kind,
    pub(crate) fragment: bool,
    pub(crate) slow: bool,
    pub(crate) id: [u8; 4],
    pub(crate) ports: [u16; 2],
    /// Type and code.
    pub(crate) icmp: [u8; 2],
    pub(crate) tcp_flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
    pub(crate) quoted: Option<Box<Quoted>>,
}

/// What an ICMP error quotes.
#[derive(Debug)]
pub(crate) struct Quoted {
    pub(crate) source: [u8; 16],
    destination: [u8; 16],
    protocol: u8,
    pub(crate) ports: [u16; 2],
}

impl Packet {
    pub(crate) fn key(&self) -> Key {
        key(self.source, self.destination, self.ports, self.protocol)
    }

    /// SYN, ACK, RST, FIN.
    pub(crate) fn flags(&self) -> [bool; 4] {
        [2, 16, 4, 1].map(|bit| self.tcp_flags & bit != 0)
    }

    pub(crate) fn opens(&self) -> bool {
        let [syn, ack, rst, _] = self.flags();
        syn && !ack && !rst
    }

    pub(crate) fn multicast(&self) -> bool {
        let to = &self.destination;
        if self.v6 { to[0] == 0xff } else { to[12] >> 4 == 0xe || to[12..] == [0xff; 4] }
    }

    pub(crate) fn host_scope(&self) -> bool {
        let to = std::net::Ipv6Addr::from(self.destination);
        if self.v6 { to.is_loopback() || to.is_unicast_link_local() } else { self.destination[12] == 127 }
    }

    /// By the routes of the harness.
    pub(crate) fn routed_to_uplink(&self) -> bool {
        let to = &self.destination;
        if self.v6 {
            to[..8] == [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0] && to[8..15] == [0; 7] && to[15] > 1
                || to[..8] == [0x20, 1, 0xd, 0xb8, 0, 2, 0, 0] && to[8..15] != [0; 7]
        } else {
            to[12..15] == [192, 0, 2] && !matches!(to[15], 1 | 255) || to[12..15] == [198, 51, 100]
        }
    }
}

impl Quoted {
    pub(crate) fn key(&self) -> Key {
        key(self.source, self.destination, self.ports, self.protocol)
    }
}

fn key(source: [u8; 16], destination: [u8; 16], ports: [u16; 2], protocol: u8) -> Key {
    let mut ends = [(source, ports[0]), (destination, ports[1])];
    ends.sort_unstable();
    (ends, protocol)
}

pub(crate) fn parse(frame: &[u8]) -> Parsed {
    let body = &frame[14..];
    let packet = match [frame[12], frame[13]] {
        [8, 6] => return Parsed::Arp,
        [8, 0] => ipv4(body),
        [0x86, 0xdd] => ipv6(body),
        _ => return Parsed::Other,
    };
    match packet {
        Ok(packet) => Parsed::Packet(packet),
        Err(reason) => Parsed::Bad(reason),
    }
}

fn ipv4(body: &[u8]) -> Result<Packet, DropReason> {
    let bad = DropReason::Malformed;
    let header = body.get(..20).ok_or(bad)?;
    let (ihl, total) = (usize::from(header[0] & 15) * 4, usize::from(u16_at(header, 2)));
    if header[0] >> 4 != 4 || ihl < 20 {
        return Err(bad);
    }
    let fragment = u16_at(header, 6);
    let (more, offset) = (fragment & 0x2000 != 0, usize::from(fragment & 0x1fff) * 8);
    let is_fragment = more || offset != 0;
    if total > body.len() {
        return Err(bad);
    }
    // Options that are not whole are noticed where something is looked for behind them.
    let short = if is_fragment { DropReason::Fragment } else { bad };
    let payload = body.get(ihl..total.max(ihl)).filter(|_| total >= ihl).ok_or(short)?;
    let mut packet = Packet {
        v6: false,
        source: wide4(header[12..16].try_into().expect("four bytes")),
        destination: wide4(header[16..20].try_into().expect("four bytes")),
        protocol: header[9],
        ttl: header[8],
        kind: Kind::Later,
        fragment: is_fragment,
        slow: is_fragment || ihl != 20,
        id: [0, header[9], header[4], header[5]],
        ports: [0; 2],
        icmp: [0; 2],
        tcp_flags: 0,
        sequence: 0,
        acknowledgement: 0,
        quoted: None,
    };
    if offset == 0 {
        transport(&mut packet, payload).map_err(|()| short)?;
        // Messages quote what is there, however long the packet claims to be.
        packet.quoted = quoted(&packet, body, ihl);
    } else if payload.is_empty() || packet.protocol == 6 && offset < 20 {
        return Err(DropReason::Fragment);
    }
    Ok(packet)
}

fn ipv6(body: &[u8]) -> Result<Packet, DropReason> {
    let bad = DropReason::Malformed;
    let header = body.get(..40).ok_or(bad)?;
    let length = usize::from(u16_at(header, 4));
    if header[0] >> 4 != 6 || body.len() - 40 < length {
        return Err(bad);
    }
    let mut packet = Packet {
        v6: true,
        source: header[8..24].try_into().expect("an address"),
        destination: header[24..40].try_into().expect("an address"),
        protocol: header[6],
        ttl: header[7],
        kind: Kind::Later,
        fragment: false,
        slow: false,
        id: [0; 4],
        ports: [0; 2],
        icmp: [0; 2],
        tcp_flags: 0,
        sequence: 0,
        acknowledgement: 0,
        quoted: None,
    };
    let chain = extensions(body, 40, header[6])?;
    packet.slow = chain.at != 40;
    (packet.protocol, packet.fragment, packet.id) = (chain.protocol, chain.fragment, chain.id);
    if chain.offset != 0 {
        let tiny = chain.at >= 40 + length || chain.protocol == 6 && chain.offset < 20;
        return if tiny { Err(DropReason::Fragment) } else { Ok(packet) };
    }
    let short = if chain.fragment { DropReason::Fragment } else { bad };
    let payload = body[..40 + length].get(chain.at..).ok_or(short)?;
    transport(&mut packet, payload).map_err(|()| short)?;
    packet.quoted = quoted(&packet, body, chain.at);
    Ok(packet)
}

struct Chain {
    protocol: u8,
    at: usize,
    fragment: bool,
    offset: usize,
    id: [u8; 4],
}

fn extensions(body: &[u8], at: usize, protocol: u8) -> Result<Chain, DropReason> {
    let mut chain = Chain { protocol, at, fragment: false, offset: 0, id: [0; 4] };
    let mut fragments = 0;
    for walked in 0.. {
        let is_extension = matches!(chain.protocol, 0 | 43 | 44 | 51 | 60);
        if !is_extension {
            break;
        }
        if walked == 6 {
            return Err(DropReason::Headers);
        }
        let head = body.get(chain.at..chain.at + 8).ok_or(DropReason::Malformed)?;
        let length = match chain.protocol {
            43 if head[3] != 0 => return Err(DropReason::Headers),
            44 => {
                // The second one: a packet cannot be cut twice.
                if chain.fragment {
                    return Err(DropReason::Headers);
                }
                fragments += 1;
                let offset = u16_at(head, 2);
                chain.fragment = offset & 0xfff9 != 0;
                chain.offset = usize::from(offset & 0xfff8);
                chain.id = head[4..8].try_into().expect("four bytes");
                8
            }
            51 => (usize::from(head[1]) + 2) * 4,
            _ => (usize::from(head[1]) + 1) * 8,
        };
        (chain.protocol, chain.at) = (head[0], chain.at + length);
        if fragments > 0 && chain.offset != 0 {
            break;
        }
    }
    Ok(chain)
}

fn transport(packet: &mut Packet, payload: &[u8]) -> Result<(), ()> {
    packet.kind = Kind::Flow;
    let (icmp, echo, errors): (u8, [u8; 2], &[u8]) =
        if packet.v6 { (58, [128, 129], &[1, 2, 3, 4]) } else { (1, [8, 0], &[3, 4, 11, 12]) };
    let need = match packet.protocol {
        6 => 20,
        17 | 136 | 1 | 58 => 8,
        132 => 12,
        _ => return Ok(()),
    };
    if payload.len() < need {
        return Err(());
    }
    match packet.protocol {
        1 | 58 => {
            packet.icmp = [payload[0], payload[1]];
            if packet.protocol == icmp {
                if echo.contains(&payload[0]) {
                    packet.ports = [u16_at(payload, 4); 2];
                } else {
                    packet.kind = if errors.contains(&payload[0]) { Kind::Error } else { Kind::Stateless };
                }
            }
        }
        protocol => {
            packet.ports = [u16_at(payload, 0), u16_at(payload, 2)];
            if protocol == 6 {
                let header = usize::from(payload[12] >> 4) * 4;
                if header < 20 || header > payload.len() {
                    return Err(());
                }
                packet.tcp_flags = payload[13];
                packet.sequence = u32_at(payload, 4);
                packet.acknowledgement = u32_at(payload, 8);
            }
        }
    }
    Ok(())
}

/// `body` is the whole packet, as far as the frame goes; the message begins at `at`.
fn quoted(packet: &Packet, body: &[u8], at: usize) -> Option<Box<Quoted>> {
    if packet.kind != Kind::Error {
        return None;
    }
    let inner = body.get(at + 8..)?;
    let (source, destination, protocol, ports_at) = if packet.v6 {
        let header = inner.get(..40).filter(|header| header[0] >> 4 == 6)?;
        let chain = extensions(inner, 40, header[6]).ok().filter(|chain| chain.offset == 0)?;
        let address = |at: usize| -> [u8; 16] { header[at..at + 16].try_into().expect("an address") };
        (address(8), address(24), chain.protocol, chain.at)
    } else {
        let header = inner.get(..20).filter(|header| header[0] >> 4 == 4 && header[0] & 15 >= 5)?;
        if u16_at(header, 6) & 0x1fff != 0 {
            return None;
        }
        let address = |at: usize| -> [u8; 16] { wide4(header[at..at + 4].try_into().expect("an address")) };
        (address(12), address(16), header[9], usize::from(header[0] & 15) * 4)
    };
    let echo: (u8, [u8; 2]) = if packet.v6 { (58, [128, 129]) } else { (1, [8, 0]) };
    let ports = if matches!(protocol, 6 | 17 | 132 | 136) {
        let ports = inner.get(ports_at..ports_at + 4)?;
        [u16_at(ports, 0), u16_at(ports, 2)]
    } else if protocol == echo.0 {
        let message = inner.get(ports_at..ports_at + 6)?;
        if !echo.1.contains(&message[0]) {
            return None;
        }
        [u16_at(message, 4); 2]
    } else {
        [0; 2]
    };
    Some(Box::new(Quoted { source, destination, protocol, ports }))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
