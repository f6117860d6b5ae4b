//! One disk behind several portals.
//!
//! All I/O goes over one session, the path. When it fails, every portal is tried at once and the
//! first that logs in, shows the same disk and answers TEST UNIT READY with GOOD becomes the path;
//! outstanding commands are then sent again.
//!
//! | trouble | what happens |
//! |---|---|
//! | session lost | race over all portals; I/O waits |
//! | silence: no answer within `silence_limit` | race over the other portals (see below) |
//! | logout requested | race over the other portals, old path drained and logged out |
//! | standby or unavailable port | as a lost session |
//! | BUSY, becoming ready, in transition, aborted | the command is sent again after a pause |
//! | UNIT ATTENTION | the command is sent again at once |
//!
//! A silent path is replaced by the first other portal that answers, unless it answers before. A
//! path whose logout was requested serves on until another is found.
//!
//! Invariants
//! - A path is used only if it shows the same unit designators (VPD 83h) as the first one.
//! - An I/O is answered once, and within `give_up`.
//!
//! Sending a write again is safe as long as the caller has one write per block outstanding:
//! whichever of the two arrives, and in whatever order, the bytes are the same. That an earlier
//! sending cannot take effect after a *later* write is the target's promise (it fences a session
//! before it lets the volume be served elsewhere).

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::error::{Error, LostReason};
use crate::load::BlockDevice;
use crate::options::SessionOptions;
use crate::paths::{Path, Paths};
use crate::scsi::{BlockRange, Capacity};
use crate::session::Health;
use crate::statistics::Gap;

/// Pause before a command is sent again that the target could not take yet.
const RETRY_PAUSE: Duration = Duration::from_millis(10);
/// Unit attentions in a row after which pauses are made between retries.
const RETRIES_AT_ONCE: u32 = 8;
/// How much longer silence is tolerated after changing paths did not help, at most: a target
/// that is slow on every path must not make the initiator change for ever.
const PATIENCE_MAX: u32 = 8;
/// A path that served for so long restores full impatience.
const SETTLED: Duration = Duration::from_secs(10);

/// Where a disk is and how hard to try.
#[derive(Debug, Clone)]
pub struct DiskOptions {
    /// The portals that serve the disk.
    pub portals: Vec<SocketAddr>,
    /// The target's iSCSI name, the same at every portal.
    pub target: String,
    /// The logical unit number.
    pub lun: u16,
    /// How to log in. The ISID is the same at every portal.
    pub session: SessionOptions,
    /// A command without an answer for so long makes the disk look for another portal.
    pub silence_limit: Duration,
    /// Time for one portal to connect, log in and become ready, before it is tried anew.
    pub attempt_limit: Duration,
    /// Time after which an I/O fails, whatever was tried.
    pub give_up: Duration,
}

impl DiskOptions {
    /// LUN 0, 800 ms of silence, 3 s an attempt, 60 s for an I/O.
    pub fn new(portals: Vec<SocketAddr>, target: &str, session: SessionOptions) -> Self {
        Self {
            portals,
            target: target.to_owned(),
            lun: 0,
            session,
            silence_limit: Duration::from_millis(800),
            attempt_limit: Duration::from_secs(3),
            give_up: Duration::from_secs(60),
        }
    }
}

/// What happened to a disk's paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathCounters {
    /// Paths that were lost or given up, and replaced.
    pub failovers: u64,
    /// Those among them that were given up because of silence.
    pub silences: u64,
    /// Paths that were left because the target asked for it.
    pub handovers: u64,
    /// Commands that were sent again.
    pub retries: u64,
}

/// A disk with failover. Clones share the path.
#[derive(Clone)]
pub struct Disk {
    core: Rc<Paths>,
    _supervisor: Rc<Supervisor>,
}

