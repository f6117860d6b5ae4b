//! Looking at stores, sound and damaged: every kind of damage is found and named, nothing else
//! is, and what a node would refuse is still read.

use std::time::Duration;

use super::*;
use crate::inspect::{
    CheckReport, Filter, FindingKind, InspectOptions, Inspection, Severity, Structure, Trust,
    VolumeReader,
};
use crate::testing::{Dice, run};
use crate::{Copied, CopiedBlock, CopyState, StoreError};

const PAGE: u64 = 4096;
const IDENTITY: InspectOptions = InspectOptions {
    identity: Some(*b"a store for test"),
    bytes_per_second: None,
};

pub(super) async fn inspected(runtime: &Runtime, directory: &MemoryDirectory) -> Inspection {
    let directory = Rc::new(directory.clone());
    Inspection::open(runtime.clone(), directory, IDENTITY)
        .await
        .expect("there is something to look at")
}

pub(super) async fn checked(runtime: &Runtime, directory: &MemoryDirectory) -> CheckReport {
    let before: Vec<u64> = AREAS.iter().map(|area| directory.writes(area)).collect();
    let report = inspected(runtime, directory)
        .await
        .check(None, &|_| {})
        .await;
    let after: Vec<u64> = AREAS.iter().map(|area| directory.writes(area)).collect();
    assert_eq!(before, after, "looking writes nothing");
    report
}

const AREAS: [&str; 3] = ["journal", "facts", "home"];

fn kinds(report: &CheckReport) -> Vec<FindingKind> {
    report.counts.keys().copied().collect()
}

/// A store with blocks 0 to 899 in tables, 900 to 909 in deltas, 5 overwritten, 6 zeroed, and
/// record 1000 (block 910) in the journal alone.
async fn lived_in(runtime: &Runtime) -> (MemoryDirectory, Rc<Store>) {
    let directory = MemoryDirectory::new(runtime.clone());
    let (store, _) = open(runtime, &directory).await;
    let in_sync = store.set_copy_state(SLICE, CopyState::InSync);
    in_sync.await.unwrap();
    for number in 0..910u32 {
        let seq = u64::from(number) + 1;
        let record = write(seq, number, number as u8);
        store.append(vec![record]).await.unwrap();
        store.set_stable(SLICE, Seq(seq));
        if number == 899 {
            store.flush().await.unwrap();
            store.compact().await.unwrap();
        }
    }
    store
        .append(vec![write(911, 5, 55), zero(912, 6, 1)])
        .await
        .unwrap();
    store.set_stable(SLICE, Seq(912));
    store.flush().await.unwrap();
    store.append(vec![write(1000, 910, 91)]).await.unwrap();
    // Idle from here on: it is asked where things are, and writes nothing more.
    runtime.sleep(Duration::from_millis(500)).await;
    (directory, store)
}

/// What a block of [`lived_in`] is filled with.
fn fill(block: u32) -> u8 {
    match block {
        5 => 55,
        6 => 0,
        910 => 91,
        other => other as u8,
    }
}

async fn read(reader: &VolumeReader, wanted: u32) -> (Trust, Option<u8>) {
    let stretch = wanted / 256 * 256;
    if !reader.stretches(SLICE.slice).contains(&stretch) {
        return (reader.untouched(SLICE.slice), Some(0));
    }
    let blocks = reader.read(SLICE.slice, stretch).await;
    let found = &blocks[(wanted - stretch) as usize];
    let byte = found.data.as_ref().map(|data| {
        assert!(data.iter().all(|byte| *byte == data[0]));
        data[0]
    });
    let byte = byte.or_else(|| (found.trust >= Trust::Doubtful).then_some(0));
    (found.trust, byte)
}

pub(super) async fn reader(runtime: &Runtime, directory: &MemoryDirectory) -> VolumeReader {
    let inspection = inspected(runtime, directory).await;
    inspection.volume(SLICE.volume, &|_| {}).await
}

