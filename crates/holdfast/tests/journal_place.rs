//! A journal on a disk of its own, with real processes: made, used, moved, and refused where it is
//! the wrong one.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use bytes::Bytes;
use harness::places::{LoopDevice, assert_only_its_own, assert_says, make, refusal, store};
use harness::{Initiator, PATIENCE, alone, options, stderr, stdout, volume};
use holdfast::fleet::{Fleet, FleetOptions};

fn prepared(folder: &Path) -> Fleet {
    let sizes = FleetOptions {
        journal_bytes: 32 << 20,
        home_bytes: 64 << 20,
        ..options(folder, 1)
    };
    Fleet::prepare(sizes).unwrap()
}

fn move_journal(fleet: &Fleet, to: &Path, more: &[&str]) -> Output {
    let to = [&[to.to_str().unwrap()], more].concat();
    store(fleet, "move-journal", &to)
}

#[test]
fn a_journal_elsewhere_is_remembered_moved_and_never_mistaken() {
    alone(async |folder| {
        let mut fleet = prepared(folder);
        let fast = folder.join("fast-journal");
        let path = fast.to_str().unwrap();

        // What is there is not overwritten unasked, and nothing is made meanwhile.
        fs::write(&fast, b"somebody's data").unwrap();
        let refused = refusal(&fleet, &["--journal", path]).await;
        assert_eq!(refused.status.code(), Some(1));
        assert_says(&refused, "--journal-force");
        assert!(!fleet.directory(0).join("identity.json").exists());
        assert_eq!(fs::read(&fast).unwrap(), b"somebody's data");
        make(&fleet, &["--journal", path, "--journal-force"]).await;
        assert!(fleet.directory(0).join("identity.json").exists());

        // From then on it is remembered.
        fleet.found().await.unwrap();
        assert!(!fleet.directory(0).join("journal").exists());
        assert_eq!(fs::metadata(&fast).unwrap().len(), 32 << 20);
        let created = volume(&fleet, "db", 1).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        let data = Bytes::from(vec![7; 64 << 10]);
        disk.write(0, data.clone()).await.unwrap();
        disk.close().await.unwrap();
        let running = move_journal(&fleet, &folder.join("other"), &[]);
        assert_eq!(running.status.code(), Some(2), "{}", stderr(&running));
        fleet.kill_all().await.unwrap();
        let other = folder.join("other-place");
        let differs = refusal(&fleet, &["--journal", other.to_str().unwrap()]).await;
        assert_says(&differs, "store move-journal");

        assert_only_its_own(&fleet, &fast, 16, "of another node").await;

        // Moved: to a place that holds something only if asked, and back.
        fs::write(&other, [1; 5000]).unwrap();
        let refused = move_journal(&fleet, &other, &[]);
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        let moved = move_journal(&fleet, &other, &["--force"]);
        assert!(moved.status.success(), "{}", stderr(&moved));
        assert!(!fast.exists() && other.exists());
        // A move that was cut short before the directory was told: the copy is overwritten.
        fs::copy(&other, &fast).unwrap();
        assert!(move_journal(&fleet, &fast, &[]).status.success());
        let inside = fleet.directory(0).join("journal");
        let moved = move_journal(&fleet, &inside, &[]);
        assert!(moved.status.success(), "{}", stderr(&moved));
        assert!(inside.exists() && !fast.exists());
        let again = move_journal(&fleet, &inside, &[]);
        assert!(stdout(&again).contains("already"), "{}", stdout(&again));

        fleet.start(0, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        let disk = Initiator::open(&fleet, &created).await.disk;
        assert!(disk.read(0, 64 << 10).await.unwrap() == data);
        disk.close().await.unwrap();
    });
}

#[test]
fn a_block_device_is_taken_as_large_as_it_is_and_not_while_it_holds_a_file_system() {
    alone(async |folder| {
        let image = folder.join("device");
        fs::File::create(&image).unwrap().set_len(40 << 20).unwrap();
        let Some(device) = LoopDevice::attach(&image) else {
            println!("skipped: loop devices cannot be made here");
            return;
        };
        let path = device.name();
        let absent = prepared(&folder.join("absent"));
        let refused = refusal(&absent, &["--journal", "/dev/no-such-device"]).await;
        assert_says(&refused, "there is no device");

        if device.format() {
            let fleet = prepared(&folder.join("formatted"));
            let refused = refusal(&fleet, &["--journal", path]).await;
            assert_says(&refused, "holds an ext2, ext3 or ext4 file system");
        }
        let mut fleet = prepared(&folder.join("node"));
        make(&fleet, &["--journal", path, "--journal-force"]).await;
        fleet.found().await.unwrap();
        let second = prepared(&folder.join("second"));
        let taken = refusal(&second, &["--journal", path, "--journal-force"]).await;
        assert_says(&taken, "in use");
        let created = volume(&fleet, "db", 1).await;
        let disk = Initiator::open(&fleet, &created).await.disk;
        let data = Bytes::from(vec![9; 64 << 10]);
        disk.write(0, data.clone()).await.unwrap();
        fleet.kill_all().await.unwrap();
        fleet.start(0, None).unwrap();
        fleet
            .wait_until_healthy(Duration::from_secs(60))
            .await
            .unwrap();
        assert!(disk.read(0, 64 << 10).await.unwrap() == data);
        disk.close().await.unwrap();
        fleet.stop(0, PATIENCE).await.unwrap();
        let checked = store(&fleet, "check", &[]);
        assert!(checked.status.success(), "{}", stderr(&checked));
    });
}
