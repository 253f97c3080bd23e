//! Tells that something changed: links, addresses, routes, filters. What changed is for a new look to find out.

use std::{fmt, future::poll_fn, io, task::Poll};

use futures_util::FutureExt as _;
use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

// Message types and multicast groups: include/uapi/linux/rtnetlink.h.
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_DELQDISC: u16 = 37;
const RTM_DELTFILTER: u16 = 45;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_TC: u32 = 4;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RT_TABLE_MAIN: u8 = 254;

/// Room for notifications that wait: a full table of a routing daemon may come at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Listens to the kernel's notifications.
pub struct Watcher {
    sockets: Vec<TokioSocket>,
    buffer: Vec<u8>,
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher").finish_non_exhaustive()
    }
}

impl Watcher {
    /// Starts listening, in the network namespace of the calling thread. Call it before the first look, so that nothing
    /// is missed. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn new() -> io::Result<Self> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_TC,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ];
        let mut sockets = vec![listen(&groups, false)?];
        match listen(&[RTNLGRP_LINK], true) {
            Ok(socket) => sockets.push(socket),
            Err(error) => {
                tracing::debug!("changes of workloads' MAC addresses are not told (CAP_NET_BROADCAST): {error}");
            }
        }
        Ok(Self { sockets, buffer: Vec::with_capacity(64 << 10) })
    }

    /// Waits for the next change that may matter. Cancel safe. Several changes at once are one; lost notifications count
    /// as a change.
    ///
    /// # Errors
    /// If the socket breaks.
    pub async fn changed(&mut self) -> io::Result<()> {
        while !self.receive().await? {}
        // What else is waiting belongs to the same change.
        while let Some(more) = self.receive().now_or_never() {
            more?;
        }
        Ok(())
    }

    /// One datagram; whether it matters.
    async fn receive(&mut self) -> io::Result<bool> {
        let Self { sockets, buffer } = self;
        buffer.clear();
        let received = poll_fn(|context| {
            let mut polled = sockets.iter_mut().map(|socket| socket.poll_recv(context, buffer));
            polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
        });
        match received.await {
            Ok(()) => Ok(matters(buffer)),
            // More than the socket can hold: the next look sees it all.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

/// `everywhere`: also in the other network namespaces that have an id here, as those of the other ends of veths do.
fn listen(groups: &[u32], everywhere: bool) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    // More than the limit for ordinary users needs privilege; less only means an overrun sooner.
    let _ = socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER);
    if everywhere {
        socket.socket_mut().set_listen_all_namespaces(true)?;
    }
    let groups = groups.iter().fold(0, |all, group| all | 1 << (group - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    Ok(socket)
}

/// Whether a datagram has a message that a look should follow. Broken ones count.
fn matters(mut datagram: &[u8]) -> bool {
    while let Some((length, rest)) = datagram.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let (Some(kind), true) = (rest.first_chunk::<2>(), (16..=datagram.len()).contains(&length)) else {
            return true;
        };
        let payload = datagram.get(16..length).unwrap_or_default();
        let relevant = match u16::from_ne_bytes(*kind) {
            RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR | RTM_DELQDISC | RTM_DELTFILTER => true,
            RTM_NEWROUTE | RTM_DELROUTE => route_matters(payload),
            _ => false,
        };
        if relevant {
            return true;
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Default routes (they say which interfaces are uplinks) and host routes of the main table. A routing daemon's others
/// come by the thousand.
fn route_matters(message: &[u8]) -> bool {
    // struct rtmsg: family, dst_len, src_len, tos, table, ...
    message.get(4) == Some(&RT_TABLE_MAIN) && matches!(message.get(1), Some(0 | 32 | 128))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + payload.len() as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn only_host_and_default_routes_of_the_main_table_matter() {
        let route = |dst_len, table| message(RTM_NEWROUTE, &[2, dst_len, 0, 0, table, 0, 0, 0]);
        assert!(matters(&route(32, 254)));
        assert!(matters(&route(0, 254)));
        assert!(!matters(&route(24, 254)));
        assert!(!matters(&route(32, 255)));
        assert!(matters(&[route(24, 254), message(RTM_DELLINK, &[0; 16])].concat()));
        assert!(!matters(&[]));
    }
}
