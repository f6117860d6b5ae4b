//! An independent iSCSI target to test against: Linux SCSI target framework's `tgtd`, one process
//! per [`Peer`], on its own port and control socket.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use holdfast_initiator::{DiskOptions, SessionOptions};

pub(crate) const TARGET: &str = "iqn.2026-11.io.holdfast.test:disk";
pub(crate) const INITIATOR: &str = "iqn.2026-11.io.holdfast.test:host";
pub(crate) const DISK_BYTES: u64 = 64 << 20;
pub(crate) const LUN: u16 = 1;

/// `true`, with the reason printed, if there is no `tgtd` to test against.
pub(crate) fn is_missing() -> bool {
    let is_missing = ["/usr/sbin/tgtd", "/sbin/tgtd", "/usr/bin/tgtd"]
        .iter()
        .all(|path| !Path::new(path).exists());
    if is_missing {
        println!("skipped: tgtd (package tgt) is not installed");
    }
    is_missing
}

/// A running `tgtd` that serves one file as LUN 1 of [`TARGET`].
pub(crate) struct Peer {
    process: Child,
    pub(crate) portal: SocketAddr,
    folder: tempfile::TempDir,
}

impl Peer {
    /// Starts a target over a new, empty file.
    pub(crate) fn start() -> Self {
        let peer = Self::bare();
        let disk = peer.disk_file();
        std::fs::File::create(&disk)
            .unwrap()
            .set_len(DISK_BYTES)
            .unwrap();
        peer.serve(&disk);
        peer
    }

    /// Starts a target over the file of `other`: a second way to the same disk.
    pub(crate) fn sharing(other: &Self) -> Self {
        let peer = Self::bare();
        peer.serve(&other.disk_file());
        peer
    }

    /// Starts the process again at the same portal, over the same file.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.portal, &self.folder);
        self.wait_until_ready();
        self.serve(&self.disk_file());
    }

    fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // The port is free now; tgtd takes it a moment later.
        let portal = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let peer = Self {
            process: spawn(portal, &folder),
            portal,
            folder,
        };
        peer.wait_until_ready();
        peer
    }

    fn wait_until_ready(&self) {
        let is_ready = |output: &Output| {
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("ready")
        };
        for _ in 0..200 {
            if is_ready(&self.admin_output(&["--op", "show", "--mode", "sys"])) {
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        panic!("tgtd did not become ready");
    }

    fn serve(&self, disk: &Path) {
        self.admin(&[
            "--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET,
        ]);
        let disk = disk.to_str().unwrap();
        self.admin(&[
            "--op",
            "new",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
            "-b",
            disk,
        ]);
        self.parameter("thin_provisioning=1");
        self.admin(&[
            "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ]);
    }

    /// Sets a parameter of the logical unit.
    pub(crate) fn parameter(&self, parameter: &str) {
        let unit = [
            "--op",
            "update",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
        ];
        self.admin(&[&unit[..], &["--params", parameter]].concat());
    }

    /// Agrees to InitialR2T=No and to CRC32C; by itself tgtd insists on Yes and None.
    pub(crate) fn allow_unsolicited_data_and_digests(&self) {
        let target = ["--op", "update", "--mode", "target", "--tid", "1", "--name"];
        for (name, value) in [
            ("InitialR2T", "No"),
            ("HeaderDigest", "CRC32C,None"),
            ("DataDigest", "CRC32C,None"),
        ] {
            self.admin(&[&target[..], &[name, "--value", value]].concat());
        }
    }

    /// Makes the target refuse every login.
    pub(crate) fn offline(&self) {
        self.admin(&[
            "--op", "unbind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ]);
    }

    /// Undoes [`Self::offline`].
    pub(crate) fn online(&self) {
        self.admin(&[
            "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ]);
    }

    /// Demands CHAP; with `outgoing` the target also proves itself.
    pub(crate) fn demand_chap(&self, incoming: (&str, &str), outgoing: Option<(&str, &str)>) {
        for (user, secret) in [Some(incoming), outgoing].into_iter().flatten() {
            let account = ["--op", "new", "--mode", "account"];
            self.admin(&[&account[..], &["--user", user, "--password", secret]].concat());
        }
        let bind = ["--op", "bind", "--mode", "account", "--tid", "1", "--user"];
        self.admin(&[&bind[..], &[incoming.0]].concat());
        if let Some((user, _)) = outgoing {
            self.admin(&[&bind[..], &[user, "--outgoing"]].concat());
        }
    }

    /// The file behind the disk.
    pub(crate) fn disk_file(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Ends the process as a crash would.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Stops the process without ending it: connections stay open and silent.
    pub(crate) fn freeze(&self) {
        let process = self.process.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-STOP", &process])
                .status()
                .unwrap()
                .success()
        );
    }

    pub(crate) fn session_options(&self) -> SessionOptions {
        SessionOptions::new(INITIATOR)
    }

    fn admin(&self, arguments: &[&str]) {
        let output = self.admin_output(arguments);
        assert!(output.status.success(), "tgtadm {arguments:?}: {output:?}");
    }

    fn admin_output(&self, arguments: &[&str]) -> Output {
        Command::new("tgtadm")
            .args(["-C", "1", "--lld", "iscsi"])
            .args(arguments)
            .env("TGT_IPC_SOCKET", self.folder.path().join("control"))
            .output()
            .unwrap()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may be dead already; then there is nothing left to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(portal: SocketAddr, folder: &tempfile::TempDir) -> Child {
    Command::new("tgtd")
        .args(["-f", "-C", "1", "--iscsi", &format!("portal={portal}")])
        .env("TGT_IPC_SOCKET", folder.path().join("control"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A disk at all these peers.
pub(crate) fn disk_options(peers: &[&Peer]) -> DiskOptions {
    let portals = peers.iter().map(|peer| peer.portal).collect();
    DiskOptions {
        lun: LUN,
        ..DiskOptions::new(portals, TARGET, SessionOptions::new(INITIATOR))
    }
}

/// Runs a test's flow where sessions can live, and bounds it.
pub(crate) fn on_one_thread(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let bounded = async { tokio::time::timeout(Duration::from_secs(25), work).await };
    tokio::task::LocalSet::new()
        .block_on(&runtime, bounded)
        .expect("the test ends in time");
}
