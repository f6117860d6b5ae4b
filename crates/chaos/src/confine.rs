//! Runs this program again inside namespaces of its own, where it may cut cables and mount small
//! file systems without touching the machine.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;

/// Set in the inner program.
const MARK: &str = "HOLDFAST_CHAOS_CONFINED";

/// With the rights of root, and with those that any user may have where the kernel allows it.
const WAYS: [&[&str]; 2] = [
    &["--net", "--mount"],
    &["--user", "--map-root-user", "--net", "--mount"],
];

/// Whether this is the inner program.
pub(crate) fn is_confined() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Replaces this process by itself inside, and does not return then. Returns what is missing if
/// that is not possible here.
pub(crate) fn enter() -> anyhow::Result<String> {
    for program in ["unshare", "nsenter", "ip", "mount"] {
        let found = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        // ip(8) knows -V only; that it starts is enough.
        if found.is_err() {
            return Ok(format!("{program} is not installed"));
        }
    }
    let probe = "ip link add probe type bridge && mount -t tmpfs none /proc/self/cwd/";
    for way in WAYS {
        let directory = tempfile::tempdir()?;
        let works = Command::new("unshare")
            .args(way)
            .args(["sh", "-c", probe])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if works.is_ok_and(|status| status.success()) {
            let this = std::env::current_exe()?;
            let error = Command::new("unshare")
                .args(way)
                .arg(this)
                .args(std::env::args_os().skip(1))
                .env(MARK, "yes")
                .exec();
            return Err(error).context("starting again inside namespaces");
        }
    }
    Ok("no right to make network namespaces".to_owned())
}
