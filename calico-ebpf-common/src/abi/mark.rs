//! What programs write on packets beside their bytes: `skb->mark` and `skb->priority`, as rules of the host's see them, and the
//! control block, which those do not see.

/// The stack is to forward the packet as it is: its connection was opened untranslated. One bit, of the range that Calico
/// reserves for its eBPF data path.
pub const MARK_UNTRANSLATED: u32 = 0x0010_0000;

/// The whole mark of answers to what policy rejected, which are judged by nobody. Only the host can set it: it does not
/// pass from one network namespace to another. Without a bit that kube-proxy or Calico give a meaning.
pub const MARK_ANSWER: u32 = 0x2035;

/// Policy of a host endpoint has been asked about what came in there as something forwarded: where it leaves, nobody asks once
/// more, unless the stack translates its destination on the way. One bit, like the following ones of the range above.
pub const MARK_ASKED: u32 = 0x0020_0000;

/// Policy before DNAT, or untracked policy, lets it in: the host endpoint where it came in has no say about where it goes.
pub const MARK_SETTLED: u32 = 0x0040_0000;

/// An answer in a connection whose destination the stack has translated: where it leaves it has the address that it was
/// asked by, and may have no entry by that. Set by a table of ours.
pub const MARK_REPLY: u32 = 0x0080_0000;

/// The stack has translated the destination of what a workload sends: its egress policy is asked about the new one where the packet
/// leaves, also where that has another source by then. Set by a table of ours.
pub const MARK_TRANSLATED: u32 = 0x0100_0000;

/// Likewise, and by the address that it was sent to policy denies it: it must not leave where nobody asks, and where it is allowed to
/// leave, it is known that that address is translated.
pub const MARK_LEFT: u32 = 0x0200_0000;

/// An answer of a workload in a connection that somebody opened to it by a translated address: it is for whoever opened it, and never
/// for the host itself, even where the stack has forgotten the connection.
pub const MARK_BACK: u32 = 0x0400_0000;

/// What says of a packet what became of it between where it came in and where it leaves.
pub const MARKS_ON_THE_WAY: u32 = MARK_ASKED | MARK_SETTLED | MARK_REPLY | MARK_TRANSLATED | MARK_LEFT | MARK_BACK;

/// What the control block (`skb->cb`) of a packet begins with that has been judged and goes past the stack: the program where it
/// leaves takes it away and lets it pass unseen. Neither rules of the host's nor sockets can write there, and the IP layer clears
/// it when a packet comes in (`ip_rcv_core`, `ip6_rcv_core`): what took the stack does not have it, whoever sent it.
pub const PASSED: [u32; 3] = [0xca11_ca11, 0xca11_0e11, 0xca11_ca57];

/// `skb->priority` of what policy denies by the address it was sent to, which the stack may still translate. A class of a queueing
/// discipline that nobody has.
pub const PRIORITY_DENIED: u32 = 0xca11_0001;

/// Likewise, where the sender is to be told.
pub const PRIORITY_REJECTED: u32 = 0xca11_0002;
