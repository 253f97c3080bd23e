//! Whether the stack translates connections of workloads.

use std::{collections::BTreeSet, net::IpAddr};

use calico_ebpf_common::abi::{Conn, NO_SLOT, OpenerKind, conn_flags};

use super::{error::Result, view::View};

/// Whether any workload has a connection to elsewhere (not to the host, whose addresses these are) that takes the stack,
/// which may translate it.
pub(crate) fn any(view: &View, host_addresses: &BTreeSet<IpAddr>) -> Result<bool> {
    let may_be = |a: IpAddr, b: IpAddr, conn: &Conn| {
        let destination = if conn.flags & conn_flags::OPENER_IS_A != 0 { b } else { a };
        conn.opener == OpenerKind::Workload as u8
            && conn.ends[1].slot == NO_SLOT
            && conn.flags & conn_flags::VIA_STACK != 0
            && !host_addresses.contains(&destination)
    };
    Ok(view.connections4()?.iter().any(|(key, conn)| may_be(key.addr_a.into(), key.addr_b.into(), conn))
        || view.connections6()?.iter().any(|(key, conn)| may_be(key.addr_a.into(), key.addr_b.into(), conn)))
}
