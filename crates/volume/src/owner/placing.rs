//! Slices come into being: placed when something is first written to them.
//!
//! | step | who | what |
//! |---|---|---|
//! | 1 | owner | chooses nodes by the layout |
//! | 2 | those nodes | promise the view, make an empty copy durably, expect the stream |
//! | 3 | config group | `PlaceSlices`: on the nodes that did |
//! | 4 | owner | takes the slices in, and the writes that waited for them |
//!
//! | what may fail | what happens then |
//! |---|---|
//! | a node does not answer, or cannot | another one is chosen; while there is none, it is asked again for [`PATIENCE`], then left out |
//! | nodes know a later view | this owner closes |
//! | no node answers | asked again, for ever: nothing can be written there meanwhile |
//! | step 3 is refused: a node has restarted since, or drains | begun again |
//! | step 3 is refused: the view is over | this owner closes |
//! | step 3 is refused: the directory is full | the writes are refused for want of space |
//! | its outcome is unknown | the same is proposed again: other I/O does not suffer |
//! | the same, and then it is refused | this owner closes if the slices are in the directory; else begun again |
//!
//! What step 2 leaves on a node that step 3 does not name is empty and counts for nothing.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use futures::future::join_all;
use holdfast_config::state::{
    Change, Outcome, PLACED_AT_ONCE_MAX, PlacedSlice, Refusal, VolumeRecord,
};
use holdfast_replica::stream::Role;
use holdfast_runtime::planted::{self, Bug};
use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, Instant, NodeId};
use holdfast_wire::Seq;
use holdfast_wire::replica::StreamStart;
use holdfast_wire::volume::IoStatus;
use tokio::sync::Notify;

use super::Owner;
use super::history::{Memory, SliceHistory};
use super::slice::Slice;
use super::waiting::{WaitReason, Waiting};

/// Slices that are placed together. What is wanted meanwhile waits for the next round.
const PLACED_AT_ONCE: usize = 256;
const _: () = assert!(PLACED_AT_ONCE <= PLACED_AT_ONCE_MAX);
/// How long a node that does not answer is waited for, if there is no other.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Pause before something that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
const PROPOSAL_LIMIT: Duration = Duration::from_millis(3_000);

/// What became of one round.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Done,
    Again,
    /// The cluster's directory is full: nothing more can be placed.
    Full,
    Over,
}

/// The slices that are wanted and not there.
#[derive(Default)]
pub(crate) struct Placing {
    wanted: RefCell<BTreeSet<u32>>,
    /// Those of which somebody has to hear that they cannot be placed.
    refused: RefCell<BTreeSet<u32>>,
    /// Since when a round does not succeed, and for whom it waits.
    waiting: RefCell<Option<Waiting>>,
    news: Notify,
    placed: Notify,
}

impl Placing {
    /// Somebody needs this slice.
    pub(crate) fn want(&self, index: u32) {
        if self.wanted.borrow_mut().insert(index) {
            self.news.notify_one();
        }
    }

    /// Resolves when slices have been placed, or the owner has closed, after this call.
    pub(crate) fn next_placed(&self) -> impl Future<Output = ()> + '_ {
        self.placed.notified()
    }

    /// Nobody has to wait for a slice any more.
    pub(crate) fn interrupt(&self) {
        self.placed.notify_waiters();
    }

    /// What a first write waits for, if it has for a while.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        self.waiting.borrow().clone()
    }

    async fn next(&self) -> BTreeSet<u32> {
        loop {
            let news = self.news.notified();
            let wanted: BTreeSet<u32> = {
                let wanted = self.wanted.borrow();
                wanted.iter().copied().take(PLACED_AT_ONCE).collect()
            };
            if !wanted.is_empty() {
                return wanted;
            }
            news.await;
        }
    }

    fn note_waiting(&self, now: Instant, reason: WaitReason) {
        let mut waiting = self.waiting.borrow_mut();
        let since = waiting.as_ref().map_or(now, |waiting| waiting.since);
        *waiting = Some(Waiting { reason, since });
    }

    /// Forgets that the slice could not be placed: whoever needs it now tries anew.
    fn try_anew(&self, index: u32) {
        self.refused.borrow_mut().remove(&index);
    }

    fn is_refused(&self, index: u32) -> bool {
        self.refused.borrow().contains(&index)
    }

    fn refuse(&self, slices: &BTreeSet<u32>) {
        self.refused.borrow_mut().extend(slices);
        self.end(slices);
    }

    fn end(&self, slices: &BTreeSet<u32>) {
        self.waiting.take();
        self.wanted
            .borrow_mut()
            .retain(|index| !slices.contains(index));
        self.placed.notify_waiters();
    }
}

