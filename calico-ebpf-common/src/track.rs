//! What the packets of a connection do to its entry, and when the entry is forgotten.

use crate::{
    abi::{CONN_VERSION, Conn, Timeouts, conn_flags, tcp_state},
    packet::{Transport, protocol, tcp_flags},
};

/// How far beyond the responder's SYN the opener's acknowledgement may be and still prove that the opener got it: what
/// the responder can have sent meanwhile. A forged source would have to guess one in 4096.
const SYN_ACK_WINDOW: u32 = 1 << 20;

/// The part of an entry that packets change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// See [`conn_flags`].
    pub flags: u8,
    /// See [`tcp_state`].
    pub tcp: u8,
    /// See [`Conn::syn_ack`].
    pub syn_ack: u32,
}

impl State {
    /// Of an entry.
    #[inline(always)]
    #[must_use]
    pub const fn of(conn: &Conn) -> Self {
        Self { flags: conn.flags, tcp: conn.tcp, syn_ack: conn.syn_ack }
    }

    /// The state of a new entry whose first packet came from the opener.
    #[inline(always)]
    #[must_use]
    pub const fn new(flags: u8, protocol: u8, transport: &Transport) -> Self {
        let tcp = if protocol != protocol::TCP {
            0
        } else if opens(transport) {
            tcp_state::SYN
        } else {
            tcp_state::MIDSTREAM
        };
        Self { flags, tcp, syn_ack: 0 }
    }

    /// The state after a packet; the same one as before for nearly all of them. `genuine`: the opener is who it says it is.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, protocol: u8, transport: &Transport, from_opener: bool, genuine: bool) -> Self {
        let mut next = self;
        if protocol == protocol::TCP {
            let flags = transport.tcp_flags;
            if flags & tcp_flags::RST != 0 {
                next.tcp |= tcp_state::RST;
            }
            if flags & tcp_flags::FIN != 0 {
                next.tcp |= if from_opener { tcp_state::FIN_OPENER } else { tcp_state::FIN_RESPONDER };
            }
            if flags & tcp_flags::SYN != 0 && flags & tcp_flags::ACK != 0 && !from_opener {
                next.tcp |= tcp_state::SYN_ACK;
                next.syn_ack = transport.sequence.wrapping_add(1);
            }
        }
        if next.flags & conn_flags::ASSURED == 0 {
            if !from_opener {
                next.flags |= conn_flags::ANSWERED;
                if genuine && protocol != protocol::TCP {
                    next.flags |= conn_flags::ASSURED;
                }
            } else if next.flags & conn_flags::ANSWERED != 0 && next.proves(protocol, transport) {
                next.flags |= conn_flags::ASSURED;
            }
        }
        next
    }

    /// Whether this packet of the opener, which came after an answer, shows that the opener got the answer.
    #[inline(always)]
    const fn proves(&self, protocol: u8, transport: &Transport) -> bool {
        if protocol != protocol::TCP {
            return true;
        }
        if self.tcp & tcp_state::MIDSTREAM != 0 {
            // To a forged segment the answer is a reset.
            return self.tcp & tcp_state::RST == 0;
        }
        self.tcp & tcp_state::SYN_ACK != 0
            && transport.tcp_flags & tcp_flags::ACK != 0
            && transport.acknowledgement.wrapping_sub(self.syn_ack) < SYN_ACK_WINDOW
    }
}

/// Whether a TCP packet opens a connection.
#[inline(always)]
#[must_use]
pub const fn opens(transport: &Transport) -> bool {
    transport.tcp_flags & (tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST) == tcp_flags::SYN
}

/// Whether a TCP packet may be the first one seen of a connection, as netfilter has it: a SYN, or a segment in the middle.
/// What ends or answers a connection that nobody knows is of none.
#[inline(always)]
#[must_use]
pub const fn may_open(transport: &Transport) -> bool {
    const ALL: u8 = tcp_flags::SYN | tcp_flags::ACK | tcp_flags::RST | tcp_flags::FIN;
    matches!(transport.tcp_flags & ALL, tcp_flags::SYN | tcp_flags::ACK)
}

