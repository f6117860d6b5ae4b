//! The replicated state machine around a [`Machine`]: applies committed entries in order, at
//! most once per proposal, and tells watchers.
//!
//! Invariant: the state, the table of proposals and the position in the log change together, and
//! a snapshot holds all three.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{Incarnation, NodeId, ambient};
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, RaftSnapshotBuilder, StorageIOError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::yield_now;

use super::data::{Builder as DataBuilder, Reader, SnapshotData};
use super::store::{LogBounds, Store};
use super::types::{
    Applied, Entry, LogId, Machine, Proposal, ProposalKey, Snapshot, SnapshotMeta, StorageError,
    StoredMembership, Types,
};
use crate::state::Progress;

/// Longest time for which entries are applied before others have the thread. One entry takes what
/// it takes, see `crates/config/examples/apply_cost.rs`.
const APPLY_MAX: Duration = Duration::from_millis(2);

/// What the rest of the node sees of the applied state.
pub(super) struct View<M> {
    state: RefCell<Rc<M>>,
    applied: watch::Sender<u64>,
    /// The log has grown enough for a snapshot.
    pub(super) log_is_long: Notify,
}

impl<M: Machine> View<M> {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::default(),
            applied: watch::Sender::new(0),
            log_is_long: Notify::new(),
        })
    }

    /// The last applied state.
    pub(super) fn state(&self) -> Rc<M> {
        self.state.borrow().clone()
    }

    /// The index of the last applied entry.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    fn publish(&self, state: Rc<M>, applied: u64) {
        *self.state.borrow_mut() = state;
        self.applied.send_replace(applied);
    }
}

/// The state machine as openraft drives it.
pub(super) struct Shell<M: Machine> {
    body: Body<M>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    view: Rc<View<M>>,
    store: Store<M>,
    log_bounds: LogBounds,
}

#[derive(Clone)]
struct Body<M: Machine> {
    state: Rc<M>,
    sessions: Sessions<M::Outcome>,
}

/// The proposals whose repetition must be recognised, by proposing node.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Sessions<O>(BTreeMap<NodeId, Session<O>>);

/// The proposals of one start of one node.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Session<O> {
    incarnation: Incarnation,
    settled_below: u64,
    outcomes: BTreeMap<u64, O>,
}

/// Whether a proposal is to be applied.
enum Admission<O> {
    Apply,
    Repeated(O),
    Superseded,
}

impl<M: Machine> Shell<M> {
    /// Takes up where the durable snapshot ends.
    pub(super) async fn recover(
        store: Store<M>,
        view: Rc<View<M>>,
        log_bounds: LogBounds,
    ) -> Result<Self, StorageError> {
        let mut shell = Self {
            body: Body {
                state: Rc::default(),
                sessions: Sessions(BTreeMap::new()),
            },
            last_applied: None,
            membership: StoredMembership::default(),
            view,
            store,
            log_bounds,
        };
        if let Some(snapshot) = shell.store.snapshot() {
            let body = decode_body(&snapshot.snapshot).await?;
            shell.load(&snapshot.meta, body);
        }
        Ok(shell)
    }

    fn load(&mut self, meta: &SnapshotMeta, body: Body<M>) {
        self.body = body;
        self.last_applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.publish();
    }

    fn publish(&self) {
        let applied = self.last_applied.map_or(0, |last| last.index);
        self.view.publish(self.body.state.clone(), applied);
    }

    fn apply_proposal(&mut self, proposal: Proposal<M::Change>) -> Applied<M::Outcome> {
        match self
            .body
            .sessions
            .admit(proposal.key, proposal.settled_below)
        {
            Admission::Superseded => Applied::Superseded,
            Admission::Repeated(outcome) => Applied::Outcome(outcome),
            Admission::Apply => {
                let outcome = Rc::make_mut(&mut self.body.state).apply(proposal.change);
                self.body.sessions.record(proposal.key, outcome.clone());
                Applied::Outcome(outcome)
            }
        }
    }
}

impl<O: Clone> Sessions<O> {
    fn admit(&mut self, key: ProposalKey, settled_below: u64) -> Admission<O> {
        let session = self
            .0
            .entry(key.node)
            .or_insert_with(|| Session::new(key.incarnation));
        if key.incarnation > session.incarnation {
            *session = Session::new(key.incarnation);
        }
        if key.incarnation < session.incarnation || key.number < session.settled_below {
            return Admission::Superseded;
        }
        if settled_below > session.settled_below {
            session.settled_below = settled_below;
            session.outcomes = session.outcomes.split_off(&settled_below);
        }
        match session.outcomes.get(&key.number) {
            Some(outcome) => Admission::Repeated(outcome.clone()),
            None => Admission::Apply,
        }
    }

    fn record(&mut self, key: ProposalKey, outcome: O) {
        let session = self.0.get_mut(&key.node).expect("admitted just before");
        session.outcomes.insert(key.number, outcome);
    }
}

impl<O> Session<O> {
    fn new(incarnation: Incarnation) -> Self {
        Self {
            incarnation,
            settled_below: 0,
            outcomes: BTreeMap::new(),
        }
    }
}

/// Formats of a snapshot's data: the state as one value and the sessions; the same with the
/// supplement of the state behind them; the sessions and the state in pieces. Only the last one
/// is written.
const FIRST_FORMAT: u8 = 1;
const SUPPLEMENTED_FORMAT: u8 = 2;
const PIECES_FORMAT: u8 = 3;

/// Lets others have the thread between two pieces: see [`Machine::pieces`].
async fn encode_body<M: Machine>(body: &Body<M>) -> SnapshotData {
    let mut data = DataBuilder::default();
    let sessions = postcard::to_extend(&body.sessions, vec![PIECES_FORMAT]);
    data.put(&sessions.expect("plain data always encodes"));
    for piece in body.state.pieces() {
        data.put(&piece);
        yield_now().await;
    }
    data.finish()
}

