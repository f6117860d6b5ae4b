//! Disks that lie or die, with real processes and real files: what is lost comes back from the
//! other copies, or the node is refused and replaced.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use harness::{Initiator, PATIENCE, alone, cluster, holdfast, stderr, volume};
use holdfast::fleet::Fleet;
use holdfast_api::{ClusterPhase, Integrity, NodeState, ScrubAction, ScrubOrder, WhichNodes};
use holdfast_initiator::Disk;

const BLOCK: usize = 4096;
/// Blocks that the tests write.
const BLOCKS: u64 = 1024;
/// Node 3, which has a copy of everything in a cluster of three.
const VICTIM: usize = 2;

/// A block that no other one is like, in any round of writing.
fn pattern(block: u64, round: u64) -> Bytes {
    let words = (0..BLOCK as u64 / 8).map(|word| {
        let seed = (block << 20 | round << 12 | word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (seed ^ seed >> 29).to_le_bytes()
    });
    Bytes::from(words.flatten().collect::<Vec<u8>>())
}

async fn write_all(disk: &Disk, round: u64) {
    for first in (0..BLOCKS).step_by(64) {
        let blocks = (first..first + 64).map(|block| pattern(block, round));
        let bytes: Vec<u8> = blocks.flat_map(|block| block.to_vec()).collect();
        disk.write(first * BLOCK as u64, Bytes::from(bytes))
            .await
            .unwrap();
    }
}

async fn expect_all(disk: &Disk, round: u64) {
    for block in 0..BLOCKS {
        let read = disk.read(block * BLOCK as u64, BLOCK as u32).await.unwrap();
        assert!(read == pattern(block, round), "block {block}");
    }
}

/// The file with a node's blocks, while the node does not run.
struct Home {
    file: File,
    pages: u64,
}

impl Home {
    fn open(fleet: &Fleet) -> Self {
        let path = fleet.directory(VICTIM).join("home");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let pages = file.metadata().unwrap().len() / BLOCK as u64;
        Self { file, pages }
    }

    fn page(&self, number: u64) -> Vec<u8> {
        let mut page = vec![0; BLOCK];
        self.file
            .read_exact_at(&mut page, number * BLOCK as u64)
            .unwrap();
        page
    }

    fn put(&self, number: u64, bytes: &[u8]) {
        self.file
            .write_all_at(bytes, number * BLOCK as u64)
            .unwrap();
    }

    /// Pages for which `wanted` holds.
    fn find(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
        (0..self.pages)
            .filter(|page| wanted(&self.page(*page)))
            .collect()
    }

    fn of_block(&self, block: u64, round: u64) -> u64 {
        let bytes = pattern(block, round);
        let found = self.find(|page| page == bytes);
        *found.first().expect("the block is in the home")
    }
}

/// Three nodes, and a volume of which everything is at home on each of them.
async fn written(folder: &std::path::Path) -> (Fleet, Initiator) {
    let fleet = cluster(folder, 3).await;
    let created = volume(&fleet, "db", 3).await;
    let initiator = Initiator::open(&fleet, &created).await;
    write_all(&initiator.disk, 1).await;
    (fleet, initiator)
}

async fn stop_victim(fleet: &mut Fleet) {
    let status = fleet.stop(VICTIM, PATIENCE).await.unwrap();
    assert!(status.success(), "{status}");
}

async fn integrity(fleet: &Fleet) -> Integrity {
    let report = fleet.client(VICTIM).own_report().await.unwrap();
    report.integrity
}

/// Starts the victim again and scrubs it; answers what the pass found, when all of it is healed.
async fn scrubbed(fleet: &mut Fleet) -> Integrity {
    fleet.start(VICTIM, None).unwrap();
    fleet.wait_until_healthy(PATIENCE).await.unwrap();
    let before = integrity(fleet).await.last_scrub;
    let action = ScrubAction::Start;
    let number = VICTIM as u64 + 1;
    let client = fleet.client(VICTIM);
    client
        .order_scrub(number, &ScrubOrder { action })
        .await
        .unwrap();
    let healed = async {
        loop {
            let now = integrity(fleet).await;
            let over = now.scrub.is_none() && now.last_scrub != before;
            if over && now.damaged_blocks == 0 {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, healed)
        .await
        .expect("the damage is healed")
}

/// After everything was healed, a second scrub finds nothing, and the victim's copy serves.
async fn expect_whole(fleet: &mut Fleet, initiator: &Initiator) {
    stop_victim(fleet).await;
    let found = scrubbed(fleet).await;
    assert_eq!(found.healed_blocks, 0, "{found:?}");
    let pass = found.last_scrub.expect("a pass");
    assert_eq!(pass.damaged_blocks, 0, "{found:?}");
    assert!(pass.bytes >= BLOCKS * BLOCK as u64, "{found:?}");
    // The healed copy is as good as any: it serves beside one other.
    fleet.kill(&[0]).await.unwrap();
    expect_all(&initiator.disk, 1).await;
}

/// Damages the victim's home, and expects that so many blocks come back at least, that everything
/// reads as it was written, and that a second scrub finds nothing.
fn heals(blocks_min: u64, damage: impl FnOnce(&Home)) {
    alone(async |folder| {
        let (mut fleet, initiator) = written(folder).await;
        stop_victim(&mut fleet).await;
        damage(&Home::open(&fleet));
        let found = scrubbed(&mut fleet).await;
        assert!(found.healed_blocks >= blocks_min, "{found:?}");
        assert_eq!(found.lost_blocks, 0, "{found:?}");
        expect_all(&initiator.disk, 1).await;
        expect_whole(&mut fleet, &initiator).await;
    });
}

#[test]
fn a_flipped_bit_is_healed() {
    heals(1, |home| {
        let page = home.of_block(77, 1);
        let mut bytes = home.page(page);
        bytes[1000] ^= 0x10;
        home.put(page, &bytes);
    });
}

#[test]
fn a_misdirected_write_is_healed() {
    heals(1, |home| {
        let (from, to) = (home.of_block(5, 1), home.of_block(600, 1));
        home.put(to, &home.page(from));
    });
}

#[test]
fn a_lost_segment_is_healed() {
    // Where parts of the map lay in it too, the whole copy comes back by a resync instead.
    heals(0, |home| {
        let blocks: HashSet<Bytes> = (0..BLOCKS).map(|block| pattern(block, 1)).collect();
        let pages = home.find(|page| blocks.contains(page));
        let (first, last) = (pages[0], pages[pages.len() - 1]);
        // With the headers between the blocks, which tell a segment's content.
        for page in first.saturating_sub(1)..=last {
            home.put(page, &[0; BLOCK]);
        }
    });
}

#[test]
fn a_stale_block_is_healed() {
    alone(async |folder| {
        let (mut fleet, initiator) = written(folder).await;
        stop_victim(&mut fleet).await;
        let home = Home::open(&fleet);
        let old = home.page(home.of_block(9, 1));
        fleet.start(VICTIM, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        write_all(&initiator.disk, 2).await;
        stop_victim(&mut fleet).await;
        let home = Home::open(&fleet);
        home.put(home.of_block(9, 2), &old);
        let found = scrubbed(&mut fleet).await;
        assert_eq!(found.healed_blocks, 1, "{found:?}");
        expect_all(&initiator.disk, 2).await;
    });
}

#[test]
fn lost_pages_of_the_block_map_are_healed() {
    alone(async |folder| {
        let (mut fleet, initiator) = written(folder).await;
        stop_victim(&mut fleet).await;
        let home = Home::open(&fleet);
        // Pages of runs: a checksum, then this.
        let pages = home.find(|page| page[8..16] == *b"HFMAPRUN");
        assert!(!pages.is_empty(), "the home has a map");
        for page in pages {
            home.put(page, &[0; BLOCK]);
        }
        scrubbed(&mut fleet).await;
        expect_all(&initiator.disk, 1).await;
        expect_whole(&mut fleet, &initiator).await;
    });
}

#[test]
fn a_node_that_lost_its_journal_is_refused_evicted_and_replaced() {
    alone(async |folder| {
        let mut fleet = cluster(folder, 3).await;
        let created = volume(&fleet, "db", 2).await;
        let initiator = Initiator::open(&fleet, &created).await;
        write_all(&initiator.disk, 1).await;
        let holders = &created.volume.holders;
        let holds = |index: usize| {
            holders
                .iter()
                .any(|holder| fleet.index_of(holder.node) == Some(index))
        };
        let victim = (1..3)
            .find(|index| holds(*index))
            .expect("two of three have a copy");
        let status = fleet.stop(victim, PATIENCE).await.unwrap();
        assert!(status.success(), "{status}");
        let journal: PathBuf = fleet.directory(victim).join("journal");
        let file = OpenOptions::new().write(true).open(journal).unwrap();
        file.write_all_at(&[0xa5; 2 * BLOCK], 0).unwrap();
        fleet.start(victim, None).unwrap();
        let status = fleet.reap(victim).await.unwrap();
        assert!(!status.success());
        let log = std::fs::read_to_string(fleet.log(victim)).unwrap();
        assert!(log.contains("in area journal cannot be read"), "{log}");

        let number = (victim as u64 + 1).to_string();
        let evicted = async {
            loop {
                let output = holdfast(&fleet, &["node", "evict", &number, "--yes"]).await;
                if output.status.success() {
                    return;
                }
                let complaint = stderr(&output);
                assert!(complaint.contains("runs"), "{complaint}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, evicted)
            .await
            .expect("it is evicted");
        // The third node had no copy, and gets what was lost.
        let whole = |status: &holdfast_api::ClusterStatus| status.phase == ClusterPhase::Healthy;
        fleet
            .wait_for(0, "two whole copies", PATIENCE, whole)
            .await
            .unwrap();
        let shown = fleet.client(0).volume("db").await.unwrap();
        let gone = victim as u64 + 1;
        assert!(
            shown.holders.iter().all(|holder| holder.node != gone),
            "{shown:?}"
        );
        expect_all(&initiator.disk, 1).await;
        let list = async |evicted| {
            let nodes = fleet
                .client(0)
                .nodes(WhichNodes {
                    evicted,
                    ..WhichNodes::default()
                })
                .await;
            let nodes = nodes.unwrap().into_iter();
            nodes.map(|node| (node.id, node.state)).collect::<Vec<_>>()
        };
        assert!(list(true).await.contains(&(gone, NodeState::Evicted)));
        assert!(list(false).await.iter().all(|(id, _)| *id != gone));
    });
}