impl Disk {
    /// Logs in at the first portal that answers. Needs a `LocalSet` around it.
    ///
    /// # Errors
    /// [`Error::BadOptions`]; a refusal if every portal refuses for good (authentication,
    /// unknown target, no such unit); [`Error::AllPathsDown`] after `give_up`.
    pub async fn open(options: DiskOptions) -> Result<Self, Error> {
        options.session.check()?;
        if options.portals.is_empty() {
            return Err(Error::BadOptions {
                reason: "a disk needs at least one portal",
            });
        }
        let core = Rc::new(Paths::new(options));
        core.open().await?;
        let supervisor = tokio::task::spawn_local(supervise(Rc::clone(&core)));
        let supervisor = Rc::new(Supervisor(supervisor.abort_handle()));
        Ok(Self {
            core,
            _supervisor: supervisor,
        })
    }

    /// Size and block length.
    pub fn capacity(&self) -> Capacity {
        self.core.capacity()
    }

    /// The portal in use; `None` while there is no path.
    pub fn portal(&self) -> Option<SocketAddr> {
        self.core.current().map(|path| path.session.portal())
    }

    /// What happened to the paths so far.
    pub fn counters(&self) -> PathCounters {
        self.core.counters.get()
    }

    /// The time between completions while I/O was outstanding, since the disk was opened.
    pub fn gap(&self) -> Gap {
        self.core.gap.borrow().read(Instant::now())
    }

    /// Reads `length` bytes from byte `offset`, as one command.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::AllPathsDown`], or what the target answered.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, Error> {
        let range = self.range(offset, length.into())?;
        let block_length = self.capacity().block_length;
        let lun = self.core.options.lun;
        self.run(async |path| path.session.read(lun, range, block_length).await)
            .await
    }

    /// Writes `data` at byte `offset`, as one command.
    ///
    /// # Errors
    /// As [`Self::read`]; after any but `OutOfRange` the write may or may not have taken effect.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), Error> {
        let range = self.range(offset, data.len() as u64)?;
        let lun = self.core.options.lun;
        self.run(async |path| path.session.write(lun, range, data.clone()).await)
            .await
    }

    /// Makes everything that was acknowledged durable.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn flush(&self) -> Result<(), Error> {
        let everything = BlockRange {
            first: 0,
            blocks: 0,
        };
        let lun = self.core.options.lun;
        self.run(async |path| path.session.synchronize_cache(lun, everything).await)
            .await
    }

    /// Gives the space of `length` bytes from `offset` back.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub async fn unmap(&self, offset: u64, length: u64) -> Result<(), Error> {
        let range = self.range(offset, length)?;
        let lun = self.core.options.lun;
        self.run(async |path| path.session.unmap(lun, &[range]).await)
            .await
    }

    /// Logs out. I/O of other clones of this disk then ends in [`Error::AllPathsDown`].
    ///
    /// # Errors
    /// What ended the session instead of a clean logout.
    pub async fn close(self) -> Result<(), Error> {
        self._supervisor.0.abort();
        match self.core.take() {
            Some(path) => {
                let limit = self.core.options.attempt_limit;
                let silent = Err(Error::ConnectionLost {
                    reason: LostReason::Silent,
                });
                timeout(limit, path.session.logout_shared())
                    .await
                    .unwrap_or(silent)
            }
            None => Ok(()),
        }
    }

    async fn run<T>(
        &self,
        operation: impl AsyncFn(Rc<Path>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let begun = Instant::now();
        let deadline = begun + self.core.options.give_up;
        let mut open = OpenIo::begin(&self.core, begun);
        let mut attempts = 0;
        loop {
            let Ok(path) = timeout_at(deadline, self.core.wait_for_path()).await else {
                return Err(self.core.all_down());
            };
            let error = match timeout_at(deadline, operation(Rc::clone(&path))).await {
                Ok(Ok(value)) => {
                    open.is_completed = true;
                    return Ok(value);
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let silent = Error::ConnectionLost {
                        reason: LostReason::Silent,
                    };
                    self.core.give_up(&path, &silent);
                    return Err(self.core.all_down());
                }
            };
            attempts += 1;
            match reaction(&error) {
                Reaction::Report => {
                    open.is_completed = true;
                    return Err(error);
                }
                Reaction::ChangePath => self.core.give_up(&path, &error),
                Reaction::Repeat if attempts < RETRIES_AT_ONCE => {}
                Reaction::Repeat | Reaction::RepeatLater => sleep(RETRY_PAUSE).await,
            }
            if Instant::now() >= deadline {
                let waited = self.core.options.give_up;
                return Err(Error::AllPathsDown {
                    waited,
                    last: Box::new(error),
                });
            }
            self.core.count(|counters| counters.retries += 1);
        }
    }

    fn range(&self, offset: u64, length: u64) -> Result<BlockRange, Error> {
        let capacity = self.capacity();
        let block = u64::from(capacity.block_length);
        let end = offset
            .checked_add(length)
            .filter(|end| *end <= capacity.bytes());
        let blocks = u32::try_from(length / block).ok();
        match (end, blocks) {
            (Some(_), Some(blocks))
                if blocks > 0 && offset.is_multiple_of(block) && length.is_multiple_of(block) =>
            {
                Ok(BlockRange {
                    first: offset / block,
                    blocks,
                })
            }
            _ => Err(Error::OutOfRange {
                offset,
                length,
                capacity: capacity.bytes(),
                block_length: capacity.block_length,
            }),
        }
    }
}

