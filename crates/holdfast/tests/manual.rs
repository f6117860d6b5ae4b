//! What the manual gives to copy is right.

#![allow(clippy::disallowed_methods, reason = "a tool of the host is asked")]

use std::path::Path;
use std::process::Command;

const OPERATIONS: &str = include_str!("../../../docs/operations.md");

/// The block of the manual that begins with this line.
fn block(first: &str) -> &'static str {
    let mut blocks = OPERATIONS.split("```").skip(1).step_by(2);
    let found = blocks.find(|block| block.trim_start().starts_with(first));
    found.expect("the block").trim_start()
}

#[test]
fn the_unit_never_gives_up() {
    let unit = block("[Unit]");
    let (head, rest) = unit.split_once("[Service]").unwrap();
    assert!(head.contains("StartLimitIntervalSec=0"), "{head}");
    assert!(rest.contains("Restart=always"), "{rest}");
}

#[test]
fn systemd_takes_the_unit_as_it_stands_there() {
    let tool = Command::new("systemd-analyze").arg("--version").output();
    if tool.is_err() {
        let required = std::env::var("HOLDFAST_REQUIRE_PEERS").is_ok_and(|value| value == "1");
        assert!(
            !required,
            "systemd-analyze (package systemd) is not installed"
        );
        println!("skipped: systemd-analyze (package systemd) is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("holdfast.service");
    // It looks whether the program is there.
    let unit = block("[Unit]").replace("/usr/local/bin/holdfast", env!("CARGO_BIN_EXE_holdfast"));
    std::fs::write(&path, &unit).unwrap();
    assert_eq!(complaints(&path), "", "{unit}");
    // It does complain of what it does not know.
    std::fs::write(&path, unit.replace("Restart=", "Restrat=")).unwrap();
    assert!(complaints(&path).contains("Restrat"));
}

/// What systemd says of this unit; of others of the machine it may say more.
fn complaints(path: &Path) -> String {
    let mut command = Command::new("systemd-analyze");
    let output = command.args(["verify", "--man=no"]).arg(path).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    let name = path.to_str().unwrap();
    let lines = text.lines().filter(|line| line.contains(name));
    lines.collect::<Vec<_>>().join("\n")
}
