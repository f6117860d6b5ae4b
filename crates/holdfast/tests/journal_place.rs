//! A journal on a disk of its own, with real processes: made, used, moved, and refused where it is
//! the wrong one.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use bytes::Bytes;
use harness::{EXECUTABLE, Initiator, PATIENCE, alone, options, run, stderr, stdout, volume};
use holdfast::fleet::{Fleet, FleetOptions};

fn prepared(folder: &Path) -> Fleet {
    let sizes = FleetOptions {
        journal_bytes: 32 << 20,
        home_bytes: 64 << 20,
        ..options(folder, 1)
    };
    Fleet::prepare(sizes).unwrap()
}

/// What a node says that does not start with these arguments.
async fn start(fleet: &Fleet, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXECUTABLE);
    let given = fleet.command(0);
    let given = given.as_std().get_args();
    // Nothing but its own decision ends it.
    command.args(given.filter(|argument| *argument != "--end-with-stdin"));
    command.args(arguments);
    run(command).await
}

/// Starts a node for the first time, until it has its identity.
async fn make(fleet: &Fleet, arguments: &[&str]) {
    let mut command = fleet.command(0);
    command.args(arguments).stdin(std::process::Stdio::piped());
    let mut process = command.spawn().unwrap();
    let made = async {
        while !fleet.directory(0).join("identity.json").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, made)
        .await
        .expect("an identity");
    process.kill().await.unwrap();
}

fn move_journal(fleet: &Fleet, to: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(EXECUTABLE);
    command
        .args(["store", "move-journal"])
        .arg(fleet.directory(0));
    command.arg(to).args(more).output().unwrap()
}

#[test]
fn a_journal_elsewhere_is_remembered_moved_and_never_mistaken() {
    alone(async |folder| {
        let mut fleet = prepared(folder);
        let fast = folder.join("fast-journal");
        let path = fast.to_str().unwrap();

        // What is there is not overwritten unasked, and nothing is made meanwhile.
        fs::write(&fast, b"somebody's data").unwrap();
        let refused = start(&fleet, &["--journal", path]).await;
        assert_eq!(refused.status.code(), Some(1));
        assert!(
            stderr(&refused).contains("--journal-force"),
            "{}",
            stderr(&refused)
        );
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
        let differs = start(&fleet, &["--journal", other.to_str().unwrap()]).await;
        assert!(
            stderr(&differs).contains("store move-journal"),
            "{}",
            stderr(&differs)
        );

        // Missing, blank, another node's: each is refused by name.
        let kept = folder.join("kept");
        fs::rename(&fast, &kept).unwrap();
        let missing = start(&fleet, &[]).await;
        assert!(
            stderr(&missing).contains("is not there"),
            "{}",
            stderr(&missing)
        );
        assert!(!fast.exists(), "none is made in its place");
        fs::File::create(&fast).unwrap().set_len(32 << 20).unwrap();
        let blank = start(&fleet, &[]).await;
        assert!(stderr(&blank).contains("is blank"), "{}", stderr(&blank));
        let mut foreign = fs::read(&kept).unwrap();
        for page in [0, 4096] {
            foreign[page + 16..page + 32].fill(0xab);
        }
        fs::write(&fast, &foreign).unwrap();
        let foreign = start(&fleet, &[]).await;
        assert!(
            stderr(&foreign).contains("of another node"),
            "{}",
            stderr(&foreign)
        );
        fs::rename(&kept, &fast).unwrap();

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

/// A loop device, as long as it lives.
struct LoopDevice(PathBuf);

impl LoopDevice {
    /// `None` where nobody may make one.
    fn attach(file: &Path) -> Option<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).arg(file);
        let output = command
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(Self(PathBuf::from(stdout(&output).trim())))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut command = Command::new("losetup");
        let _ = command.arg("--detach").arg(&self.0).status();
    }
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
        let path = device.0.to_str().unwrap();
        let absent = prepared(&folder.join("absent"));
        let refused = start(&absent, &["--journal", "/dev/no-such-device"]).await;
        assert!(
            stderr(&refused).contains("there is no device"),
            "{}",
            stderr(&refused)
        );

        let mut ext4 = Command::new("mkfs.ext4");
        if ext4
            .args(["-q", path])
            .status()
            .is_ok_and(|made| made.success())
        {
            let fleet = prepared(&folder.join("formatted"));
            let refused = start(&fleet, &["--journal", path]).await;
            assert!(
                stderr(&refused).contains("holds something"),
                "{}",
                stderr(&refused)
            );
        }
        let mut fleet = prepared(&folder.join("node"));
        make(&fleet, &["--journal", path, "--journal-force"]).await;
        fleet.found().await.unwrap();
        let second = prepared(&folder.join("second"));
        let taken = start(&second, &["--journal", path, "--journal-force"]).await;
        assert!(stderr(&taken).contains("in use"), "{}", stderr(&taken));
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
        let checked = Command::new(EXECUTABLE)
            .args(["store", "check"])
            .arg(fleet.directory(0))
            .output()
            .unwrap();
        assert!(checked.status.success(), "{}", stderr(&checked));
    });
}