impl BlockDevice for Disk {
    fn capacity_bytes(&self) -> u64 {
        self.capacity().bytes()
    }

    fn read(&self, offset: u64, length: u32) -> impl Future<Output = Result<Bytes, Error>> {
        Self::read(self, offset, length)
    }

    fn write(&self, offset: u64, data: Bytes) -> impl Future<Output = Result<(), Error>> {
        Self::write(self, offset, data)
    }
}

struct Supervisor(AbortHandle);

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An I/O that the gap meter must learn the end of, also when its caller stops waiting.
struct OpenIo<'a> {
    core: &'a Paths,
    is_completed: bool,
}

impl<'a> OpenIo<'a> {
    fn begin(core: &'a Paths, now: Instant) -> Self {
        core.gap.borrow_mut().begin(now);
        Self {
            core,
            is_completed: false,
        }
    }
}

impl Drop for OpenIo<'_> {
    fn drop(&mut self) {
        self.core
            .gap
            .borrow_mut()
            .end(Instant::now(), self.is_completed);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reaction {
    Report,
    Repeat,
    RepeatLater,
    ChangePath,
}

fn reaction(error: &Error) -> Reaction {
    match error {
        Error::CheckCondition { key: 0x06, .. } => Reaction::Repeat,
        // Standby, unavailable: this port will not do, another may.
        Error::CheckCondition {
            key: 0x02,
            asc: 0x04,
            ascq: 0x0b | 0x0c,
        } => Reaction::ChangePath,
        // Becoming ready, in transition; aborted command.
        Error::CheckCondition {
            key: 0x02,
            asc: 0x04,
            ..
        }
        | Error::CheckCondition { key: 0x0b, .. }
        | Error::Busy { .. }
        | Error::TaskAborted => Reaction::RepeatLater,
        Error::ConnectionLost { .. } | Error::Protocol(_) | Error::Rejected { .. } => {
            Reaction::ChangePath
        }
        Error::CheckCondition { .. }
        | Error::ReservationConflict
        | Error::UnexpectedStatus { .. }
        | Error::TargetFailure { .. }
        | Error::ShortTransfer { .. }
        | Error::MalformedAnswer { .. }
        | Error::OutOfRange { .. }
        | Error::Connect { .. }
        | Error::LoginTimeout { .. }
        | Error::LoginRefused { .. }
        | Error::AuthenticationFailed
        | Error::TargetNotProven { .. }
        | Error::BadOptions { .. }
        | Error::BadRedirect { .. }
        | Error::WrongDisk { .. }
        | Error::AllPathsDown { .. } => Reaction::Report,
    }
}

enum Trouble {
    Lost,
    Silent,
    LogoutRequested { seconds: u16 },
}

/// Watches the path and replaces it, for as long as the disk lives.
async fn supervise(core: Rc<Paths>) {
    let patience = Cell::new(1);
    loop {
        let Some(path) = core.current() else {
            let path = core.race(None).await;
            tracing::info!(portal = %path.session.portal(), "path restored");
            core.count(|counters| counters.failovers += 1);
            core.install(path);
            continue;
        };
        let since = Instant::now();
        let trouble = trouble(&path, core.options.silence_limit * patience.get()).await;
        if since.elapsed() > SETTLED {
            patience.set(1);
        }
        match trouble {
            Trouble::Lost => core.forget(&path),
            Trouble::Silent => {
                let limit = core.options.silence_limit * patience.get();
                if replace_silent(&core, &path, limit).await {
                    patience.set((patience.get() * 2).min(PATIENCE_MAX));
                }
            }
            Trouble::LogoutRequested { seconds } => hand_over(&core, path, seconds).await,
        }
    }
}

/// Returns when something is wrong with `path`.
async fn trouble(path: &Path, silence_limit: Duration) -> Trouble {
    let mut health = path.session.health();
    let step = silence_limit / 8;
    loop {
        match &*health.borrow_and_update() {
            Health::Good => {}
            Health::LogoutRequested { seconds } => {
                return Trouble::LogoutRequested { seconds: *seconds };
            }
            Health::Lost(_) => return Trouble::Lost,
        }
        if is_silent(path, silence_limit) {
            return Trouble::Silent;
        }
        // Either outcome leads to the same look at the path.
        let _ = timeout(step, health.changed()).await;
    }
}

fn is_silent(path: &Path, limit: Duration) -> bool {
    path.session
        .oldest_outstanding()
        .is_some_and(|oldest| oldest.elapsed() > limit)
}

/// Looks for another portal while `path` stays silent; `true` if it was replaced.
async fn replace_silent(core: &Rc<Paths>, path: &Rc<Path>, limit: Duration) -> bool {
    let mut health = path.session.health();
    let recovered = async {
        // A lost session ends this wait too: the next look at it will say so.
        let lost = health.wait_for(|health| matches!(health, Health::Lost(_)));
        tokio::pin!(lost);
        while is_silent(path, limit) {
            if timeout(limit / 8, &mut lost).await.is_ok() {
                return;
            }
        }
    };
    tokio::select! {
        replacement = core.race(Some(path.index)) => {
            let to = replacement.session.portal();
            tracing::info!(from = %path.session.portal(), %to, "silent path replaced");
            core.count(|counters| {
                counters.failovers += 1;
                counters.silences += 1;
            });
            core.install(replacement);
            path.session.abandon(LostReason::Silent);
            true
        }
        () = recovered => false,
    }
}

/// Leaves `path` because its target asks for it: first find another, then drain, then log out.
async fn hand_over(core: &Rc<Paths>, path: Rc<Path>, seconds: u16) {
    let deadline = Instant::now() + Duration::from_secs(u64::from(seconds.max(1)));
    core.count(|counters| counters.handovers += 1);
    let half = Duration::from_secs(u64::from(seconds.max(1))) / 2;
    match timeout(half, core.race(Some(path.index))).await {
        Ok(replacement) => core.install(replacement),
        // Nowhere else to go: I/O waits until this portal takes us back.
        Err(_) => core.forget(&path),
    }
    let drained = async move {
        let step = Duration::from_millis(2);
        while Instant::now() < deadline && !path.session.is_idle() {
            sleep(step).await;
        }
        // Whatever is still outstanding is sent again on the new path.
        let _ = timeout_at(deadline, path.session.logout_shared()).await;
        path.session.abandon(LostReason::ClosedHere);
    };
    if core.current().is_some() {
        tokio::task::spawn_local(drained);
    } else {
        drained.await;
    }
}

#[cfg(test)]
#[path = "multipath_tests.rs"]
mod tests;
