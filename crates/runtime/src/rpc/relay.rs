//! Messages to nodes whose own link is down: passed on by others, along a way that the origin
//! chooses from what all nodes state about their links.
//!
//! A node on the way looks at nothing but its place in the list: a frame takes at most as many
//! steps as the list is long. One that cannot be passed on is dropped, and whoever sent it learns
//! which links there are now.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};

use super::prefix::{Envelope, Message, statements_header};
use super::routes::{Learned, Statement, Way};
use super::{Incoming, Rpc, RpcError};
use crate::links::{Frame, Incarnation, NodeId};
use crate::planted::{self, Bug};
use crate::task::Runtime;
use crate::time::Instant;

/// News of links waits this long for more of them: at a start, and at a node's end, there are
/// many at once.
const GATHER: Duration = Duration::from_millis(5);
/// While links are missing, neighbours compare what they know this often: a statement may have
/// been lost. With all links there, nothing is sent.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// A pair of nodes without a link to one another, as far as is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingLink {
    /// The two nodes, the lower number first.
    pub nodes: (NodeId, NodeId),
    /// Since when, by the local clock.
    pub since: Instant,
}

/// What is known of links, and who waits for news of it.
pub(super) struct Spreading {
    /// Statements that neighbours have not been sent.
    pub(super) unsent: BTreeSet<NodeId>,
    /// Peers that have to hear everything.
    pub(super) new_peers: BTreeSet<NodeId>,
    pub(super) missing: BTreeMap<(NodeId, NodeId), Instant>,
    pub(super) wake: Rc<Notify>,
    pub(super) version: watch::Sender<u64>,
}

impl Default for Spreading {
    fn default() -> Self {
        Self {
            unsent: BTreeSet::new(),
            new_peers: BTreeSet::new(),
            missing: BTreeMap::new(),
            wake: Rc::default(),
            version: watch::Sender::new(0),
        }
    }
}

impl Rpc {
    /// The start of `peer` that messages get to: over its link, or passed on by others.
    pub fn reachable(&self, peer: NodeId) -> Option<Incarnation> {
        if let Some(incarnation) = self.peer_up(peer) {
            return Some(incarnation);
        }
        match self.way(peer)? {
            Way::Direct => None,
            Way::Over(_, incarnation) => Some(incarnation),
        }
    }

    /// All nodes that messages get to, this one included, with their starts.
    pub fn reachable_nodes(&self) -> BTreeMap<NodeId, Incarnation> {
        self.routes.borrow().reachable()
    }

    /// Pairs of reachable nodes that have no link to one another.
    pub fn missing_links(&self) -> Vec<MissingLink> {
        let spreading = self.spreading.borrow();
        let missing = spreading.missing.iter();
        missing
            .map(|(nodes, since)| MissingLink {
                nodes: *nodes,
                since: *since,
            })
            .collect()
    }

    /// Changes whenever more or less is known of links.
    pub fn watch_routes(&self) -> watch::Receiver<u64> {
        self.spreading.borrow().version.subscribe()
    }

    pub(super) fn way(&self, to: NodeId) -> Option<Way> {
        if planted::is_active(Bug::NeverRelay) {
            return self.peer_up(to).map(|_| Way::Direct);
        }
        self.routes.borrow().way(to)
    }

    /// The local link to a peer came up, or is down.
    pub(super) fn on_link(&self, peer: NodeId, incarnation: Option<Incarnation>) {
        self.routes.borrow_mut().set_link(peer, incarnation);
        let mut spreading = self.spreading.borrow_mut();
        spreading.unsent.insert(self.local_node());
        if incarnation.is_some() {
            spreading.new_peers.insert(peer);
        }
        drop(spreading);
        self.after_change();
    }

    pub(super) fn on_statements(&self, from: NodeId, statements: Vec<Statement>) {
        let mut outdated = Vec::new();
        let mut news = false;
        for statement in statements {
            let node = statement.node;
            // What was told before the peer's own link was up, it has forgotten.
            let linked_now = node == from && self.is_new_link(&statement);
            let learned = self.routes.borrow_mut().learn(statement);
            match learned {
                Learned::News => {
                    let mut spreading = self.spreading.borrow_mut();
                    spreading.unsent.insert(node);
                    if linked_now {
                        spreading.new_peers.insert(from);
                    }
                    news = true;
                }
                Learned::Known => {}
                Learned::Outdated(newer) => outdated.push(newer),
            }
        }
        if !outdated.is_empty() {
            self.links
                .send(from, Frame::new(statements_header(outdated.iter())));
        }
        if news {
            self.after_change();
        }
    }

    /// Whether a peer states a link to this start of this node that it had not stated before.
    fn is_new_link(&self, statement: &Statement) -> bool {
        let (local, start) = (self.local_node(), self.local_incarnation());
        let names_local = |stated: &Statement| stated.peers.get(&local) == Some(&start);
        let routes = self.routes.borrow();
        let before = routes.of(statement.node);
        let named_before = before
            .filter(|before| before.incarnation == statement.incarnation)
            .is_some_and(names_local);
        names_local(statement) && !named_before
    }

