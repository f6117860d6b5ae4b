//! What a leader is asked to write while it writes: one log entry for all of it.
//!
//! The core of openraft waits for the disk with each entry that is proposed to it, and sends no
//! heartbeat meanwhile: a thousand proposals that come together, as after a power cut, would
//! hold it up for so long that the others elect another leader. So at most one entry is under
//! way, and what arrives meanwhile goes into the next one.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use holdfast_runtime::reach::{self, Row};
use holdfast_runtime::{NodeId, Runtime};
use openraft::EmptyNode;
use openraft::error::ClientWriteError;
use openraft::metrics::RaftServerMetrics;
use tokio::sync::{oneshot, watch};

use super::network::encode;
use super::types::{Applied, Machine, Proposal, Proposals, Raft};

/// Most proposals of one entry: applying them must not hold the thread for long.
const PROPOSALS_MAX: usize = 64;

/// What became of a proposal.
pub(super) enum Written<O> {
    /// It is applied, at this index.
    Applied(u64, Applied<O>),
    /// Not known, or not now: this node may not lead any more.
    Again,
    /// The core has ended.
    Stopped,
}

struct Waiting<M: Machine> {
    proposal: Proposal<M::Change>,
    bytes: usize,
    answer: oneshot::Sender<Written<M::Outcome>>,
}

/// See the module's header.
pub(super) struct Batcher<M: Machine> {
    runtime: Runtime,
    raft: Raft<M>,
    node: NodeId,
    entry_bytes_max: usize,
    waiting: RefCell<VecDeque<Waiting<M>>>,
    writing: Cell<bool>,
}

impl<M: Machine> Batcher<M> {
    /// Of a node whose entries have at most `entry_bytes_max` bytes, or one proposal.
    pub(super) fn new(
        runtime: Runtime,
        raft: Raft<M>,
        node: NodeId,
        entry_bytes_max: usize,
    ) -> Rc<Self> {
        Rc::new(Self {
            runtime,
            raft,
            node,
            entry_bytes_max,
            waiting: RefCell::default(),
            writing: Cell::new(false),
        })
    }

    /// Has a proposal written, with the next entry.
    pub(super) fn write(
        self: &Rc<Self>,
        proposal: Proposal<M::Change>,
    ) -> oneshot::Receiver<Written<M::Outcome>> {
        let (answer, written) = oneshot::channel();
        let bytes = encode(&proposal).len();
        self.waiting.borrow_mut().push_back(Waiting {
            proposal,
            bytes,
            answer,
        });
        if !self.writing.replace(true) {
            let batcher = self.clone();
            self.runtime
                .spawn("config-batches", async move { batcher.run().await });
        }
        written
    }

    async fn run(&self) {
        loop {
            let batch = take(&mut self.waiting.borrow_mut(), self.entry_bytes_max);
            if batch.is_empty() {
                self.writing.set(false);
                return;
            }
            if batch.len() > 1 {
                reach::note(Row::ConfigBatch);
            }
            self.write_batch(batch).await;
        }
    }

    async fn write_batch(&self, batch: Vec<Waiting<M>>) {
        let (proposals, answers): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .map(|waiting| (waiting.proposal, waiting.answer))
            .unzip();
        let tell_all = |told: fn() -> Written<M::Outcome>, answers: Vec<_>| {
            for answer in answers {
                let answer: oneshot::Sender<Written<M::Outcome>> = answer;
                // Whoever asked may have given up.
                let _ = answer.send(told());
            }
        };
        let Ok(mut answer) = self.raft.client_write_ff(Proposals(proposals)).await else {
            return tell_all(|| Written::Stopped, answers);
        };
        let mut metrics = self.raft.server_metrics();
        // The entry of a leader that is cut off has no end: a deposed one's may be decided by
        // its successor, which a repetition finds out.
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(Ok(response)) => {
                        let index = response.log_id.index;
                        for (applied, answer) in response.data.into_iter().zip(answers) {
                            let _ = answer.send(Written::Applied(index, applied));
                        }
                    }
                    Ok(Err(
                        ClientWriteError::ForwardToLeader(_)
                        | ClientWriteError::ChangeMembershipError(_),
                    )) => tell_all(|| Written::Again, answers),
                    Err(_closed) => tell_all(|| Written::Stopped, answers),
                },
                changed = metrics.changed() => {
                    if changed.is_err() {
                        return tell_all(|| Written::Stopped, answers);
                    }
                    if !leads(&metrics, self.node) {
                        return tell_all(|| Written::Again, answers);
                    }
                }
            }
        }
    }
}