/// Copies of slices that are about to be placed. Pure.
#[derive(Debug, Default)]
struct Draft {
    slices: BTreeMap<u32, Vec<NodeId>>,
}

impl Draft {
    fn by_node(&self) -> BTreeMap<NodeId, Vec<u32>> {
        let mut by_node: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
        for (slice, nodes) in &self.slices {
            for node in nodes {
                by_node.entry(*node).or_default().push(*slice);
            }
        }
        by_node
    }

    /// Nodes that have not set up every copy that was wanted of them.
    fn failing(&self, begun: &BTreeMap<NodeId, BTreeSet<u32>>) -> BTreeSet<NodeId> {
        let lacks = |(node, slices): (NodeId, Vec<u32>)| {
            let done = begun.get(&node);
            let all = slices
                .iter()
                .all(|slice| done.is_some_and(|done| done.contains(slice)));
            (!all).then_some(node)
        };
        self.by_node().into_iter().filter_map(lacks).collect()
    }

    /// The copies that were set up; `None` if a slice would have none.
    fn placed(&self, begun: &BTreeMap<NodeId, BTreeSet<u32>>) -> Option<Vec<PlacedSlice>> {
        let placed = self.slices.iter().map(|(index, nodes)| {
            let begun = |node: &&NodeId| begun.get(node).is_some_and(|done| done.contains(index));
            let nodes: Vec<NodeId> = nodes.iter().filter(begun).copied().collect();
            (!nodes.is_empty()).then_some(PlacedSlice {
                index: *index,
                nodes,
            })
        });
        placed.collect()
    }
}

/// Nodes that were asked to set up copies, by what they answered.
#[derive(Default)]
struct Answers {
    incarnations: BTreeMap<NodeId, Incarnation>,
    begun: BTreeMap<NodeId, BTreeSet<u32>>,
    free_bytes: BTreeMap<NodeId, u64>,
    sessions: BTreeMap<(u32, NodeId), u64>,
}

impl Owner {
    /// Waits until the slice can be written to.
    pub(crate) async fn placed(&self, index: u32) -> Result<(), IoStatus> {
        if self.slices.contains(index) {
            return Ok(());
        }
        self.placing.try_anew(index);
        loop {
            let placed = self.placing.next_placed();
            if self.gate.is_closed() {
                return Err(IoStatus::Interrupted);
            }
            if self.slices.contains(index) {
                return Ok(());
            }
            if self.placing.is_refused(index) {
                return Err(IoStatus::Full);
            }
            reach::note(Row::FirstWrite);
            self.placing.want(index);
            placed.await;
        }
    }

    /// A sequential fill will come to the next slice soon.
    pub(crate) fn place_ahead(&self, index: u32) {
        let next = index + 1;
        let slices = self.size_bytes.get().div_ceil(self.slice_bytes);
        if u64::from(next) < slices && !self.slices.contains(next) {
            reach::note(Row::PlacedAhead);
            self.placing.want(next);
        }
    }

    /// Places what is wanted, until the owner closes.
    pub(crate) async fn keep_placing(self: Rc<Self>) {
        let mut excluded = BTreeSet::new();
        let mut begun_at = None;
        loop {
            let wanted = self.placing.next().await;
            let now = self.context.runtime.now();
            let since: Instant = *begun_at.get_or_insert(now);
            let patient = now.saturating_since(since) < PATIENCE;
            match self.place(&wanted, patient, &mut excluded).await {
                Round::Done => {
                    self.placing.end(&wanted);
                    (excluded, begun_at) = (BTreeSet::new(), None);
                }
                Round::Full => {
                    let slices = wanted.len();
                    tracing::error!(volume = %self.volume, slices, "the directory is full");
                    self.placing.refuse(&wanted);
                }
                Round::Again => {
                    reach::note(Row::PlacingAgain);
                    self.context.runtime.sleep(RETRY_PAUSE).await;
                }
                Round::Over => return self.close(),
            }
        }
    }

