//! Stores that earlier versions left behind.

#![allow(
    clippy::disallowed_methods,
    reason = "the images are files of the repository"
)]

use std::path::PathBuf;

use super::*;
use crate::inspect::{InspectOptions, Inspection};
use crate::testing::{golden, run};

/// Every image, the oldest first.
fn images() -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let entries = std::fs::read_dir(folder).expect("the folder of golden images");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let bytes = std::fs::read(&path).unwrap();
        (path, bytes)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_golden_image_is_sound_opens_and_holds_what_was_put_there() {
    for (path, image) in images() {
        run(1, |runtime| async move {
            let (formats, directory) = golden::opened(&runtime, &image);
            let looked = Inspection::open(
                runtime.clone(),
                Rc::new(directory.clone()),
                InspectOptions::default(),
            );
            let report = looked.await.unwrap().check(None, &|_| {}).await;
            let name = path.display();
            assert!(
                report.is_clean(),
                "{name} ({formats}): {:#?}",
                report.findings
            );
            let opened = Store::open(runtime, Rc::new(directory), golden::OPTIONS).await;
            let (store, report) = opened.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(!report.found_damage(), "{name}: {report:?}");
            golden::verify(&store)
                .await
                .unwrap_or_else(|what| panic!("{name}: {what}"));
        });
    }
}

#[test]
fn what_is_written_today_has_the_bytes_of_the_newest_golden_image() {
    let (path, newest) = images().pop().expect("a golden image");
    let line = newest.split(|byte| *byte == b'\n').next().unwrap();
    assert_eq!(
        String::from_utf8_lossy(line),
        golden::formats(),
        "a format has changed: make an image of the new one with `cargo xtask golden`"
    );
    assert!(
        golden::image() == newest,
        "the store writes other bytes than {} and says that they are of the same formats. If an \
         older version would misunderstand them, raise the version of what changed. If only the \
         order or place of things is another, `cargo xtask golden` makes a further image",
        path.display()
    );
}
