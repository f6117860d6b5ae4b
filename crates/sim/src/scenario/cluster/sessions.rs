//! Sessions of clients at portals: what a portal knows of whether a host still holds on to a path,
//! and what becomes of a path that was given up.
//!
//! A host answers a portal's signs of life for as long as it holds on to the path. When it gives
//! the path up, the portal may hear of it at once, late, or never: the reset is lost, or lies
//! unread while the portal's process stands still. What is under way takes effect within
//! [`DEAD_AFTER_NS`] of that moment, or never: the oracle is told so.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use futures::future::{Either, select};
use holdfast_path::Path;
use holdfast_runtime::{Incarnation, NodeId};

use super::node::Nodes;
use crate::random::Random;

/// What a path had under way when it was given up takes effect within this time or never.
pub(super) const DEAD_AFTER_NS: u64 = 1_000_000_000;

/// From a portal to a host and back.
const ROUND_TRIP: Duration = Duration::from_micros(400);
/// A reset that is late, is so by up to this.
const RESET_LATE: Duration = Duration::from_secs(5);

/// A host ends a path within this time after a command.
const RESET_AFTER: Duration = Duration::from_millis(20);

/// A client's session with one start of a node.
pub(super) struct Session {
    pub(super) incarnation: Incarnation,
    pub(super) path: Rc<Path>,
    given_up_ns: Cell<Option<u64>>,
}

/// The sessions of all clients.
pub(super) struct Sessions {
    nodes: Rc<Nodes>,
    open: RefCell<BTreeMap<(u64, NodeId), Rc<Session>>>,
    next: Cell<u64>,
    random: Random,
    pub(super) given_up: Cell<u64>,
}

impl Sessions {
    pub(super) fn new(nodes: Rc<Nodes>) -> Self {
        Self {
            random: nodes.simulation.random("sessions"),
            nodes,
            open: RefCell::default(),
            next: Cell::new(1),
            given_up: Cell::new(0),
        }
    }

    /// The client's session at the portal of this node; logs in if there is none. `None` if the
    /// node does not run.
    pub(super) fn of(&self, client: u64, id: NodeId) -> Option<Rc<Session>> {
        let (incarnation, node) = self.nodes.get(id)?;
        let known = self.open.borrow().get(&(client, id)).cloned();
        if let Some(session) = known.filter(|session| session.incarnation == incarnation) {
            return Some(session);
        }
        let runtime = node.context().runtime.clone();
        drop(node);
        let number = self.next.get();
        self.next.set(number + 1);
        let clock = runtime.clone();
        let session = Rc::new(Session {
            incarnation,
            path: Path::new(number, move || Duration::from_nanos(clock.now().as_nanos())),
            given_up_ns: Cell::new(None),
        });
        self.open.borrow_mut().insert((client, id), session.clone());
        let (simulation, answering) = (self.nodes.simulation.clone(), session.clone());
        let world = simulation.clone();
        self.in_portal(id, "session", async move {
            loop {
                let wanted = std::pin::pin!(answering.path.challenge_wanted());
                let ended = std::pin::pin!(answering.path.ended());
                if let Either::Right(_) = select(wanted, ended).await {
                    return;
                }
                let at = answering.path.challenged();
                let heard_ns = world.now_ns() + crate::random::nanos(ROUND_TRIP / 2);
                runtime.sleep(ROUND_TRIP).await;
                if answering.given_up_ns.get().is_some_and(|up| up <= heard_ns) {
                    return;
                }
                answering.path.held(at);
            }
        });
        Some(session)
    }

    /// The client gives the path up now, and nobody hears of it but by what it does not answer,
    /// or by a reset that may be late.
    pub(super) fn give_up(&self, client: u64, id: NodeId, session: &Rc<Session>) {
        if session.given_up_ns.get().is_some() {
            return;
        }
        self.given_up.set(self.given_up.get() + 1);
        session
            .given_up_ns
            .set(Some(self.nodes.simulation.now_ns()));
        self.forget(client, id, session);
        let late = match self.random.below(3) {
            0 => return,
            1 => ROUND_TRIP / 2,
            _ => self.random.duration(Duration::ZERO, RESET_LATE),
        };
        self.end_after(id, session, late);
    }

    /// The host ends the path, in good order, and waits for what becomes of what is under way: a
    /// new login of the same nexus, a reset. What comes next is sent through a new session, also if
    /// everything is done before the path ends.
    pub(super) fn reset(&self, client: u64, id: NodeId, session: &Rc<Session>) {
        let after = self.random.duration(Duration::ZERO, RESET_AFTER);
        self.end_after(id, session, after);
        self.forget(client, id, session);
    }

    /// The portal hears after this time that the path has ended, if its process is still the same.
    fn end_after(&self, id: NodeId, session: &Session, after: Duration) {
        let Some((incarnation, node)) = self.nodes.get(id) else {
            return;
        };
        let runtime = node.context().runtime.clone();
        if incarnation == session.incarnation {
            let path = session.path.clone();
            self.in_portal(id, "reset", async move {
                runtime.sleep(after).await;
                path.end();
            });
        }
    }

    /// The client sends nothing more through this session.
    fn forget(&self, client: u64, id: NodeId, session: &Rc<Session>) {
        self.open
            .borrow_mut()
            .retain(|place, open| *place != (client, id) || !Rc::ptr_eq(open, session));
    }

    fn in_portal(
        &self,
        id: NodeId,
        name: &'static str,
        future: impl Future<Output = ()> + 'static,
    ) {
        let simulation = self.nodes.simulation.clone();
        let runtime = simulation.runtime().clone();
        runtime.spawn(name, async move {
            // It ends with the process.
            let _ = simulation.call(id, name, future).await;
        });
    }
}
