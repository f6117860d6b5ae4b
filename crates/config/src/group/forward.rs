//! Proposals and read barriers from any node: [`Service::Config`] requests to the leader.
//!
//! A proposal is sent again after every failure, to whoever leads then, until its time is up:
//! its key makes that safe. A read barrier asks the leader for an index and waits until this
//! node has applied it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

use futures::FutureExt;
use holdfast_runtime::{Frame, Instant, NodeId, Rpc, Runtime, Service};
use openraft::error::{CheckIsLeaderError, RaftError};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::batch::{Batcher, Written};
use super::error::{BarrierError, ProposeError};
use super::network::{decode, encode};
use super::pulse::{Pulse, Timing};
use super::shell::View;
use super::types::{Applied, Machine, Proposal, ProposalKey, Raft};

/// Proposals of one node on their way at a time: bounds the table that recognises repetitions.
const PROPOSALS_MAX: usize = 256;

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
enum Request<M: Machine> {
    /// Appends the proposal, and answers when it is applied or `limit_ms` have passed.
    Propose {
        proposal: Proposal<M::Change>,
        limit_ms: u64,
    },
    /// Confirms that the receiver leads, and answers with what was committed by then.
    ReadIndex,
}

#[derive(Serialize, Deserialize)]
#[serde(bound = "")]
enum Response<M: Machine> {
    /// The proposal was applied at the index.
    Applied(u64, Applied<M::Outcome>),
    /// Everything up to the index counts.
    ReadIndex(u64),
    /// The receiver does not lead, or not for long enough, or has stopped. Asking the leader
    /// (again) is safe.
    NotNow,
}

/// Sends this node's proposals, and takes those of others when this node leads.
pub(super) struct Forwarder<M: Machine> {
    pub(super) runtime: Runtime,
    pub(super) rpc: Rc<Rpc>,
    pub(super) raft: Raft<M>,
    pub(super) batcher: Rc<Batcher<M>>,
    pub(super) view: Rc<View<M>>,
    pub(super) pulse: Rc<Pulse>,
    pub(super) timing: Timing,
    pub(super) change_bytes_max: usize,
    pub(super) numbers: Numbers,
    /// The index of the last entry of the log when this start began.
    pub(super) log_end_at_start: u64,
}

/// The numbers of this start's proposals.
pub(super) struct Numbers {
    next: Cell<u64>,
    waiting: RefCell<BTreeSet<u64>>,
    places: Semaphore,
}

impl Numbers {
    pub(super) fn new() -> Self {
        Self {
            next: Cell::new(1),
            waiting: RefCell::default(),
            places: Semaphore::new(PROPOSALS_MAX),
        }
    }

    fn take(&self) -> Waiting<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.waiting.borrow_mut().insert(number);
        Waiting {
            numbers: self,
            number,
        }
    }

    fn settled_below(&self) -> u64 {
        self.waiting
            .borrow()
            .first()
            .copied()
            .unwrap_or(self.next.get())
    }
}

/// Somebody waits for the outcome of this proposal.
struct Waiting<'a> {
    numbers: &'a Numbers,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.numbers.waiting.borrow_mut().remove(&self.number);
    }
}

/// What one attempt came to.
enum Attempt<T> {
    Done(T),
    Stopped,
    Again,
}

