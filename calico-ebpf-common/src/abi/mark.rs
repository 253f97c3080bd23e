//! Marks of packets: `skb->mark`, as rules of the host's see it.

/// The stack is to forward the packet as it is: its connection was opened untranslated. One bit, of the range that Calico
/// reserves for its eBPF data path.
pub const MARK_UNTRANSLATED: u32 = 0x0010_0000;

/// The whole mark of answers to what policy rejected, which are judged by nobody. Only the host can set it: it does not
/// pass from one network namespace to another. Without a bit that kube-proxy or Calico give a meaning.
pub const MARK_ANSWER: u32 = 0x2035;
