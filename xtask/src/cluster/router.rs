//! The routing daemon of a speaker, whichever it is.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

use super::{
    bird::{self, Bird},
    frr::{self, Frr},
    gobgp::{self, Gobgp},
};
use crate::{
    lab::Namespace,
    setup::{
        daemons::{BIRD3, FRR, FRR8, GOBGP, Tree},
        find_program,
    },
};

/// The routing daemon of the hosts. All others have BIRD 2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum Daemon {
    /// BIRD 2.
    #[default]
    Bird2,
    /// BIRD 3.
    Bird3,
    /// FRR 10.
    Frr,
    /// FRR 8.
    Frr8,
    /// GoBGP 3, over the zebra of FRR 8.
    Gobgp,
}

impl Daemon {
    /// All, by their names as options.
    pub const ALL: [(&str, Self); 5] = [
        ("bird2", Self::Bird2),
        ("bird3", Self::Bird3),
        ("frr", Self::Frr),
        ("frr8", Self::Frr8),
        ("gobgp", Self::Gobgp),
    ];

    /// What has to be fetched for it.
    #[must_use]
    pub const fn trees(self) -> &'static [Tree] {
        match self {
            Self::Bird2 => &[],
            Self::Bird3 => &[BIRD3],
            Self::Frr => &[FRR],
            Self::Frr8 => &[FRR8],
            Self::Gobgp => &[GOBGP, FRR8],
        }
    }

    /// Whether everything for it is here.
    #[must_use]
    pub fn is_here(self) -> bool {
        find_program("bird").is_some() && self.trees().iter().all(|tree| tree.find().is_some())
    }

    /// The configurations that it needs, as `calico-ebpf bgp config` calls them.
    #[must_use]
    pub const fn flavours(self) -> &'static [&'static str] {
        match self {
            Self::Bird2 | Self::Bird3 => &["bird"],
            Self::Frr | Self::Frr8 => &["frr"],
            Self::Gobgp => &["gobgp", "gobgp-zebra"],
        }
    }

    /// Starts it in `namespace`; `configs` are of its flavours.
    ///
    /// # Errors
    /// It is not here, or refuses the configuration.
    pub fn start(self, base: &Path, name: &str, namespace: &Namespace, configs: &[String]) -> anyhow::Result<Router> {
        Ok(match (self, configs) {
            (Self::Bird2 | Self::Bird3, [config]) => {
                Router::Bird(Bird::start(self == Self::Bird3, base, name, namespace, config)?)
            }
            (Self::Frr, [config]) => Router::Frr(Frr::start(&FRR, frr::ALL, base, name, namespace, config)?),
            (Self::Frr8, [config]) => Router::Frr(Frr::start(&FRR8, frr::ALL, base, name, namespace, config)?),
            (Self::Gobgp, [config, zebra]) => Router::Gobgp(Gobgp::start(base, name, namespace, config, zebra)?),
            _ => bail!("{self:?} needs {} configurations", self.flavours().len()),
        })
    }

    /// How to ask it.
    #[must_use]
    pub fn control(self, base: &Path, name: &str, netns: &str) -> Control {
        match self {
            Self::Bird2 => Control::Bird(bird::Control::new(false, base, name)),
            Self::Bird3 => Control::Bird(bird::Control::new(true, base, name)),
            Self::Frr => Control::Frr(frr::Control::new(&FRR, base, name)),
            Self::Frr8 => Control::Frr(frr::Control::new(&FRR8, base, name)),
            Self::Gobgp => Control::Gobgp(gobgp::Control::new(netns)),
        }
    }
}

/// A running daemon. Dropping it kills it: what it told the kernel stays, as after a crash.
#[derive(Debug)]
pub enum Router {
    /// BIRD 2 or 3.
    Bird(Bird),
    /// FRR.
    Frr(Frr),
    /// GoBGP with zebra.
    Gobgp(Gobgp),
}

impl Router {
    /// What it does.
    ///
    /// # Errors
    /// A file is gone.
    pub fn configs(&self) -> anyhow::Result<Vec<String>> {
        Ok(match self {
            Self::Bird(bird) => vec![bird.config()?],
            Self::Frr(frr) => vec![frr.config()?],
            Self::Gobgp(gobgp) => gobgp.configs()?.into(),
        })
    }

    /// Gives it other configurations. FRR and GoBGP are started anew for it, which is simple and not what one does to a
    /// network that is used: FRR has `frr-reload.py`, and GoBGP reads its file again at SIGHUP.
    ///
    /// # Errors
    /// It refuses.
    pub fn configure(&mut self, configs: &[String]) -> anyhow::Result<()> {
        match (self, configs) {
            (Self::Bird(bird), [config]) => bird.configure(config),
            (Self::Frr(frr), [config]) => frr.configure(config),
            (Self::Gobgp(gobgp), [config, zebra]) => gobgp.configure(config, zebra),
            _ => bail!("not the number of configurations that it has"),
        }
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        match self {
            Self::Bird(bird) => bird.kill(),
            Self::Frr(frr) => frr.kill(),
            Self::Gobgp(gobgp) => gobgp.kill(),
        }
    }

    /// Starts it again after [`Router::kill`].
    ///
    /// # Errors
    /// It is not here any more.
    pub fn recover(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Bird(bird) => bird.recover(),
            Self::Frr(frr) => frr.recover(),
            Self::Gobgp(gobgp) => gobgp.recover(),
        }
    }
}

/// How to ask a daemon, also from another process.
#[derive(Clone, Debug)]
pub enum Control {
    /// BIRD 2 or 3.
    Bird(bird::Control),
    /// FRR.
    Frr(frr::Control),
    /// GoBGP.
    Gobgp(gobgp::Control),
}

impl Control {
    /// Its sessions.
    ///
    /// # Errors
    /// It is not there.
    pub fn sessions(&self) -> anyhow::Result<Vec<Session>> {
        match self {
            Self::Bird(control) => control.sessions(),
            Self::Frr(control) => control.sessions(),
            Self::Gobgp(control) => control.sessions(),
        }
    }

    /// What helps to understand what it does.
    ///
    /// # Errors
    /// It is not there.
    pub fn describe(&self) -> anyhow::Result<String> {
        match self {
            Self::Bird(control) => control.ask("show protocols"),
            Self::Frr(control) => control.ask(&["show bgp summary", "show ip route", "show ipv6 route"]),
            Self::Gobgp(control) => Ok(["neighbor", "global rib", "global rib -a ipv6"]
                .map(|question| control.ask(question).unwrap_or_default())
                .concat()),
        }
    }

    /// What people ask it with.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Bird(_) => "birdc",
            Self::Frr(_) => "vtysh",
            Self::Gobgp(_) => "gobgp",
        }
    }

    /// What runs [`Control::name`], to which arguments may be added.
    ///
    /// # Errors
    /// It is not here.
    pub fn command(&self) -> anyhow::Result<Command> {
        match self {
            Self::Bird(control) => control.command(),
            Self::Frr(control) => control.command(),
            Self::Gobgp(control) => control.command(),
        }
    }
}

/// A session of BGP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The daemon's name of it, or the peer's address.
    pub name: String,
    /// It is up.
    pub established: bool,
    /// What the daemon says about it.
    pub info: String,
}

/// A command of several words.
pub(super) fn command(words: &[std::ffi::OsString]) -> anyhow::Result<Command> {
    ensure!(!words.is_empty(), "no program");
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    Ok(command)
}
