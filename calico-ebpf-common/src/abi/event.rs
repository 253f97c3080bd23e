//! What is counted besides what is dropped.

/// Index into the counters of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Event {
    /// A TCP segment in the middle of a connection that the data path had not seen, judged by policy as the first one of a new
    /// connection: the data path was installed under running traffic, or lost its table, or the workload moved here.
    Midstream = 0,
    /// A packet that policy denies by the address that it was sent to, or that belongs to no connection by that, left to the stack,
    /// which may translate the address; if it does not, it drops the packet.
    LeftToTranslation = 1,
}

/// Every event with its name in `status` and metrics.
pub const EVENTS: &[(Event, &str)] =
    &[(Event::Midstream, "midstream"), (Event::LeftToTranslation, "left-to-translation")];
