//! What a `Log` rule records.

use bytemuck::{Pod, Zeroable};

/// A packet that met a `Log` rule on the way to its decision.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct LogRecord {
    /// Counter slot of the rule.
    pub counter: u32,
    /// Packets that were not recorded since the last record of this processor, because there were too many.
    pub suppressed: u32,
    /// The packet's source; IPv4 addresses mapped into IPv6.
    pub source: [u8; 16],
    /// Its destination.
    pub destination: [u8; 16],
    /// 0 where the protocol has none.
    pub source_port: u16,
    /// ICMP: `type << 8 | code`; 0 where the protocol has none.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 4 or 6.
    pub version: u8,
    /// Zero.
    pub reserved: [u8; 2],
}

/// What is left of somebody's share of what may be done so many times a second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Allowance {
    /// How many times it may be done now.
    pub tokens: u32,
    /// Jiffies at which tokens were last added.
    pub since: u32,
    /// What was refused since something was last granted.
    pub refused: u32,
}

impl Allowance {
    /// Takes one, if there is one: `rate` come in a second, and no more than `burst` are kept.
    #[inline(always)]
    #[must_use]
    pub const fn take(&mut self, now: u32, hz: u32, rate: u32, burst: u32) -> bool {
        if hz == 0 || rate == 0 {
            return false;
        }
        let elapsed = now.wrapping_sub(self.since);
        if elapsed > hz * burst / rate {
            self.tokens = burst;
            self.since = now;
        } else if elapsed * rate >= hz {
            let more = self.tokens + elapsed * rate / hz;
            self.tokens = if more > burst { burst } else { more };
            self.since = now;
        }
        if self.tokens == 0 {
            self.refused += 1;
            return false;
        }
        self.tokens -= 1;
        true
    }
}

const _: () = assert!(size_of::<LogRecord>() == 48);

#[cfg(test)]
mod tests {
    use super::Allowance;

    #[test]
    fn an_allowance_is_spent_and_comes_back() {
        let mut left = Allowance::default();
        let taken = |left: &mut Allowance, now| (0..20).filter(|_| left.take(now, 250, 10, 5)).count();
        assert_eq!(taken(&mut left, 1_000_000), 5, "all that is kept");
        assert_eq!(left.refused, 15);
        assert_eq!(taken(&mut left, 1_000_010), 0, "too soon");
        assert_eq!(taken(&mut left, 1_000_050), 2, "a fifth of a second");
        assert_eq!(taken(&mut left, 2_000_000), 5);
        left.since = u32::MAX - 10;
        assert_eq!(taken(&mut left, 200), 5, "the clock wraps");
    }
}