    async fn place(
        self: &Rc<Self>,
        wanted: &BTreeSet<u32>,
        patient: bool,
        excluded: &mut BTreeSet<NodeId>,
    ) -> Round {
        let draft = self.draft(wanted, excluded);
        let answers = self.begin_fresh(&draft).await;
        let failing = draft.failing(&answers.begun);
        if !failing.is_empty() {
            let now = self.context.runtime.now();
            let reason = WaitReason::Placement(failing.clone());
            self.placing.note_waiting(now, reason);
            excluded.extend(failing);
            if patient {
                return Round::Again;
            }
        }
        let Some(slices) = draft.placed(&answers.begun) else {
            return Round::Again;
        };
        let change = Change::PlaceSlices {
            volume: self.volume,
            view: self.view,
            slices: slices.clone(),
            incarnations: answers.incarnations.clone().into_iter().collect(),
        };
        if planted::is_active(Bug::TakeInBeforePlaced) {
            self.take_in_fresh(slices.clone(), &answers);
        }
        let outcome = self.agree_placed(change).await;
        if outcome != Round::Done {
            // If an earlier proposal of the same took effect, only a takeover can go on from that.
            let record = self.record_in_office();
            let is_placed = |record: &VolumeRecord| {
                let mut indexes = slices.iter().map(|slice| slice.index);
                indexes.any(|index| record.slices.contains(index))
            };
            return match record {
                Some(record) if !is_placed(&record) => outcome,
                Some(_) | None => Round::Over,
            };
        }
        self.take_in_fresh(slices, &answers);
        Round::Done
    }

    /// Proposes a placement until its outcome is known: what has a place already goes on without
    /// the config group, and must not suffer from what has none.
    async fn agree_placed(&self, change: Change) -> Round {
        loop {
            let proposed = self.context.config.propose(change.clone(), PROPOSAL_LIMIT);
            return match proposed.await {
                Some(Outcome::Done) => Round::Done,
                Some(Outcome::Refused(Refusal::ViewStale | Refusal::VolumeUnknown(_))) => {
                    Round::Over
                }
                Some(Outcome::Refused(Refusal::StateFull { .. })) => Round::Full,
                // Nodes are not what they were a moment ago.
                Some(_) => Round::Again,
                None => {
                    reach::note(Row::PlacementUnknown);
                    let now = self.context.runtime.now();
                    self.placing
                        .note_waiting(now, WaitReason::PlacementAgreement);
                    continue;
                }
            };
        }
    }

    /// Chooses nodes. Those that failed are left out as long as there are others.
    fn draft(&self, wanted: &BTreeSet<u32>, excluded: &mut BTreeSet<NodeId>) -> Draft {
        let state = self.context.config.state();
        let copies = state
            .volumes
            .get(&self.volume)
            .map_or(0, |record| record.copies as usize);
        let choose = |excluded: &BTreeSet<NodeId>| {
            let nodes = |index: u32| state.wanted_nodes(self.volume, index, excluded);
            let slices = wanted.iter().map(|index| (*index, nodes(*index)));
            Draft {
                slices: slices.collect(),
            }
        };
        let draft = choose(excluded);
        if draft.slices.values().all(|nodes| nodes.len() >= copies) {
            return draft;
        }
        excluded.clear();
        choose(excluded)
    }

    /// Makes empty copies on the chosen nodes.
    async fn begin_fresh(&self, draft: &Draft) -> Answers {
        let mut answers = Answers::default();
        let asking = draft.by_node().into_iter().filter_map(|(node, slices)| {
            let incarnation = self.context.rpc.reachable(node)?;
            let start = |slice: u32| StreamStart {
                slice,
                session: self.slices.next_session(),
                next: 1,
            };
            let starts: Vec<StreamStart> = slices.into_iter().map(start).collect();
            Some(async move {
                let begun = self.calls.begin_streams(node, starts.clone(), true).await;
                (node, incarnation, starts, begun)
            })
        });
        let asking: Vec<_> = asking.collect();
        for (node, incarnation, starts, begun) in join_all(asking).await {
            let Some((done, free_bytes)) = begun else {
                continue;
            };
            if self.context.rpc.reachable(node) != Some(incarnation) {
                continue;
            }
            for start in starts {
                let key = (start.slice, node);
                answers.sessions.insert(key, start.session);
            }
            answers.incarnations.insert(node, incarnation);
            answers.free_bytes.insert(node, free_bytes);
            answers.begun.insert(node, done);
        }
        answers
    }

