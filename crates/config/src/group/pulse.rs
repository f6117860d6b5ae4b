//! When this node last heard from a leader, and whether it is one that others still hear.
//!
//! openraft keeps both to itself, and steps no leader down that has lost its quorum. The pulse
//! adds what its callers need:
//!
//! * followers know how long ago a leader spoke, at the moment the message arrives, whatever
//!   the disk does before the answer;
//! * a leader without a quorum's answers for an election's time is *cut off*: it falls silent
//!   but for rare probes, so that followers which hear it but are not heard by it elect another.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_runtime::{Instant, NodeId, Runtime};
use openraft::metrics::RaftDataMetrics;
use tokio::sync::{Notify, watch};

/// The group's times. `heartbeat < lease < calm < election_least < election_most` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    /// A leader speaks every 1.5 of these.
    pub(super) heartbeat: Duration,
    /// A voter cannot vote for so long after it has heard a leader: openraft refuses.
    pub(super) lease: Duration,
    /// A voter would not, unless it knows that the leader's process is gone.
    pub(super) calm: Duration,
    /// Least silence after which a voter tries to replace the leader.
    pub(super) election_least: Duration,
    /// Silence before which it does, drawn evenly from the least on.
    pub(super) election_most: Duration,
}

impl Timing {
    /// A cut-off leader speaks this rarely: long enough for the others to elect in between.
    fn probe_interval(self) -> Duration {
        self.election_most * 4
    }
}

/// See the module.
pub(super) struct Pulse {
    runtime: Runtime,
    timing: Timing,
    heard: Cell<Instant>,
    /// When this node, as a leader that is none any more, was last in touch with a majority.
    led_until: Cell<Option<Instant>>,
    leading_since: Cell<Option<Instant>>,
    retired: Cell<bool>,
    metrics: RefCell<Option<watch::Receiver<RaftDataMetrics<NodeId>>>>,
    probed: RefCell<BTreeMap<NodeId, Instant>>,
    leader_gone: Notify,
    known_gone: Cell<bool>,
    promised: Cell<Option<(NodeId, Instant)>>,
    heard_again: Notify,
}

impl Pulse {
    pub(super) fn new(runtime: Runtime, timing: Timing) -> Self {
        // openraft starts its lease at the restart too: a leader may have been heard just before.
        let heard = Cell::new(runtime.now());
        Self {
            runtime,
            timing,
            heard,
            led_until: Cell::default(),
            leading_since: Cell::default(),
            retired: Cell::default(),
            metrics: RefCell::default(),
            probed: RefCell::default(),
            leader_gone: Notify::new(),
            known_gone: Cell::default(),
            promised: Cell::default(),
            heard_again: Notify::new(),
        }
    }

    pub(super) fn timing(&self) -> Timing {
        self.timing
    }

    pub(super) fn attach(&self, metrics: watch::Receiver<RaftDataMetrics<NodeId>>) {
        *self.metrics.borrow_mut() = Some(metrics);
    }

    /// A leader has spoken.
    pub(super) fn hear(&self) {
        self.heard.set(self.runtime.now());
        self.known_gone.set(false);
    }

    /// What a leader has said is done. Those who wait for its silence begin anew, in this same
    /// wake-up of the node and not in one of their own.
    pub(super) fn follow(&self) {
        self.hear();
        self.heard_again.notify_waiters();
    }

    /// Resolves when a leader speaks after this call.
    pub(super) async fn heard_again(&self) {
        self.heard_again.notified().await;
    }

    /// When a leader last spoke; the start of the node if none did.
    pub(super) fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// How long this node refuses its vote yet, because a leader has spoken. openraft does so at
    /// the very end of the lease too.
    pub(super) fn rest_of_lease(&self) -> Duration {
        let lease = match self.known_gone.get() {
            true => self.timing.lease,
            false => self.timing.calm,
        };
        let end = self.heard.get() + lease + Duration::from_micros(1);
        end.saturating_since(self.runtime.now())
    }

