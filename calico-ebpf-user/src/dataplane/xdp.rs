//! Hanging the XDP program on uplinks: a pinned link each, whose name says in which mode it hangs.
//!
//! Where it cannot be attached, the TC program does the same alone. So nothing of this is a fault: [`UplinkXdp`] says how it
//! is, and why.

use std::{
    fmt, fs, io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    error::{DataplaneError, Result},
    load::{Programs, remove_if_there},
    netlink::{Link, LinkTable, Netlink},
    sys,
};

/// How an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// In the device's driver, before the kernel makes a packet of the frame.
    Native,
    /// In the kernel, behind the driver.
    Generic,
}

impl XdpMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// `XDP_FLAGS_DRV_MODE` and `XDP_FLAGS_SKB_MODE`.
    const fn flags(self) -> u32 {
        match self {
            Self::Native => 1 << 2,
            Self::Generic => 1 << 1,
        }
    }

    /// In names of pins, and for people.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How it is with XDP on an uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UplinkXdp {
    /// The uplink.
    pub interface: String,
    /// How our program runs there; `null`: not at all.
    pub mode: Option<XdpMode>,
    /// Why so.
    pub reason: String,
    /// Whether it ought to run there, and somebody or something is in the way.
    pub hindered: bool,
}

impl fmt::Display for UplinkXdp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode.map_or("off", XdpMode::as_str);
        write!(f, "{mode}: {}", self.reason)
    }
}

/// What the resources say about XDP: `xdpEnabled` and `genericXDPEnabled` of `FelixConfiguration`, with Calico's defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpWish {
    /// Whether it may be used at all.
    pub enabled: bool,
    /// Whether it may run in generic mode where the device has no native one.
    pub generic: bool,
}

impl Default for XdpWish {
    fn default() -> Self {
        Self { enabled: true, generic: false }
    }
}

/// The links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct XdpLinks {
    pub(crate) directory: PathBuf,
}

impl XdpLinks {
    fn pin(&self, ifindex: u32, mode: XdpMode) -> PathBuf {
        self.directory.join(format!("link_{ifindex}_xdp_{mode}"))
    }

    /// Every link pin, of interfaces that may be gone.
    pub(crate) fn pins(&self) -> Result<Vec<(u32, XdpMode)>> {
        let entries =
            fs::read_dir(&self.directory).map_err(DataplaneError::io(format!("list {}", self.directory.display())))?;
        Ok(entries.flatten().filter_map(|entry| parse_pin_name(entry.file_name().to_str()?)).collect())
    }

    /// How ours hangs on an interface, and the id of its program.
    pub(crate) fn hanging(&self, ifindex: u32) -> Option<(XdpMode, u32)> {
        let program = |mode| Some((mode, program_of(&self.pin(ifindex, mode), ifindex)?));
        XdpMode::ALL.into_iter().find_map(program)
    }

    /// Takes ours off an interface. True if something was there.
    pub(crate) fn detach(&self, ifindex: u32) -> Result<bool> {
        let mut found = false;
        for mode in XdpMode::ALL {
            let pin = self.pin(ifindex, mode);
            if let Ok(link) = sys::object_open(&pin, false) {
                found = true;
                // Of an interface that is gone there is nothing to take it off.
                let _gone = sys::link_detach(link.as_raw_fd());
            }
            remove_if_there(&pin).map_err(DataplaneError::io(format!("detach XDP from interface {ifindex}")))?;
        }
        Ok(found)
    }

    /// Sees to it that ours hangs on an interface, in place of an older one of ours. True if something was changed.
    pub(crate) fn keep(
        &self,
        netlink: &mut Netlink,
        programs: &mut Programs,
        (ifindex, interface): (u32, &str),
        wish: XdpWish,
    ) -> Result<(UplinkXdp, bool)> {
        let state = |mode: Option<XdpMode>, reason: String, hindered| UplinkXdp {
            interface: interface.to_owned(),
            mode,
            reason,
            hindered,
        };
        let (program, id) = match programs.xdp() {
            Ok(program) => program,
            Err(error) => return Ok((state(None, format!("{error}; the TC program judges alone"), true), false)),
        };
        let hanging = self.hanging(ifindex).filter(|(mode, _)| *mode == XdpMode::Native || wish.generic);
        if let Some((mode, attached)) = hanging {
            let changed = attached != id;
            if changed {
                self.replace(ifindex, mode, program.as_fd().as_raw_fd())?;
            }
            return Ok((state(Some(mode), in_place(mode).to_owned(), false), changed));
        }
        // A pin whose interface is gone, or of a mode that is not to be any more.
        self.detach(ifindex)?;
        let attach = |mode: XdpMode| self.attach(ifindex, mode, program.as_fd().as_raw_fd());
        let native = match attach(XdpMode::Native) {
            Ok(()) => return Ok((state(Some(XdpMode::Native), in_place(XdpMode::Native).to_owned(), false), true)),
            Err(error) => error,
        };
        if matches!(native.raw_os_error(), Some(libc::EBUSY | libc::EEXIST)) {
            let whose = netlink.xdp_programs(ifindex).map(describe).unwrap_or_default();
            let reason = format!("another XDP program is there{whose}: the TC program judges alone");
            return Ok((state(None, reason, true), false));
        }
        let why = explain(&native);
        if !wish.generic {
            let reason =
                format!("no native mode ({why}) and genericXDPEnabled is not true: the TC program judges alone");
            return Ok((state(None, reason, false), false));
        }
        match attach(XdpMode::Generic) {
            Ok(()) => Ok((state(Some(XdpMode::Generic), format!("no native mode ({why})"), false), true)),
            Err(error) => {
                let reason =
                    format!("neither native ({why}) nor generic ({}): the TC program judges alone", explain(&error));
                Ok((state(None, reason, true), false))
            }
        }
    }

