//! What a workload sends.

use calico_ebpf_common::{
    abi::{
        DropReason, NO_SLOT, OpenerKind, Workload, account_opened_by, account_opened_to, conn_flags, host_action, role,
        workload_flags,
    },
    packet::{
        Cursor as _, EthernetHeader, Ip as _, Kind, Packet, V4, V6,
        arp::{ARP_AT, ArpPacket, Form},
        ether_type, nd, protocol,
    },
};

use crate::{
    established::{Env, Found, Opening, find, open, related},
    forward::{DROP, TO_STACK, answer, elsewhere, to_workload},
    fragments,
    maps::{INTERFACES, WORKLOADS},
    policy::judge_ends,
    skb::Skb,
    tables::{Located, Tables, active, locate},
    takeover,
};

/// UDP port of VXLAN: workloads may not send it, they could speak for other hosts.
const VXLAN_PORT: u16 = 4789;

#[inline(always)]
pub(crate) fn run(skb: &Skb, env: &Env) -> Result<i32, DropReason> {
    if skb.is_tagged() {
        return Err(DropReason::EtherType);
    }
    if skb.is_for_foreign_mac() {
        return Err(DropReason::ForeignMac);
    }
    skb.pull_headers();
    let ethernet: EthernetHeader = skb.near(0).ok_or(DropReason::Malformed)?;
    match ethernet.ether_type {
        ether_type::IPV4 => ip::<V4>(skb, env, &ethernet),
        ether_type::IPV6 => ip::<V6>(skb, env, &ethernet),
        ether_type::ARP => arp(skb, env, &ethernet),
        _ => Err(DropReason::EtherType),
    }
}

#[inline(always)]
fn ip<F: Sender>(skb: &Skb, env: &Env, ethernet: &EthernetHeader) -> Result<i32, DropReason> {
    let packet = F::parse(skb, skb.length())?;
    let mut foreign = false;
    if matches!(packet.kind, Kind::Flow) {
        let (key, source_is_a) = packet.key();
        match find::<F>(env, &packet, &key, source_is_a)? {
            Found::Hit(hit) => {
                let source = hit.source.ok_or(DropReason::NoWorkload)?;
                check_mac(source, ethernet)?;
                if hit.flags & conn_flags::VIA_STACK != 0 {
                    return to_stack(env, &packet, hit.opener, hit.from_opener, hit.destination.is_none());
                }
                return match hit.destination {
                    Some(destination) => {
                        fragments::first_passed(env, &packet);
                        to_workload(skb, &packet, destination)
                    }
                    None => {
                        fragments::first_passed(env, &packet);
                        elsewhere(env, skb, &packet)
                    }
                };
            }
            Found::Foreign => foreign = true,
            Found::Miss => {}
        }
    }
    first::<F>(skb, env, ethernet, &packet, foreign)
}

/// A connection that takes the stack. What goes to the host itself still has to be welcome there.
#[inline(always)]
fn to_stack<F: Tables>(
    env: &Env,
    packet: &Packet<F>,
    opener: u8,
    from_opener: bool,
    leaves: bool,
) -> Result<i32, DropReason> {
    if leaves && from_opener && opener == OpenerKind::Workload as u8 {
        host_welcomes::<F>(env, packet, &locate::<F>(&packet.destination, env.generation))?;
    }
    fragments::first_passed(env, packet);
    Ok(TO_STACK)
}

/// `defaultEndpointToHostAction`, where the packet is for the host. Broadcasts and multicasts are: every socket of the
/// host that is bound to no address gets them.
#[inline(always)]
fn host_welcomes<F: Tables>(env: &Env, packet: &Packet<F>, destination: &Located) -> Result<bool, DropReason> {
    let to_host =
        destination.host || F::is_host_scope(&packet.destination) || F::is_multicast(&packet.destination);
    if to_host && env.root.settings(env.generation).host_action == host_action::DROP {
        return Err(DropReason::EndpointToHost);
    }
    Ok(to_host)
}

