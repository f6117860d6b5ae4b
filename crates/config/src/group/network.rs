//! Raft messages between nodes: [`Service::Raft`] requests, encoded as
//! `version u8, postcard(Request)` in the frame's header; a snapshot's data is its payload. One of
//! several chunks goes chunk by chunk: what has arrived stays there, and a later attempt goes on
//! behind it.
//!
//! A request to a peer without a link fails at once and makes openraft wait before the next
//! ([`RaftNetwork::backoff`]); so does an answer that makes no sense, or none because the peer's
//! group is stopping. Only a missed time limit is repeated without a pause, because it was one.
//!
//! Invariant: entries leave only in the name of the vote under which they were read. openraft
//! 0.9 leaves the replication tasks of a deposed leader alive; one that wakes from its pause
//! would read the entries of the *new* leader from the log and send them behind a previous entry
//! of the old term, which the new leader may have replaced: a follower that knows only the old
//! term would take them, and its log would no longer be a prefix of anybody's.

use std::cell::RefCell;
use std::future::Future;
use std::rc::{Rc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use holdfast_runtime::{Frame, NodeId, Rpc, RpcError, Service};
use openraft::error::{
    Fatal, RPCError, RaftError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::metrics::RaftServerMetrics;
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EmptyNode, RPCTypes, RaftNetwork, RaftNetworkFactory};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;

use super::HALF_BYTES_MAX;
use super::data::{CHUNK_BYTES, SnapshotData};
use super::election::{Verdict, judge};
use super::pulse::Pulse;
use super::store::Store;
use super::types::{LogId, Machine, Raft, Snapshot, SnapshotMeta, Types, Vote};

/// Version of the group's messages.
const VERSION: u8 = 1;
/// Pauses before the next attempt to reach a peer: the first ones fit a link that flaps, the
/// last one bounds how long a returned peer waits to be noticed.
const BACKOFF_MS: [u64; 3] = [50, 100, 200];
/// How long a peer may take for a snapshot at first. A peer that has just been started does not
/// answer yet; a slow one is given twice the time after each limit it missed, up to openraft's.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(1);

/// Most chunks of a snapshot that are taken: as much as a config log can hold.
const CHUNKS_MAX: u32 = (HALF_BYTES_MAX / CHUNK_BYTES as u64) as u32;

/// A request of one group member to another.
#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) enum Request<M: Machine> {
    Append(AppendEntriesRequest<Types<M>>),
    Vote(VoteRequest<NodeId>),
    /// The data is the frame's payload.
    Snapshot {
        vote: Vote,
        meta: SnapshotMeta,
    },
    /// Would the receiver vote for the sender, whose log ends here? Changes nothing.
    Probe {
        last_log_id: Option<LogId>,
    },
    /// One chunk of a snapshot is the frame's payload.
    SnapshotChunk {
        vote: Vote,
        meta: SnapshotMeta,
        chunk: u32,
        chunks: u32,
    },
}

/// The answer to a [`Request`].
#[derive(Serialize, Deserialize)]
pub(super) enum Response {
    Append(AppendEntriesResponse<NodeId>),
    Vote(VoteResponse<NodeId>),
    Snapshot(SnapshotResponse<NodeId>),
    Probe(Verdict),
    /// The receiver's group has stopped.
    Stopped,
    /// No leader sends such a request.
    Malformed,
    /// The chunk of the snapshot that is to be sent next.
    Wants {
        chunk: u32,
    },
}

/// Why a peer could not be asked. What it has done meanwhile is unknown.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum PeerError {
    #[error(transparent)]
    Rpc(#[from] RpcError),
    #[error("the peer's answer is not understood")]
    Malformed,
    #[error("the peer's group has stopped")]
    Stopped,
    #[error("this leader has lost its quorum and keeps silent")]
    CutOff,
    #[error("this node does not lead by that vote any more")]
    Deposed,
}

/// Sends a request and decodes its answer.
pub(super) async fn ask<M: Machine>(
    rpc: &Rpc,
    target: NodeId,
    request: &Request<M>,
    payload: Bytes,
    limit: Duration,
) -> Result<Response, PeerError> {
    let frame = Frame::with_payload(encode(request), payload);
    let answer = rpc.call(target, Service::Raft, frame, limit).await?;
    match decode(&answer.header) {
        None | Some(Response::Malformed) => Err(PeerError::Malformed),
        Some(Response::Stopped) => Err(PeerError::Stopped),
        Some(response) => Ok(response),
    }
}

