//! Order, time and death of tasks.

use std::cell::RefCell;
use std::rc::Rc;

use holdfast_runtime::Runtime;

use super::*;
use crate::backend;
use crate::clock::HostClock;
use crate::trace::TraceText;

struct Rig {
    executor: Rc<Executor>,
    runtime: Runtime,
}

impl Rig {
    fn new(seed: u64) -> Self {
        Self::with_limits(seed, Limits::default())
    }

    fn with_limits(seed: u64, limits: Limits) -> Self {
        let trace = Rc::new(Trace::new(TraceText::Off));
        let executor = Executor::new(Random::new(seed), trace, limits);
        let clock = Rc::new(HostClock::new(0, 0, 0));
        let runtime =
            backend::runtime_of(&executor, SUPERVISOR, clock, Random::new(seed).fork("r"), 0);
        Self { executor, runtime }
    }

    fn process(&self, drift_ppm: i32) -> (ProcessId, Runtime) {
        let process = self.executor.create_process("node".to_owned());
        let clock = Rc::new(HostClock::new(0, 0, drift_ppm));
        let random = Random::new(9);
        (
            process,
            backend::runtime_of(&self.executor, process, clock, random, 0),
        )
    }
}

type Log = Rc<RefCell<Vec<u32>>>;

struct NoteOnDrop(Log, u32);

