//! Requests and notices over [`Links`].
//!
//! Promises: a request runs **at most once** per incarnation of its receiver, however often the
//! link duplicates it; a caller hears `LinkDown` as soon as the link breaks, not at its time
//! limit. What is not promised: that a request which failed did not run.
//!
//! A message to a node whose own link is down travels over other nodes, if any chain of links
//! leads there (modules `relay` and `routes`): it then carries the start that it is from and the
//! one that it is for, and may be lost, late, repeated or overtaken like any frame. News of links
//! ([`LinkChange`]) is of a node's own links alone, whatever is reachable over others.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures::future::LocalBoxFuture;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::links::{DownReason, Frame, Incarnation, LinkEvent, Links, NodeId};
use crate::planted::{self, Bug};
use crate::task::Runtime;

mod prefix;
mod relay;
mod routes;

pub use relay::MissingLink;

use prefix::{Message, Prefix};
use relay::Spreading;
use routes::{Routes, Way};

/// Request ids remembered per peer. A duplicate that arrives later than this many requests
/// after its original is refused unseen, so a request never runs twice.
const WINDOW: u64 = 1 << 16;

/// Who a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Service {
    /// Raft messages of the config group.
    Raft = 1,
    /// Membership rumours.
    Gossip = 2,
    /// Proposals forwarded to the config leader.
    Config = 3,
    /// The replicated write stream and resync.
    Replica = 4,
    /// I/O forwarded to a volume's owner.
    Volume = 5,
    /// Requests to a volume's owner for blocks that a copy has lost.
    Heal = 6,
    /// Questions how a node is, and orders to it.
    Status = 7,
}

impl Service {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Raft,
            Self::Gossip,
            Self::Config,
            Self::Replica,
            Self::Volume,
            Self::Heal,
            Self::Status,
        ]
        .into_iter()
        .find(|service| *service as u8 == byte)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Request = 1,
    Response = 2,
    Notice = 3,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Request, Self::Response, Self::Notice]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Why a call has no answer. In each case the request may or may not have run.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RpcError {
    /// No answer within the time limit.
    #[error("no answer within the time limit")]
    TimedOut,
    /// There is no link, or it broke before the answer came.
    #[error("the link is down")]
    LinkDown,
}

/// A frame with its sender.
#[derive(Clone, Debug)]
pub struct Incoming {
    /// The sender.
    pub from: NodeId,
    /// The sender's start.
    pub incarnation: Incarnation,
    /// The message.
    pub frame: Frame,
}

/// A change of a link's state, for components that watch peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// The peer's process of this incarnation is reachable.
    Up(NodeId, Incarnation),
    /// The link to the peer's process of this incarnation broke.
    Down(NodeId, Incarnation, DownReason),
}

type RequestHandler = Rc<dyn Fn(Incoming) -> LocalBoxFuture<'static, Option<Frame>>>;
type NoticeHandler = Rc<dyn Fn(Incoming)>;

/// Who was asked, along which way, and where the answer goes.
struct Pending {
    to: NodeId,
    way: Way,
    answer: Option<oneshot::Sender<Result<Frame, RpcError>>>,
}

#[derive(Default)]
struct Seen {
    incarnation: Incarnation,
    highest: u64,
    ids: BTreeSet<u64>,
}

impl Seen {
    /// Records `id`; false if it has run already or is too old to tell.
    fn admit(&mut self, incarnation: Incarnation, id: u64) -> bool {
        if incarnation > self.incarnation {
            *self = Self {
                incarnation,
                ..Self::default()
            };
        }
        if incarnation < self.incarnation || id.saturating_add(WINDOW) <= self.highest {
            return false;
        }
        if id > self.highest {
            self.highest = id;
            let oldest = id.saturating_sub(WINDOW - 1);
            while self.ids.first().is_some_and(|first| *first < oldest) {
                self.ids.pop_first();
            }
        }
        self.ids.insert(id)
    }
}

/// Requests, responses and notices of one node.
pub struct Rpc {
    me: Weak<Self>,
    runtime: Runtime,
    links: Rc<dyn Links>,
    next_id: Cell<u64>,
    up: RefCell<BTreeMap<NodeId, Incarnation>>,
    routes: RefCell<Routes>,
    spreading: RefCell<Spreading>,
    pending: RefCell<BTreeMap<u64, Pending>>,
    seen: RefCell<BTreeMap<NodeId, Seen>>,
    request_handlers: RefCell<BTreeMap<Service, RequestHandler>>,
    notice_handlers: RefCell<BTreeMap<Service, NoticeHandler>>,
    watchers: RefCell<Vec<mpsc::UnboundedSender<LinkChange>>>,
}

