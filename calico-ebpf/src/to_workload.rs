//! What the host's stack delivers to a workload.

use calico_ebpf_common::{
    abi::{
        ACCOUNT_HOST, DropReason, NO_RULE, NO_SLOT, OpenerKind, Workload, account_opened_by, account_opened_to,
        conn_flags, role,
    },
    packet::{Cursor as _, EthernetHeader, Kind, Packet, V4, V6, ether_type, nd, protocol},
    track,
};

use crate::{
    established::{Env, Found, Opening, find, open, related},
    forward::TO_STACK,
    fragments,
    maps::INTERFACES,
    policy::judge_ends,
    skb::Skb,
    tables::{Tables, active, locate},
    takeover,
};

#[inline(always)]
pub(crate) fn run(skb: &Skb, env: &Env) -> Result<i32, DropReason> {
    skb.pull_headers();
    let own = skb.ingress_ifindex() == 0;
    let ethernet: EthernetHeader = skb.near(0).ok_or(DropReason::Malformed)?;
    match ethernet.ether_type {
        ether_type::IPV4 => ip::<V4>(skb, env, own),
        ether_type::IPV6 => ip::<V6>(skb, env, own),
        // The host asks, or our own answer goes out.
        ether_type::ARP => Ok(TO_STACK),
        _ if own => Ok(TO_STACK),
        _ => Err(DropReason::EtherType),
    }
}

#[inline(always)]
fn ip<F: Receiver>(skb: &Skb, env: &Env, own: bool) -> Result<i32, DropReason> {
    let packet = match F::parse(skb, skb.length()) {
        Ok(packet) => packet,
        Err(_) if own => return Ok(TO_STACK),
        Err(reason) => return Err(reason),
    };
    if F::is_of_link(&packet) {
        return Ok(TO_STACK);
    }
    let mut foreign = false;
    if matches!(packet.kind, Kind::Flow) {
        let (key, source_is_a) = packet.key();
        match find::<F>(env, &packet, &key, source_is_a) {
            Ok(Found::Hit(_)) => {
                fragments::first_passed(env, &packet);
                return Ok(TO_STACK);
            }
            Ok(Found::Miss) => {}
            Ok(Found::Foreign) => foreign = true,
            // Policy has cut the connection; it has no say over the host's own packets.
            Err(_) if own => {}
            Err(reason) => return Err(reason),
        }
    }
    if own {
        by_host::<F>(env, &packet);
        return Ok(TO_STACK);
    }
    forwarded::<F>(skb, env, &packet, foreign).map(|()| TO_STACK)
}

/// The host's own: allowed, and its answers with it.
#[inline(always)]
fn by_host<F: Receiver>(env: &Env, packet: &Packet<F>) {
    if !matches!(packet.kind, Kind::Flow) || F::is_multicast(&packet.destination) {
        return;
    }
    // A segment in the middle of a connection makes none: policy may just have cut it.
    if packet.protocol == protocol::TCP && !track::opens(&packet.transport) && !takeover::applies(env, packet) {
        return;
    }
    let Ok((slot, workload)) = receiver(env) else { return };
    let opening = Opening {
        kind: OpenerKind::Host,
        account: ACCOUNT_HOST,
        flags: conn_flags::VIA_STACK,
        slots: [NO_SLOT, slot],
        workloads: [None, Some(workload)],
        rules: [NO_RULE; 2],
        from_opener: true,
    };
    // The host is never refused: without an entry the answers are judged.
    let _ = open::<F>(env, packet, &opening);
}

/// Somebody else's: judged.
#[inline(always)]
fn forwarded<F: Receiver>(skb: &Skb, env: &Env, packet: &Packet<F>, foreign: bool) -> Result<(), DropReason> {
    let (slot, workload) = receiver(env)?;
    if matches!(packet.kind, Kind::LaterFragment) {
        return fragments::follow(env, packet);
    }
    if matches!(packet.kind, Kind::IcmpError)
        && let Some(conn) = related::<F>(env, packet, F::quoted(skb, packet.transport_at))
        && conn.to == slot
    {
        return Ok(());
    }
    if foreign {
        fragments::forget_conn::<F>(packet);
    }
    let source = locate::<F>(&packet.source, env.generation);
    let destination = locate::<F>(&packet.destination, env.generation);
    let sender = match source.slot {
        NO_SLOT => None,
        slot => Some(active(slot).ok_or(DropReason::NoWorkload)?),
    };
    let ports = packet.transport.rule_ports(packet.protocol);
    let mut opening = Opening {
        kind: OpenerKind::Outside,
        account: account_opened_to(slot),
        flags: conn_flags::VIA_STACK,
        slots: [source.slot, slot],
        workloads: [sender, Some(workload)],
        rules: [0; 2],
        from_opener: true,
    };
    if sender.is_some() {
        opening.kind = OpenerKind::Workload;
        opening.account = account_opened_by(source.slot);
    }
    match judge_ends(
        env.generation,
        [sender, Some(workload)],
        [source.class, destination.class],
        packet.protocol,
        ports,
    ) {
        Ok(rules) => opening.rules = rules,
        Err(reason) => {
            if !takeover::applies(env, packet) {
                return Err(reason);
            }
            opening.rules = judge_ends(
                env.generation,
                [Some(workload), sender],
                [destination.class, source.class],
                packet.protocol,
                [ports[1], ports[0]],
            )
            .map_err(|_| reason)?;
            opening.kind = OpenerKind::Workload;
            opening.account = account_opened_by(slot);
            opening.slots = [slot, source.slot];
            opening.workloads = [Some(workload), sender];
            opening.from_opener = false;
        }
    }
    if matches!(packet.kind, Kind::Flow) && !F::is_multicast(&packet.destination) {
        open::<F>(env, packet, &opening)?;
    }
    fragments::first_passed(env, packet);
    Ok(())
}

/// The workload whose interface this is.
#[inline(always)]
fn receiver(env: &Env) -> Result<(u32, &'static Workload), DropReason> {
    // SAFETY: read within this run of the program, which the kernel's grace period covers.
    let interface = unsafe { INTERFACES.get(&env.ifindex) }.ok_or(DropReason::NoWorkload)?;
    let workload = active(interface.slot).ok_or(DropReason::NoWorkload)?;
    if interface.role != role::WORKLOAD || workload.ifindex != env.ifindex {
        return Err(DropReason::NoWorkload);
    }
    Ok((interface.slot, workload))
}

/// What the IP versions do apart.
trait Receiver: Tables {
    /// Neighbour discovery: the host's, or our own answer.
    fn is_of_link(packet: &Packet<Self>) -> bool
    where
        Self: Sized;
}

impl Receiver for V4 {
    #[inline(always)]
    fn is_of_link(_: &Packet<Self>) -> bool {
        false
    }
}

impl Receiver for V6 {
    #[inline(always)]
    fn is_of_link(packet: &Packet<Self>) -> bool {
        nd::is_of_link(packet)
    }
}
