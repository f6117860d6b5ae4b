//! Early warning of a home that fills up.
//!
//! A pure core ([`FullnessWatch`]) says when a threshold is crossed, once for each crossing: on
//! the way up at the threshold, on the way down only a little below it, so that a home which
//! lingers there does not fill the log instead.

use std::rc::Rc;
use std::time::Duration;

use holdfast_store::Usage;

use crate::node::Node;

/// How often it is looked. A node that writes 1 GiB/s into a home of 1 TiB is still far from the
/// next threshold then.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Below a threshold by so much, in percent, it counts as left.
const HYSTERESIS_PERCENT: u64 = 2;

/// From how much use on a home is low on space, in percent of what clients can fill: at 100 they
/// are refused more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Time to plan for more.
    pub low_percent: u8,
    /// Time to act.
    pub critical_percent: u8,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            low_percent: 80,
            critical_percent: 95,
        }
    }
}

/// How much room a home has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Fullness {
    /// Enough.
    #[default]
    Enough,
    /// Above the first threshold.
    Low,
    /// Above the second one.
    Critical,
}

/// Remembers what was said.
#[derive(Clone, Copy, Debug)]
pub struct FullnessWatch {
    thresholds: Thresholds,
    level: Fullness,
}

impl FullnessWatch {
    /// Nothing was said yet.
    pub fn new(thresholds: Thresholds) -> Self {
        Self {
            thresholds,
            level: Fullness::Enough,
        }
    }

    /// How much room there is, as last observed.
    pub fn level(&self) -> Fullness {
        self.level
    }

    /// Takes in how much is used. Returns the new level if it is another than before.
    pub fn observe(&mut self, used_bytes: u64, all_bytes: u64) -> Option<Fullness> {
        let share = percent(used_bytes, all_bytes);
        let held = |level: Fullness, threshold: u8| {
            // What holds already is left a little later.
            let margin = match self.level >= level {
                true => HYSTERESIS_PERCENT,
                false => 0,
            };
            share >= u64::from(threshold).saturating_sub(margin)
        };
        let level = if held(Fullness::Critical, self.thresholds.critical_percent) {
            Fullness::Critical
        } else if held(Fullness::Low, self.thresholds.low_percent) {
            Fullness::Low
        } else {
            Fullness::Enough
        };
        let before = std::mem::replace(&mut self.level, level);
        (before != level).then_some(level)
    }
}

/// Whole percent; a home that takes nothing is full.
fn percent(used_bytes: u64, all_bytes: u64) -> u64 {
    let share = u128::from(used_bytes) * 100;
    let share = share.checked_div(u128::from(all_bytes));
    share.map_or(100, |share| u64::try_from(share).unwrap_or(u64::MAX))
}

impl Node {
    /// How full the store is; of the home what clients can fill, as more is refused to them.
    pub(crate) fn usage(&self) -> Usage {
        Usage {
            home_bytes: self.context.holder.fillable_bytes(),
            ..self.context.store.usage()
        }
    }

    /// Looks how full the home is, and logs a crossing.
    pub(crate) fn observe_fullness(&self, usage: &Usage) -> Fullness {
        let mut watch = self.fullness.get();
        let (used, all) = (usage.home_used_bytes, usage.home_bytes);
        let crossed = watch.observe(used, all);
        self.fullness.set(watch);
        let used_percent = percent(used, all);
        match crossed {
            None => {}
            Some(Fullness::Enough) => tracing::info!(used_percent, "the home has room again"),
            Some(Fullness::Low) => tracing::warn!(
                used_percent,
                used,
                all,
                "the home is filling up: give it more with --home-size, or unmap or delete"
            ),
            Some(Fullness::Critical) => tracing::warn!(
                used_percent,
                used,
                all,
                "the home is almost full: writes to new blocks will soon be refused"
            ),
        }
        watch.level()
    }

    pub(crate) async fn watch_fullness(self: Rc<Self>) {
        loop {
            self.observe_fullness(&self.usage());
            self.context.runtime.sleep_roughly(LOOK_EVERY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crossing_is_said_once_and_lingering_at_a_threshold_is_silent() {
        let mut watch = FullnessWatch::new(Thresholds::default());
        let said: Vec<_> = [
            0, 79, 80, 81, 79, 80, 78, 77, 79, 80, 94, 95, 94, 95, 93, 92, 99, 10, 10,
        ]
        .into_iter()
        .filter_map(|used| Some((used, watch.observe(used, 100)?)))
        .collect();
        let expected = [
            (80, Fullness::Low),
            (77, Fullness::Enough),
            (80, Fullness::Low),
            (95, Fullness::Critical),
            (92, Fullness::Low),
            (99, Fullness::Critical),
            (10, Fullness::Enough),
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_home_without_capacity_is_full() {
        let mut watch = FullnessWatch::new(Thresholds::default());
        assert_eq!(watch.observe(0, 0), Some(Fullness::Critical));
        assert_eq!(watch.observe(u64::MAX, u64::MAX), None);
    }
}
