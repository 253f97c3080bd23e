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
    /// A packet of a connection came in on an interface that is not its source's.
    WrongInterface = 15, "wrong-interface";
    /// No rule table, or a broken one.
    NoTable = 16, "no-table";
    /// The kernel refused to forward.
    Forward = 17, "forward-failed";
    /// An extension header chain that is too long, or a routing header.
    Headers = 18, "extension-headers";
    /// A fragment that cannot be judged.
    Fragment = 19, "fragment";
    /// An encapsulation that workloads may not use (VXLAN, IP in IP).
    Encapsulated = 20, "encapsulated";
}
