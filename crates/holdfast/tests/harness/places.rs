//! Places for a journal or a home, and nodes that are to refuse them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use holdfast::fleet::Fleet;

use super::{EXECUTABLE, PATIENCE, run, stderr, stdout};

/// What a node says that does not start with these arguments.
pub(crate) async fn refusal(fleet: &Fleet, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXECUTABLE);
    let given = fleet.command(0);
    let given = given.as_std().get_args();
    // Nothing but its own decision ends it.
    command.args(given.filter(|argument| *argument != "--end-with-stdin"));
    command.args(arguments);
    let output = run(command).await;
    assert!(!output.status.success(), "{output:?}");
    output
}

/// What was said names the reason.
#[track_caller]
pub(crate) fn assert_says(output: &Output, words: &str) {
    let said = stderr(output);
    assert!(said.contains(words), "{said}");
}

/// Where the area in this file is missing, blank, or of another node, each is refused by name. The
/// identity of its owner stands at `identity_at` of its first two pages. It is back at the end.
pub(crate) async fn assert_only_its_own(
    fleet: &Fleet,
    path: &Path,
    identity_at: usize,
    of_another: &str,
) {
    let kept = path.with_extension("kept");
    fs::rename(path, &kept).unwrap();
    assert_says(&refusal(fleet, &[]).await, "is not there");
    assert!(!path.exists(), "none is made in its place");
    let mut bytes = fs::read(&kept).unwrap();
    let blank = fs::File::create(path).unwrap();
    blank.set_len(bytes.len() as u64).unwrap();
    assert_says(&refusal(fleet, &[]).await, "is blank");
    for page in [0, 4096] {
        let identity = page + identity_at;
        bytes[identity..identity + 16].fill(0xab);
    }
    fs::write(path, &bytes).unwrap();
    assert_says(&refusal(fleet, &[]).await, of_another);
    fs::rename(&kept, path).unwrap();
}

/// Starts a node for the first time, until it has its identity.
pub(crate) async fn make(fleet: &Fleet, arguments: &[&str]) {
    let mut command = fleet.command(0);
    command.args(arguments);
    make_by(fleet, command).await;
}

/// The same, by a command of the caller's.
pub(crate) async fn make_by(fleet: &Fleet, mut command: tokio::process::Command) {
    command.stdin(std::process::Stdio::piped());
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

/// Runs `holdfast store …` on the first node's directory.
pub(crate) fn store(fleet: &Fleet, what: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(EXECUTABLE);
    command.args(["store", what]).arg(fleet.directory(0));
    command.args(arguments).output().unwrap()
}

/// A loop device, as long as it lives.
pub(crate) struct LoopDevice(pub(crate) PathBuf);

impl LoopDevice {
    /// `None` where nobody may make one.
    pub(crate) fn attach(file: &Path) -> Option<Self> {
        let mut command = Command::new("losetup");
        command.args(["--find", "--show"]).arg(file);
        let output = command
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        Some(Self(PathBuf::from(stdout(&output).trim())))
    }

    /// Its name, for command lines.
    pub(crate) fn name(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// Makes a file system on it; false where the tool is missing.
    pub(crate) fn format(&self) -> bool {
        let mut ext4 = Command::new("mkfs.ext4");
        ext4.args(["-q", "-F", self.name()])
            .status()
            .is_ok_and(|made| made.success())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut command = Command::new("losetup");
        let _ = command.arg("--detach").arg(&self.0).status();
    }
}
