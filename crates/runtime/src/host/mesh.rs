//! The peers of one node and what becomes of the connections to them: redialling, taking a
//! connection for the link, and the news that the layers above hear.
//!
//! Invariants: for each peer, every `Down` follows an `Up` of the same incarnation, and no second
//! `Up` comes before it; `Refused` is said only of a peer whose host has refused a connection
//! after its link was gone.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::identity::{ClusterId, NodeUuid};
use super::link::Link;
use super::links::{JoinHandler, LinksConfig};
use super::problem::LinkProblem;
use super::stream::{FrameStream, connect};
use crate::links::{DownReason, Incarnation, LinkEvent, NodeId};
use crate::task::{Runtime, Task};

const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// How long, at most, a broken link waits for the peer's host before it counts as lost.
const PROBE_LIMIT: Duration = Duration::from_millis(200);
/// A process that dies may close its listener after its links; the kernel then resets what the
/// listener had not accepted yet. So a probe that is connected waits this long for its end, and
/// one that was ended is repeated.
const PROBE_PATIENCE: Duration = Duration::from_millis(10);
const PROBES_MAX: usize = 5;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How long the side that does not decide leaves the dialling to the other.
const COURTESY: Duration = Duration::from_millis(300);

/// One peer, as long as it is among the node's peers.
pub(super) struct Peer {
    pub(super) node: NodeId,
    /// Where it is to be found, as this node was told.
    pub(super) address: RefCell<String>,
    /// Where the start of it that was last linked listens: what it said itself, or where it was
    /// dialled. Only there does a refusal prove that this start is gone.
    pub(super) learned: RefCell<Option<String>>,
    pub(super) link: RefCell<Option<Rc<Link>>>,
    /// The link is gone; `Down` waits for the answer of the peer's host.
    pub(super) unreported: Cell<Option<Incarnation>>,
    /// `Down` said `Lost`; a later refusal says more.
    pub(super) unrefused: Cell<Option<Incarnation>>,
    pub(super) problem: RefCell<Option<LinkProblem>>,
    /// The link came or went, or the address changed; heard by `Mesh::keep` alone.
    pub(super) changed: Notify,
    pub(super) dialling: RefCell<Option<Task>>,
}

impl Peer {
    /// Where it listens, as far as is known.
    pub(super) fn present_address(&self) -> String {
        let learned = self.learned.borrow().clone();
        learned.unwrap_or_else(|| self.address.borrow().clone())
    }

    fn linked(&self) -> bool {
        self.link.borrow().is_some()
    }

    pub(super) fn stop_dialling(&self) {
        if let Some(task) = self.dialling.borrow_mut().take() {
            task.abort();
        }
    }

    async fn until(&self, linked: bool) {
        while self.linked() != linked {
            self.changed.notified().await;
        }
    }
}

/// What a peer has told about itself: kept also when it leaves the peers, for numbers are never
/// used again.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub(super) uuid: NodeUuid,
    pub(super) incarnation: Incarnation,
    pub(super) start: u64,
    /// Its highest decision followed in this start.
    pub(super) decision: u64,
}

/// All links of one node.
pub(super) struct Mesh {
    pub(super) runtime: Runtime,
    pub(super) local: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) uuid: NodeUuid,
    pub(super) incarnation: Incarnation,
    pub(super) start: u64,
    pub(super) acceptor: TlsAcceptor,
    pub(super) connector: TlsConnector,
    pub(super) events: mpsc::UnboundedSender<LinkEvent>,
    pub(super) peers: RefCell<BTreeMap<NodeId, Rc<Peer>>>,
    pub(super) known: RefCell<BTreeMap<NodeId, Known>>,
    pub(super) decisions: Cell<u64>,
    pub(super) join_handler: RefCell<Option<JoinHandler>>,
    /// Where this node itself listens.
    pub(super) listen: Option<SocketAddr>,
    /// Addresses at which some peer may be, and which one was found there.
    pub(super) sought: RefCell<BTreeMap<String, Option<NodeId>>>,
    pub(super) half_open: RefCell<BTreeMap<IpAddr, usize>>,
    /// A peer has no link any more, or none yet.
    pub(super) unlinked: Notify,
    pub(super) tasks: RefCell<BTreeMap<u64, Task>>,
    pub(super) task_ids: Cell<u64>,
}

impl Mesh {
    pub(super) fn new(
        runtime: Runtime,
        config: &LinksConfig,
        acceptor: TlsAcceptor,
        connector: TlsConnector,
        events: mpsc::UnboundedSender<LinkEvent>,
        listen: SocketAddr,
    ) -> Rc<Self> {
        Rc::new(Self {
            local: config.credentials.node(),
            cluster: config.credentials.cluster(),
            uuid: config.uuid,
            incarnation: config.incarnation,
            start: runtime.random_u64(),
            runtime,
            acceptor,
            connector,
            events,
            peers: RefCell::default(),
            known: RefCell::default(),
            decisions: Cell::new(0),
            join_handler: RefCell::default(),
            listen: (!listen.ip().is_unspecified()).then_some(listen),
            sought: RefCell::default(),
            half_open: RefCell::default(),
            unlinked: Notify::new(),
            tasks: RefCell::default(),
            task_ids: Cell::new(0),
        })
    }

