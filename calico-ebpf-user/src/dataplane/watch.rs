//! Tells that something changed: links, addresses, routes, filters. What changed is for a new look to find out.

use std::{collections::HashSet, fmt, future::poll_fn, io, net::IpAddr, task::Poll};

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
const RT_TABLE_LOCAL: u8 = 255;
const RTN_LOCAL: u8 = 2;
const RTA_DST: u16 = 1;

/// Room for notifications that wait: a full table of a routing daemon may come at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Listens to the kernel's notifications.
pub struct Watcher {
    sockets: Vec<TokioSocket>,
    buffer: Vec<u8>,
    own: HashSet<IpAddr>,
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
        Ok(Self { sockets, buffer: Vec::with_capacity(64 << 10), own: HashSet::new() })
    }

    /// Of single addresses, routes to these matter. Those to others come by the hundred thousand where a routing daemon
    /// tells each workload of a cluster by itself.
    pub fn heed(&mut self, own: impl Iterator<Item = IpAddr>) {
        self.own.clear();
        self.own.extend(own);
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
        let Self { sockets, buffer, own } = self;
        buffer.clear();
        let received = poll_fn(|context| {
            let mut polled = sockets.iter_mut().map(|socket| socket.poll_recv(context, buffer));
            polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
        });
        match received.await {
            Ok(()) => Ok(matters(buffer, own)),
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
fn matters(mut datagram: &[u8], own: &HashSet<IpAddr>) -> bool {
    while let Some((length, rest)) = datagram.split_first_chunk::<4>() {
        let length = u32::from_ne_bytes(*length) as usize;
        let (Some(kind), true) = (rest.first_chunk::<2>(), (16..=datagram.len()).contains(&length)) else {
            return true;
        };
        let payload = datagram.get(16..length).unwrap_or_default();
        let relevant = match u16::from_ne_bytes(*kind) {
            RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR | RTM_DELQDISC | RTM_DELTFILTER => true,
            RTM_NEWROUTE | RTM_DELROUTE => route_matters(payload, own),
            _ => false,
        };
        if relevant {
            return true;
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

/// Default routes (they say which interfaces are uplinks) and routes to `own` addresses, in the main table; what becomes the host's
/// own.
fn route_matters(message: &[u8], own: &HashSet<IpAddr>) -> bool {
    // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, ...
    match (message.get(4), message.get(1)) {
        (Some(&RT_TABLE_MAIN), Some(0)) => true,
        (Some(&RT_TABLE_MAIN), Some(32 | 128)) => destination(message).is_some_and(|address| own.contains(&address)),
        (Some(&RT_TABLE_LOCAL), _) => message.get(7) == Some(&RTN_LOCAL),
        _ => false,
    }
}

/// Of a route to a single address.
fn destination(message: &[u8]) -> Option<IpAddr> {
    // Attributes follow struct rtmsg, which has 12 bytes.
    let mut attributes = message.get(12..)?;
    loop {
        let (length, rest) = attributes.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = attributes.get(4..length)?;
        if u16::from_ne_bytes(*kind) == RTA_DST {
            let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
            return v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from)).ok();
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
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

    fn route(dst_len: u8, table: u8, attributes: &[u8]) -> Vec<u8> {
        route_of(dst_len, table, 1, attributes)
    }

    fn route_of(dst_len: u8, table: u8, kind: u8, attributes: &[u8]) -> Vec<u8> {
        message(RTM_NEWROUTE, &[&[2, dst_len, 0, 0, table, 0, 0, kind, 0, 0, 0, 0], attributes].concat())
    }

    /// An attribute before it, and the destination.
    fn to(address: &[u8]) -> Vec<u8> {
        let attribute = |kind: u16, value: &[u8]| {
            [&(4 + value.len() as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat()
        };
        [attribute(15, &[254, 0, 0, 0]), attribute(RTA_DST, address)].concat()
    }

    #[test]
    fn default_routes_and_those_to_own_addresses_of_the_main_table_matter() {
        let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        let own = HashSet::from([IpAddr::from([10, 65, 0, 1]), IpAddr::from(v6)]);
        let matters = |datagram: &[u8]| matters(datagram, &own);
        assert!(matters(&route(32, 254, &to(&[10, 65, 0, 1]))));
        assert!(matters(&route(128, 254, &to(&v6))));
        assert!(matters(&route(0, 254, &[])));
        assert!(!matters(&route(32, 254, &to(&[10, 65, 0, 2]))));
        assert!(!matters(&route(32, 254, &[])), "broken");
        assert!(!matters(&route(24, 254, &to(&[10, 65, 0, 1]))));
        assert!(!matters(&route(32, 255, &to(&[10, 65, 0, 1]))));
        assert!(matters(&route_of(24, 255, RTN_LOCAL, &to(&[10, 66, 0, 0]))));
        assert!(matters(&[route(24, 254, &[]), message(RTM_DELLINK, &[0; 16])].concat()));
        assert!(!matters(&[]));
    }
}
