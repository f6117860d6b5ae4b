//! Joins a [`Core`] to the runtime and the links of a node.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::pin::pin;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use futures::future::{Either, select};
use holdfast_runtime::rpc::{Incoming, LinkChange};
use holdfast_runtime::task::TaskGroup;
use holdfast_runtime::{DownReason, Frame, Instant, NodeId, Rpc, Runtime, Service};
use tokio::sync::{Notify, mpsc, watch};

use crate::anti_entropy::{PublishError, Published};
use crate::core::{Command, Core, Event, Member};
use crate::health::{Health, HealthChange};
use crate::options::Options;

/// A node's gossip: runs until dropped.
pub struct Gossip {
    runtime: Runtime,
    rpc: Rc<Rpc>,
    core: RefCell<Core>,
    health: watch::Sender<BTreeMap<NodeId, Health>>,
    watchers: RefCell<Vec<mpsc::UnboundedSender<HealthChange>>>,
    wake_at: Cell<Instant>,
    /// What the timer task sleeps for; the origin of time while it does not sleep.
    sleeps_until: Cell<Instant>,
    woken: Rc<Notify>,
    tasks: RefCell<TaskGroup>,
}

impl Gossip {
    /// Starts gossip for this start of this node. It is silent until [`Self::set_peers`].
    ///
    /// Takes the notices for [`Service::Gossip`]. Panics if the options contradict each other.
    pub fn start(runtime: Runtime, rpc: Rc<Rpc>, local: Member, options: Options) -> Rc<Self> {
        let mut seed = [0; 32];
        runtime.random_bytes(&mut seed);
        let (core, commands) = Core::start(runtime.now(), local, options, seed);
        let gossip = Rc::new(Self {
            runtime,
            rpc,
            core: RefCell::new(core),
            health: watch::Sender::default(),
            watchers: RefCell::default(),
            wake_at: Cell::default(),
            sleeps_until: Cell::default(),
            woken: Rc::default(),
            tasks: RefCell::default(),
        });
        gossip.execute(commands);
        let weak = Rc::downgrade(&gossip);
        gossip
            .rpc
            .listen(Service::Gossip, move |incoming: Incoming| {
                if let Some(gossip) = weak.upgrade() {
                    let Incoming {
                        from,
                        incarnation,
                        frame,
                    } = incoming;
                    gossip.dispatch(Event::Datagram {
                        from,
                        incarnation,
                        bytes: frame.header,
                    });
                }
            });
        let changes = gossip.rpc.watch_links();
        let links = follow_links(Rc::downgrade(&gossip), changes);
        let timer = keep_time(
            Rc::downgrade(&gossip),
            gossip.runtime.clone(),
            gossip.woken.clone(),
        );
        let mut tasks = gossip.tasks.borrow_mut();
        tasks.add(gossip.runtime.spawn("gossip-links", links));
        tasks.add(gossip.runtime.spawn("gossip-timer", timer));
        drop(tasks);
        gossip
    }

    /// Sets the nodes to gossip with; this node may be among them.
    pub fn set_peers(&self, peers: Vec<NodeId>) {
        self.dispatch(Event::Peers(peers.iter().copied().collect()));
        for peer in peers {
            // Its link may have come up before anyone watched.
            if let Some(incarnation) = self.rpc.peer_up(peer) {
                self.dispatch(Event::LinkUp(peer, incarnation));
            }
        }
    }

    /// The belief about every peer, kept up to date.
    pub fn health(&self) -> watch::Receiver<BTreeMap<NodeId, Health>> {
        self.health.subscribe()
    }

    /// Every change of belief from now on.
    pub fn changes(&self) -> mpsc::UnboundedReceiver<HealthChange> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.watchers.borrow_mut().push(sender);
        receiver
    }

    /// Publishes a value of this node under `key`; exchanges spread it. On an error nothing
    /// changed.
    pub fn publish(&self, key: &str, value: Bytes) -> Result<(), PublishError> {
        self.core.borrow_mut().publish(key, value)
    }

    /// The last value known that `node` published under `key`.
    pub fn read(&self, node: NodeId, key: &str) -> Option<Bytes> {
        self.core.borrow().read(node, key)
    }

    /// All that is known of what nodes published, this one included.
    pub fn snapshot(&self) -> BTreeMap<NodeId, Published> {
        self.core.borrow().snapshot()
    }

    fn dispatch(&self, event: Event) {
        let commands = self.core.borrow_mut().handle(self.runtime.now(), event);
        self.execute(commands);
    }

    fn execute(&self, commands: Vec<Command>) {
        let mut changes = Vec::new();
        for command in commands {
            match command {
                Command::Send { to, bytes } => {
                    self.rpc.notify(to, Service::Gossip, Frame::new(bytes));
                }
                Command::WakeAt(deadline) => {
                    self.wake_at.set(deadline);
                    // A later wish counts too: the answer to a probe takes back the one to miss it.
                    let sleeps_until = self.sleeps_until.get();
                    if sleeps_until != Instant::default() && sleeps_until != deadline {
                        self.woken.notify_one();
                    }
                }
                Command::Health(change) => changes.push(change),
            }
        }
        if !changes.is_empty() {
            self.health
                .send_replace(self.core.borrow().health().clone());
            let mut watchers = self.watchers.borrow_mut();
            watchers.retain(|watcher| changes.iter().all(|change| watcher.send(*change).is_ok()));
        }
    }
}

async fn keep_time(gossip: Weak<Gossip>, runtime: Runtime, woken: Rc<Notify>) {
    loop {
        let deadline = {
            let Some(gossip) = gossip.upgrade() else {
                return;
            };
            gossip.sleeps_until.set(gossip.wake_at.get());
            gossip.wake_at.get()
        };
        let earlier = pin!(woken.notified());
        let due = select(runtime.sleep_roughly_until(deadline), earlier).await;
        let Some(gossip) = gossip.upgrade() else {
            return;
        };
        gossip.sleeps_until.set(Instant::default());
        match due {
            Either::Left(_) => gossip.dispatch(Event::Tick),
            Either::Right(_) => {}
        }
    }
}

async fn follow_links(gossip: Weak<Gossip>, mut changes: mpsc::UnboundedReceiver<LinkChange>) {
    while let Some(change) = changes.recv().await {
        let Some(gossip) = gossip.upgrade() else {
            return;
        };
        match change {
            LinkChange::Up(node, incarnation) => {
                gossip.dispatch(Event::LinkUp(node, incarnation));
            }
            LinkChange::Down(node, incarnation, DownReason::Refused) => {
                gossip.dispatch(Event::LinkRefused(node, incarnation));
            }
            // A broken link proves nothing: the probes find out.
            LinkChange::Down(_, _, DownReason::Lost) => {}
        }
    }
}