impl Rpc {
    /// Takes the links' events and starts dispatching them.
    pub fn start(runtime: Runtime, links: Rc<dyn Links>) -> Rc<Self> {
        let mut events = links.take_events();
        let routes = Routes::new(links.local_node(), links.local_incarnation());
        let rpc = Rc::new_cyclic(|me| Self {
            me: me.clone(),
            // A random start keeps late answers to an earlier incarnation from matching.
            next_id: Cell::new(WINDOW + (runtime.random_u64() >> 2)),
            runtime: runtime.clone(),
            links: links.clone(),
            up: RefCell::default(),
            routes: RefCell::new(routes),
            spreading: RefCell::default(),
            pending: RefCell::default(),
            seen: RefCell::default(),
            request_handlers: RefCell::default(),
            notice_handlers: RefCell::default(),
            watchers: RefCell::default(),
        });
        let weak: Weak<Self> = Rc::downgrade(&rpc);
        runtime.spawn("rpc-dispatch", async move {
            while let Some(event) = events.recv().await {
                let Some(rpc) = weak.upgrade() else { return };
                rpc.on_event(event);
            }
        });
        let wake = rpc.spreading.borrow().wake.clone();
        let spreading = relay::keep_spreading(Rc::downgrade(&rpc), runtime.clone(), wake);
        runtime.spawn("rpc-routes", spreading);
        rpc
    }

    /// This node.
    pub fn local_node(&self) -> NodeId {
        self.links.local_node()
    }

    /// This start of this node.
    pub fn local_incarnation(&self) -> Incarnation {
        self.links.local_incarnation()
    }

    /// The links underneath, to set peers.
    pub fn links(&self) -> &Rc<dyn Links> {
        &self.links
    }

    /// The incarnation of `peer` if its link is up; the local node is always up.
    pub fn peer_up(&self, peer: NodeId) -> Option<Incarnation> {
        if peer == self.local_node() {
            return Some(self.local_incarnation());
        }
        self.up.borrow().get(&peer).copied()
    }

