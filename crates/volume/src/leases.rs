//! The owner's leases on the copies: asked for regularly, given back when its office ends
//! while it lives. The answers also say how much space the copies have.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use holdfast_replica::{LEASE, messages};
use holdfast_runtime::task::SHARED_WAKE;
use holdfast_runtime::{NodeId, Service};
use holdfast_wire::replica::{Lease, ReplicaReply, VolumeView, replica_request};
use prost::Message;

use crate::owner::{Owner, Phase};
use crate::waiting::{WaitReason, Waiting};

/// A lease outlives two lost renewals.
const RENEW_EVERY: Duration = Duration::from_millis(430);

const _: () = assert!((RENEW_EVERY.as_millis() + SHARED_WAKE.as_millis()) * 3 <= LEASE.as_millis());

/// An owner that nobody has asked for anything for so long lets its leases run out, and gets
/// new ones, in one round trip, when it is asked again: idle volumes cost nothing.
const IDLE_AFTER: Duration = Duration::from_secs(5);

const RELEASE_LIMIT: Duration = Duration::from_millis(200);

impl Owner {
    /// Renews the leases while the volume is in use, until the owner closes.
    pub(crate) async fn keep_leases(self: Rc<Self>) {
        let local = self.context.node();
        // One that drains gives its leases back: a renewal behind that would revive one.
        while self.phase.get() == Phase::Open && !self.draining.get() {
            let wanted = self.lease_wanted.notified();
            let idle = (self.context.runtime.now()).saturating_since(self.used.get());
            if idle >= IDLE_AFTER {
                wanted.await;
                continue;
            }
            self.note_space(local, self.context.holder.spare_bytes());
            for node in self.lease_givers() {
                let owner = self.clone();
                self.spawn("owner-lease", async move { owner.renew_lease(node).await });
            }
            self.context.runtime.sleep_roughly(RENEW_EVERY).await;
        }
    }

    /// The volume is in use: it needs leases, and news of the copies' space.
    pub(crate) fn note_use(&self) {
        let now = self.context.runtime.now();
        let idle = now.saturating_since(self.used.replace(now));
        if idle >= IDLE_AFTER {
            self.lease_wanted.notify_waiters();
        }
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
        if self.draining.get() {
            return None;
        }
        let sent = self.context.runtime.now();
        let lease = Lease {
            heard: Some(self.heard.borrow().get(&node).copied().unwrap_or(0)),
            ..self.lease(false)
        };
        let frame = messages::request(replica_request::Body::Lease(lease), Bytes::new());
        let answer = self
            .context
            .rpc
            .call(node, Service::Replica, frame, LEASE)
            .await;
        let reply = ReplicaReply::decode(answer.ok()?.header).ok()?;
        self.heard.borrow_mut().insert(node, reply.clock);
        let of_this_office =
            |granted: &VolumeView| granted.volume == self.volume.0 && granted.view == self.view.0;
        let granted = reply.granted.iter().any(of_this_office);
        if granted {
            self.note_lease(node, sent);
        }
        if let Some(free_bytes) = reply.free_bytes {
            self.note_space(node, free_bytes);
        }
        Some(granted)
    }

    /// While copies are full, no acknowledgement tells that they have space again.
    fn note_space(&self, node: NodeId, free_bytes: u64) {
        for slice in &mut *self.slices.borrow_mut() {
            slice.stream.set_free_bytes(node, free_bytes);
        }
    }

    /// Gives all leases back; the owner must not serve reads any more. What is sent is decided at
    /// the call.
    pub(crate) fn release_leases(&self) -> impl Future<Output = ()> + use<> {
        self.leases.borrow_mut().clear();
        let (rpc, givers) = (self.context.rpc.clone(), self.lease_givers());
        let lease = replica_request::Body::Lease(self.lease(true));
        let frame = messages::request(lease, Bytes::new());
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
        if now.saturating_since(self.used.get()) >= IDLE_AFTER {
            return None;
        }
        let leases = self.leases.borrow();
        let mut lapsed = BTreeMap::new();
        for node in self.lease_givers() {
            let ended = leases.get(&node).copied().unwrap_or(self.since);
            if ended <= now {
                lapsed.insert(node, ended);
            }
        }
        let since = lapsed.values().min().copied()?;
        let reason = WaitReason::Lease(lapsed.into_keys().collect());
        Some(Waiting { reason, since })
    }

    fn lease(&self, release: bool) -> Lease {
        Lease {
            volumes: vec![VolumeView {
                volume: self.volume.0,
                view: self.view.0,
            }],
            release,
            heard: None,
        }
    }

    fn lease_givers(&self) -> BTreeSet<NodeId> {
        let local = self.context.node();
        let slices = self.slices.borrow();
        let required = slices.iter().flat_map(|slice| slice.stream.required());
        required.filter(|node| *node != local).collect()
    }
}
