//! `holdfast store …` on the files of a real node that was stopped: what is found after each kind
//! of damage, what is saved, and that nothing in the directory changes.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

mod harness;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bytes::Bytes;
use harness::{
    EXECUTABLE, Initiator, PATIENCE, VOLUME_BYTES, alone, options, stderr, stdout, volume,
};
use holdfast::fleet::{Fleet, FleetOptions};
use serde_json::Value;

const MIB: usize = 1 << 20;
const WRITTEN: u64 = 8;

fn store(arguments: &[&str]) -> Output {
    Command::new(EXECUTABLE)
        .arg("store")
        .args(arguments)
        .output()
        .expect("the command runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(output)))
}

/// Every file and what is in it.
fn fingerprint(directory: &Path) -> BTreeMap<PathBuf, u64> {
    let entries = fs::read_dir(directory).unwrap();
    let files = entries.map(|entry| {
        let path = entry.unwrap().path();
        let mut hasher = DefaultHasher::new();
        fs::read(&path).unwrap().hash(&mut hasher);
        (path, hasher.finish())
    });
    files.collect()
}

/// A copy to damage.
fn copy_of(directory: &Path, name: &str) -> PathBuf {
    let copy = directory.with_file_name(name);
    let mut cp = Command::new("cp");
    cp.args(["-a", "--sparse=always"]).arg(directory).arg(&copy);
    assert!(cp.status().unwrap().success());
    copy
}

fn read_at(file: &Path, offset: u64, bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    let file = fs::File::open(file).unwrap();
    file.read_exact_at(&mut content, offset).unwrap();
    content
}

fn write_at(file: &Path, offset: u64, content: &[u8]) {
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.write_all_at(content, offset).unwrap();
}

/// Where block `block` of slice 0 of volume 1 lies in the home.
fn place_of(directory: &str, block: &str) -> u64 {
    let rows = json(&store(&[
        "dump", directory, "map", "--volume", "1", "--block", block, "-o", "json",
    ]));
    rows[0]["offset"].as_u64().expect("a block with a place")
}

/// Kinds of findings.
fn kinds(directory: &Path) -> Vec<String> {
    let checked = store(&["check", directory.to_str().unwrap(), "-o", "json"]);
    let report = json(&checked);
    let findings = report["findings"].as_array().unwrap();
    let clean = if findings.is_empty() { 0 } else { 1 };
    assert_eq!(checked.status.code(), Some(clean), "{}", stderr(&checked));
    let kinds = findings
        .iter()
        .map(|finding| finding["kind"].as_str().unwrap().to_owned());
    kinds.collect()
}

fn pattern(mib: u64) -> Bytes {
    let mut content = vec![0; MIB];
    for (block, number) in content.chunks_mut(4096).zip(0u64..) {
        block.fill((mib * 31 + number) as u8 | 1);
    }
    Bytes::from(content)
}

/// One node with a volume of which the first 8 MiB are written, block 5 several times; stopped.
/// Gives its directory and where block 5 was before.
async fn lived_in(folder: &Path) -> (Fleet, PathBuf, u64) {
    let sizes = FleetOptions {
        journal_bytes: 32 << 20,
        home_bytes: 64 << 20,
        ..options(folder, 1)
    };
    let mut fleet = Fleet::prepare(sizes).unwrap();
    fleet.found().await.unwrap();
    let created = volume(&fleet, "db", 1).await;
    let disk = Initiator::open(&fleet, &created).await.disk;
    for mib in 0..WRITTEN {
        disk.write(mib << 20, pattern(mib)).await.unwrap();
    }
    disk.close().await.unwrap();
    let directory = fleet.directory(0).to_owned();
    let running = store(&["check", directory.to_str().unwrap()]);
    assert_eq!(running.status.code(), Some(2));
    assert!(
        stderr(&running).contains("a node runs on"),
        "{}",
        stderr(&running)
    );
    fleet.stop(0, PATIENCE).await.unwrap();
    // The last record may stay in the journal: its successors take it along.
    let mut places = Vec::new();
    for fill in [0xbb, 0xcc, 0xdd, 0xee] {
        fleet.start(0, None).unwrap();
        fleet.wait_until_healthy(PATIENCE).await.unwrap();
        let disk = Initiator::open(&fleet, &created).await.disk;
        let bytes = Bytes::from(vec![fill; 4096]);
        disk.write(5 * 4096, bytes).await.unwrap();
        disk.close().await.unwrap();
        fleet.stop(0, PATIENCE).await.unwrap();
        places.push(place_of(directory.to_str().unwrap(), "5"));
    }
    let newest = places.pop().unwrap();
    let earlier = places.into_iter().rfind(|place| *place != newest).unwrap();
    (fleet, directory, earlier)
}

fn expected() -> Vec<u8> {
    let mut image: Vec<u8> = (0..WRITTEN).flat_map(|mib| pattern(mib).to_vec()).collect();
    image[5 * 4096..6 * 4096].fill(0xee);
    image
}

#[test]
fn a_stopped_node_is_checked_listed_and_saved_whatever_happened_to_its_files() {
    alone(async |folder| {
        let (mut fleet, directory, earlier) = lived_in(folder).await;
        let path = directory.to_str().unwrap();
        let before = fingerprint(&directory);

        assert_eq!(kinds(&directory), [""; 0]);
        let checked = store(&["check", path]);
        assert!(
            stdout(&checked).contains("blocks verified"),
            "{}",
            stdout(&checked)
        );
        for what in ["header", "journal", "map", "segments", "facts", "manifest"] {
            for format in ["table", "json", "csv"] {
                let listed = store(&["dump", path, what, "-o", format]);
                assert!(
                    listed.status.success() && !listed.stdout.is_empty(),
                    "{what}"
                );
            }
        }
        let image = folder.join("db.img");
        let saved = store(&["export", path, "db", image.to_str().unwrap(), "-o", "json"]);
        assert!(saved.status.success(), "{}", stderr(&saved));
        assert_eq!(json(&saved)["size_bytes"], VOLUME_BYTES);
        let content = fs::read(&image).unwrap();
        assert_eq!(content.len() as u64, VOLUME_BYTES);
        assert!(content[..expected().len()] == expected());
        assert!(content[expected().len()..].iter().all(|byte| *byte == 0));
        let again = store(&["export", path, "other", image.to_str().unwrap()]);
        assert_eq!(again.status.code(), Some(2));
        assert!(stderr(&again).contains("db (1)"), "{}", stderr(&again));
        let inside = directory.join("db.img");
        let refused = store(&["export", path, "db", inside.to_str().unwrap()]);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        let nothing = store(&["check", folder.to_str().unwrap()]);
        assert_eq!(nothing.status.code(), Some(2));
        assert_eq!(fingerprint(&directory), before, "nothing was changed");

        let home = |copy: &Path| copy.join("home");
        let block = |number: &str| place_of(path, number);
        {
            let copy = copy_of(&directory, "flipped");
            let at = block("700") + 17;
            let byte = read_at(&home(&copy), at, 1)[0];
            write_at(&home(&copy), at, &[byte ^ 4]);
            assert_eq!(kinds(&copy), ["block-damaged"]);
            let table = store(&["check", copy.to_str().unwrap()]);
            assert!(stdout(&table).contains("700"), "{}", stdout(&table));
            assert!(stderr(&table).contains("1 errors"), "{}", stderr(&table));
            // The damaged block comes from another image, the rest stays as it is.
            let image = folder.join("flipped.img");
            let copied = copy.to_str().unwrap();
            let saved = store(&["export", copied, "1", image.to_str().unwrap()]);
            assert_eq!(saved.status.code(), Some(1), "{}", stderr(&saved));
            let map = fs::read_to_string(folder.join("flipped.img.map")).unwrap();
            assert!(map.contains("0x002BC000  0x00001000  -"), "{map}");
            let saved = store(&["export", path, "1", image.to_str().unwrap()]);
            assert!(saved.status.success(), "{}", stderr(&saved));
            assert!(fs::read(&image).unwrap() == content);
        }
        {
            let copy = copy_of(&directory, "misdirected");
            let bytes = read_at(&home(&copy), block("900"), 4096);
            write_at(&home(&copy), block("901"), &bytes);
            assert_eq!(kinds(&copy), ["block-misdirected"]);
        }
        {
            let copy = copy_of(&directory, "stale");
            assert_ne!(earlier, block("5"));
            let bytes = read_at(&home(&copy), earlier, 4096);
            write_at(&home(&copy), block("5"), &bytes);
            let kinds = kinds(&copy);
            assert_eq!(kinds, ["block-stale"]);
        }
        {
            let copy = copy_of(&directory, "segment");
            let segments = json(&store(&["dump", path, "segments", "-o", "json"]));
            let offset = |number: usize| segments[number]["offset"].as_u64().unwrap();
            let length = offset(1) - offset(0);
            let first = offset(0);
            let number = (block("1500") - first) / length;
            write_at(
                &home(&copy),
                first + number * length,
                &vec![0; length as usize],
            );
            assert_eq!(kinds(&copy), ["segment-lost"]);
        }
        {
            let copy = copy_of(&directory, "map");
            let segments = json(&store(&["dump", path, "segments", "-o", "json"]));
            let mut segments = segments.as_array().unwrap().iter();
            let map = segments.find(|one| one["kind"] == "map").unwrap();
            let bytes = map["used"].as_u64().unwrap() as usize * 4096;
            write_at(
                &home(&copy),
                map["offset"].as_u64().unwrap(),
                &vec![0; bytes],
            );
            let kinds = kinds(&copy);
            assert!(kinds.iter().any(|kind| kind == "delta-lost"), "{kinds:?}");
            // All that was written is found by what the groups say of themselves.
            let image = folder.join("map.img");
            let saved = store(&[
                "export",
                copy.to_str().unwrap(),
                "1",
                image.to_str().unwrap(),
            ]);
            assert_eq!(saved.status.code(), Some(1), "{}", stderr(&saved));
            assert!(fs::read(&image).unwrap()[..expected().len()] == expected());
        }
        // Both header pages of the journal: the node does not start, and all is saved.
        write_at(&directory.join("journal"), 0, &[0xee; 5000]);
        assert_eq!(kinds(&directory), ["journal-headers-lost"]);
        let before = fingerprint(&directory);
        let image = folder.join("headless.img");
        let saved = store(&["export", path, "db", image.to_str().unwrap()]);
        assert_eq!(saved.status.code(), Some(1), "{}", stderr(&saved));
        assert!(fs::read(&image).unwrap()[..expected().len()] == expected());
        assert_eq!(fingerprint(&directory), before, "nothing was changed");
        fleet.start(0, None).unwrap();
        let ended = fleet.reap(0).await.unwrap();
        assert_eq!(ended.code(), Some(1));
    });
}
