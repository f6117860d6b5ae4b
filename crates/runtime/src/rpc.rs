//! Requests and notices over [`Links`].
//!
//! Promises: a request runs **at most once** per incarnation of its receiver, however often the
//! link duplicates it; a caller hears `LinkDown` as soon as the link breaks, not at its time
//! limit. What is not promised: that a request which failed did not run.
//!
//! Frame prefix (little-endian): `version u8, kind u8, service u8, zero u8, id u64`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::LocalBoxFuture;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::links::{DownReason, Frame, Incarnation, LinkEvent, Links, NodeId};
use crate::task::Runtime;

const VERSION: u8 = 1;
const PREFIX_BYTES: usize = 12;
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

/// Who was asked, and where the answer goes.
type Pending = (NodeId, oneshot::Sender<Result<Frame, RpcError>>);

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
    runtime: Runtime,
    links: Rc<dyn Links>,
    next_id: Cell<u64>,
    up: RefCell<BTreeMap<NodeId, Incarnation>>,
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
        let rpc = Rc::new(Self {
            // A random start keeps late answers to an earlier incarnation from matching.
            next_id: Cell::new(WINDOW + (runtime.random_u64() >> 2)),
            runtime: runtime.clone(),
            links,
            up: RefCell::default(),
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
        self.send(to, Kind::Notice, service, 0, frame);
    }

    /// Sends a request and waits for its answer for at most `limit`.
    pub async fn call(
        &self,
        to: NodeId,
        service: Service,
        frame: Frame,
        limit: Duration,
    ) -> Result<Frame, RpcError> {
        if self.peer_up(to).is_none() {
            return Err(RpcError::LinkDown);
        }
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let (sender, receiver) = oneshot::channel();
        self.pending.borrow_mut().insert(id, (to, sender));
        let forget = ForgetPending { rpc: self, id };
        self.send(to, Kind::Request, service, id, frame);
        let answer = self.runtime.timeout(limit, receiver).await;
        drop(forget);
        match answer {
            Some(Ok(answer)) => answer,
            Some(Err(_closed)) => Err(RpcError::LinkDown),
            None => Err(RpcError::TimedOut),
        }
    }

    fn send(&self, to: NodeId, kind: Kind, service: Service, id: u64, frame: Frame) {
        let mut header = BytesMut::with_capacity(PREFIX_BYTES + frame.header.len());
        header.put_slice(&[VERSION, kind as u8, service as u8, 0]);
        header.put_u64_le(id);
        header.put_slice(&frame.header);
        let frame = Frame {
            header: header.freeze(),
            payload: frame.payload,
        };
        if to == self.local_node() {
            let (from, incarnation) = (to, self.local_incarnation());
            self.on_frame(Incoming {
                from,
                incarnation,
                frame,
            });
        } else {
            self.links.send(to, frame);
        }
    }

    fn on_event(self: &Rc<Self>, event: LinkEvent) {
        match event {
            LinkEvent::Up { peer, incarnation } => {
                let before = self.up.borrow_mut().insert(peer, incarnation);
                if before.is_some_and(|before| before != incarnation) {
                    self.fail_pending(peer);
                }
                self.tell(LinkChange::Up(peer, incarnation));
            }
            LinkEvent::Down {
                peer,
                incarnation,
                reason,
            } => {
                self.up.borrow_mut().remove(&peer);
                self.fail_pending(peer);
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

    fn fail_pending(&self, peer: NodeId) {
        let mut pending = self.pending.borrow_mut();
        let lost: Vec<u64> = pending
            .iter()
            .filter(|(_, (to, _))| *to == peer)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            if let Some((_, sender)) = pending.remove(&id) {
                let _ = sender.send(Err(RpcError::LinkDown));
            }
        }
    }

    fn on_frame(&self, mut incoming: Incoming) {
        let Some((kind, service, id)) = split_prefix(&mut incoming.frame.header) else {
            tracing::warn!(from = %incoming.from, "dropped a frame of an unknown form or version");
            return;
        };
        match kind {
            Kind::Notice => {
                let handler = self.notice_handlers.borrow().get(&service).cloned();
                if let Some(handler) = handler {
                    handler(incoming);
                }
            }
            Kind::Response => {
                let mut pending = self.pending.borrow_mut();
                if pending.get(&id).is_some_and(|(to, _)| *to == incoming.from)
                    && let Some((_, sender)) = pending.remove(&id)
                {
                    let _ = sender.send(Ok(incoming.frame));
                }
            }
            Kind::Request => self.on_request(service, id, incoming),
        }
    }

    fn on_request(&self, service: Service, id: u64, incoming: Incoming) {
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
        let (from, links) = (incoming.from, self.links.clone());
        let local = from == self.local_node();
        let answer = handler(incoming);
        if local {
            // The loop-back answers through `pending` directly.
            let sender = self
                .pending
                .borrow_mut()
                .remove(&id)
                .map(|(_, sender)| sender);
            self.runtime.spawn("rpc-local-request", async move {
                if let (Some(frame), Some(sender)) = (answer.await, sender) {
                    let _ = sender.send(Ok(frame));
                }
            });
        } else {
            self.runtime.spawn("rpc-request", async move {
                if let Some(frame) = answer.await {
                    let mut header = BytesMut::with_capacity(PREFIX_BYTES + frame.header.len());
                    header.put_slice(&[VERSION, Kind::Response as u8, service as u8, 0]);
                    header.put_u64_le(id);
                    header.put_slice(&frame.header);
                    links.send(
                        from,
                        Frame {
                            header: header.freeze(),
                            payload: frame.payload,
                        },
                    );
                }
            });
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

fn split_prefix(header: &mut Bytes) -> Option<(Kind, Service, u64)> {
    if header.len() < PREFIX_BYTES || header.get_u8() != VERSION {
        return None;
    }
    let kind = match header.get_u8() {
        1 => Kind::Request,
        2 => Kind::Response,
        3 => Kind::Notice,
        _ => return None,
    };
    let service = Service::from_byte(header.get_u8())?;
    header.advance(1);
    Some((kind, service, header.get_u64_le()))
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