#[test]
fn a_sound_store_has_no_findings_and_its_parts_add_up() {
    run(1, |runtime| async move {
        let (directory, _store) = lived_in(&runtime).await;
        let report = checked(&runtime, &directory).await;
        assert_eq!(report.findings, []);
        assert_eq!(report.blocks_verified, 909);
        let journal = report.journal.unwrap();
        assert_eq!(journal.slices[0].last_seq, 1000);
        assert_eq!(report.space.unwrap().data_bytes, 909 * PAGE);
        // Nothing but a size is needed to look at what another node may have.
        let unknown = Inspection::open(
            runtime.clone(),
            Rc::new(directory),
            InspectOptions::default(),
        );
        let found = unknown.await.unwrap();
        assert_eq!(found.identity(), IDENTITY.identity.unwrap());
        assert!(found.check(None, &|_| {}).await.is_clean());
    });
}

#[test]
fn a_store_is_sound_after_any_crash_and_the_counts_of_its_segments_are_right() {
    for seed in 0..24 {
        run(seed, |runtime| async move {
            let dice = Dice::new(seed);
            let directory = MemoryDirectory::new(runtime.clone());
            let mut seq;
            for life in 0..4 {
                let (store, _) = open(&runtime, &directory).await;
                let in_sync = store.set_copy_state(SLICE, CopyState::InSync);
                in_sync.await.unwrap();
                seq = store.last_seq(SLICE).0.max(store.stable(SLICE).0);
                let busy = async {
                    for _ in 0..40 {
                        let count = 1 + dice.below(30);
                        let mut records = Vec::new();
                        for _ in 0..count {
                            seq += 1;
                            let block = dice.below(700) as u32;
                            records.push(match dice.below(5) {
                                0 => zero(seq, block, 1 + dice.below(40) as u32),
                                _ => write(seq, block, seq as u8),
                            });
                        }
                        store.append(records).await.unwrap();
                        store.set_stable(SLICE, Seq(seq - dice.below(3)));
                        match dice.below(12) {
                            0 => store.flush().await.unwrap(),
                            1 => store.compact().await.unwrap(),
                            2 => store.collect().await.unwrap(),
                            _ => {}
                        }
                    }
                };
                let patience = Duration::from_millis(5 + dice.below(400));
                runtime.timeout(patience, busy).await;
                drop(store);
                directory.crash(&dice);
                let report = checked(&runtime, &directory).await;
                let complaints: Vec<_> = report
                    .findings
                    .iter()
                    .filter(|finding| finding.severity != Severity::Notice)
                    .collect();
                assert!(complaints.is_empty(), "life {life}: {complaints:#?}");
            }
        });
    }
}

#[test]
fn whatever_byte_is_flipped_the_check_says_what_the_next_start_will() {
    run(7, |runtime| async move {
        let (whole, store) = lived_in(&runtime).await;
        let map: Vec<u64> = store.map_places().concat();
        let dice = Dice::new(7);
        let (mut fatal, mut damaged) = (0, 0);
        for round in 0..240 {
            let directory = whole.copy();
            let (area, at) = match round % 4 {
                0 => ("journal", dice.below(40) * PAGE + dice.below(PAGE)),
                1 => (
                    "facts",
                    dice.below(2) * crate::facts::COPY_BYTES
                        + dice.below(8) * PAGE
                        + dice.below(200),
                ),
                2 => ("home", dice.below(260) * PAGE + dice.below(64)),
                _ => {
                    let page = map[dice.below(map.len() as u64) as usize];
                    ("home", page + dice.below(PAGE))
                }
            };
            directory.flip(area, at);
            let report = checked(&runtime, &directory).await;
            let worst = report.findings.first().map(|finding| finding.severity);
            let opened = Store::open(runtime.clone(), Rc::new(directory.clone()), options()).await;
            let place = format!("{area} at {at}: {:#?}", report.findings);
            match opened {
                Err(error) => {
                    fatal += 1;
                    assert_eq!(worst, Some(Severity::Fatal), "{error}; {place}");
                }
                Ok((_, recovery)) => {
                    assert_ne!(worst, Some(Severity::Fatal), "{place}");
                    if recovery.found_damage() {
                        damaged += 1;
                        assert_eq!(worst, Some(Severity::Error), "{place}");
                    }
                    if recovery.header_page_lost || recovery.facts_copy_lost {
                        assert!(!report.is_clean(), "{place}");
                    }
                }
            }
            // Whatever it was, the rest can be exported.
            let reader = reader(&runtime, &directory).await;
            for block in [0, 5, 6, 300, 905, 910] {
                let (trust, byte) = read(&reader, block).await;
                if trust == Trust::Sound {
                    assert_eq!(byte, Some(fill(block)), "block {block}; {place}");
                }
            }
        }
        assert!(fatal > 5 && damaged > 5, "{fatal} fatal, {damaged} damaged");
    });
}

