//! What handlers ask of the thread on which the node lives.

use tokio::sync::{mpsc, oneshot};

use crate::balance::{Balance, BalanceChange, CopyBalance, CopyMoves, CopyMovesBegun, WhichMoves};
use crate::listing::{NodePage, SlicePage, VolumePage, WhichNodes, WhichSlices, WhichVolumes};
use crate::problem::{Problem, ProblemKind};
use crate::types::{
    ClusterStatus, CreatedVolume, DrainPlan, JoinTokenText, NewCluster, NewOwner, NewSecret,
    NewToken, NewVolume, NodeStatus, RotatedSecret, ScrubOrder, SelfReport, VolumeChange,
    VolumeStatus,
};

/// Where an answer goes. Nobody waits for it any more if sending fails.
pub type Reply<T> = oneshot::Sender<Result<T, Problem>>;

/// One request, with the way back for its answer.
#[derive(Debug)]
pub enum Request {
    /// How the cluster is.
    Cluster(Reply<ClusterStatus>),
    /// Makes a new cluster with this node as its first.
    Found(NewCluster, Reply<ClusterStatus>),
    /// Lets one node join.
    AddToken(NewToken, Reply<JoinTokenText>),
    /// How the load is spread.
    Balance(WhichMoves, Reply<Balance>),
    /// Whether volumes move by themselves.
    ChangeBalance(BalanceChange, Reply<Balance>),
    /// How copies are spread.
    CopyBalance(Reply<CopyBalance>),
    /// Moves copies.
    MoveCopies(CopyMoves, Reply<CopyMovesBegun>),
    /// What this node knows of itself.
    OwnReport(Reply<SelfReport>),
    /// The nodes.
    Nodes(WhichNodes, Reply<NodePage>),
    /// One node.
    Node(u64, Reply<NodeStatus>),
    /// Tells a node's scrub what to do.
    OrderScrub(u64, ScrubOrder, Reply<NodeStatus>),
    /// Takes a node out for good.
    Evict(u64, Reply<NodeStatus>),
    /// What draining a node would move.
    DrainPlan(u64, Reply<DrainPlan>),
    /// Has a node drained.
    Drain(u64, Reply<NodeStatus>),
    /// Lets a node that is drained stay.
    CancelDrain(u64, Reply<NodeStatus>),
    /// Takes a node out for good that was drained.
    Remove(u64, Reply<NodeStatus>),
    /// Lets a node begin anew with its longest stalls.
    ForgetStalls(u64, Reply<NodeStatus>),
    /// Volumes.
    Volumes(WhichVolumes, Reply<VolumePage>),
    /// The slices of a volume, by name.
    Slices(String, WhichSlices, Reply<SlicePage>),
    /// One volume, by name.
    Volume(String, Reply<VolumeStatus>),
    /// Makes a volume.
    CreateVolume(NewVolume, Reply<CreatedVolume>),
    /// Changes a volume, by name.
    ChangeVolume(String, VolumeChange, Reply<VolumeStatus>),
    /// Gives a volume, by name, a new CHAP secret.
    RotateSecret(String, NewSecret, Reply<RotatedSecret>),
    /// Gives a volume, by name, another owner.
    MoveVolume(String, NewOwner, Reply<VolumeStatus>),
    /// Deletes a volume, by name.
    DeleteVolume(String, Reply<()>),
}

impl Request {
    /// Answers with a problem, whatever was asked.
    pub fn refuse(self, problem: Problem) {
        // Nobody waiting any more is no reason to complain.
        let _ = match self {
            Self::Cluster(reply) | Self::Found(_, reply) => reply.send(Err(problem)).is_ok(),
            Self::AddToken(_, reply) => reply.send(Err(problem)).is_ok(),
            Self::Balance(_, reply) | Self::ChangeBalance(_, reply) => {
                reply.send(Err(problem)).is_ok()
            }
            Self::CopyBalance(reply) => reply.send(Err(problem)).is_ok(),
            Self::MoveCopies(_, reply) => reply.send(Err(problem)).is_ok(),
            Self::OwnReport(reply) => reply.send(Err(problem)).is_ok(),
            Self::Nodes(_, reply) => reply.send(Err(problem)).is_ok(),
            Self::Node(_, reply)
            | Self::Evict(_, reply)
            | Self::Drain(_, reply)
            | Self::CancelDrain(_, reply)
            | Self::Remove(_, reply)
            | Self::ForgetStalls(_, reply)
            | Self::OrderScrub(_, _, reply) => reply.send(Err(problem)).is_ok(),
            Self::DrainPlan(_, reply) => reply.send(Err(problem)).is_ok(),
            Self::Volumes(_, reply) => reply.send(Err(problem)).is_ok(),
            Self::Slices(_, _, reply) => reply.send(Err(problem)).is_ok(),
            Self::Volume(_, reply)
            | Self::ChangeVolume(_, _, reply)
            | Self::MoveVolume(_, _, reply) => reply.send(Err(problem)).is_ok(),
            Self::CreateVolume(_, reply) => reply.send(Err(problem)).is_ok(),
            Self::RotateSecret(_, _, reply) => reply.send(Err(problem)).is_ok(),
            Self::DeleteVolume(_, reply) => reply.send(Err(problem)).is_ok(),
        };
    }
}

/// The handlers' end of the channel.
#[derive(Clone, Debug)]
pub struct RequestSender {
    requests: mpsc::Sender<Request>,
}

/// Requests that may wait for the node's thread; more are turned away.
const WAITING_MAX: usize = 64;

impl RequestSender {
    /// A channel to whoever answers.
    pub fn channel() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(WAITING_MAX);
        (Self { requests }, receiver)
    }

    pub(crate) async fn ask<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> Request,
    ) -> Result<T, Problem> {
        let (reply, answer) = oneshot::channel();
        let stopping = || {
            let hint = "ask another node";
            Problem::new(ProblemKind::Unavailable, "the node is stopping", hint)
        };
        self.requests
            .try_send(request(reply))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => Problem::new(
                    ProblemKind::Unavailable,
                    "too many requests wait for this node",
                    "try again in a moment",
                ),
                mpsc::error::TrySendError::Closed(_) => stopping(),
            })?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}