/// A packet that no connection lets pass.
#[inline(always)]
fn first<F: Sender>(
    skb: &Skb,
    env: &Env,
    ethernet: &EthernetHeader,
    packet: &Packet<F>,
    foreign: bool,
) -> Result<i32, DropReason> {
    let (slot, workload) = sender(env)?;
    check_mac(workload, ethernet)?;
    let source = locate::<F>(&packet.source, env.generation);
    if let Some(action) = F::of_link(skb, env, ethernet, packet, workload, source.slot == slot)? {
        return Ok(action);
    }
    if source.slot != slot
        && !(workload.flags & workload_flags::SPOOF != 0 && F::may_spoof(slot, &packet.source))
    {
        return Err(DropReason::SpoofedSource);
    }
    learn_mac(slot, workload, ethernet);
    if foreign {
        // The address was another's when the entry was made.
        fragments::forget_conn::<F>(packet);
    }
    if packet.protocol == protocol::IPIP
        || packet.protocol == protocol::UDP && packet.transport.destination_port == VXLAN_PORT
    {
        return Err(DropReason::Encapsulated);
    }
    if matches!(packet.kind, Kind::LaterFragment) {
        return fragments::follow(env, packet).map(|()| TO_STACK);
    }

    let destination = locate::<F>(&packet.destination, env.generation);
    if matches!(packet.kind, Kind::IcmpError) {
        if let Some(conn) = related::<F>(env, packet, F::quoted(skb, packet.transport_at))
            && conn.from == slot
        {
            return match active(conn.to) {
                Some(to) if !conn.via_stack => to_workload(skb, packet, to),
                None if !conn.via_stack && conn.to == NO_SLOT => elsewhere(env, skb, packet),
                _ => Ok(TO_STACK),
            };
        }
    }

    let receiver = match destination.slot {
        NO_SLOT => None,
        slot => Some(active(slot).ok_or(DropReason::NoInterface)?),
    };
    let ports = packet.transport.rule_ports(packet.protocol);
    let mut from_opener = true;
    let mut opening = Opening {
        kind: OpenerKind::Workload,
        account: account_opened_by(slot),
        flags: 0,
        slots: [slot, destination.slot],
        workloads: [Some(workload), receiver],
        rules: [0; 2],
        from_opener: true,
    };
    match judge_ends(
        env.generation,
        [Some(workload), receiver],
        [source.class, destination.class],
        packet.protocol,
        ports,
    ) {
        Ok(rules) => opening.rules = rules,
        Err(reason) => {
            if !takeover::applies(env, packet) {
                return Err(reason);
            }
            // It may be an answer in a connection older than this data path.
            opening.rules = judge_ends(
                env.generation,
                [receiver, Some(workload)],
                [destination.class, source.class],
                packet.protocol,
                [ports[1], ports[0]],
            )
            .map_err(|_| reason)?;
            from_opener = false;
        }
    }
    let to_host = receiver.is_none() && from_opener && host_welcomes::<F>(env, packet, &destination)?;
    if matches!(packet.kind, Kind::Flow) && !F::is_multicast(&packet.destination) {
        if !from_opener {
            opening.slots = [destination.slot, slot];
            opening.workloads = [receiver, Some(workload)];
            opening.from_opener = false;
            if receiver.is_none() {
                opening.kind = OpenerKind::Outside;
                opening.account = account_opened_to(slot);
            } else {
                opening.account = account_opened_by(destination.slot);
            }
        }
        if receiver.is_none() {
            // Only the stack knows whether it translates: the first packet shows.
            opening.flags = conn_flags::VIA_STACK | if to_host { 0 } else { conn_flags::PROBING };
        }
        open::<F>(env, packet, &opening)?;
    }
    fragments::first_passed(env, packet);
    match receiver {
        Some(receiver) => to_workload(skb, packet, receiver),
        None => Ok(TO_STACK),
    }
}

/// The workload whose interface this is.
#[inline(always)]
fn sender(env: &Env) -> Result<(u32, &'static Workload), DropReason> {
    // SAFETY: read within this run of the program, which the kernel's grace period covers.
    let interface = unsafe { INTERFACES.get(&env.ifindex) }.ok_or(DropReason::NoWorkload)?;
    let workload = active(interface.slot).ok_or(DropReason::NoWorkload)?;
    if interface.role != role::WORKLOAD || workload.ifindex != env.ifindex {
        return Err(DropReason::NoWorkload);
    }
    Ok((interface.slot, workload))
}

#[inline(always)]
fn check_mac(workload: &Workload, ethernet: &EthernetHeader) -> Result<(), DropReason> {
    if workload.flags & workload_flags::MAC_CHECK != 0 && ethernet.source != workload.mac {
        return Err(DropReason::SpoofedMac);
    }
    Ok(())
}