async fn decode_body<M: Machine>(data: &SnapshotData) -> Result<Body<M>, StorageError> {
    let format = data.chunks().first().and_then(|chunk| chunk.first());
    let body = match format {
        Some(&FIRST_FORMAT) => decode_first(&data.whole()[1..])
            .filter(|(_, rest)| rest.is_empty())
            .map(|(body, _)| body),
        Some(&SUPPLEMENTED_FORMAT) => {
            decode_first::<M>(&data.whole()[1..]).and_then(|(mut body, rest)| {
                Rc::make_mut(&mut body.state).supply(rest).then_some(body)
            })
        }
        Some(&PIECES_FORMAT) => decode_pieces(data).await,
        Some(_) | None => None,
    };
    body.ok_or_else(|| {
        let what = AnyError::error("a snapshot that is damaged or of an unknown format");
        StorageIOError::read_snapshot(None, what).into()
    })
}

fn decode_first<M: Machine>(bytes: &[u8]) -> Option<(Body<M>, &[u8])> {
    let (state, rest) = M::read_first(bytes)?;
    let (sessions, rest) = postcard::take_from_bytes(rest).ok()?;
    let state = Rc::new(state);
    Some((Body { state, sessions }, rest))
}

async fn decode_pieces<M: Machine>(data: &SnapshotData) -> Option<Body<M>> {
    let mut reader = Reader::new(data);
    reader.next(|bytes| postcard::take_from_bytes::<u8>(bytes).ok())?;
    let sessions = reader.next(|bytes| postcard::take_from_bytes(bytes).ok())?;
    let mut state = M::default();
    while reader.next(|bytes| state.take_up(bytes))? == Progress::More {
        yield_now().await;
    }
    let state = Rc::new(state);
    reader.is_at_end().then_some(Body { state, sessions })
}

/// Writes down one moment of the state machine.
pub(super) struct Builder<M: Machine> {
    body: Body<M>,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    store: Store<M>,
}

impl<M: Machine> RaftSnapshotBuilder<Types<M>> for Builder<M> {
    async fn build_snapshot(&mut self) -> Result<Snapshot<M>, StorageError> {
        reach::note(Row::ConfigSnapshot);
        let data = encode_body(&self.body).await;
        let meta = SnapshotMeta {
            last_log_id: self.last_applied,
            last_membership: self.membership.clone(),
            snapshot_id: self
                .last_applied
                .map_or_else(String::new, |last| last.to_string()),
        };
        self.store.save_snapshot(meta.clone(), data.clone()).await?;
        Ok(Snapshot::<M> {
            meta,
            snapshot: Box::new(data),
        })
    }
}

impl<M: Machine> RaftStateMachine<Types<M>> for Shell<M> {
    type SnapshotBuilder = Builder<M>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.last_applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Vec<Applied<M::Outcome>>>, StorageError>
    where
        I: IntoIterator<Item = Entry<M>>,
    {
        let mut answers = Vec::new();
        let mut began = ambient::current().now();
        for entry in entries {
            // Nobody sees the state before all of them are applied.
            let now = ambient::current().now();
            if now.saturating_since(began) > APPLY_MAX {
                yield_now().await;
                began = ambient::current().now();
            }
            self.last_applied = Some(entry.log_id);
            answers.push(match entry.payload {
                EntryPayload::Blank => Vec::new(),
                EntryPayload::Normal(proposals) => {
                    let proposals = proposals.0.into_iter();
                    proposals.map(|one| self.apply_proposal(one)).collect()
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Vec::new()
                }
            });
        }
        self.publish();
        let applied = self.last_applied.map_or(0, |last| last.index);
        if self.store.is_long(applied, self.log_bounds) {
            self.view.log_is_long.notify_one();
        }
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder {
            body: self.body.clone(),
            last_applied: self.last_applied,
            membership: self.membership.clone(),
            store: self.store.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotData>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotData>,
    ) -> Result<(), StorageError> {
        reach::note(Row::ConfigInstalled);
        let body = decode_body(&snapshot).await?;
        self.store.save_snapshot(meta.clone(), *snapshot).await?;
        self.load(meta, body);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<M>>, StorageError> {
        Ok(self.store.snapshot())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::state::ClusterState;

    fn encoded(body: &Body<ClusterState>) -> Bytes {
        futures::executor::block_on(encode_body(body)).whole()
    }

    #[expect(
        clippy::result_large_err,
        reason = "openraft's error, as its traits want it"
    )]
    fn decoded(data: &[u8]) -> Result<Body<ClusterState>, StorageError> {
        let data = SnapshotData::of(Bytes::copy_from_slice(data));
        futures::executor::block_on(decode_body(&data))
    }

    #[test]
    fn snapshots_of_every_format_are_read_and_the_newest_is_written() {
        let old: [&[u8]; 2] = [
            include_bytes!("../../fixtures/snapshot-1.bin"),
            include_bytes!("../../fixtures/snapshot-2.bin"),
        ];
        for data in old {
            let read = decoded(data).expect("a snapshot");
            assert_eq!(read.sessions.0[&NodeId(1)].outcomes.len(), 3);
            let written = encoded(&read);
            assert_eq!(written[0], PIECES_FORMAT);
            let again = decoded(&written).expect("a snapshot");
            assert_eq!(again.state, read.state);
            assert_eq!(encoded(&again), written);
            again.state.check();
            for end in 0..written.len() {
                assert!(decoded(&written[..end]).is_err());
            }
            let longer = [&written[..], &[0]].concat();
            assert!(decoded(&longer).is_err());
        }
        assert!(decoded(&[4, 0]).is_err());
    }
}