#[test]
fn a_flipped_bit_in_a_block_is_named() {
    run(1, |runtime| async move {
        let (directory, store) = lived_in(&runtime).await;
        let at = store.place_of(SLICE, 700).await.unwrap();
        directory.flip("home", at + 100);
        let report = checked(&runtime, &directory).await;
        assert_eq!(kinds(&report), [FindingKind::BlockDamaged]);
        let finding = &report.findings[0];
        assert_eq!((finding.offset, finding.slice), (Some(at), Some(SLICE)));
        assert_eq!(finding.block, Some(700));
        let other = SliceKey { slice: 9, ..SLICE };
        let inspection = inspected(&runtime, &directory).await;
        assert!(inspection.check(Some(other), &|_| {}).await.is_clean());
        assert!(!inspection.check(Some(SLICE), &|_| {}).await.is_clean());
    });
}

#[test]
fn a_misdirected_write_is_named_with_what_it_was() {
    run(1, |runtime| async move {
        let (directory, store) = lived_in(&runtime).await;
        let from = store.place_of(SLICE, 20).await.unwrap();
        let to = store.place_of(SLICE, 21).await.unwrap();
        let of_the_map = store.map_places()[2][0];
        drop(store);
        directory.kill();
        let bytes = directory.peek("home", from, BLOCK_BYTES);
        directory.poke("home", to, &bytes);
        let report = checked(&runtime, &directory).await;
        assert_eq!(kinds(&report), [FindingKind::BlockMisdirected]);
        assert_eq!(report.findings[0].block, Some(21));
        let what = &report.findings[0].what;
        assert!(what.contains("block 20 of volume 7 slice 2"), "{what}");
        // A page of the map over a block.
        let page = directory.peek("home", of_the_map, BLOCK_BYTES);
        directory.poke("home", to, &page);
        let report = checked(&runtime, &directory).await;
        assert_eq!(kinds(&report), [FindingKind::BlockMisdirected]);
        assert!(report.findings[0].what.contains("of the map"));
    });
}

#[test]
fn a_stale_block_is_named() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        store.append(vec![write(1, 5, 1)]).await.unwrap();
        store.set_stable(SLICE, Seq(1));
        store.flush().await.unwrap();
        let old = store.place_of(SLICE, 5).await.unwrap();
        store.append(vec![write(2, 5, 2)]).await.unwrap();
        store.set_stable(SLICE, Seq(2));
        store.flush().await.unwrap();
        let new = store.place_of(SLICE, 5).await.unwrap();
        directory.kill();
        let bytes = directory.peek("home", old, BLOCK_BYTES);
        directory.poke("home", new, &bytes);
        let report = checked(&runtime, &directory).await;
        assert_eq!(kinds(&report), [FindingKind::BlockStale]);
        assert_eq!(
            report.findings[0].what,
            "record 1's block in place of record 2's"
        );
    });
}

#[test]
fn a_lost_segment_is_one_finding() {
    run(1, |runtime| async move {
        let (directory, store) = lived_in(&runtime).await;
        // 128 KiB each, behind two superblocks and two regions.
        let first = 2 * PAGE + 2 * (512 << 10);
        let at = store.place_of(SLICE, 300).await.unwrap();
        let segment = first + (at - first) / (128 << 10) * (128 << 10);
        directory.poke("home", segment, &[0; 128 << 10]);
        let report = checked(&runtime, &directory).await;
        assert_eq!(kinds(&report), [FindingKind::SegmentLost]);
        assert_eq!(report.findings[0].offset, Some(segment));
        assert!(report.findings[0].what.contains("of volume 7 slice 2"));
    });
}