    fn attach(&self, ifindex: u32, mode: XdpMode, program: i32) -> io::Result<()> {
        let link = sys::xdp_link(program, ifindex, mode.flags())?;
        sys::object_pin(link.as_raw_fd(), &self.pin(ifindex, mode))
    }

    fn replace(&self, ifindex: u32, mode: XdpMode, program: i32) -> Result<()> {
        let update = || sys::link_update(sys::object_open(&self.pin(ifindex, mode), false)?.as_raw_fd(), program);
        update().map_err(DataplaneError::io(format!("replace the XDP program of interface {ifindex}")))
    }
}

/// Why no XDP program may judge for this interface, if so.
pub(crate) fn obstacle(link: &Link, links: &LinkTable) -> Option<String> {
    let lies_on_it = |other: &&Link| other.vlan && other.peer_netns.is_none() && other.peer_index == Some(link.index);
    if let Some(vlan) = links.iter().find(lies_on_it) {
        // Drivers (and veth) put a tag aside before the program sees the frame.
        let reason =
            format!("a driver may hide which frames are those of VLAN {}: the TC program judges alone", vlan.name);
        return Some(reason);
    }
    // The kernel runs the program on them, and tells it their indices.
    link.bond.then(|| "what it would see are the parts of the bond: the TC program judges alone".to_owned())
}

const fn in_place(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "untracked policy is judged in the driver",
        XdpMode::Generic => "untracked policy is judged before the stack, behind the driver: it has no native mode",
    }
}

/// The id of the program of a pinned link, if the link still hangs on this interface.
fn program_of(pin: &Path, ifindex: u32) -> Option<u32> {
    let link = sys::object_open(pin, false).ok()?;
    let (target, program) = sys::link_target(link.as_raw_fd()).ok()?;
    (target == ifindex).then_some(program)
}

/// What the kernel means by refusing.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => "the driver has none".to_owned(),
        Some(libc::ERANGE) => "the MTU is too large for it".to_owned(),
        Some(libc::ENOSPC) => "it needs as many receive queues as the other end has for sending".to_owned(),
        _ => error.to_string(),
    }
}

/// Which programs hang on an interface, as an addition to a sentence.
pub(crate) fn describe(ids: Vec<u32>) -> String {
    let names: Vec<String> = ids
        .into_iter()
        .map(|id| {
            let mut all = aya::programs::loaded_programs().flatten();
            let name = all.find(|program| program.id() == id).and_then(|one| one.name_as_str().map(str::to_owned));
            format!("{} (id {id})", name.as_deref().unwrap_or("?"))
        })
        .collect();
    if names.is_empty() { String::new() } else { format!(", {}", names.join(" and ")) }
}

fn parse_pin_name(name: &str) -> Option<(u32, XdpMode)> {
    let (index, mode) = name.strip_prefix("link_")?.split_once("_xdp_")?;
    let mode = XdpMode::ALL.into_iter().find(|known| known.as_str() == mode)?;
    Some((index.parse().ok()?, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_names_are_read_back() {
        let links = XdpLinks { directory: "/x".into() };
        for mode in XdpMode::ALL {
            let pin = links.pin(17, mode);
            assert_eq!(
                parse_pin_name(pin.file_name().and_then(|name| name.to_str()).unwrap_or_default()),
                Some((17, mode))
            );
        }
        assert_eq!(parse_pin_name("link_17_in"), None);
        assert_eq!(parse_pin_name("link_x_xdp_native"), None);
    }
}