    /// Somebody knows that the leader's process is gone.
    pub(super) fn report_leader_gone(&self) {
        self.known_gone.set(true);
        self.leader_gone.notify_one();
    }

    pub(super) async fn leader_gone(&self) {
        self.leader_gone.notified().await;
    }

    /// Tells `candidate` that this node would vote for it, and nobody else the same until it has
    /// had time to be elected. Answers how long another candidate's time lasts instead. Rivals
    /// would cost each other terms, and a fresh leader its office.
    pub(super) fn promise(&self, candidate: NodeId) -> Result<(), Duration> {
        let now = self.runtime.now();
        match self.promised.get() {
            Some((other, until)) if other != candidate && until > now => {
                Err(until.saturating_since(now))
            }
            Some(_) | None => {
                self.promised
                    .set(Some((candidate, now + self.timing.lease / 4)));
                Ok(())
            }
        }
    }

    /// Takes the promise to `candidate` back, if it is the present one.
    pub(super) fn release(&self, candidate: NodeId) {
        if self
            .promised
            .get()
            .is_some_and(|(promised, _)| promised == candidate)
        {
            self.promised.set(None);
        }
    }

    /// This node has become the leader, or is none any more.
    pub(super) fn set_leading(&self, leading: bool) {
        if !leading && self.leading_since.get().is_some() {
            let silence = u64::try_from(self.out_of_touch().as_nanos()).unwrap_or(u64::MAX);
            let until = self.runtime.now().as_nanos().saturating_sub(silence);
            self.led_until.set(Some(Instant::from_nanos(until)));
        }
        self.leading_since
            .set(match (leading, self.leading_since.get()) {
                (false, _) => None,
                (true, None) => Some(self.runtime.now()),
                (true, since) => since,
            });
    }

    /// This node is about to end: if it leads, it falls silent, so that another is elected while
    /// it is still there.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }

    /// Whether this node, a leader in its own eyes, has gone without a quorum's answers for an
    /// election's time, or has given its office up.
    pub(super) fn is_cut_off(&self) -> bool {
        let limit = self.timing.election_most;
        let Some(since) = self.leading_since.get() else {
            return false;
        };
        if self.retired.get() {
            return true;
        }
        if self.runtime.now().saturating_since(since) < limit {
            return false;
        }
        let metrics = self.metrics.borrow();
        let Some(metrics) = metrics.as_ref() else {
            return false;
        };
        let silence_ms = metrics.borrow().millis_since_quorum_ack;
        silence_ms.is_none_or(|silence_ms| u128::from(silence_ms) >= limit.as_millis())
    }

    /// Time since this node was last in touch with a majority: heard its leader, or, as the
    /// leader, had its answers.
    pub(super) fn out_of_touch(&self) -> Duration {
        let now = self.runtime.now();
        let Some(since) = self.leading_since.get() else {
            let last = self.led_until.get().max(Some(self.heard.get()));
            return last.map_or(Duration::ZERO, |last| now.saturating_since(last));
        };
        let metrics = self.metrics.borrow();
        let silence_ms = metrics
            .as_ref()
            .and_then(|metrics| metrics.borrow().millis_since_quorum_ack);
        silence_ms.map_or(now.saturating_since(since), Duration::from_millis)
    }

    /// Whether a message to a follower may leave: always, unless this leader is cut off.
    pub(super) fn may_speak_to(&self, target: NodeId) -> bool {
        let mut probed = self.probed.borrow_mut();
        if !self.is_cut_off() {
            probed.clear();
            return true;
        }
        let now = self.runtime.now();
        // The interval starts when the silence does.
        let last = *probed.entry(target).or_insert(now);
        let due = now.saturating_since(last) >= self.timing.probe_interval();
        if due {
            probed.insert(target, now);
        }
        due
    }
}
