//! JSON texts that user space leaves beside the tables, zero-padded.

/// Bytes of a [`RuleText`].
pub const RULE_BYTES: usize = 1024;
/// Bytes of a [`WorkloadText`]: with what the kernel adds, an entry has 512.
pub const WORKLOAD_BYTES: usize = 448;
/// Bytes of an [`InfoText`].
pub const INFO_BYTES: usize = 4096;
/// Bytes of a [`LoadText`].
pub const LOAD_BYTES: usize = 16_384;

/// What a rule is.
pub type RuleText = [u8; RULE_BYTES];
/// Which workload has a slot.
pub type WorkloadText = [u8; WORKLOAD_BYTES];
/// Who wrote last, and what was changed on the host.
pub type InfoText = [u8; INFO_BYTES];
/// What the last attempt to load the files led to.
pub type LoadText = [u8; LOAD_BYTES];
