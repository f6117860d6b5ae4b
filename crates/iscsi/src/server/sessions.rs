//! The sessions of a node: who is logged in, and how one session reaches another.
//!
//! Invariant: there is at most one session for each nexus. A new login of a nexus gets its place
//! only after the connection that had it is gone and its commands have drained.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use futures::future::{LocalBoxFuture, join_all};
use holdfast_scsi::{Nexus, TaskAborter};
use tokio::sync::{mpsc, oneshot, watch};

/// What another part of the node wants of a connection.
pub(super) enum Control {
    /// Abort every command; tell when none can take effect any more.
    Abort(oneshot::Sender<()>),
    /// End at once.
    End,
}

/// A session as [`super::Server::sessions`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSummary {
    /// iSCSI name of the target.
    pub target: String,
    /// iSCSI name of the initiator.
    pub initiator: String,
    /// Initiator part of the session identifier.
    pub isid: [u8; 6],
    /// Target session identifying handle.
    pub handle: u16,
    /// The number of the credentials by which the initiator proved itself, if it had to.
    pub credential: Option<u64>,
}

/// Target name and nexus.
type Key = (Rc<str>, Nexus);

#[derive(Clone)]
struct Entry {
    handle: u16,
    credential: Option<u64>,
    control: mpsc::UnboundedSender<Control>,
    gone: watch::Receiver<()>,
}

/// The table of sessions.
#[derive(Default)]
pub(super) struct Sessions {
    entries: RefCell<BTreeMap<Key, Entry>>,
    last_handle: Cell<u16>,
}

/// A session's place in the table; dropping it says that its commands have drained.
pub(super) struct Place {
    sessions: Rc<Sessions>,
    key: Key,
    pub(super) handle: u16,
    pub(super) control: mpsc::UnboundedReceiver<Control>,
    _gone: watch::Sender<()>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.sessions.entries.borrow_mut().remove(&self.key);
    }
}

impl Sessions {
    /// Takes the place of a nexus, ending the session that has it.
    pub(super) async fn claim(
        self: &Rc<Self>,
        target: Rc<str>,
        nexus: Nexus,
        credential: Option<u64>,
    ) -> Place {
        let key = (target, nexus);
        loop {
            let present = self.entries.borrow().get(&key).cloned();
            let Some(mut entry) = present else { break };
            // A failed send means that the connection is ending already.
            let _ = entry.control.send(Control::End);
            // The sender is never used, so this resolves when it is dropped.
            let _ = entry.gone.changed().await;
        }
        let (control, receiver) = mpsc::unbounded_channel();
        let (gone_sender, gone) = watch::channel(());
        let handle = self.fresh_handle();
        self.entries.borrow_mut().insert(
            key.clone(),
            Entry {
                handle,
                credential,
                control,
                gone,
            },
        );
        Place {
            sessions: self.clone(),
            key,
            handle,
            control: receiver,
            _gone: gone_sender,
        }
    }

    /// A handle that is not zero.
    pub(super) fn fresh_handle(&self) -> u16 {
        let handle = self.last_handle.get().checked_add(1).unwrap_or(1);
        self.last_handle.set(handle);
        handle
    }

    /// Every session.
    pub(super) fn summaries(&self) -> Vec<SessionSummary> {
        let entries = self.entries.borrow();
        entries.iter().map(summary).collect()
    }

    /// Ends the sessions that `concerned` picks.
    pub(super) fn end_where(&self, concerned: impl Fn(&SessionSummary) -> bool) {
        for entry in self.entries.borrow().iter() {
            if concerned(&summary(entry)) {
                let _ = entry.1.control.send(Control::End);
            }
        }
    }

    /// Aborts the commands of a target's sessions that `concerned` picks, and waits for them.
    pub(super) async fn abort(&self, target: &str, concerned: impl Fn(&Nexus) -> bool) {
        let aborts: Vec<_> = self
            .of_target(target)
            .into_iter()
            .filter(|(nexus, _)| concerned(nexus))
            .map(|(_, mut entry)| {
                let (done, drained) = oneshot::channel();
                let sent = entry.control.send(Control::Abort(done));
                async move {
                    // A connection that ends drops the sender before its commands have drained.
                    if sent.is_err() || drained.await.is_err() {
                        let _ = entry.gone.changed().await;
                    }
                }
            })
            .collect();
        join_all(aborts).await;
    }

    /// Ends a target's sessions.
    pub(super) fn end(&self, target: &str) {
        for (_, entry) in self.of_target(target) {
            let _ = entry.control.send(Control::End);
        }
    }

    fn of_target(&self, target: &str) -> Vec<(Nexus, Entry)> {
        let entries = self.entries.borrow();
        entries
            .iter()
            .filter(|((name, _), _)| &**name == target)
            .map(|((_, nexus), entry)| (nexus.clone(), entry.clone()))
            .collect()
    }
}

fn summary(((target, nexus), entry): (&Key, &Entry)) -> SessionSummary {
    SessionSummary {
        target: target.to_string(),
        initiator: nexus.initiator.to_string(),
        isid: nexus.isid,
        handle: entry.handle,
        credential: entry.credential,
    }
}

/// Aborts the commands of preempted nexuses of one target.
pub(super) struct TargetAborter {
    pub(super) sessions: Rc<Sessions>,
    pub(super) target: Rc<str>,
}

impl TaskAborter for TargetAborter {
    fn abort(&self, nexuses: Vec<Nexus>) -> LocalBoxFuture<'static, ()> {
        let (sessions, target) = (self.sessions.clone(), self.target.clone());
        Box::pin(async move {
            sessions
                .abort(&target, |nexus| nexuses.contains(nexus))
                .await;
        })
    }
}
