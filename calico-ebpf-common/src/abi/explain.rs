//! What `cali_explain` answers, over the head of the frame that it was asked about.

use bytemuck::{Pod, Zeroable};

use super::{NO_RULE, NO_SLOT};

/// Values of [`ExplainedEnd::verdict`].
pub mod explained {
    /// No local workload, or one that nobody judges here.
    pub const NOT_JUDGED: u32 = 0;
    /// Its rules allow it.
    pub const ALLOW: u32 = 1;
    /// Its rules deny it.
    pub const DENY: u32 = 2;
    /// It has no rule table, or a broken one: denied.
    pub const NO_TABLE: u32 = 3;
    /// Its rules deny it, and the sender is told.
    pub const REJECT: u32 = 4;
    /// [`super::Explained::reason`] of a packet that passes.
    pub const PASSES: u32 = u32::MAX;
}

/// One end of a packet without a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ExplainedEnd {
    /// Slot of the local workload at this end, or [`NO_SLOT`].
    pub slot: u32,
    /// Counter slot of the rule that decides; [`NO_RULE`] where none does.
    pub rule: u32,
    /// See [`explained`].
    pub verdict: u32,
}

impl ExplainedEnd {
    /// Nobody judges this end.
    pub const NONE: Self = Self { slot: NO_SLOT, rule: NO_RULE, verdict: explained::NOT_JUDGED };
}

/// What would become of a packet if it were the first of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Explained {
    /// The generation that judged.
    pub generation: u32,
    /// A [`super::DropReason`], or [`explained::PASSES`].
    pub reason: u32,
    /// The source, judged by its egress, and the destination, by its ingress.
    pub ends: [ExplainedEnd; 2],
}

const _: () = assert!(size_of::<Explained>() == 32);
