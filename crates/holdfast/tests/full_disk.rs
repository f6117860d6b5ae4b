//! Disks that run full, with real processes: a clear error, nothing acknowledged is lost, and
//! the space that comes back is used again.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use harness::{Initiator, PATIENCE, VOLUME_BYTES, alone, cluster, options, volume};
use holdfast::fleet::Fleet;
use holdfast_api::{SpaceLevel, WhichNodes};
use holdfast_initiator::{BlockRange, Chap, Error, Secret, Session, SessionOptions};
use tokio::time::timeout;

const CHUNK_BYTES: usize = 1 << 20;
/// Sense of SPACE ALLOCATION FAILED WRITE PROTECT (SBC-4 4.7.3.6).
const DATA_PROTECT: u8 = 0x07;
const ALLOCATION_FAILED: (u8, u8) = (0x27, 0x07);

#[test]
fn a_volume_larger_than_the_disks_is_filled_up_to_a_clear_error_and_gives_all_back() {
    alone(async |folder| {
        let sizes = holdfast::fleet::FleetOptions {
            home_bytes: 128 << 20,
            ..options(folder, 3)
        };
        let mut fleet = Fleet::prepare(sizes).unwrap();
        fleet.found().await.unwrap();
        let created = volume(&fleet, "large", 3).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        let filled = fill(&disk).await;
        let mib = filled / CHUNK_BYTES as u64;
        assert!((64..128).contains(&mib), "{mib} MiB of 128 were filled");

        // What is there stays readable, and can be written again.
        for offset in (0..filled).step_by(CHUNK_BYTES) {
            let read = disk.read(offset, CHUNK_BYTES as u32).await.unwrap();
            assert!(read == pattern(offset), "the chunk at {offset}");
        }
        disk.write(0, pattern(1)).await.unwrap();
        assert!(disk.read(0, CHUNK_BYTES as u32).await.unwrap() == pattern(1));
        disk.close().await.unwrap();

        // A restart of all does not change that.
        fleet.kill_all().await.unwrap();
        for index in 0..3 {
            fleet.start(index, None).unwrap();
        }
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        let disk = Initiator::open(&fleet, &created).await.disk;
        let last = filled - CHUNK_BYTES as u64;
        assert!(disk.read(last, CHUNK_BYTES as u32).await.unwrap() == pattern(last));
        disk.close().await.unwrap();

        fleet.client(0).delete_volume("large").await.unwrap();
        let created = volume(&fleet, "next", 3).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        let mut again = 0;
        // The copies give the space back in the background.
        let giving_back = async {
            while again == 0 {
                again = fill(&disk).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(PATIENCE, giving_back).await.unwrap();
        assert!(again + (8 << 20) >= filled, "{again} of {filled} bytes");
    });
}

#[test]
fn a_home_is_critical_before_it_refuses_and_writes_wait_for_space_that_is_being_freed() {
    alone(async |folder| {
        let sizes = holdfast::fleet::FleetOptions {
            home_bytes: 128 << 20,
            ..options(folder, 2)
        };
        let mut fleet = Fleet::prepare(sizes).unwrap();
        fleet.found().await.unwrap();
        let created = volume(&fleet, "full", 2).await;
        let chap = created.credentials.as_ref().unwrap();
        let mut options = SessionOptions::new("iqn.2026-11.io.holdfast:full");
        options.chap = Some(Chap::new(&chap.username, Secret::new(chap.secret.as_str())));
        let portal = fleet.portals()[0];
        let session = Session::connect(portal, &created.volume.target, &options).await;
        let session = session.unwrap();
        session.clear_attentions(0).await.unwrap();
        const BLOCKS: u32 = (CHUNK_BYTES / 512) as u32;
        let chunk = |number: u64| BlockRange {
            first: number * u64::from(BLOCKS),
            blocks: BLOCKS,
        };
        let write = async |number: u64| {
            let data = pattern(number * CHUNK_BYTES as u64);
            session.write(0, chunk(number), data).await
        };
        let is_critical = async || {
            let nodes = fleet.client(0).nodes(WhichNodes::default()).await.unwrap();
            let critical = Some(SpaceLevel::Critical);
            nodes.iter().any(|node| node.space == critical)
        };
        let (mut filled, mut said) = (0, false);
        while write(filled).await.is_ok() {
            filled += 1;
            said = is_critical().await;
        }
        assert!(said, "before anything was refused");
        let status = fleet.client(0).cluster().await.unwrap();
        let said = status.explanations.join("; ");
        assert!(said.contains("almost full"), "{said}");

        // Full means refused, and that soon: nothing is being freed.
        let begun = std::time::Instant::now();
        let refused = write(filled).await.unwrap_err();
        assert!(
            matches!(
                refused,
                Error::CheckCondition {
                    key: DATA_PROTECT,
                    ..
                }
            ),
            "{refused}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{:?}",
            begun.elapsed()
        );
        // What was unmapped can be used at once, whatever piece it was.
        for round in 0..6 {
            let freed = [round * 2, round * 2 + 1];
            session.unmap(0, &freed.map(chunk)).await.unwrap();
            let written = write(filled + round).await;
            written.unwrap_or_else(|error| panic!("round {round}: {error}"));
        }
        session.logout().await.unwrap();
        fleet.kill_all().await.unwrap();
    });
}

#[test]
fn a_node_without_space_on_its_file_system_leaves_and_comes_back_when_there_is_some() {
    alone(async |folder| {
        let Some(small) = SmallFileSystem::mount(&folder.join("node-3")) else {
            println!("skipped: only root can make a small file system");
            return;
        };
        let mut fleet = cluster(folder, 3).await;
        let created = volume(&fleet, "db", 3).await;
        let initiator = Initiator::open(&fleet, &created).await;
        let ballast = small.fill();
        let load = initiator.load(3);
        let status = fleet.reap(2).await.unwrap();
        assert!(!status.success(), "{status}");
        let log = std::fs::read_to_string(folder.join("node-3/log")).unwrap();
        assert!(log.contains("no space for home"), "{log}");
        Initiator::progress(&load, 200).await;

        std::fs::remove_file(ballast).unwrap();
        fleet.start(2, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        let statistics = load.stop().await;
        assert_eq!(statistics.errors, 0, "{:?}", statistics.last_error);
        assert!(initiator.verify().await.is_clean());
        fleet.kill_all().await.unwrap();
    });
}

#[test]
fn a_preallocated_home_takes_writes_while_its_file_system_is_full() {
    alone(async |folder| {
        let Some(small) = SmallFileSystem::mount(&folder.join("node-1")) else {
            println!("skipped: only root can make a small file system");
            return;
        };
        let sizes = holdfast::fleet::FleetOptions {
            home_bytes: 160 << 20,
            home_sparse: false,
            ..options(folder, 1)
        };
        let mut fleet = Fleet::prepare(sizes).unwrap();
        fleet.found().await.unwrap();
        let created = volume(&fleet, "db", 1).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        let ballast = small.fill();
        // More than the journal takes: it has to go home.
        let written = 64 * CHUNK_BYTES as u64;
        for offset in (0..written).step_by(CHUNK_BYTES) {
            disk.write(offset, pattern(offset)).await.unwrap();
        }
        disk.close().await.unwrap();
        fleet.kill_all().await.unwrap();
        std::fs::remove_file(ballast).unwrap();
        fleet.start(0, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        let disk = Initiator::open(&fleet, &created).await.disk;
        for offset in (0..written).step_by(CHUNK_BYTES) {
            let read = disk.read(offset, CHUNK_BYTES as u32).await.unwrap();
            assert!(read == pattern(offset), "the chunk at {offset}");
        }
        disk.close().await.unwrap();
        fleet.kill_all().await.unwrap();
    });
}

/// Writes chunk after chunk until one is refused; returns how many bytes were taken.
async fn fill(disk: &holdfast_initiator::Disk) -> u64 {
    for offset in (0..VOLUME_BYTES).step_by(CHUNK_BYTES) {
        match disk.write(offset, pattern(offset)).await {
            Ok(()) => {}
            Err(Error::CheckCondition { key, asc, ascq }) => {
                assert_eq!((key, (asc, ascq)), (DATA_PROTECT, ALLOCATION_FAILED));
                return offset;
            }
            Err(other) => panic!("the write at {offset}: {other}"),
        }
    }
    panic!("a volume of {VOLUME_BYTES} bytes fitted");
}

/// Bytes that tell where they belong.
fn pattern(offset: u64) -> Bytes {
    let words = (0..CHUNK_BYTES as u64 / 8).map(|word| (offset + 8 * word) ^ 0x5bd1_e995);
    words.flat_map(u64::to_le_bytes).collect()
}

/// A file system in memory of 320 MiB, gone with this value.
struct SmallFileSystem {
    at: PathBuf,
}

impl SmallFileSystem {
    /// `None` without the right to mount.
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=320m", "none"])
            .arg(at);
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then(|| Self { at: at.to_owned() })
    }

    /// Takes all the space that is left.
    fn fill(&self) -> PathBuf {
        let path = self.at.join("ballast");
        let mut file = File::create(&path).unwrap();
        let chunk = [1; 4096];
        loop {
            match file.write_all(&chunk) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return path,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}