    /// Changes of link state from now on.
    pub fn watch_links(&self) -> mpsc::UnboundedReceiver<LinkChange> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.watchers.borrow_mut().push(sender);
        receiver
    }

    /// Sets the handler of requests for `service`; each request runs in a task of its own.
    /// A handler that returns `None` leaves the caller to its time limit.
    pub fn serve(
        &self,
        service: Service,
        handler: impl Fn(Incoming) -> LocalBoxFuture<'static, Option<Frame>> + 'static,
    ) {
        self.request_handlers
            .borrow_mut()
            .insert(service, Rc::new(handler));
    }

    /// Sets the handler of notices for `service`; it runs in the order of arrival.
    pub fn listen(&self, service: Service, handler: impl Fn(Incoming) + 'static) {
        self.notice_handlers
            .borrow_mut()
            .insert(service, Rc::new(handler));
    }

    /// Sends a notice: best effort, no answer.
    pub fn notify(&self, to: NodeId, service: Service, frame: Frame) {
        let message = Message {
            kind: Kind::Notice,
            service,
            id: 0,
        };
        if to == self.local_node() {
            self.loop_back(message, frame);
        } else if let Some(way) = self.way(to) {
            self.send_along(to, &way, message, frame);
        }
    }

    /// Sends a request and waits for its answer for at most `limit`.
    pub async fn call(
        &self,
        to: NodeId,
        service: Service,
        frame: Frame,
        limit: Duration,
    ) -> Result<Frame, RpcError> {
        let local = to == self.local_node();
        let way = if local {
            Way::Direct
        } else {
            self.way(to).ok_or(RpcError::LinkDown)?
        };
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let (sender, receiver) = oneshot::channel();
        let pending = Pending {
            to,
            way: way.clone(),
            answer: Some(sender),
        };
        self.pending.borrow_mut().insert(id, pending);
        let forget = ForgetPending { rpc: self, id };
        let message = Message {
            kind: Kind::Request,
            service,
            id,
        };
        if local {
            self.loop_back(message, frame);
        } else {
            self.send_along(to, &way, message, frame);
        }
        let answer = self.runtime.timeout(limit, receiver).await;
        drop(forget);
        match answer {
            Some(Ok(answer)) => answer,
            Some(Err(_closed)) => Err(RpcError::LinkDown),
            None => Err(RpcError::TimedOut),
        }
    }

    fn loop_back(&self, message: Message, frame: Frame) {
        let incoming = Incoming {
            from: self.local_node(),
            incarnation: self.local_incarnation(),
            frame,
        };
        self.on_message(message, incoming, Way::Direct);
    }

    fn on_event(&self, event: LinkEvent) {
        match event {
            LinkEvent::Up { peer, incarnation } => {
                let before = self.up.borrow_mut().insert(peer, incarnation);
                if before.is_some_and(|before| before != incarnation) {
                    self.fail_pending(peer);
                }
                self.on_link(peer, Some(incarnation));
                self.tell(LinkChange::Up(peer, incarnation));
            }
            LinkEvent::Down {
                peer,
                incarnation,
                reason,
            } => {
                // `Refused` may come long after `Lost`, and is no news of a link then.
                if self.up.borrow_mut().remove(&peer).is_some() {
                    self.fail_pending(peer);
                    self.on_link(peer, None);
                }
                self.tell(LinkChange::Down(peer, incarnation, reason));
            }
            LinkEvent::Frame {
                from,
                incarnation,
                frame,
            } => {
                self.on_frame(Incoming {
                    from,
                    incarnation,
                    frame,
                });
            }
        }
    }

    fn tell(&self, change: LinkChange) {
        self.watchers
            .borrow_mut()
            .retain(|watcher| watcher.send(change).is_ok());
    }

    /// Calls over the peer's own link: whatever is on its way there may be lost.
    fn fail_pending(&self, peer: NodeId) {
        let mut lost = Vec::new();
        self.pending.borrow_mut().retain(|_, pending| {
            let keep = pending.to != peer || pending.way != Way::Direct;
            if !keep {
                lost.push(pending.answer.take());
            }
            keep
        });
        for answer in lost.into_iter().flatten() {
            let _ = answer.send(Err(RpcError::LinkDown));
        }
    }

    fn on_frame(&self, mut incoming: Incoming) {
        match prefix::split(&mut incoming.frame.header) {
            None => {
                let from = incoming.from;
                tracing::warn!(%from, "dropped a frame of an unknown form or version");
            }
            Some(Prefix::Message(message)) => self.on_message(message, incoming, Way::Direct),
            Some(Prefix::Relayed(message, mut envelope)) => {
                if planted::is_active(Bug::RelayInOwnName) {
                    envelope.origin = incoming.from;
                }
                self.on_relayed(incoming.from, message, envelope, incoming.frame);
            }
            Some(Prefix::Statements(statements)) => self.on_statements(incoming.from, statements),
        }
    }

    fn on_message(&self, message: Message, incoming: Incoming, way_back: Way) {
        let Message { kind, service, id } = message;
        match kind {
            Kind::Notice => {
                let handler = self.notice_handlers.borrow().get(&service).cloned();
                if let Some(handler) = handler {
                    handler(incoming);
                }
            }
            Kind::Response => {
                let mut pending = self.pending.borrow_mut();
                if pending.get(&id).is_some_and(|p| p.to == incoming.from)
                    && let Some(sender) = pending.remove(&id).and_then(|p| p.answer)
                {
                    let _ = sender.send(Ok(incoming.frame));
                }
            }
            Kind::Request => self.on_request(service, id, incoming, way_back),
        }
    }

    fn on_request(&self, service: Service, id: u64, incoming: Incoming, way_back: Way) {
        let fresh = self
            .seen
            .borrow_mut()
            .entry(incoming.from)
            .or_default()
            .admit(incoming.incarnation, id);
        if !fresh {
            return;
        }
        let Some(handler) = self.request_handlers.borrow().get(&service).cloned() else {
            return;
        };
        let from = incoming.from;
        let local = from == self.local_node();
        let answer = handler(incoming);
        if local {
            // The loop-back answers through `pending` directly.
            let pending = self.pending.borrow_mut().remove(&id);
            let sender = pending.and_then(|pending| pending.answer);
            self.runtime.spawn("rpc-local-request", async move {
                if let (Some(frame), Some(sender)) = (answer.await, sender) {
                    let _ = sender.send(Ok(frame));
                }
            });
        } else {
            let Some(rpc) = self.me.upgrade() else {
                return;
            };
            self.runtime.spawn("rpc-request", async move {
                if let Some(frame) = answer.await {
                    rpc.respond(from, service, id, &way_back, frame);
                }
            });
        }
    }

    /// Answers along the way that the request came, if that still leads there: what the other
    /// side has noticed of its links, this one may not have.
    fn respond(&self, to: NodeId, service: Service, id: u64, way_back: &Way, frame: Frame) {
        let message = Message {
            kind: Kind::Response,
            service,
            id,
        };
        let same = match way_back {
            Way::Over(..) => true,
            Way::Direct => self.routes.borrow().still_leads(to, way_back),
        };
        let way = if same {
            Some(way_back.clone())
        } else {
            self.way(to)
        };
        if let Some(way) = way {
            self.send_along(to, &way, message, frame);
        }
    }
}

/// Drops the pending entry of a call whose future ends early.
struct ForgetPending<'a> {
    rpc: &'a Rpc,
    id: u64,
}

impl Drop for ForgetPending<'_> {
    fn drop(&mut self) {
        self.rpc.pending.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_admitted_once_per_incarnation() {
        let mut seen = Seen::default();
        assert!(seen.admit(Incarnation(1), 100_000));
        assert!(!seen.admit(Incarnation(1), 100_000));
        assert!(
            seen.admit(Incarnation(1), 99_999),
            "reordered, not repeated"
        );
        assert!(
            !seen.admit(Incarnation(1), 100_000 - WINDOW),
            "too old to tell"
        );
        assert!(
            seen.admit(Incarnation(2), 5),
            "a new incarnation starts afresh"
        );
        assert!(
            !seen.admit(Incarnation(1), 200_000),
            "frames of a dead incarnation are refused"
        );
    }
}
