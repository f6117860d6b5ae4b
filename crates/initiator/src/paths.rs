//! The path in use, and the race for a new one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::error::{Error, LostReason};
use crate::multipath::{DiskOptions, PathCounters};
use crate::scsi::Capacity;
use crate::session::Session;
use crate::statistics::GapMeter;

/// Pauses between attempts at one portal: short at first, a restarting process is back soon.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Pause between questions to a disk that is becoming ready.
const READY_PAUSE: Duration = Duration::from_millis(10);

/// A session that serves the disk, and which of the portals led to it.
pub(crate) struct Path {
    pub(crate) session: Session,
    pub(crate) index: usize,
}

/// What every path must agree with.
struct Identity {
    capacity: Capacity,
    designators: Vec<Vec<u8>>,
}

pub(crate) struct Paths {
    pub(crate) options: DiskOptions,
    pub(crate) counters: Cell<PathCounters>,
    pub(crate) gap: RefCell<GapMeter>,
    identity: RefCell<Option<Identity>>,
    current: RefCell<Option<Rc<Path>>>,
    installed: Notify,
    /// The latest failure of each portal.
    failures: RefCell<Vec<Option<Error>>>,
    last_failure: RefCell<Error>,
}

impl Paths {
    pub(crate) fn new(options: DiskOptions) -> Self {
        let portals = options.portals.len();
        Self {
            options,
            counters: Cell::default(),
            gap: RefCell::new(GapMeter::new(Instant::now())),
            identity: RefCell::new(None),
            current: RefCell::new(None),
            installed: Notify::new(),
            failures: RefCell::new(vec![None; portals]),
            last_failure: RefCell::new(Error::ConnectionLost {
                reason: LostReason::Silent,
            }),
        }
    }

    /// Finds the first path and learns what the disk is.
    pub(crate) async fn open(&self) -> Result<(), Error> {
        let race = async {
            tokio::select! {
                path = self.race(None) => Ok(path),
                error = self.hopeless() => Err(error),
            }
        };
        let path = timeout(self.options.give_up, race)
            .await
            .map_err(|_| self.all_down())??;
        let lun = self.options.lun;
        let capacity = path.session.read_capacity(lun).await?;
        let designators = path.session.unit_designators(lun).await.unwrap_or_default();
        *self.identity.borrow_mut() = Some(Identity {
            capacity,
            designators,
        });
        self.install(path);
        Ok(())
    }

    pub(crate) fn capacity(&self) -> Capacity {
        let identity = self.identity.borrow();
        identity
            .as_ref()
            .expect("an open disk has an identity")
            .capacity
    }

    pub(crate) fn current(&self) -> Option<Rc<Path>> {
        self.current.borrow().clone()
    }

    pub(crate) fn take(&self) -> Option<Rc<Path>> {
        self.current.borrow_mut().take()
    }

    pub(crate) async fn wait_for_path(&self) -> Rc<Path> {
        loop {
            let installed = self.installed.notified();
            if let Some(path) = self.current() {
                return path;
            }
            installed.await;
        }
    }

    pub(crate) fn install(&self, path: Path) {
        *self.current.borrow_mut() = Some(Rc::new(path));
        self.installed.notify_waiters();
    }

    /// Stops using `path`, if it is the one in use.
    pub(crate) fn forget(&self, path: &Rc<Path>) {
        let mut current = self.current.borrow_mut();
        if current
            .as_ref()
            .is_some_and(|current| Rc::ptr_eq(current, path))
        {
            *current = None;
        }
    }

    /// Stops using `path` because of `error`, and ends its session.
    pub(crate) fn give_up(&self, path: &Rc<Path>, error: &Error) {
        self.forget(path);
        self.note_failure(path.index, error);
        path.session.abandon(LostReason::ClosedHere);
    }

    pub(crate) fn count(&self, change: impl FnOnce(&mut PathCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }

    pub(crate) fn all_down(&self) -> Error {
        let last = Box::new(self.last_failure.borrow().clone());
        Error::AllPathsDown {
            waited: self.options.give_up,
            last,
        }
    }

    /// Tries all portals at once, but for `except`, until one gives a usable path.
    pub(crate) async fn race(&self, except: Option<usize>) -> Path {
        let mut attempts: FuturesUnordered<_> = (0..self.options.portals.len())
            .filter(|index| Some(*index) != except)
            .map(|index| self.try_for_ever(index))
            .collect();
        match attempts.next().await {
            Some(path) => path,
            // There is no other portal, so none will ever answer.
            None => std::future::pending().await,
        }
    }

    async fn try_for_ever(&self, index: usize) -> Path {
        let mut pause = PAUSE_FIRST;
        loop {
            let limit = self.options.attempt_limit;
            let portal = self.options.portals[index];
            let late = Err(Error::LoginTimeout { portal, limit });
            match timeout(limit, self.try_once(index)).await.unwrap_or(late) {
                Ok(session) => {
                    // A redirection may have led to another of our portals.
                    let at = self
                        .options
                        .portals
                        .iter()
                        .position(|one| *one == session.portal());
                    return Path {
                        session,
                        index: at.unwrap_or(index),
                    };
                }
                Err(error) => {
                    tracing::debug!(%portal, %error, "portal gives no path");
                    self.note_failure(index, &error);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn try_once(&self, index: usize) -> Result<Session, Error> {
        let options = &self.options;
        let portal = options.portals[index];
        let session = Session::connect(portal, &options.target, &options.session).await?;
        while let Err(error) = session.clear_attentions(options.lun).await {
            match &error {
                // Becoming ready or in transition: worth waiting for, here.
                Error::CheckCondition {
                    key: 0x02,
                    asc: 0x04,
                    ascq: 0x01 | 0x0a,
                }
                | Error::Busy { .. } => sleep(READY_PAUSE).await,
                _ => return Err(error),
            }
        }
        if self.identity.borrow().is_some() {
            let shown = session
                .unit_designators(options.lun)
                .await
                .unwrap_or_default();
            let identity = self.identity.borrow();
            let known = identity.as_ref().map(|identity| &identity.designators);
            if known.is_some_and(|known| *known != shown) {
                return Err(Error::WrongDisk { portal });
            }
        }
        Ok(session)
    }

    fn note_failure(&self, index: usize, error: &Error) {
        self.failures.borrow_mut()[index] = Some(error.clone());
        *self.last_failure.borrow_mut() = error.clone();
        self.installed.notify_waiters();
    }

    /// Returns once every portal has refused for a reason that trying again does not change.
    async fn hopeless(&self) -> Error {
        loop {
            let noted = self.installed.notified();
            if self
                .failures
                .borrow()
                .iter()
                .all(|one| one.as_ref().is_some_and(is_permanent))
            {
                return self.last_failure.borrow().clone();
            }
            noted.await;
        }
    }
}

fn is_permanent(error: &Error) -> bool {
    matches!(
        error,
        Error::AuthenticationFailed
            | Error::TargetNotProven { .. }
            | Error::BadOptions { .. }
            | Error::LoginRefused { class: 2, .. }
            | Error::CheckCondition { key: 0x05, .. }
    )
}
