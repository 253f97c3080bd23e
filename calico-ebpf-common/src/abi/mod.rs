//! The layout of the maps: one module a map or a family of maps.
//!
//! Integers are in host byte order unless a field's documentation says otherwise; addresses and ports are byte arrays
//! in network order. Every type is `Pod`: no padding, any bit pattern valid, so a map written by another version of
//! the program can be read safely. A change of any layout that was released raises [`LAYOUT_VERSION`], which is part of
//! the pin path.

mod address;
mod arena;
mod conn;
mod drop_reason;
mod event;
mod explain;
mod flow;
mod fragment;
mod log;
mod mark;
pub mod names;
mod neighbour;
mod nets;
mod root;
mod service;
mod text;
mod untracked;
mod workload;

pub use address::{AddressEntry, HOST, SpoofKey4, SpoofKey6, Stamped};
pub use arena::{
    Action, BLOCK_ONES, Block, CHUNK_RULES, MAX_CHUNKS, MAX_RULES, NODE_BLOCKS, NODE_ENTRIES, NodeRef, RuleEntry,
    TableHeader, VEC_ANY, VEC_NONE, VectorHeader,
};
pub use conn::{
    ACCOUNT_HOST, ACCOUNT_TOTAL, CONN_VERSION, Conn, ConnEnd, ConnKey4, ConnKey6, Family, NO_RULE, NO_SLOT, OpenerKind,
    Quota, VICTIMS, account_opened_by, account_opened_to, conn_flags, ring_key, ring_stamp, tcp_state,
};
pub use drop_reason::{DROP_REASONS, DropReason};
pub use event::{EVENTS, Event};
pub use explain::{Explained, ExplainedEnd, explained};
pub use flow::{FlowKey, FlowRecord};
pub use fragment::FragmentKey;
pub use log::{Allowance, LogRecord};
pub use mark::{
    MARK_ANSWER, MARK_ASKED, MARK_BACK, MARK_LEFT, MARK_REPLY, MARK_SETTLED, MARK_TRANSLATED, MARK_UNTRANSLATED,
    MARKS_ON_THE_WAY, PASSED, PRIORITY_DENIED, PRIORITY_REJECTED,
};
pub use neighbour::{Neighbour, NeighbourKey};
pub use nets::{FILTER_CHILDREN, INDEX_CHILDREN, LEAF_CLASSES, LEAF_CLASSES_HIGH, LEAF_INTERVALS, NetRef};
pub use root::{
    Interface, MAX_UPLINKS, Root, Settings, TAKEOVER_SECONDS, Timeouts, host_action, role, settings_flags, uplink_flags,
};
pub use service::ServiceKey;
pub use text::{INFO_BYTES, InfoText, LOAD_BYTES, LoadText, RULE_BYTES, RuleText, WORKLOAD_BYTES, WorkloadText};
pub use untracked::{INTERFACE_NAME, MAX_UNTRACKED, Untracked, judged};
pub use workload::{PolicyRef, Workload, workload_flags};

/// Version of everything below; objects of different versions never share a map.
pub const LAYOUT_VERSION: u32 = 1;
