//! The facts on a disk: the cases of the table at open, crashes at any moment, and what a change
//! costs.

#![allow(
    clippy::disallowed_methods,
    reason = "images of earlier formats are files of the repository"
)]

use std::path::PathBuf;
use std::time::Duration;

use holdfast_runtime::{PAGE_BYTES, Runtime, Task};

use super::*;
use crate::record::{CopyState, Seq, SliceKey, View};
use crate::testing::{Dice, MemoryDirectory, golden, run};

const IDENTITY: [u8; 16] = *b"facts for a test";
const OWNER: Owner = Owner {
    identity: IDENTITY,
    slice_blocks: Some(64),
};
/// Three changes, and the log is written anew.
const SMALL: u64 = 3 * PAGE_BYTES as u64;
const LARGE: u64 = 1 << 30;

struct Opened {
    facts: Rc<Facts>,
    copy_lost: bool,
    _task: Task,
}

/// Opens what is there; `None` if it is refused.
async fn open(runtime: &Runtime, directory: &MemoryDirectory, log_bytes: u64) -> Option<Opened> {
    open_of(runtime, directory, log_bytes, OWNER).await
}

async fn open_of(
    runtime: &Runtime,
    directory: &MemoryDirectory,
    log_bytes: u64,
    owner: Owner,
) -> Option<Opened> {
    let shared: Rc<dyn Directory> = Rc::new(directory.clone());
    let disk = shared.open(AREA, area_options(SLOTS)).await.unwrap();
    let mut loaded = load(&disk, owner).await.unwrap();
    let state = match &mut loaded.found {
        Found::Nothing { .. } => FactsState::default(),
        Found::Log(log) => std::mem::take(&mut log.state),
        Found::Image(image) => std::mem::take(&mut image.state),
        Found::Lost => return None,
    };
    let copy_lost = !loaded.flaws.is_empty();
    let of = (owner.identity, loaded.slice_blocks.max(64));
    let bounds = StoreBounds {
        facts_log_bytes: log_bytes,
        // Few in half of the lives.
        facts_at_once: [3, 628][runtime.random_below(2) as usize],
        ..StoreBounds::SERVICE
    };
    let sizes = (bounds, runtime.random_below(1 << 20));
    let facts = Facts::new(Some(shared), disk, Rc::default(), of, sizes, state);
    facts.settle(loaded, &[]).await.unwrap();
    let facts = Rc::new(facts);
    let task = runtime.spawn("facts", facts.clone().run());
    Some(Opened {
        facts,
        copy_lost,
        _task: task,
    })
}

fn key(number: u64) -> SliceKey {
    SliceKey {
        volume: number / 16,
        slice: (number % 16) as u32,
    }
}

fn in_sync(numbers: std::ops::Range<u64>) -> Change {
    let copy = |number| (key(number), CopyState::InSync, Seq(number));
    Change::Copies(numbers.map(copy).collect())
}

fn promise(volume: u64, view: u64) -> Change {
    let view = View(view);
    Change::Promise { volume, view }
}

fn state_of(opened: &Opened) -> FactsState {
    opened.facts.with(Clone::clone)
}

/// Facts with a snapshot and a few changes behind it, at rest.
async fn at_rest(runtime: &Runtime) -> (MemoryDirectory, FactsState) {
    let directory = MemoryDirectory::new(runtime.clone());
    let opened = open(runtime, &directory, LARGE).await.unwrap();
    for number in 0..5 {
        opened.facts.update([promise(number, 3)]).await.unwrap();
    }
    opened.facts.update([in_sync(0..1500)]).await.unwrap();
    let state = state_of(&opened);
    drop(opened);
    directory.kill();
    (directory, state)
}

/// Where copies of entry `number` lie: pages of the first slot in its order.
fn page(copy: usize, number: usize) -> u64 {
    space::byte_at(0, copy, number * PAGE_BYTES)
}

