//! A small synchronous client of rtnetlink. Every look is a full dump; notifications are [`super::watch`]'s business.

mod addresses;
mod links;
mod routes;
mod tc;

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub(super) use self::tc::Hook;
pub(crate) use self::{
    links::{Link, LinkTable},
    routes::{HostRoute, Route},
};

/// A socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").finish_non_exhaustive()
    }
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without it the kernel ignores the filters of a route dump; kernels since 4.20 have it.
        socket.set_netlink_get_strict_chk(true)?;
        socket.set_ext_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// A dump, again if it was interrupted by a change.
    fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.dump_wanted(message, &|_| true)
    }

    fn dump_wanted(
        &mut self,
        message: &RouteNetlinkMessage,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut last = None;
        for _ in 0..5 {
            match self.request_wanted(message, NLM_F_REQUEST | NLM_F_DUMP, wanted) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => last = Some(error),
                done => return done,
            }
        }
        Err(last.unwrap_or_else(|| io::Error::other("dump interrupted")))
    }

    /// Sends one request and collects the answers.
    fn request(&mut self, message: &RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request_wanted(message, flags, &|_| true)
    }

    fn request_wanted(
        &mut self,
        message: &RouteNetlinkMessage,
        flags: u16,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message.clone()));
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        self.answers(flags & NLM_F_DUMP == NLM_F_DUMP, flags & NLM_F_ACK != 0, wanted)
    }

    fn answers(
        &mut self,
        dump: bool,
        ack: bool,
        wanted: &dyn Fn(&[u8]) -> bool,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some(length) = message_length(rest) {
                let (bytes, next) = rest.split_at(length);
                rest = next.get(length.next_multiple_of(4) - length..).unwrap_or_default();
                if !wanted(bytes) && is_route(bytes) {
                    interrupted |= flags(bytes) & NLM_F_DUMP_INTR != 0;
                    continue;
                }
                let message = match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes) {
                    Ok(message) => message,
                    Err(error) => {
                        // One odd interface must not blind us for all others.
                        tracing::debug!("a netlink message that is not understood: {error}");
                        continue;
                    }
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) => return Ok(answers),
                    NetlinkPayload::Done(_) if interrupted => return Err(io::ErrorKind::Interrupted.into()),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(answer) => {
                        answers.push(answer);
                        if !dump && !ack {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

fn is_route(message: &[u8]) -> bool {
    // include/uapi/linux/rtnetlink.h
    const RTM_NEWROUTE: u16 = 24;
    half(message, 4) == Some(RTM_NEWROUTE)
}

/// `nlmsg_flags`.
fn flags(message: &[u8]) -> u16 {
    half(message, 6).unwrap_or(0)
}

fn half(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*message.get(at..)?.first_chunk()?))
}

/// Length of the first message in a datagram.
fn message_length(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    (16..=bytes.len()).contains(&length).then_some(length)
}
