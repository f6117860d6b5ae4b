//! Asks other nodes for leases, for all owners of this node together: one message from node to
//! node, whatever number of volumes is in use.
//!
//! Owners renew at shared wake-ups, so what they ask for comes within one turn of the node's
//! thread, and is sent at the end of that turn.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use bytes::Bytes;
use holdfast_replica::{LEASE, messages};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::{Instant, NodeId, Rpc, Runtime, Service};
use holdfast_wire::replica::{Lease, ReplicaReply, VolumeView, replica_request};
use holdfast_wire::{View, VolumeId};
use prost::Message;
use tokio::sync::oneshot;

/// Most volumes of one message.
const VOLUMES_MAX: usize = 1024;

/// A lease that an owner wants from a node.
struct Wish {
    volume: VolumeId,
    view: View,
    /// False once the owner gives its leases back: one that was asked for after that would hold
    /// up its successor.
    wanted: Rc<Cell<bool>>,
    answer: oneshot::Sender<LeaseAnswer>,
}

/// What a node said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseAnswer {
    /// Whether the lease was granted.
    pub(crate) granted: bool,
    /// When it was asked: the lease counts from then.
    pub(crate) sent: Instant,
    /// Space for new blocks on the node.
    pub(crate) free_bytes: Option<u64>,
}

/// See the module's header.
pub struct LeaseClerk {
    runtime: Runtime,
    rpc: Rc<Rpc>,
    wishes: RefCell<BTreeMap<NodeId, Vec<Wish>>>,
    /// What the clocks of other nodes said last.
    heard: RefCell<BTreeMap<NodeId, u64>>,
}

impl LeaseClerk {
    /// For the owners of one node.
    pub fn new(runtime: Runtime, rpc: Rc<Rpc>) -> Rc<Self> {
        Rc::new(Self {
            runtime,
            rpc,
            wishes: RefCell::default(),
            heard: RefCell::default(),
        })
    }

    /// Asks a node for a lease. `None` without an answer, or if it is no longer wanted.
    pub(crate) async fn ask(
        self: &Rc<Self>,
        node: NodeId,
        volume: VolumeId,
        view: View,
        wanted: Rc<Cell<bool>>,
    ) -> Option<LeaseAnswer> {
        let (answer, answered) = oneshot::channel();
        let wish = Wish {
            volume,
            view,
            wanted,
            answer,
        };
        let first = {
            let mut wishes = self.wishes.borrow_mut();
            let of_node = wishes.entry(node).or_default();
            of_node.push(wish);
            of_node.len() == 1
        };
        if first {
            let clerk = self.clone();
            self.runtime
                .spawn("lease-clerk", async move { clerk.send(node).await });
        }
        answered.await.ok()
    }

    async fn send(self: Rc<Self>, node: NodeId) {
        let mut wishes = self.wishes.borrow_mut().remove(&node).unwrap_or_default();
        wishes.retain(|wish| wish.wanted.get());
        while !wishes.is_empty() {
            let rest = wishes.split_off(wishes.len().min(VOLUMES_MAX));
            let clerk = self.clone();
            let part = async move { clerk.send_part(node, wishes).await };
            self.runtime.spawn("lease-clerk-part", part);
            wishes = rest;
        }
    }

    async fn send_part(&self, node: NodeId, wishes: Vec<Wish>) {
        let volumes = wishes.iter().map(|wish| VolumeView {
            volume: wish.volume.0,
            view: wish.view.0,
        });
        let lease = Lease {
            volumes: volumes.collect(),
            release: false,
            heard: Some(self.heard.borrow().get(&node).copied().unwrap_or(0)),
        };
        let sent = self.runtime.now();
        let frame = messages::request(replica_request::Body::Lease(lease), Bytes::new());
        let answer = self.rpc.call(node, Service::Replica, frame, LEASE).await;
        let Ok(Ok(reply)) = answer.map(|answer| ReplicaReply::decode(answer.header)) else {
            return;
        };
        self.heard.borrow_mut().insert(node, reply.clock);
        let granted: BTreeMap<u64, u64> = reply
            .granted
            .iter()
            .map(|granted| (granted.volume, granted.view))
            .collect();
        for wish in wishes {
            let answer = LeaseAnswer {
                granted: granted.get(&wish.volume.0) == Some(&wish.view.0)
                    || (planted::is_active(Bug::LeaseForAll) && !granted.is_empty()),
                sent,
                free_bytes: reply.free_bytes,
            };
            // Its owner may have closed.
            let _ = wish.answer.send(answer);
        }
    }
}