/// The proposals of the next entry. Those that nobody waits for any more are dropped.
fn take<M: Machine>(waiting: &mut VecDeque<Waiting<M>>, bytes_max: usize) -> Vec<Waiting<M>> {
    let mut batch: Vec<Waiting<M>> = Vec::new();
    let mut bytes = 0;
    while batch.len() < PROPOSALS_MAX {
        waiting.pop_front_if(|first| first.answer.is_closed());
        let fits = |first: &mut Waiting<M>| bytes == 0 || bytes + first.bytes <= bytes_max;
        let Some(next) = waiting.pop_front_if(fits) else {
            break;
        };
        if next.answer.is_closed() {
            continue;
        }
        bytes += next.bytes;
        batch.push(next);
    }
    batch
}

pub(super) fn leads(
    metrics: &watch::Receiver<RaftServerMetrics<NodeId, EmptyNode>>,
    node: NodeId,
) -> bool {
    metrics.borrow().current_leader == Some(node)
}

#[cfg(test)]
mod tests {
    use holdfast_runtime::Incarnation;

    use super::super::types::ProposalKey;
    use super::*;
    use crate::state::{Change, ClusterState};

    fn proposal(number: u64) -> Proposal<Change> {
        Proposal {
            key: ProposalKey {
                node: NodeId(3),
                incarnation: Incarnation(7),
                number,
            },
            settled_below: 2,
            change: Change::EndGrace {
                now_unix_ms: number,
            },
        }
    }

    type Answer = oneshot::Receiver<Written<crate::state::Outcome>>;

    fn queue(sizes: &[usize]) -> (VecDeque<Waiting<ClusterState>>, Vec<Answer>) {
        let waiting = sizes.iter().map(|bytes| {
            let (answer, written) = oneshot::channel();
            let waiting = Waiting {
                proposal: proposal(1),
                bytes: *bytes,
                answer,
            };
            (waiting, written)
        });
        waiting.unzip()
    }

    #[test]
    fn an_entry_takes_what_fits_and_at_least_one() {
        let (mut waiting, _answers) = queue(&[90, 5, 5, 1, 500, 1]);
        let mut taken = || -> Vec<usize> {
            let batch = take(&mut waiting, 100);
            batch.iter().map(|waiting| waiting.bytes).collect()
        };
        assert_eq!(taken(), [90, 5, 5]);
        assert_eq!(taken(), [1]);
        assert_eq!(taken(), [500]);
        assert_eq!(taken(), [1]);
        assert_eq!(taken(), [0; 0]);
        let (mut waiting, _answers) = queue(&[1; 200]);
        assert_eq!(take(&mut waiting, 1000).len(), PROPOSALS_MAX);
    }

    #[test]
    fn what_nobody_waits_for_is_not_written() {
        let (mut waiting, mut answers) = queue(&[1, 2, 3, 4]);
        answers.remove(2);
        answers.remove(0);
        let batch = take(&mut waiting, 100);
        let bytes: Vec<usize> = batch.iter().map(|waiting| waiting.bytes).collect();
        assert_eq!(bytes, [2, 4]);
    }

    #[test]
    fn one_proposal_is_encoded_as_it_always_was_and_several_are_told_from_it() {
        let one = postcard::to_stdvec(&Proposals(vec![proposal(5)])).expect("plain data");
        assert_eq!(one, postcard::to_stdvec(&proposal(5)).expect("plain data"));
        for numbers in [vec![5], vec![5, 6, 7]] {
            let proposals = Proposals(numbers.into_iter().map(proposal).collect());
            let encoded = postcard::to_stdvec(&proposals).expect("plain data");
            let (read, rest) = postcard::take_from_bytes(&encoded).expect("encoded just now");
            assert_eq!((read, rest.len()), (proposals, 0));
        }
        let torn = postcard::from_bytes::<Proposals<Change>>(&[0, 2, 1]);
        assert!(torn.is_err());
    }
}
