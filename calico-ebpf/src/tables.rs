//! The tables of each IP version, and what they say of an address.

use core::{arch::asm, ptr};

use aya_ebpf::btf_maps::lpm_trie::Key;
use calico_ebpf_common::{
    abi::{
        AddressEntry, Conn, DropReason, HOST, Interface, MARK_ASKED, MARK_SETTLED, MARK_TRANSLATED, NO_SLOT, SpoofKey4,
        SpoofKey6, Workload, ring_key, ring_stamp, role, settings_flags, workload_flags,
    },
    packet::{Cursor as _, ETHERNET_BYTES, IPV4_BYTES, Ip, Ipv4Header, V4, V6, ttl_decremented},
};

use crate::{
    maps::{ADDRESSES4, ADDRESSES6, CONNS4, CONNS6, INTERFACES, NETS6, RING4, RING6, ROOT, SPOOF4, SPOOF6, WORKLOADS},
    nets::cali_class4,
    skb::Skb,
    work::{Env, buffer},
};

const BPF_NOEXIST: u64 = 1;

/// What is made on the stack for a helper to read: the verifier allows only aligned access there.
#[repr(C, align(8))]
pub(crate) struct Aligned<T>(pub T);

/// Puts the key of a trie where it may be unaligned.
#[inline(always)]
fn trie_key<K>(key: Key<K>) -> Option<&'static Key<K>> {
    const { assert!(size_of::<Key<K>>() <= 32) };
    let buffer = buffer()?;
    // SAFETY: the buffer has room for it, and nobody else writes it while the key is in use.
    unsafe {
        let place = (&raw mut (*buffer).key).cast::<Key<K>>();
        place.write(key);
        Some(&*place)
    }
}

/// A key from the ring.
pub(crate) struct Stamped<K> {
    pub key: K,
    /// Its last eight bytes, with the stamp.
    last: u64,
}

impl<K> Stamped<K> {
    /// Whether it stands for the connection with this [`Conn::stamp`], and not for an earlier one between the same ends.
    #[inline(always)]
    pub(crate) fn is_of(&self, stamp: u32) -> bool {
        ring_stamp(self.last, stamp) == self.last
    }
}

/// An IP version with its maps.
pub(crate) trait Tables: Ip {
    /// For `bpf_fib_lookup`.
    const AF: u8;

    fn conn(key: &Self::Key) -> Option<*mut Conn>;
    /// Fails with the negative error number; -EEXIST where there is one.
    fn insert_conn(key: &Self::Key, conn: &Conn) -> Result<(), i32>;
    /// Whether there was one, and this call removed it.
    fn remove_conn(key: &Self::Key) -> bool;
    /// Puts the connection's key, with its [`Conn::stamp`], behind all others.
    fn ring_push(key: &Self::Key, stamp: u32) -> bool;
    /// Takes the foremost key with its [`ring_stamp`].
    fn ring_pop() -> Option<Stamped<Self::Key>>;
    fn address(address: &Self::Addr) -> Option<&'static AddressEntry>;
    /// Class of an address that has no entry of its own.
    fn class(address: &Self::Addr, generation: u32) -> u32;
    fn may_spoof(slot: u32, address: &Self::Addr) -> bool;
    /// The address of the workload whose interface this is.
    fn own(interface: &Interface) -> Self::Addr;
    /// One router further.
    fn decrement_ttl(skb: &Skb) -> Option<()>;
    /// What the kernel chooses a way by besides addresses and ports: the type of service, or the flow label, as `bpf_fib_lookup`
    /// takes them.
    fn flow_info(skb: &Skb) -> Option<u32>;
    /// The address as plain numbers, its bytes in order, and back.
    fn to_words(address: &Self::Addr) -> [u64; 2];
    fn from_words(words: [u64; 2]) -> Self::Addr;
}

impl Tables for V4 {
    const AF: u8 = 2;

