//! The owner's leases on the copies: asked for regularly, given back when its office ends
//! while it lives. The answers also say how much space the copies have.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_replica::{LEASE, messages};
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::task::SHARED_WAKE;
use holdfast_runtime::{Instant, NodeId, Service};
use holdfast_wire::replica::{Lease, VolumeView, replica_request};
use tokio::sync::Notify;

use super::Owner;
use super::slice::Slice;
use super::waiting::{WaitReason, Waiting};

/// A lease outlives two lost renewals.
const RENEW_EVERY: Duration = Duration::from_millis(430);

const _: () = assert!((RENEW_EVERY.as_millis() + SHARED_WAKE.as_millis()) * 3 <= LEASE.as_millis());

/// An owner that nobody has asked for anything for so long lets its leases run out, and gets
/// new ones, in one round trip, when it is asked again: idle volumes cost nothing.
const IDLE_AFTER: Duration = Duration::from_secs(5);

const RELEASE_LIMIT: Duration = Duration::from_millis(200);

/// The leases that an owner has, and whether it wants any.
pub(crate) struct Leases {
    /// When each node's lease ends, by this node's clock.
    ends: RefCell<BTreeMap<NodeId, Instant>>,
    granted: Notify,
    /// When the volume was last asked for anything; `None`: never since this owner took office.
    used: Cell<Option<Instant>>,
    /// Wakes the task that renews leases out of its rest.
    used_again: Notify,
    /// False from the moment on at which they are given back.
    wanted: Rc<Cell<bool>>,
}

impl Leases {
    /// Of an owner that takes office.
    pub(crate) fn new() -> Self {
        Self {
            ends: RefCell::default(),
            granted: Notify::new(),
            used: Cell::new(None),
            used_again: Notify::new(),
            wanted: Rc::new(Cell::new(true)),
        }
    }

    /// The volume is in use: it needs leases, and news of the copies' space.
    pub(crate) fn note_use(&self, now: Instant) {
        let idle = self.is_idle(now);
        self.used.set(Some(now));
        if idle {
            self.used_again.notify_waiters();
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let used = self.used.get();
        used.is_none_or(|used| now.saturating_since(used) >= IDLE_AFTER)
    }

    /// A lease was granted to a request sent at `sent`.
    fn note_granted(&self, now: Instant, node: NodeId, sent: Instant) {
        if !self.wanted.get() {
            // They are being given back; an answer under way does not revive one.
            return;
        }
        let mut ends = sent + LEASE;
        if planted::is_active(Bug::LeaseFromAnswer) {
            ends = now + LEASE;
        }
        if planted::is_active(Bug::LongLease) {
            ends = sent + LEASE * 2;
        }
        self.ends.borrow_mut().insert(node, ends);
        self.granted.notify_waiters();
    }

    pub(crate) fn is_alive(&self, now: Instant, node: NodeId) -> bool {
        self.ends
            .borrow()
            .get(&node)
            .is_some_and(|ends| *ends > now)
    }

    /// Resolves at the next grant after this call, or when the leases are given back.
    pub(crate) fn next_grant(&self) -> impl Future<Output = ()> + '_ {
        self.granted.notified()
    }

    /// Whether they have not been given back.
    pub(crate) fn are_wanted(&self) -> bool {
        self.wanted.get()
    }

    /// No lease is used from here on, and none asked for. Whether there was any.
    pub(crate) fn give_up(&self) -> bool {
        self.wanted.set(false);
        let had = !self.ends.borrow().is_empty();
        self.ends.borrow_mut().clear();
        self.granted.notify_waiters();
        had
    }

    /// Of the nodes whose leases an owner in use needs, those whose lease has ended, and when.
    fn lapsed(
        &self,
        now: Instant,
        since: Instant,
        givers: BTreeSet<NodeId>,
    ) -> BTreeMap<NodeId, Instant> {
        if self.is_idle(now) {
            return BTreeMap::new();
        }
        let ends = self.ends.borrow();
        let ended = |node: NodeId| (node, ends.get(&node).copied().unwrap_or(since));
        let givers = givers.into_iter().map(ended);
        givers.filter(|(_, ended)| *ended <= now).collect()
    }
}

impl Owner {
    /// Renews the leases while the volume is in use, until the owner closes.
    pub(crate) async fn keep_leases(self: Rc<Self>) {
        let local = self.context.node();
        while self.leases.wanted.get() {
            let used_again = self.leases.used_again.notified();
            if self.leases.is_idle(self.context.runtime.now()) {
                used_again.await;
                continue;
            }
            let spare_bytes = self.context.holder.spare_bytes();
            self.slices.note_space(local, spare_bytes).await;
            for node in self.lease_givers() {
                self.renew_lease_apart(node);
            }
            self.context.runtime.sleep_roughly(RENEW_EVERY).await;
        }
    }