/// Whether the entry is of a TCP connection that is over: a new SYN starts another one, judged anew.
#[inline(always)]
#[must_use]
pub const fn is_over(tcp: u8) -> bool {
    const FINS: u8 = tcp_state::FIN_OPENER | tcp_state::FIN_RESPONDER;
    tcp & FINS == FINS || tcp & tcp_state::RST != 0
}

/// Ticks without a packet after which the entry is forgotten.
#[inline(always)]
#[must_use]
pub const fn timeout(protocol: u8, flags: u8, tcp: u8, timeouts: &Timeouts) -> u32 {
    const FINS: u8 = tcp_state::FIN_OPENER | tcp_state::FIN_RESPONDER;
    match protocol {
        protocol::TCP => {
            if tcp & tcp_state::RST != 0 {
                timeouts.tcp_reset
            } else if tcp & FINS == FINS {
                timeouts.tcp_fin
            } else if flags & conn_flags::ASSURED != 0 {
                timeouts.tcp_established
            } else {
                timeouts.tcp_syn
            }
        }
        protocol::UDP => timeouts.udp,
        protocol::ICMP | protocol::ICMPV6 => timeouts.icmp,
        _ => timeouts.generic,
    }
}

/// Whether the entry has been idle too long at `now` (jiffies). Entries of another version of the program never are:
/// that one looks after them.
#[inline(always)]
#[must_use]
pub const fn is_expired(conn: &Conn, protocol: u8, now: u32, timeouts: &Timeouts) -> bool {
    let (opener, responder) = (now.wrapping_sub(conn.seen[0]), now.wrapping_sub(conn.seen[1]));
    // Another processor may have stamped the entry a tick after `now` was read.
    let (opener, responder) = (later_is_zero(opener), later_is_zero(responder));
    let idle = if opener < responder { opener } else { responder };
    conn.version == CONN_VERSION && idle > timeout(protocol, conn.flags, conn.tcp, timeouts)
}