/// `version u8, postcard(message)`.
pub(super) fn encode<T: Serialize>(message: &T) -> Bytes {
    let bytes = postcard::to_extend(message, vec![VERSION]);
    Bytes::from(bytes.expect("plain data always encodes"))
}

/// `None` for a message of another version or a damaged one.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, message) = bytes.split_first()?;
    if *version != VERSION {
        return None;
    }
    postcard::from_bytes(message).ok()
}

/// Makes clients for peers.
pub(super) struct Network<M: Machine> {
    pub(super) rpc: Rc<Rpc>,
    pub(super) pulse: Rc<Pulse>,
    pub(super) store: Store<M>,
}

/// Sends Raft's requests to one peer.
pub(super) struct Client<M: Machine> {
    rpc: Rc<Rpc>,
    pulse: Rc<Pulse>,
    store: Store<M>,
    target: NodeId,
    snapshot_patience: Duration,
}

impl<M: Machine> RaftNetworkFactory<Types<M>> for Network<M> {
    type Network = Client<M>;

    async fn new_client(&mut self, target: NodeId, _node: &EmptyNode) -> Client<M> {
        let (rpc, pulse) = (self.rpc.clone(), self.pulse.clone());
        Client {
            rpc,
            pulse,
            store: self.store.clone(),
            target,
            snapshot_patience: SNAPSHOT_PATIENCE,
        }
    }
}

type AnyRpcError = RPCError<NodeId, EmptyNode, RaftError<NodeId>>;

impl<M: Machine> Client<M> {
    /// Whether this node may speak as the leader that `vote` made it. The entries of a request
    /// were read in this same poll, and the store saves a vote before it changes the log for it:
    /// so a stored vote that is still this leader's proves that the entries are.
    fn check_leading(&self, vote: &Vote) -> Result<(), PeerError> {
        if self
            .store
            .vote()
            .is_none_or(|stored| stored.leader_id() != vote.leader_id())
        {
            return Err(PeerError::Deposed);
        }
        if self.pulse.may_speak_to(self.target) {
            Ok(())
        } else {
            Err(PeerError::CutOff)
        }
    }

    /// Sends all of it, or what the receiver lacks.
    async fn send_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<M>,
        install_max: Duration,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<Types<M>, Fatal<NodeId>>> {
        let Snapshot::<M> { meta, snapshot } = snapshot;
        let data = snapshot.chunks();
        let chunks = data.len() as u32;
        let (mut chunk, mut sent) = (0, 0);
        loop {
            if let Err(error) = self.check_leading(&vote) {
                return Err(Unreachable::new(&error).into());
            }
            let payload = data.get(chunk as usize).cloned().unwrap_or_default();
            let meta = meta.clone();
            let request = match chunks {
                0 | 1 => Request::<M>::Snapshot { vote, meta },
                _ => Request::SnapshotChunk {
                    vote,
                    meta,
                    chunk,
                    chunks,
                },
            };
            // Who has answered already needs no patience, but time to take it all up.
            let limit = match sent {
                0 => install_max.min(self.snapshot_patience),
                _ => install_max,
            };
            match ask(&self.rpc, self.target, &request, payload, limit).await {
                Ok(Response::Snapshot(response)) => {
                    self.snapshot_patience = SNAPSHOT_PATIENCE;
                    return Ok(response);
                }
                Ok(Response::Wants { chunk: wanted }) if wanted < chunks && sent <= 2 * chunks => {
                    (chunk, sent) = (wanted, sent + 1);
                }
                Ok(_other) => return Err(Unreachable::new(&PeerError::Malformed).into()),
                Err(PeerError::Rpc(RpcError::TimedOut)) => {
                    self.snapshot_patience = 2 * limit;
                    return Err(self.timed_out(RPCTypes::InstallSnapshot, limit).into());
                }
                Err(error) => return Err(Unreachable::new(&error).into()),
            }
        }
    }

    fn rpc_error(&self, action: RPCTypes, limit: Duration, error: PeerError) -> AnyRpcError {
        match error {
            PeerError::Rpc(RpcError::TimedOut) => RPCError::Timeout(self.timed_out(action, limit)),
            PeerError::Rpc(RpcError::LinkDown)
            | PeerError::Malformed
            | PeerError::Stopped
            | PeerError::CutOff
            | PeerError::Deposed => RPCError::Unreachable(Unreachable::new(&error)),
        }
    }