impl Drop for NoteOnDrop {
    fn drop(&mut self) {
        self.0.borrow_mut().push(self.1);
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Which branches of an unbiased `select!` won, and in which order ready tasks ran.
fn choices(seed: u64) -> (Vec<u32>, u64) {
    let rig = Rig::new(seed);
    let log = Log::default();
    let (inside, runtime) = (log.clone(), rig.runtime.clone());
    rig.executor
        .run(async move {
            for number in 0..20 {
                let log = inside.clone();
                runtime.spawn("ordered", async move { log.borrow_mut().push(number) });
            }
            runtime.sleep(SECOND).await;
            for _ in 0..40 {
                let won = tokio::select! {
                    () = std::future::ready(()) => 100,
                    () = std::future::ready(()) => 101,
                    () = std::future::ready(()) => 102,
                };
                inside.borrow_mut().push(won);
            }
        })
        .expect("runs to its end");
    (log.take(), rig.executor.trace().hash())
}

#[test]
fn the_seed_decides_the_order_of_tasks_and_the_branches_of_select() {
    let (first, hash) = choices(1);
    assert_eq!(
        (first.clone(), hash),
        choices(1),
        "the same seed takes the same steps"
    );
    let (second, other_hash) = choices(2);
    assert_ne!(hash, other_hash);
    assert_ne!(
        first[..20],
        second[..20],
        "ready tasks run in another order"
    );
    assert_ne!(first[20..], second[20..], "select! draws from the seed");
    assert_ne!(
        first[..20],
        (0..20).collect::<Vec<_>>()[..],
        "not simply first come first served"
    );
}

#[test]
fn virtual_time_jumps_and_sleepers_wake_in_order() {
    let rig = Rig::new(3);
    let log = Log::default();
    let (inside, runtime) = (log.clone(), rig.runtime.clone());
    rig.executor
        .run(async move {
            for hours in [3, 1, 2] {
                let (log, clock) = (inside.clone(), runtime.clone());
                runtime.spawn("sleeper", async move {
                    clock.sleep(SECOND * 600 * hours).await;
                    log.borrow_mut().push(hours);
                });
            }
            runtime.sleep(SECOND * 3_000).await;
        })
        .expect("runs to its end");
    assert_eq!(log.take(), [1, 2, 3]);
    assert_eq!(rig.executor.now_ns(), 3_000 * nanos(SECOND) + 2);
}

#[test]
fn a_fast_clock_wakes_its_process_early() {
    let rig = Rig::new(3);
    let (_, runtime) = rig.process(1_000);
    let executor = rig.executor.clone();
    let woke_ns = rig
        .executor
        .run(async move {
            let (sender, receiver) = tokio::sync::oneshot::channel();
            let clock = runtime.clone();
            runtime.spawn("sleeper", async move {
                clock.sleep(SECOND * 1_001).await;
                let _ = sender.send(executor.now_ns());
            });
            receiver.await
        })
        .expect("runs to its end")
        .expect("the sleeper wakes");
    assert!(woke_ns.abs_diff(1_000 * nanos(SECOND)) < 10, "{woke_ns}");
}

#[test]
fn a_kill_drops_every_future_of_the_process_under_its_own_runtime() {
    let rig = Rig::new(4);
    let (process, runtime) = rig.process(0);
    let log = Log::default();
    let (executor, inside, sup) = (rig.executor.clone(), log.clone(), rig.runtime.clone());
    rig.executor
        .run(async move {
            for number in 0..3 {
                let note = NoteOnDrop(inside.clone(), number);
                runtime.spawn("kept", async move {
                    let _note = note;
                    std::future::pending::<()>().await;
                });
            }
            sup.sleep(SECOND).await;
            assert!(inside.borrow().is_empty());
            executor.kill(process);
            assert_eq!(inside.borrow().len(), 3);
            let note = NoteOnDrop(inside.clone(), 3);
            runtime.spawn("too late", async move { drop(note) });
            assert_eq!(inside.borrow().len(), 4, "a dead process gets no task");
        })
        .expect("runs to its end");
    assert_eq!(log.borrow().len(), 4);
}

#[test]
fn a_process_may_be_killed_by_its_own_task() {
    let rig = Rig::new(5);
    let (process, runtime) = rig.process(0);
    let log = Log::default();
    let (executor, inside, sup) = (rig.executor.clone(), log.clone(), rig.runtime.clone());
    rig.executor
        .run(async move {
            let note = NoteOnDrop(inside.clone(), 7);
            runtime.spawn("suicidal", async move {
                let _note = note;
                executor.kill(process);
                std::future::pending::<()>().await;
            });
            sup.sleep(SECOND).await;
        })
        .expect("runs to its end");
    assert_eq!(log.take(), [7]);
}

#[test]
fn a_paused_process_runs_no_task_and_finds_its_timers_late() {
    let rig = Rig::new(6);
    let (process, runtime) = rig.process(0);
    let log = Log::default();
    let (executor, inside, sup) = (rig.executor.clone(), log.clone(), rig.runtime.clone());
    rig.executor
        .run(async move {
            let (clock, log) = (runtime.clone(), inside.clone());
            let begin = runtime.now();
            runtime.spawn("sleeper", async move {
                clock.sleep(SECOND).await;
                log.borrow_mut()
                    .push((clock.now() - begin).as_secs() as u32);
            });
            executor.pause(process);
            sup.sleep(SECOND * 5).await;
            assert!(inside.borrow().is_empty());
            executor.resume(process);
            // It was paused before its first poll: the sleep begins with the resumption.
            sup.sleep(SECOND * 2).await;
            executor.pause(process);
        })
        .expect("runs to its end");
    assert_eq!(log.take(), [6]);
}

#[test]
fn a_fuse_acts_right_before_the_chosen_poll() {
    let rig = Rig::new(7);
    let (process, runtime) = rig.process(0);
    let log = Log::default();
    let (executor, inside, sup) = (rig.executor.clone(), log.clone(), rig.runtime.clone());
    rig.executor
        .run(async move {
            let log = inside.clone();
            runtime.spawn("counter", async move {
                for number in 0.. {
                    log.borrow_mut().push(number);
                    tokio::task::yield_now().await;
                }
            });
            let killer = executor.clone();
            executor.after_polls(process, 3, move || killer.kill(process));
            sup.sleep(SECOND).await;
        })
        .expect("runs to its end");
    assert_eq!(log.take(), [0, 1, 2]);
}

#[test]
fn an_aborted_task_is_dropped_and_not_polled() {
    let rig = Rig::new(8);
    let log = Log::default();
    let (inside, runtime) = (log.clone(), rig.runtime.clone());
    rig.executor
        .run(async move {
            let note = NoteOnDrop(inside.clone(), 1);
            let aborted = inside.clone();
            let task = runtime.spawn("aborted", async move {
                let _note = note;
                aborted.borrow_mut().push(99);
            });
            task.abort();
            assert!(
                inside.borrow().is_empty(),
                "not dropped in the middle of the caller"
            );
            runtime.sleep(SECOND).await;
            task.abort();
        })
        .expect("runs to its end");
    assert_eq!(log.take(), [1]);
}

#[test]
fn tasks_that_only_wake_one_another_are_reported_by_name() {
    let limits = Limits {
        polls_at_one_instant: 10_000,
        ..Limits::default()
    };
    let rig = Rig::with_limits(9, limits);
    let runtime = rig.runtime.clone();
    let halt = rig
        .executor
        .run(async move {
            runtime.spawn("spinner", async {
                loop {
                    tokio::task::yield_now().await;
                }
            });
            std::future::pending::<()>().await;
        })
        .expect_err("time stands still");
    assert_eq!(
        halt,
        Halt::Livelock {
            at_ns: 0,
            tasks: vec!["spinner of supervisor".to_owned()]
        }
    );
}

#[test]
fn a_task_that_looks_at_too_much_in_one_go_is_reported_and_one_that_pauses_is_not() {
    let look = |process: &str, at_once: u64| {
        let rig = Rig::new(11);
        let process = match process {
            "supervisor" => SUPERVISOR,
            other => rig.executor.create_process(other.to_owned()),
        };
        let looking = Box::pin(async move {
            for _ in 0..10 {
                holdfast_runtime::work::note(at_once);
                tokio::task::yield_now().await;
            }
        });
        rig.executor.spawn(process, "looker", looking);
        let runtime = rig.runtime.clone();
        let scenario = async move { runtime.sleep(Duration::from_secs(1)).await };
        rig.executor.run(scenario)
    };
    assert_eq!(look("node", UNITS_AT_ONCE), Ok(()));
    assert_eq!(look("supervisor", UNITS_AT_ONCE + 1), Ok(()));
    let held = Halt::Hold {
        at_ns: 0,
        task: "looker of node".to_owned(),
        units: UNITS_AT_ONCE + 1,
    };
    assert_eq!(look("node", UNITS_AT_ONCE + 1), Err(held));
}

#[test]
fn a_scenario_that_waits_for_nothing_is_a_deadlock() {
    let rig = Rig::new(10);
    let halt = rig
        .executor
        .run(std::future::pending::<()>())
        .expect_err("nothing can happen");
    assert_eq!(halt, Halt::Deadlock { at_ns: 0 });
}

#[test]
fn a_channel_under_load_is_not_throttled_by_a_cooperative_budget() {
    let rig = Rig::new(11);
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let received = rig
        .executor
        .run(async move {
            for number in 0..10_000 {
                sender.send(number).expect("the receiver lives");
            }
            drop(sender);
            let mut received = 0;
            while receiver.recv().await.is_some() {
                received += 1;
            }
            received
        })
        .expect("runs to its end");
    assert_eq!(received, 10_000);
    assert!(rig.executor.polls() < 10, "{} polls", rig.executor.polls());
}

#[test]
fn dropped_sleeps_do_not_pile_up() {
    let rig = Rig::new(12);
    let (runtime, executor) = (rig.runtime.clone(), rig.executor.clone());
    rig.executor
        .run(async move {
            for _ in 0..100_000 {
                let quick = runtime.sleep(Duration::from_nanos(10));
                assert!(runtime.timeout(SECOND * 60, quick).await.is_some());
            }
            assert!(executor.state.borrow().timers.len() < 10_000);
        })
        .expect("runs to its end");
}
