//! Whole clusters, a few seeds of them.

use super::*;
use crate::runner::{Amount, Plan, run_seeds};

const PLAN: Plan = Plan {
    start: 0,
    amount: Amount::Seeds(6),
    threads: 2,
    trace: TraceText::Off,
    repeat_every: 3,
    stop_at_failure: false,
    bug: None,
};

#[test]
fn a_cluster_keeps_its_promises_under_every_fault_and_a_seed_its_steps() {
    let report = run_seeds(&Cluster, PLAN, |_, _| {});
    assert!(report.passed(), "{}", report.to_table());
    assert_eq!(report.repeated, 2);
    assert!(
        report.figures["writes acknowledged"] > 1_000,
        "{}",
        report.to_table()
    );
    assert!(
        report.figures["volumes moved"] > 10,
        "{}",
        report.to_table()
    );
    let fired = report.faults.values().filter(|times| **times > 0).count();
    assert!(
        fired >= 15,
        "only {fired} classes fired:\n{}",
        report.to_table()
    );
}

#[test]
fn another_seed_is_another_run() {
    let hash = |seed| Cluster.run(seed, TraceText::Off).trace_hash;
    assert_ne!(hash(10), hash(11));
}

/// Bugs that few seeds suffice for; the rest needs the long run of `holdfast sim run --bug`.
#[cfg(feature = "planted")]
#[test]
fn planted_bugs_are_found() {
    use holdfast_runtime::planted::Bug;

    for bug in [
        Bug::AcknowledgeBeforeJournal,
        Bug::TakeStableOnly,
        Bug::KeepDivergentTail,
        Bug::PromoteEarly,
        Bug::BaseTooHigh,
    ] {
        let amount = Amount::Seeds(20);
        let plan = Plan {
            bug: Some(bug),
            stop_at_failure: true,
            repeat_every: 0,
            amount,
            ..PLAN
        };
        let report = run_seeds(&Cluster, plan, |_, _| {});
        assert!(!report.passed(), "{bug:?} was not found");
    }
}

#[test]
fn some_seeds_have_a_volume_of_thousands_of_slices() {
    let shape = |seed| Shape::draw(&Random::new(seed).fork("scenario").fork("shape"));
    let vast = (0..500).filter(|seed| shape(*seed).is_vast());
    let vast: Vec<u64> = vast.collect();
    assert!((5..50).contains(&vast.len()), "{vast:?}");
}