#[test]
fn case_blank_area_was_never_made() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let disk = directory.open(AREA, area_options(SLOTS)).await.unwrap();
        let loaded = load(&disk, OWNER).await.unwrap();
        assert!(matches!(loaded.found, Found::Nothing { is_bare: true }));
        directory.poke(AREA, page(0, 0), &[7; 600]);
        let loaded = load(&disk, OWNER).await.unwrap();
        let torn = matches!(loaded.found, Found::Nothing { is_bare: false });
        assert!(torn, "the journal has to confirm it");
    });
}

#[test]
fn case_log_that_ends_is_read_to_its_end() {
    run(1, |runtime| async move {
        let (directory, state) = at_rest(&runtime).await;
        for _ in 0..3 {
            let opened = open(&runtime, &directory, LARGE).await.unwrap();
            assert_eq!(state_of(&opened), state);
            assert!(!opened.copy_lost);
            directory.kill();
        }
    });
}

#[test]
fn case_one_copy_of_any_part_damaged_costs_nothing_and_is_mended() {
    run(1, |runtime| async move {
        let (whole, state) = at_rest(&runtime).await;
        // The commit, five promises, and the copies in three entries of many pages.
        for number in 0..12 {
            for copy in 0..2 {
                let directory = whole.copy();
                directory.flip(AREA, page(copy, number) + 20);
                let opened = open(&runtime, &directory, LARGE).await.unwrap();
                assert_eq!(state_of(&opened), state);
                let continues = number >= 6;
                assert!(opened.copy_lost || continues, "{number} {copy}");
                drop(opened);
                directory.kill();
                // The other one may go now.
                directory.flip(AREA, page(1 - copy, number) + 20);
                let opened = open(&runtime, &directory, LARGE).await.unwrap();
                assert_eq!(state_of(&opened), state, "{number} {copy}");
            }
        }
    });
}

#[test]
fn case_pages_of_one_copy_that_cannot_be_read_cost_nothing() {
    run(1, |runtime| async move {
        let (whole, state) = at_rest(&runtime).await;
        for copy in 0..2 {
            let directory = whole.copy();
            let chunk = page(copy, 0)..page(copy, 0) + 5 * PAGE_BYTES as u64;
            directory.fail_reads(AREA, chunk);
            let opened = open(&runtime, &directory, LARGE).await.unwrap();
            assert_eq!(state_of(&opened), state);
            assert!(opened.copy_lost);
        }
    });
}

#[test]
fn case_both_copies_of_a_part_in_the_middle_damaged_is_refused() {
    run(1, |runtime| async move {
        let (whole, _) = at_rest(&runtime).await;
        for number in 1..7 {
            let directory = whole.copy();
            for copy in 0..2 {
                directory.flip(AREA, page(copy, number) + 20);
            }
            let opened = open(&runtime, &directory, LARGE).await;
            assert!(opened.is_none(), "{number}");
        }
    });
}

/// Facts whose log was written anew once.
async fn turned(runtime: &Runtime) -> (MemoryDirectory, FactsState) {
    let (directory, _) = at_rest(runtime).await;
    let opened = open(runtime, &directory, SMALL).await.unwrap();
    for view in 4..40 {
        opened.facts.update([promise(1, view)]).await.unwrap();
    }
    runtime.sleep(Duration::from_secs(1)).await;
    let state = state_of(&opened);
    drop(opened);
    directory.kill();
    (directory, state)
}

#[test]
fn case_newest_snapshot_damaged_in_both_copies_is_refused_although_an_old_one_is_there() {
    run(1, |runtime| async move {
        let (directory, state) = turned(&runtime).await;
        let opened = open(&runtime, &directory, LARGE).await.unwrap();
        assert_eq!(state_of(&opened), state);
        drop(opened);
        directory.kill();
        let disk = directory.open(AREA, area_options(SLOTS)).await.unwrap();
        let Found::Log(log) = load(&disk, OWNER).await.unwrap().found else {
            panic!("a log is in force");
        };
        assert!(log.position().0 > 1);
        for copy in 0..2 {
            directory.flip(AREA, space::byte_at(log.slots()[0], copy, 30));
        }
        assert!(open(&runtime, &directory, LARGE).await.is_none());
    });
}