impl<M: Machine> Forwarder<M> {
    /// See [`super::ConfigGroup::propose`].
    pub(super) async fn propose(
        &self,
        change: M::Change,
        limit: Duration,
    ) -> Result<M::Outcome, ProposeError> {
        let bytes = encode(&change).len();
        if bytes > self.change_bytes_max {
            return Err(ProposeError::TooLarge {
                bytes,
                limit: self.change_bytes_max,
            });
        }
        let deadline = self.runtime.now() + limit;
        let proposing = async {
            let _place = self.numbers.places.acquire().await.expect("never closed");
            let waiting = self.numbers.take();
            let key = ProposalKey {
                node: self.rpc.local_node(),
                incarnation: self.rpc.local_incarnation(),
                number: waiting.number,
            };
            loop {
                if self.has_stopped() {
                    return Err(ProposeError::Stopped);
                }
                let settled_below = self.numbers.settled_below();
                let proposal = Proposal {
                    key,
                    settled_below,
                    change: change.clone(),
                };
                let leader = self.leader();
                match self.propose_once(leader, proposal, deadline).await {
                    Attempt::Done((index, Applied::Outcome(outcome))) => {
                        return Ok((index, outcome));
                    }
                    Attempt::Done((_, Applied::Superseded)) => {
                        return Err(ProposeError::Superseded);
                    }
                    Attempt::Stopped => return Err(ProposeError::Stopped),
                    Attempt::Again => self.wait_for_leader(leader).await,
                }
            }
        };
        let Some(result) = self.runtime.timeout(limit, proposing).await else {
            return Err(ProposeError::TimedOut {
                limit,
                leader: self.leader(),
            });
        };
        let (index, outcome) = result?;
        // The proposer reads what it has written. If this node lags that far behind, the answer
        // would contradict its own state: then the outcome counts as not known.
        let rest = deadline.saturating_since(self.runtime.now());
        match self.runtime.timeout(rest, self.wait_applied(index)).await {
            Some(_) => Ok(outcome),
            None => Err(ProposeError::TimedOut {
                limit,
                leader: self.leader(),
            }),
        }
    }

    /// See [`super::ConfigGroup::read_barrier`].
    pub(super) async fn read_barrier(&self, limit: Duration) -> Result<(), BarrierError> {
        let reading = async {
            loop {
                if self.has_stopped() {
                    return Err(BarrierError::Stopped);
                }
                let leader = self.leader();
                match self.read_index_once(leader).await {
                    Attempt::Done(index) => {
                        self.wait_applied(index).await;
                        return Ok(());
                    }
                    Attempt::Stopped => return Err(BarrierError::Stopped),
                    Attempt::Again => self.wait_for_leader(leader).await,
                }
            }
        };
        let result = self.runtime.timeout(limit, reading).await;
        result.unwrap_or_else(|| {
            Err(BarrierError::TimedOut {
                limit,
                leader: self.leader(),
            })
        })
    }

    /// The leader as far as this node knows; none if this node is one without a quorum.
    pub(super) fn leader(&self) -> Option<NodeId> {
        let leader = self.raft.server_metrics().borrow().current_leader?;
        let deposed = leader == self.rpc.local_node() && self.pulse.is_cut_off();
        (!deposed).then_some(leader)
    }

    /// Takes the requests of [`Service::Config`] from now on, for as long as `forwarder` lives.
    pub(super) fn serve(forwarder: &Rc<Self>) {
        let weak: Weak<Self> = Rc::downgrade(forwarder);
        forwarder.rpc.serve(Service::Config, move |incoming| {
            let forwarder = weak.upgrade();
            async move {
                let request: Request<M> = decode(&incoming.frame.header)?;
                let response = match forwarder {
                    Some(forwarder) => forwarder.answer(request).await,
                    None => Response::NotNow,
                };
                Some(Frame::new(encode(&response)))
            }
            .boxed_local()
        });
    }

    async fn answer(&self, request: Request<M>) -> Response<M> {
        match request {
            Request::Propose { proposal, limit_ms } => {
                let deadline = self.runtime.now() + Duration::from_millis(limit_ms);
                match self.propose_here(proposal, deadline).await {
                    Attempt::Done((index, applied)) => Response::Applied(index, applied),
                    Attempt::Stopped | Attempt::Again => Response::NotNow,
                }
            }
            Request::ReadIndex => match self.read_index_here().await {
                Attempt::Done(index) => Response::ReadIndex(index),
                Attempt::Stopped | Attempt::Again => Response::NotNow,
            },
        }
    }