    /// Spawns a task that ends with the links.
    pub(super) fn spawn(
        self: &Rc<Self>,
        name: &'static str,
        future: impl Future<Output = ()> + 'static,
    ) {
        let id = self.task_ids.get();
        self.task_ids.set(id + 1);
        let mesh = self.clone();
        let task = self.runtime.spawn(name, async move {
            future.await;
            mesh.tasks.borrow_mut().remove(&id);
        });
        self.tasks.borrow_mut().insert(id, task);
    }

    fn emit(&self, event: LinkEvent) {
        // Nobody listens any more: the node is stopping.
        let _ = self.events.send(event);
    }

    pub(super) fn set_peers(self: &Rc<Self>, wanted: Vec<(NodeId, String)>) {
        let wanted: BTreeMap<_, _> = wanted
            .into_iter()
            .filter(|(node, _)| *node != self.local)
            .collect();
        let mut peers = self.peers.borrow_mut();
        peers.retain(|node, peer| {
            let keep = wanted.contains_key(node);
            if !keep {
                self.remove(peer);
            }
            keep
        });
        for (node, address) in wanted {
            if let Some(peer) = peers.get(&node) {
                if peer.address.replace(address.clone()) != address {
                    peer.changed.notify_one();
                }
                continue;
            }
            let peer = Rc::new(Peer {
                node,
                address: RefCell::new(address),
                learned: RefCell::default(),
                link: RefCell::default(),
                unreported: Cell::default(),
                unrefused: Cell::default(),
                problem: RefCell::default(),
                changed: Notify::new(),
                dialling: RefCell::default(),
            });
            let task = self
                .runtime
                .spawn("link-dial", self.clone().keep(peer.clone()));
            *peer.dialling.borrow_mut() = Some(task);
            peers.insert(node, peer);
            self.unlinked.notify_one();
        }
    }

    fn remove(&self, peer: &Peer) {
        peer.stop_dialling();
        if let Some(link) = peer.link.borrow_mut().take() {
            peer.unreported.set(Some(link.incarnation));
            link.close(LinkProblem::Removed);
        }
        self.report(peer, DownReason::Lost);
    }