#[test]
fn case_entries_of_another_store_or_with_other_slices_are_refused() {
    run(1, |runtime| async move {
        let (directory, _) = at_rest(&runtime).await;
        let disk = directory.open(AREA, area_options(SLOTS)).await.unwrap();
        for (identity, slice_blocks) in [([1; 16], 64), (IDENTITY, 65)] {
            let owner = Owner {
                identity,
                slice_blocks: Some(slice_blocks),
            };
            let refused = load(&disk, owner).await.err();
            assert!(matches!(refused, Some(StoreError::Foreign { .. })));
        }
    });
}

/// Images of formats 1 and 2, as those versions left them.
fn images() -> [Vec<u8>; 2] {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    ["001.img", "002.img"].map(|name| std::fs::read(folder.join(name)).unwrap())
}

const OLD_OWNER: Owner = Owner {
    identity: golden::OPTIONS.identity,
    slice_blocks: Some(golden::OPTIONS.slice_blocks),
};

#[test]
fn case_images_of_an_earlier_format_become_a_log_through_any_crash() {
    for image in images() {
        let mut micros = 1;
        let mut ended = false;
        while !ended {
            let image = image.clone();
            ended = run(micros, |runtime| async move {
                let (_, directory) = golden::opened(&runtime, &image);
                let first = open_of(&runtime, &directory.copy(), LARGE, OLD_OWNER).await;
                let state = state_of(&first.unwrap());
                assert!(state.promise(1) == View(3) && state.counts()[1] > 1);
                let opening = open_of(&runtime, &directory, LARGE, OLD_OWNER);
                let life = Duration::from_micros(micros);
                let ended = runtime.timeout(life, opening).await.is_some();
                directory.crash(&Dice::new(micros));
                for _ in 0..2 {
                    let opened = open_of(&runtime, &directory, SMALL, OLD_OWNER).await;
                    let opened = opened.unwrap();
                    assert_eq!(state_of(&opened), state, "{micros}");
                    assert!(!opened.copy_lost, "{micros}");
                    directory.kill();
                }
                // Nothing is left of them that could be taken for facts.
                for copy in 0..2 {
                    let head = directory.peek(AREA, image::image_at(copy), 12);
                    assert!(head[8..12] != [1, 0, 0, 0] && head[8..12] != [2, 0, 0, 0]);
                }
                ended
            });
            micros += 300;
        }
        assert!(micros > 5000, "{micros}");
    }
}

#[test]
fn case_one_image_damaged_leaves_the_other_and_two_are_refused() {
    for image in images() {
        run(1, |runtime| async move {
            let (_, whole) = golden::opened(&runtime, &image);
            for copy in 0..2 {
                let directory = whole.copy();
                directory.flip(AREA, image::image_at(copy) + 70);
                let opened = open_of(&runtime, &directory, LARGE, OLD_OWNER).await;
                let opened = opened.unwrap();
                assert!(opened.copy_lost);
                assert_eq!(state_of(&opened).promise(1), View(3));
            }
            for copy in 0..2 {
                whole.flip(AREA, image::image_at(copy) + 70);
            }
            assert!(open_of(&runtime, &whole, LARGE, OLD_OWNER).await.is_none());
        });
    }
}

#[test]
fn case_one_image_damaged_and_the_other_never_written_is_for_the_journal_to_confirm() {
    let [image, _] = images();
    run(1, |runtime| async move {
        let (_, directory) = golden::opened(&runtime, &image);
        directory.flip(AREA, 70);
        directory.poke(AREA, image::image_at(1), &[0; PAGE_BYTES]);
        let disk = directory.open(AREA, area_options(SLOTS)).await.unwrap();
        let loaded = load(&disk, OLD_OWNER).await.unwrap();
        assert!(matches!(loaded.found, Found::Nothing { is_bare: false }));
    });
}