    fn take_in_fresh(self: &Rc<Self>, slices: Vec<PlacedSlice>, answers: &Answers) {
        let now = self.context.runtime.now();
        let mut lease_givers = BTreeSet::new();
        for PlacedSlice { index, nodes } in slices {
            if self.slices.contains(index) {
                continue;
            }
            let kept = self.context.bounds.operations;
            let history = SliceHistory::new(Memory::of_nothing(), kept);
            let mut slice = Slice::new(self.key(index), Seq(0), history);
            for node in nodes {
                let session = answers.sessions[&(index, node)];
                let incarnation = answers.incarnations[&node];
                let role = Role::Required;
                slice.stream.add(now, node, incarnation, session, role);
                slice.stream.set_free_bytes(node, answers.free_bytes[&node]);
                lease_givers.insert(node);
            }
            self.slices.insert(slice);
        }
        lease_givers.remove(&self.context.node());
        for node in lease_givers {
            if !self.leases.is_alive(now, node) {
                self.renew_lease_apart(node);
            }
        }
        // What has become of the new copies since they were set up is acted on.
        self.resyncs.look_again();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn draft() -> Draft {
        let slices = BTreeMap::from([(7, vec![A, B]), (9, vec![B, C])]);
        Draft { slices }
    }

    fn begun(answers: &[(NodeId, &[u32])]) -> BTreeMap<NodeId, BTreeSet<u32>> {
        let set = |slices: &[u32]| slices.iter().copied().collect();
        answers.iter().map(|(node, s)| (*node, set(s))).collect()
    }

    fn placed(index: u32, nodes: &[NodeId]) -> PlacedSlice {
        let nodes = nodes.to_vec();
        PlacedSlice { index, nodes }
    }

    #[test]
    fn a_node_is_asked_once_for_all_its_copies() {
        let asked = draft().by_node();
        assert_eq!(asked[&B], [7, 9]);
        assert_eq!((asked[&A].len(), asked[&C].len()), (1, 1));
    }

    #[test]
    fn slices_are_placed_on_the_nodes_that_set_them_up() {
        let all = begun(&[(A, &[7]), (B, &[7, 9]), (C, &[9])]);
        assert!(draft().failing(&all).is_empty());
        let both = vec![placed(7, &[A, B]), placed(9, &[B, C])];
        assert_eq!(draft().placed(&all), Some(both));
        let some = begun(&[(A, &[7]), (B, &[9])]);
        assert_eq!(draft().failing(&some), BTreeSet::from([B, C]));
        let fewer = vec![placed(7, &[A]), placed(9, &[B])];
        assert_eq!(draft().placed(&some), Some(fewer));
    }

    #[test]
    fn without_any_copy_a_slice_is_not_placed() {
        assert_eq!(draft().placed(&begun(&[(A, &[7])])), None);
        assert_eq!(draft().placed(&BTreeMap::new()), None);
    }

    #[test]
    fn what_is_wanted_while_a_round_goes_on_waits_for_the_next_one() {
        let placing = Placing::default();
        assert!(placing.next().now_or_never().is_none());
        placing.want(3);
        let first = placing.next().now_or_never().expect("wanted");
        placing.want(3);
        placing.want(4);
        placing.end(&first);
        assert_eq!(placing.next().now_or_never(), Some(BTreeSet::from([4])));
        for index in 0..1000 {
            placing.want(index);
        }
        let round = placing.next().now_or_never().expect("wanted");
        assert_eq!(round.len(), PLACED_AT_ONCE);
    }

    #[test]
    fn what_cannot_be_placed_is_refused_to_who_waits_and_tried_anew_by_who_comes() {
        let placing = Placing::default();
        placing.want(3);
        let wanted = placing.next().now_or_never().expect("wanted");
        let waiting = Box::pin(placing.next_placed());
        placing.refuse(&wanted);
        assert!(waiting.now_or_never().is_some() && placing.is_refused(3));
        assert!(placing.next().now_or_never().is_none());
        placing.try_anew(3);
        assert!(!placing.is_refused(3));
    }

    #[test]
    fn whom_a_first_write_waits_for_is_said_with_its_beginning() {
        let at = |ms| Instant::default() + Duration::from_millis(ms);
        let placing = Placing::default();
        assert_eq!(placing.waiting(), None);
        let nodes = WaitReason::Placement(BTreeSet::from([A]));
        placing.note_waiting(at(5), nodes);
        placing.note_waiting(at(9), WaitReason::PlacementAgreement);
        let waiting = placing.waiting().expect("a round failed");
        assert_eq!(waiting.since, at(5));
        assert_eq!(waiting.reason, WaitReason::PlacementAgreement);
        placing.end(&BTreeSet::new());
        assert_eq!(placing.waiting(), None);
    }
}