#[test]
fn zeroed_parts_of_the_map_are_told_apart() {
    run(1, |runtime| async move {
        let (whole, store) = lived_in(&runtime).await;
        let lost = [
            FindingKind::DeltaLost,
            FindingKind::LeavesLost,
            FindingKind::TableDirectoryLost,
        ];
        for (places, kind) in store.map_places().iter().zip(lost) {
            let directory = whole.copy();
            directory.poke("home", places[0], &[0; 4096]);
            let report = checked(&runtime, &directory).await;
            assert_eq!(kinds(&report)[0], kind, "{:#?}", report.findings);
            let finding = report.findings.iter().find(|one| one.kind == kind);
            assert_eq!(finding.unwrap().offset, Some(places[0]));
            assert!(finding.unwrap().what.contains("zeroes"));
            // All that was written is found again by the headers of the groups.
            let reader = reader(&runtime, &directory).await;
            for block in [0, 5, 300, 905, 910] {
                let (trust, byte) = read(&reader, block).await;
                assert!(trust >= Trust::Doubtful, "{kind:?}: block {block}");
                assert_eq!(byte, Some(fill(block)), "{kind:?}: block {block}");
            }
        }
    });
}

#[test]
fn without_journal_headers_everything_is_still_read() {
    run(1, |runtime| async move {
        let (directory, _store) = lived_in(&runtime).await;
        directory.poke("journal", 0, &[0xee; 512]);
        directory.poke("journal", PAGE, &[0xee; 512]);
        let refused = Store::open(runtime.clone(), Rc::new(directory.clone()), options()).await;
        assert!(matches!(refused, Err(StoreError::Lost { .. })));
        let report = checked(&runtime, &directory).await;
        assert_eq!(kinds(&report), [FindingKind::JournalHeadersLost]);
        assert_eq!(report.journal.unwrap().slices[0].last_seq, 1000);
        let reader = reader(&runtime, &directory).await;
        for block in 0..912 {
            let (trust, byte) = read(&reader, block).await;
            assert_eq!(trust, Trust::Doubtful);
            assert_eq!(byte, Some(if block == 911 { 0 } else { fill(block) }));
        }
    });
}

#[test]
fn without_superblocks_or_manifest_what_was_written_is_still_read() {
    run(1, |runtime| async move {
        let (whole, _store) = lived_in(&runtime).await;
        let manifest = 2 * PAGE + 2 * (512 << 10);
        for (from, to, kind) in [
            (0, 2 * PAGE, FindingKind::SuperblocksLost),
            (2 * PAGE, manifest, FindingKind::ManifestSnapshotLost),
            (0, manifest, FindingKind::SuperblocksLost),
        ] {
            let directory = whole.copy();
            directory.poke("home", from, &vec![0; (to - from) as usize]);
            let report = checked(&runtime, &directory).await;
            assert!(kinds(&report).contains(&kind), "{:#?}", report.findings);
            assert_eq!(report.findings[0].severity, Severity::Fatal);
            let reader = reader(&runtime, &directory).await;
            for block in [0, 5, 300, 905, 910] {
                let (trust, byte) = read(&reader, block).await;
                assert!(
                    trust >= Trust::Doubtful,
                    "{kind:?} {from}..{to}: block {block}"
                );
                assert_eq!(
                    byte,
                    Some(fill(block)),
                    "{kind:?} {from}..{to}: block {block}"
                );
            }
        }
    });
}

#[test]
fn without_facts_what_is_there_is_read_and_trusted_less() {
    run(1, |runtime| async move {
        let (directory, _store) = lived_in(&runtime).await;
        directory.poke("facts", 0, &[0xee; 512]);
        directory.poke("facts", crate::facts::COPY_BYTES, &[0xee; 512]);
        let report = checked(&runtime, &directory).await;
        assert_eq!(kinds(&report), [FindingKind::FactsLost]);
        let reader = reader(&runtime, &directory).await;
        assert_eq!(read(&reader, 5).await, (Trust::Doubtful, Some(55)));
        assert_eq!(reader.untouched(SLICE.slice), Trust::NotHere);
    });
}

