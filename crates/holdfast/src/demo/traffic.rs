//! The demo's initiator: load with a live line, and the verification.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use holdfast_api::CreatedVolume;
use holdfast_initiator::{
    BLOCK_BYTES, Chap, Disk, DiskOptions, Error, Ledger, Load, LoadOptions, Secret, SessionOptions,
    SizeWeight, Statistics, VerifyOptions, VerifyReport, verify,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::sleep;

const INITIATOR: &str = "iqn.2026-11.io.holdfast:demo";
/// Most of the volume that the load touches: more would only make the verification longer.
const REGION_BYTES_MAX: u64 = 128 << 20;
/// Enough to be seen, little enough that a laptop with all nodes on it stays responsive: what is
/// measured here is the gap, not the speed.
const OPERATIONS_PER_SECOND: f64 = 1000.0;
const WORKERS: usize = 16;
const LINE_PERIOD: Duration = Duration::from_millis(100);

/// The volume as this process uses it.
pub(super) struct Traffic {
    disk: Disk,
    ledger: Rc<RefCell<Ledger>>,
    line: ProgressBar,
    phases: u64,
}

impl Traffic {
    /// Logs in. `quiet` shows no live line.
    pub(super) async fn open(
        portals: Vec<SocketAddr>,
        created: &CreatedVolume,
        quiet: bool,
    ) -> Result<Self, Error> {
        let mut session = SessionOptions::new(INITIATOR);
        if let Some(chap) = &created.credentials {
            let secret = Secret::new(chap.secret.as_str());
            session.chap = Some(Chap::new(&chap.username, secret));
        }
        let disk = Disk::open(DiskOptions::new(portals, &created.volume.target, session)).await?;
        let region = created.volume.size_bytes.min(REGION_BYTES_MAX);
        let ledger = Ledger::new(rand::random(), 0, region / BLOCK_BYTES as u64);
        let line = if quiet {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        } else {
            // Draws on standard error, and only if that is a terminal.
            ProgressBar::new_spinner()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            line.set_style(style);
        }
        Ok(Self {
            disk,
            ledger: Rc::new(RefCell::new(ledger)),
            line,
            phases: 0,
        })
    }

    /// Runs load while `meanwhile` runs, and a little longer, and gives what both came to.
    pub(super) async fn during<T>(
        &mut self,
        title: &str,
        meanwhile: impl Future<Output = T>,
    ) -> Result<(Statistics, T), Error> {
        self.phases += 1;
        let size = |kib: u32, weight| SizeWeight {
            bytes: kib << 10,
            weight,
        };
        let options = LoadOptions {
            workers: WORKERS,
            sizes: vec![size(4, 8), size(16, 2), size(64, 1)],
            operations_per_second_max: Some(OPERATIONS_PER_SECOND),
            seed: self.phases,
            ..LoadOptions::default()
        };
        let load = Load::start(self.disk.clone(), self.ledger.clone(), options)?;
        let mut meanwhile = pin!(meanwhile);
        let mut earlier = load.statistics();
        let outcome = loop {
            tokio::select! {
                outcome = &mut meanwhile => break outcome,
                () = sleep(LINE_PERIOD) => {}
            }
            let now = load.statistics();
            self.show(title, &earlier, &now);
            if now.elapsed - earlier.elapsed >= 10 * LINE_PERIOD {
                earlier = now;
            }
        };
        let statistics = load.stop().await;
        self.line.set_message("");
        Ok((statistics, outcome))
    }

    fn show(&self, title: &str, earlier: &Statistics, now: &Statistics) {
        let portal = match self.disk.portal() {
            Some(portal) => portal.to_string(),
            None => "looking for a path".into(),
        };
        self.line.set_message(format!(
            "{title}: {:.0} I/O a second, {:.1} MB/s, longest gap {} ms, via {portal}",
            now.operations_per_second_since(earlier),
            now.megabytes_per_second_since(earlier),
            now.gap.longest.as_millis(),
        ));
        self.line.tick();
    }

    /// Reads every acknowledged write back.
    pub(super) async fn verify(&self) -> Result<VerifyReport, Error> {
        let options = VerifyOptions {
            touched_only: true,
            ..VerifyOptions::default()
        };
        let report = verify(&self.disk, &self.ledger, options, |progress| {
            self.line.set_message(format!(
                "verifying: {} of {} blocks, {} bad",
                progress.done_blocks, progress.total_blocks, progress.bad_blocks
            ));
            self.line.tick();
        });
        let report = report.await?;
        self.line.set_message("");
        Ok(report)
    }

    /// Bytes with an acknowledged write.
    pub(super) fn acknowledged_bytes(&self) -> u64 {
        self.ledger.borrow().acknowledged_blocks() * BLOCK_BYTES as u64
    }

    /// Logs out.
    pub(super) async fn close(self) {
        self.line.finish_and_clear();
        if let Err(error) = self.disk.close().await {
            tracing::debug!(%error, "logging out");
        }
    }
}
