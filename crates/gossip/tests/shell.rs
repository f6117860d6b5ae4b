//! The shell over a runtime with a paused clock and links in memory.

#![allow(
    clippy::disallowed_methods,
    reason = "the test runs on a paused tokio clock"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use holdfast_gossip::{Gossip, Member, Options, Proof, Status};
use holdfast_runtime::{
    Backend, DownReason, Frame, Incarnation, Instant, LinkEvent, Links, NodeId, Rpc, Runtime, Task,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::mpsc;

struct PausedClock {
    origin: tokio::time::Instant,
    random: RefCell<ChaCha8Rng>,
}

impl Backend for PausedClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin.elapsed().as_nanos() as u64)
    }

    fn unix_time_ms(&self) -> u64 {
        0
    }

    fn sleep_until(&self, deadline: Instant) -> LocalBoxFuture<'static, ()> {
        let deadline = self.origin + Duration::from_nanos(deadline.as_nanos());
        Box::pin(tokio::time::sleep_until(deadline))
    }

    fn spawn(&self, _name: &'static str, future: LocalBoxFuture<'static, ()>) -> Task {
        let task = tokio::task::spawn_local(future).abort_handle();
        Task::new(move || task.abort())
    }

    fn random_u64(&self) -> u64 {
        self.random.borrow_mut().next_u64()
    }
}

/// The inboxes of all nodes.
type Hub = Rc<RefCell<BTreeMap<NodeId, mpsc::UnboundedSender<LinkEvent>>>>;

struct MemoryLinks {
    local: NodeId,
    hub: Hub,
    events: RefCell<Option<mpsc::UnboundedReceiver<LinkEvent>>>,
}

impl Links for MemoryLinks {
    fn local_node(&self) -> NodeId {
        self.local
    }

    fn local_incarnation(&self) -> Incarnation {
        Incarnation(1)
    }

    fn set_peers(&self, _peers: Vec<(NodeId, String)>) {}

    fn send(&self, to: NodeId, frame: Frame) {
        let event = LinkEvent::Frame {
            from: self.local,
            incarnation: Incarnation(1),
            frame,
        };
        tell(&self.hub, to, event);
    }

    fn take_events(&self) -> mpsc::UnboundedReceiver<LinkEvent> {
        self.events
            .borrow_mut()
            .take()
            .expect("events are taken once")
    }
}

/// What does not arrive is lost, as on any link.
fn tell(hub: &Hub, to: NodeId, event: LinkEvent) {
    if let Some(inbox) = hub.borrow().get(&to) {
        let _ = inbox.send(event);
    }
}

/// A link between the two, for whichever of them listens.
fn link(hub: &Hub, one: NodeId, other: NodeId) {
    for (node, peer) in [(one, other), (other, one)] {
        let incarnation = Incarnation(1);
        tell(hub, node, LinkEvent::Up { peer, incarnation });
    }
}

fn start(runtime: &Runtime, hub: &Hub, node: NodeId) -> Rc<Gossip> {
    let (inbox, events) = mpsc::unbounded_channel();
    let peers: Vec<NodeId> = hub.borrow().keys().copied().collect();
    hub.borrow_mut().insert(node, inbox);
    for peer in peers {
        link(hub, node, peer);
    }
    let links = MemoryLinks {
        local: node,
        hub: hub.clone(),
        events: RefCell::new(Some(events)),
    };
    let rpc = Rpc::start(runtime.clone(), Rc::new(links));
    let local = Member {
        node,
        incarnation: Incarnation(1),
    };
    let gossip = Gossip::start(runtime.clone(), rpc, local, Options::default());
    gossip.set_peers((1..=3).map(NodeId).collect());
    gossip
}

fn in_paused_time(test: impl AsyncFnOnce(Runtime)) {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O always builds");
    tokio::task::LocalSet::new().block_on(&tokio, async {
        let random = RefCell::new(ChaCha8Rng::seed_from_u64(1));
        let backend = PausedClock {
            origin: tokio::time::Instant::now(),
            random,
        };
        test(Runtime::new(Rc::new(backend))).await;
    });
}

#[test]
fn nodes_meet_share_values_and_notice_refused_and_silent_deaths() {
    in_paused_time(async |runtime| {
        let hub = Hub::default();
        let nodes: Vec<Rc<Gossip>> = (1..=3)
            .map(|node| start(&runtime, &hub, NodeId(node)))
            .collect();
        let mut health = nodes[0].health();
        let alive = |node: u64| {
            move |health: &BTreeMap<NodeId, holdfast_gossip::Health>| {
                health
                    .get(&NodeId(node))
                    .is_some_and(|health| health.status == Status::Alive)
            }
        };
        for node in [2, 3] {
            let met = runtime
                .timeout(Duration::from_secs(3), health.wait_for(alive(node)))
                .await;
            assert!(
                met.is_some_and(|met| met.is_ok()),
                "node {node} was not met"
            );
        }

        nodes[2]
            .publish("load", Bytes::from_static(b"9"))
            .expect("within the limits");
        runtime.sleep(Duration::from_secs(10)).await;
        assert_eq!(
            nodes[0].read(NodeId(3), "load"),
            Some(Bytes::from_static(b"9"))
        );
        assert_eq!(nodes[1].snapshot()[&NodeId(3)].values.len(), 1);

        let mut changes = nodes[0].changes();
        let (peer, incarnation) = (NodeId(3), Incarnation(1));
        tell(
            &hub,
            NodeId(1),
            LinkEvent::Down {
                peer,
                incarnation,
                reason: DownReason::Refused,
            },
        );
        let change = changes.recv().await.expect("gossip runs");
        let after = change.after.expect("it is still a peer");
        assert_eq!((change.node, after.status), (peer, Status::Down));
        assert_eq!(
            (after.incarnation, after.proof),
            (incarnation, Some(Proof::Refused))
        );

        let killed = runtime.now();
        hub.borrow_mut().remove(&NodeId(2));
        let down = |health: &BTreeMap<NodeId, holdfast_gossip::Health>| {
            health[&NodeId(2)].status == Status::Down
        };
        let noticed = runtime
            .timeout(Duration::from_secs(6), health.wait_for(down))
            .await;
        assert!(
            noticed.is_some_and(|noticed| noticed.is_ok()),
            "a silent death went unnoticed"
        );
        assert!(runtime.now() - killed >= Options::default().suspicion);
    });
}

#[test]
fn dropping_gossip_ends_its_traffic() {
    in_paused_time(async |runtime| {
        let hub = Hub::default();
        let gossip = start(&runtime, &hub, NodeId(1));
        let (inbox, mut received) = mpsc::unbounded_channel();
        hub.borrow_mut().insert(NodeId(2), inbox);
        link(&hub, NodeId(1), NodeId(2));
        runtime.sleep(Duration::from_secs(5)).await;
        let up = received.try_recv();
        assert!(matches!(up, Ok(LinkEvent::Up { .. })), "{up:?}");
        assert!(
            received.try_recv().is_ok(),
            "it invites a peer that is silent"
        );
        drop(gossip);
        while received.try_recv().is_ok() {}
        runtime.sleep(Duration::from_secs(60)).await;
        assert!(received.try_recv().is_err());
    });
}
