//! Links of the tests' world: delay, loss, one-way partitions; and a checker of every Raft frame.

use std::cell::RefCell;
use std::rc::Rc;

use holdfast_runtime::{Frame, Incarnation, LinkEvent, Links, NodeId, Service};
use tokio::sync::mpsc;

use super::super::network::{Request, decode};
use super::world::{Ledger, World};

pub(super) struct NodeLinks {
    pub(super) world: Rc<World>,
    pub(super) node: NodeId,
    pub(super) incarnation: Incarnation,
    pub(super) events: RefCell<Option<mpsc::UnboundedReceiver<LinkEvent>>>,
}

impl Links for NodeLinks {
    fn local_node(&self) -> NodeId {
        self.node
    }

    fn local_incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn set_peers(&self, _peers: Vec<(NodeId, String)>) {}

    fn send(&self, to: NodeId, frame: Frame) {
        let world = &self.world;
        check_raft_frame(&frame);
        world.note(&frame.header);
        if let Some(receiver) = world.carries(self.node, to) {
            let event = LinkEvent::Frame {
                from: self.node,
                incarnation: self.incarnation,
                frame,
            };
            world.deliver(self.node, to, receiver, event);
        }
    }

    fn take_events(&self) -> mpsc::UnboundedReceiver<LinkEvent> {
        self.events.borrow_mut().take().expect("taken once")
    }
}

/// Entries travel only in the name of the leader that wrote them or of a later one, and behind
/// an entry that is no newer than they are: else a log would arise that no leader has.
fn check_raft_frame(frame: &Frame) {
    // See `holdfast_runtime::rpc` for the prefix.
    const REQUEST: u8 = 1;
    const PREFIX_BYTES: usize = 12;
    if frame.header[1] != REQUEST || frame.header[2] != Service::Raft as u8 {
        return;
    }
    let request: Request<Ledger> = decode(&frame.header[PREFIX_BYTES..]).expect("decodes");
    if let Request::Append(append) = request {
        let entries = append.entries.iter().map(|entry| entry.log_id);
        let log_ids: Vec<_> = append.prev_log_id.into_iter().chain(entries).collect();
        assert!(log_ids.is_sorted(), "{log_ids:?}");
        let last = log_ids.last().map(|last| last.leader_id);
        assert!(
            last <= Some(append.vote.leader_id),
            "{last:?} sent in the name of {:?}",
            append.vote
        );
    }
}