#[inline(always)]
const fn later_is_zero(age: u32) -> u32 {
    if age > u32::MAX - 1000 { 0 } else { age }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts {
        tcp_syn: 20,
        tcp_established: 3600,
        tcp_fin: 30,
        tcp_reset: 40,
        udp: 60,
        icmp: 5,
        generic: 600,
        reserved: 0,
    };

    fn tcp(tcp_flags: u8, sequence: u32, acknowledgement: u32) -> Transport {
        Transport { tcp_flags, sequence, acknowledgement, ..Transport::default() }
    }

    const SYN: u8 = tcp_flags::SYN;
    const ACK: u8 = tcp_flags::ACK;
    const FIN: u8 = tcp_flags::FIN;
    const RST: u8 = tcp_flags::RST;

    fn handshake() -> State {
        let state = State::new(0, protocol::TCP, &tcp(SYN, 1, 0));
        let state = state.after(protocol::TCP, &tcp(SYN | ACK, 500, 2), false, false);
        state.after(protocol::TCP, &tcp(ACK, 2, 501), true, false)
    }

    fn idle_limit(state: State) -> u32 {
        timeout(protocol::TCP, state.flags, state.tcp, &TIMEOUTS)
    }

    #[test]
    fn a_handshake_assures() {
        let state = handshake();
        assert_eq!(state.flags, conn_flags::ANSWERED | conn_flags::ASSURED);
        assert_eq!(state.tcp, tcp_state::SYN | tcp_state::SYN_ACK);
        assert_eq!(idle_limit(state), 3600);
    }

    #[test]
    fn a_forged_acknowledgement_does_not() {
        let state = State::new(0, protocol::TCP, &tcp(SYN, 1, 0));
        let before_answer = state.after(protocol::TCP, &tcp(ACK, 2, 501), true, false);
        assert_eq!(before_answer.flags, 0);
        let answered = state.after(protocol::TCP, &tcp(SYN | ACK, 500, 2), false, false);
        let forged = answered.after(protocol::TCP, &tcp(ACK, 2, 77), true, false);
        assert_eq!(forged.flags & conn_flags::ASSURED, 0);
        assert_eq!(idle_limit(forged), 20);
        let again = answered.after(protocol::TCP, &tcp(SYN, 1, 0), true, false);
        assert_eq!(again.flags & conn_flags::ASSURED, 0);
    }

    #[test]
    fn what_may_open() {
        let may = |flags| may_open(&tcp(flags, 1, 1));
        assert!(may(SYN) && may(ACK) && may(ACK | 8 | 0xc0) && may(SYN | 0xc0));
        for flags in [0, FIN, FIN | ACK, RST, RST | ACK, SYN | ACK, SYN | FIN, SYN | RST, 0x3f] {
            assert!(!may(flags), "{flags:#x}");
        }
    }

    #[test]
    fn opened_from_both_sides_at_once() {
        let state = State::new(0, protocol::TCP, &tcp(SYN, 1, 0));
        let state = state.after(protocol::TCP, &tcp(SYN, 500, 0), false, false);
        let state = state.after(protocol::TCP, &tcp(SYN | ACK, 1, 501), true, false);
        assert_eq!(state.flags & conn_flags::ASSURED, 0, "it may have guessed");
        let state = state.after(protocol::TCP, &tcp(SYN | ACK, 500, 2), false, false);
        let state = state.after(protocol::TCP, &tcp(ACK, 2, 501), true, false);
        assert_ne!(state.flags & conn_flags::ASSURED, 0);
        assert!(!is_over(state.tcp));
    }

    #[test]
    fn udp_is_assured_when_the_opener_goes_on() {
        let none = Transport::default();
        let state = State::new(0, protocol::UDP, &none);
        assert_eq!(state.after(protocol::UDP, &none, true, false).flags, 0);
        let answered = state.after(protocol::UDP, &none, false, false);
        assert_eq!(answered.flags, conn_flags::ANSWERED);
        assert_eq!(answered.after(protocol::UDP, &none, true, false).flags, conn_flags::ANSWERED | conn_flags::ASSURED);
    }

    #[test]
    fn what_a_known_opener_asks_is_assured_by_the_answer() {
        let none = Transport::default();
        let state = State::new(0, protocol::UDP, &none);
        assert_eq!(state.after(protocol::UDP, &none, true, true).flags, 0);
        let answered = state.after(protocol::UDP, &none, false, true);
        assert_eq!(answered.flags, conn_flags::ANSWERED | conn_flags::ASSURED);
        let state = State::new(0, protocol::TCP, &tcp(SYN, 1, 0));
        assert_eq!(state.after(protocol::TCP, &tcp(SYN | ACK, 500, 2), false, true).flags, conn_flags::ANSWERED);
    }

    #[test]
    fn a_forged_segment_in_the_middle_assures_nothing() {
        let state = State::new(0, protocol::TCP, &tcp(ACK, 1, 1));
        let reset = state.after(protocol::TCP, &tcp(RST, 1, 0), false, false);
        assert_eq!(reset.after(protocol::TCP, &tcp(ACK, 1, 1), true, false).flags & conn_flags::ASSURED, 0);
        let answered = state.after(protocol::TCP, &tcp(ACK, 1, 1), false, false);
        assert_ne!(answered.after(protocol::TCP, &tcp(ACK, 1, 1), true, false).flags & conn_flags::ASSURED, 0);
    }

    #[test]
    fn closing() {
        let one = handshake().after(protocol::TCP, &tcp(FIN | ACK, 2, 501), true, false);
        assert!(!is_over(one.tcp));
        assert_eq!(idle_limit(one), 3600);
        let both = one.after(protocol::TCP, &tcp(FIN | ACK, 501, 3), false, false);
        assert!(is_over(both.tcp));
        assert_eq!(idle_limit(both), 30);
        let reset = handshake().after(protocol::TCP, &tcp(RST, 0, 0), false, false);
        assert!(is_over(reset.tcp));
        assert_eq!(idle_limit(reset), 40);
    }

    #[test]
    fn idle_time_is_the_younger_leg_and_wraps() {
        let mut conn = Conn { version: CONN_VERSION, seen: [u32::MAX - 50, u32::MAX - 10], ..Conn::default() };
        assert!(!is_expired(&conn, protocol::UDP, 49, &TIMEOUTS));
        assert!(is_expired(&conn, protocol::UDP, 50, &TIMEOUTS));
        conn.seen = [101, 0];
        assert!(!is_expired(&conn, protocol::UDP, 100, &TIMEOUTS), "a tick ahead is not an age of 2^32");
        conn.version = CONN_VERSION + 1;
        assert!(!is_expired(&conn, protocol::UDP, 1 << 20, &TIMEOUTS));
    }
}