    #[inline(always)]
    fn conn(key: &Self::Key) -> Option<*mut Conn> {
        CONNS4.get_ptr_mut(key)
    }
    #[inline(always)]
    fn insert_conn(key: &Self::Key, conn: &Conn) -> Result<(), i32> {
        CONNS4.insert(key, conn, BPF_NOEXIST)
    }
    #[inline(always)]
    fn remove_conn(key: &Self::Key) -> bool {
        CONNS4.remove(key).is_ok()
    }
    #[inline(always)]
    fn ring_push(key: &Self::Key, stamp: u32) -> bool {
        let mut words: [u64; 2] = bytemuck::must_cast(*key);
        words[1] = ring_stamp(words[1], stamp);
        RING4.push(&bytemuck::must_cast(words), 0).is_ok()
    }
    #[inline(always)]
    fn ring_pop() -> Option<Stamped<Self::Key>> {
        let mut words: [u64; 2] = bytemuck::must_cast(RING4.pop().ok().flatten()?);
        let last = words[1];
        words[1] = ring_key(last);
        Some(Stamped { key: bytemuck::must_cast(words), last })
    }
    #[inline(always)]
    fn address(address: &Self::Addr) -> Option<&'static AddressEntry> {
        // SAFETY: read within this run of the program, which the kernel's grace period covers.
        unsafe { ADDRESSES4.get(address) }
    }
    #[inline(always)]
    fn class(address: &Self::Addr, generation: u32) -> u32 {
        let Some(root) = ROOT.get(0) else { return Self::NO_CLASS };
        cali_class4(root.settings(generation).nets4, u32::from_be_bytes(*address))
    }
    #[inline(always)]
    fn may_spoof(slot: u32, address: &Self::Addr) -> bool {
        let key = Key::new(64, SpoofKey4 { slot: slot.to_be_bytes(), address: *address });
        trie_key(key).is_some_and(|key| SPOOF4.get(key).is_some())
    }
    #[inline(always)]
    fn own(interface: &Interface) -> Self::Addr {
        interface.address4
    }
    #[inline(always)]
    fn decrement_ttl(skb: &Skb) -> Option<()> {
        let header: &Ipv4Header = skb.near(ETHERNET_BYTES)?;
        let (ttl, [c0, c1]) = ttl_decremented(header.ttl, header.checksum);
        skb.put(ETHERNET_BYTES + 8, u32::from_ne_bytes([ttl, header.protocol, c0, c1]))
    }
    #[inline(always)]
    fn flow_info(skb: &Skb) -> Option<u32> {
        let tos: u8 = *skb.near(ETHERNET_BYTES + 1)?;
        Some(u32::from_ne_bytes([tos, 0, 0, 0]))
    }
    #[inline(always)]
    fn to_words(address: &Self::Addr) -> [u64; 2] {
        [u64::from(u32::from_ne_bytes(*address)), 0]
    }
    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self::Addr {
        (words[0] as u32).to_ne_bytes()
    }
}

const _: () = assert!(IPV4_BYTES == 20);

impl Tables for V6 {
    const AF: u8 = 10;

    #[inline(always)]
    fn conn(key: &Self::Key) -> Option<*mut Conn> {
        CONNS6.get_ptr_mut(key)
    }
    #[inline(always)]
    fn insert_conn(key: &Self::Key, conn: &Conn) -> Result<(), i32> {
        CONNS6.insert(key, conn, BPF_NOEXIST)
    }
    #[inline(always)]
    fn remove_conn(key: &Self::Key) -> bool {
        CONNS6.remove(key).is_ok()
    }
    #[inline(always)]
    fn ring_push(key: &Self::Key, stamp: u32) -> bool {
        let mut words: [u64; 5] = bytemuck::must_cast(*key);
        words[4] = ring_stamp(words[4], stamp);
        RING6.push(&bytemuck::must_cast(words), 0).is_ok()
    }
    #[inline(always)]
    fn ring_pop() -> Option<Stamped<Self::Key>> {
        let mut words: [u64; 5] = bytemuck::must_cast(RING6.pop().ok().flatten()?);
        let last = words[4];
        words[4] = ring_key(last);
        Some(Stamped { key: bytemuck::must_cast(words), last })
    }
    #[inline(always)]
    fn address(address: &Self::Addr) -> Option<&'static AddressEntry> {
        // SAFETY: read within this run of the program, which the kernel's grace period covers.
        unsafe { ADDRESSES6.get(address) }
    }
    #[inline(always)]
    fn class(address: &Self::Addr, generation: u32) -> u32 {
        let entry = trie_key(Key::new(128, *address)).and_then(|key| NETS6.get(key));
        entry.map_or(Self::NO_CLASS, |entry| entry.class(generation))
    }
    #[inline(always)]
    fn may_spoof(slot: u32, address: &Self::Addr) -> bool {
        let key = Key::new(160, SpoofKey6 { slot: slot.to_be_bytes(), address: *address });
        trie_key(key).is_some_and(|key| SPOOF6.get(key).is_some())
    }
    #[inline(always)]
    fn own(interface: &Interface) -> Self::Addr {
        interface.address6
    }
    #[inline(always)]
    fn decrement_ttl(skb: &Skb) -> Option<()> {
        const HOP_LIMIT_AT: usize = ETHERNET_BYTES + 7;
        let hop_limit: u8 = *skb.near(HOP_LIMIT_AT)?;
        skb.put(HOP_LIMIT_AT, hop_limit.wrapping_sub(1))?;
        // IPv6 has no checksum of its own that would make up for it. One less in the second byte of a word.
        skb.sum_changed(!u32::from(u16::from_ne_bytes([0, 1])));
        Some(())
    }
    #[inline(always)]
    fn flow_info(skb: &Skb) -> Option<u32> {
        // The first four bits are the version.
        let word: &[u8; 4] = skb.near(ETHERNET_BYTES)?;
        Some(u32::from_ne_bytes(*word) & u32::from_ne_bytes([0x0f, 0xff, 0xff, 0xff]))
    }
    #[inline(always)]
    fn to_words(address: &Self::Addr) -> [u64; 2] {
        bytemuck::must_cast(*address)
    }
    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self::Addr {
        bytemuck::must_cast(words)
    }
}

