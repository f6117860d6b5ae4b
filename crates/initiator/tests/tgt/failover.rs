//! A disk behind several portals, and the load that proves what it kept.

use std::cell::RefCell;
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_initiator::{
    BLOCK_BYTES, Disk, DiskOptions, Error, Ledger, Load, LoadOptions, SizeWeight, VerifyOptions,
    VerifyReport, verify,
};

use crate::peer::{self, DISK_BYTES, LUN, Peer, disk_options, on_one_thread};

const REGION_BLOCKS: u64 = 2048;

fn new_ledger() -> Rc<RefCell<Ledger>> {
    Rc::new(RefCell::new(Ledger::new(11, 64, REGION_BLOCKS)))
}

/// Writes alone: tgtd serves from the page cache, where a read that overlaps a write of the same
/// block can see half of each, and the ledger would rightly complain.
fn endless_writes() -> LoadOptions {
    let size = |bytes, weight| SizeWeight { bytes, weight };
    let sizes = vec![size(4096, 3), size(65_536, 1)];
    LoadOptions {
        sizes,
        read_percent: 0,
        ..LoadOptions::default()
    }
}

async fn check(disk: &Disk, ledger: &Rc<RefCell<Ledger>>) -> VerifyReport {
    verify(disk, ledger, VerifyOptions::default(), |_| {})
        .await
        .unwrap()
}

/// Lets the load run until `more` operations have completed.
async fn progress(load: &Load, more: u64) {
    let goal = load.statistics().operations() + more;
    while load.statistics().operations() < goal {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_load_is_verified_and_planted_faults_are_found() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let disk = Disk::open(disk_options(&[&peer])).await.unwrap();
        let ledger = new_ledger();
        let writes = LoadOptions {
            operations: Some(2000),
            ..endless_writes()
        };
        let reads = LoadOptions {
            read_percent: 100,
            ..writes.clone()
        };
        for options in [writes, reads] {
            let load = Load::start(disk.clone(), Rc::clone(&ledger), options).unwrap();
            let statistics = load.wait().await;
            assert_eq!((statistics.operations(), statistics.errors), (2000, 0));
            assert!(statistics.findings.is_clean(), "{:?}", statistics.findings);
        }
        assert!(check(&disk, &ledger).await.is_clean());

        // Behind the disk's back: one block forgotten, one set back, one damaged.
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(peer.disk_file())
            .unwrap();
        let at = |block: u64| block * BLOCK_BYTES as u64;
        let write = async |block| {
            let data = ledger.borrow_mut().begin_write(block, 1).unwrap();
            disk.write(at(block), data.into()).await.unwrap();
            ledger.borrow_mut().end_write(block, 1, true);
        };
        for block in [100, 101, 102] {
            write(block).await;
        }
        let mut old = vec![0; BLOCK_BYTES];
        file.read_exact_at(&mut old, at(101)).unwrap();
        write(101).await;
        file.write_all_at(&vec![0; BLOCK_BYTES], at(100)).unwrap();
        file.write_all_at(&old, at(101)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at(102) + 1000).unwrap();
        file.write_all_at(&[!byte[0]], at(102) + 1000).unwrap();
        let report = check(&disk, &ledger).await;
        let findings = &report.findings;
        assert_eq!(
            (findings.lost, findings.stale, findings.corrupt),
            (1, 1, 1),
            "{report:?}"
        );
    });
}

#[test]
fn a_killed_portal_costs_no_acknowledged_write() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let first = Peer::start();
        let second = Peer::sharing(&first);
        let mut peers = [first, second];
        let disk = Disk::open(disk_options(&[&peers[0], &peers[1]]))
            .await
            .unwrap();
        let ledger = new_ledger();
        let load = Load::start(disk.clone(), Rc::clone(&ledger), endless_writes()).unwrap();
        progress(&load, 300).await;
        let used = disk.portal().unwrap();
        let (victim, survivor) = if peers[0].portal == used {
            (0, 1)
        } else {
            (1, 0)
        };
        peers[victim].kill();
        progress(&load, 1000).await;
        assert_eq!(disk.portal(), Some(peers[survivor].portal));
        let statistics = load.stop().await;
        assert_eq!(statistics.errors, 0, "{:?}", statistics.last_error);
        assert!(statistics.findings.is_clean(), "{:?}", statistics.findings);
        let report = check(&disk, &ledger).await;
        assert!(report.is_clean(), "{report:?}");
        let counters = disk.counters();
        assert_eq!((counters.failovers, counters.silences), (1, 0));
        assert!(counters.retries > 0);
        println!("killed portal: {:?}", disk.gap());
        assert!(
            disk.gap().longest < Duration::from_secs(2),
            "{:?}",
            disk.gap()
        );
        disk.close().await.unwrap();
    });
}

