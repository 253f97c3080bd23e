//! Marks of packets: `skb->mark`, as rules of the host's see it.

/// The stack is to forward the packet as it is: its connection was opened untranslated. One bit, of the range that Calico
/// reserves for its eBPF data path.
pub const MARK_UNTRANSLATED: u32 = 0x0010_0000;
