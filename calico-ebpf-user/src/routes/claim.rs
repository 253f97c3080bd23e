//! Other hosts that have a workload, too, as their routing daemons say. Pure.
//!
//! Two hosts whose files differ may both believe that a workload is theirs. The kernel has both routes then, and the better one
//! counts: the host whose route is worse steps back, polices and delivers nothing, and comes back when the other one is gone.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

/// Protocols of routes that routing daemons tell (include/uapi/linux/rtnetlink.h): Zebra, BIRD, BGP.
pub(crate) const TOLD_BY_DAEMONS: [u8; 3] = [11, 12, 186];

/// A host that wants a workload and is not heard of for so long wants it no more.
const RIVAL_SILENT: Duration = Duration::from_secs(5);

/// What another host says.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The way to the other host.
    pub via: Option<IpAddr>,
}

/// The workloads that are left to other hosts, by `namespace/name`.
#[derive(Clone, Debug, Default)]
pub struct Yielded(BTreeMap<String, (Claim, Option<Instant>)>);

/// Another host that wants a workload of ours, and does not get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rival {
    /// The address that it claims.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Its address, where that is known.
    pub host: Option<IpAddr>,
    /// When it was last heard of.
    pub seen: SystemTime,
}

/// Other hosts that say that they want workloads of ours, by `namespace/name`. They say so every second.
#[derive(Clone, Debug, Default)]
pub struct Rivals(BTreeMap<String, (Rival, Instant)>);

impl Rivals {
    /// One has said so; whether that is news.
    pub fn note(&mut self, name: &str, rival: Rival, now: Instant) -> bool {
        let mac = rival.mac;
        let before = self.0.insert(name.to_owned(), (rival, now));
        before.is_none_or(|(before, _)| before.mac != mac)
    }

    /// Forgets those that no longer say so, and says which workloads they wanted.
    pub fn forget(&mut self, now: Instant) -> Vec<String> {
        let over = |(_, at): &(Rival, Instant)| now.saturating_duration_since(*at) > RIVAL_SILENT;
        let gone = self.0.iter().filter(|(_, rival)| over(rival)).map(|(name, _)| name.clone()).collect();
        self.0.retain(|_, rival| !over(rival));
        gone
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Rival)> {
        self.0.iter().map(|(name, (rival, _))| (name, rival))
    }
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// This host has stepped back.
    Yield(String, Claim),
    /// The other one is gone: the workload is this host's again.
    TakeBack(String),
}

impl Yielded {
    /// Whether a workload is left to another host.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Claim)> {
        self.0.iter().map(|(name, (claim, _))| (name, claim))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets those of workloads that the files no longer have here.
    pub fn retain(&mut self, is_local: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| is_local(name));
    }

    /// Brings it up to date with what others claim now.
    ///
    /// Two hosts that see each other at once both step back. Each comes back after a time of its own, which its name says: the
    /// first to come back is seen by the other, and stays.
    pub fn update(&mut self, claims: &BTreeMap<String, Claim>, node: &str, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (name, claim) in claims {
            if self.0.insert(name.clone(), (claim.clone(), None)).is_none() {
                changes.push(Change::Yield(name.clone(), claim.clone()));
            }
        }
        self.0.retain(|name, (_, back)| {
            if claims.contains_key(name) || now < *back.get_or_insert(now + pause(node)) {
                return true;
            }
            changes.push(Change::TakeBack(name.clone()));
            false
        });
        changes
    }

    /// When to look again, where nothing is told of it.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.0.values().filter_map(|(_, back)| *back).min()
    }
}

/// One to nine seconds.
fn pause(node: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    node.hash(&mut hasher);
    Duration::from_secs(1) + Duration::from_millis(500) * (hasher.finish() % 17) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(names: &[&str]) -> BTreeMap<String, Claim> {
        let claim = Claim { address: IpAddr::from([10, 0, 0, 1]), via: Some(IpAddr::from([192, 0, 2, 2])) };
        names.iter().map(|name| ((*name).to_owned(), claim.clone())).collect()
    }

    #[test]
    fn a_rival_is_news_once_and_is_forgotten_when_it_is_silent() {
        let (mut rivals, start) = (Rivals::default(), Instant::now());
        let rival = |last| Rival {
            address: IpAddr::from([10, 0, 0, 1]),
            mac: [2, 0, 0, 0, 0, last],
            host: None,
            seen: SystemTime::UNIX_EPOCH,
        };
        assert!(rivals.note("a/b", rival(1), start));
        let later = start + Duration::from_secs(4);
        assert!(!rivals.note("a/b", rival(1), later));
        assert!(rivals.forget(start + Duration::from_secs(6)).is_empty());
        assert!(rivals.note("a/b", rival(2), later), "another one");
        assert_eq!(rivals.forget(later + Duration::from_secs(6)), ["a/b"]);
        assert_eq!(rivals.iter().count(), 0);
        assert!(rivals.note("a/b", rival(2), later), "again");
    }

    #[test]
    fn it_steps_back_at_once_and_comes_back_after_a_pause() {
        let (mut yielded, start) = (Yielded::default(), Instant::now());
        let changes = yielded.update(&claims(&["a/b"]), "host1", start);
        assert!(matches!(&changes[..], [Change::Yield(name, _)] if name == "a/b"));
        assert_eq!(yielded.update(&claims(&["a/b"]), "host1", start), [], "once");
        assert_eq!(yielded.next(), None, "for as long as the other one says so");
        assert_eq!(yielded.update(&claims(&[]), "host1", start), []);
        assert!(yielded.has("a/b"));
        let back = yielded.next().expect("a time");
        assert!(back >= start + Duration::from_secs(1) && back <= start + Duration::from_secs(9));
        // The other one is there again in between.
        assert_eq!(yielded.update(&claims(&["a/b"]), "host1", start), []);
        assert_eq!(yielded.next(), None);
        assert_eq!(yielded.update(&claims(&[]), "host1", start), []);
        assert_eq!(yielded.update(&claims(&[]), "host1", back), [Change::TakeBack("a/b".to_owned())]);
        assert!(yielded.is_empty());
    }
}