    fn timed_out(&self, action: RPCTypes, timeout: Duration) -> Timeout<NodeId> {
        Timeout {
            action,
            id: self.rpc.local_node(),
            target: self.target,
            timeout,
        }
    }
}

impl<M: Machine> RaftNetwork<Types<M>> for Client<M> {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types<M>>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, AnyRpcError> {
        // openraft's own limit is its heartbeat interval, which is none here.
        let limit = self.pulse.timing().heartbeat / 2;
        let action = RPCTypes::AppendEntries;
        if let Err(error) = self.check_leading(&rpc.vote) {
            return Err(self.rpc_error(action, limit, error));
        }
        let request = Request::<M>::Append(rpc);
        match ask(&self.rpc, self.target, &request, Bytes::new(), limit).await {
            Ok(Response::Append(response)) => Ok(response),
            Ok(_other) => Err(self.rpc_error(action, limit, PeerError::Malformed)),
            Err(error) => Err(self.rpc_error(action, limit, error)),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, AnyRpcError> {
        let limit = option.hard_ttl();
        let request = Request::<M>::Vote(rpc);
        match ask(&self.rpc, self.target, &request, Bytes::new(), limit).await {
            Ok(Response::Vote(response)) => Ok(response),
            Ok(_other) => Err(self.rpc_error(RPCTypes::Vote, limit, PeerError::Malformed)),
            Err(error) => Err(self.rpc_error(RPCTypes::Vote, limit, error)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<M>,
        cancel: impl Future<Output = ReplicationClosed> + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<NodeId>, StreamingError<Types<M>, Fatal<NodeId>>> {
        let mut sending =
            std::pin::pin!(self.send_snapshot(vote, snapshot, option.hard_ttl()).fuse());
        let mut cancel = std::pin::pin!(cancel.fuse());
        futures::select_biased! {
            sent = sending => sent,
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    fn backoff(&self) -> Backoff {
        let last = BACKOFF_MS[BACKOFF_MS.len() - 1];
        let pauses = BACKOFF_MS.into_iter().chain(std::iter::repeat(last));
        Backoff::new(pauses.map(Duration::from_millis))
    }
}

impl Arriving {
    /// Whether chunks of both make one snapshot.
    fn is_same(&self, other: &Self) -> bool {
        (self.vote, &self.meta, self.expected) == (other.vote, &other.meta, other.expected)
    }

    /// Keeps a chunk in its place, and gives all of them with the last one. An error is the one
    /// that is wanted next.
    fn take(
        place: &RefCell<Option<Self>>,
        expected: Self,
        chunk: u32,
        payload: Bytes,
    ) -> Result<Self, u32> {
        let mut arriving = match place.borrow_mut().take() {
            Some(arriving) if arriving.is_same(&expected) => arriving,
            Some(_) | None => expected,
        };
        if arriving.chunks.len() == chunk as usize {
            arriving.chunks.push(payload);
        }
        let wanted = arriving.chunks.len() as u32;
        if wanted == arriving.expected {
            return Ok(arriving);
        }
        *place.borrow_mut() = Some(arriving);
        Err(wanted)
    }
}

/// Answers the requests of other members.
pub(super) struct Server<M: Machine> {
    pub(super) raft: Raft<M>,
    pub(super) pulse: Rc<Pulse>,
    pub(super) metrics: watch::Receiver<RaftServerMetrics<NodeId, EmptyNode>>,
    pub(super) arriving: RefCell<Option<Arriving>>,
}

/// The first chunks of a snapshot of which others are to come.
pub(super) struct Arriving {
    vote: Vote,
    meta: SnapshotMeta,
    expected: u32,
    chunks: Vec<Bytes>,
}

impl<M: Machine> Server<M> {
    /// Takes the requests of [`Service::Raft`] from now on, for as long as `server` lives.
    pub(super) fn serve(server: &Rc<Self>, rpc: &Rpc) {
        let server: Weak<Self> = Rc::downgrade(server);
        rpc.serve(Service::Raft, move |incoming| {
            let server = server.upgrade();
            async move {
                let response = match (server, decode::<Request<M>>(&incoming.frame.header)) {
                    (None, _) => Response::Stopped,
                    (Some(_), None) => {
                        tracing::warn!(
                            from = %incoming.from,
                            "dropped a Raft request of an unknown version"
                        );
                        return None;
                    }
                    (Some(server), Some(request)) => {
                        server
                            .answer(incoming.from, request, incoming.frame.payload)
                            .await
                    }
                };
                Some(Frame::new(encode(&response)))
            }
            .boxed_local()
        });
    }

    async fn answer(&self, from: NodeId, request: Request<M>, payload: Bytes) -> Response {
        match request {
            Request::Append(request) => {
                let leader = request.vote.leader_id();
                if request
                    .entries
                    .iter()
                    .any(|entry| entry.log_id.leader_id > *leader)
                {
                    let vote = request.vote;
                    tracing::error!(%from, %vote, "refused a later leader's entries");
                    return Response::Malformed;
                }
                self.hear(&request.vote);
                match self.raft.append_entries(request).await {
                    Ok(response) => {
                        // openraft's lease counts from when it handled the message.
                        if !matches!(response, AppendEntriesResponse::HigherVote(_)) {
                            self.pulse.follow();
                        }
                        Response::Append(response)
                    }
                    Err(_stopped) => Response::Stopped,
                }
            }
            Request::Vote(request) => self
                .raft
                .vote(request)
                .await
                .map_or(Response::Stopped, Response::Vote),
            Request::Snapshot { vote, meta } => {
                self.hear(&vote);
                self.install(vote, meta, SnapshotData::of(payload)).await
            }
            Request::SnapshotChunk {
                vote,
                meta,
                chunk,
                chunks,
            } => {
                self.hear(&vote);
                let known = self.metrics.borrow().vote;
                if vote < known {
                    return Response::Snapshot(SnapshotResponse { vote: known });
                }
                if chunks > CHUNKS_MAX || payload.len() > CHUNK_BYTES {
                    return Response::Malformed;
                }
                let expected = Arriving {
                    vote,
                    meta,
                    expected: chunks,
                    chunks: Vec::new(),
                };
                match Arriving::take(&self.arriving, expected, chunk, payload) {
                    Err(wanted) => Response::Wants { chunk: wanted },
                    Ok(whole) => {
                        let data = SnapshotData::of_chunks(whole.chunks);
                        self.install(vote, whole.meta, data).await
                    }
                }
            }
            Request::Probe { last_log_id } => {
                let own = self.raft.data_metrics().borrow().last_log;
                let state = self.metrics.borrow().state;
                Response::Probe(judge(from, last_log_id, own, state, &self.pulse))
            }
        }
    }

    async fn install(&self, vote: Vote, meta: SnapshotMeta, data: SnapshotData) -> Response {
        let snapshot = Snapshot::<M> {
            meta,
            snapshot: Box::new(data),
        };
        let response = self.raft.install_full_snapshot(vote, snapshot).await;
        response.map_or(Response::Stopped, Response::Snapshot)
    }

    /// A leader's message has arrived; a deposed leader's counts for nothing.
    fn hear(&self, vote: &Vote) {
        if *vote >= self.metrics.borrow().vote {
            self.pulse.hear();
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    /// No chunk yet of a snapshot of three, up to this entry, sent by the leader of this term.
    fn nothing_of(term: u64, index: u64) -> Arriving {
        let leader = CommittedLeaderId::new(term, NodeId(1));
        let meta = SnapshotMeta {
            last_log_id: Some(LogId::new(leader, index)),
            ..SnapshotMeta::default()
        };
        Arriving {
            vote: Vote::new_committed(term, NodeId(1)),
            meta,
            expected: 3,
            chunks: Vec::new(),
        }
    }

    #[test]
    fn chunks_of_another_snapshot_or_leader_begin_anew_and_only_the_next_one_counts() {
        let place = RefCell::default();
        let take = |arriving, chunk: u32| {
            let payload = Bytes::from(vec![chunk as u8]);
            Arriving::take(&place, arriving, chunk, payload).map(|whole| whole.chunks.len())
        };
        assert_eq!(take(nothing_of(1, 10), 0), Err(1));
        assert_eq!(take(nothing_of(1, 10), 2), Err(1), "one was lost");
        assert_eq!(take(nothing_of(1, 10), 1), Err(2));
        assert_eq!(take(nothing_of(1, 11), 2), Err(0), "a newer one");
        assert_eq!(take(nothing_of(1, 11), 0), Err(1));
        assert_eq!(take(nothing_of(2, 11), 1), Err(0), "of another leader");
        for chunk in 0..2 {
            assert_eq!(take(nothing_of(2, 11), chunk), Err(chunk + 1));
            assert_eq!(take(nothing_of(2, 11), chunk), Err(chunk + 1), "twice");
        }
        assert_eq!(take(nothing_of(2, 11), 2), Ok(3));
    }
}
