//! Sets of `protocol << 16 | port`, as sorted, disjoint ranges with both ends included.

/// A set of `protocol << 16 | port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ranges(Vec<(u32, u32)>);

/// The last key there is.
const LAST: u32 = 0xff_ffff;

impl Ranges {
    /// Everything.
    pub(super) fn all() -> Self {
        Self(vec![(0, LAST)])
    }

    /// All of one protocol.
    pub(super) fn protocol(protocol: u8) -> Self {
        let base = u32::from(protocol) << 16;
        Self(vec![(base, base | 0xffff)])
    }

    /// Ports of one protocol, both ends included.
    pub(super) fn ports(protocol: u8, first: u16, last: u16) -> Self {
        let base = u32::from(protocol) << 16;
        Self(if first <= last { vec![(base | u32::from(first), base | u32::from(last))] } else { Vec::new() })
    }

    /// What is in any of `sets`.
    pub(super) fn union(sets: impl IntoIterator<Item = Self>) -> Self {
        let mut all: Vec<_> = sets.into_iter().flat_map(|set| set.0).collect();
        all.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => previous.1 = previous.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// What is not in this set.
    pub(super) fn complement(&self) -> Self {
        let mut rest = Vec::with_capacity(self.0.len() + 1);
        let mut next = 0;
        for &(first, last) in &self.0 {
            if next < first {
                rest.push((next, first - 1));
            }
            next = last + 1;
        }
        if next <= LAST {
            rest.push((next, LAST));
        }
        Self(rest)
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Self) -> Self {
        let (mut both, mut a, mut b) = (Vec::new(), 0, 0);
        while let (Some(&x), Some(&y)) = (self.0.get(a), other.0.get(b)) {
            let (first, last) = (x.0.max(y.0), x.1.min(y.1));
            if first <= last {
                both.push((first, last));
            }
            if x.1 < y.1 { a += 1 } else { b += 1 }
        }
        Self(both)
    }

    /// What is in this set and not in the other.
    pub(super) fn without(&self, other: &Self) -> Self {
        self.and(&other.complement())
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The least in it.
    pub(super) fn first(&self) -> Option<u32> {
        self.0.first().map(|range| range.0)
    }

    /// Whether this is in it.
    pub(super) fn contains(&self, key: u32) -> bool {
        self.0.iter().any(|&(first, last)| (first..=last).contains(&key))
    }

    /// What a [`RuleMatch`](super::compiled::RuleMatch) says.
    pub(super) fn from_condition(ranges: &[(u32, u32)]) -> Self {
        if ranges.is_empty() { Self::all() } else { Self(ranges.to_vec()) }
    }

    /// As a [`RuleMatch`](super::compiled::RuleMatch) has it: nothing where everything is in it.
    pub(super) fn into_condition(self) -> Vec<(u32, u32)> {
        if self == Self::all() { Vec::new() } else { self.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algebra() {
        let http = Ranges::ports(6, 80, 81);
        let tcp = Ranges::protocol(6);
        assert_eq!(http.and(&tcp), http);
        assert_eq!(tcp.without(&http).0, [(0x06_0000, 0x06_004f), (0x06_0052, 0x06_ffff)]);
        assert_eq!(Ranges::union([tcp.without(&http), http.clone()]), tcp);
        assert!(http.and(&Ranges::protocol(17)).is_empty());
        assert!(Ranges::ports(6, 2, 1).is_empty());
        assert_eq!(Ranges::all().complement(), Ranges(Vec::new()));
        assert_eq!(tcp.complement().complement(), tcp);
        let last = Ranges::ports(255, 65535, 65535);
        assert_eq!(last.complement().0, [(0, 0xff_fffe)]);
        assert_eq!(Ranges::all().into_condition(), []);
    }
}
