//! Hanging programs on interfaces: pinned TCX links, or `cls_bpf` filters on older kernels.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttach, TcAttachType,
    links::{FdLink, PinnedLink},
};

use super::{
    desired::Attachment,
    error::{DataplaneError, Result},
    load::{Programs, remove_if_there},
    netlink::{Hook, Netlink},
    sys,
};

/// Priority of our `cls_bpf` filters: before the default ones, and fixed, so that a restart finds them.
pub(crate) const PRIORITY: u16 = 0xca1;
/// Handle of our `cls_bpf` filters.
pub(crate) const HANDLE: u32 = 0x0ca1_1c0e;

/// What hangs on one hook of one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hanging {
    pub(crate) attachment: Attachment,
    /// Id of the program.
    pub(crate) program: u32,
}

/// Where links are pinned, and by which kind of attachment new ones hang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hooks {
    pub(crate) directory: PathBuf,
    pub(crate) attachment: Attachment,
}

impl Hooks {
    /// Where the TCX link of a hook is pinned.
    fn pin(&self, ifindex: u32, hook: Hook) -> PathBuf {
        self.directory.join(pin_name(ifindex, hook))
    }

    /// Every link pin, of interfaces that may be gone.
    pub(crate) fn pins(&self) -> Result<Vec<(u32, Hook)>> {
        let entries =
            fs::read_dir(&self.directory).map_err(DataplaneError::io(format!("list {}", self.directory.display())))?;
        Ok(entries.flatten().filter_map(|entry| parse_pin_name(entry.file_name().to_str()?)).collect())
    }

    /// What of ours hangs on a hook: TCX first.
    pub(crate) fn hanging(&self, netlink: &mut Netlink, ifindex: u32, hook: Hook) -> Result<Option<Hanging>> {
        if let Some(program) = tcx_program(&self.pin(ifindex, hook), ifindex) {
            return Ok(Some(Hanging { attachment: Attachment::Tcx, program }));
        }
        // Only where filters may be: the dump costs more than the look at a pin.
        let filter = self.own_filter(netlink, ifindex, hook)?;
        Ok(filter.map(|program| Hanging { attachment: Attachment::Clsact, program }))
    }

    fn own_filter(&self, netlink: &mut Netlink, ifindex: u32, hook: Hook) -> Result<Option<u32>> {
        let filters = netlink
            .filters(ifindex, hook)
            .map_err(DataplaneError::io(format!("list the filters of interface {ifindex}")))?;
        let own = filters.into_iter().find(|filter| filter.priority == PRIORITY && filter.handle == HANDLE);
        Ok(own.map(|filter| filter.program.unwrap_or(0)))
    }

    /// Hangs a program on a hook, in place of ours that hangs there; never leaves the hook empty meanwhile.
    /// True if the clsact qdisc was made for it.
    pub(crate) fn attach(
        &self,
        netlink: &mut Netlink,
        programs: &mut Programs,
        name: &'static str,
        ifindex: u32,
        hook: Hook,
    ) -> Result<bool> {
        let what = || format!("attach {name} to interface {ifindex}");
        let pin = self.pin(ifindex, hook);
        match self.attachment {
            Attachment::Tcx => {
                let program = programs.get_mut(name)?;
                attach_tcx(program, &pin, ifindex, hook).map_err(|error| DataplaneError::load(what(), &error))?;
                // Left from a run with the other kind of attachment.
                netlink.delete_filter(ifindex, hook, PRIORITY, HANDLE).map_err(DataplaneError::io(what()))?;
                Ok(false)
            }
            Attachment::Clsact => {
                let made = netlink.add_clsact(ifindex).map_err(DataplaneError::io(what()))?;
                let program = programs.get_mut(name)?;
                let fd = program.fd().map_err(|error| DataplaneError::load(what(), &error))?.as_fd().as_raw_fd();
                netlink.set_filter(ifindex, hook, PRIORITY, HANDLE, (fd, name)).map_err(DataplaneError::io(what()))?;
                remove_if_there(&pin).map_err(DataplaneError::io(what()))?;
                Ok(made)
            }
        }
    }

    /// Takes ours off a hook.
    pub(crate) fn detach(&self, netlink: &mut Netlink, ifindex: u32, hook: Hook) -> Result<()> {
        let what = || format!("detach from interface {ifindex}");
        remove_if_there(&self.pin(ifindex, hook)).map_err(DataplaneError::io(what()))?;
        netlink.delete_filter(ifindex, hook, PRIORITY, HANDLE).map_err(DataplaneError::io(what()))
    }
}

/// The id of the program of a pinned TCX link, if the link still hangs on this interface.
fn tcx_program(pin: &Path, ifindex: u32) -> Option<u32> {
    let link = sys::object_open(pin, false).ok()?;
    let (target, program) = sys::link_target(link.as_raw_fd()).ok()?;
    (target == ifindex).then_some(program)
}

fn attach_tcx(program: &mut SchedClassifier, pin: &Path, ifindex: u32, hook: Hook) -> Result<(), ProgramError> {
    if tcx_program(pin, ifindex).is_some() {
        let link = FdLink::from(PinnedLink::from_pin(pin)?).try_into()?;
        let id = program.attach_to_link(link)?;
        // The pin holds the link; forget the descriptor only.
        drop(program.take_link(id)?);
        return Ok(());
    }
    // A pin whose interface is gone.
    remove_if_there(pin).map_err(ProgramError::IOError)?;
    let attach_type = match hook {
        Hook::Ingress => TcAttachType::Ingress,
        Hook::Egress => TcAttachType::Egress,
    };
    let mut attempts = 0..20;
    let id = loop {
        match program.attach(ifindex, TcAttach::Tcx { attach_type, order: LinkOrder::first() }) {
            // The kernel lets go of a link some time after its pin is removed, and no program hangs twice on a hook.
            Err(ProgramError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) && attempts.next().is_some() =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => break done?,
        }
    };
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin).map_err(|error| ProgramError::IOError(io::Error::other(error)))?;
    Ok(())
}

fn pin_name(ifindex: u32, hook: Hook) -> String {
    let hook = match hook {
        Hook::Ingress => "in",
        Hook::Egress => "out",
    };
    format!("link_{ifindex}_{hook}")
}

fn parse_pin_name(name: &str) -> Option<(u32, Hook)> {
    let (index, hook) = name.strip_prefix("link_")?.split_once('_')?;
    let hook = match hook {
        "in" => Hook::Ingress,
        "out" => Hook::Egress,
        _ => return None,
    };
    Some((index.parse().ok()?, hook))
}

/// Program ids by hook, for the cheap check that everything still hangs.
pub(crate) type Expected = BTreeMap<(u32, Hook), u32>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_are_read_back() {
        for hook in [Hook::Ingress, Hook::Egress] {
            assert_eq!(parse_pin_name(&pin_name(17, hook)), Some((17, hook)));
        }
        assert_eq!(parse_pin_name("link_x_in"), None);
        assert_eq!(parse_pin_name("cali_root"), None);
    }
}
