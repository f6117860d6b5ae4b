//! One node by itself, whose surroundings a test may spoil.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use holdfast::fleet::Fleet;
use holdfast_api::{Authentication, ClusterPhase, NewCluster, NewVolume};
use holdfast_initiator::{Disk, DiskOptions, SessionOptions};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin};
use tokio::time::{sleep, timeout};

use super::{PATIENCE, VOLUME_BYTES, options};

/// A node that runs, and the way to reach it.
pub(crate) struct Lone {
    pub(crate) fleet: Fleet,
    process: Child,
    /// The node ends with it.
    _lifeline: Option<ChildStdin>,
}

impl Lone {
    /// A fleet of one that is not started.
    pub(crate) fn prepared(folder: &Path) -> Fleet {
        Fleet::prepare(options(folder, 1)).expect("ports and directories")
    }

    /// Starts it, after `change` has had its way with the command.
    pub(crate) fn start(fleet: Fleet, change: impl FnOnce(&mut tokio::process::Command)) -> Self {
        let mut command = fleet.command(0);
        change(&mut command);
        command.stdin(Stdio::piped());
        let mut process = command.spawn().expect("a process");
        let lifeline = process.stdin.take();
        Self {
            fleet,
            process,
            _lifeline: lifeline,
        }
    }

    /// Founds its cluster and makes a volume `v` without CHAP.
    pub(crate) async fn found(&mut self) {
        self.reach(ClusterPhase::NoCluster).await;
        let name = "lone".into();
        let client = self.fleet.client(0).clone();
        client.found(&NewCluster { name }).await.expect("a cluster");
        let wanted = NewVolume {
            name: "v".into(),
            size_bytes: VOLUME_BYTES,
            copies: 1,
            block_size: 512,
            authentication: Authentication::None,
            initiators: Vec::new(),
            redirect_to_owner: false,
        };
        client.create_volume(&wanted).await.expect("a volume");
    }

    /// Waits until the node says that its cluster is in this state, and gives what it explains.
    pub(crate) async fn reach(&mut self, phase: ClusterPhase) -> String {
        let reached = self
            .fleet
            .wait_for(0, "such a state", PATIENCE, |status| status.phase == phase);
        let status = reached.await.expect("the node gets there");
        status.explanations.join(" ")
    }

    /// The volume.
    pub(crate) async fn disk(&self) -> Disk {
        let session = SessionOptions::new("iqn.2026-11.io.holdfast:test");
        let target = "iqn.2026-11.io.holdfast:v";
        let options = DiskOptions::new(self.fleet.portals(), target, session);
        Disk::open(options).await.expect("a log-in")
    }

    /// The node serves a new session, and the API answers.
    pub(crate) async fn assert_serves(&mut self) {
        let disk = self.disk().await;
        assert_io(&disk).await;
        disk.close().await.expect("a log-out");
        self.fleet.client(0).volumes().await.expect("an answer");
        assert!(self.process.try_wait().expect("a state").is_none());
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.process.id().expect("it runs");
        let pid = Pid::from_raw(id as i32).expect("a process");
        kill_process(pid, signal).expect("a signal");
    }

    /// How the process ends.
    pub(crate) async fn ended(mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.process.wait()).await;
        ended.expect("it ends").expect("a status")
    }

    /// Tells the node to end in good order, and checks that it does.
    pub(crate) async fn stop(self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended().await.code(), Some(0));
    }
}

/// A write, and a read that finds it.
pub(crate) async fn assert_io(disk: &Disk) {
    let data = Bytes::from(vec![7; 4096]);
    let io = async {
        disk.write(0, data.clone()).await.expect("a write");
        disk.read(0, 4096).await.expect("a read")
    };
    // Less than an initiator waits: an answer that comes when something else ends does not count.
    let read = timeout(Duration::from_secs(20), io).await;
    assert_eq!(read.expect("an answer in time"), data);
}

/// Waits for something that a test cannot be told of.
pub(crate) async fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let waiting = async {
        while !happened() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect(what);
}

/// What lets the machine say what it seldom says: see `shim.c`.
pub(crate) struct Shim {
    library: PathBuf,
    switches: PathBuf,
}

impl Shim {
    /// Compiles it; with the linker that Rust uses comes a compiler.
    pub(crate) fn build(folder: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/harness/shim.c");
        let library = folder.join("shim.so");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-o"]);
        let status = compiler.arg(&library).arg(source).status();
        assert!(status.expect("a C compiler").success());
        let switches = folder.join("switches");
        fs::create_dir(&switches).expect("a directory");
        Self { library, switches }
    }

    /// Preloads it.
    pub(crate) fn preload(&self, command: &mut tokio::process::Command) {
        command.env("LD_PRELOAD", self.library());
        command.env("SHIM", self.switches());
    }

    /// What is preloaded.
    pub(crate) fn library(&self) -> &Path {
        &self.library
    }

    /// Where the switches are.
    pub(crate) fn switches(&self) -> &Path {
        &self.switches
    }

    /// The path of a switch.
    pub(crate) fn switch(&self, name: &str) -> PathBuf {
        self.switches.join(name)
    }
}
