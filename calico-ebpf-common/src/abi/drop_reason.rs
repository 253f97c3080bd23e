//! Why a packet was dropped: the index into the drop counters.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum DropReason { $($(#[$doc])* $variant = $number,)* }

        /// Every reason with its name in `status`, metrics and logs.
        pub const DROP_REASONS: &[(DropReason, &str)] = &[$((DropReason::$variant, $name),)*];
    };
}

drop_reasons! {
    /// Denied by the source's egress policy.
    PolicyEgress = 0, "policy-egress";
    /// Denied by the destination's ingress policy.
    PolicyIngress = 1, "policy-ingress";
    /// To the workload's own host, and `defaultEndpointToHostAction` is `Drop`.
    EndpointToHost = 2, "endpoint-to-host";
    /// The source address is not the workload's.
    SpoofedSource = 3, "spoofed-source";
    /// The source MAC address is not the workload's.
    SpoofedMac = 4, "spoofed-mac";
    /// From outside with a source address of a local workload or of this host.
    SpoofedLocal = 5, "spoofed-local";
    /// Neither ARP, IPv4 nor IPv6, or tagged.
    EtherType = 6, "ethertype";
    /// Not for the host's MAC address, broadcast or multicast.
    ForeignMac = 7, "foreign-mac";
    /// Shorter than its headers claim, or with impossible lengths.
    Malformed = 8, "malformed";
    /// ARP with a sender that is not the workload, or of a wrong form.
    Arp = 9, "arp";
    /// Neighbour discovery with a sender that is not the workload, or a router advertisement.
    Nd = 10, "nd";
    /// The interface has no workload, or its policy is not there yet.
    NoWorkload = 11, "no-workload";
    /// The destination workload's interface is gone.
    NoInterface = 12, "no-interface";
    /// The account's quota of connections is used up.
    Quota = 13, "conn-quota";
    /// The connection table is full.
    TableFull = 14, "conn-table-full";
    /// No rule table, or a broken one.
    NoTable = 16, "no-table";
    /// An extension header chain that is too long, or a routing header with segments left.
    Headers = 18, "extension-headers";
    /// A fragment that cannot be judged: its first one did not pass or lacks a part of its headers, or it would overwrite them.
    Fragment = 19, "fragment";
    /// An encapsulation that workloads may not use (VXLAN, IP in IP).
    Encapsulated = 20, "encapsulated";
    /// As `PolicyEgress`, and the sender is told.
    RejectedEgress = 21, "policy-egress-rejected";
    /// As `PolicyIngress`, and the sender is told.
    RejectedIngress = 22, "policy-ingress-rejected";
    /// TCP of no known connection that cannot open one: what netfilter calls invalid.
    TcpInvalid = 23, "tcp-invalid";
    /// An ICMP error about nothing that is known.
    IcmpUnrelated = 24, "icmp-unrelated";
    /// Came in by an interface whose untracked policy denies it.
    UntrackedIngress = 27, "untracked-ingress";
    /// Of the host itself, by an interface whose untracked policy denies it.
    UntrackedEgress = 28, "untracked-egress";
    /// It came in by an uplink, and there is no way back to its source, or another one.
    ReversePath = 29, "reverse-path";
}

impl DropReason {
    /// What a judgement on arrival comes to, whichever end's rules denied it: those of ingress.
    #[inline(always)]
    #[must_use]
    pub const fn on_arrival(self) -> Self {
        match self {
            Self::PolicyEgress => Self::PolicyIngress,
            Self::RejectedEgress => Self::RejectedIngress,
            other => other,
        }
    }

    /// What a judgement on leaving comes to: those of egress.
    #[inline(always)]
    #[must_use]
    pub const fn on_leaving(self) -> Self {
        match self {
            Self::PolicyIngress => Self::PolicyEgress,
            Self::RejectedIngress => Self::RejectedEgress,
            other => other,
        }
    }
}