/// What is known of an address.
#[derive(Clone, Copy)]
pub(crate) struct Located {
    pub class: u32,
    /// Of the local workload that owns it, or `NO_SLOT`.
    pub slot: u32,
    /// An address of this host.
    pub host: bool,
}

const HOST_BIT: u64 = 1 << 24;

/// Looks an address up.
#[inline(always)]
pub(crate) fn locate<F: Tables>(address: &F::Addr, generation: u32) -> Located {
    let [first, second] = F::to_words(address);
    let packed = locate_packed::<F>(first, second, generation);
    Located { class: packed as u32 & 0xff_ffff, slot: (packed >> 32) as u32, host: packed & HOST_BIT != 0 }
}

/// One copy in the program, whose result is a plain number.
#[inline(never)]
fn locate_packed<F: Tables>(first: u64, second: u64, generation: u32) -> u64 {
    let Aligned(address) = &Aligned(F::from_words([first, second]));
    if let Some(entry) = F::address(address) {
        let host = if entry.flags & HOST != 0 { HOST_BIT } else { 0 };
        return u64::from(entry.slot(generation)) << 32 | host | u64::from(entry.class(generation) & 0xff_ffff);
    }
    let class = F::class(address, generation);
    u64::from(NO_SLOT) << 32 | u64::from(class & 0xff_ffff)
}

/// The workload in a slot, if its policy is in the maps.
#[inline(always)]
pub(crate) fn active(slot: u32) -> Option<&'static Workload> {
    let workload = WORKLOADS.get(slot)?;
    if workload.flags & workload_flags::ACTIVE != 0 { Some(behind_branch(workload)) } else { None }
}

/// Keeps the compiler from making the branch that this stands behind into arithmetic on the pointer, which the verifier
/// does not follow.
#[inline(always)]
#[expect(clippy::pointers_in_nomem_asm_block, reason = "it does not look at what the pointer points to")]
fn behind_branch<T>(reference: &T) -> &T {
    let mut pointer = ptr::from_ref(reference);
    // SAFETY: the instruction leaves the pointer as it is.
    unsafe {
        asm!("{pointer} = {pointer}", pointer = inout(reg) pointer, options(nomem, nostack));
        &*pointer
    }
}

/// What is known of an interface.
#[inline(always)]
pub(crate) fn interface(ifindex: u32) -> Option<&'static Interface> {
    // SAFETY: read within this run of the program, which the kernel's grace period covers.
    unsafe { INTERFACES.get(&ifindex) }
}

/// What judges at an interface of the host: slots, or `NO_SLOT`.
#[derive(Clone, Copy)]
pub(crate) struct HostSeats {
    /// What the host itself sends and receives.
    pub host: u32,
    /// What it forwards.
    pub forward: u32,
}

impl HostSeats {
    pub(crate) const NOBODY: Self = Self { host: NO_SLOT, forward: NO_SLOT };
}

/// What judges at this interface in this generation.
#[inline(always)]
pub(crate) fn host_seats(env: &Env) -> HostSeats {
    match interface(env.ifindex) {
        Some(interface) => HostSeats {
            host: in_force(interface.host.wrapping_sub(1), env.generation),
            forward: in_force(interface.forward.wrapping_sub(1), env.generation),
        },
        None => HostSeats::NOBODY,
    }
}

