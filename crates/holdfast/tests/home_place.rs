//! A home on a disk of its own, and the space that it takes and gives back, with real processes.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use harness::places::{
    LoopDevice, assert_only_its_own, assert_says, make, make_by, refusal, store,
};
use harness::{Initiator, PATIENCE, alone, options, stderr, stdout, volume};
use holdfast::fleet::{Fleet, FleetOptions};
use holdfast_initiator::Disk;

const MIB: u64 = 1 << 20;
const CHUNK_BYTES: u64 = MIB;

fn prepared(folder: &Path, home_bytes: u64, home_sparse: bool) -> Fleet {
    let sizes = FleetOptions {
        journal_bytes: 32 << 20,
        home_bytes,
        home_sparse,
        ..options(folder, 1)
    };
    Fleet::prepare(sizes).unwrap()
}

/// Bytes that a file really takes.
fn taken(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Writes a part of a volume that tells where it belongs.
async fn fill(disk: &Disk, bytes: u64) {
    for offset in (0..bytes).step_by(CHUNK_BYTES as usize) {
        disk.write(offset, chunk(offset)).await.unwrap();
    }
}

async fn assert_filled(disk: &Disk, bytes: u64) {
    for offset in (0..bytes).step_by(CHUNK_BYTES as usize) {
        let read = disk.read(offset, CHUNK_BYTES as u32).await.unwrap();
        assert!(read == chunk(offset), "the chunk at {offset}");
    }
}

fn chunk(offset: u64) -> Bytes {
    let words = (0..CHUNK_BYTES / 8).map(|word| (offset + 8 * word) ^ 0x5bd1_e995);
    words.flat_map(u64::to_le_bytes).collect()
}

/// Waits until a file takes no more than this.
async fn shrunk(path: &Path, bytes: u64) {
    let shrinking = async {
        while taken(path) > bytes {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = tokio::time::timeout(PATIENCE, shrinking).await;
    assert!(ended.is_ok(), "{} bytes are still taken", taken(path));
}

#[test]
fn a_home_elsewhere_is_remembered_moved_and_never_mistaken() {
    alone(async |folder| {
        let mut fleet = prepared(folder, 64 * MIB, true);
        let large = folder.join("large-home");
        let path = large.to_str().unwrap();
        fs::write(&large, b"somebody's data").unwrap();
        let refused = refusal(&fleet, &["--home", path]).await;
        assert_says(&refused, "--home-force");
        assert!(!fleet.directory(0).join("identity.json").exists());
        assert_eq!(fs::read(&large).unwrap(), b"somebody's data");
        let both = refusal(&fleet, &["--home", path, "--journal", path]).await;
        assert_eq!(both.status.code(), Some(2), "{}", stderr(&both));
        make(&fleet, &["--home", path, "--home-force"]).await;

        // From then on it is remembered.
        fleet.found().await.unwrap();
        assert!(!fleet.directory(0).join("home").exists());
        assert_eq!(fs::metadata(&large).unwrap().len(), 64 * MIB);
        let created = volume(&fleet, "db", 1).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        fill(&disk, 8 * MIB).await;
        disk.close().await.unwrap();
        fleet.kill_all().await.unwrap();
        let other = folder.join("other-place");
        let differs = refusal(&fleet, &["--home", other.to_str().unwrap()]).await;
        assert_says(&differs, "store move-home");

        assert_only_its_own(&fleet, &large, 24, "is the home of another node").await;
        let kept = folder.join("kept");
        fs::rename(&large, &kept).unwrap();
        fs::copy(fleet.directory(0).join("journal"), &large).unwrap();
        assert_says(&refusal(&fleet, &[]).await, "is its journal");
        fs::rename(&kept, &large).unwrap();
        let checked = store(&fleet, "check", &[]);
        assert!(checked.status.success(), "{}", stdout(&checked));

        // Moved: to a place that holds something only if asked, and back.
        fs::write(&other, [1; 5000]).unwrap();
        let to = other.to_str().unwrap();
        let refused = store(&fleet, "move-home", &[to]);
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        let moved = store(&fleet, "move-home", &[to, "--force"]);
        assert!(moved.status.success(), "{}", stderr(&moved));
        assert!(
            !large.exists() && taken(&other) < 40 * MIB,
            "holes stay holes"
        );
        let inside = fleet.directory(0).join("home");
        let moved = store(&fleet, "move-home", &[inside.to_str().unwrap()]);
        assert!(moved.status.success(), "{}", stderr(&moved));
        assert!(inside.exists() && !other.exists());

        fleet.start(0, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        let disk = Initiator::open(&fleet, &created).await.disk;
        assert_filled(&disk, 8 * MIB).await;
        disk.close().await.unwrap();
    });
}

#[test]
fn a_sparse_home_gives_its_space_back_when_volumes_are_deleted() {
    alone(async |folder| {
        let mut fleet = prepared(folder, 512 * MIB, true);
        fleet.found().await.unwrap();
        let home = fleet.directory(0).join("home");
        let created = volume(&fleet, "db", 1).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        fill(&disk, 128 * MIB).await;
        disk.close().await.unwrap();
        fleet.stop(0, PATIENCE).await.unwrap();
        let full = taken(&home);
        assert!(full > 120 * MIB, "{full} bytes are taken");
        fleet.start(0, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        assert!(taken(&home) > 120 * MIB, "what is needed stays");
        fleet.client(0).delete_volume("db").await.unwrap();
        shrunk(&home, 24 * MIB).await;
        fleet.stop(0, PATIENCE).await.unwrap();
        let checked = store(&fleet, "check", &[]);
        assert!(checked.status.success(), "{}", stdout(&checked));
    });
}

#[test]
fn a_home_takes_its_space_at_once_or_is_refused_with_numbers() {
    alone(async |folder| {
        let too_large = prepared(&folder.join("large"), 1 << 44, false);
        let refused = refusal(&too_large, &[]).await;
        let said = stderr(&refused);
        for part in ["16 TiB", "--home-size", "--home-sparse", "left for it"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!too_large.directory(0).join("identity.json").exists());

        let mut fleet = prepared(&folder.join("node"), 256 * MIB, false);
        fleet.found().await.unwrap();
        let home = fleet.directory(0).join("home");
        assert!(taken(&home) >= 256 * MIB);
        let created = volume(&fleet, "db", 1).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        fill(&disk, 32 * MIB).await;
        disk.close().await.unwrap();
        fleet.client(0).delete_volume("db").await.unwrap();
        fleet.kill_all().await.unwrap();
        assert!(taken(&home) >= 256 * MIB, "it keeps its space");
        let sparse = refusal(&fleet, &["--home-sparse"]).await;
        assert_says(&sparse, "first start");
    });
}

#[test]
fn a_block_device_is_made_a_home_as_a_whole_and_gets_free_space_back() {
    alone(async |folder| {
        let image = folder.join("device");
        fs::File::create(&image)
            .unwrap()
            .set_len(256 * MIB)
            .unwrap();
        let Some(device) = LoopDevice::attach(&image) else {
            println!("skipped: loop devices cannot be made here");
            return;
        };
        let path = device.name();
        let place = ["--home", path];
        let absent = prepared(&folder.join("absent"), 64 * MIB, false);
        let refused = refusal(&absent, &["--home", "/dev/no-such-device"]).await;
        assert_says(&refused, "there is no device");
        let small = prepared(&folder.join("small"), 512 * MIB, false);
        let refused = refusal(&small, &place).await;
        assert_says(&refused, "has 256 MiB");

        if device.format() {
            let formatted = prepared(&folder.join("formatted"), 64 * MIB, false);
            let refused = refusal(&formatted, &place).await;
            let said = stderr(&refused);
            assert!(
                said.contains("holds an ext2, ext3 or ext4 file system"),
                "{said}"
            );
            let mounted = folder.join("mounted");
            fs::create_dir(&mounted).unwrap();
            let mount = |program: &str, arguments: &[&str]| {
                let mut command = std::process::Command::new(program);
                command
                    .args(arguments)
                    .status()
                    .is_ok_and(|done| done.success())
            };
            let at = mounted.to_str().unwrap();
            if mount("mount", &[path, at]) {
                let force = ["--home", path, "--home-force"];
                let refused = refusal(&formatted, &force).await;
                assert!(mount("umount", &[at]));
                assert_says(&refused, "is mounted");
            }
        }

        // All of it, where nothing else is said.
        let mut fleet = prepared(&folder.join("node"), 256 * MIB, false);
        let mut command = fleet.command(0);
        command.args([place[0], place[1], "--home-force"]);
        let given: Vec<_> = command.as_std().get_args().map(ToOwned::to_owned).collect();
        let size = given
            .iter()
            .position(|argument| argument == "--home-size")
            .unwrap();
        let mut whole = tokio::process::Command::new(harness::EXECUTABLE);
        whole
            .args(&given[..size])
            .args(&given[size + 2..])
            .kill_on_drop(true);
        make_by(&fleet, whole).await;
        let identity = fs::read_to_string(fleet.directory(0).join("identity.json")).unwrap();
        assert!(identity.contains("\"home_bytes\": 268435456"), "{identity}");
        fleet.found().await.unwrap();
        let second = prepared(&folder.join("second"), 64 * MIB, false);
        let taken_already = refusal(&second, &[place[0], path, "--home-force"]).await;
        assert_says(&taken_already, "in use");

        let created = volume(&fleet, "db", 1).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        fill(&disk, 96 * MIB).await;
        fleet.kill_all().await.unwrap();
        let foreign = refusal(&second, &place).await;
        assert_says(&foreign, "the home of the node with directory");
        let checked = store(&fleet, "check", &[]);
        assert!(checked.status.success(), "{}", stdout(&checked));
        fleet.start(0, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        assert_filled(&disk, 96 * MIB).await;
        disk.close().await.unwrap();

        fleet.client(0).delete_volume("db").await.unwrap();
        shrunk(&image, 24 * MIB).await;
        fleet.stop(0, PATIENCE).await.unwrap();
        let checked = store(&fleet, "check", &[]);
        assert!(checked.status.success(), "{}", stdout(&checked));
        // Somebody else may have it, if that is asked for, and uses it from then on.
        let mut next = prepared(&folder.join("next"), 128 * MIB, false);
        make(&next, &[place[0], path, "--home-force"]).await;
        next.found().await.unwrap();
        next.kill_all().await.unwrap();
        next.start(0, None).unwrap();
        next.wait_until_healthy(PATIENCE).await.unwrap();
        next.stop(0, PATIENCE).await.unwrap();
        let checked = store(&next, "check", &[]);
        assert!(checked.status.success(), "{}", stdout(&checked));
    });
}
