//! The tokio shell: listeners, connections and the table of sessions.
//!
//! Everything runs on one thread: call [`serve`] on a `LocalSet` of a current-thread runtime.
//! Each connection is one task, in which the commands of its session run side by side.
#![allow(
    clippy::disallowed_methods,
    reason = "the shell runs on a host, never under the simulator: time is tokio's"
)]

mod accepting;
mod admission;
mod connection;
mod input;
mod login;
mod output;
mod sessions;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use holdfast_path::Path;
use holdfast_scsi::LogicalUnit;
use holdfast_scsi::reservation::{LocalReservations, Reservations};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tracing::{debug, warn};

pub use sessions::SessionSummary;

use crate::targets::{Target, Targets};
use accepting::Accepting;
use admission::{Admission, Bounds, Decision, Visitor};
use sessions::{Sessions, TargetAborter};

/// Path numbers are never used again by this process: owners tell paths apart by them.
static NEXT_PATH: AtomicU64 = AtomicU64::new(1);

/// Bounds on what initiators may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections that have not logged in. One more takes the place of the oldest one of the
    /// address that has the most.
    pub half_open_connections: usize,
    /// Connections in all; one more is closed at once.
    pub connections: usize,
    /// Time that a login may take.
    pub login_time: Duration,
    /// Delay of the answer to a failed authentication.
    pub failure_delay: Duration,
    /// Authentications that an address may fail at once; until it may again, its connections are
    /// closed. Zero lifts the limit.
    pub failed_logins: u32,
    /// Time after which an address may fail one more.
    pub failed_login_period: Duration,
    /// Commands of a session that may be outstanding.
    pub window: u32,
    /// Bytes that a session's reads may hold until the initiator has taken them. One read may
    /// exceed it alone.
    pub read_bytes: u64,
    /// Silence after which an initiator is asked for a sign of life, and after which, unanswered,
    /// its connection is closed.
    pub silence: Duration,
    /// Time that initiators get to log out at shutdown.
    pub logout_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            half_open_connections: 256,
            connections: 4096,
            login_time: Duration::from_secs(15),
            failure_delay: Duration::from_millis(500),
            failed_logins: 16,
            failed_login_period: Duration::from_secs(1),
            window: 128,
            read_bytes: 16 << 20,
            silence: Duration::from_secs(20),
            logout_time: Duration::from_secs(3),
        }
    }
}

/// Accepts and serves connections until `shutdown` holds true, then asks every initiator to log
/// out, and returns when all connections are gone and their commands have drained.
///
/// An error says that the listener is broken; connections end with it.
pub async fn serve(
    listener: TcpListener,
    targets: Rc<dyn Targets>,
    limits: Limits,
    shutdown: watch::Receiver<bool>,
) -> io::Result<()> {
    Server::new(targets, limits).serve(listener, shutdown).await
}

/// The iSCSI front of a node. Several listeners may share it, and with it the sessions.
pub struct Server {
    targets: Rc<dyn Targets>,
    limits: Limits,
    sessions: Rc<Sessions>,
    units: RefCell<BTreeMap<Rc<str>, Rc<LogicalUnit>>>,
    challenges: RefCell<BTreeSet<Vec<u8>>>,
    admission: RefCell<Admission>,
    /// Tells connections that have not logged in to go.
    evictions: RefCell<BTreeMap<Visitor, oneshot::Sender<()>>>,
    started: Instant,
    connections: Rc<Cell<usize>>,
}

impl Server {
    /// A server of these targets.
    pub fn new(targets: Rc<dyn Targets>, limits: Limits) -> Rc<Self> {
        let admission = Admission::new(Bounds {
            half_open: limits.half_open_connections,
            failures: limits.failed_logins,
            failure_period: limits.failed_login_period,
        });
        Rc::new(Self {
            targets,
            limits,
            sessions: Rc::default(),
            units: RefCell::default(),
            challenges: RefCell::default(),
            admission: RefCell::new(admission),
            evictions: RefCell::default(),
            started: Instant::now(),
            connections: Rc::default(),
        })
    }

    /// The path of a session that is being opened.
    fn new_path(self: &Rc<Self>) -> Rc<Path> {
        let server = self.clone();
        let number = NEXT_PATH.fetch_add(1, Ordering::Relaxed);
        Path::new(number, move || server.clock())
    }