/// Whether a host endpoint has a say, in either generation, about what comes in here and is forwarded.
#[inline(always)]
pub(crate) fn judges_forwarded(env: &Env) -> bool {
    interface(env.ifindex).is_some_and(|interface| interface.forward != 0)
}

/// Whether the stack may translate the destination of what comes in by this interface.
#[inline(always)]
pub(crate) fn translates(env: &Env) -> bool {
    interface(env.ifindex).is_some_and(|interface| interface.translates != 0)
}

/// Whether this interface is none of a host endpoint's, and no uplink: see [`role::WAY_OUT`].
#[inline(always)]
pub(crate) fn is_way_out(env: &Env) -> bool {
    interface(env.ifindex).is_some_and(|interface| interface.role == role::WAY_OUT)
}

/// Slot of who is judged as the sender of a packet that the stack has forwarded, and the class of its address; `source` is what is
/// known of the one in the packet. The stack may have given it the host's, behind policy: that is about the workload's own.
#[inline(always)]
pub(crate) fn sender<F: Tables>(skb: &Skb, env: &Env, source: &Located) -> (u32, u32) {
    if source.slot != NO_SLOT {
        return (source.slot, source.class);
    }
    let slot = seat_of_arrival(skb, env);
    let is_masqueraded = source.host && skb.is_marked(MARK_TRANSLATED);
    let class = source.class;
    (slot, if is_masqueraded { own_class::<F>(skb.ingress_ifindex(), class, env.generation) } else { class })
}

/// Slot of the workload that sent what the stack has translated and forwards now.
#[inline(always)]
pub(crate) fn translated_of(skb: &Skb) -> Option<u32> {
    if !skb.is_marked(MARK_TRANSLATED) {
        return None;
    }
    of_interface(skb.ingress_ifindex()).ok().map(|(slot, _)| slot)
}

/// Class of the address of the workload in this slot; `other` if none is there. Of numbers alone: what a caller knows of a workload, old
/// verifiers forget.
#[inline(never)]
pub(crate) fn class_of_slot<F: Tables>(slot: u32, other: u32, generation: u32) -> u32 {
    match active(slot) {
        Some(workload) => own_class::<F>(workload.ifindex, other, generation),
        None => other,
    }
}

/// Class of the address of the workload whose interface this is; `other` if it is none's.
#[inline(never)]
fn own_class<F: Tables>(ifindex: u32, other: u32, generation: u32) -> u32 {
    match interface(ifindex) {
        Some(interface) if interface.role == role::WORKLOAD => locate::<F>(&F::own(interface), generation).class,
        _ => other,
    }
}

/// Slot of what judges, of a packet that the stack has forwarded, what comes in where this one came in: `NO_SLOT` if it has
/// been asked about the packet as it is, or has no say about it.
#[inline(always)]
pub(crate) fn seat_of_arrival(skb: &Skb, env: &Env) -> u32 {
    if let Some(slot) = translated_of(skb) {
        return slot;
    }
    if !has_host_endpoints() || skb.is_marked(MARK_ASKED | MARK_SETTLED) {
        return NO_SLOT;
    }
    host_seats(&Env { ifindex: skb.ingress_ifindex(), ..*env }).forward
}

/// The slot, if a host endpoint of this generation has it: what one generation knows, the other need not.
#[inline(always)]
fn in_force(slot: u32, generation: u32) -> u32 {
    match active(slot) {
        Some(seat) if seat.policy(generation).ingress_table != 0 => slot,
        _ => NO_SLOT,
    }
}

/// Whether some interface of the host is a host endpoint. For programs that look at nothing else yet.
#[inline(always)]
pub(crate) fn has_host_endpoints() -> bool {
    let Some(root) = ROOT.get(0) else { return false };
    // SAFETY: a valid reference. Volatile: the loader changes it.
    let generation = unsafe { ptr::read_volatile(&raw const root.generation) };
    root.settings(generation).flags & settings_flags::HOST_ENDPOINTS != 0
}

/// The slot and the workload whose interface this is.
#[inline(always)]
pub(crate) fn of_interface(ifindex: u32) -> Result<(u32, &'static Workload), DropReason> {
    let interface = interface(ifindex).ok_or(DropReason::NoWorkload)?;
    let workload = active(interface.slot).ok_or(DropReason::NoWorkload)?;
    if interface.role != role::WORKLOAD || workload.ifindex != ifindex {
        return Err(DropReason::NoWorkload);
    }
    Ok((interface.slot, workload))
}
