//! What all clients of a run share, and how they talk to a volume.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_initiator::{
    BlockRange, Chap, Error, Health, Isid, LostReason, Secret, Session, SessionOptions,
};

use crate::cluster::{Cluster, Volume};
use crate::content::BLOCK_BYTES;
use crate::gaps::Gaps;
use crate::ledger::{Doer, Ledger, WriteTicket};
use crate::network::{Cuts, Party};
use crate::register::{Moment, Outcome};

/// Blocks that everybody writes.
pub(crate) const COMMON_BLOCKS: u32 = 48;
/// Blocks that one host alone writes.
pub(crate) const HOST_BLOCKS: u32 = 96;
/// Logical blocks of the volume in one of ours.
const SECTORS: u64 = BLOCK_BYTES as u64 / 512;
/// Blocks of ours in a slice: the region lies across the border of two.
const SLICE_BLOCKS: u64 = (1 << 30) / BLOCK_BYTES as u64;
/// A volume of two slices, the second a small one.
pub(crate) const VOLUME_SIZE: &str = "1088MiB";

/// Everything that clients need.
pub(crate) struct World {
    pub(crate) ledger: Ledger,
    pub(crate) gaps: Gaps,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) portals: Vec<SocketAddr>,
    pub(crate) cuts: Cuts,
    pub(crate) blocks: u32,
    pub(crate) is_over: Cell<bool>,
    /// How often each kind of answer came that is not GOOD.
    pub(crate) answers: RefCell<BTreeMap<String, u64>>,
    pub(crate) departures: Cell<Departures>,
}

/// How often clients gave a path up that had not been lost.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Departures {
    pub(crate) by_reset: u64,
    pub(crate) by_close: u64,
}

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// With a TCP reset.
    Reset,
    /// The kernel sends what waits, then the end of the stream.
    Close,
}

/// A client's session at a portal.
#[derive(Clone)]
pub(crate) struct Path {
    pub(crate) session: Rc<Session>,
    pub(crate) doer: Doer,
    volume: u32,
}

impl World {
    pub(crate) fn new(cluster: &Cluster, run: u64, hosts: u32) -> Rc<Self> {
        let blocks = COMMON_BLOCKS + hosts * HOST_BLOCKS;
        Rc::new(Self {
            ledger: Ledger::new(run, cluster.volumes.len(), blocks),
            gaps: Gaps::new(cluster.volumes.len(), cluster.size()),
            volumes: cluster.volumes.clone(),
            portals: (0..cluster.size())
                .map(|node| cluster.portal(node))
                .collect(),
            cuts: cluster.network.cuts(),
            blocks,
            is_over: Cell::new(false),
            answers: RefCell::default(),
            departures: Cell::default(),
        })
    }

    /// Logs in.
    pub(crate) async fn connect(
        &self,
        volume: u32,
        doer: Doer,
        limit: Duration,
    ) -> Result<Path, Error> {
        let Volume {
            target,
            username,
            secret,
            ..
        } = &self.volumes[volume as usize];
        let name = format!("iqn.2026-11.io.holdfast:chaos-{}", doer.client);
        let mut options = SessionOptions::new(name);
        let [client_high, client_low] = doer.client.to_be_bytes();
        options.isid = Isid([0x80, 0, 0, client_high, client_low, doer.portal as u8]);
        options.chap = Some(Chap::new(username, Secret::new(secret.as_str())));
        options.login_limit = limit;
        options.queue_depth = 64;
        let portal = self.portals[usize::from(doer.portal)];
        let session = Session::connect(portal, target, &options).await;
        let session = session.inspect_err(|error| self.count("login", error))?;
        let path = Path {
            session: Rc::new(session),
            doer,
            volume,
        };
        // What it has to tell a new session is no answer to the first command.
        let cleared = tokio::time::timeout(limit, path.session.clear_attentions(0)).await;
        match cleared {
            Ok(Ok(())) => Ok(path),
            Ok(Err(error)) => {
                self.count("first answer", &error);
                Err(error)
            }
            Err(_) => {
                self.leave(&path, Leaving::Reset).await;
                Err(Error::LoginTimeout { portal, limit })
            }
        }
    }