#[test]
fn a_silent_portal_is_left_after_the_limit() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let first = Peer::start();
        let second = Peer::sharing(&first);
        let peers = [first, second];
        let disk = Disk::open(disk_options(&[&peers[0], &peers[1]]))
            .await
            .unwrap();
        let ledger = new_ledger();
        let load = Load::start(disk.clone(), Rc::clone(&ledger), endless_writes()).unwrap();
        progress(&load, 300).await;
        let used = disk.portal().unwrap();
        // Never thawed: what it still holds must not reach the file later.
        peers
            .iter()
            .find(|peer| peer.portal == used)
            .unwrap()
            .freeze();
        progress(&load, 1000).await;
        let statistics = load.stop().await;
        assert_eq!(statistics.errors, 0, "{:?}", statistics.last_error);
        let report = check(&disk, &ledger).await;
        assert!(report.is_clean(), "{report:?}");
        let counters = disk.counters();
        assert_eq!((counters.failovers, counters.silences), (1, 1));
        println!("silent portal: {:?}", disk.gap());
        let gap = disk.gap().longest;
        assert!(gap < Duration::from_secs(3), "{gap:?}");
    });
}

#[test]
fn io_waits_for_a_portal_that_comes_back_and_fails_if_none_does() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let mut peer = Peer::start();
        let give_up = Duration::from_millis(500);
        let options = DiskOptions {
            give_up,
            ..disk_options(&[&peer])
        };
        let disk = Disk::open(options).await.unwrap();
        disk.write(0, Bytes::from(vec![1; 4096])).await.unwrap();
        peer.kill();
        let failed = disk.write(0, Bytes::from(vec![2; 4096])).await.unwrap_err();
        assert!(matches!(failed, Error::AllPathsDown { waited, .. } if waited == give_up));
        peer.restart();
        let found = disk.read(0, 4096).await.unwrap();
        assert_eq!(found[0], 1);
        assert_eq!(disk.counters().failovers, 1);
    });
}

#[test]
fn a_portal_with_another_disk_is_never_used() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let mut first = Peer::start();
        let impostor = Peer::start();
        let only_first = Disk::open(disk_options(&[&first])).await.unwrap();
        only_first.close().await.unwrap();
        // The race at opening may be won by either; so the impostor is unplugged first.
        impostor.offline();
        let options = DiskOptions {
            give_up: Duration::from_secs(1),
            ..disk_options(&[&first, &impostor])
        };
        let disk = Disk::open(options).await.unwrap();
        assert_eq!(disk.portal(), Some(first.portal));
        impostor.parameter("scsi_id=another-disk");
        impostor.online();
        first.kill();
        let failed = disk.write(0, Bytes::from(vec![2; 4096])).await.unwrap_err();
        assert!(matches!(failed, Error::AllPathsDown { .. }), "{failed:?}");
        let bytes = std::fs::read(impostor.disk_file()).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    });
}

#[test]
fn opening_tells_at_once_when_every_portal_refuses_for_good() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        peer.demand_chap(("user", "initiator-secret"), None);
        let refused = Disk::open(disk_options(&[&peer, &peer]))
            .await
            .err()
            .unwrap();
        assert_eq!(refused, Error::AuthenticationFailed);
    });
}

#[test]
fn io_outside_the_disk_is_refused_before_it_is_sent() {
    if peer::is_missing() {
        return;
    }
    on_one_thread(async {
        let peer = Peer::start();
        let disk = Disk::open(disk_options(&[&peer])).await.unwrap();
        assert_eq!((disk.capacity().bytes(), LUN), (DISK_BYTES, 1));
        for (offset, length) in [
            (DISK_BYTES, 512),
            (0, 0),
            (0, 100),
            (1, 512),
            (u64::MAX, 512),
        ] {
            let refused = disk.read(offset, length).await;
            assert!(
                matches!(refused, Err(Error::OutOfRange { .. })),
                "{offset}+{length}"
            );
        }
        disk.write(DISK_BYTES - 4096, Bytes::from(vec![7; 4096]))
            .await
            .unwrap();
        disk.flush().await.unwrap();
        disk.unmap(DISK_BYTES - 4096, 4096).await.unwrap();
        let found = disk.read(DISK_BYTES - 4096, 4096).await.unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
    });
}
