//! The sysctls that the path through the stack needs. `/proc/sys/net` shows those of the reader's network namespace.

use std::{fs, io, path::PathBuf};

use super::{
    error::{DataplaneError, Result},
    info::SavedSysctl,
};

/// A sysctl and the value it should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Path below `/proc/sys`.
    pub(crate) path: String,
    pub(crate) value: &'static str,
}

impl Setting {
    pub(crate) fn new(path: impl Into<String>, value: &'static str) -> Self {
        Self { path: path.into(), value }
    }

    /// Sets it. What it was before, if it was another.
    fn apply(&self) -> Result<Option<SavedSysctl>> {
        let Some(old) = read(&self.path)? else { return Ok(None) };
        if old == self.value {
            return Ok(None);
        }
        write(&self.path, self.value)?;
        Ok(Some(SavedSysctl { path: self.path.clone(), old, new: self.value.to_owned() }))
    }
}

/// Sets them all. What those were before that were others; what fails is added to `faults`.
pub(crate) fn apply(settings: Vec<Setting>, faults: &mut Vec<String>) -> Vec<SavedSysctl> {
    let mut saved = Vec::new();
    for setting in settings {
        match setting.apply() {
            Ok(old) => saved.extend(old),
            Err(error) => faults.push(error.to_string()),
        }
    }
    saved
}

/// Forwarding, for what takes the stack.
pub(crate) fn forwarding() -> [Setting; 2] {
    [Setting::new("net/ipv4/ip_forward", "1"), Setting::new("net/ipv6/conf/all/forwarding", "1")]
}

/// What an interface of a workload needs: its router advertisements are never believed; forwarding is on, whatever the
/// defaults were when it came up; one that may spoof is not filtered by reverse path (there is no such filter for IPv6).
pub(crate) fn workload(interface: &str, spoof: bool, v6: bool) -> Vec<Setting> {
    let mut settings = vec![
        Setting::new(format!("net/ipv4/conf/{interface}/forwarding"), "1"),
        Setting::new(format!("net/ipv6/conf/{interface}/accept_ra"), "0"),
        Setting::new(format!("net/ipv6/conf/{interface}/forwarding"), "1"),
    ];
    if v6 {
        settings.push(Setting::new(format!("net/ipv6/conf/{interface}/disable_ipv6"), "0"));
    }
    if spoof {
        settings.push(Setting::new(format!("net/ipv4/conf/{interface}/rp_filter"), "0"));
    }
    settings
}

/// What an uplink needs before forwarding is switched on: one that learns by router advertisements goes on doing so only
/// with 2. One that did not listen (0, or forwarding already on, if it was not we that did it) is left alone.
pub(crate) fn uplink(interface: &str, saved: &[SavedSysctl]) -> Result<Option<Setting>> {
    let path = |name| format!("net/ipv6/conf/{interface}/{name}");
    let [_, all] = forwarding();
    let is_ours = saved.iter().any(|saved| saved.path == all.path && saved.old == "0");
    let listens = || Ok(is_ours || read(&path("forwarding"))?.as_deref() == Some("0"));
    let learns = read(&path("accept_ra"))?.as_deref() == Some("1") && listens()?;
    Ok(learns.then(|| Setting::new(path("accept_ra"), "2")))
}

/// Reads a sysctl; `None` if there is no such (an interface that is gone, a family that is switched off).
pub(crate) fn read(path: &str) -> Result<Option<String>> {
    let file = file(path);
    match fs::read_to_string(&file) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataplaneError::io(format!("read {}", file.display()))(error)),
    }
}

pub(crate) fn write(path: &str, value: &str) -> Result<()> {
    let file = file(path);
    fs::write(&file, value).map_err(DataplaneError::io(format!("write {value} to {}", file.display())))
}

/// Puts a sysctl back to what it was, if it still has the value that was set. False if it has another one.
pub(crate) fn restore(saved: &SavedSysctl) -> Result<bool> {
    match read(&saved.path)? {
        Some(now) if now == saved.new => write(&saved.path, &saved.old).map(|()| true),
        Some(_) => Ok(false),
        None => Ok(true),
    }
}

/// An interface name may hold dots, which mean nothing in a path; it cannot hold a slash.
fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path)
}
