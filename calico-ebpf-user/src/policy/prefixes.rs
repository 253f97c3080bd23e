//! The next wider prefix in an ordered map.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

/// The lengths of the prefixes of a map: where to look for the wider ones.
pub(super) struct Prefixes {
    lengths: [BTreeSet<u8>; 2],
}

impl Prefixes {
    pub(super) fn new<'a>(prefixes: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut lengths = [BTreeSet::new(), BTreeSet::new()];
        for prefix in prefixes {
            lengths[usize::from(matches!(prefix, IpNet::V6(_)))].insert(prefix.prefix_len());
        }
        Self { lengths }
    }

    /// The value of the longest prefix in `map` that contains `prefix` and is not that itself.
    pub(super) fn wider<'m, V>(&self, map: &'m BTreeMap<IpNet, V>, prefix: &IpNet) -> Option<&'m V> {
        let lengths = &self.lengths[usize::from(matches!(prefix, IpNet::V6(_)))];
        lengths.range(..prefix.prefix_len()).rev().find_map(|&length| {
            let wider = IpNet::new(prefix.network(), length).ok()?.trunc();
            map.get(&wider)
        })
    }
}
