//! Seeded randomness: one root seed, one independent stream per purpose.
//!
//! Promise: a stream is a function of the root seed and the labels on the way to it, never of
//! what was drawn elsewhere, so adding a draw in one place does not change the others. Only
//! integer arithmetic, so that a seed replays on every machine.

use std::cell::RefCell;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// One stream of randomness. Single-threaded; draws need no `mut`.
#[derive(Debug)]
pub struct Random {
    seed: u64,
    generator: RefCell<ChaCha8Rng>,
}

impl Random {
    /// The stream of `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            generator: RefCell::new(ChaCha8Rng::seed_from_u64(seed)),
        }
    }

    /// The stream for one purpose, independent of this stream's position.
    pub fn fork(&self, label: &str) -> Self {
        Self::new(xxh3_64_with_seed(label.as_bytes(), self.seed))
    }

    /// The stream for member `number` of a family.
    pub fn fork_numbered(&self, label: &str, number: u64) -> Self {
        let family = xxh3_64_with_seed(label.as_bytes(), self.seed);
        Self::new(xxh3_64_with_seed(&number.to_le_bytes(), family))
    }

    /// 64 random bits.
    pub fn next_u64(&self) -> u64 {
        self.generator.borrow_mut().next_u64()
    }

    /// A uniform draw from `0..bound`; `bound` must not be zero.
    pub fn below(&self, bound: u64) -> u64 {
        assert!(bound > 0, "an empty range has no random member");
        // The multiply-shift draw: its bias is below 2^-32 for every bound used here.
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// A uniform draw from `low..=high`.
    pub fn between(&self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// A uniform draw from the closed interval.
    pub fn duration(&self, low: Duration, high: Duration) -> Duration {
        Duration::from_nanos(self.between(nanos(low), nanos(high)))
    }

    /// True with a probability of `parts_per_million`.
    pub fn chance(&self, parts_per_million: u32) -> bool {
        parts_per_million > 0 && self.below(1_000_000) < u64::from(parts_per_million)
    }

    /// A duration with this mean and a heavy tail, in nanoseconds: mostly near the mean, one in
    /// 128 about eight times, one in 2048 about 64 times as long.
    pub fn tailed(&self, mean_ns: u64) -> u64 {
        let draw = self.next_u64();
        let base = mean_ns / 2 + ((u128::from(draw >> 16) * u128::from(mean_ns)) >> 48) as u64;
        match draw & 2047 {
            0 => base * 64,
            1..=16 => base * 8,
            _ => base,
        }
    }

    /// A random member; `None` of an empty slice.
    pub fn pick<'a, T>(&self, members: &'a [T]) -> Option<&'a T> {
        if members.is_empty() {
            return None;
        }
        members.get(self.below(members.len() as u64) as usize)
    }

    /// Puts the members into a random order.
    pub fn shuffle<T>(&self, members: &mut [T]) {
        for last in (1..members.len()).rev() {
            members.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

/// Whole nanoseconds of a duration, saturating.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_does_not_depend_on_earlier_draws() {
        let (fresh, used) = (Random::new(7), Random::new(7));
        used.next_u64();
        assert_eq!(fresh.fork("disk").next_u64(), used.fork("disk").next_u64());
        assert_ne!(fresh.fork("disk").next_u64(), fresh.fork("link").next_u64());
        assert_ne!(
            fresh.fork_numbered("node", 1).next_u64(),
            fresh.fork_numbered("node", 2).next_u64()
        );
    }

    #[test]
    fn tailed_draws_keep_their_order_of_magnitude() {
        let random = Random::new(1);
        let sum: u64 = (0..10_000).map(|_| random.tailed(1_000)).sum();
        assert!(
            (900..1_500).contains(&(sum / 10_000)),
            "mean {}",
            sum / 10_000
        );
    }
}
