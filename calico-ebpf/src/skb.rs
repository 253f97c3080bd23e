//! The packet at hand.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{
        bpf_csum_update, bpf_set_hash, bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_change_type,
        bpf_skb_load_bytes, bpf_skb_pull_data, bpf_skb_store_bytes, bpf_skb_vlan_pop,
    },
    programs::TcContext,
};
use bytemuck::Pod;

use crate::work::buffer;
use calico_ebpf_common::{
    abi::{MARK_ANSWER, PASSED, PRIORITY_DENIED, PRIORITY_REJECTED},
    packet::{Cursor, ETHERNET_BYTES, EthernetHeader, IPV4_BYTES, IPV6_BYTES, TRANSPORT_BYTES, ether_type},
};

/// `skb->pkt_type` of a frame for the receiving device's own MAC address.
const PACKET_HOST: u32 = 0;
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;
const PACKET_OTHERHOST: u32 = 3;
/// What the fast path reads in place: Ethernet, IP and the most of TCP. Not a byte more than every segment of TCP has in
/// one piece: to make that piece longer is to copy it.
const HEADERS4: u32 = (ETHERNET_BYTES + IPV4_BYTES + TRANSPORT_BYTES) as u32;
const HEADERS6: u32 = (ETHERNET_BYTES + IPV6_BYTES + TRANSPORT_BYTES) as u32;

/// The bits of a tag that say which VLAN it is.
const VLAN_ID: u32 = 0xfff;

/// More bytes than there are from the beginning of a frame to where a device that makes the checksum begins.
const PULLED: u32 = 128;

/// A packet in a TC program.
#[derive(Clone, Copy)]
pub(crate) struct Skb(*mut __sk_buff);

impl EbpfContext for Skb {
    #[inline(always)]
    fn as_ptr(&self) -> *mut c_void {
        self.0.cast()
    }
}

impl Skb {
    /// For a function that was given the context itself.
    #[inline(always)]
    pub(crate) fn of(context: *mut __sk_buff) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub(crate) fn raw_context(&self) -> *mut __sk_buff {
        self.0
    }

    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    #[inline(always)]
    fn raw(&self) -> &__sk_buff {
        // SAFETY: the context is valid as long as the program runs, and only `Skb` has it. The fields that helpers
        // change are read again after every helper, because the compiler cannot see into helpers.
        unsafe { &*self.0 }
    }