    /// Gives a path up. From the moment that this returns, nothing more is sent on it by us.
    pub(crate) async fn leave(&self, path: &Path, how: Leaving) -> Moment {
        let portal = Party::Node(usize::from(path.doer.portal));
        // Behind a cut our own kernel would send on what was written for as long as the cut
        // lasts, and nobody could tell that from a host that has not given up.
        let is_cut = self.cuts.is_between(Party::Hosts, portal);
        let mut departures = self.departures.get();
        match how {
            Leaving::Close if !is_cut => {
                departures.by_close += 1;
                path.session.abandon(LostReason::Silent);
                // The session's tasks drop the socket when they have their turn.
                for _ in 0..4 {
                    tokio::task::yield_now().await;
                }
            }
            Leaving::Close | Leaving::Reset => {
                departures.by_reset += 1;
                path.session.reset(LostReason::Silent).await;
            }
        }
        self.departures.set(departures);
        self.ledger.now()
    }

    /// Writes, and tells the ledger how it ended if there was an answer or the session was lost.
    /// If this future is dropped, the ticket says nothing: see [`OpenWrite`].
    pub(crate) async fn write(
        &self,
        path: &Path,
        open: &mut OpenWrite,
        data: Bytes,
    ) -> Result<(), Error> {
        let range = range(open.ticket.first, open.ticket.blocks);
        let result = path.session.write(0, range, data).await;
        let now = self.ledger.now();
        let outcome = match &result {
            Ok(()) => Outcome::Acknowledged(now),
            Err(error) if is_refusal(error) => Outcome::Refused(now),
            Err(_) => Outcome::GivenUp(now),
        };
        self.ledger.end_write(open.ticket, outcome);
        open.is_ended = true;
        result.inspect_err(|error| self.count("write", error))
    }

    /// Reads, and lets the ledger judge what came.
    pub(crate) async fn read(&self, path: &Path, first: u32, blocks: u32) -> Result<(), Error> {
        let began = self.ledger.now();
        match path.session.read(0, range(first, blocks), 512).await {
            Ok(data) => {
                self.ledger
                    .end_read(path.volume, first, &data, began, path.doer);
                Ok(())
            }
            Err(error) => {
                self.ledger.count_unanswered_read();
                self.count("read", &error);
                Err(error)
            }
        }
    }

    fn count(&self, what: &str, error: &Error) {
        let mut text = error.to_string();
        if let Error::Connect { kind, .. } = error {
            text = format!("cannot connect: {kind}");
        } else if let Error::LoginTimeout { .. } = error {
            text = "no login in time".to_owned();
        }
        *self
            .answers
            .borrow_mut()
            .entry(format!("{what}: {text}"))
            .or_default() += 1;
    }
}

impl Path {
    pub(crate) fn is_good(&self) -> bool {
        match &*self.session.health().borrow() {
            Health::Good => true,
            // It ends soon; another is made.
            Health::LogoutRequested { .. } | Health::Lost(_) => false,
        }
    }
}

/// A write whose end the ledger does not know yet.
pub(crate) struct OpenWrite {
    pub(crate) ticket: WriteTicket,
    pub(crate) is_ended: bool,
}

impl OpenWrite {
    pub(crate) fn new(ticket: WriteTicket) -> Self {
        Self {
            ticket,
            is_ended: false,
        }
    }
}

/// Whether the target has said that the command was not done.
pub(crate) fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Busy { .. } | Error::ReservationConflict | Error::Rejected { .. } => true,
        // Not ready, illegal request, unit attention, data protect.
        Error::CheckCondition { key, .. } => matches!(key, 2 | 5 | 6 | 7),
        Error::Connect { .. }
        | Error::LoginTimeout { .. }
        | Error::LoginRefused { .. }
        | Error::AuthenticationFailed
        | Error::TargetNotProven { .. }
        | Error::BadOptions { .. }
        | Error::BadRedirect { .. }
        | Error::OutOfRange { .. }
        | Error::WrongDisk { .. } => true,
        Error::Protocol(_)
        | Error::ConnectionLost { .. }
        | Error::TaskAborted
        | Error::UnexpectedStatus { .. }
        | Error::TargetFailure { .. }
        | Error::ShortTransfer { .. }
        | Error::MalformedAnswer { .. }
        | Error::AllPathsDown { .. } => false,
    }
}

/// Where blocks lie on a volume.
pub(crate) fn range(first: u32, blocks: u32) -> BlockRange {
    let base = SLICE_BLOCKS - u64::from(COMMON_BLOCKS + HOST_BLOCKS / 2);
    BlockRange {
        first: (base + u64::from(first)) * SECTORS,
        blocks: blocks * SECTORS as u32,
    }
}
