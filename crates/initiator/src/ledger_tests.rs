//! Every verdict of the ledger, each from the history that must lead to it.

use super::*;

const SEED: u64 = 42;
const BLOCK: u64 = 1007;

fn ledger() -> Ledger {
    Ledger::new(SEED, 1000, 10_000)
}

fn write(ledger: &mut Ledger, block: u64, is_acknowledged: bool) -> Vec<u8> {
    let data = ledger.begin_write(block, 1).unwrap();
    ledger.end_write(block, 1, is_acknowledged);
    data
}

fn read(ledger: &mut Ledger, block: u64, data: &[u8]) -> Findings {
    let mut findings = Findings::default();
    let ticket = ledger.begin_read(block, (data.len() / BLOCK_BYTES) as u32);
    ledger.end_read(ticket, data, &mut findings);
    findings
}

fn verdict(ledger: &mut Ledger, data: &[u8]) -> Option<Verdict> {
    read(ledger, BLOCK, data)
        .examples
        .first()
        .map(|(block, verdict)| {
            assert_eq!(*block, BLOCK);
            *verdict
        })
}

#[test]
fn the_last_acknowledged_version_is_right() {
    let mut ledger = ledger();
    write(&mut ledger, BLOCK, true);
    let latest = write(&mut ledger, BLOCK, true);
    assert_eq!(verdict(&mut ledger, &latest), None);
    assert_eq!(ledger.acknowledged_blocks(), 1);
}

#[test]
fn a_newer_unacknowledged_version_is_right_and_so_is_its_absence() {
    let mut ledger = ledger();
    let acknowledged = write(&mut ledger, BLOCK, true);
    let open = write(&mut ledger, BLOCK, false);
    assert_eq!(verdict(&mut ledger, &acknowledged), None);
    assert_eq!(verdict(&mut ledger, &open), None);
}

#[test]
fn zeros_are_right_only_while_nothing_was_acknowledged() {
    let zeros = [0; BLOCK_BYTES];
    let mut ledger = ledger();
    assert_eq!(verdict(&mut ledger, &zeros), None);
    write(&mut ledger, BLOCK, false);
    assert_eq!(verdict(&mut ledger, &zeros), None);
    write(&mut ledger, BLOCK, true);
    assert_eq!(
        verdict(&mut ledger, &zeros),
        Some(Verdict::Lost { expected: 2 })
    );
}

#[test]
fn an_older_version_than_the_acknowledged_is_stale() {
    let mut ledger = ledger();
    let old = write(&mut ledger, BLOCK, true);
    write(&mut ledger, BLOCK, true);
    assert_eq!(
        verdict(&mut ledger, &old),
        Some(Verdict::Stale {
            expected: 2,
            found: 1
        })
    );
}

#[test]
fn a_version_once_seen_must_not_vanish_again() {
    let mut ledger = ledger();
    let acknowledged = write(&mut ledger, BLOCK, true);
    let open = write(&mut ledger, BLOCK, false);
    assert_eq!(verdict(&mut ledger, &open), None);
    let reverted = Some(Verdict::Stale {
        expected: 2,
        found: 1,
    });
    assert_eq!(verdict(&mut ledger, &acknowledged), reverted);
    let zeros = [0; BLOCK_BYTES];
    assert_eq!(
        verdict(&mut ledger, &zeros),
        Some(Verdict::Lost { expected: 2 })
    );
}

#[test]
fn any_flipped_byte_is_corrupt() {
    let mut ledger = ledger();
    let good = write(&mut ledger, BLOCK, true);
    for at in [0, 9, 17, 24, 28, 31, 32, 2000, 4087, 4088, 4095] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let found = verdict(&mut ledger, &bad);
        assert_eq!(found, Some(Verdict::Corrupt { expected: 1 }), "byte {at}");
    }
}

#[test]
fn a_torn_mix_of_two_versions_is_corrupt() {
    let mut ledger = ledger();
    let mut torn = write(&mut ledger, BLOCK, true);
    let new = write(&mut ledger, BLOCK, true);
    torn[..512].copy_from_slice(&new[..512]);
    assert_eq!(
        verdict(&mut ledger, &torn),
        Some(Verdict::Corrupt { expected: 2 })
    );
}

#[test]
fn another_blocks_or_another_ledgers_data_is_corrupt() {
    let mut ledger = ledger();
    write(&mut ledger, BLOCK, true);
    let neighbour = write(&mut ledger, BLOCK + 1, true);
    let corrupt = Some(Verdict::Corrupt { expected: 1 });
    assert_eq!(verdict(&mut ledger, &neighbour), corrupt);
    let mut foreign = vec![0; BLOCK_BYTES];
    fill_block(&mut foreign, SEED + 1, BLOCK, 1);
    assert_eq!(verdict(&mut ledger, &foreign), corrupt);
}

