//! The vocabulary of the group: what is proposed, what comes back, and what openraft is told
//! about both.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use holdfast_runtime::{Incarnation, NodeId};
use openraft::RaftTypeConfig;
use openraft::impls::OneshotResponder;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::data::SnapshotData;
use super::scheduling::AmbientRuntime;
use crate::state::Progress;

/// A pure, deterministic state machine that the group replicates. The same changes in the same
/// order give the same state and the same outcomes on every node.
pub trait Machine: Clone + Default + 'static {
    /// What is proposed.
    type Change: Clone + fmt::Debug + Serialize + DeserializeOwned + 'static;
    /// What applying a change answers.
    type Outcome: Clone + fmt::Debug + PartialEq + Serialize + DeserializeOwned + 'static;
    /// A moment of the state in bytes. Each piece is little work.
    type Pieces: Iterator<Item = Vec<u8>> + 'static;

    /// Applies one change.
    fn apply(&mut self, change: Self::Change) -> Self::Outcome;

    /// This moment of the state in bytes; cheap, as is a clone.
    fn pieces(&self) -> Self::Pieces;

    /// Takes up some of what the pieces together gave from the head of `bytes`, into a state that
    /// began as the default one, and gives what follows; `None` if it is not understood.
    fn take_up<'a>(&mut self, bytes: &'a [u8]) -> Option<(Progress, &'a [u8])>;

    /// Reads the state as snapshots of formats 1 and 2 have it from the head of `bytes`, and gives
    /// what follows; `None` if it is not understood.
    fn read_first(bytes: &[u8]) -> Option<(Self, &[u8])>;

    /// Takes up the supplement that snapshots of format 2 have; false if it is not understood.
    fn supply(&mut self, supplement: &[u8]) -> bool;
}

/// Names one proposal for ever, so that it takes effect at most once however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProposalKey {
    /// The node that proposes.
    pub node: NodeId,
    /// Its start.
    pub incarnation: Incarnation,
    /// Counts the proposals of that start, from 1.
    pub number: u64,
}

/// What the log carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal<C> {
    /// Its name.
    pub key: ProposalKey,
    /// The proposer waits for no proposal of a smaller number any more: their outcomes can be
    /// forgotten, and late repetitions of them refused.
    pub settled_below: u64,
    /// The change.
    pub change: C,
}

/// The proposals of one log entry, in order; at least one.
///
/// One alone is encoded as itself, as entries always were. Several follow the number of no node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proposals<C>(pub(super) Vec<Proposal<C>>);

/// Nodes are numbered from 1.
const SEVERAL: NodeId = NodeId(0);

impl<C: Serialize> Serialize for Proposals<C> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            several => (SEVERAL, several).serialize(serializer),
        }
    }
}

impl<'de, C: Deserialize<'de>> Deserialize<'de> for Proposals<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<C>(PhantomData<fn() -> C>);

        impl<'de, C: Deserialize<'de>> Visitor<'de> for Fields<C> {
            type Value = Proposals<C>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a proposal, or several")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
                fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
                    fields: &mut A,
                ) -> Result<T, A::Error> {
                    let field = fields.next_element()?;
                    field.ok_or_else(|| A::Error::custom("a field is missing"))
                }
                let node: NodeId = next(&mut fields)?;
                if node == SEVERAL {
                    return next(&mut fields).map(Proposals);
                }
                let key = ProposalKey {
                    node,
                    incarnation: next(&mut fields)?,
                    number: next(&mut fields)?,
                };
                Ok(Proposals(vec![Proposal {
                    key,
                    settled_below: next(&mut fields)?,
                    change: next(&mut fields)?,
                }]))
            }
        }

        deserializer.deserialize_tuple(5, Fields(PhantomData))
    }
}

/// What applying a log entry answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied<O> {
    /// The proposal took effect, now or at an earlier try, with this outcome.
    Outcome(O),
    /// A repetition that came after its proposer had given up on it, or had been restarted. It
    /// had no effect; an earlier try may have had.
    Superseded,
}

/// openraft's type parameters for the machine `M`.
pub(super) struct Types<M>(PhantomData<fn() -> M>);

impl<M: Machine> RaftTypeConfig for Types<M> {
    type D = Proposals<M::Change>;
    /// For each proposal of the entry.
    type R = Vec<Applied<M::Outcome>>;
    type NodeId = NodeId;
    type Node = openraft::EmptyNode;
    type Entry = openraft::Entry<Self>;
    type SnapshotData = SnapshotData;
    type AsyncRuntime = AmbientRuntime;
    type Responder = OneshotResponder<Self>;
}

pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;
pub(super) type Entry<M> = openraft::Entry<Types<M>>;
pub(super) type StoredMembership = openraft::StoredMembership<NodeId, openraft::EmptyNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, openraft::EmptyNode>;
pub(super) type Snapshot<M> = openraft::Snapshot<Types<M>>;
pub(super) type StorageError = openraft::StorageError<NodeId>;
pub(super) type Raft<M> = openraft::Raft<Types<M>>;

// A derive would demand the same of `M`, of which no value is held.
impl<M> fmt::Debug for Types<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Types")
    }
}

impl<M> Clone for Types<M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Types<M> {}

impl<M> Default for Types<M> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<M> PartialEq for Types<M> {
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl<M> Eq for Types<M> {}

impl<M> PartialOrd for Types<M> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<M> Ord for Types<M> {
    fn cmp(&self, _other: &Self) -> Ordering {
        Ordering::Equal
    }
}
