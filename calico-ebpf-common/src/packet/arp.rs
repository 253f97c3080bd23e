//! ARP from a workload: whatever it asks for but its own addresses, the answer is the host side's MAC address.

use bytemuck::{Pod, Zeroable};

use super::{ETHERNET_BYTES, EthernetHeader, ether_type};

/// Offset in the frame.
pub const ARP_AT: usize = ETHERNET_BYTES;

const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// An ARP packet for Ethernet and IPv4.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ArpPacket {
    /// 1: Ethernet.
    pub hardware: [u8; 2],
    /// IPv4's EtherType.
    pub network: [u8; 2],
    /// 6 and 4: lengths of the addresses.
    pub lengths: [u8; 2],
    /// 1 request, 2 reply.
    pub operation: [u8; 2],
    /// Who sends it.
    pub sender_mac: [u8; 6],
    /// Who sends it.
    pub sender: [u8; 4],
    /// Of the one asked for.
    pub target_mac: [u8; 6],
    /// Who is asked for.
    pub target: [u8; 4],
}

/// A whole frame.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct ArpFrame {
    /// Ethernet.
    pub ethernet: EthernetHeader,
    /// ARP.
    pub arp: ArpPacket,
}

/// What an ARP packet wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// To know a MAC address.
    Request,
    /// To tell one: for the host's stack, which asked.
    Reply,
    /// To find out whether an address is in use, or to announce its own: nobody answers.
    Probe,
    /// Not ARP for Ethernet and IPv4, or a sender that is not who sends the frame.
    Bad,
}

impl ArpFrame {
    /// A question to everybody on the link for the MAC address of `target`; from `[0, 0, 0, 0]` a probe (RFC 5227,
    /// section 2.1.1).
    #[must_use]
    pub const fn request(mac: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Self {
        Self {
            ethernet: EthernetHeader { destination: [0xff; 6], source: mac, ether_type: ether_type::ARP },
            arp: ArpPacket {
                hardware: [0, 1],
                network: ether_type::IPV4,
                lengths: [6, 4],
                operation: REQUEST,
                sender_mac: mac,
                sender,
                target_mac: [0; 6],
                target,
            },
        }
    }
}

impl ArpPacket {
    /// What it wants, in a frame from this MAC address. Whether the sender's address is its own is yet to be checked.
    #[inline(always)]
    #[must_use]
    pub fn form(&self, frame_source: [u8; 6]) -> Form {
        if self.hardware != [0, 1]
            || self.network != ether_type::IPV4
            || self.lengths != [6, 4]
            || self.sender_mac != frame_source
        {
            Form::Bad
        } else if self.operation == REPLY {
            Form::Reply
        } else if self.operation != REQUEST {
            Form::Bad
        } else if self.sender == [0; 4] || self.sender == self.target {
            Form::Probe
        } else {
            Form::Request
        }
    }

    /// The answer: `mac` has the address asked for.
    #[inline(always)]
    #[must_use]
    pub const fn answer(&self, mac: [u8; 6]) -> ArpFrame {
        ArpFrame {
            ethernet: EthernetHeader { destination: self.sender_mac, source: mac, ether_type: ether_type::ARP },
            arp: Self {
                hardware: self.hardware,
                network: self.network,
                lengths: self.lengths,
                operation: REPLY,
                sender_mac: mac,
                sender: self.target,
                target_mac: self.sender_mac,
                target: self.sender,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDER: [u8; 6] = [2; 6];
    const ARP: ArpPacket = ArpPacket {
        hardware: [0, 1],
        network: [8, 0],
        lengths: [6, 4],
        operation: REQUEST,
        sender_mac: [2; 6],
        sender: [10, 0, 0, 1],
        target_mac: [0; 6],
        target: [169, 254, 1, 1],
    };

    #[test]
    fn forms() {
        assert_eq!(ARP.form(SENDER), Form::Request);
        assert_eq!(ArpPacket { operation: REPLY, ..ARP }.form(SENDER), Form::Reply);
        assert_eq!(ArpPacket { sender: [0; 4], ..ARP }.form(SENDER), Form::Probe);
        assert_eq!(ArpPacket { target: [10, 0, 0, 1], ..ARP }.form(SENDER), Form::Probe);
        assert_eq!(ArpPacket { sender_mac: [3; 6], ..ARP }.form(SENDER), Form::Bad);
        assert_eq!(ArpPacket { operation: [0, 3], ..ARP }.form(SENDER), Form::Bad);
        assert_eq!(ArpPacket { lengths: [6, 16], ..ARP }.form(SENDER), Form::Bad);
    }

    #[test]
    fn answer_swaps_the_ends() {
        let frame = ARP.answer([7; 6]);
        assert_eq!(frame.ethernet.destination, [2; 6]);
        assert_eq!(frame.ethernet.source, [7; 6]);
        assert_eq!(
            frame.arp,
            ArpPacket {
                operation: REPLY,
                sender_mac: [7; 6],
                sender: [169, 254, 1, 1],
                target_mac: [2; 6],
                target: [10, 0, 0, 1],
                ..ARP
            }
        );
    }
}
