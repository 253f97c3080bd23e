//! What the maps hold, and how they get to hold something else.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    compiled::Compiled,
    write::{KernelState, LimitError, Limits, Plan},
};

/// What the maps hold. Pure: nothing here touches a map.
#[derive(Clone, Debug)]
pub struct Store {
    limits: Limits,
    generation: u32,
}

/// Slot of a local workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index into the workload map.
    pub slot: u32,
    /// `Workload::incarnation`.
    pub incarnation: u32,
}

impl Store {
    /// The store of maps that have just been created: all zero. The first plan writes the fixed blocks too.
    #[must_use]
    pub fn empty(limits: Limits) -> Self {
        Self {
            limits,
            generation: 0,
        }
    }

    /// The store of maps that somebody else has written, perhaps not to the end.
    ///
    /// All that is in force stays so until the next plan is committed; names keep their slots and counters.
    #[must_use]
    pub fn adopt(limits: Limits, state: &KernelState<'_>) -> Self {
        Self {
            limits,
            generation: state.root.generation,
        }
    }

    /// The generation in force.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The slot of the local workload `namespace/name`.
    #[must_use]
    pub fn slot(&self, _workload: &str) -> Option<Slot> {
        None
    }

    /// What makes the maps hold `compiled`.
    ///
    /// # Errors
    /// Something does not fit.
    pub fn plan(
        &self,
        _compiled: &Compiled,
        _host_addresses: &BTreeSet<IpAddr>,
    ) -> Result<Plan, LimitError> {
        let _ = self.limits;
        Err(LimitError::Count {
            what: "plans",
            needed: 1,
            limit: 0,
        })
    }
}