    /// A frame that another node is the origin of: passes it on, or takes it in.
    pub(super) fn on_relayed(
        &self,
        from: NodeId,
        message: Message,
        mut envelope: Envelope,
        frame: Frame,
    ) {
        if envelope.path[envelope.place] != self.local_node() {
            return;
        }
        if let Some(next) = envelope.path.get(envelope.place + 1).copied() {
            if self.peer_up(next).is_none() {
                // The origin does not know yet.
                return self.tell_all(from);
            }
            envelope.place += 1;
            let header = message.relayed_header(&envelope, &frame.header);
            let payload = frame.payload;
            return self.links.send(next, Frame { header, payload });
        }
        let known = self
            .routes
            .borrow()
            .of(envelope.origin)
            .map(|s| s.incarnation);
        let linked = self.peer_up(envelope.origin);
        let outlived = known.max(linked) > Some(envelope.origin_incarnation);
        if envelope.target_incarnation != self.local_incarnation() || outlived {
            return;
        }
        if linked == Some(envelope.origin_incarnation) {
            // The origin has no use of the link: it should hear that this side has.
            self.tell_all(from);
        }
        let incoming = Incoming {
            from: envelope.origin,
            incarnation: envelope.origin_incarnation,
            frame,
        };
        let way_back = Way::Over(envelope.way_back(), envelope.origin_incarnation);
        self.on_message(message, incoming, way_back);
    }

    /// Sends a message along a way.
    pub(super) fn send_along(&self, to: NodeId, way: &Way, message: Message, frame: Frame) {
        let Frame { header, payload } = frame;
        match way {
            Way::Direct => {
                let header = message.header(&header);
                self.links.send(to, Frame { header, payload });
            }
            Way::Over(path, target_incarnation) => {
                let envelope = Envelope {
                    origin: self.local_node(),
                    origin_incarnation: self.local_incarnation(),
                    target_incarnation: *target_incarnation,
                    path: path.clone(),
                    place: 0,
                };
                let header = message.relayed_header(&envelope, &header);
                self.links.send(path[0], Frame { header, payload });
            }
        }
    }

    fn tell_all(&self, peer: NodeId) {
        let routes = self.routes.borrow();
        let header = statements_header(routes.all());
        self.links.send(peer, Frame::new(header));
    }

    /// More or less is known of links: calls whose way is gone fail, so that they are repeated
    /// along another one.
    fn after_change(&self) {
        let routes = self.routes.borrow();
        let mut lost = Vec::new();
        self.pending.borrow_mut().retain(|_, pending| {
            let local = pending.to == self.local_node();
            let keep = local || routes.still_leads(pending.to, &pending.way);
            if !keep {
                lost.push(pending.answer.take());
            }
            keep
        });
        let now = self.runtime.now();
        let mut spreading = self.spreading.borrow_mut();
        let before = std::mem::take(&mut spreading.missing);
        let missing = routes.missing_links().into_iter();
        spreading.missing = missing
            .map(|nodes| (nodes, before.get(&nodes).copied().unwrap_or(now)))
            .collect();
        spreading.version.send_modify(|version| *version += 1);
        spreading.wake.notify_one();
        drop((routes, spreading));
        for answer in lost.into_iter().flatten() {
            let _ = answer.send(Err(RpcError::LinkDown));
        }
    }

    /// Sends what is new to all neighbours; true if links are missing.
    fn spread(&self) -> bool {
        let routes = self.routes.borrow();
        let mut spreading = self.spreading.borrow_mut();
        let unsent = std::mem::take(&mut spreading.unsent);
        let new_peers = std::mem::take(&mut spreading.new_peers);
        let missing = !spreading.missing.is_empty();
        drop(spreading);
        for peer in routes.own().peers.keys() {
            if new_peers.contains(peer) {
                let header = statements_header(routes.all());
                self.links.send(*peer, Frame::new(header));
                continue;
            }
            let news: Vec<&Statement> = unsent
                .iter()
                .filter(|node| *node != peer)
                .filter_map(|node| routes.of(*node))
                .collect();
            if !news.is_empty() {
                let header = statements_header(news.into_iter());
                self.links.send(*peer, Frame::new(header));
            }
        }
        missing
    }

    fn compare(&self) {
        let routes = self.routes.borrow();
        let header: Bytes = statements_header(routes.all());
        for peer in routes.own().peers.keys() {
            self.links.send(*peer, Frame::new(header.clone()));
        }
    }
}

/// Spreads what is known of links for as long as the node's messages are dispatched.
pub(super) async fn keep_spreading(rpc: Weak<Rpc>, runtime: Runtime, wake: Rc<Notify>) {
    let mut missing = false;
    loop {
        let news = if missing {
            runtime.timeout(COMPARE_EVERY, wake.notified()).await
        } else {
            wake.notified().await;
            Some(())
        };
        if news.is_some() {
            runtime.sleep(GATHER).await;
        }
        let Some(rpc) = rpc.upgrade() else { return };
        match news {
            Some(()) => missing = rpc.spread(),
            None => rpc.compare(),
        }
    }
}
