//! The clock of the kernel that connections are stamped with, and how long a tick of it is.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use calico_ebpf_common::abi::names;

use super::{
    error::{DataplaneError, Result},
    load::program_path,
    sys,
};

/// Two looks at the clock this close to each other tell when it went on.
const CLOSE: Duration = Duration::from_micros(300);
/// Ticks that are watched for at most until there are two such looks.
const TICKS: u32 = 16;

/// The pinned program that tells the time.
#[derive(Debug)]
pub(crate) struct Clock {
    program: OwnedFd,
    path: PathBuf,
}

impl Clock {
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = program_path(directory, names::PROG_CLOCK);
        let program = sys::object_open(&path, false).map_err(DataplaneError::io(path.display().to_string()))?;
        Ok(Self { program, path })
    }

    /// In ticks.
    pub(crate) fn now(&self) -> Result<u32> {
        self.look().map_err(self.failed())
    }

    /// Ticks in a second, measured: no interface tells. Takes 60 ms.
    pub(crate) fn measure_hz(&self) -> Result<u32> {
        measured(&|| self.look()).map_err(self.failed())
    }

    fn look(&self) -> io::Result<u32> {
        sys::program_run(self.program.as_raw_fd(), 1)
    }

    fn failed(&self) -> impl FnOnce(io::Error) -> DataplaneError + use<> {
        DataplaneError::io(self.path.display().to_string())
    }
}

fn measured(clock: &impl Fn() -> io::Result<u32>) -> io::Result<u32> {
    let first = sharp_tick(clock)?;
    thread::sleep(Duration::from_millis(50));
    let last = sharp_tick(clock)?;
    let passed = last.at.duration_since(first.at).as_secs_f64();
    Ok(nearest_hz(f64::from(last.number.wrapping_sub(first.number)) / passed))
}

/// A tick of the clock that was seen.
#[derive(Clone, Copy)]
struct Tick {
    number: u32,
    /// No later than this,
    at: Instant,
    /// and earlier by no more than this.
    within: Duration,
}

/// With a tick the scheduler lets others run, too, perhaps between looking at the clock and noting when that was. Of some ticks
/// the one that is known best.
fn sharp_tick(clock: &impl Fn() -> io::Result<u32>) -> io::Result<Tick> {
    let mut best = next_tick(clock)?;
    for _ in 1..TICKS {
        if best.within <= CLOSE {
            break;
        }
        let tick = next_tick(clock)?;
        if tick.within < best.within {
            best = tick;
        }
    }
    Ok(best)
}

fn next_tick(clock: &impl Fn() -> io::Result<u32>) -> io::Result<Tick> {
    let start = Instant::now();
    let mut look = start;
    let before = clock()?;
    loop {
        let earlier = look;
        look = Instant::now();
        let number = clock()?;
        if number != before {
            let at = Instant::now();
            return Ok(Tick { number, at, within: at.duration_since(earlier) });
        }
        if look.duration_since(start) > Duration::from_secs(1) {
            return Err(io::Error::other("the kernel's clock stands still"));
        }
    }
}

/// The possible value of `CONFIG_HZ` next to a measured one.
fn nearest_hz(measured: f64) -> u32 {
    // Compared as ratios.
    let distance = |hz: &&u32| (measured / f64::from(**hz)).ln().abs();
    [100_u32, 250, 300, 1000].iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).copied().unwrap_or(250)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn hz_is_rounded_to_a_possible_value() {
        for (measured, hz) in [(99.0, 100), (240.1, 250), (271.0, 250), (280.0, 300), (305.0, 300), (970.0, 1000)] {
            assert_eq!(nearest_hz(measured), hz, "{measured}");
        }
    }

    #[test]
    fn who_is_interrupted_at_a_tick_looks_at_another_one() {
        let start = Instant::now();
        let (last, ticks) = (Cell::new(0), Cell::new(0));
        let clock = || {
            let now = (start.elapsed().as_micros() / 4000) as u32;
            if last.replace(now) != now && ticks.replace(ticks.get() + 1) == 0 {
                // Others had the processor for two ticks.
                thread::sleep(Duration::from_millis(8));
            }
            Ok(now)
        };
        assert_eq!(measured(&clock).expect("a clock that goes"), 250);
    }

    #[test]
    fn a_clock_that_stands_still_is_noticed() {
        assert!(measured(&|| Ok(1)).is_err());
    }
}
