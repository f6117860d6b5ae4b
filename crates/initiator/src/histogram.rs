//! A latency histogram of fixed size: buckets grow with the value, so every quantile is exact to
//! one part in sixteen, from nanoseconds to minutes.

use std::time::Duration;

/// Buckets per doubling. 16 bounds the error of a quantile at 1/16.
const STEPS: u64 = 16;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// Values of 2^40 ns (18 minutes) and more share the last bucket.
const VALUE_BITS: u32 = 40;
const BUCKETS: usize = (STEPS * (VALUE_BITS - STEP_BITS + 1) as u64) as usize;

/// Counts durations.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    total: u64,
    sum_ns: u128,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: Box::new([0; BUCKETS]),
            total: 0,
            sum_ns: 0,
            max_ns: 0,
        }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.total += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// Adds everything that `other` counted.
    pub fn merge(&mut self, other: &Self) {
        for (own, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *own += more;
        }
        self.total += other.total;
        self.sum_ns += other.sum_ns;
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many durations were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest one.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// The arithmetic mean; zero if nothing was counted.
    pub fn mean(&self) -> Duration {
        let mean = self.sum_ns.checked_div(u128::from(self.total)).unwrap_or(0);
        Duration::from_nanos(mean as u64)
    }

    /// The duration that a fraction `quantile` (0 to 1) did not exceed, rounded up by at most
    /// 1/16; zero if nothing was counted.
    pub fn quantile(&self, quantile: f64) -> Duration {
        let rank = (self.total as f64 * quantile.clamp(0.0, 1.0))
            .ceil()
            .max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return Duration::from_nanos(upper_bound(index).min(self.max_ns));
            }
        }
        self.max()
    }
}

/// Values below `STEPS` have a bucket each; above, each doubling is cut into `STEPS` buckets.
fn bucket(ns: u64) -> usize {
    let ns = ns.min((1 << VALUE_BITS) - 1);
    let doubling = (u64::BITS - ns.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (u64::from(doubling) * STEPS + (ns >> doubling)) as usize
}

fn upper_bound(index: usize) -> u64 {
    let index = index as u64;
    let doubling = (index / STEPS).saturating_sub(1);
    ((index - doubling * STEPS + 1) << doubling) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_within_a_sixteenth_below_its_buckets_bound() {
        let mut previous = 0;
        for shift in 0..VALUE_BITS {
            for offset in 0..32 {
                let value = (1_u64 << shift) + (offset << shift.saturating_sub(5));
                let value = value.min((1 << VALUE_BITS) - 1);
                let index = bucket(value);
                assert!(index >= previous || value < 64, "buckets are ordered");
                previous = index;
                let bound = upper_bound(index);
                assert!(
                    value <= bound && bound - value <= value / 16,
                    "{value} {bound}"
                );
            }
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_and_maximum_of_a_known_series() {
        let mut histogram = Histogram::default();
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        let near = |found: Duration, ms: u64| {
            let expected = Duration::from_millis(ms);
            assert!(
                found >= expected && found <= expected + expected / 16,
                "{found:?} {ms}"
            );
        };
        near(histogram.quantile(0.5), 500);
        near(histogram.quantile(0.99), 990);
        assert_eq!(histogram.quantile(1.0), Duration::from_secs(1));
        assert_eq!(histogram.max(), Duration::from_secs(1));
        assert_eq!(histogram.mean(), Duration::from_micros(500_500));
    }

    #[test]
    fn merging_equals_counting_together() {
        let (mut one, mut two, mut both) = (
            Histogram::default(),
            Histogram::default(),
            Histogram::default(),
        );
        for us in [3, 900, 17, 40_000] {
            one.record(Duration::from_micros(us));
            both.record(Duration::from_micros(us));
        }
        two.record(Duration::from_secs(2));
        both.record(Duration::from_secs(2));
        one.merge(&two);
        assert_eq!(one.count(), both.count());
        assert_eq!(one.quantile(0.5), both.quantile(0.5));
        assert_eq!(one.max(), both.max());
    }

    #[test]
    fn an_empty_histogram_says_zero() {
        assert_eq!(Histogram::default().quantile(0.5), Duration::ZERO);
        assert_eq!(Histogram::default().mean(), Duration::ZERO);
    }
}