    /// The same as [`Self::renew_lease`], in a task of its own.
    pub(crate) fn renew_lease_apart(self: &Rc<Self>, node: NodeId) {
        let owner = self.clone();
        self.spawn("owner-lease", async move { owner.renew_lease(node).await });
    }

    /// Asks one copy's node for a lease now. A node that has not been heard lately grants none at
    /// first: its answer is what it wants to be told of.
    pub(crate) async fn renew_lease(&self, node: NodeId) {
        let granted = self.ask_for_lease(node).await;
        if granted == Some(false) {
            self.ask_for_lease(node).await;
        }
    }

    /// Whether a lease was granted; `None` without an answer.
    async fn ask_for_lease(&self, node: NodeId) -> Option<bool> {
        let wanted = self.leases.wanted.clone();
        let clerk = &self.context.leases;
        let answer = clerk.ask(node, self.volume, self.view, wanted).await?;
        if answer.granted {
            let now = self.context.runtime.now();
            self.leases.note_granted(now, node, answer.sent);
        }
        if let Some(free_bytes) = answer.free_bytes {
            // While copies are full, no acknowledgement tells that they have space again.
            self.slices.note_space(node, free_bytes).await;
        }
        Some(answer.granted)
    }

    /// Gives all leases back; the owner must not serve reads any more. What is sent is decided at
    /// the call.
    pub(crate) fn release_leases(&self) -> impl Future<Output = ()> + use<> {
        self.leases.give_up();
        let (rpc, givers) = (self.context.rpc.clone(), self.lease_givers());
        let lease = Lease {
            volumes: vec![VolumeView {
                volume: self.volume.0,
                view: self.view.0,
            }],
            release: true,
            heard: None,
        };
        let frame = messages::request(replica_request::Body::Lease(lease), Bytes::new());
        async move {
            let release = |node| rpc.call(node, Service::Replica, frame.clone(), RELEASE_LIMIT);
            // A node that does not hear of it waits for the lease to end; nothing else depends
            // on it.
            let _ = join_all(givers.into_iter().map(release)).await;
        }
    }

    /// The leases that an owner in use lacks.
    pub(crate) fn lapsed_leases(&self) -> Option<Waiting> {
        let now = self.context.runtime.now();
        let lapsed = self.leases.lapsed(now, self.since, self.lease_givers());
        let since = lapsed.values().min().copied()?;
        let reason = WaitReason::Lease(lapsed.into_keys().collect());
        Some(Waiting { reason, since })
    }

    fn lease_givers(&self) -> BTreeSet<NodeId> {
        let mut givers = self.slices.required();
        givers.remove(&self.context.node());
        givers
    }

    /// Whether reads of the slice are covered by leases at this moment.
    pub(crate) fn leased(&self, slice: &Slice) -> bool {
        if planted::is_active(Bug::ReadAfterLease) {
            return true;
        }
        let now = self.context.runtime.now();
        let local = self.context.node();
        let mut granters = slice.stream.required().filter(|node| *node != local);
        if planted::is_active(Bug::LeaseOfOneCopy) {
            return granters.any(|node| self.leases.is_alive(now, node));
        }
        self.context.store.promised(self.volume.0) <= self.view
            && granters.all(|node| self.leases.is_alive(now, node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(2);

    fn at(ms: u64) -> Instant {
        Instant::default() + Duration::from_millis(ms)
    }

    #[test]
    fn a_lease_counts_from_when_it_was_asked_for() {
        let leases = Leases::new();
        leases.note_granted(at(900), NODE, at(100));
        assert!(leases.is_alive(at(1_599), NODE));
        assert!(!leases.is_alive(at(1_600), NODE));
        assert!(!leases.is_alive(at(200), NodeId(3)));
    }

    #[test]
    fn what_was_given_back_is_not_revived_by_a_late_answer() {
        let leases = Leases::new();
        assert!(!leases.give_up(), "there was none");
        let leases = Leases::new();
        leases.note_granted(at(10), NODE, at(0));
        assert!(leases.give_up());
        leases.note_granted(at(20), NODE, at(10));
        assert!(!leases.is_alive(at(30), NODE));
    }

    #[test]
    fn only_a_volume_in_use_lacks_leases() {
        let leases = Leases::new();
        let givers = BTreeSet::from([NODE, NodeId(3)]);
        assert!(leases.lapsed(at(0), at(0), givers.clone()).is_empty());
        leases.note_use(at(0));
        leases.note_granted(at(10), NODE, at(0));
        let lapsed = leases.lapsed(at(100), at(0), givers.clone());
        assert_eq!(lapsed, BTreeMap::from([(NodeId(3), at(0))]));
        let lapsed = leases.lapsed(at(4_000), at(0), givers.clone());
        assert_eq!(lapsed.len(), 2);
        assert!(leases.lapsed(at(5_000), at(0), givers.clone()).is_empty());
        leases.note_use(at(6_000));
        assert_eq!(leases.lapsed(at(6_001), at(0), givers).len(), 2);
    }
}