    /// Bytes of the frame, the Ethernet header included.
    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.raw().len
    }

    /// The device that the program is attached to.
    #[inline(always)]
    pub(crate) fn ifindex(&self) -> u32 {
        self.raw().ifindex
    }

    /// The device that the packet came in by; 0 for what this host sends itself.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(&self) -> u32 {
        self.raw().ingress_ifindex
    }

    #[inline(always)]
    pub(crate) fn is_for_host_mac(&self) -> bool {
        self.raw().pkt_type == PACKET_HOST
    }

    /// Broadcast or multicast of the link.
    #[inline(always)]
    pub(crate) fn is_for_many_macs(&self) -> bool {
        matches!(self.raw().pkt_type, PACKET_BROADCAST | PACKET_MULTICAST)
    }

    #[inline(always)]
    pub(crate) fn is_for_foreign_mac(&self) -> bool {
        self.raw().pkt_type == PACKET_OTHERHOST
    }

    #[inline(always)]
    pub(crate) fn is_tagged(&self) -> bool {
        self.raw().vlan_present != 0
    }

    /// Whether it is another interface's, that of a VLAN. A tag that has nothing but a priority is none of one: the stack
    /// takes such a frame for an untagged one.
    #[inline(always)]
    pub(crate) fn is_of_vlan(&self) -> bool {
        self.is_tagged() && self.raw().vlan_tci & VLAN_ID != 0
    }

    /// Takes the outermost tag away. A failure leaves it.
    #[inline(always)]
    pub(crate) fn untag(&self) {
        // SAFETY: the context is valid.
        unsafe { bpf_skb_vlan_pop(self.0) };
    }

    /// Makes the headers readable in place and says what is in the frame. Zero where there is no whole header.
    #[inline(always)]
    pub(crate) fn ether_type(&self) -> [u8; 2] {
        self.pull_headers();
        match self.near::<EthernetHeader>(0) {
            Some(ethernet) => ethernet.ether_type,
            None => [0; 2],
        }
    }

    /// The word that an XDP program left in front of the frame; zero where there is none.
    #[inline(always)]
    pub(crate) fn left_in_front(&self) -> u32 {
        let (front, data) = (self.raw().data_meta as usize, self.raw().data as usize);
        if front + size_of::<u32>() > data {
            return 0;
        }
        // SAFETY: within the room in front of the frame, as just compared.
        unsafe { ptr::read_unaligned(front as *const u32) }
    }

    /// Payload of each segment of a super-packet; 0 for an ordinary one.
    #[inline(always)]
    pub(crate) fn gso_size(&self) -> u32 {
        self.raw().gso_size
    }

    /// Makes sure that the headers, where the packet has them, can be read in place.
    #[inline(always)]
    fn pull_headers(&self) {
        let skb = self.raw();
        let headers = if self.is_ipv6() { HEADERS6 } else { HEADERS4 };
        let linear = (skb.data_end as u64).wrapping_sub(skb.data as u64);
        let length = self.length();
        // Super-packets have all their headers in one piece, and bytes behind them must stay where they are: those of SCTP, and of
        // UDP that was put together as a list, are cut again between the buffers of a list, and kernels (SCTP's own reception in
        // all, `skb_segment` up to 6.15) stop at a packet whose first buffer holds more than headers.
        if linear < u64::from(headers) && linear < u64::from(length) && self.gso_size() == 0 {
            let wanted = if length < headers { length } else { headers };
            // SAFETY: the context is valid. A failure leaves the packet as it was, and reading it fails later.
            unsafe { bpf_skb_pull_data(self.0, wanted) };
        }
    }

    /// Reads a copy in memory of the processor, which the next [`Cursor::far`] overwrites: for headers that the compiler
    /// would otherwise take apart on the stack at odd places.
    #[inline(always)]
    pub(crate) fn copy<T: Pod>(&self, offset: u32) -> Option<&'static T> {
        const { assert!(size_of::<T>() <= 64 && align_of::<T>() <= 8) };
        let buffer = buffer()?;
        // SAFETY: the buffer has room for it, and the helper fills it or says that it did not; `Pod` has no invalid bytes.
        unsafe {
            let header = &raw mut (*buffer).header;
            if bpf_skb_load_bytes(self.0.cast(), offset, header.cast(), size_of::<T>() as u32) == 0 {
                Some(&*header.cast())
            } else {
                None
            }
        }
    }

    /// Writes in place. `None`: beyond what is in one piece.
    #[inline(always)]
    pub(crate) fn put<T: Pod>(&self, offset: usize, value: T) -> Option<()> {
        let (data, end) = (self.raw().data as usize, self.raw().data_end as usize);
        if data + offset + size_of::<T>() > end {
            return None;
        }
        // SAFETY: within the packet, as just compared; the kernel made it writable before the program started.
        unsafe { ptr::write_unaligned((data + offset) as *mut T, value) };
        Some(())
    }

    /// Makes the packet this very frame.
    #[inline(always)]
    pub(crate) fn replace<T: Pod>(&self, frame: T) -> bool {
        // SAFETY: the context is valid.
        let resized = unsafe { bpf_skb_change_tail(self.0, size_of::<T>() as u32, 0) } == 0;
        resized && self.put(0, frame).is_some()
    }

    /// The kernel's hash of the flow, or what [`Skb::set_hash`] made of it: it stays with the packet on its way through the stack.
    #[inline(always)]
    pub(crate) fn hash(&self) -> u32 {
        self.raw().hash
    }

    #[inline(always)]
    pub(crate) fn set_hash(&self, hash: u32) {
        // SAFETY: the context is valid.
        unsafe { bpf_set_hash(self.0, hash) };
    }

    /// Whether the mark has any of these bits.
    #[inline(always)]
    pub(crate) fn is_marked(&self, bits: u32) -> bool {
        self.raw().mark & bits != 0
    }

    /// Takes word away that some program left about the packet elsewhere.
    #[inline(always)]
    pub(crate) fn unmark(&self, bits: u32) {
        if self.is_marked(bits) {
            self.set_mark(self.raw().mark & !bits);
        }
    }

    /// Leaves it to the stack to drop the packet unless it translates its destination: where nothing knows this priority it
    /// does so anyway, since the frame is for another host.
    #[inline(always)]
    pub(crate) fn leave_to_translation(&self, priority: u32) {
        // SAFETY: the context is valid. Volatile, as below. A type that cannot be set stays, and with it the packet would
        // be taken in: the caller has seen that it can.
        unsafe {
            ptr::write_volatile(&raw mut (*self.0).priority, priority);
            bpf_skb_change_type(self.0, PACKET_OTHERHOST);
        }
    }

    /// Whether it was left so, and nobody has taken it in since.
    #[inline(always)]
    pub(crate) fn is_left_to_translation(&self) -> bool {
        let priority = self.raw().priority;
        priority == PRIORITY_DENIED || priority == PRIORITY_REJECTED
    }

    /// Adds bits to the mark that rules of the host see.
    #[inline(always)]
    pub(crate) fn mark(&self, bits: u32) {
        // SAFETY: the context is valid. Volatile: the compiler would write the one byte that changes, which the verifier
        // refuses.
        unsafe {
            let mark = &raw mut (*self.0).mark;
            ptr::write_volatile(mark, ptr::read_volatile(mark) | bits);
        }
    }

    /// Gives the packet another length, to be written anew: no device makes its checksum, no kernel has checked it, and it
    /// is no super-packet.
    #[inline(always)]
    pub(crate) fn renew(&self, length: u32) -> Option<&Self> {
        let grown = length + PULLED;
        // SAFETY: the context is valid.
        let renewed = unsafe {
            // A sum that the device made of the whole packet goes when it becomes shorter.
            bpf_skb_change_tail(self.0, grown + 1, 0) == 0
                && bpf_skb_change_tail(self.0, grown, 0) == 0
                // A checksum that is left to a device stays so until its beginning is not in the packet any more.
                && bpf_skb_adjust_room(self.0, -(PULLED as i32), BPF_ADJ_ROOM_MAC, 0) == 0
        };
        renewed.then_some(self)
    }

    /// Copies a part of the packet.
    #[inline(always)]
    pub(crate) fn load(&self, offset: u32, to: *mut c_void, length: u64) -> Option<()> {
        // SAFETY: the verifier sees to it that the memory is that long.
        (unsafe { bpf_skb_load_bytes(self.0.cast(), offset, to, length as u32) } == 0).then_some(())
    }

    /// Writes a part of the packet.
    #[inline(always)]
    pub(crate) fn store(&self, offset: u32, from: *const c_void, length: u64) -> Option<()> {
        // SAFETY: the verifier sees to it that the memory is that long.
        (unsafe { bpf_skb_store_bytes(self.0, offset, from, length as u32, 0) } == 0).then_some(())
    }

    #[inline(always)]
    pub(crate) fn is_ipv6(&self) -> bool {
        self.raw().protocol == u32::from(u16::from_ne_bytes(ether_type::IPV6))
    }

    /// An answer of our own to what policy rejected.
    #[inline(always)]
    pub(crate) fn is_answer(&self) -> bool {
        self.raw().mark == MARK_ANSWER
    }

    #[inline(always)]
    pub(crate) fn mark_as_answer(&self) {
        self.set_mark(MARK_ANSWER);
    }

    /// Lets it leave unseen: it has been judged.
    #[inline(always)]
    pub(crate) fn pass(&self) {
        for (at, word) in PASSED.iter().enumerate() {
            // SAFETY: the context is valid. Volatile: the compiler would join the words, which the verifier refuses.
            unsafe { ptr::write_volatile(&raw mut (*self.0).cb[at], *word) };
        }
    }

    /// Whether it leaves unseen: as such an answer, or judged by the program where it came in. The word has done its work.
    #[inline(always)]
    pub(crate) fn has_passed(&self) -> bool {
        // The host's own came in nowhere.
        if self.ingress_ifindex() == 0 {
            return false;
        }
        if self.is_answer() {
            self.set_mark(0);
            return true;
        }
        let mut passed = true;
        for (at, word) in PASSED.iter().enumerate() {
            // SAFETY: the context is valid. Volatile, as above.
            passed &= unsafe { ptr::read_volatile(&raw const (*self.0).cb[at]) } == *word;
        }
        if passed {
            // SAFETY: as above.
            unsafe { ptr::write_volatile(&raw mut (*self.0).cb[0], 0) };
        }
        passed
    }

    #[inline(always)]
    fn set_mark(&self, mark: u32) {
        // SAFETY: the context is valid. Volatile, as above.
        unsafe { ptr::write_volatile(&raw mut (*self.0).mark, mark) };
    }

    /// Tells the kernel that the sum over the packet changed by this much (where it keeps one).
    #[inline(always)]
    pub(crate) fn sum_changed(&self, by: u32) {
        // SAFETY: the context is valid. The error says that the kernel keeps no such sum.
        unsafe { bpf_csum_update(self.0, by) };
    }
}

impl Cursor for Skb {
    #[inline(always)]
    fn near<T: Pod>(&self, offset: usize) -> Option<&T> {
        const { assert!(align_of::<T>() == 1) };
        let (data, end) = (self.raw().data as usize, self.raw().data_end as usize);
        if data + offset + size_of::<T>() > end {
            return None;
        }
        // SAFETY: within the packet, as just compared, until a helper moves it; `Pod` has no invalid bytes.
        Some(unsafe { &*((data + offset) as *const T) })
    }

    #[inline(always)]
    fn far<T: Pod>(&self, offset: u32) -> Option<&T> {
        self.copy::<T>(offset)
    }
}