/// A change drawn at random.
fn drawn(dice: &Dice) -> Vec<Change> {
    let number = dice.below(600);
    let scope = match dice.below(3) {
        0 => Scope::Volume(number / 16),
        _ => Scope::Slice(key(number)),
    };
    let before_lsn = dice.below(1000);
    let scopes = || vec![scope];
    match dice.below(9) {
        0 => vec![promise(number / 16, dice.below(100))],
        1 => vec![in_sync(number..number + 900)],
        2..5 => vec![in_sync(number..number + 1)],
        5 => vec![Change::Void(Void {
            slice: key(number),
            keep_through: Seq(dice.below(10)),
            before_lsn,
        })],
        6 => {
            let begun = Change::Remove {
                scopes: scopes(),
                before_lsn,
            };
            let cleared = Change::Cleared {
                scopes: scopes(),
                before_lsn,
            };
            vec![begun, cleared]
        }
        7 => vec![Change::Forget {
            tail_lsn: before_lsn,
        }],
        _ => vec![Change::Stable(vec![StablePoint {
            slice: key(number),
            stable: Seq(dice.below(100)),
            home_through: Seq(dice.below(100)),
        }])],
    }
}

/// Changes until the power is cut, again and again: what is found is what some number of changes
/// made, at least those that were acknowledged.
fn survive(seed: u64) {
    run(seed, |runtime| async move {
        let dice = Dice::new(seed);
        let directory = MemoryDirectory::new(runtime.clone());
        let log_bytes = [0, SMALL, 20 * SMALL][(seed % 3) as usize];
        let mut opened = open(&runtime, &directory, log_bytes).await.unwrap();
        for life in 0..12 {
            let before = state_of(&opened);
            let acknowledged = Rc::new(std::cell::Cell::new(0));
            // After each submission.
            let states = RefCell::new(vec![before]);
            let work = async {
                loop {
                    let mut outcomes = Vec::new();
                    for _ in 0..=dice.below(3) {
                        let changes = drawn(&dice);
                        let mut state = states.borrow().last().unwrap().clone();
                        for change in changes.clone() {
                            let mut draft = Draft::new(&state);
                            draft.add(change);
                            let edits = draft.into_edits();
                            edits.iter().for_each(|edit| state.apply(edit));
                        }
                        states.borrow_mut().push(state);
                        outcomes.push(opened.facts.update(changes));
                    }
                    for outcome in outcomes {
                        outcome.await.unwrap();
                        acknowledged.set(acknowledged.get() + 1);
                    }
                    if dice.below(10) == 0 {
                        let pause = Duration::from_micros(dice.below(3000));
                        runtime.sleep(pause).await;
                    }
                }
            };
            let long = Duration::from_micros(dice.below(1 << (6 + dice.below(10))));
            runtime.timeout(long, work).await;
            drop(opened);
            match dice.below(3) {
                0 => directory.kill(),
                _ => directory.crash(&dice),
            }
            if dice.below(3) == 0 {
                // Another one while it is opened.
                let early = Duration::from_micros(dice.below(4000));
                let opening = open(&runtime, &directory, log_bytes);
                runtime.timeout(early, opening).await;
                directory.crash(&dice);
            }
            opened = open(&runtime, &directory, log_bytes).await.unwrap();
            assert!(!opened.copy_lost, "a crash is no damage: {life}");
            let found = state_of(&opened);
            let states = states.into_inner();
            let known = &states[acknowledged.get()..];
            assert!(known.contains(&found), "{life}: {} states", states.len());
        }
    });
}

#[test]
fn every_acknowledged_change_survives_any_crash_and_snapshots_too() {
    for seed in 0..120 {
        println!("seed {seed}");
        survive(seed);
    }
}

#[test]
fn a_change_costs_a_page_in_each_copy_however_much_there_is() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let opened = open(&runtime, &directory, LARGE).await.unwrap();
        for many in 0..100 {
            let numbers = many * 1000..(many + 1) * 1000;
            opened.facts.update([in_sync(numbers)]).await.unwrap();
        }
        let before = directory.writes(AREA);
        let many: Vec<_> = (0..20)
            .map(|volume| opened.facts.update([promise(volume, 9)]))
            .collect();
        for change in many {
            change.await.unwrap();
        }
        assert!(directory.writes(AREA) - before <= 4, "they share writes");
    });
}

