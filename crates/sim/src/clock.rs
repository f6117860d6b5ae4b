//! The monotonic clock of one simulated host.
//!
//! Invariants: readings never go back, also across a change of drift; a process restart keeps
//! the clock (it belongs to the host), a power cut restarts it at a new origin.

use std::cell::Cell;

use holdfast_runtime::Instant;

/// A clock that runs `drift_ppm` too fast (or, if negative, too slow) against virtual time.
#[derive(Debug)]
pub struct HostClock {
    line: Cell<Line>,
}

#[derive(Clone, Copy, Debug)]
struct Line {
    virtual_ns: u64,
    local_ns: u64,
    drift_ppm: i32,
}

const MILLION: i128 = 1_000_000;
/// More would let `Line` arithmetic distort: real oscillators stay three orders below.
const DRIFT_PPM_MAX: i32 = 100_000;

impl HostClock {
    /// A clock that shows `origin_ns` at virtual time `now_ns`.
    pub fn new(now_ns: u64, origin_ns: u64, drift_ppm: i32) -> Self {
        assert!(
            drift_ppm.abs() <= DRIFT_PPM_MAX,
            "{drift_ppm} ppm is no clock"
        );
        Self {
            line: Cell::new(Line {
                virtual_ns: now_ns,
                local_ns: origin_ns,
                drift_ppm,
            }),
        }
    }

    /// What the clock shows at virtual time `now_ns`.
    pub fn read(&self, now_ns: u64) -> Instant {
        let line = self.line.get();
        let passed = i128::from(now_ns.saturating_sub(line.virtual_ns));
        let local = passed + passed * i128::from(line.drift_ppm) / MILLION;
        Instant::from_nanos(line.local_ns + local as u64)
    }

    /// The first virtual time at which the clock shows at least `deadline`, if its drift stays.
    pub fn virtual_time_of(&self, deadline: Instant) -> u64 {
        let line = self.line.get();
        let local = i128::from(deadline.as_nanos().saturating_sub(line.local_ns));
        // Rounded up, and one more for the truncation in `read`.
        let passed = local * MILLION / (MILLION + i128::from(line.drift_ppm)) + 2;
        line.virtual_ns
            .saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// The present drift in parts per million.
    pub fn drift_ppm(&self) -> i32 {
        self.line.get().drift_ppm
    }

    /// Lets the clock run at another rate from `now_ns` on, without a step.
    pub fn set_drift(&self, now_ns: u64, drift_ppm: i32) {
        let local_ns = self.read(now_ns).as_nanos();
        self.line
            .set(Self::new(now_ns, local_ns, drift_ppm).line.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_fast_clock_gains_its_drift() {
        let clock = HostClock::new(0, 5, 200);
        assert_eq!(
            clock.read(10 * SECOND).as_nanos(),
            5 + 10 * SECOND + 2_000_000
        );
    }

    #[test]
    fn a_deadline_has_passed_at_its_virtual_time_and_not_long_before() {
        for drift_ppm in [-1000, -200, 0, 3, 200, 1000] {
            let clock = HostClock::new(77, 1_000, drift_ppm);
            for deadline in [1_000, 1_001, 123_456_789, 3_600 * SECOND] {
                let deadline = Instant::from_nanos(deadline);
                let at = clock.virtual_time_of(deadline);
                assert!(clock.read(at) >= deadline, "{drift_ppm} {deadline:?}");
                assert!(clock.read(at.saturating_sub(10).max(77)) <= deadline);
            }
        }
    }

    #[test]
    fn a_change_of_drift_makes_no_step() {
        let clock = HostClock::new(0, 0, 500);
        let before = clock.read(SECOND);
        clock.set_drift(SECOND, -500);
        assert_eq!(clock.read(SECOND), before);
        assert!(clock.read(SECOND + 1_000) > before);
    }
}
