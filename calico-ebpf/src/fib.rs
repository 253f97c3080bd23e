//! The kernel's routes.

use aya_ebpf::{EbpfContext as _, bindings::bpf_fib_lookup as FibParams, helpers::generated::bpf_fib_lookup};
use calico_ebpf_common::packet::Packet;

use crate::{skb::Skb, tables::Tables, work::opaque};

/// `struct bpf_fib_lookup` (`include/uapi/linux/bpf.h`), with the parts that are used by themselves.
#[repr(C, align(8))]
pub(crate) struct Fib {
    pub family: u8,
    protocol: u8,
    /// Big-endian, as is the other.
    source_port: u16,
    destination_port: u16,
    /// Of the packet from its IP header on: with it the kernel holds the packet against the MTU of the route, too.
    pub length: u16,
    /// Of the interface that the packet came in by; behind the lookup of the one that it leaves by.
    pub ifindex: u32,
    /// Of IPv4 the type of service, of IPv6 traffic class and flow label.
    pub flow_info: u32,
    source: [u64; 2],
    /// Behind the lookup the next hop, of the family that `family` says then: IPv4 routes may have one of IPv6.
    pub destination: [u64; 2],
    rest: [u64; 2],
}
const _: () = assert!(size_of::<FibParams>() == size_of::<Fib>());

impl Fib {
    /// About the way of the packet, which has come in by this interface.
    #[inline(always)]
    pub(crate) fn of<F: Tables>(packet: &Packet<F>, ifindex: u32) -> Self {
        let Packet { source, destination, transport, .. } = packet;
        let ports = [transport.source_port, transport.destination_port];
        Self::new::<F>(ifindex, packet.protocol, [source, destination], ports)
    }

    /// About the way of its answer, as if that came in there.
    #[inline(always)]
    pub(crate) fn of_answer<F: Tables>(packet: &Packet<F>, ifindex: u32) -> Self {
        let Packet { source, destination, transport, .. } = packet;
        let ports = [transport.destination_port, transport.source_port];
        Self::new::<F>(ifindex, packet.protocol, [destination, source], ports)
    }

    /// Of each pair the first is the source's.
    #[inline(always)]
    fn new<F: Tables>(ifindex: u32, protocol: u8, addresses: [&F::Addr; 2], ports: [u16; 2]) -> Self {
        Self {
            family: F::AF,
            protocol,
            source_port: ports[0].to_be(),
            destination_port: ports[1].to_be(),
            length: 0,
            ifindex,
            flow_info: 0,
            source: F::to_words(addresses[0]),
            destination: F::to_words(addresses[1]),
            rest: [opaque(0); 2],
        }
    }

    /// One of `BPF_FIB_LKUP_RET_*`.
    #[inline(always)]
    pub(crate) fn look_up(&mut self, skb: &Skb) -> u32 {
        let params: *mut Self = self;
        // SAFETY: the helper is told the size of what it may read and write.
        unsafe { bpf_fib_lookup(skb.as_ptr(), params.cast(), size_of::<Self>() as i32, 0) as u32 }
    }
}