/// Remembers the MAC address of a workload that has none configured: who is to be given packets.
#[inline(always)]
fn learn_mac(slot: u32, workload: &Workload, ethernet: &EthernetHeader) {
    if workload.flags & workload_flags::MAC_CHECK == 0
        && workload.mac == [0; 6]
        && ethernet.source[0] & 1 == 0
        && let Some(workload) = WORKLOADS.get_ptr_mut(slot)
    {
        // SAFETY: the slot is in the map.
        unsafe { (*workload).mac = ethernet.source };
    }
}

#[inline(always)]
fn arp(skb: &Skb, env: &Env, ethernet: &EthernetHeader) -> Result<i32, DropReason> {
    let (slot, workload) = sender(env)?;
    check_mac(workload, ethernet)?;
    let arp: ArpPacket = skb.near(ARP_AT).ok_or(DropReason::Arp)?;
    let form = arp.form(ethernet);
    if matches!(form, Form::Bad) {
        return Err(DropReason::Arp);
    }
    if arp.sender != [0; 4] && locate::<V4>(&arp.sender, env.generation).slot != slot {
        return Err(DropReason::Arp);
    }
    match form {
        Form::Bad => Err(DropReason::Arp),
        // Not a word: the address would look taken.
        Form::Probe => Ok(DROP),
        Form::Reply => Ok(TO_STACK),
        Form::Request if locate::<V4>(&arp.target, env.generation).slot == slot => Ok(DROP),
        Form::Request => {
            learn_mac(slot, workload, ethernet);
            if skb.replace(&arp.answer(workload.host_mac)) { Ok(answer(skb)) } else { Err(DropReason::Arp) }
        }
    }
}

/// What the IP versions do apart.
pub(crate) trait Sender: Tables {
    /// Messages of the link: `None` for everything that is judged.
    fn of_link(
        skb: &Skb,
        env: &Env,
        ethernet: &EthernetHeader,
        packet: &Packet<Self>,
        workload: &Workload,
        own: bool,
    ) -> Result<Option<i32>, DropReason>
    where
        Self: Sized;
}

impl Sender for V4 {
    #[inline(always)]
    fn of_link(
        _: &Skb,
        _: &Env,
        _: &EthernetHeader,
        _: &Packet<Self>,
        _: &Workload,
        _: bool,
    ) -> Result<Option<i32>, DropReason> {
        Ok(None)
    }
}

impl Sender for V6 {
    #[inline(always)]
    fn of_link(
        skb: &Skb,
        env: &Env,
        ethernet: &EthernetHeader,
        packet: &Packet<Self>,
        workload: &Workload,
        own: bool,
    ) -> Result<Option<i32>, DropReason> {
        let form = nd::form(packet);
        if matches!(form, nd::Form::Ordinary) {
            return Ok(None);
        }
        if matches!(form, nd::Form::Bad) || !own && !nd::may_send(&packet.source) {
            return Err(DropReason::Nd);
        }
        if matches!(form, nd::Form::ForHost) {
            return Ok(Some(TO_STACK));
        }
        let target = nd::target(skb, packet).ok_or(DropReason::Nd)?;
        let of_sender = same_workload(env, locate::<V6>(&target, env.generation).slot);
        if matches!(form, nd::Form::Advertisement) {
            // It may speak for itself only, and to the host only.
            let to_link = nd::is_link_scope(&packet.destination) || V6::is_multicast(&packet.destination);
            let to_host = to_link || locate::<V6>(&packet.destination, env.generation).host;
            return if !to_host {
                Ok(None)
            } else if of_sender || nd::is_link_scope(&target) {
                Ok(Some(TO_STACK))
            } else {
                Err(DropReason::Nd)
            };
        }
        // Not a word to who asks whether an address is taken, nor about its own.
        if nd::is_unspecified(&packet.source) || of_sender || target == packet.source {
            return Ok(Some(DROP));
        }
        let frame = nd::AdvertisementFrame::new(ethernet.source, packet.source, target, workload.host_mac);
        if skb.replace(&frame) { Ok(Some(answer(skb))) } else { Err(DropReason::Nd) }
    }
}

/// Whether the slot is that of the workload whose interface this is.
#[inline(always)]
fn same_workload(env: &Env, slot: u32) -> bool {
    active(slot).is_some_and(|workload| workload.ifindex == env.ifindex)
}