    /// Keeps a link to one peer, for ever.
    async fn keep(self: Rc<Self>, peer: Rc<Peer>) {
        loop {
            peer.until(false).await;
            if peer.unreported.get().is_some() {
                tokio::select! {
                    biased;
                    () = peer.until(true) => continue,
                    () = self.probe(&peer) => {}
                }
            }
            if !self.decides(&peer) {
                tokio::select! {
                    biased;
                    () = peer.until(true) => continue,
                    () = sleep(COURTESY) => {}
                }
            }
            let mut pause = PAUSE_MIN;
            loop {
                tokio::select! {
                    biased;
                    () = peer.until(true) => break,
                    outcome = self.dial(&peer) => match outcome {
                        Ok(()) => break,
                        Err(problem) => note(&peer, problem),
                    },
                }
                // Half of the pause is chance, so that two nodes do not keep crossing.
                let half_ns = pause.as_nanos() as u64 / 2;
                let chance = Duration::from_nanos(self.runtime.random_below(half_ns));
                tokio::select! {
                    biased;
                    // The link, or another address.
                    () = peer.changed.notified() => {}
                    () = sleep(pause / 2 + chance) => {}
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    pub(super) fn decides(&self, peer: &Peer) -> bool {
        self.local < peer.node
    }

    /// Asks the host of a peer whose link has just broken whether the process is gone.
    async fn probe(&self, peer: &Peer) {
        let address = peer.present_address();
        let probes = async {
            for _ in 0..PROBES_MAX {
                match connect(&address).await {
                    Ok(stream) => {
                        if !closed_within(stream, PROBE_PATIENCE).await {
                            return Ok(());
                        }
                    }
                    Err(problem) => return Err(problem),
                }
            }
            Ok(())
        };
        match timeout(PROBE_LIMIT, probes)
            .await
            .unwrap_or(Err(LinkProblem::TimedOut))
        {
            Err(LinkProblem::NotRunning) => {
                self.report(peer, DownReason::Refused);
                note(peer, LinkProblem::NotRunning);
            }
            Ok(()) | Err(_) => self.report(peer, DownReason::Lost),
        }
    }

    /// Where a peer may be found: where it was last, where it is said to be, and where somebody is
    /// said to be.
    pub(super) fn places(&self, peer: &Peer) -> Vec<String> {
        let mut places = vec![peer.present_address(), peer.address.borrow().clone()];
        let sought = self.sought.borrow();
        let open = sought.iter();
        let open = open.filter(|(_, found)| found.is_none_or(|node| node == peer.node));
        places.extend(open.map(|(address, _)| address.clone()));
        let mut seen = BTreeSet::new();
        places.retain(|place| !place.is_empty() && seen.insert(place.clone()));
        places
    }

    /// Connects for a link; a refusal is news of a peer that was only known to be lost, if that is
    /// where it was.
    pub(super) async fn connect(
        &self,
        peer: &Peer,
        address: &str,
    ) -> Result<TcpStream, LinkProblem> {
        let attempt = timeout(CONNECT_LIMIT, connect(address)).await;
        let outcome = attempt.unwrap_or(Err(LinkProblem::TimedOut));
        if let Err(LinkProblem::NotRunning) = outcome
            && peer.present_address() == address
        {
            self.report(peer, DownReason::Refused);
        }
        outcome
    }

    /// The peer was met here.
    pub(super) fn learn(&self, peer: &Peer, address: Option<String>) {
        if let Some(address) = address {
            if let Some(found) = self.sought.borrow_mut().get_mut(&address) {
                *found = Some(peer.node);
            }
            *peer.learned.borrow_mut() = Some(address);
        }
    }

    /// Says `Down`, if that is news.
    fn report(&self, peer: &Peer, reason: DownReason) {
        let (unreported, unrefused) = (peer.unreported.take(), peer.unrefused.get());
        let news = match reason {
            DownReason::Lost => unreported,
            DownReason::Refused => unreported.or(unrefused),
        };
        let Some(incarnation) = news else { return };
        peer.unrefused
            .set((reason == DownReason::Lost).then_some(incarnation));
        tracing::info!(peer = %peer.node, ?reason, "link down");
        self.emit(LinkEvent::Down {
            peer: peer.node,
            incarnation,
            reason,
        });
    }

    /// Makes a connection the peer's link, in place of an earlier one; `first` goes out before
    /// any frame.
    pub(super) fn install(
        self: &Rc<Self>,
        peer: &Rc<Peer>,
        incarnation: Incarnation,
        stream: FrameStream,
        first: Option<Bytes>,
    ) -> Result<(), LinkProblem> {
        let node = peer.node;
        // A greeting may outlast its peer's membership.
        let member = self
            .peers
            .borrow()
            .get(&node)
            .is_some_and(|now| Rc::ptr_eq(now, peer));
        if !member {
            return Err(LinkProblem::Removed);
        }
        let link = Rc::new(Link::new(incarnation));
        if let Some(old) = peer.link.borrow_mut().replace(link.clone()) {
            peer.unreported.set(Some(old.incarnation));
            old.close(LinkProblem::Replaced);
        }
        self.report(peer, DownReason::Lost);
        peer.unrefused.set(None);
        tracing::info!(peer = %node, incarnation = incarnation.0, "link up");
        self.emit(LinkEvent::Up {
            peer: node,
            incarnation,
        });
        peer.changed.notify_one();
        let (mesh, peer) = (self.clone(), peer.clone());
        self.spawn("link", async move {
            let run = link.clone().run(stream, first, |frame| {
                mesh.emit(LinkEvent::Frame {
                    from: node,
                    incarnation,
                    frame,
                });
            });
            let problem = run.await;
            mesh.ended(&peer, &link, problem);
        });
        Ok(())
    }

    fn ended(&self, peer: &Peer, link: &Rc<Link>, problem: LinkProblem) {
        let current = peer
            .link
            .borrow()
            .as_ref()
            .is_some_and(|now| Rc::ptr_eq(now, link));
        if !current {
            // It was replaced or removed, and that was reported.
            return;
        }
        *peer.link.borrow_mut() = None;
        self.unlinked.notify_one();
        peer.unreported.set(Some(link.incarnation));
        let may_be_gone = matches!(
            problem,
            LinkProblem::Closed | LinkProblem::Network(_) | LinkProblem::Tls(_)
        );
        if !may_be_gone {
            self.report(peer, DownReason::Lost);
        }
        note(peer, problem);
        peer.changed.notify_one();
    }
}

async fn closed_within(stream: TcpStream, patience: Duration) -> bool {
    match timeout(patience, stream.readable()).await {
        // The accepting side speaks second, so there is nothing to read but the end.
        Ok(_) => matches!(stream.try_read(&mut [0]), Ok(0) | Err(_)),
        Err(_) => false,
    }
}

/// Keeps the reason for the status, and logs it when it is a new one.
pub(super) fn note(peer: &Peer, problem: LinkProblem) {
    let before = peer.problem.replace(Some(problem.clone()));
    if before.as_ref() != Some(&problem) {
        tracing::info!(peer = %peer.node, %problem, "no link");
    }
}