    async fn propose_once(
        &self,
        leader: Option<NodeId>,
        proposal: Proposal<M::Change>,
        deadline: Instant,
    ) -> Attempt<(u64, Applied<M::Outcome>)> {
        let Some(leader) = leader else {
            return Attempt::Again;
        };
        if leader == self.rpc.local_node() {
            return self.propose_here(proposal, deadline).await;
        }
        let rest = deadline.saturating_since(self.runtime.now());
        let limit = rest.min(self.attempt_limit());
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let request = Request::<M>::Propose { proposal, limit_ms };
        match self.ask(leader, &request, limit).await {
            Some(Response::Applied(index, applied)) => Attempt::Done((index, applied)),
            Some(Response::ReadIndex(_) | Response::NotNow) | None => Attempt::Again,
        }
    }

    async fn read_index_once(&self, leader: Option<NodeId>) -> Attempt<u64> {
        let Some(leader) = leader else {
            return Attempt::Again;
        };
        if leader == self.rpc.local_node() {
            return self.read_index_here().await;
        }
        match self
            .ask(leader, &Request::ReadIndex, self.attempt_limit())
            .await
        {
            Some(Response::ReadIndex(index)) => Attempt::Done(index),
            Some(Response::Applied(..) | Response::NotNow) | None => Attempt::Again,
        }
    }

    async fn ask(
        &self,
        leader: NodeId,
        request: &Request<M>,
        limit: Duration,
    ) -> Option<Response<M>> {
        let frame = Frame::new(encode(request));
        let mut metrics = self.raft.server_metrics();
        // A successor is known long before the time limit of a silent leader has passed.
        tokio::select! {
            biased;
            answer = self.rpc.call(leader, Service::Config, frame, limit) => {
                decode(&answer.ok()?.header)
            }
            _replaced = metrics.wait_for(|metrics| {
                metrics.current_leader.is_some_and(|current| current != leader)
            }) => None,
        }
    }

    /// How long one attempt may take before the leader is taken for lost: longer than an
    /// election, so that a healthy leader is not asked twice.
    fn attempt_limit(&self) -> Duration {
        self.timing.election_most * 3 / 2
    }

    /// A core that has ended applies nothing more: whatever this node asked for, it would never
    /// learn of.
    fn has_stopped(&self) -> bool {
        self.raft.metrics().borrow().running_state.is_err()
    }

    async fn propose_here(
        &self,
        proposal: Proposal<M::Change>,
        deadline: Instant,
    ) -> Attempt<(u64, Applied<M::Outcome>)> {
        let written = self.batcher.write(proposal);
        tokio::select! {
            biased;
            written = written => match written {
                Ok(Written::Applied(index, applied)) => Attempt::Done((index, applied)),
                Ok(Written::Again) => Attempt::Again,
                Ok(Written::Stopped) | Err(_) => Attempt::Stopped,
            },
            () = self.runtime.sleep_until(deadline) => Attempt::Again,
        }
    }

    async fn read_index_here(&self) -> Attempt<u64> {
        match self.raft.get_read_log_id().await {
            Ok((read, _applied)) => {
                // A leader that restarts goes on in the same term, and does not know how much of
                // its log was committed: all that was answered is in there.
                let read = read.map_or(0, |read| read.index);
                Attempt::Done(read.max(self.log_end_at_start))
            }
            Err(RaftError::APIError(
                CheckIsLeaderError::ForwardToLeader(_) | CheckIsLeaderError::QuorumNotEnough(_),
            )) => Attempt::Again,
            Err(RaftError::Fatal(_)) => Attempt::Stopped,
        }
    }

    async fn wait_applied(&self, index: u64) {
        let mut applied = self.view.watch();
        // The sender lives in `self.view`.
        let _ = applied.wait_for(|applied| *applied >= index).await;
    }

    /// After a failed attempt with `leader`: until another leads, but at least a moment, and not
    /// much longer, as the failure may have been a lost message.
    async fn wait_for_leader(&self, leader: Option<NodeId>) {
        self.runtime.sleep(self.timing.heartbeat / 40).await;
        let mut metrics = self.raft.server_metrics();
        let changed = metrics.wait_for(|metrics| {
            metrics.current_leader.is_some() && metrics.current_leader != leader
        });
        let _ = self
            .runtime
            .timeout(self.timing.heartbeat / 2, changed)
            .await;
    }
}