#[test]
fn a_version_that_was_never_issued_is_corrupt() {
    let mut ledger = ledger();
    write(&mut ledger, BLOCK, true);
    let mut future = vec![0; BLOCK_BYTES];
    fill_block(&mut future, SEED, BLOCK, 2);
    assert_eq!(
        verdict(&mut ledger, &future),
        Some(Verdict::Corrupt { expected: 1 })
    );
}

#[test]
fn a_read_that_overlaps_writes_may_show_any_of_them() {
    let mut ledger = ledger();
    let first = write(&mut ledger, BLOCK, true);
    let ticket = ledger.begin_read(BLOCK, 1);
    write(&mut ledger, BLOCK, true);
    let mut findings = Findings::default();
    // Old when the read began, acknowledged since: the read may have been served before.
    ledger.end_read(ticket, &first, &mut findings);
    assert!(findings.is_clean());
    let ticket = ledger.begin_read(BLOCK, 1);
    let newest = write(&mut ledger, BLOCK, true);
    ledger.end_read(ticket, &newest, &mut findings);
    assert!(findings.is_clean());
}

#[test]
fn a_block_has_one_writer_at_a_time() {
    let mut ledger = ledger();
    assert!(ledger.begin_write(BLOCK, 4).is_some());
    assert!(ledger.begin_write(BLOCK + 3, 2).is_none());
    assert!(ledger.begin_write(BLOCK + 4, 1).is_some());
    ledger.end_write(BLOCK, 4, true);
    assert!(ledger.begin_write(BLOCK + 3, 1).is_some());
}

#[test]
fn findings_name_each_bad_block_of_a_large_read() {
    let mut ledger = ledger();
    let mut data = ledger.begin_write(1000, 8).unwrap();
    ledger.end_write(1000, 8, true);
    data[2 * BLOCK_BYTES..3 * BLOCK_BYTES].fill(0);
    data[5 * BLOCK_BYTES + 100] ^= 1;
    let findings = read(&mut ledger, 1000, &data);
    assert_eq!((findings.lost, findings.stale, findings.corrupt), (1, 0, 1));
    let expected = [
        (1002, Verdict::Lost { expected: 1 }),
        (1005, Verdict::Corrupt { expected: 1 }),
    ];
    assert_eq!(findings.examples, expected);
}

#[test]
fn memory_is_taken_only_where_blocks_were_written() {
    let mut ledger = Ledger::new(SEED, 0, 1 << 28);
    write(&mut ledger, 5 * CHUNK_BLOCKS, true);
    assert_eq!(ledger.chunks.iter().flatten().count(), 1);
    assert_eq!(size_of::<Entry>(), ENTRY_BYTES);
    assert!(ledger.may_be_touched(0, 6 * CHUNK_BLOCKS));
    assert!(!ledger.may_be_touched(0, 5 * CHUNK_BLOCKS));
}

#[test]
fn a_saved_ledger_judges_as_before_and_forgets_outstanding_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let mut ledger = ledger();
    let old = write(&mut ledger, BLOCK, true);
    let new = write(&mut ledger, BLOCK, true);
    let outstanding = ledger.begin_write(9000, 1).unwrap();
    ledger.save(&path).unwrap();
    let mut loaded = Ledger::load(&path).unwrap();
    assert_eq!(verdict(&mut loaded, &new), None);
    assert_eq!(
        verdict(&mut loaded, &old),
        Some(Verdict::Stale {
            expected: 2,
            found: 1
        })
    );
    assert!(read(&mut loaded, 9000, &outstanding).is_clean());
    assert!(
        loaded.begin_write(9000, 1).is_some(),
        "no writer is left over"
    );
}

#[test]
fn a_damaged_cut_or_foreign_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ledger");
    let mut ledger = ledger();
    write(&mut ledger, BLOCK, true);
    ledger.save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let outcome = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Ledger::load(&path)
    };
    for at in [8, 16, 25, 33, 41, 200, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(
            matches!(outcome(&bad), Err(LedgerFileError::Damaged)),
            "byte {at}"
        );
    }
    let cut = outcome(&good[..good.len() - 9]);
    assert!(matches!(cut, Err(LedgerFileError::Damaged)));
    assert!(matches!(
        outcome(b"HFLEDGR9 and more"),
        Err(LedgerFileError::Unknown)
    ));
    assert_eq!(outcome(&good).unwrap(), ledger);
}