#[test]
fn a_damaged_block_is_exported_from_no_older_version() {
    run(1, |runtime| async move {
        let (directory, store) = lived_in(&runtime).await;
        let at = store.place_of(SLICE, 5).await.unwrap();
        directory.flip("home", at);
        let reader = reader(&runtime, &directory).await;
        assert_eq!(read(&reader, 5).await, (Trust::Unreadable, None));
        assert_eq!(read(&reader, 4).await, (Trust::Sound, Some(4)));
        assert_eq!(read(&reader, 6).await, (Trust::Sound, Some(0)));
        assert_eq!(read(&reader, 910).await, (Trust::Sound, Some(91)));
        assert_eq!(read(&reader, 1000).await, (Trust::Sound, Some(0)));
    });
}

#[test]
fn a_copy_that_was_joining_is_exported_as_what_it_is() {
    run(1, |runtime| async move {
        let directory = MemoryDirectory::new(runtime.clone());
        let (store, _) = open(&runtime, &directory).await;
        let joining = CopyState::Joining { base: Seq(0) };
        store.set_copy_state(SLICE, joining).await.unwrap();
        let copied = CopiedBlock {
            block: 3,
            view: View(1),
            seq: Seq(9),
            content: Copied::Bytes(block(3)),
        };
        store.install(SLICE, vec![copied]).await.unwrap();
        directory.kill();
        let reader = reader(&runtime, &directory).await;
        assert_eq!(reader.slices()[0].copy, "joining");
        assert_eq!(read(&reader, 3).await, (Trust::Doubtful, Some(3)));
        assert_eq!(read(&reader, 4).await.0, Trust::NotHere);
        assert_eq!(read(&reader, 400).await.0, Trust::NotHere);
    });
}

#[test]
fn areas_that_are_cut_short_or_missing_are_named_and_the_rest_is_looked_at() {
    run(1, |runtime| async move {
        let (whole, _store) = lived_in(&runtime).await;
        for name in ["journal", "facts", "home"] {
            let directory = whole.copy();
            directory.cut(name, 0);
            let inspection = inspected(&runtime, &directory).await;
            let report = inspection.check(None, &|_| {}).await;
            assert_eq!(report.findings[0].kind, FindingKind::AreaMissing, "{name}");
            inspection.volume(SLICE.volume, &|_| {}).await.slices();
        }
        for (name, bytes) in [
            ("journal", 64 << 10),
            ("facts", 64 << 10),
            ("home", 2 << 20),
        ] {
            let directory = whole.copy();
            directory.cut(name, bytes);
            let report = inspected(&runtime, &directory)
                .await
                .check(None, &|_| {})
                .await;
            assert!(!report.is_clean(), "{name}");
            reader(&runtime, &directory).await.slices();
        }
    });
}

#[test]
fn every_structure_can_be_listed() {
    run(1, |runtime| async move {
        let (directory, _store) = lived_in(&runtime).await;
        let inspection = inspected(&runtime, &directory).await;
        let rows = async |what, filter: Filter| inspection.dump(what, &filter).await.rows;
        let all = Filter::default();
        let of_block = Filter {
            block: Some(5),
            ..all
        };
        assert_eq!(rows(Structure::Header, all).await.len(), 5);
        assert_eq!(rows(Structure::Facts, all).await.len(), 1);
        assert_eq!(rows(Structure::Map, of_block).await.len(), 1);
        assert_eq!(
            rows(
                Structure::Map,
                Filter {
                    volume: Some(8),
                    ..all
                }
            )
            .await
            .len(),
            0
        );
        assert!(!rows(Structure::Journal, all).await.is_empty());
        assert!(rows(Structure::Manifest, all).await.len() > 3);
        assert_eq!(rows(Structure::Segments, all).await.len(), 63);
        let cut = inspection
            .dump(Structure::Map, &Filter { limit: 10, ..all })
            .await;
        assert_eq!((cut.rows.len(), cut.cut), (10, true));
    });
}
