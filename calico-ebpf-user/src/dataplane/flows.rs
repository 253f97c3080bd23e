//! The flows that the programs record while somebody looks.

use std::{mem::offset_of, path::PathBuf};

use calico_ebpf_common::abi::{FlowKey, FlowRecord, Root, names};

use super::{
    clock::Clock,
    error::{DataplaneError, Result},
    instance::Instance,
    maps::TypedMap,
    sys::Mapping,
};

/// The records, and the switch that has them made.
#[derive(Debug)]
pub struct FlowLog {
    directory: PathBuf,
    root: Mapping<Root>,
    flows: TypedMap<FlowKey, FlowRecord>,
}

impl FlowLog {
    /// Opens them; `None` where nothing is installed, or a version that makes none.
    ///
    /// # Errors
    /// If the maps cannot be opened.
    pub fn open(instance: &Instance) -> Result<Option<Self>> {
        let directory = instance.layout_dir();
        if !directory.join(names::FLOWS).exists() {
            return Ok(None);
        }
        let flows = TypedMap::open(&directory, names::FLOWS, true)?;
        let root = TypedMap::<u32, Root>::open(&directory, names::ROOT, false)?.memory()?;
        Ok(Some(Self { directory, root, flows }))
    }

    /// Has flows recorded for so many seconds from now on, or longer if somebody asked for longer. Nobody has to end it:
    /// who looks for longer says so again in time. Tells whether they were recorded already.
    ///
    /// # Errors
    /// If the clock cannot be read.
    pub fn watch(&self, seconds: u32) -> Result<bool> {
        const AT: usize = offset_of!(Root, watched_until);
        let failed = |error| DataplaneError::io(names::ROOT)(error);
        let hz = self.root.load_u32(0, offset_of!(Root, hz)).map_err(failed)?;
        let now = Clock::open(&self.directory)?.now()?;
        // 0 means that nobody looks.
        let until = now.wrapping_add(seconds.saturating_mul(hz)).max(1);
        let before = self.root.load_u32(0, AT).map_err(failed)?;
        let after = |then: u32| before != 0 && before.wrapping_sub(then) as i32 > 0;
        if !after(until) {
            self.root.store_u32(0, AT, until).map_err(failed)?;
        }
        Ok(after(now))
    }

    /// All records, in no order.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn read(&self) -> Result<Vec<(FlowKey, FlowRecord)>> {
        self.flows.entries()
    }
}
