//! Asking the loaded program: a packet goes through `cali_explain` by `BPF_PROG_TEST_RUN`, which leaves no trace.

use std::os::fd::{AsRawFd as _, OwnedFd};

use calico_ebpf_common::abi::{DROP_REASONS, DropReason, Explained, names};

use super::{
    error::{DataplaneError, Result},
    frame,
    instance::Instance,
    load::program_path,
    sys,
};
use crate::policy::flow::Flow;

/// The pinned program.
#[derive(Debug)]
pub struct Probe {
    program: OwnedFd,
}

impl Probe {
    /// Opens the pinned program; `None` where the one that is installed is of a version that has none.
    ///
    /// # Errors
    /// Without the privilege to look.
    pub fn open(instance: &Instance) -> Result<Option<Self>> {
        let path = program_path(&instance.layout_dir(), names::PROG_EXPLAIN);
        match sys::object_open(&path, false) {
            Ok(program) => Ok(Some(Self { program })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Err(DataplaneError::NotRoot),
            Err(error) => Err(DataplaneError::io(path.display().to_string())(error)),
        }
    }

    /// What the program would do with the first packet of this flow.
    ///
    /// # Errors
    /// If the kernel does not run it, the program does not understand the packet, or the addresses are of two families.
    pub fn ask(&self, flow: &Flow) -> Result<Explained> {
        let failed = |message: String| DataplaneError::Load { what: names::PROG_EXPLAIN.to_owned(), message };
        let mut packet =
            frame::first(flow).ok_or_else(|| failed("the addresses are of different families".to_owned()))?;
        let result = sys::program_run_on(self.program.as_raw_fd(), &mut packet)
            .map_err(DataplaneError::io(names::PROG_EXPLAIN))?;
        // TC_ACT_UNSPEC.
        if result != u32::MAX {
            let reason = reason(result).map_or("unknown", |(_, name)| name);
            return Err(failed(format!("the packet is dropped before it is judged: {reason}")));
        }
        let head = packet.get(..size_of::<Explained>()).unwrap_or_default();
        bytemuck::try_pod_read_unaligned(head).map_err(|error| failed(error.to_string()))
    }
}

/// A drop reason by its number.
pub(crate) fn reason(number: u32) -> Option<(DropReason, &'static str)> {
    DROP_REASONS.iter().find(|(reason, _)| *reason as u32 == number).copied()
}
