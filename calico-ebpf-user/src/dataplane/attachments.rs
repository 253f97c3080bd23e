//! Whether every filter is where it should be: for what no notification tells, as of a TCX link that is detached by hand.

use std::collections::BTreeMap;

use super::{
    error::{DataplaneError, Result},
    netlink::Netlink,
    tc::{Expected, Hanging, Hooks},
    xdp::XdpLinks,
};

/// The programs that should hang on interfaces, as the last apply left them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachments {
    pub(crate) hooks: Hooks,
    pub(crate) xdp: XdpLinks,
    pub(crate) expected: Expected,
    /// Interfaces with the XDP program that should hang there.
    pub(crate) expected_xdp: BTreeMap<u32, u32>,
}

impl Attachments {
    /// Whether they all do. A few system calls a filter, which wait for whoever changes devices of the network meanwhile: for a
    /// thread that has nothing else to do.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn are_intact(&self) -> Result<bool> {
        let mut netlink = Netlink::open().map_err(DataplaneError::io("open a netlink socket"))?;
        let by_xdp =
            |(ifindex, program): (&u32, &u32)| self.xdp.hanging(*ifindex).is_some_and(|(_, id)| id == *program);
        if !self.expected_xdp.iter().all(by_xdp) {
            return Ok(false);
        }
        for ((ifindex, hook), program) in &self.expected {
            let wanted = Hanging { attachment: self.hooks.attachment, program: *program };
            if self.hooks.hanging(&mut netlink, *ifindex, *hook)? != Some(wanted) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
