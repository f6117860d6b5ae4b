//! What a run showed, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::faults::Class;
use crate::ledger::{Counts, Violation};
use crate::nemesis::Fired;
use crate::world::Departures;

/// The rest is in the report for programs.
const VIOLATIONS_PRINTED: usize = 20;

/// What bounds are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Strictness {
    /// As promised.
    Exact,
    /// Twice as long and half a second: for machines that are busy with something else.
    Lenient,
    /// Not at all.
    Off,
}

impl Strictness {
    pub(crate) fn of(self, bound: Duration) -> Duration {
        match self {
            Self::Exact => bound,
            Self::Lenient => bound * 2 + Duration::from_millis(500),
            Self::Off => Duration::MAX,
        }
    }
}

/// A class of faults in a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) class: Class,
    pub(crate) fired: usize,
    pub(crate) gap_median_ms: Option<f64>,
    pub(crate) gap_worst_ms: Option<f64>,
    pub(crate) bound_median_ms: Option<f64>,
    pub(crate) bound_worst_ms: Option<f64>,
    pub(crate) is_within: bool,
}

/// See the module's header.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) seconds: f64,
    pub(crate) network: String,
    pub(crate) commands: u64,
    pub(crate) counts: Counts,
    pub(crate) departures: Departures,
    pub(crate) bounds: Strictness,
    pub(crate) classes: Vec<Row>,
    pub(crate) violations_count: u64,
    pub(crate) violations: Vec<Violation>,
    /// What did not heal, and what `store check` found.
    pub(crate) failures: Vec<String>,
    pub(crate) answers: BTreeMap<String, u64>,
    pub(crate) episodes: Vec<Fired>,
}

impl Report {
    /// Nothing is wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.violations_count == 0
            && self.failures.is_empty()
            && self.classes.iter().all(|row| row.is_within)
    }

    pub(crate) fn print(&self) {
        let counts = &self.counts;
        println!(
            "\nseed {}: {:.0} s, {} commands ({} writes acknowledged, {} refused, {} given up; \
             {} reads), {} blocks read back, {} paths reset and {} closed by hosts, {}",
            self.seed,
            self.seconds,
            self.commands,
            counts.writes_acknowledged,
            counts.writes_refused,
            counts.writes_given_up,
            counts.reads,
            counts.blocks_read,
            self.departures.by_reset,
            self.departures.by_close,
            self.network,
        );
        println!(
            "\n{:<14} {:>5} {:>10} {:>10} {:>10}  gaps of healthy paths, ms",
            "fault", "fired", "median", "worst", "bound"
        );
        let number =
            |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
        for row in &self.classes {
            println!(
                "{:<14} {:>5} {:>10} {:>10} {:>10}  {}",
                format!("{:?}", row.class),
                row.fired,
                number(row.gap_median_ms),
                number(row.gap_worst_ms),
                number(row.bound_worst_ms),
                if row.is_within { "" } else { "TOO LONG" },
            );
        }
        println!("\nanswers other than GOOD:");
        for (answer, times) in &self.answers {
            println!("{times:>8}  {answer}");
        }
        println!("\n{} violations", self.violations_count);
        for violation in self.violations.iter().take(VIOLATIONS_PRINTED) {
            let Violation {
                breach,
                at_s,
                volume,
                block,
                what,
            } = violation;
            println!("  {at_s:.3} {breach:?}: volume {volume} block {block}: {what}");
        }
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
    }
}

/// A line for each class that was fired.
pub(crate) fn rows(episodes: &[Fired], strictness: Strictness) -> Vec<Row> {
    let rows = Class::ALL.into_iter().filter_map(|class| {
        let fired = episodes.iter().filter(|fired| fired.episode.class == class);
        let mut gaps: Vec<Duration> = fired.clone().filter_map(Fired::judged).collect();
        let count = fired.count();
        gaps.sort_unstable();
        let median = gaps.get(gaps.len().saturating_sub(1) / 2).copied();
        let worst = gaps.last().copied();
        let bound = class.bound();
        let is_within = bound.is_none_or(|(of_median, of_worst)| {
            median.is_none_or(|median| median <= strictness.of(of_median))
                && worst.is_none_or(|worst| worst <= strictness.of(of_worst))
        });
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        (count > 0).then(|| Row {
            class,
            fired: count,
            gap_median_ms: median.map(millis),
            gap_worst_ms: worst.map(millis),
            bound_median_ms: bound.map(|(median, _)| millis(median)),
            bound_worst_ms: bound.map(|(_, worst)| millis(worst)),
            is_within,
        })
    });
    rows.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::faults::Episode;
    use crate::nemesis::Told;

    fn fired(class: Class, ms: f64, stall_ms: f64) -> Fired {
        Fired {
            episode: Episode {
                class,
                acts: Vec::new(),
                disturbed: BTreeSet::new(),
            },
            from_s: 0.0,
            undone_s: 1.0,
            whole_s: 2.0,
            gap: Some(Told {
                ms,
                volume: 0,
                portal: 1,
                from_s: 0.5,
            }),
            stall_ms,
            refusals: Vec::new(),
        }
    }

    #[test]
    fn a_class_is_judged_by_its_median_and_by_its_worst() {
        let two_silent = |gaps: &[f64]| {
            let episodes: Vec<Fired> = gaps
                .iter()
                .map(|ms| fired(Class::TwoSilent, *ms, 0.0))
                .collect();
            rows(&episodes, Strictness::Exact)[0].is_within
        };
        assert!(two_silent(&[2900.0, 3900.0, 2800.0]));
        assert!(!two_silent(&[2900.0, 4100.0, 2800.0]));
        assert!(!two_silent(&[3100.0, 3900.0, 2800.0]));
    }

    #[test]
    fn what_this_program_stood_still_is_not_the_clusters_gap() {
        let rows_of = |stall| rows(&[fired(Class::Kill, 1100.0, stall)], Strictness::Exact);
        assert!(!rows_of(0.0)[0].is_within);
        assert!(rows_of(150.0)[0].is_within);
        let lenient = rows(&[fired(Class::Kill, 2400.0, 0.0)], Strictness::Lenient);
        assert!(lenient[0].is_within);
        let unbounded = rows(&[fired(Class::Mixed, 60_000.0, 0.0)], Strictness::Exact);
        assert!(unbounded[0].is_within);
    }
}