#[test]
fn there_is_no_wall_and_the_area_grows_with_what_is_there() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let opened = open(&runtime, &directory, SMALL).await.unwrap();
        for many in 0..100 {
            let numbers = many * 1000..(many + 1) * 1000;
            opened.facts.update([in_sync(numbers)]).await.unwrap();
        }
        runtime.sleep(Duration::from_secs(5)).await;
        let state = state_of(&opened);
        assert_eq!(state.counts()[1], 100_000);
        drop(opened);
        directory.kill();
        let shared: Rc<dyn Directory> = Rc::new(directory.clone());
        let disk = shared.open(AREA, area_options(SLOTS)).await.unwrap();
        let bytes = disk.size_bytes();
        assert!((4 << 20..64 << 20).contains(&bytes), "{bytes}");
        let opened = open(&runtime, &directory, SMALL).await.unwrap();
        assert_eq!(state_of(&opened), state);
        // What is deleted is not written any more.
        let scopes: Vec<Scope> = (0..6250).map(Scope::Volume).collect();
        let before_lsn = 5;
        let begun = Change::Remove {
            scopes: scopes.clone(),
            before_lsn,
        };
        let cleared = Change::Cleared { scopes, before_lsn };
        let changes = [begun, cleared, Change::Forget { tail_lsn: 9 }];
        opened.facts.update(changes).await.unwrap();
        assert_eq!(state_of(&opened), FactsState::default());
        for view in 1..200 {
            opened.facts.update([promise(1, view)]).await.unwrap();
        }
        runtime.sleep(Duration::from_secs(5)).await;
        drop(opened);
        directory.kill();
        let Found::Log(log) = load(&disk_of(&directory).await, OWNER).await.unwrap().found else {
            panic!("a log is in force");
        };
        assert_eq!(log.slots().len(), 1, "of what is gone nothing is left");
    });
}

async fn disk_of(directory: &MemoryDirectory) -> Rc<dyn Disk> {
    directory.open(AREA, area_options(SLOTS)).await.unwrap()
}

#[test]
fn changes_are_answered_while_a_large_snapshot_is_taken() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let opened = open(&runtime, &directory, LARGE).await.unwrap();
        opened.facts.update([in_sync(0..100_000)]).await.unwrap();
        drop(opened);
        directory.kill();
        let opened = open(&runtime, &directory, SMALL).await.unwrap();
        // As long as the snapshot takes, some 160 writes one after the other; each is 1 ms here.
        let writes = directory.writes(AREA);
        let mut longest = Duration::ZERO;
        let mut view = 1;
        while directory.writes(AREA) - writes < 400 {
            let begun = runtime.now();
            opened.facts.update([promise(1, view)]).await.unwrap();
            longest = longest.max(runtime.now().saturating_since(begun));
            view += 1;
        }
        assert!(
            view > 40 && longest < Duration::from_millis(4),
            "{longest:?}"
        );
    });
}

#[test]
fn a_full_disk_ends_a_snapshot_and_not_the_log() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let opened = open(&runtime, &directory, LARGE).await.unwrap();
        opened.facts.update([in_sync(0..12_000)]).await.unwrap();
        drop(opened);
        directory.kill();
        let opened = open(&runtime, &directory, SMALL).await.unwrap();
        directory.fail_growth(true);
        for view in 1..40 {
            opened.facts.update([promise(1, view)]).await.unwrap();
        }
        directory.fail_growth(false);
        for view in 40..900 {
            opened.facts.update([promise(1, view)]).await.unwrap();
        }
        let state = state_of(&opened);
        drop(opened);
        directory.kill();
        let opened = open(&runtime, &directory, SMALL).await.unwrap();
        assert_eq!(state_of(&opened), state);
    });
}

#[test]
fn a_failed_write_stops_the_facts_until_they_are_opened_again() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let opened = open(&runtime, &directory, LARGE).await.unwrap();
        directory.fail_write_after(AREA, 0);
        for _ in 0..2 {
            let failed = opened.facts.update([promise(1, 7)]).await;
            assert!(matches!(failed, Err(StoreError::Poisoned { .. })));
        }
        assert_eq!(
            state_of(&opened).promise(1),
            View(0),
            "not durable, not seen"
        );
    });
}