    /// See [`Targets::clock`].
    fn clock(&self) -> Duration {
        self.targets.clock().unwrap_or_else(|| self.now())
    }

    /// See [`serve`].
    pub async fn serve(
        self: &Rc<Self>,
        listener: TcpListener,
        mut shutdown: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let mut tasks = tokio::task::JoinSet::new();
        let mut accepting = Accepting::default();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = until_true(&mut shutdown) => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        warn!(%error, "a connection failed");
                    }
                    continue;
                }
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => {
                    accepting.succeeded();
                    accepted
                }
                Err(error) => {
                    let pause = accepting.failed(error)?;
                    tokio::select! {
                        () = tokio::time::sleep(pause) => continue,
                        () = until_true(&mut shutdown) => break,
                    }
                }
            };
            if self.connections.get() >= self.limits.connections {
                debug!(%peer, "refused a connection: too many");
                continue;
            }
            // Counted here, not in the task: a burst of connections is accepted before any runs.
            let Some(half_open) = self.admit(peer.ip()) else {
                debug!(%peer, "refused a connection: too many failed logins");
                continue;
            };
            let counted = (Counted::new(&self.connections), half_open);
            tasks.spawn_local(connection::run(
                self.clone(),
                stream,
                peer,
                shutdown.clone(),
                counted,
            ));
        }
        drop(listener);
        while tasks.join_next().await.is_some() {}
        Ok(())
    }

    /// Takes a new connection in, if need be instead of another one.
    fn admit(self: &Rc<Self>, address: IpAddr) -> Option<HalfOpen> {
        let decision = self.admission.borrow_mut().arrived(address, self.now());
        let visitor = match decision {
            Decision::Welcome(visitor) => visitor,
            Decision::Instead(visitor, evicted) => {
                self.evictions.borrow_mut().remove(&evicted);
                visitor
            }
            Decision::TooManyFailures => return None,
        };
        let (sender, evicted) = oneshot::channel();
        self.evictions.borrow_mut().insert(visitor, sender);
        Some(HalfOpen {
            server: self.clone(),
            address,
            visitor,
            evicted,
        })
    }

    /// Time since the start.
    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Every session.
    pub fn sessions(&self) -> Vec<SessionSummary> {
        self.sessions.summaries()
    }

    /// Ends the sessions that `concerned` picks: their initiators may not use the target any
    /// more. Each is gone when its commands have drained; one that logs in meanwhile is refused
    /// if [`Targets::open`] does not know it any more.
    pub fn end_sessions(&self, concerned: impl Fn(&SessionSummary) -> bool) {
        self.sessions.end_where(concerned);
    }

    /// Ends every session of a target and forgets its reservations in memory: its volume was
    /// deleted or moved away.
    pub fn drop_target(&self, iqn: &str) {
        self.sessions.end(iqn);
        self.units.borrow_mut().remove(iqn);
    }

    /// The unit that the sessions of a target share.
    pub fn unit(&self, iqn: &str, target: &Target) -> Rc<LogicalUnit> {
        if let Some(unit) = self.units.borrow().get(iqn) {
            return unit.clone();
        }
        let name: Rc<str> = iqn.into();
        let reservations: Rc<dyn Reservations> = match &target.reservations {
            Some(reservations) => reservations.clone(),
            None => Rc::new(LocalReservations::default()),
        };
        let unit = LogicalUnit::new(reservations);
        let sessions = self.sessions.clone();
        unit.set_aborter(Rc::new(TargetAborter {
            sessions,
            target: name.clone(),
        }));
        self.units.borrow_mut().insert(name, unit.clone());
        unit
    }
}

/// A connection that has not logged in, for as long as it lives.
struct HalfOpen {
    server: Rc<Server>,
    address: IpAddr,
    visitor: Visitor,
    /// Resolves, with an error, when another connection gets its place.
    evicted: oneshot::Receiver<()>,
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.server.evictions.borrow_mut().remove(&self.visitor);
        let mut admission = self.server.admission.borrow_mut();
        admission.left(self.address, self.visitor);
    }
}

/// Adds one to a counter for as long as it lives.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(counter: &Rc<Cell<usize>>) -> Self {
        counter.set(counter.get() + 1);
        Self(counter.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Resolves when the value is true or can no longer change.
async fn until_true(flag: &mut watch::Receiver<bool>) {
    // An error means that the sender is gone: nobody can ask for anything else any more.
    let _ = flag.wait_for(|set| *set).await;
}
