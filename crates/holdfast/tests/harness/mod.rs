//! Real processes on loopback for the tests in this folder.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod lone;
pub(crate) mod places;

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::Duration;

use holdfast::fleet::{Fleet, FleetOptions};
use holdfast_api::{Authentication, CreatedVolume, NewVolume};
use holdfast_initiator::{
    BLOCK_BYTES, Chap, Disk, DiskOptions, Ledger, Load, LoadOptions, Secret, SessionOptions,
    VerifyOptions, VerifyReport, verify,
};

pub(crate) const EXECUTABLE: &str = env!("CARGO_BIN_EXE_holdfast");
/// Patience with a busy machine; nothing waits for so long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const VOLUME_BYTES: u64 = 256 << 20;
const REGION_BYTES: u64 = 16 << 20;

/// Runs a test on one thread, alone: several clusters at once would only slow each other down.
pub(crate) fn alone<T>(test: impl AsyncFnOnce(&Path) -> T) -> T {
    let lock = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fleet.lock");
    let lock = File::create(lock).expect("the lock file");
    lock.lock().expect("the lock");
    let folder = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, test(folder.path()))
}

/// Sizes as small as the store allows them to be useful.
pub(crate) fn options(folder: &Path, nodes: usize) -> FleetOptions {
    FleetOptions {
        nodes,
        journal_bytes: 32 << 20,
        home_bytes: 1 << 30,
        ..FleetOptions::new(EXECUTABLE.into(), folder.to_owned())
    }
}

/// A healthy cluster.
pub(crate) async fn cluster(folder: &Path, nodes: usize) -> Fleet {
    let mut fleet = Fleet::prepare(options(folder, nodes)).expect("ports and directories");
    fleet.found().await.expect("a healthy cluster");
    fleet
}

pub(crate) async fn volume(fleet: &Fleet, name: &str, copies: u32) -> CreatedVolume {
    let wanted = NewVolume {
        name: name.into(),
        size_bytes: VOLUME_BYTES,
        copies,
        block_size: 512,
        authentication: Authentication::Chap,
        initiators: Vec::new(),
        redirect_to_owner: false,
    };
    let created = fleet.client(0).create_volume(&wanted).await;
    created.expect("a volume")
}

/// The volume through every portal, with a memory of what was acknowledged.
pub(crate) struct Initiator {
    pub(crate) disk: Disk,
    pub(crate) ledger: Rc<RefCell<Ledger>>,
}

impl Initiator {
    pub(crate) async fn open(fleet: &Fleet, created: &CreatedVolume) -> Self {
        Self::with_ledger(fleet, created, Ledger::new(7, 0, REGION_BYTES / 4096)).await
    }

    pub(crate) async fn with_ledger(
        fleet: &Fleet,
        created: &CreatedVolume,
        ledger: Ledger,
    ) -> Self {
        let mut session = SessionOptions::new("iqn.2026-11.io.holdfast:test");
        let chap = created.credentials.as_ref().expect("credentials");
        session.chap = Some(Chap::new(&chap.username, Secret::new(chap.secret.as_str())));
        let options = DiskOptions::new(fleet.portals(), &created.volume.target, session);
        let disk = Disk::open(options).await.expect("a path to the volume");
        assert_eq!(BLOCK_BYTES, 4096);
        Self {
            disk,
            ledger: Rc::new(RefCell::new(ledger)),
        }
    }

    pub(crate) fn load(&self, seed: u64) -> Load {
        let options = LoadOptions {
            workers: 8,
            operations_per_second_max: Some(400.0),
            seed,
            ..LoadOptions::default()
        };
        Load::start(self.disk.clone(), self.ledger.clone(), options).expect("load")
    }

    /// Waits until this many more operations have completed.
    pub(crate) async fn progress(load: &Load, operations: u64) {
        let goal = load.statistics().operations() + operations;
        let progress = async {
            while load.statistics().operations() < goal {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let limit = tokio::time::timeout(PATIENCE, progress);
        limit.await.expect("I/O goes on");
    }

    pub(crate) async fn verify(&self) -> VerifyReport {
        let options = VerifyOptions::default();
        let report = verify(&self.disk, &self.ledger, options, |_| {}).await;
        report.expect("a verification")
    }
}

/// Runs the command line against a node's API.
pub(crate) async fn holdfast(fleet: &Fleet, arguments: &[&str]) -> Output {
    let api = format!("http://127.0.0.1:{}", fleet.ports(0).api);
    let mut command = Command::new(EXECUTABLE);
    command.args(arguments).env("HOLDFAST_API", api);
    run(command).await
}

/// Runs a command without blocking the load in this process.
pub(crate) async fn run(command: Command) -> Output {
    let mut command = tokio::process::Command::from(command);
    let running = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(PATIENCE, running).await;
    output
        .expect("the command ends")
        .expect("the command starts")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
